//! Fuzzes the index of an archive's names; the body and its promise are in the library.
//! Parser: src/store/held_names.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::store::fuzzing::held_names);
