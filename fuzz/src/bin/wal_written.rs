//! Fuzzes the WAL scanner on WAL that was valid once; the body and its promise are in the library.
//! Parser: src/wal/scan.rs src/wal/page.rs src/wal/record.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::wal::fuzzing::written_wal);
