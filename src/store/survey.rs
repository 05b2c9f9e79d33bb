//! What the archive holds and up to where it leads: what both sides' `status` shows.
//! Never locks the archive, syncs or changes anything, so it works beside a running receiver.
//! Invariant: WAL behind a gap is never called held.
//!
//! What is held begins at the newest backup set, as a recovery does, and follows the newest timeline
//! through finished segments into the partial ones. Without a set it begins behind the last gap.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use walmgr_protocol::limits::OVERVIEW_SETS_MAX;
use walmgr_protocol::message::overview::{Overview, SetReach, SetStanding};
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName};

use super::binding::{Binding, Marker, MarkerRole};
use super::damage::Damage;
use super::disk::Disk;
use super::error::StoreError;
use super::folder::Folder;
use super::health::Monitor;
use super::lineage::{ApartKind, Lineage, SegmentProgress};
use super::partial::{partial_end, vanished};
use super::reader::{ArchiveListing, ArchiveReader};
use super::rounds;
use super::route::Route;
use super::segment_runs::SegmentRuns;
use super::sets::{BackupSets, Condition, SetEntry, SetError};
use super::shared::ArchiveFolders;
use crate::pg::backup_label::BackupLabel;
use crate::pg::control;
use crate::wal::obstacle::Met;

/// How many segments in progress are read for damage: an archiver that hangs leaves hundreds, and
/// somebody may ask every second.
const PARTIALS_READ_MAX: usize = 4;

