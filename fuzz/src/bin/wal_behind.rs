//! Fuzzes the look behind an end of WAL; the body and its promise are in the library.
//! Parser: src/wal/behind.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::wal::fuzzing::behind);
