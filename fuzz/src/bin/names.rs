//! Fuzzes names of WAL files; the body and its promise are in the library.
//! Parser: protocol/src/names.rs
#![no_main]
walmgr_fuzz::target!(walmgr_protocol::fuzzing::names);
