//! An online backup over SQL: the server is told when it begins and hands out a label at its end.
//! Never reads the data directory. Invariant: the session that began a backup is the one that ends
//! it, and whatever else happens to it ends the backup on the server.

use walmgr_protocol::names::Lsn;

use super::sql::{Session, column, lsn, the_one};
use crate::error::{CommandError, Result};

/// A server in a backup: full pages are logged until it stops. Dropping this closes the session,
/// and the server forgets the backup.
pub struct RunningBackup {
    session: Session,
    start: Lsn,
    has_new_names: bool,
    /// Whether the server replayed when it began.
    is_standby: bool,
}

/// What the server returned at the end of a backup. Its files go into the backup verbatim; those
/// of the data directory would be of somebody else's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedBackup {
    /// `backup_label`.
    pub backup_label: Vec<u8>,
    /// `tablespace_map`, if there are tablespaces.
    pub tablespace_map: Option<Vec<u8>>,
    /// Where the WAL ends without which the backup is not consistent.
    pub stop_lsn: Lsn,
}

impl Session {
    /// Begins a backup and returns when its checkpoint is done: at once with `fast`, else whenever
    /// the next one would be. The session's statement limit has to allow for that.
    ///
    /// `pg_backup_start` (15 and newer), or `pg_start_backup` of a non-exclusive backup: an
    /// exclusive one would leave a `backup_label` that keeps a crashed server from starting.
    pub async fn backup_start(self, label: &str, fast: bool) -> Result<RunningBackup> {
        // A second line would be a line of the backup_label.
        if label.contains(['\n', '\r']) {
            let shown = label.escape_debug();
            return Err(CommandError::usage(format!(
                "a backup's label is one line, not \"{shown}\""
            )));
        }
        let major = self.server_version().await?.major();
        let has_new_names = major >= 15;
        let sql = match has_new_names {
            true => "SELECT pg_backup_start($1, $2)::text",
            false => "SELECT pg_start_backup($1, $2, false)::text",
        };
        let is_standby = self.is_in_recovery().await?;
        let row = match self.query_if_fit(sql, &[&label, &fast]).await? {
            Ok(rows) => the_one(rows, sql)?,
            Err(refused) if is_standby => return Err(without_full_pages(&refused)),
            Err(refused) => return Err(refused),
        };
        Ok(RunningBackup {
            start: lsn(&row, 0)?,
            session: self,
            has_new_names,
            is_standby,
        })
    }
}

impl RunningBackup {
    /// Where the WAL begins that the backup needs; pages that are older were not written since.
    pub const fn start(&self) -> Lsn {
        self.start
    }

    /// The session, for other questions while the backup runs.
    pub const fn session(&self) -> &Session {
        &self.session
    }

    /// Ends the backup. It does not wait for the archiver: whether the WAL is safe is for the
    /// archive to say. On a standby that was promoted meanwhile the server refuses.
    pub async fn stop(self) -> Result<FinishedBackup> {
        // Paths are bytes. Sent as bytes to a client of no encoding they are neither converted
        // from the database's encoding nor refused for not being UTF-8.
        let sql = "SELECT set_config('client_encoding', 'SQL_ASCII', false)";
        self.session.row(sql, &[]).await?;
        let sql = match self.has_new_names {
            true => {
                "SELECT lsn::text, textsend(labelfile), textsend(spcmapfile) \
                 FROM pg_backup_stop(false)"
            }
            false => {
                "SELECT lsn::text, textsend(labelfile), textsend(spcmapfile) \
                 FROM pg_stop_backup(false, false)"
            }
        };
        let row = match self.session.query_if_fit(sql, &[]).await? {
            Ok(rows) => the_one(rows, sql)?,
            Err(refused) if self.is_standby => {
                return Err(match self.session.is_in_recovery().await? {
                    true => without_full_pages(&refused),
                    false => promoted(),
                });
            }
            Err(refused) => return Err(refused),
        };
        let map: Option<Vec<u8>> = column(&row, 2)?;
        let finished = FinishedBackup {
            stop_lsn: lsn(&row, 0)?,
            backup_label: column(&row, 1)?,
            tablespace_map: map.filter(|map| !map.is_empty()),
        };
        self.session.close().await;
        Ok(finished)
    }
}

/// A standby's backup is torn where the master did not write full pages.
pub(crate) fn without_full_pages(refused: &(impl std::error::Error + ?Sized)) -> CommandError {
    CommandError::retry(
        "the standby has replayed WAL without full pages since its last restartpoint, so a copy of it may be torn",
    )
    .because(refused)
    .hint(
        "set full_page_writes = on on the master and run CHECKPOINT there; when the standby has replayed that, start \
        the backup again",
    )
}

/// A promoted server writes pages of a new timeline.
pub(crate) fn promoted() -> CommandError {
    CommandError::retry("the standby was promoted during the backup, so the copy is of no use")
        .hint("nothing of this backup was kept; back up the new master: walmgr MASTER.ini backup")
}
