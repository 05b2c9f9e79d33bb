//! Fuzzes both ends of a fetch; the body and its promise are in the library.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walmgr_protocol::fuzzing::fetch_session(bytes));
