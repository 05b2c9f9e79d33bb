//! Tests of what an archive says that changed.

use proptest::prelude::*;
use walmgr_protocol::names::{SegmentName, WalFileName};

use super::*;
use crate::store::testing::{
    BINDING, Sample, assert_stored, history_file, new_archive, open, real, scratch_folder,
};
use crate::wal::changes::{EverythingReason, Fork, RelationFork};
use crate::wal::record::RecordInfo;
use crate::wal::writer::WalWriter;

const MIB: usize = 1 << 20;
const RM_HEAP: u8 = 10;
const FIRST: u64 = 3;

const MAIN: RelationFork = RelationFork {
    tablespace: 1663,
    database: 5,
    relfilenode: 16_384,
    fork: Fork::Main,
};

fn name(timeline: u32, number: u64) -> SegmentName {
    let timeline = TimelineId::new(timeline).unwrap();
    SegmentName::from_number(timeline, number, BINDING.segment_size)
}

/// The body of a record that changes one block, with this much main data.
fn body(block: u32, main_bytes: usize) -> Vec<u8> {
    let mut body = vec![0, 0x20, 0, 0];
    for field in [MAIN.tablespace, MAIN.database, MAIN.relfilenode, block] {
        body.extend(field.to_le_bytes());
    }
    body.push(254);
    body.extend(u32::try_from(main_bytes).unwrap().to_le_bytes());
    body.resize(body.len() + main_bytes, 0xDD);
    body
}

fn writer() -> WalWriter {
    WalWriter::new(name(1, FIRST), BINDING.segment_size, BINDING.system_id, 15)
}

/// Segments of records, each of which changes the block of its place in the list.
fn wal(lengths: &[usize], segments: usize) -> (Vec<RecordInfo>, Vec<u8>) {
    let mut writer = writer();
    let (mut records, mut lengths) = (Vec::new(), lengths.iter().cycle());
    while writer.bytes().len() < segments * MIB {
        let block = u32::try_from(records.len()).unwrap();
        records.push(writer.record(RM_HEAP, 0x20, &body(block, *lengths.next().unwrap())));
    }
    (records, writer.bytes()[..segments * MIB].to_vec())
}

struct Stored {
    _folder: tempfile::TempDir,
    completed_wals: std::path::PathBuf,
    reader: ArchiveReader,
    partials: PartialWals,
}

/// An archive that has the first segments, and the next in progress.
fn stored(bytes: &[u8], finished: usize) -> Stored {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    for (number, bytes) in (FIRST..).zip(bytes.chunks(MIB)) {
        let segment = name(1, number);
        if number < FIRST + finished as u64 {
            let name = WalFileName::Segment(segment);
            let bytes = bytes.to_vec();
            assert_stored(&archive, &Sample { name, bytes });
        } else {
            std::fs::write(places.partial_wals.join(segment.to_string()), bytes).unwrap();
        }
    }
    Stored {
        reader: ArchiveReader::open(&places.completed_wals, real()).unwrap(),
        partials: PartialWals::open(&places.partial_wals, real()).unwrap(),
        completed_wals: places.completed_wals,
        _folder: folder,
    }
}

impl Stored {
    fn between(&self, from: Lsn, to: Lsn) -> Result<Changes, NoChanges> {
        let timeline = TimelineId::FIRST;
        let (from, to) = ((timeline, from), (timeline, to));
        changes_between(&self.reader, Some(&self.partials), MapStretch { from, to })
    }
}

fn blocks(changes: &Changes) -> Vec<u32> {
    assert_eq!(changes.everything(), None);
    let forks = changes.forks().flat_map(|(_, change)| change.blocks());
    forks.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn fault_202_no_record_of_a_stretch_is_left_out(
        lengths in prop::collection::vec(prop_oneof![0_usize..200, 0_usize..40_000], 3..30),
        from: prop::sample::Index, length: prop::sample::Index, finished in 1_usize..=3,
    ) {
        let (records, bytes) = wal(&lengths, 3);
        let stored = stored(&bytes, finished);
        let begins = |at: usize| records.get(at).map_or(Lsn((FIRST + 3) << 20), |record| record.lsn);
        // The last record may run out of what there is.
        let first = from.index(records.len() - 1);
        let last = first + 1 + length.index(records.len() - 1 - first);
        let last = (first..=last).rfind(|at| records[*at - usize::from(*at > first)].end.0 <= (FIRST + 3) << 20);
        let last = last.unwrap();
        let found = blocks(&stored.between(begins(first), begins(last)).unwrap());
        for at in first..last {
            let at = u32::try_from(at).unwrap();
            prop_assert!(found.contains(&at), "{at} of {first}..{last}");
        }
        // Nothing of segments that the stretch does not touch.
        let touched = |at: u32| {
            let number = |lsn: Lsn| lsn.0 >> 20;
            let at = records[at as usize].lsn;
            number(at) >= number(begins(first)) && number(at) <= number(begins(last))
        };
        prop_assert!(found.iter().all(|at| touched(*at)));
    }
}

