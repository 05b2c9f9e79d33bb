//! Fuzzes what `verify` remembers of files that it found good; the body and its promise are in the library.
//! Parser: src/store/verify/note.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::store::fuzzing::verified_note);
