//! Fuzzes the checksum kept of a finished file; the body and its promise are in the library.
//! Parser: src/store/checksums.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::store::fuzzing::kept_checksum);
