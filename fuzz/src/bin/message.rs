//! Fuzzes messages and data blocks; the body and its promise are in the library.
//! Parser: protocol/src/message protocol/src/message.rs protocol/src/fields.rs
#![no_main]
walmgr_fuzz::target!(walmgr_protocol::fuzzing::message);
