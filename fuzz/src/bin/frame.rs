//! Fuzzes frames, however the stream is cut; the body and its promise are in the library.
//! Parser: protocol/src/frame.rs protocol/src/codec.rs
#![no_main]
walmgr_fuzz::target!(walmgr_protocol::fuzzing::frame);
