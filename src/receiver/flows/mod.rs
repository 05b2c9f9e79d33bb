//! What flows over a connection, each on channels of its own.
//! Never sees the connection, only its [`link`](crate::receiver::link). Invariant: no flow sees another, and what is
//! kept of one beyond its connection is the [cluster](crate::receiver::cluster)'s.

pub mod backup;
pub mod control;
pub mod fetch;
pub mod partial;
pub mod push;
