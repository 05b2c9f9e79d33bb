//! Fuzzes backup_manifest files; the body and its promise are in the library.
//! Parser: src/pg/manifest.rs src/pg/manifest
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::pg::fuzzing::manifest);
