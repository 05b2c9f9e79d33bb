//! Fuzzes edits of postgresql.conf; the body and its promise are in the library.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walmgr::pg::fuzzing::conf_edit(bytes));
