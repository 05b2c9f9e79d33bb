//! Fuzzes the list of authorized keys; the body and its promise are in the library.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walmgr::transport::fuzzing::authorized_keys(bytes));
