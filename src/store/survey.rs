//! What the archive holds and up to where it leads: what both sides' `status` shows.
//! Never locks the archive, syncs or changes anything, so it works beside a running receiver.
//! Invariant: WAL behind a gap is never called held.
//!
//! What is held begins at the newest backup set, as a recovery does, and follows the newest timeline
//! through finished segments into the partial ones. Without a set it begins behind the last gap.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use walmgr_protocol::limits::{OVERVIEW_SETS_MAX, SMALL_FILE_BYTES_MAX};
use walmgr_protocol::message::Cluster;
use walmgr_protocol::message::overview::{Overview, SetReach, SetStanding};
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName, WalSegmentSize};

use super::archive::{Places, damaged_copy_of};
use super::binding::{Binding, Marker, Role};
use super::disk::Disk;
use super::error::StoreError;
use super::folder::Folder;
use super::health::Monitor;
use super::partial::partial_end;
use super::sets::{BackupSets, SetEntry, SetError};
use crate::pg::control;
use crate::wal::history::History;

/// Looks at an archive and its backup sets.
///
/// `acknowledged` is the end of the partial segment that the receiver knows to be durable; where
/// nobody knows, the file is read.
pub fn survey(
    places: &Places,
    full_backup: Option<&Path>,
    disk: &Arc<dyn Disk>,
    acknowledged: Option<(SegmentName, Lsn)>,
) -> Result<Overview, StoreError> {
    let open = |path: &Path| Folder::open(path, Arc::clone(disk), Arc::new(Monitor::new()));
    let completed = open(&places.completed_wals)?;
    let mut overview = Overview {
        free_bytes: (disk.free_bytes(completed.handle()))
            .map_err(|error| completed.failure("ask for the free space of", "", error))?,
        completed_wals: places.completed_wals.display().to_string(),
        clock_ms: clock_ms(),
        ..Overview::default()
    };
    let marker = Marker::read(&completed, Role::Completed)?;
    let Some(binding) = marker.and_then(|marker| marker.binding) else {
        return Ok(overview);
    };
    overview.cluster = Some(Cluster {
        system_id: binding.system_id,
        postgres_major: u16::from(binding.postgres_major),
        segment_size: binding.segment_size,
    });
    let partial = open(&places.partial_wals)?;
    let files = Files::read(&completed, &partial, &binding)?;
    files.describe(&mut overview, acknowledged)?;
    let way = files.way(overview.partial_segment.zip(Some(overview.partial_end)))?;
    let sets = full_backup.map_or_else(Vec::new, |path| {
        standings(path, &places.completed_wals, disk, &way)
    });
    let newest_start = (sets.iter()).find_map(|set| Some(set.reach.as_ref().ok()?.start));
    let led = match newest_start {
        Some(start) => way.from(start),
        None => way.behind_last_gap(),
    };
    overview.held = files.newest_timeline().zip(led.map(|led| led.end));
    overview.missing = led.and_then(|led| led.missing);
    overview.sets_count = sets.len() as u64;
    overview.sets = sets;
    overview.sets.truncate(usize::from(OVERVIEW_SETS_MAX));
    Ok(overview)
}

/// This host's clock in milliseconds since 1970; below 0 where it stands before that.
fn clock_ms() -> i64 {
    let ms = |since: Duration| i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => ms(since),
        Err(before) => -ms(before.duration()),
    }
}

/// Milliseconds from a time since 1970 to this moment; below 0 for one that is still to come.
fn age_ms(since_ms: i64) -> i64 {
    clock_ms().saturating_sub(since_ms)
}

/// The names in the two folders.
struct Files<'a> {
    completed: &'a Folder,
    partial: &'a Folder,
    binding: &'a Binding,
    finished: BTreeSet<WalFileName>,
    damaged: Vec<String>,
    partials: BTreeSet<SegmentName>,
}

