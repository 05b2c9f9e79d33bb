//! Fuzzes what the syncdaemon and xarchive say to each other; the body and its promise are in the library.
//! Parser: src/master/agent/words.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::master::fuzzing::agent_words);
