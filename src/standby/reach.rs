//! How far a set can be recovered from this archive, and which set a target fits.
//! Never starts a server and never changes anything. Invariant: a target that is accepted lies
//! between the end of the backup, before which a recovery is not consistent, and the archive's end.
//!
//! Whether an LSN or a time is in reach is told by the two ends of the WAL. A transaction and a
//! restore point have to be found, record by record.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use walmgr_protocol::limits::{MANIFEST_BYTES_MAX, SMALL_FILE_BYTES_MAX};
use walmgr_protocol::names::{Lsn, WalFileName, WalSegmentSize};

use crate::error::{CommandError, Kind, Result};
use crate::files;
use crate::pg::backup_label::BackupLabel;
use crate::pg::control;
use crate::pg::layout;
use crate::pg::manifest::Reader as Manifest;
use crate::pg::recovery::{Target, TargetTimeline, time_text};
use crate::standby::ahead;
use crate::standby::route::Route;
use crate::store::ArchiveReader;
use crate::wal::commit::{
    RESTORE_POINT_BYTES_MAX, TIME_BYTES_MAX, commit_time_us, ends_prepared, is_restore_point,
    is_transaction_end, restore_point_name,
};
use crate::wal::obstacle::Met;

/// How long the end of a transaction is looked for where there are few of them.
const PATIENCE: Duration = Duration::from_millis(600);

/// How many restore points a refusal names.
const NAMES_SHOWN: usize = 5;

/// Whether a target is in reach of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Fits,
    /// It is not; in reach is this.
    OutOfReach(Range),
}

/// What is in reach, in words that fit the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Range {
    /// LSNs, both included.
    Lsns(Lsn, Lsn),
    /// Times in microseconds since 1970, the second one excluded.
    Times(i64, i64),
    /// The first and the last transaction that ended.
    Xids(u32, u32),
    /// Restore points, and how many there are.
    Names(Vec<String>, usize),
    /// The archive holds nothing behind the end of the backup that could be a target of this kind.
    Nothing,
}

/// The WAL that a set can be recovered with.
pub struct Reach<'a> {
    route: Route<'a>,
    start: Lsn,
    /// Where the backup ended, if anything says so.
    stop: Lsn,
    end: Lsn,
    /// What ends it before the archive does.
    ended_by: Option<Met>,
    /// When the checkpoint was made that the set's control file names, in seconds since 1970.
    checkpoint_s: i64,
}

