//! Fuzzes backup_label files and backup history files; the body and its promise are in the library.
//! Parser: src/pg/backup_label.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::pg::fuzzing::backup_label);
