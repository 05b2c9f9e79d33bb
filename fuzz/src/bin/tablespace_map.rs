//! Fuzzes tablespace_map files; the body and its promise are in the library.
//! Parser: src/pg/tablespace_map.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::pg::fuzzing::tablespace_map);
