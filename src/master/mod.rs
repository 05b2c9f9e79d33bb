//! Commands on the master: one file a command that runs where PostgreSQL writes.
//! Never sees the store: what the master wants of the standby goes over the wire.

use crate::error::{CommandError, Result};

mod archiver;
pub mod archiving;
pub mod ask;
pub mod backup;
pub mod cluster;
pub mod fetch;
pub mod histories;
pub mod init;
mod lag;
pub mod listbackups;
pub mod partial;
pub mod periodic;
pub mod position;
pub mod push;
pub mod restore;
pub mod setup;
pub mod status;
pub mod stop;
pub mod sync;
pub mod syncdaemon;
pub mod tail;
mod wal_watch;
pub mod xarchive;
pub mod xrestore;

/// A runtime for one client connection: one thread for sockets, two for files, and one more
/// for looking up host names while those are busy.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(3)
        .build()
        .map_err(|error| CommandError::retry("start the event loop").because(error))
}