impl<'a> Files<'a> {
    fn read(
        completed: &'a Folder,
        partial: &'a Folder,
        binding: &'a Binding,
    ) -> Result<Self, StoreError> {
        let (mut finished, mut copies) = (BTreeSet::new(), Vec::new());
        for text in completed.names()? {
            if let Ok(name) = text.parse::<WalFileName>() {
                finished.insert(name);
            } else if let Some(name) = damaged_copy_of(&text) {
                copies.push((name, text));
            }
        }
        copies.retain(|(name, _)| !finished.contains(name));
        copies.sort();
        let partials = partial.names()?.into_iter();
        Ok(Files {
            completed,
            partial,
            binding,
            finished,
            damaged: copies.into_iter().map(|(_, text)| text).collect(),
            partials: partials.filter_map(|name| name.parse().ok()).collect(),
        })
    }

    fn segments(&self) -> impl Iterator<Item = SegmentName> {
        self.finished.iter().filter_map(|name| match name {
            WalFileName::Segment(segment) => Some(*segment),
            _ => None,
        })
    }

    fn newest_timeline(&self) -> Option<TimelineId> {
        let finished = self.finished.iter().map(|name| name.timeline());
        let partials = self.partials.iter().map(|name| name.timeline());
        finished.chain(partials).max()
    }

    fn describe(
        &self,
        overview: &mut Overview,
        acknowledged: Option<(SegmentName, Lsn)>,
    ) -> Result<(), StoreError> {
        let mut arrived_ms = None;
        overview.newest_segment = self.segments().max();
        if let Some(newest) = overview.newest_segment
            && let Some(stat) = self.completed.stat_at(&newest.to_string())?
        {
            overview.newest_age_ms = age_ms(stat.changed_ms);
            arrived_ms = Some(stat.changed_ms);
        }
        let behind = |partial: &&SegmentName| Some(**partial) > overview.newest_segment;
        overview.partial_segment = self.partials.iter().rfind(behind).copied();
        if let Some(partial) = overview.partial_segment {
            let stat = self.partial.stat_at(&partial.to_string())?;
            arrived_ms = arrived_ms.max(stat.map(|stat| stat.changed_ms));
            overview.partial_end = match acknowledged.filter(|(segment, _)| *segment == partial) {
                Some((_, end)) => end,
                None => self.end_of_partial(partial)?,
            };
        }
        overview.received_age_ms = arrived_ms.map_or(0, age_ms);
        overview.damaged_count = self.damaged.len() as u64;
        overview.damaged = self.damaged.first().cloned().unwrap_or_default();
        Ok(())
    }

    /// Where the whole records of a partial segment end.
    fn end_of_partial(&self, segment: SegmentName) -> Result<Lsn, StoreError> {
        let start = segment.start(self.binding.segment_size).unwrap_or_default();
        let found = partial_end(self.partial, self.binding, segment)?;
        Ok(found.map_or(start, |found| found.end.max(start)))
    }

    /// The way that a recovery takes along the newest timeline.
    fn way(&self, partial: Option<(SegmentName, Lsn)>) -> Result<Way, StoreError> {
        let size = self.binding.segment_size;
        let mut way = Way {
            size,
            timelines: Vec::new(),
            runs: Vec::new(),
            partial: None,
        };
        let Some(newest) = self.newest_timeline() else {
            return Ok(way);
        };
        way.timelines = self.lineage(newest)?;
        let whole = self.segments().filter_map(|name| way.number_of(name));
        let mut numbers: BTreeSet<u64> = whole.collect();
        way.partial = partial
            .and_then(|(segment, end)| Some((way.number_of(segment)?, end)))
            .filter(|(number, _)| !numbers.contains(number));
        numbers.extend(self.partials.iter().filter_map(|name| way.number_of(*name)));
        for number in numbers {
            match way.runs.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => way.runs.push((number, number)),
            }
        }
        Ok(way)
    }

    /// The newest timeline and those it came from, with the number of the segment each begins in.
    fn lineage(&self, newest: TimelineId) -> Result<Vec<(TimelineId, u64)>, StoreError> {
        let name = WalFileName::History(newest);
        let Some(file) = self.completed.open_file(&name.to_string())? else {
            return Ok(vec![(newest, 0)]);
        };
        let mut text = Vec::new();
        (self.completed).read_through(file.as_fd(), &name.to_string(), |bytes| {
            text.extend_from_slice(bytes);
            text.len() as u64 <= SMALL_FILE_BYTES_MAX
        })?;
        let history = History::parse(newest, &text).map_err(|fault| StoreError::Damaged {
            name,
            why: fault.to_string(),
        })?;
        let size = self.binding.segment_size.bytes();
        let timelines = history.timelines().into_iter();
        Ok(timelines
            .map(|(timeline, begin)| (timeline, begin.0 / size))
            .collect())
    }
}

