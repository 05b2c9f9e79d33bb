//! A backup of a standby that answers no queries: replay is held, and the control file says what SQL would.
//! Never stops a server. Invariant: the copy begins behind the read of the control file that its label is made of, and
//! ends before the one that says how far recovery has to get, so it is consistent there whatever was written meanwhile.
//!
//! | | |
//! |---|---|
//! | where recovery begins | the checkpoint of the control file before the first file is copied |
//! | what a half-written page in the copy is mended by | the full pages in WAL from there on; where the master wrote none, there is no backup |
//! | where recovery is consistent | `minRecoveryPoint` of the control file that is copied last: PostgreSQL raises it before it writes a page |

use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};

use super::standstill::restorers_below;
use crate::config::StandbyConfig;
use crate::error::{CommandError, Result};
use crate::output::Waiting;
use crate::pg::backup_label::BackupLabel;
use crate::pg::base_backup::configs::{self, ConfigPlaces};
use crate::pg::control::{ControlFile, State};
use crate::pg::data_directory::{DataDirectory, Postmaster};
use crate::pg::sql_backup::{FinishedBackup, promoted, without_full_pages};
use crate::pg::tablespace_map::{self, MappedTablespace};
use crate::standby::hold::ReplayHold;
use crate::standby::own_server;
use crate::standby::replay::{ControlFiles, TICK};
use crate::store::{ArchiveReader, SegmentBefore, StoreError};
use crate::wal::record::XLOG_FPW_CHANGE;
use crate::wal::scan::{ScanStep, Scanner};

/// A segment that was handed over is replayed within that, on most hosts; a copy beside replay is as good.
const STANDSTILL_PATIENCE: Duration = Duration::from_secs(60);

/// A set's own WAL is replayed within that, or nobody waits for it here.
const CONSISTENCY_PATIENCE: Duration = Duration::from_secs(60);

/// A `restore_command` that is seen twice, so far apart, waits.
const SEEN_AGAIN: Duration = Duration::from_millis(1_500);

/// A standby whose replay is held.
pub(super) struct OfflineBackup {
    hold: ReplayHold,
    before: ControlFile,
    start_time: String,
}

impl OfflineBackup {
    /// Holds replay and waits until it stands.
    pub(super) fn begin(
        config: &StandbyConfig,
        data: &DataDirectory,
        server: Option<&Postmaster>,
        cancelled: &CancellationToken,
    ) -> Result<OfflineBackup> {
        wait_until_consistent(data, server.is_some(), cancelled)?;
        let hold = ReplayHold::take(&config.completed_wals)?;
        if let Some(server) = server {
            wait_until_it_stands(&ControlFiles::of(config), server, cancelled)?;
        }
        let before = data.control()?;
        check(data, &before)?;
        Ok(OfflineBackup {
            hold,
            before,
            start_time: jiff::Zoned::now()
                .strftime("%Y-%m-%d %H:%M:%S %Z")
                .to_string(),
        })
    }

    /// Where its WAL begins.
    pub(super) const fn start(&self) -> Lsn {
        self.before.redo
    }

    /// Where the server has its configuration files, as far as its settings say.
    pub(super) fn config_places(config: &StandbyConfig, data: &DataDirectory) -> ConfigPlaces {
        configs::places_of_settings(&own_server::settings(config, data), data.path())
    }

    /// Lets replay go on, and says what the server would have said: `last` is the control file that was copied.
    pub(super) fn end(
        self,
        data: &DataDirectory,
        last: &ControlFile,
        label: &str,
        tablespaces: &[u32],
    ) -> Result<FinishedBackup> {
        let OfflineBackup {
            hold,
            before,
            start_time,
        } = self;
        let map = tablespace_map(data, tablespaces);
        drop(hold);
        if matches!(
            last.state,
            State::InProduction | State::ShutDown | State::ShuttingDown
        ) {
            return Err(promoted());
        }
        check(data, last)?;
        let is_same =
            last.timeline == before.timeline && last.min_recovery_timeline == Some(before.timeline);
        if !is_same {
            return Err(super::other_timeline());
        }
        let segment = SegmentName::containing(before.timeline, before.redo, before.segment_size);
        let label = BackupLabel {
            start: before.redo,
            first_segment: segment,
            checkpoint: before.checkpoint,
            method: Some("streamed".to_owned()),
            from: Some("standby".to_owned()),
            start_time,
            label: label.to_owned(),
            timeline: Some(before.timeline),
            incremental_from: None,
        };
        let map = map?;
        Ok(FinishedBackup {
            backup_label: label.to_bytes(),
            tablespace_map: (!map.is_empty()).then_some(map),
            stop_lsn: last.min_recovery_point,
        })
    }
}

/// Refuses a data directory that no backup can be made of.
pub(super) fn check(data: &DataDirectory, control: &ControlFile) -> Result<()> {
    match control.state {
        State::InArchiveRecovery | State::ShutDownInRecovery => {}
        _ => return Err(super::online::no_standby(data)),
    }
    if is_in_a_set(control) {
        return Err(CommandError::retry(
            "the standby has not replayed to the end of the set that it was restored from, so a copy of it would never \
             be consistent",
        )
        .hint("wait until `status` shows that it has, and start the backup again"));
    }
    if !control.full_page_writes {
        let why =
            CommandError::retry("the control file says full_page_writes = off of its checkpoint");
        return Err(without_full_pages(&why));
    }
    Ok(())
}

