//! Fuzzes connection strings; the body and its promise are in the library.
//! Parser: src/pg/conninfo
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::pg::fuzzing::connection_string);
