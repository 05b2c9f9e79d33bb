#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walmgr::config::fuzzing::ini_file(bytes));
