//! Fuzzes the receiver's end of a partial stream; the body and its promise are in the library.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walmgr_protocol::fuzzing::partial_session(bytes));
