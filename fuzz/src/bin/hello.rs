//! Fuzzes hellos and their answers; the body and its promise are in the library.
//! Parser: protocol/src/session/hello.rs
#![no_main]
walmgr_fuzz::target!(walmgr_protocol::fuzzing::hello);
