//! Fuzzes the patch of a file, however it is cut; the body and its promise are in the library.
//! Parser: protocol/src/patch.rs
#![no_main]
walmgr_fuzz::target!(walmgr_protocol::patch::fuzz);
