//! Fuzzes settings and access rules of another host; the body and its promise are in the library.
//! Parser: src/pg/conf/foreign.rs src/pg/conf/line.rs src/pg/hba.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::pg::fuzzing::foreign_settings);
