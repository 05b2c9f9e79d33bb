//! How far a set can be recovered from this archive, and whether that is far enough for a target.
//! Never starts a server and never changes anything. Invariant: a target that is accepted lies
//! between the end of the backup, before which a recovery is not consistent, and the archive's end.
//!
//! Whether an LSN or a time is in reach is told by the two ends of the WAL. A transaction and a
//! restore point have to be found, record by record. However much WAL that is, a walk holds one piece of it
//! ([`Route`]) and [`RESTORE_POINTS_MAX`] names, and asks before each piece whether somebody still waits
//! for it.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use walmgr_protocol::limits::{MANIFEST_BYTES_MAX, RESTORE_POINTS_MAX, SMALL_FILE_BYTES_MAX};
use walmgr_protocol::message::reach::{RecoveryEnd, TargetBound, TargetRange, TargetVerdict};
use walmgr_protocol::names::{Lsn, TimelineId, WalFileName, WalSegmentSize};

use super::lineage::TimelineLine;
use super::reader::{ArchiveReader, SegmentBefore};
use super::route::{self, Route, Walked};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::backup_history::BackupHistory;
use crate::pg::backup_label::{BackupLabel, FROM_STANDBY};
use crate::pg::control;
use crate::pg::in_reach;
use crate::pg::layout;
use crate::pg::manifest::{Scan, WalRange};
use crate::pg::recovery::{RecoveryTarget, TargetTimeline};
use crate::wal::commit::{
    RESTORE_POINT_BYTES_MAX, TIME_BYTES_MAX, commit_time_us, ends_prepared, is_restore_point,
    is_transaction_end, restore_point_name,
};
use crate::wal::obstacle::Met;
use crate::wal::record::RecordInfo;

/// How long the last transaction within a backup is looked for, where there are few of them; else the time of its
/// checkpoint has to do.
const PATIENCE: Duration = Duration::from_millis(600);

/// What is read at once of a manifest.
const MANIFEST_PIECE_BYTES: usize = 64 << 10;

/// The WAL that a set can be recovered with.
pub(crate) struct RecoveryReach<'a> {
    set: &'a Path,
    label: &'a BackupLabel,
    route: Route<'a>,
    end: Lsn,
    met: Vec<Met>,
    /// Where the backup ended, if anything says so.
    stop: Option<Lsn>,
    /// What ends it before the archive does.
    ended_by: Option<RecoveryEnd>,
}

/// A look for a target.
struct Search<'a> {
    reach: &'a RecoveryReach<'a>,
    /// Where the backup ended, if anything says so.
    stop: Lsn,
    /// Whether somebody waits for it.
    goes_on: &'a dyn Fn() -> bool,
}

impl<'a> RecoveryReach<'a> {
    /// Looks at a set in a directory.
    pub(crate) fn of(
        archive: &'a ArchiveReader,
        set: &'a Path,
        label: &'a BackupLabel,
        timeline: TargetTimeline,
        loads_libraries: bool,
    ) -> Result<RecoveryReach<'a>> {
        let from = (label.first_segment.timeline(), label.start);
        let route = Route::find(archive, from, timeline)?;
        let backup_end = check_backup_end(archive, set, label, &route)?;
        let met = (route.obstacles(label.start)).map_err(|error| route::failed(&error))?;
        let ended_by = in_reach::end_of(&met, loads_libraries);
        let end = route.led(label.start).end;
        Ok(RecoveryReach {
            set,
            label,
            end: ended_by.map_or(end, |it| it.lsn.min(end)),
            route,
            met,
            stop: backup_end.map(|(_, stop)| stop),
            ended_by,
        })
    }

    /// What ends a recovery although there is more WAL.
    pub(crate) const fn ended_by(&self) -> Option<RecoveryEnd> {
        self.ended_by
    }

    /// What replay meets on the way.
    pub(crate) fn obstacles(&self) -> &[Met] {
        &self.met
    }

    /// Whether a recovery of the set gets to this target. Where `goes_on` says no before that is found, it is
    /// untold.
    pub(crate) fn judge(
        &self,
        target: &RecoveryTarget,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<TargetVerdict> {
        let search = Search {
            reach: self,
            stop: self.stop.unwrap_or(self.label.start),
            goes_on,
        };
        match target {
            RecoveryTarget::Lsn(lsn, _) => search.judge_lsn(*lsn),
            RecoveryTarget::Time(time_us, bound) => {
                let checkpoint_s = control::read(self.set)?.checkpoint_time_s;
                search.judge_time(*time_us, *bound, checkpoint_s)
            }
            RecoveryTarget::Xid(xid, _) => search.judge_xid(*xid),
            RecoveryTarget::Name(name) => search.judge_name(name),
            RecoveryTarget::Consistent => Ok(self.judge_consistent()),
        }
        .at(Kind::Retry, "read the archive for", self.set)
    }

    /// PostgreSQL ends as soon as it has replayed what was written while the backup was made.
    fn judge_consistent(&self) -> TargetVerdict {
        let Some(stop) = self.stop else {
            return untold("nothing says where the backup ended");
        };
        if self.end >= stop {
            return TargetVerdict::Fits;
        }
        let why = match &self.ended_by {
            Some(end) => in_reach::end_text(end),
            None => format!("the WAL that leads to it ends at {}", self.end),
        };
        TargetVerdict::NoWay(format!(
            "the end of the backup, {stop}, is out of reach: {why}"
        ))
    }
}

