//! Commands on the master, one file each.
//! Never imports the store: the master asks the standby over the wire.

use crate::error::{CommandError, Result};

pub(crate) mod agent;
mod archived_file;
mod archiver;
pub(crate) mod archiving;
pub(crate) mod ask;
mod backoff;
pub(crate) mod backup;
pub(crate) mod bench;
pub(crate) mod cleanup;
pub(crate) mod cluster;
pub(crate) mod fetch;
mod folder_watch;
mod held_note;
pub(crate) mod histories;
pub(crate) mod init;
mod lag;
pub(crate) mod listbackups;
mod monitored;
mod next_step;
mod on_demand;
mod packed_blocks;
pub(crate) mod partial;
pub(crate) mod periodic;
pub(crate) mod position;
pub(crate) mod push;
pub(crate) mod restore;
mod rpo;
pub(crate) mod setup;
pub(crate) mod setup_by_root;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod sync;
pub(crate) mod syncdaemon;
pub(crate) mod synch_note;
pub(crate) mod synch_standby;
mod synchronous;
pub(crate) mod tail;
mod unshipped;
mod wal_watch;
pub(crate) mod xarchive;
pub(crate) mod xrestore;

/// A runtime for one client connection: one thread for sockets, two for files, and one more
/// for looking up host names while those are busy.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(3)
        .build()
        .map_err(|error| CommandError::retry("start the event loop").because(error))
}
