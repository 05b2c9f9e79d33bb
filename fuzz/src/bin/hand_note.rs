//! Fuzzes the note of a lock by hand; the body and its promise are in the library.
//! Parser: src/store/sets/hand_note.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::store::sets::fuzzing::hand_note);
