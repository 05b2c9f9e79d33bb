//! Fuzzes both ends of a fetch; the body and its promise are in the library.
//! Parser: protocol/src/session/fetch.rs
#![no_main]
walmgr_fuzz::target!(walmgr_protocol::fuzzing::fetch_session);
