//! Fuzzes the list of names in certificates; the body and its promise are in the library.
//! Parser: src/transport/authorized_names.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::transport::fuzzing::authorized_names);
