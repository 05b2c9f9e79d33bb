//! The conversations, one file a flow, with both ends side by side.
//! Never waits and never does IO. A driver feeds events and performs the actions that come back.
//!
//! Rules every driver obeys:
//! - perform actions in the order they are returned;
//! - feed the answer to an action before the next message of the same channel;
//! - when a session returns an error, send it as [`crate::message::Error`] of scope `connection`
//!   and close.

pub mod backup;
pub mod fetch;
pub mod hello;
pub mod keepalive;
pub mod partial;
pub mod push;
