//! Fuzzes timeline history files; the body and its promise are in the library.
//! Parser: src/wal/history.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::wal::fuzzing::history);
