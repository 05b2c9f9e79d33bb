//! The server's part in a backup of a standby that answers queries.
//! Never asks the master anything. Invariant: the session that began the backup is the one that ends it, and a
//! promotion meanwhile ends it too.

use std::time::Duration;

use walmgr_protocol::names::{Lsn, TimelineId};

use crate::error::{CommandError, Kind, Result};
use crate::pg::base_backup::configs::{self, ConfigPlaces};
use crate::pg::data_directory::{DataDirectory, Postmaster};
use crate::pg::grants::Task;
use crate::pg::sql::Session;
use crate::pg::sql_backup::{FinishedBackup, RunningBackup, promoted};
use crate::standby::own_server;

/// A restartpoint writes out what the buffers hold; on a busy disk that takes its time, and less than a day.
const RESTARTPOINT_DEADLINE: Duration = Duration::from_secs(86_400);

/// Asks the server for a session that may make a backup.
pub(super) async fn connect(data: &DataDirectory, server: &Postmaster) -> Result<Session> {
    let session = own_server::connect(data, server).await;
    let session = session.map_err(|error| match error.kind() {
        Kind::Config => error
            .hint("let the owner of the data directory in as a role of that name, or as postgres"),
        _ => error.hint("see in the log of the standby's server why it does not answer"),
    })?;
    if let Some(lacking) = Task::Backup.check(&session).await? {
        return Err(lacking);
    }
    match session.is_in_recovery().await? {
        true => Ok(session),
        false => Err(no_standby(data)),
    }
}

/// The refusal of a server that replays nothing.
pub(super) fn no_standby(data: &DataDirectory) -> CommandError {
    let path = data.path().display();
    CommandError::config(format!(
        "the server in {path} is no standby: it replays nothing"
    ))
    .hint("back up a master with its own file: walmgr MASTER.ini backup")
}

/// A standby in a backup.
pub(super) struct OnlineBackup {
    running: RunningBackup,
    timeline: TimelineId,
}

impl OnlineBackup {
    /// Begins it, with a restartpoint at once: nobody writes here who would notice.
    pub(super) async fn begin(mut session: Session, label: &str) -> Result<OnlineBackup> {
        session.set_statement_limit(RESTARTPOINT_DEADLINE);
        let timeline = session.timeline().await?;
        let running = session.backup_start(label, true).await?;
        Ok(OnlineBackup { running, timeline })
    }

    /// Where its WAL begins.
    pub(super) const fn start(&self) -> Lsn {
        self.running.start()
    }

    /// Where the server has its configuration files.
    pub(super) async fn config_places(&self, notes: &mut Vec<String>) -> ConfigPlaces {
        configs::places_of_server(self.running.session(), notes).await
    }

    /// Ends when the server has ended the session, and the backup with it.
    pub(super) async fn until_closed(&self) -> CommandError {
        self.running.session().until_closed().await;
        CommandError::retry("the standby's server ended the session of the backup")
            .hint("look at its log, and start the backup again")
    }

    /// Ends it, behind the last file.
    pub(super) async fn end(self) -> Result<FinishedBackup> {
        let session = self.running.session();
        if !session.is_in_recovery().await? {
            return Err(promoted());
        }
        if session.timeline().await? != self.timeline {
            return Err(super::other_timeline());
        }
        self.running.stop().await
    }
}
