//! Stretches of WAL that a purge removed although older WAL stays: a note, so that nobody takes them for a loss.
//! Never decides what goes. Invariant: noted before anything goes; a note that is absent or torn says nothing, and what
//! is missing is told of.
//!
//! # `completed_wals/.purged`
//!
//! ```text
//! 0000000000000010 0000000000000041      the log and the segment of the first and the last name
//! check 01234567                         CRC-32 of the lines above
//! ```

use std::sync::Arc;

use walmgr_protocol::names::SegmentName;

use super::policy::SegmentPlace;
use crate::store::StoreError;
use crate::store::folder::Folder;
use crate::store::shared::finished_names;

const NOTE_NAME: &str = ".purged";

/// As many stretches lie between as many sets that need no way forward.
const STRETCHES_MAX: usize = 4_096;

const NOTE_BYTES_MAX: usize = (STRETCHES_MAX + 1) * 40;

/// WAL that goes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WalStretch {
    /// Its first segment,
    pub first: SegmentName,
    /// and its last.
    pub last: SegmentName,
    /// Files, copies included.
    pub files: usize,
    /// Whether older WAL stays.
    pub is_behind: bool,
}

/// The stretches, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::store) struct PurgedStretches(Vec<(SegmentPlace, SegmentPlace)>);

impl PurgedStretches {
    /// What is noted in an archive.
    pub(in crate::store) fn read(completed: &Folder) -> PurgedStretches {
        let content = completed.read_small(NOTE_NAME, NOTE_BYTES_MAX);
        let content = content.ok().flatten().unwrap_or_default();
        parse(&content).unwrap_or_default()
    }

    /// Whether all from one segment to another went on purpose.
    pub(in crate::store) fn covers(&self, first: SegmentName, last: SegmentName) -> bool {
        let (first, last) = (SegmentPlace::of(first), SegmentPlace::of(last));
        self.0
            .iter()
            .any(|(begin, end)| *begin <= first && last <= *end)
    }

    /// With what goes now: of that, what older WAL stays before.
    pub(super) fn with(mut self, stretches: &[WalStretch]) -> PurgedStretches {
        let behind = stretches.iter().filter(|stretch| stretch.is_behind);
        let places = behind.map(|it| (SegmentPlace::of(it.first), SegmentPlace::of(it.last)));
        self.0.extend(places);
        self.0.sort();
        let mut joined: Vec<(SegmentPlace, SegmentPlace)> = Vec::new();
        for (first, last) in self.0 {
            match joined.last_mut() {
                // In the next log the segment of a name begins with 0; such neighbours stay two, and cover what lies
                // in each.
                Some(before) if first.0 <= before.1.0.saturating_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => joined.push((first, last)),
            }
        }
        // The oldest are the ones that go altogether first.
        joined.drain(..joined.len().saturating_sub(STRETCHES_MAX));
        PurgedStretches(joined)
    }

    /// Notes them, without those that lie before all WAL.
    pub(super) fn write(mut self, completed: &Arc<Folder>) -> Result<(), StoreError> {
        let names = finished_names(completed)?.into_keys();
        let oldest = names
            .filter_map(|name| name.segment())
            .map(SegmentPlace::of)
            .min();
        self.0
            .retain(|(_, last)| oldest.is_some_and(|oldest| oldest < *last));
        if self == PurgedStretches::read(completed) {
            return Ok(());
        }
        completed.write_small(NOTE_NAME, text(&self.0).as_bytes())
    }
}

fn text(stretches: &[(SegmentPlace, SegmentPlace)]) -> String {
    let lines = stretches
        .iter()
        .map(|(first, last)| format!("{:016X} {:016X}\n", first.0, last.0));
    let lines: String = lines.collect();
    let check = crc32fast::hash(lines.as_bytes());
    format!("{lines}check {check:08X}\n")
}

fn parse(content: &[u8]) -> Option<PurgedStretches> {
    let found = std::str::from_utf8(content).ok()?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok().map(SegmentPlace);
    let lines = found.lines().take_while(|line| !line.starts_with("check "));
    let stretches = lines.map(|line| {
        let (first, last) = line.split_once(' ')?;
        Some((number(first)?, number(last)?))
    });
    let stretches: Vec<_> = stretches.collect::<Option<_>>()?;
    (text(&stretches) == found).then_some(PurgedStretches(stretches))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_joined_and_read_as_they_were_written() {
        let name = |number: u64| format!("00000001{number:016X}").parse().unwrap();
        let stretch = |first, last, is_behind| WalStretch {
            first: name(first),
            last: name(last),
            files: 1,
            is_behind,
        };
        let noted = PurgedStretches::default().with(&[
            stretch(1, 4, false),
            stretch(8, 9, true),
            stretch(20, 30, true),
        ]);
        let noted = noted.with(&[stretch(10, 12, true)]);
        assert!(noted.covers(name(8), name(12)) && noted.covers(name(25), name(25)));
        assert!(!noted.covers(name(1), name(2)) && !noted.covers(name(12), name(20)));
        let content = text(&noted.0);
        assert_eq!(parse(content.as_bytes()).unwrap(), noted);
        for cut in 0..content.len() {
            assert_eq!(parse(&content.as_bytes()[..cut]), None, "{cut}");
        }
        assert_eq!(parse(&[0xFF]), None);
    }
}