/// Looks at an archive and its backup sets.
///
/// `acknowledged` is the end of the partial segment that the receiver knows to be durable; where
/// nobody knows, the file is read.
pub fn survey(
    places: &ArchiveFolders,
    full_backup: Option<&Path>,
    disk: &Arc<dyn Disk>,
    acknowledged: Option<(SegmentName, Lsn)>,
) -> Result<Overview, StoreError> {
    let open = |path: &Path| Folder::open(path, Arc::clone(disk), Arc::new(Monitor::new()));
    let monitor = Arc::new(Monitor::new());
    let completed = Folder::open_completed(&places.completed_wals, Arc::clone(disk), monitor)?;
    let completed = Arc::new(completed);
    let mut overview = Overview {
        free_bytes: (disk.free_bytes(completed.handle()))
            .map_err(|error| completed.failure("ask for the free space of", "", error))?,
        completed_wals: places.completed_wals.display().to_string(),
        clock_ms: clock_ms(),
        ..Overview::default()
    };
    let marker = Marker::read(&completed, MarkerRole::Completed)?;
    let Some(binding) = marker.and_then(|marker| marker.binding) else {
        return Ok(overview);
    };
    overview.cluster = Some(binding.into());
    let partial = open(&places.partial_wals)?;
    let reader = ArchiveReader::of(Arc::clone(&completed), binding);
    let listing = reader.listing()?;
    let files = Files::of(&listing, &completed, &partial, &binding)?;
    describe_apart(&reader, &mut overview)?;
    let names = files.partials.iter().map(|segment| (*segment, None));
    let lineage = reader.lineage_of(&listing, names.collect())?;
    let (noted, noted_partials) = rounds::noted(&completed, &partial)?;
    files.describe(&lineage, &mut overview, acknowledged, &noted_partials)?;
    let known = overview.partial_segment.zip(Some(overview.partial_end));
    let mut lineage = lineage_with((&reader, &listing), &files.partials, known)?;
    if !lineage.facts().claimed.is_empty() {
        // A claim is weighed against where the records of the old timeline end.
        let ends = files.partial_ends();
        lineage = reader.lineage_of(&listing, ends)?;
    }
    describe_claims(&reader, &lineage, &mut overview)?;
    // A history that is not what was acknowledged leads nowhere, and somebody has to look at it.
    let unreadable = lineage.facts().unreadable.clone();
    for timeline in unreadable.keys() {
        overview.damaged_count += 1;
        if overview.damaged.is_empty() {
            overview.damaged = WalFileName::History(*timeline).to_string();
        }
    }
    for (name, why) in noted {
        if matches!(name, WalFileName::History(timeline) if unreadable.contains_key(&timeline)) {
            continue;
        }
        overview.damaged_count += 1;
        if overview.damaged.is_empty() {
            overview.damaged = format!("{name}: {why}");
        }
    }
    let recovery = SurveyedRoute::find(&reader, lineage)?;
    let sets = full_backup.map_or_else(Vec::new, |path| {
        standings(path, &places.completed_wals, disk, recovery.as_ref())
    });
    let newest_start = (sets.iter()).find_map(|set| Some(set.reach.as_ref().ok()?.start));
    if let Some(SurveyedRoute { route, .. }) = &recovery {
        let led = match newest_start {
            Some(start) => Some(route.led(start)),
            None => route.led_behind_last_gap(),
        };
        overview.held = led.map(|led| (route.line().newest_timeline(), led.end));
        overview.missing = led.and_then(|led| led.missing);
    }
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

/// What no reader follows, and what a person has to choose from.
fn describe_apart(reader: &ArchiveReader, overview: &mut Overview) -> Result<(), StoreError> {
    let apart = reader.apart()?;
    overview.apart_count = apart.len() as u64;
    // A history decides about more than a segment does.
    let first = apart.iter().max_by_key(|told| told.kind);
    overview.apart = first.map_or_else(String::new, |told| {
        format!("{} of {}: {}", told.name, told.by, told.why)
    });
    let beside = reader.to_decide()?;
    overview.differing_count = beside.len() as u64;
    if let Some(copy) = beside.values().flatten().next() {
        let by = reader.copy_by(copy)?;
        let by = if by.is_empty() { "somebody" } else { &by };
        overview.differing = format!("{copy} of {by}");
    }
    Ok(())
}

/// Describes a timeline that readers follow because a key claims it, although its parent goes on, or an older timeline
/// that left the parent too. The text names the two timelines.
fn describe_claims(
    reader: &ArchiveReader,
    lineage: &Lineage,
    overview: &mut Overview,
) -> Result<(), StoreError> {
    let Some(contested) = lineage.contested().into_iter().next() else {
        return Ok(());
    };
    let (history, followed) = (WalFileName::History(contested.timeline), contested.followed);
    let by = reader.claims()?.remove(&contested.timeline);
    let by = by.unwrap_or_else(|| "somebody".to_owned());
    let mut apart = reader.apart()?.into_iter();
    let of_parent =
        apart.find(|told| told.kind == ApartKind::Behind && told.name.timeline() == followed);
    let what = match of_parent {
        Some(told) => format!("{} of {}", told.name, told.by),
        None if followed == contested.parent => {
            format!("what is in progress on timeline {followed}")
        }
        None => format!("timeline {followed}"),
    };
    overview.apart_count = overview.apart_count.max(1);
    overview.apart = format!(
        "{what}, as timeline {} is followed, which {history} of {by} claims to have left {} at {} while \
         {followed} goes on to {}; see `choose {history}`",
        contested.timeline, contested.parent, contested.switch, contested.end
    );
    Ok(())
}

/// The names in the two folders.
struct Files<'a> {
    completed: &'a Folder,
    partial: &'a Folder,
    binding: &'a Binding,
    segments: &'a SegmentRuns,
    damaged: Vec<String>,
    partials: BTreeSet<SegmentName>,
}

impl<'a> Files<'a> {
    fn of(
        listing: &'a ArchiveListing,
        completed: &'a Folder,
        partial: &'a Folder,
        binding: &'a Binding,
    ) -> Result<Self, StoreError> {
        let copies = listing.damaged.iter();
        let copies = copies.filter(|(name, _)| !listing.contains(*name));
        let partials = partial.names()?.into_iter();
        Ok(Files {
            completed,
            partial,
            binding,
            segments: &listing.segments,
            damaged: copies.map(|(_, text)| text.clone()).collect(),
            partials: partials.filter_map(|name| name.parse().ok()).collect(),
        })
    }

    /// The newest finished segment that readers follow.
    fn newest(&self, lineage: &Lineage) -> Option<SegmentName> {
        let mut newest_first = self.segments.iter().rev();
        newest_first.find(|segment| !lineage.is_apart(*segment))
    }

