//! Fuzzes what finds and unpacks the blocks of a packed segment; the body and its promise are in the library.
//! Parser: src/store/packed.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::store::fuzzing::packed_segment);