/// Up to where WAL leads, and what is missing there although more follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Led {
    end: Lsn,
    missing: Option<SegmentName>,
}

/// The segments on the way, as runs without a gap.
struct Way {
    size: WalSegmentSize,
    /// Newest first, with the number of the segment each begins in.
    timelines: Vec<(TimelineId, u64)>,
    /// First and last number of each.
    runs: Vec<(u64, u64)>,
    /// The newest partial segment's number, and where its records end.
    partial: Option<(u64, Lsn)>,
}

impl Way {
    /// A segment's number if it is on the way. Where a timeline leaves another within a segment,
    /// either's file will do.
    fn number_of(&self, name: SegmentName) -> Option<u64> {
        let number = name.number(self.size)?;
        let mut ends_in = u64::MAX;
        for (timeline, begins_in) in &self.timelines {
            if *timeline == name.timeline() {
                return (*begins_in..=ends_in).contains(&number).then_some(number);
            }
            ends_in = *begins_in;
        }
        None
    }

    /// Up to where WAL leads from here.
    fn from(&self, start: Lsn) -> Option<Led> {
        let number = start.0 / self.size.bytes();
        let run = self.runs.partition_point(|(_, last)| *last < number);
        match self.runs.get(run) {
            Some((first, _)) if *first <= number => Some(self.end_of(run)),
            // Not even its first segment is there.
            later => Some(Led {
                end: start,
                missing: Some(self.name(number)).filter(|_| later.is_some()),
            }),
        }
    }

    /// The last run, and the gap before it.
    fn behind_last_gap(&self) -> Option<Led> {
        let last = self.runs.len().checked_sub(1)?;
        let before = last.checked_sub(1);
        Some(Led {
            missing: before.and_then(|before| self.end_of(before).missing),
            ..self.end_of(last)
        })
    }

    fn end_of(&self, run: usize) -> Led {
        let (_, last) = self.runs[run];
        let end = match self.partial {
            Some((number, end)) if number == last => end,
            _ => Lsn((last + 1).saturating_mul(self.size.bytes())),
        };
        let missing = (run + 1 < self.runs.len()).then(|| self.name(last + 1));
        Led { end, missing }
    }

    fn name(&self, number: u64) -> SegmentName {
        let mut timelines = self.timelines.iter();
        let timeline = timelines.find(|(_, begins_in)| *begins_in <= number);
        let timeline = timeline.map_or(TimelineId::FIRST, |(timeline, _)| *timeline);
        SegmentName::from_number(timeline, number, self.size)
    }
}

fn standings(
    full_backup: &Path,
    completed_wals: &Path,
    disk: &Arc<dyn Disk>,
    way: &Way,
) -> Vec<SetStanding> {
    let folder = full_backup.parent().unwrap_or(full_backup);
    let listed = BackupSets::open(full_backup, completed_wals, disk).and_then(|sets| sets.list());
    match listed {
        Ok(listed) => (listed.into_iter())
            .map(|entry| standing(entry, folder, way))
            .collect(),
        // A place without a directory has no sets either.
        Err(SetError::Store(StoreError::NotSetUp { .. })) => Vec::new(),
        Err(error) => vec![SetStanding {
            name: full_backup.display().to_string(),
            reach: Err(error.to_string()),
        }],
    }
}

