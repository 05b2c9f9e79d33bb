//! Fuzzes lists of synchronous standbys; the body and its promise are in the library.
//! Parser: src/pg/synchronous_names.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::pg::fuzzing::synchronous_names);
