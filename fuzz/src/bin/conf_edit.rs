//! Fuzzes edits of postgresql.conf; the body and its promise are in the library.
//! Parser: src/pg/conf
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::pg::fuzzing::conf_edit);
