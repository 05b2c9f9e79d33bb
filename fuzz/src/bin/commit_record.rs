//! Fuzzes what is read out of commit records; the body and its promise are in the library.
//! Parser: src/wal/commit.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::wal::fuzzing::commit_record);