/// Whether recovery has not come to the end of the backup yet that the server was made of.
fn is_in_a_set(control: &ControlFile) -> bool {
    let has_begun = control.backup_start != Lsn(0) || control.backup_end != Lsn(0);
    has_begun || control.backup_end_required
}

/// Gives a server that was just restored a moment to get to the end of its set: from 15 on it asks for a segment before
/// it replays the last records of the one before.
fn wait_until_consistent(
    data: &DataDirectory,
    is_running: bool,
    cancelled: &CancellationToken,
) -> Result<()> {
    let (begun, mut waiting) = (Instant::now(), Waiting::begin());
    loop {
        let control = data.control()?;
        let may_get_there = is_running && begun.elapsed() < CONSISTENCY_PATIENCE;
        if !is_in_a_set(&control) || !may_get_there {
            return check(data, &control);
        }
        if cancelled.is_cancelled() {
            return Err(super::copy::stopped());
        }
        if waiting.is_due() {
            tracing::info!(
                "waiting until the standby has replayed to the end of the set it was restored from"
            );
        }
        std::thread::sleep(TICK);
    }
}

/// What the server would say of its tablespaces.
fn tablespace_map(data: &DataDirectory, oids: &[u32]) -> Result<Vec<u8>> {
    let links = data.path().join(crate::pg::layout::PG_TBLSPC);
    let mut tablespaces = Vec::new();
    for oid in oids {
        let path = links.join(oid.to_string());
        let location = std::fs::read_link(&path).map_err(|error| {
            CommandError::retry(format!("read the link {}", path.display())).because(error)
        })?;
        if location.as_os_str().as_bytes().is_empty() {
            continue;
        }
        tablespaces.push(MappedTablespace {
            oid: *oid,
            location,
        });
    }
    Ok(tablespace_map::to_bytes(&tablespaces, data.major()))
}

/// Waits until the server asks for a segment that it does not get. Where it never does, for it streams or restores by
/// other means, the copy is made beside its replay, as a server that answers has it made.
fn wait_until_it_stands(
    control: &ControlFiles,
    server: &Postmaster,
    cancelled: &CancellationToken,
) -> Result<()> {
    let (begun, mut waiting) = (Instant::now(), Waiting::begin());
    let mut seen = (Instant::now(), Vec::new());
    loop {
        let restoring = control.restoring()?;
        let asking = restorers_below(server.pid);
        if restoring.is_some()
            || asking.is_empty()
            || !asking.iter().any(|pid| seen.1.contains(pid))
        {
            seen = (Instant::now(), asking);
        } else if seen.0.elapsed() >= SEEN_AGAIN {
            tracing::info!("replay stands");
            return Ok(());
        }
        if cancelled.is_cancelled() {
            return Err(super::copy::stopped());
        }
        if begun.elapsed() >= STANDSTILL_PATIENCE {
            tracing::warn!(
                "replay does not stand still: the server streams, waits for a delay, or restores by other means than \
                 xrestore; the data directory is copied beside its replay"
            );
            return Ok(());
        }
        if waiting.is_due() {
            tracing::info!("waiting until replay stands still");
        }
        std::thread::sleep(TICK);
    }
}

/// Refuses WAL in which full pages were missing for a while: nothing mends a page that was copied half-written.
pub(super) fn check_full_pages(
    archive: &ArchiveReader,
    (first, start): (SegmentName, Lsn),
    stop: Lsn,
) -> Result<()> {
    let size = archive.binding().segment_size;
    let failed = |segment: SegmentName, error: StoreError| {
        CommandError::new(error.kind(), format!("read {segment}")).because(error)
    };
    let mut scanner: Option<Scanner> = None;
    let mut next = Some(first);
    let mut changed = None;
    while let Some(segment) = next.filter(|segment| segment.start(size).is_some_and(|at| at < stop))
    {
        let found = archive.find(WalFileName::Segment(segment));
        let stored = found.map_err(|error| failed(segment, error))?;
        let Some(stored) = stored else {
            return Err(CommandError::retry(format!(
                "{segment} has gone from the archive"
            )));
        };
        let begin = segment.start(size).unwrap_or_default();
        let mut walk = match scanner.take() {
            Some(scanner) => scanner,
            None => Scanner::new(begin, size),
        };
        let read = stored.read_verified(SegmentBefore::Read, |bytes| {
            let mut input = bytes;
            loop {
                match walk.advance(&mut input) {
                    ScanStep::Record(record) => {
                        let is_within = record.lsn >= start && record.lsn < stop;
                        if is_within && record.is_xlog(XLOG_FPW_CHANGE) {
                            changed = Some(record.lsn);
                        }
                    }
                    // To the end, as that is what is verified.
                    _ => return true,
                }
            }
        });
        if let Some(lsn) = changed {
            let why = CommandError::retry(format!("the master changed full_page_writes at {lsn}"));
            return Err(without_full_pages(&why));
        }
        read.map_err(|error| failed(segment, error))?;
        scanner = Some(walk);
        next = segment.next(size);
    }
    Ok(())
}
