//! What lies in a set, or in any copied data directory, and tells a server what is not meant for it.
//! Never looks below the folders that are named here and in `layout::EMPTIED`. Invariant: every step can be done twice.

use std::path::Path;

use crate::error::{IoContext, Kind, Result};
use crate::files;
use crate::pg::layout;

/// Notes that `slave_data` was a backup set (`standby::restore::taken`).
pub(crate) const RESTORED_SET: &str = "walmgr_restored_set";

/// Notes which synchronous standbys walmgr set (`master::synch_note`).
pub(crate) const SYNCHRONOUS_NOTE: &str = "walmgr_synchronous_standbys";

/// Files by which a server or an administrator was told something, and which no set is to bring:
/// they promote, rotate, end the start, or stand for another life of the server. PostgreSQL does not start
/// where there is a `recovery.conf`. The signals a restore writes itself, the one that it wants.
const FILES: [&str; 9] = [
    "promote",
    "fallback_promote",
    "logrotate",
    "recovery.conf",
    "recovery.done",
    "current_logfiles",
    layout::BACKUP_LABEL_UNSEALED,
    RESTORED_SET,
    SYNCHRONOUS_NOTE,
];

/// Removes all of it from a data directory on which no server runs, and with it the content of the folders that belongs
/// to a running server. A slot keeps WAL for a client that never comes; `pg_stat_tmp` may hold what `boot` would take for
/// an answer that this host's `xrestore` gave.
pub(crate) fn remove(data: &Path) -> Result<()> {
    for name in FILES {
        files::remove_any(&data.join(name))?;
    }
    for name in layout::EMPTIED {
        let folder = data.join(name);
        if !folder.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            continue;
        }
        for entry in std::fs::read_dir(&folder).at(Kind::Retry, "list", &folder)? {
            files::remove_any(&entry.at(Kind::Retry, "list", &folder)?.path())?;
        }
    }
    Ok(())
}