#[test]
fn fault_202_a_stretch_that_is_not_here_to_its_end_says_nothing() {
    let (records, bytes) = wal(&[300], 3);
    let (from, to) = (records[5].lsn, records[records.len() - 2].lsn);
    let missing = |stored: &Stored, to| match stored.between(from, to) {
        Err(NoChanges::Missing { segment }) => Some(segment),
        _ => None,
    };
    let whole = stored(&bytes, 3);
    assert!(missing(&whole, to).is_none());
    assert_eq!(
        missing(&whole, Lsn(to.0 + MIB as u64)),
        Some(name(1, FIRST + 3))
    );
    let completed = &whole.completed_wals;
    std::fs::remove_file(completed.join(name(1, FIRST + 1).to_string())).unwrap();
    assert_eq!(missing(&whole, to), Some(name(1, FIRST + 1)));
    // In progress, and not as far as that.
    let mut shorter = bytes;
    let at = usize::try_from(records[records.len() - 9].lsn.0 - (FIRST << 20)).unwrap();
    shorter[at..].fill(0);
    let shorter = stored(&shorter, 2);
    assert_eq!(missing(&shorter, to), Some(name(1, FIRST + 2)));
    assert_eq!(missing(&shorter, records[records.len() - 9].lsn), None);
}

#[test]
fn a_stretch_leads_along_one_line_of_timelines() {
    let folder = scratch_folder();
    let places = new_archive(folder.path());
    let archive = open(&places);
    let mut writer = writer();
    writer.record(RM_HEAP, 0x20, &body(1, 100));
    writer.switch();
    writer.record(RM_HEAP, 0x20, &body(7, 100));
    let branch = writer.position();
    writer.record(RM_HEAP, 0x20, &body(8, 100));
    writer.set_timeline(TimelineId::new(2).unwrap());
    writer.record(RM_HEAP, 0x20, &body(9, 9_000));
    let end = writer.position();
    writer.switch();
    let mut history = history_file(2, "no recovery target specified");
    history.bytes = format!("1\t{branch}\tno recovery target specified\n").into_bytes();
    let segment = |timeline, number: u64| Sample {
        name: WalFileName::Segment(name(timeline, number)),
        bytes: match number {
            FIRST => writer.bytes()[..MIB].to_vec(),
            _ => writer.bytes()[MIB..2 * MIB].to_vec(),
        },
    };
    for sample in [segment(1, FIRST), history, segment(2, FIRST + 1)] {
        assert_stored(&archive, &sample);
    }
    let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
    let (one, two) = (TimelineId::FIRST, TimelineId::new(2).unwrap());
    let start = Lsn((FIRST << 20) + 40);
    let between = |from, to| changes_between(&reader, None, MapStretch { from, to });
    let found = between((one, start), (two, end)).unwrap();
    assert_eq!(blocks(&found), [1, 7, 8, 9]);
    let off = between((two, end), (one, start));
    assert!(matches!(off, Err(NoChanges::OffLine(_))), "{off:?}");
    let behind = between((one, Lsn(branch.0 + 8)), (two, end));
    assert!(matches!(behind, Err(NoChanges::OffLine(_))), "{behind:?}");
}

#[test]
fn what_changed_everything_before_a_stretch_does_not_count() {
    let mut writer = writer();
    let from = writer.record(RM_HEAP, 0x20, &body(2, 10)).lsn;
    let custom = writer.record(131, 0, &body(3, 10));
    writer.record(RM_HEAP, 0x20, &body(3, 10));
    let to = writer.record(RM_HEAP, 0x20, &body(4, 10)).lsn;
    writer.switch();
    let stored = stored(&writer.bytes()[..MIB], 1);
    let everything = |from, to| stored.between(from, to).unwrap().everything();
    let custom = (custom.lsn, EverythingReason::Manager(131));
    assert_eq!(everything(custom.0, to), Some(custom));
    assert_eq!(everything(to, Lsn(to.0 + 64)), None);
    let behind = stored.between(to, to).unwrap();
    assert_eq!(blocks(&behind), [2, 3, 4]);
    assert_eq!(everything(from, custom.0), None);
}

#[test]
fn fault_203_a_map_that_is_gone_or_damaged_is_made_again() {
    let (records, bytes) = wal(&[300], 2);
    let stored = stored(&bytes, 2);
    let maps = stored.completed_wals.join(".maps");
    let path = |number| maps.join(name(1, number).to_string());
    let read = || std::fs::read(path(FIRST)).unwrap();
    let (from, to) = (records[3].lsn, records[records.len() - 3].lsn);
    let expected = stored.between(from, to).unwrap();
    let good = read();
    let mut flipped = good.clone();
    flipped[60] ^= 1;
    let other = std::fs::read(path(FIRST + 1)).unwrap();
    for damaged in [&flipped[..], &good[..40], &other, b""] {
        std::fs::write(path(FIRST), damaged).unwrap();
        assert_eq!(stored.between(from, to).unwrap(), expected);
        assert_eq!(read(), good);
    }
    std::fs::remove_dir_all(&maps).unwrap();
    assert_eq!(stored.between(from, to).unwrap(), expected);
    assert_eq!(read(), good);
}
