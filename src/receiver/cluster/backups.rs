//! The backups of a cluster: at most one at a time, and the last that was sealed.
//! Never lists a set that is not sealed. Invariant: a backup whose control connection is gone for
//! longer than its lease is over, and what it brought is removed.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use walmgr_protocol::message::backup::{BackupBegin, BackupSealed, Token};
use walmgr_protocol::message::{Error, ErrorCode};

use crate::receiver::cluster::running::{Running, unknown};
use crate::receiver::refusal;
use crate::receiver::worker::Workforce;
use crate::store::sets::{BackupSets, Lease, SealedSet, SetError};
use crate::store::{ArchiveFolders, Disk, Health};

/// Time for the threads of a backup that gives way to let go of it.
const GIVE_WAY_DEADLINE: Duration = Duration::from_secs(15);

/// Pause between two looks whether somebody else's process has; a thread of this one is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The backups of a cluster.
pub(crate) struct RunningBackups {
    sets: Result<BackupSets, NoSets>,
    workforce: Workforce,
    state: Mutex<BackupsState>,
}

/// Why there are no sets to use.
struct NoSets {
    why: String,
    /// Whether a sync failed on the way.
    is_sync_failure: bool,
}

#[derive(Default)]
struct BackupsState {
    running: Option<Arc<Running>>,
    /// The last one that was sealed, for a client that did not hear of it.
    sealed: Option<(Token, SealedSet, BackupSealed)>,
    /// Why none begins any more.
    ended: Option<Error>,
}

/// What a client finds that comes back to a backup.
pub(crate) enum Resumed {
    /// It waits for more.
    Running(Arc<Running>),
    /// It was sealed meanwhile.
    Sealed(SealedSet, BackupSealed),
}

impl RunningBackups {
    /// Sees to what an interrupted backup or rotation left. Archiving never waits for backups: when
    /// something is wrong with their folder, only they are refused.
    pub(crate) fn open(
        folders: &ArchiveFolders,
        full_backup: Option<&Path>,
        disk: &Arc<dyn Disk>,
        workforce: &Workforce,
    ) -> RunningBackups {
        RunningBackups {
            sets: open(folders, full_backup, disk),
            workforce: workforce.clone(),
            state: Mutex::default(),
        }
    }

    /// The sets, for whoever only reads them.
    pub(crate) fn to_read(&self) -> Option<BackupSets> {
        self.sets.as_ref().ok().cloned()
    }

    /// Whether the disk below the sets can be trusted.
    pub(crate) fn health(&self) -> Health {
        match &self.sets {
            Ok(sets) => sets.health(),
            Err(_) => Health::Good,
        }
    }

    /// Why the sets were not opened, if a sync failed on the way.
    pub(crate) fn sync_failure(&self) -> Option<&str> {
        let failed = self.sets.as_ref().err()?;
        failed.is_sync_failure.then_some(failed.why.as_str())
    }

    /// Ends the backup that runs, if one does, and lets none begin: its store has retired. Blocks while files are
    /// removed.
    pub(crate) fn end(&self, why: &Error) {
        let running = {
            let mut state = self.state();
            state.ended = Some(why.clone());
            state.running.take()
        };
        if let Some(running) = running {
            running.end(why);
        }
    }

    /// Begins a backup; blocks while one of the same origin gives way.
    pub(crate) fn begin(&self, begin: &BackupBegin) -> Result<Arc<Running>, Error> {
        let sets = self.sets()?;
        self.make_way(begin)?;
        let since = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S %Z");
        let holder = format!("{}, since {since}", begin.who);
        let lease = Arc::new(self.lease(sets, &holder)?);
        let set = sets
            .begin(&lease)
            .map_err(|error| refusal::of_set(&error))?;
        let running =
            Arc::new(Running::new(set, holder, begin, self.workforce.clone()).map_err(internal)?);
        self.note_running(&running).inspect_err(|why| {
            running.end(why);
        })?;
        Ok(running)
    }

    /// The backup with this token, for one of its streams.
    pub(crate) fn find(&self, token: Token) -> Result<Arc<Running>, Error> {
        let running = self.state().running.clone();
        let running = running.filter(|running| running.token() == token && !running.is_over());
        running.ok_or_else(unknown)
    }

    /// The backup with this token, for whoever controlled it; blocks while it is being finished for
    /// the connection before.
    pub(crate) fn resume(&self, token: Token) -> Result<Resumed, Error> {
        loop {
            if let Some((_, set, facts)) =
                (self.state().sealed.as_ref()).filter(|(sealed, ..)| *sealed == token)
            {
                return Ok(Resumed::Sealed(set.clone(), facts.clone()));
            }
            let running = self.find(token)?;
            if !running.is_finishing() {
                return Ok(Resumed::Running(running));
            }
            running.let_finish();
        }
    }

    /// Remembers that a backup is sealed, before it counts as over.
    pub(crate) fn note_sealed(&self, token: Token, set: &SealedSet, facts: &BackupSealed) {
        self.state().sealed = Some((token, set.clone(), facts.clone()));
    }

    /// Makes it the one that runs, unless all of them have ended meanwhile.
    fn note_running(&self, running: &Arc<Running>) -> Result<(), Error> {
        let mut state = self.state();
        match &state.ended {
            Some(why) => Err(why.clone()),
            None => {
                state.running = Some(Arc::clone(running));
                Ok(())
            }
        }
    }

