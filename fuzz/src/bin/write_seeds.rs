//! Writes inputs for all targets to begin with:  write_seeds FOLDER [COLLECTED]
//! Fuzzes nothing; it is linked as a target is, since everything here is instrumented.
#![no_main]
libfuzzer_sys::fuzz_target!(init: walmgr_fuzz::write_seeds(), |bytes: &[u8]| {
    let _ = bytes;
});