impl<'a> Reach<'a> {
    /// Looks at a set in a directory.
    pub fn of(
        archive: &'a ArchiveReader,
        set: &Path,
        label: &BackupLabel,
        timeline: TargetTimeline,
        loads_libraries: bool,
    ) -> Result<Reach<'a>> {
        let from = (label.first_segment.timeline(), label.start);
        let route = Route::find(archive, from, timeline)?;
        let stop = stop_in_manifest(set).or_else(|| stop_in_history(archive, label));
        let ended_by = route.recovery_end(label.start, loads_libraries)?;
        let end = route.end(label.start);
        Ok(Reach {
            end: ended_by.as_ref().map_or(end, |met| met.lsn.min(end)),
            ended_by,
            route,
            start: label.start,
            stop: stop.unwrap_or(label.start),
            checkpoint_s: control::read(set)?.checkpoint_time_s,
        })
    }

    /// What ends a recovery although there is more WAL.
    pub const fn ended_by(&self) -> Option<&Met> {
        self.ended_by.as_ref()
    }

    /// Whether a recovery of the set gets to this target.
    pub fn judge(&self, target: &Target) -> Result<Verdict> {
        let judged = match target {
            Target::Lsn(lsn) => self.judge_lsn(*lsn),
            Target::Time(time_us) => self.judge_time(*time_us),
            Target::Xid(xid) => self.judge_xid(*xid),
            Target::Name(name) => self.judge_name(name),
        };
        judged.map_err(|error| CommandError::retry("read the archive").because(error))
    }

    /// PostgreSQL ends behind the first record that begins at the LSN or behind it.
    fn judge_lsn(&self, lsn: Lsn) -> std::io::Result<Verdict> {
        let last = self
            .route
            .last(self.stop, self.end, &mut || true, |_| true)?;
        let Some(last) = last.map(|record| record.lsn) else {
            return Ok(Verdict::OutOfReach(Range::Nothing));
        };
        Ok(match (self.stop..=last).contains(&lsn) {
            true => Verdict::Fits,
            false => Verdict::OutOfReach(Range::Lsns(self.stop, last)),
        })
    }

    /// PostgreSQL ends before the first transaction that ended later, so there has to be one.
    fn judge_time(&self, time_us: i64) -> std::io::Result<Verdict> {
        let begun = Instant::now();
        let mut patience = || begun.elapsed() < PATIENCE;
        let mut last_before = |from, end| -> std::io::Result<Option<i64>> {
            let found = (self.route).last(from, end, &mut patience, is_transaction_end)?;
            let Some(found) = found else { return Ok(None) };
            let mut record = [0; TIME_BYTES_MAX];
            self.route.read_record(found.lsn, &mut record)?;
            Ok(commit_time_us(&record))
        };
        let latest = last_before(self.stop, self.end)?;
        // What ended before the backup did is in it. The control file knows whole seconds only.
        let in_backup = last_before(self.route.begin(self.start), self.stop)?;
        let checkpoint_us = self
            .checkpoint_s
            .saturating_add(1)
            .saturating_mul(1_000_000);
        let earliest = in_backup.unwrap_or(checkpoint_us);
        let Some(latest) = latest else {
            if begun.elapsed() < PATIENCE {
                return Ok(Verdict::OutOfReach(Range::Nothing));
            }
            tracing::warn!("no transaction was found in the newest WAL: PostgreSQL has to tell");
            return Ok(Verdict::Fits);
        };
        Ok(match (earliest..latest).contains(&time_us) {
            true => Verdict::Fits,
            false => Verdict::OutOfReach(Range::Times(earliest, latest)),
        })
    }

    fn judge_xid(&self, xid: u32) -> std::io::Result<Verdict> {
        let (mut ends, mut found, mut prepared) = (None, None, false);
        self.route.forward(self.start, self.end, &mut |record| {
            prepared |= ends_prepared(record);
            if !is_transaction_end(record) || record.xid == 0 {
                return ControlFlow::Continue(());
            }
            if record.xid == xid {
                found = Some(record.lsn);
                return ControlFlow::Break(());
            }
            if record.lsn >= self.stop {
                let first = ends.map_or(record.xid, |(first, _)| first);
                ends = Some((first, record.xid));
            }
            ControlFlow::Continue(())
        })?;
        Ok(match (found, ends) {
            (Some(lsn), _) if lsn >= self.stop => Verdict::Fits,
            (None, _) if prepared => {
                tracing::warn!("there are prepared transactions: PostgreSQL has to tell");
                Verdict::Fits
            }
            (_, Some((first, last))) => Verdict::OutOfReach(Range::Xids(first, last)),
            (_, None) => Verdict::OutOfReach(Range::Nothing),
        })
    }

    /// PostgreSQL ends at the first restore point of this name.
    fn judge_name(&self, name: &str) -> std::io::Result<Verdict> {
        let (mut names, mut count, mut found) = (Vec::new(), 0, None);
        let mut failed = None;
        self.route.forward(self.start, self.end, &mut |record| {
            if !is_restore_point(record) {
                return ControlFlow::Continue(());
            }
            let mut bytes = [0; RESTORE_POINT_BYTES_MAX];
            if let Err(error) = self.route.read_record(record.lsn, &mut bytes) {
                failed = Some(error);
                return ControlFlow::Break(());
            }
            let here = restore_point_name(&bytes).unwrap_or_default();
            if here == name.as_bytes() {
                found = Some(record.lsn);
                return ControlFlow::Break(());
            }
            if record.lsn >= self.stop {
                count += 1;
                let here = String::from_utf8_lossy(here).into_owned();
                if !names.contains(&here) {
                    names.push(here);
                }
                // The newest are of most interest.
                if names.len() > NAMES_SHOWN {
                    names.remove(0);
                }
            }
            ControlFlow::Continue(())
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        Ok(match found {
            Some(lsn) if lsn >= self.stop => Verdict::Fits,
            _ if names.is_empty() => Verdict::OutOfReach(Range::Nothing),
            _ => Verdict::OutOfReach(Range::Names(names, count)),
        })
    }
}

impl Range {
    /// What is in reach of either.
    #[must_use]
    pub fn and(self, other: Range) -> Range {
        match (self, other) {
            (Range::Lsns(a, b), Range::Lsns(c, d)) => Range::Lsns(a.min(c), b.max(d)),
            (Range::Times(a, b), Range::Times(c, d)) => Range::Times(a.min(c), b.max(d)),
            // The newest set comes first, and an older one reaches back further.
            (Range::Xids(_, last), Range::Xids(first, _)) => Range::Xids(first, last),
            (Range::Nothing, other) | (Range::Names(..), other @ Range::Names(..)) => other,
            (one, _) => one,
        }
    }
}

impl Range {
    /// The option for the last target that is in reach.
    fn last(&self) -> Option<String> {
        Some(match self {
            Range::Lsns(_, last) => format!("--target-lsn {last}"),
            // A microsecond before what is excluded.
            Range::Times(_, last) => format!("--target-time '{}'", time_text(last - 1)),
            Range::Xids(_, last) => format!("--target-xid {last}"),
            Range::Names(names, _) => {
                let name = names.last()?.replace('\'', "'\\''");
                format!("--target-name '{name}'")
            }
            Range::Nothing => return None,
        })
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Range::Lsns(first, last) => write!(out, "LSNs from {first} to {last} are in reach"),
            Range::Times(first, last) => {
                let (first, last) = (time_text(*first), time_text(*last));
                write!(out, "times from {first} to before {last} are in reach")
            }
            Range::Xids(first, last) => {
                write!(out, "transactions from {first} to {last} are in reach")
            }
            Range::Names(names, count) => {
                let names = names.join(", ");
                write!(
                    out,
                    "{count} restore points are in reach, the last are {names}"
                )
            }
            Range::Nothing => out.write_str("the archive has nothing of this kind"),
        }
    }
}

