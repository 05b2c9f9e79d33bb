//! Fuzzes ini files; the body and its promise are in the library.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walmgr::config::fuzzing::ini_file(bytes));
