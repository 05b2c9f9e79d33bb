//! What replay may not get past in the finished segments: a note beside each that has any.
//! Never decides who gets past; `wal::obstacle` says what each record asks. Invariant: a note is durable
//! before its segment has its name, so no crash leaves a segment that is acknowledged and not noted.
//!
//! # On disk
//!
//! `completed_wals/.obstacles/NAME`, lines of text; the last has the CRC-32 of those above it:
//!
//! ```text
//! obstacles of 000000010000000000000003
//! 0/3000028 minimal                          wal_level = minimal from here on
//! 0/3000028 reset                            pg_resetwal began the WAL anew
//! 0/30000A0 settings 200 8 10 0 64           max_connections, max_worker_processes, max_wal_senders,
//!                                            max_prepared_transactions, max_locks_per_transaction
//! 0/30000F8 tablespace 16390 /srv/space      with \xHH for what is no printable ASCII
//! 0/3000150 manager 130                      a resource manager that a library brings
//! more                                       only if there were more than are noted
//! check 01234567
//! ```
//!
//! Of a record that crosses a boundary the note is beside the segment that was stored last, so the LSN
//! counts and not the name. A segment without a note has none, if it was stored by a receiver that looks for
//! them and not with `verify_wal = off`.
//!
//! `.obstacles/walked` (empty) says that the segments which were there before were looked through as well.
//! Without it the receiver does so beside its work, once: everything here can be made again from the WAL.
//!
//! # What a crash leaves
//!
//! Behind the note and before the name: a note without a segment. Nobody reads it, and whoever gets the name
//! later replaces or removes it first. In a walk: no `walked`, so the next start walks again. A purge removes
//! segments first, and what it leaves of their notes is of the same kind. A note that is torn or
//! flipped is not believed: the segment itself is read instead.

use std::sync::Arc;

use walmgr_protocol::names::{Lsn, SegmentName, WalSegmentSize};

use super::error::StoreError;
use super::folder::Folder;
use crate::wal::obstacle::{Demands, Met, OBSTACLES_MAX, Obstacle, Obstacles};
use crate::wal::scan::{ScanStep, Scanner};

/// The folder of the notes.
pub(super) const OBSTACLES_NAME: &str = ".obstacles";

/// As many as are remembered, with the longest locations, each byte of them written as four.
pub(super) const NOTE_BYTES_MAX: usize = OBSTACLES_MAX * (64 + 4 * 1024);

const MORE: &str = "more";

/// Notes what replay may not get past in a segment, or that there is nothing: then an older note goes.
pub(super) fn note(
    completed: &Folder,
    segment: SegmentName,
    obstacles: &Obstacles,
) -> Result<(), StoreError> {
    if obstacles.all().is_empty() {
        return remove(completed, &[segment.to_string()]);
    }
    completed.make_below(OBSTACLES_NAME)?;
    if let Some(folder) = open(completed)? {
        folder.write_small(&segment.to_string(), text_of(segment, obstacles).as_bytes())?;
    }
    Ok(())
}

/// Removes the notes about files.
pub(super) fn remove(completed: &Folder, names: &[String]) -> Result<(), StoreError> {
    match open(completed)? {
        Some(folder) => folder.remove_present(names),
        None => Ok(()),
    }
}

/// Makes the note of a segment void, since its file is about to be replaced. Until [`renew`] writes the note anew,
/// readers of the note read the file instead.
pub(super) fn doubt(completed: &Folder, segment: SegmentName) -> Result<(), StoreError> {
    completed.make_below(OBSTACLES_NAME)?;
    match open(completed)? {
        Some(folder) => folder.write_small(&segment.to_string(), b""),
        None => Ok(()),
    }
}

/// Reads a stored segment for its obstacles and notes them.
pub(super) fn renew(
    completed: &Folder,
    segment: SegmentName,
    size: WalSegmentSize,
) -> Result<(), StoreError> {
    note(completed, segment, &walk(completed, segment, size)?)
}