    fn describe(
        &self,
        lineage: &Lineage,
        overview: &mut Overview,
        acknowledged: Option<(SegmentName, Lsn)>,
        noted: &BTreeSet<SegmentName>,
    ) -> Result<(), StoreError> {
        let mut arrived_ms = None;
        let followed = |segment: &SegmentName| !lineage.is_apart(*segment);
        overview.newest_segment = self.newest(lineage);
        if let Some(newest) = overview.newest_segment
            && let Some(stat) = self.completed.stat_at(&newest.to_string())?
        {
            overview.newest_age_ms = age_ms(stat.changed_ms);
            arrived_ms = Some(stat.changed_ms);
        }
        let behind =
            |partial: &&SegmentName| Some(**partial) > overview.newest_segment && followed(partial);
        overview.partial_segment = self.partials.iter().rfind(behind).copied();
        if let Some(partial) = overview.partial_segment {
            let stat = self.partial.stat_at(&partial.to_string())?;
            arrived_ms = arrived_ms.max(stat.map(|stat| stat.changed_ms));
            overview.partial_end = match acknowledged.filter(|(segment, _)| *segment == partial) {
                Some((_, end)) => end,
                None => self.end_of_partial(partial)?,
            };
        }
        let damages = self.damaged_partials(noted)?;
        if let Some(damage) = damages
            .iter()
            .rfind(|it| Some(it.segment) == overview.partial_segment)
        {
            overview.partial_end = damage.end;
        }
        overview.received_age_ms = arrived_ms.map_or(0, age_ms);
        overview.damaged_count = (self.damaged.len() + damages.len()) as u64;
        let first = damages.first().map(ToString::to_string);
        let first = first.or_else(|| self.damaged.first().cloned());
        overview.damaged = first.unwrap_or_default();
        Ok(())
    }

    /// The damage in what is in progress. Of many segments only the last are read, and some that a round
    /// found damaged.
    /// Where the records of each segment in progress end; what cannot be read counts as whole.
    fn partial_ends(&self) -> BTreeMap<SegmentName, Option<SegmentProgress>> {
        let ends = self.partials.iter().filter_map(|segment| {
            match partial_end(self.partial, self.binding, *segment) {
                Ok(Some(found)) => Some((*segment, Some(found.progress()))),
                Ok(None) => None,
                Err(_) => Some((*segment, None)),
            }
        });
        ends.collect()
    }

    fn damaged_partials(&self, noted: &BTreeSet<SegmentName>) -> Result<Vec<Damage>, StoreError> {
        let mut damages = vanished(Some(self.completed), self.partial, self.binding)?;
        let unfinished = |segment: &&SegmentName| !self.segments.contains(**segment);
        let last = (self.partials.iter().rev()).filter(unfinished);
        let last = last.take(PARTIALS_READ_MAX);
        let noted = noted.iter().filter(unfinished).take(PARTIALS_READ_MAX);
        let read: BTreeSet<SegmentName> = last.chain(noted).copied().collect();
        for segment in read {
            let found = partial_end(self.partial, self.binding, segment)?;
            damages.extend(found.and_then(|found| found.damage));
        }
        damages.sort_by_key(|damage| damage.segment);
        Ok(damages)
    }

    /// Where the whole records of a partial segment end.
    fn end_of_partial(&self, segment: SegmentName) -> Result<Lsn, StoreError> {
        let start = segment.start(self.binding.segment_size).unwrap_or_default();
        let found = partial_end(self.partial, self.binding, segment)?;
        Ok(found.map_or(start, |found| found.end.max(start)))
    }
}

/// What leads from where to where. `known` is the segment in progress whose end is known. The other segments in
/// progress count as whole, so they are not read.
fn lineage_with(
    (reader, listing): (&ArchiveReader, &ArchiveListing),
    partials: &BTreeSet<SegmentName>,
    known: Option<(SegmentName, Lsn)>,
) -> Result<Lineage, StoreError> {
    let progress = |segment: &SegmentName| {
        let (_, end) = known.filter(|(known, _)| known == segment)?;
        Some(SegmentProgress {
            end,
            is_whole: false,
            is_damaged: false,
        })
    };
    let partials = partials.iter().map(|segment| (*segment, progress(segment)));
    reader.lineage_of(listing, partials.collect())
}