    /// Ends a backup of the same origin, whose process must be dead, and one that has been idle for too
    /// long; any other is in the way.
    fn make_way(&self, begin: &BackupBegin) -> Result<(), Error> {
        let Some(running) = self.state().running.clone().filter(|one| !one.is_over()) else {
            return Ok(());
        };
        let until = Instant::now() + GIVE_WAY_DEADLINE;
        let is_idle = running.is_idle();
        while (running.origin() == begin.origin || is_idle) && Instant::now() < until {
            let text = match is_idle {
                true => "it received nothing for too long, and another backup begins",
                false => "the master began another backup, so the client of this backup is gone",
            };
            let ended = Error::connection(ErrorCode::Abandoned, text, "");
            if running.end(&ended) || running.is_over() {
                return Ok(());
            }
            // It is just being sealed.
            running.let_seal(until);
        }
        Err(busy(running.holder()))
    }

    /// Takes the lease; the threads of a backup that just ended may still hold it.
    fn lease(&self, sets: &BackupSets, holder: &str) -> Result<Lease, Error> {
        let until = Instant::now() + GIVE_WAY_DEADLINE;
        loop {
            let ended = self.workforce.ends();
            match sets.lease(holder) {
                Ok(lease) => return Ok(lease),
                Err(SetError::Busy { holder, .. }) if Instant::now() >= until => {
                    return Err(busy(&holder));
                }
                Err(SetError::Busy { holder, .. }) => {
                    let running = self.state().running.clone();
                    // Somebody else's, in this process or in another.
                    if running.is_none_or(|running| !running.is_over()) {
                        return Err(busy(&holder));
                    }
                }
                Err(error) => return Err(refusal::of_set(&error)),
            }
            self.workforce.wait_for_an_end(ended, LOOK_AGAIN);
        }
    }

    /// The sets, if they can be used.
    pub(crate) fn sets(&self) -> Result<&BackupSets, Error> {
        self.sets.as_ref().map_err(|NoSets { why, .. }| {
            Error::channel(
                ErrorCode::NotSetUp,
                format!("the receiver accepts no backups: {why}"),
                "correct `full_backup` in the standby's ini file and restart the receiver",
            )
        })
    }

    fn state(&self) -> MutexGuard<'_, BackupsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(
    folders: &ArchiveFolders,
    full_backup: Option<&Path>,
    disk: &Arc<dyn Disk>,
) -> Result<BackupSets, NoSets> {
    let none = |why: String, is_sync_failure| NoSets {
        why,
        is_sync_failure,
    };
    let Some(full_backup) = full_backup else {
        return Err(none("`full_backup` is not set".to_owned(), false));
    };
    let sets = BackupSets::open(full_backup, &folders.completed_wals, disk)
        .and_then(|sets| sets.with_partials(&folders.partial_wals));
    let sets = sets.map_err(|error| none(error.to_string(), false))?;
    match sets.recover_at_start("the starting receiver") {
        Ok(report) => {
            if report.finished_rotation {
                tracing::info!("finished the rotation that an earlier receiver had begun");
            }
            if report.removed > 0 {
                let count = report.removed;
                tracing::info!("removed {count} backup sets that were incomplete or had expired");
            }
            Ok(sets)
        }
        // Whoever holds it sees to the rest.
        Err(SetError::Busy { holder, .. }) => {
            tracing::info!("backup sets are in use by {holder}");
            Ok(sets)
        }
        // The next backup sees to what is left.
        Err(error @ SetError::LockedByHand { .. }) => {
            tracing::warn!("{error}; no backup is accepted until `xrelease`");
            Ok(sets)
        }
        Err(error) => {
            tracing::warn!("the receiver accepts no backups: {error}");
            let is_sync_failure = matches!(sets.health(), Health::SyncFailed { .. });
            Err(none(error.to_string(), is_sync_failure))
        }
    }
}

/// The refusal that names who makes a backup.
fn busy(holder: &str) -> Error {
    Error::channel(
        ErrorCode::Busy,
        format!("a backup is running: {holder}"),
        "wait until it ends, or end it; a backup whose client is gone ends by itself",
    )
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::channel(ErrorCode::Internal, error.to_string(), "")
}

#[cfg(test)]
mod tests {
    use super::testing::{backup, backups_in};
    use crate::receiver::worker;
    use crate::store::testing::scratch_folder;

    /// A worker that was about to begin one when the store retired.
    #[test]
    fn fault_33_no_backup_begins_once_all_have_ended() {
        let folder = scratch_folder();
        let backups = backups_in(folder.path());
        let before = backups.begin(&backup()).unwrap();
        backups.end(&worker::failed_on("test"));
        assert!(before.is_over());
        let refused = backups.begin(&backup()).map(drop).unwrap_err();
        assert_eq!(refused.message, worker::failed_on("test").message);
        assert!(backups.state().running.is_none());
        assert!(!folder.path().join("data.master.incoming").exists());
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use walmgr_protocol::names::TimelineId;

    use crate::store::testing::{new_archive, real};

    /// The backups of a new archive in this folder.
    pub(crate) fn backups_in(folder: &Path) -> RunningBackups {
        let folders = new_archive(folder);
        let workforce = Workforce::new(tracing::Span::none(), || {});
        let full_backup = folder.join("data.master");
        RunningBackups::open(&folders, Some(&full_backup), &real(), &workforce)
    }

    pub(crate) fn backup() -> BackupBegin {
        BackupBegin {
            who: "db1".to_owned(),
            origin: "db1".to_owned(),
            label: String::new(),
            timeline: TimelineId::FIRST,
        }
    }
}
