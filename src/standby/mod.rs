//! The back room: one file a command that runs on the standby's host.
//! Never listens: that is the receiver's.

pub mod ahead;
mod answers;
pub mod authorize;
pub mod boot;
pub mod choose;
mod connected;
pub mod continue_;
mod frozen;
mod gap;
pub mod init;
mod last_commit;
pub mod listbackups;
pub mod pause;
mod reach;
pub mod replay;
pub mod restore;
pub mod revoke;
mod route;
mod sets;
pub mod setup;
pub mod status;
mod verdict;
pub mod xpurgewals;
pub mod xrestore;