impl Search<'_> {
    /// PostgreSQL ends behind the first record that begins at the LSN or behind it.
    fn judge_lsn(&self, lsn: Lsn) -> std::io::Result<TargetVerdict> {
        let (route, end) = (&self.reach.route, self.reach.end);
        let (last, walked) = route.last(self.stop, end, self.goes_on, |_| true)?;
        let Some(last) = last.map(|record| record.lsn) else {
            return Ok(none_found(walked));
        };
        Ok(match (self.stop..=last).contains(&lsn) {
            true => TargetVerdict::Fits,
            false => out_of_reach(TargetRange::Lsns(self.stop, last)),
        })
    }

    /// PostgreSQL ends before the first transaction that ended later, or for an exclusive target then or later,
    /// so there has to be one.
    fn judge_time(
        &self,
        time_us: i64,
        bound: TargetBound,
        checkpoint_s: i64,
    ) -> std::io::Result<TargetVerdict> {
        let route = &self.reach.route;
        let last_before =
            |from, end, goes_on: &dyn Fn() -> bool| -> std::io::Result<(Option<i64>, Walked)> {
                let (found, walked) = route.last(from, end, goes_on, is_transaction_end)?;
                let Some(found) = found else {
                    return Ok((None, walked));
                };
                let mut record = [0; TIME_BYTES_MAX];
                route.read_record(found.lsn, &mut record)?;
                Ok((commit_time_us(&record), walked))
            };
        let (latest, walked) = last_before(self.stop, self.reach.end, self.goes_on)?;
        let Some(latest) = latest else {
            return Ok(none_found(walked));
        };
        // What ended before the backup did is in it. The control file knows whole seconds only.
        let begun = Instant::now();
        let goes_on = || begun.elapsed() < PATIENCE && (self.goes_on)();
        let first = route.begin(self.reach.label.start);
        let (in_backup, _) = last_before(first, self.stop, &goes_on)?;
        let checkpoint_us = checkpoint_s.saturating_add(1).saturating_mul(1_000_000);
        let earliest = in_backup.unwrap_or(checkpoint_us);
        let later_us = i64::from(bound == TargetBound::Exclusive);
        let [earliest, latest] = [earliest, latest].map(|it| it.saturating_add(later_us));
        Ok(match (earliest..latest).contains(&time_us) {
            true => TargetVerdict::Fits,
            false => out_of_reach(TargetRange::Times(earliest, latest)),
        })
    }

    fn judge_xid(&self, xid: u32) -> std::io::Result<TargetVerdict> {
        let (mut ends, mut found, mut prepared) = (None, None, false);
        let walked = self.walk(&mut |record| {
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
            (Some(lsn), _) if lsn >= self.stop => TargetVerdict::Fits,
            (None, _) if walked == Walked::GivenUp => none_found(walked),
            (None, _) if prepared => untold("there are prepared transactions"),
            (_, Some((first, last))) => out_of_reach(TargetRange::Xids(first, last)),
            (_, None) => out_of_reach(TargetRange::Nothing),
        })
    }

    /// PostgreSQL ends at the first restore point of this name.
    fn judge_name(&self, name: &str) -> std::io::Result<TargetVerdict> {
        let (mut names, mut count, mut found) = (Vec::new(), 0, None);
        let mut failed = None;
        let walked = self.walk(&mut |record| {
            if !is_restore_point(record) {
                return ControlFlow::Continue(());
            }
            let mut bytes = [0; RESTORE_POINT_BYTES_MAX];
            if let Err(error) = self.reach.route.read_record(record.lsn, &mut bytes) {
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
                if names.len() > usize::from(RESTORE_POINTS_MAX) {
                    names.remove(0);
                }
            }
            ControlFlow::Continue(())
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        Ok(match found {
            Some(lsn) if lsn >= self.stop => TargetVerdict::Fits,
            None if walked == Walked::GivenUp => none_found(walked),
            _ if names.is_empty() => out_of_reach(TargetRange::Nothing),
            _ => out_of_reach(TargetRange::Names(names, count)),
        })
    }

    fn walk(
        &self,
        each: &mut dyn FnMut(&RecordInfo) -> ControlFlow<()>,
    ) -> std::io::Result<Walked> {
        let (route, start, end) = (&self.reach.route, self.reach.label.start, self.reach.end);
        route.forward(start, end, self.goes_on, each)
    }
}

fn none_found(walked: Walked) -> TargetVerdict {
    match walked {
        Walked::All => out_of_reach(TargetRange::Nothing),
        Walked::GivenUp => untold("there is more WAL than can be searched in time"),
    }
}

/// Whether another set gets there is not asked here.
const fn out_of_reach(range: TargetRange) -> TargetVerdict {
    TargetVerdict::OutOfReach(range, None)
}

fn untold(why: &str) -> TargetVerdict {
    TargetVerdict::Untold(why.to_owned())
}

/// Whether a recovery of the set along this route meets the end of its backup, before which PostgreSQL opens nothing;
/// where that is, if anything says so.
pub(crate) fn check_backup_end(
    archive: &ArchiveReader,
    set: &Path,
    label: &BackupLabel,
    route: &Route<'_>,
) -> Result<Option<(TimelineId, Lsn)>> {
    match backup_end(archive, set, label) {
        Some(end) if !route.line().passes(end) => {
            let name = set.file_name().unwrap_or_default().display();
            let why = format!(
                "{name} is of no use: {}; an older set, or --target-timeline {}, leads on",
                off_line(end, route.line()),
                end.0
            );
            Err(CommandError::retry(why))
        }
        end => Ok(end),
    }
}

/// Why a set whose backup ended there is of no use along this line, as the rest of a sentence.
pub(crate) fn off_line((timeline, stop): (TimelineId, Lsn), line: &TimelineLine) -> String {
    let newest = line.newest_timeline();
    format!(
        "its backup ended at {stop} on timeline {timeline}, which timeline {newest} had left before that"
    )
}

/// The timeline and the place where a backup ended, if anything says so.
fn backup_end(
    archive: &ArchiveReader,
    set: &Path,
    label: &BackupLabel,
) -> Option<(TimelineId, Lsn)> {
    let made_on_standby = label.from.as_deref() == Some(FROM_STANDBY);
    let on_first = |stop| (label.first_segment.timeline(), stop);
    (last_range_in_manifest(set).map(|range| range.ends_at()))
        .or_else(|| history_of(archive, label)?.stop.map(on_first))
        // The server had replayed up to there when the control file was copied, which is the last one.
        .or_else(|| {
            let control = control::read(set).ok().filter(|_| made_on_standby)?;
            let stop = Some(control.min_recovery_point).filter(|lsn| *lsn > label.start);
            stop.map(on_first)
        })
}

/// The last of the WAL ranges of a `backup_manifest` ends where the backup did.
fn last_range_in_manifest(set: &Path) -> Option<WalRange> {
    let path = set.join(layout::BACKUP_MANIFEST);
    let file = files::open_at_once(&path).ok()?;
    let mut file = file.take(MANIFEST_BYTES_MAX);
    let (mut piece, mut scan) = (vec![0; MANIFEST_PIECE_BYTES], Scan::new(&[]));
    let range = loop {
        match file.read(&mut piece).ok()? {
            0 => break scan.finish(),
            read_bytes => {
                if let Err(fault) = scan.feed(&piece[..read_bytes]) {
                    break Err(fault);
                }
            }
        }
    };
    let range = range.inspect_err(|fault| tracing::warn!("{}: {fault}", path.display()));
    range.ok()?.last_range
}

/// What the archive's history file of a backup says, if there is one.
pub(super) fn history_of(archive: &ArchiveReader, label: &BackupLabel) -> Option<BackupHistory> {
    let size: WalSegmentSize = archive.binding().segment_size;
    let offset_bytes = label.start.0 % size.bytes();
    let name = format!("{}.{offset_bytes:08X}.backup", label.first_segment);
    let name: WalFileName = name.parse().ok()?;
    let mut text = Vec::new();
    let stored = archive.find(name).ok()??;
    stored
        .read_verified(SegmentBefore::Read, |bytes| {
            text.extend_from_slice(bytes);
            text.len() as u64 <= SMALL_FILE_BYTES_MAX
        })
        .ok()?;
    Some(BackupHistory::parse(&String::from_utf8_lossy(&text)))
}
