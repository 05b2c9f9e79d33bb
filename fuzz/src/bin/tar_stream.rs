//! Fuzzes the tar streams of backups; the body and its promise are in the library.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walmgr::store::sets::fuzzing::tar_stream(bytes));
