//! Fuzzes backup_label files; the body and its promise are in the library.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walmgr::pg::fuzzing::backup_label(bytes));
