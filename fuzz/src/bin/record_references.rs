//! Fuzzes the references of a record; the body and its promise are in the library.
//! Parser: src/wal/references.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::wal::fuzzing::record_references);