/// The refusal of a target, with what to type instead: `typed` is the command without its target, and
/// `ended_by` what is in the way.
pub fn refused(
    target: &Target,
    range: &Range,
    typed: &str,
    ended_by: Option<&Met>,
) -> CommandError {
    // Without a target it would be refused too where something ends the way.
    let all = match ended_by {
        Some(met) => match ahead::remedy(met) {
            Some(remedy) => format!("{}: {remedy}; nothing was changed", ahead::end_text(met)),
            None => format!("{}; nothing was changed", ahead::end_text(met)),
        },
        None => format!("nothing was changed; `{typed}` recovers all there is"),
    };
    let hint = match range.last() {
        Some(option) => format!("{all}, `{typed} {option}` up to the end of that"),
        None => all,
    };
    CommandError::new(Kind::Retry, format!("{target} is out of reach: {range}")).hint(hint)
}

/// The last of the WAL ranges of a `backup_manifest` ends where the backup did.
fn stop_in_manifest(set: &Path) -> Option<Lsn> {
    let bytes = files::read_at_most(&set.join(layout::BACKUP_MANIFEST), MANIFEST_BYTES_MAX).ok()?;
    let manifest = Manifest::new(&bytes);
    let manifest = manifest
        .inspect_err(|fault| {
            tracing::warn!("{}: {fault}", set.join(layout::BACKUP_MANIFEST).display())
        })
        .ok()?;
    manifest.wal_ranges().last().map(|range| range.end)
}

/// The backup history file, which PostgreSQL archives with the WAL of a primary's backup.
fn stop_in_history(archive: &ArchiveReader, label: &BackupLabel) -> Option<Lsn> {
    let size: WalSegmentSize = archive.binding().segment_size;
    let offset_bytes = label.start.0 % size.bytes();
    let name = format!("{}.{offset_bytes:08X}.backup", label.first_segment);
    let name: WalFileName = name.parse().ok()?;
    let mut text = Vec::new();
    let stored = archive.find(name).ok()??;
    stored
        .read_verified(|bytes| {
            text.extend_from_slice(bytes);
            text.len() as u64 <= SMALL_FILE_BYTES_MAX
        })
        .ok()?;
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines();
    let stop = lines.find_map(|line| line.strip_prefix("STOP WAL LOCATION: "))?;
    stop.split(' ').next()?.parse().ok()
}
