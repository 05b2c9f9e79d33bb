//! Fuzzes what a configuration is made of; the body and its promise are in the library.
//! Parser: src/pg/conf/pieces.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::pg::fuzzing::conf_pieces);
