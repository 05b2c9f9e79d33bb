#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walmgr_protocol::fuzzing::message(bytes));
