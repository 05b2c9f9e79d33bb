//! Fuzzes tablespace_map files; the body and its promise are in the library.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walmgr::pg::fuzzing::tablespace_map(bytes));