/// What the records of a stored segment are, without their checksums. One that crosses its end counts
/// if the segment behind has its rest.
pub(super) fn walk(
    completed: &Folder,
    segment: SegmentName,
    size: WalSegmentSize,
) -> Result<Obstacles, StoreError> {
    let start = segment.start(size).unwrap_or_default();
    let mut scanner = Scanner::new(start, size).without_checksums();
    let end = Lsn(start.0.saturating_add(size.bytes()));
    let mut next = Some(segment);
    while let Some(name) = next.take() {
        let Some(file) = completed.open_finished(&name.to_string())? else {
            break;
        };
        let mut goes_on = true;
        let read = completed.read_finished_pages(&file, 0, |piece| {
            let mut rest = piece;
            goes_on = loop {
                match scanner.advance(&mut rest) {
                    ScanStep::NeedMore => break name == segment || scanner.in_record(),
                    ScanStep::Record(record) if record.lsn >= end => break false,
                    ScanStep::Record(_) => {}
                    ScanStep::EndOfWal(_) | ScanStep::Invalid { .. } => break false,
                }
            };
            goes_on
        });
        match read {
            // It cannot be unpacked: nothing replays it.
            Err(StoreError::Damaged { .. }) => break,
            read => read?,
        }
        let crosses = goes_on && name == segment && scanner.open_record().is_some();
        next = segment.next(size).filter(|_| crosses);
    }
    let mut obstacles = Obstacles::default();
    obstacles.add_before(scanner.obstacles(), end);
    Ok(obstacles)
}

pub(super) fn open(completed: &Folder) -> Result<Option<Arc<Folder>>, StoreError> {
    completed.below(OBSTACLES_NAME)
}

fn text_of(segment: SegmentName, obstacles: &Obstacles) -> String {
    let mut text = format!("obstacles of {segment}\n");
    for Met { lsn, obstacle } in obstacles.all() {
        text += &match obstacle {
            Obstacle::Minimal => format!("{lsn} minimal\n"),
            Obstacle::Reset => format!("{lsn} reset\n"),
            Obstacle::Settings(demands) => {
                let values = demands.each().map(|(_, value)| value.to_string());
                format!("{lsn} settings {}\n", values.join(" "))
            }
            Obstacle::Tablespace { oid, location } => {
                format!("{lsn} tablespace {oid} {}\n", escaped(location))
            }
            Obstacle::Manager(id) => format!("{lsn} manager {id}\n"),
        };
    }
    if obstacles.is_cut() {
        text += MORE;
        text += "\n";
    }
    let check = crc32fast::hash(text.as_bytes());
    text + &format!("check {check:08X}\n")
}

/// `None` unless it is exactly what was written about this segment.
pub(super) fn parse(segment: SegmentName, note: &[u8]) -> Option<Obstacles> {
    let text = std::str::from_utf8(note).ok()?;
    let (above, _) = text.split_at(text.rfind("check ")?);
    let mut lines = above.lines();
    lines.next()?;
    let mut obstacles = Obstacles::default();
    for line in lines {
        if line == MORE {
            obstacles.cut();
            continue;
        }
        let (lsn, what) = line.split_once(' ')?;
        let lsn = lsn.parse().ok()?;
        let obstacle = parse_obstacle(what)?;
        obstacles.add(Met { lsn, obstacle });
    }
    (text_of(segment, &obstacles) == text).then_some(obstacles)
}

fn parse_obstacle(text: &str) -> Option<Obstacle> {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    Some(match word {
        "minimal" => Obstacle::Minimal,
        "reset" => Obstacle::Reset,
        "settings" => {
            let values: Option<Vec<i32>> = rest.split(' ').map(|it| it.parse().ok()).collect();
            Obstacle::Settings(Demands::of(values?.try_into().ok()?))
        }
        "tablespace" => {
            let (oid, location) = rest.split_once(' ')?;
            let oid = oid.parse().ok()?;
            let location = unescaped(location)?;
            Obstacle::Tablespace { oid, location }
        }
        "manager" => Obstacle::Manager(rest.parse().ok()?),
        _ => return None,
    })
}

