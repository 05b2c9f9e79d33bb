//! The back room: one file a command that runs on the standby's host.
//! Never listens: that is the receiver's.

pub mod authorize;
pub mod init;
pub mod revoke;
pub mod setup;
