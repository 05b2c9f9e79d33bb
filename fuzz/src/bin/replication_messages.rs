//! Fuzzes what a server says while it streams WAL; the body and its promise are in the library.
//! Parser: src/pg/replication_messages.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::pg::fuzzing::replication_messages);
