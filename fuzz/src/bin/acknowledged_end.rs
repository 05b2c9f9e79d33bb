//! Fuzzes notes of acknowledged ends; the body and its promise are in the library.
//! Parser: src/store/partial/acknowledged.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::store::fuzzing::acknowledged_end);
