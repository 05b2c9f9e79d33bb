//! Fuzzes what is read out of commit records; the body and its promise are in the library.
//! Parser: src/wal/commit.rs
#![no_main]
walmgr_fuzz::target!(walmgr::wal::fuzzing::commit_record);
