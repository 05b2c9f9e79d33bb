//! The facts that the policy decides by: what each set is, who pinned it, and where its WAL leads.
//! Never decides and never removes anything. Invariant: what cannot be found out makes nothing go.

use std::os::fd::OwnedFd;

use walmgr_protocol::names::{BackupName, Lsn, SegmentName};

use super::BackupSets;
use super::condition::Condition;
use super::error::SetError;
use super::list::SetEntry;
use super::lock::{Mode, NamesLock, lock};
use super::pins::SetPin;
use super::policy::{
    Keeping, RetainedSet, SegmentPlace, SetDecision, SetQuality, day_of, decide, next_to_go,
};
use crate::store::ArchiveReader;
use crate::store::binding::{Marker, MarkerRole};
use crate::store::route::Route;

/// What becomes of the sets, the newest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Retention {
    /// What is known of each.
    pub sets: Vec<RetainedSet>,
    /// What is decided on each.
    pub decided: Vec<SetDecision>,
    /// The pin of each, if it has one.
    pub pins: Vec<Option<SetPin>>,
    /// The set that goes next, and in how many days, if a backup is made on each of them.
    pub next: Option<(BackupName, u32)>,
}

impl Retention {
    /// The sets that go, oldest first.
    pub(crate) fn goes(&self) -> impl Iterator<Item = &SetDecision> {
        self.decided.iter().rev().filter(|set| set.goes())
    }
}

impl BackupSets {
    /// What becomes of the sets.
    pub(crate) fn retention(&self, keeping: Keeping) -> Result<Retention, SetError> {
        self.retention_of(self.list()?, keeping)
    }

    /// What becomes of the sets, before something goes. Fails while the disk does not let a set be read.
    pub(super) fn retention_sure(&self, keeping: Keeping) -> Result<Retention, SetError> {
        let listed = self.list()?;
        for set in &listed {
            if let Condition::Unreadable(why) = &set.condition {
                let (name, why) = (set.name.clone(), why.clone());
                return Err(SetError::Damaged { name, why });
            }
        }
        self.retention_of(listed, keeping)
    }

    /// What becomes of the sets at this moment, before something goes. A set that is being read stays. Fails while the
    /// disk does not let a set be read.
    pub(super) fn retention_now(&self, keeping: Keeping) -> Result<Retention, SetError> {
        let mut retention = self.retention_sure(keeping)?;
        if retention.goes().next().is_some() {
            // Whoever begins to read a set has the names locked: nobody meets the lock of this look.
            let _names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Alone)?;
            for (set, decision) in retention.sets.iter_mut().zip(&retention.decided) {
                set.is_read = decision.goes() && self.is_read(&set.name)?;
            }
            retention.decided = decide(&retention.sets, keeping, now_ms());
        }
        Ok(retention)
    }

    /// What becomes of the listed sets.
    pub(super) fn retention_of(
        &self,
        listed: Vec<SetEntry>,
        keeping: Keeping,
    ) -> Result<Retention, SetError> {
        let marker = Marker::read(&self.completed, MarkerRole::Completed)?;
        let binding = marker.and_then(|marker| marker.binding);
        let reader = binding.map(|it| ArchiveReader::of(self.completed.clone(), it));
        let route = match &reader {
            Some(reader) => Route::to_newest(reader, reader.lineage(&[])?),
            None => None,
        };
        let mut retention = Retention::default();
        for entry in listed {
            let pin = match &entry.label {
                Ok(label) => self.pin_of(label)?,
                Err(_) => None,
            };
            let wal = pin.as_ref().map(|pin| pin.wal);
            let mut set = retained(&entry, reader.as_ref(), route.as_ref());
            set.pin = wal;
            retention.sets.push(set);
            retention.pins.push(pin);
        }
        let now_ms = now_ms();
        retention.decided = decide(&retention.sets, keeping, now_ms);
        retention.next = next_to_go(&retention.sets, keeping, now_ms);
        Ok(retention)
    }

    /// Whether somebody holds a set to read it.
    fn is_read(&self, name: &BackupName) -> Result<bool, SetError> {
        let Some(handle) = self.enter_set(name)? else {
            return Ok(false);
        };
        let (parent, text) = (&self.parent, name.to_string());
        let locked = lock(parent, &handle, Mode::Alone);
        Ok(!locked.map_err(|error| parent.failure("lock", &text, error))?)
    }

    /// The directory of a set; nothing if somebody took it away.
    pub(super) fn enter_set(&self, name: &BackupName) -> Result<Option<OwnedFd>, SetError> {
        let (parent, text) = (&self.parent, name.to_string());
        match parent.disk.enter_linked(parent.handle(), text.as_ref()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            other => {
                Ok(Some(other.map_err(|error| {
                    parent.failure("open set", &text, error)
                })?))
            }
        }
    }
}

impl SegmentPlace {
    /// Where a segment of this name stands.
    pub(crate) fn of(segment: SegmentName) -> SegmentPlace {
        // The name is three numbers of eight digits; whatever else it were, it would count as the newest.
        let text = segment.to_string();
        SegmentPlace(u64::from_str_radix(&text[8..], 16).unwrap_or(u64::MAX))
    }
}

fn retained(
    entry: &SetEntry,
    reader: Option<&ArchiveReader>,
    route: Option<&Route<'_>>,
) -> RetainedSet {
    let label = entry.label.as_ref().ok();
    let quality = match &entry.condition {
        condition if condition.refusal().is_some() => SetQuality::Damaged,
        condition if condition.is_good() => SetQuality::Good,
        _ => SetQuality::Lesser,
    };
    let size = reader.map(|reader| reader.binding().segment_size);
    let place_of = |lsn: Lsn| {
        let timeline = label?.first_segment.timeline();
        let segment = SegmentName::containing(timeline, lsn, size?);
        Some(SegmentPlace::of(segment))
    };
    let first = label.map(|label| {
        let named = SegmentPlace::of(label.first_segment);
        // The label names the same segment twice; whichever is older is believed.
        place_of(label.start).map_or(named, |found| found.min(named))
    });
    let stop = reader.and_then(|reader| entry.details(Some(reader)).stop);
    let leads_on = |route: &Route<'_>| {
        let on_line = label.filter(|label| route.line().part_of(label.first_segment).is_some());
        on_line.is_some_and(|label| {
            let timeline = label.first_segment.timeline();
            let end = entry.end_in_manifest();
            let end = end.or_else(|| stop.map(|stop| (timeline, stop)));
            let passes = (route.line()).passes_backup((timeline, label.start), end);
            passes && route.gap(label.start).is_none()
        })
    };
    RetainedSet {
        name: entry.name.clone(),
        sealed_ms: entry.sealed_ms,
        day: day_of(entry.written_ms),
        quality,
        leads_on: route.is_none_or(leads_on),
        pin: None,
        is_read: false,
        first,
        // The byte at the end is not read any more.
        last: stop.and_then(|stop| place_of(Lsn(stop.0.saturating_sub(1)))),
    }
}

pub(super) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
