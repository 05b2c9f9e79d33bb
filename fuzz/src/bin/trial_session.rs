//! Fuzzes both ends of a trial; the body and its promise are in the library.
//! Parser: protocol/src/session/trial.rs
#![no_main]
walmgr_fuzz::target!(walmgr_protocol::fuzzing::trial_session);
