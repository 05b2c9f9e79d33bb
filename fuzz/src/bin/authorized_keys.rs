//! Fuzzes the list of authorized keys; the body and its promise are in the library.
//! Parser: src/transport/authorized_keys.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::transport::fuzzing::authorized_keys);
