//! Fuzzes the check of whole WAL files; the body and its promise are in the library.
//! Parser: src/wal/segment.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::wal::fuzzing::segment);