fn standing(entry: SetEntry, folder: &Path, way: &Way) -> SetStanding {
    let name = entry.name.to_string();
    let reach = entry.label.and_then(|label| {
        // The label has the time in words, in the server's time zone; this is the same moment.
        let control = control::read(&folder.join(&name)).map_err(|error| error.to_string())?;
        let on_the_way = way.number_of(label.first_segment).is_some();
        let led = way.from(label.start).filter(|_| on_the_way);
        Ok(SetReach {
            timestamp: label.start_time,
            age_ms: age_ms(control.checkpoint_time_s.saturating_mul(1_000)),
            timeline: label.first_segment.timeline(),
            start: label.start,
            reaches: led.map_or(label.start, |led| led.end),
        })
    });
    SetStanding { name, reach }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{assert_stored, history_file};
    use crate::store::testing::{new_archive, open, real, scratch_folder, segment};

    const MIB: u64 = 1 << 20;

    /// What is held, and what is missing, in an archive of files of these names.
    fn surveyed(names: &[&str]) -> (Option<Lsn>, Option<String>) {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        for name in names {
            let text = match name.ends_with(".history") {
                true => "1\t0/580000\tpromoted\n",
                false => "",
            };
            std::fs::write(places.completed_wals.join(name), text).unwrap();
        }
        let overview = survey(&places, None, &real(), None).unwrap();
        let missing = overview.missing.map(|name| name.to_string());
        (overview.held.map(|(_, end)| end), missing)
    }

    #[test]
    fn fault_78_what_lies_behind_a_gap_is_not_held() {
        let [third, fourth, sixth] = [
            "000000010000000000000003",
            "000000010000000000000004",
            "000000010000000000000006",
        ];
        assert_eq!(surveyed(&[]), (None, None));
        assert_eq!(surveyed(&[third, fourth]), (Some(Lsn(5 * MIB)), None));
        // Without a backup set there is nothing that would need what is before the gap.
        let fifth = Some("000000010000000000000005".to_owned());
        let found = surveyed(&[third, fourth, sixth]);
        assert_eq!(found, (Some(Lsn(7 * MIB)), fifth));
    }

    #[test]
    fn the_way_goes_on_along_the_newest_timeline() {
        let old = ["000000010000000000000004", "000000010000000000000005"];
        let new = ["000000020000000000000005", "000000020000000000000006"];
        let all = [&old[..], &new, &["00000002.history"]].concat();
        assert_eq!(surveyed(&all), (Some(Lsn(7 * MIB)), None));
        // What the old timeline wrote after it was left leads nowhere.
        let stray = ["000000010000000000000007"];
        let all = [&all[..], &stray].concat();
        assert_eq!(surveyed(&all), (Some(Lsn(7 * MIB)), None));
    }

    #[test]
    fn what_was_acknowledged_counts_rather_than_what_is_in_the_file() {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open(&places);
        assert_stored(&archive, &segment(3, 1));
        assert_stored(&archive, &history_file(2, "promoted"));
        let fourth = segment(4, 1);
        std::fs::write(
            places.partial_wals.join(fourth.name.to_string()),
            &fourth.bytes,
        )
        .unwrap();
        let look = |acknowledged| survey(&places, None, &real(), acknowledged).unwrap();
        let read = look(None);
        let name: SegmentName = fourth.name.to_string().parse().unwrap();
        assert_eq!(read.partial_segment, Some(name));
        assert!(read.partial_end > Lsn(4 * MIB), "{read:?}");
        let end = Lsn(4 * MIB + 8192);
        assert_eq!(look(Some((name, end))).partial_end, end);
        for age_ms in [read.received_age_ms, read.newest_age_ms] {
            assert!((-1_000..60_000).contains(&age_ms), "{age_ms}");
        }
        assert!(read.free_bytes > 0);
    }

    #[test]
    fn a_damaged_file_counts_unless_there_is_a_good_one() {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let copy = |name: &str| std::fs::write(places.completed_wals.join(name), "x").unwrap();
        copy("000000010000000000000003.damaged");
        copy("000000010000000000000003");
        copy("000000010000000000000004.damaged.2");
        let overview = survey(&places, None, &real(), None).unwrap();
        assert_eq!(overview.damaged_count, 1);
        assert_eq!(overview.damaged, "000000010000000000000004.damaged.2");
    }
}
