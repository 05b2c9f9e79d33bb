//! Fuzzes the receiver's end of a partial stream; the body and its promise are in the library.
//! Parser: protocol/src/session/partial.rs
#![no_main]
walmgr_fuzz::target!(walmgr_protocol::fuzzing::partial_session);
