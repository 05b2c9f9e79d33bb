//! Fuzzes pg_control files; the body and its promise are in the library.
//! Parser: src/pg/control.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::pg::fuzzing::control_file);
