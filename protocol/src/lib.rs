//! The language walmgr's master and standby speak, without sockets, files, clocks or threads.

pub mod limits;
pub mod names;
