//! Fuzzes certificates that peers show; the body and its promise are in the library.
//! Parser: src/transport/tls/certificate.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::transport::fuzzing::certificate);
