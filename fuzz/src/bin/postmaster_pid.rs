//! Fuzzes postmaster.pid files; the body and its promise are in the library.
//! Parser: src/pg/data_directory.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::pg::fuzzing::postmaster_pid);