fn escaped(location: &[u8]) -> String {
    let mut text = String::new();
    for byte in location {
        match byte {
            b'\\' => text += "\\x5C",
            b' '..=b'~' => text.push(char::from(*byte)),
            other => text += &format!("\\x{other:02X}"),
        }
    }
    text
}

fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut pieces = text.split("\\x");
    let mut location = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        let (number, rest) = piece.split_at_checked(2)?;
        location.push(u8::from_str_radix(number, 16).ok()?);
        location.extend_from_slice(rest.as_bytes());
    }
    Some(location)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use walmgr_protocol::names::WalFileName;

    use super::*;
    use crate::store::ArchiveReader;
    use crate::store::testing::{
        BINDING, Sample, assert_stored, new_archive, open as open_archive, real, scratch_folder,
    };
    use crate::wal::writer::WalWriter;

    fn segment() -> SegmentName {
        "000000010000000000000003".parse().unwrap()
    }

    fn samples() -> Obstacles {
        let mut obstacles = Obstacles::default();
        let tablespace = |location: &[u8]| Obstacle::Tablespace {
            oid: 16_390,
            location: location.to_vec(),
        };
        let each = [
            Obstacle::Minimal,
            Obstacle::Reset,
            Obstacle::Settings(Demands::of([200, 8, 10, 0, 64])),
            tablespace(b""),
            tablespace(b"/srv/a space"),
            tablespace(b"/srv/\\x41\ncheck \xFF\x01"),
            Obstacle::Manager(130),
        ];
        for (at, obstacle) in (0_u64..).zip(each) {
            let lsn = Lsn(0x0030_0028 + 8 * at);
            obstacles.add(Met { lsn, obstacle });
        }
        obstacles
    }

    #[test]
    fn fault_127_a_note_reads_as_it_was_written_or_is_not_believed() {
        let mut cut = samples();
        cut.cut();
        for obstacles in [samples(), cut] {
            let text = text_of(segment(), &obstacles).into_bytes();
            assert_eq!(parse(segment(), &text), Some(obstacles));
            for len in 0..text.len() {
                assert_eq!(parse(segment(), &text[..len]), None);
            }
            for bit in 0..text.len() * 8 {
                let mut flipped = text.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(parse(segment(), &flipped), None, "bit {bit}");
            }
            let other = "000000010000000000000004".parse().unwrap();
            assert_eq!(parse(other, &text), None);
        }
    }

    #[test]
    fn fault_127_a_segment_whose_note_is_doubted_is_read_itself() {
        let folder = scratch_folder();
        let places = new_archive(folder.path());
        let archive = open_archive(&places);
        let mut writer = WalWriter::new(segment(), BINDING.segment_size, BINDING.system_id, 15);
        writer.record(130, 0, &[7; 40]);
        writer.switch();
        let name = WalFileName::Segment(segment());
        let bytes = writer.bytes().to_vec();
        assert_stored(&archive, &Sample { name, bytes });
        let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
        let noted = reader.obstacles().unwrap();
        assert_eq!(noted[&segment()].all().len(), 1);
        // As a crash leaves it between the doubt and what the new file says.
        doubt(&archive.shared.completed, segment()).unwrap();
        assert_eq!(reader.obstacles().unwrap(), noted);
        renew(&archive.shared.completed, segment(), BINDING.segment_size).unwrap();
        assert_eq!(reader.obstacles().unwrap(), noted);
    }

    proptest! {
        #[test]
        fn arbitrary_notes_never_panic(note in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(segment(), &note);
            let text = [b"x\n0/1 tablespace 1 ", &note[..], b"\ncheck 0"].concat();
            let _ = parse(segment(), &text);
        }
    }
}
