//! Fuzzes ini files; the body and its promise are in the library.
//! Parser: src/config
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::config::fuzzing::ini_file);
