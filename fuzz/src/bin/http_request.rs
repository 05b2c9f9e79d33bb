//! Fuzzes the head of a request to the metrics listener; the body and its promise are in the library.
//! Parser: src/metrics/request.rs
#![no_main]
walmgr_fuzz::target!(walmgr::test_support::metrics::fuzzing::http_request);
