//! What the receiver keeps for a cluster.

pub mod writer_lock;
