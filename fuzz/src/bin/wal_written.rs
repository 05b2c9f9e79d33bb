#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walmgr::wal::fuzzing::written_wal(bytes));
