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
mod own_server;
pub mod pause;
pub mod replay;
pub mod restore;
pub mod revoke;
mod sets;
pub mod setup;
mod standing;
pub mod status;
mod too_low;
mod verdict;
pub mod xpurgewals;
pub mod xrestore;
