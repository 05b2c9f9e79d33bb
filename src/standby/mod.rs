//! Commands on the standby's host, one file each.
//! Never listens on a port: the receiver does.

mod absent_notes;
pub(crate) mod ahead;
pub(crate) mod all;
mod archive_cleaners;
pub(crate) mod authorize;
pub(crate) mod boot;
pub(crate) mod choose;
pub(crate) mod cleanup;
mod connected;
pub(crate) mod continue_;
pub(crate) mod createslave;
mod frozen;
pub(crate) mod hosted;
pub(crate) mod init;
pub(crate) mod init_host;
mod last_commit;
pub(crate) mod listbackups;
mod own_server;
mod password;
pub(crate) mod pause;
pub(crate) mod replay;
pub(crate) mod restore;
pub(crate) mod revoke;
mod sets;
pub(crate) mod setup;
mod standing;
pub(crate) mod status;
mod too_low;
mod verdict;
pub(crate) mod verify;
pub(crate) mod xlock;
pub(crate) mod xpartialsync;
pub(crate) mod xpurgewals;
pub(crate) mod xrelease;
pub(crate) mod xrestore;
pub(crate) mod xrotate;
