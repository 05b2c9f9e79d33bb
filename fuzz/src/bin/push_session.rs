//! Fuzzes the receiver's end of an upload; the body and its promise are in the library.
//! Parser: protocol/src/session/push.rs
#![no_main]
walmgr_fuzz::target!(walmgr_protocol::fuzzing::push_session);
