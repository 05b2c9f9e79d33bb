//! What flows over a connection, each on channels of its own.
//! Never sees the connection, only its [`link`](crate::receiver::link). Invariant: no flow sees another, and what is
//! kept of one beyond its connection is the [cluster](crate::receiver::cluster)'s.

pub(crate) mod backup;
pub(crate) mod control;
pub(crate) mod fetch;
pub(crate) mod partial;
pub(crate) mod push;
pub(crate) mod trial;
