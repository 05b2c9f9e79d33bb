//! Fuzzes what PostgreSQL servers show as certificates; the body and its promise are in the library.
//! Parser: src/pg/encryption
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::pg::fuzzing::server_certificate);