/// The recoveries of the sets: all follow the newest timeline.
struct SurveyedRoute<'a> {
    route: Route<'a>,
    /// Obstacles that end every recovery that begins before them, whatever is set.
    ends: Vec<Met>,
}

impl<'a> SurveyedRoute<'a> {
    fn find(reader: &'a ArchiveReader, lineage: Lineage) -> Result<Option<Self>, StoreError> {
        let Some(route) = Route::to_newest(reader, lineage) else {
            return Ok(None);
        };
        let mut ends = route.obstacles(Lsn(0))?;
        ends.retain(|met| met.obstacle.is_end());
        Ok(Some(SurveyedRoute { route, ends }))
    }

    /// Up to where one gets that begins with this label, of a backup that ended there if that is known; not behind its
    /// beginning where the newest timeline left its own before that.
    fn reaches(&self, label: &BackupLabel, end: Option<(TimelineId, Lsn)>) -> Lsn {
        let (line, start) = (self.route.line(), label.start);
        if !line.passes_backup((label.first_segment.timeline(), start), end) {
            return start;
        }
        let end = self.route.led(start).end;
        let ended_by = self.ends.iter().find(|met| met.lsn >= start);
        ended_by.map_or(end, |met| end.min(met.lsn))
    }
}

fn standings(
    full_backup: &Path,
    completed_wals: &Path,
    disk: &Arc<dyn Disk>,
    recovery: Option<&SurveyedRoute<'_>>,
) -> Vec<SetStanding> {
    let folder = full_backup.parent().unwrap_or(full_backup);
    let listed = BackupSets::open(full_backup, completed_wals, disk).and_then(|sets| sets.list());
    match listed {
        Ok(listed) => {
            let mut has_good = false;
            let standing = |mut entry: SetEntry| {
                entry.label = fit_to_recover(&entry, has_good).and(entry.label);
                has_good |= entry.condition.is_good();
                standing(entry, folder, recovery)
            };
            listed.into_iter().map(standing).collect()
        }
        // A place without a directory has no sets either.
        Err(SetError::Store(StoreError::NotSetUp { .. })) => Vec::new(),
        Err(error) => vec![SetStanding {
            name: full_backup.display().to_string(),
            reach: Err(error.to_string()),
        }],
    }
}

/// Why a set cannot stand for a good backup. One with damaged pages, or without something, is named until there is a newer
/// good one.
fn fit_to_recover(entry: &SetEntry, has_newer_good: bool) -> Result<(), String> {
    match &entry.condition {
        condition if condition.refusal().is_some() => {
            let why = condition.refusal().unwrap_or_default();
            Err(format!("it is damaged: {why}"))
        }
        Condition::DamagedPages if !has_newer_good => Err(
            "it has damaged pages, as the master had: `walmgr_damaged_pages` in it names them"
                .to_owned(),
        ),
        Condition::LeftOut if !has_newer_good => {
            Err("it lacks files of the master: `walmgr_left_out` in it names them".to_owned())
        }
        _ => Ok(()),
    }
}

fn standing(entry: SetEntry, folder: &Path, recovery: Option<&SurveyedRoute<'_>>) -> SetStanding {
    let name = entry.name.to_string();
    let end = entry.end_in_manifest();
    let reach = entry.label.and_then(|label| {
        // The label has the time in words, in the server's time zone; this is the same moment.
        let control = control::read(&folder.join(&name)).map_err(|error| error.to_string())?;
        let reaches = recovery.map_or(label.start, |recovery| recovery.reaches(&label, end));
        Ok(SetReach {
            timestamp: label.start_time,
            age_ms: age_ms(control.checkpoint_time_s.saturating_mul(1_000)),
            timeline: label.first_segment.timeline(),
            start: label.start,
            reaches,
        })
    });
    SetStanding { name, reach }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{archive_of_names, assert_stored, history_file};
    use crate::store::testing::{new_archive, open, real, scratch_folder, segment};

    const MIB: u64 = 1 << 20;

    /// What is held, and what is missing, in an archive of files of these names.
    fn surveyed(names: &[&str]) -> (Option<Lsn>, Option<String>) {
        let folder = scratch_folder();
        let places = archive_of_names(folder.path(), names);
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
