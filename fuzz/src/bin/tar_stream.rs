//! Fuzzes the tar streams of backups; the body and its promise are in the library.
//! Parser: src/tar/reader.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::store::sets::fuzzing::tar_stream);
