//! Fuzzes the check of two neighbouring segments; the body and its promise are in the library.
//! Parser: src/wal/joint.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::wal::fuzzing::joint);
