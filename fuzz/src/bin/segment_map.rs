//! Fuzzes the map of a segment; the body and its promise are in the library.
//! Parser: src/wal/segment_map.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::wal::fuzzing::segment_map);
