//! The record that a server has begun to read in the segment before the one it asks for, out of its `pg_wal`.
//! Never looks at an archive. Invariant: of the segment before it reads its last record, and what is before
//! that on the same page.
//!
//! PostgreSQL keeps what it restored under the segment's own name (`KeepFileRestoredFromArchive`) and what was
//! streamed as well, and removes neither before all of it is replayed. So the segment before is there whenever
//! the next one ends a record that will be replayed, and of several timelines the newest counts, as it does for
//! PostgreSQL.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use walmgr_protocol::names::{Lsn, SegmentName, WalSegmentSize};

use super::layout;
use crate::files;
use crate::wal::obstacle_walk::ObstacleWalk;
use crate::wal::page::{
    FIRST_IS_CONTRECORD, LONG_HEADER_BYTES, PAGE_BYTES, PageHeader, header_bytes,
};
use crate::wal::scan::{ScanStep, Scanner};

/// A walk that stands at the beginning of `segment`, in a record that began before it; `None` if there is none
/// such in the data directory.
pub(crate) fn before(
    data: &Path,
    segment: SegmentName,
    size: WalSegmentSize,
) -> Option<ObstacleWalk> {
    let (_, scanner) = found_before(data, segment, size)?;
    Some(ObstacleWalk::from(scanner))
}

/// The file of the segment before `segment`, if a record that begins in it goes on in `segment`.
pub(crate) fn file_before(data: &Path, segment: SegmentName, size: WalSegmentSize) -> Option<File> {
    found_before(data, segment, size).map(|(file, _)| file)
}

/// Where a record begins that goes on behind the end of this segment.
pub(crate) fn open_record(
    file: &File,
    segment: SegmentName,
    size: WalSegmentSize,
) -> io::Result<Option<Lsn>> {
    let scanner = at_the_end(file, segment, size)?;
    Ok(scanner.and_then(|scanner| Some(scanner.open_record()?.0)))
}

fn found_before(
    data: &Path,
    segment: SegmentName,
    size: WalSegmentSize,
) -> Option<(File, Scanner)> {
    let folder = data.join(layout::PG_WAL);
    let number = segment.number(size)?.checked_sub(1)?;
    let names = std::fs::read_dir(&folder).ok()?.flatten();
    let names = names.filter_map(|entry| entry.file_name().to_str()?.parse::<SegmentName>().ok());
    let mut candidates: Vec<SegmentName> = names
        .filter(|name| name.number(size) == Some(number))
        .filter(|name| name.timeline() <= segment.timeline())
        .collect();
    candidates.sort_by_key(|name| std::cmp::Reverse(name.timeline()));
    // One that was made ready for the future holds old WAL, which ends the scan.
    candidates.into_iter().find_map(|name| {
        let path = folder.join(name.to_string());
        let read = files::open_at_once(&path).and_then(|file| {
            let scanner = at_the_end(&file, name, size)?;
            Ok(scanner.map(|scanner| (file, scanner)))
        });
        read.unwrap_or_else(|error| {
            tracing::warn!("{} cannot be read: {error}", path.display());
            None
        })
    })
}

fn at_the_end(
    file: &File,
    segment: SegmentName,
    size: WalSegmentSize,
) -> io::Result<Option<Scanner>> {
    let Some(start) = segment.start(size) else {
        return Ok(None);
    };
    if file.metadata()?.len() != size.bytes() {
        return Ok(None);
    }
    let first_page = page_of_last_record(file, start, size)?;
    let mut scanner =
        Scanner::new(Lsn(start.0 + first_page * PAGE_BYTES), size).without_checksums();
    let mut page = vec![0; usize::try_from(PAGE_BYTES).unwrap_or_default()];
    for number in first_page..size.bytes() / PAGE_BYTES {
        file.read_exact_at(&mut page, number * PAGE_BYTES)?;
        let mut rest = &page[..];
        while let ScanStep::Record(_) = scanner.advance(&mut rest) {}
    }
    let has_come = scanner.position().0 == start.0 + size.bytes();
    Ok((has_come && scanner.open_record().is_some()).then_some(scanner))
}

/// The page on which the last record begins, or the segment's first.
fn page_of_last_record(file: &File, start: Lsn, size: WalSegmentSize) -> io::Result<u64> {
    let mut number = size.bytes() / PAGE_BYTES - 1;
    while number > 0 {
        let mut header = [0; LONG_HEADER_BYTES];
        file.read_exact_at(&mut header, number * PAGE_BYTES)?;
        let header = PageHeader::decode(&header, false);
        let address = Lsn(start.0 + number * PAGE_BYTES);
        let room_bytes = PAGE_BYTES - header_bytes(address, size) as u64;
        if !header.has(FIRST_IS_CONTRECORD) || u64::from(header.remaining_bytes) < room_bytes {
            break;
        }
        number -= 1;
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use walmgr_protocol::names::SystemId;

    use super::*;
    use crate::wal::obstacle::Obstacle;
    use crate::wal::writer::WalWriter;

    const MIB: WalSegmentSize = WalSegmentSize::new(1 << 20).expect("a size PostgreSQL has");
    const RM_TBLSPC: u8 = 5;
    const RM_LOGICALMSG: u8 = 21;

    fn name(timeline: u32, number: u64) -> SegmentName {
        format!("{timeline:08X}00000000{number:08X}")
            .parse()
            .unwrap()
    }

    fn long_data(data: &[u8]) -> Vec<u8> {
        let len = u32::try_from(data.len()).unwrap().to_le_bytes();
        [&[254][..], &len, data].concat()
    }

    /// WAL in which a tablespace is created this many bytes before the end of a segment.
    fn crossing(left_bytes: usize, location: &str) -> Vec<u8> {
        let mut writer = WalWriter::new(name(1, 3), MIB, SystemId(7), 15);
        while writer.bytes().len() < (1 << 20) - left_bytes - 40 {
            let left_bytes = (1 << 20) - left_bytes - writer.bytes().len();
            let body_bytes = if left_bytes > 8_000 { 6_000 } else { 11 };
            writer.record(RM_LOGICALMSG, 0, &long_data(&vec![1; body_bytes]));
        }
        let created = [&99_u32.to_le_bytes()[..], location.as_bytes(), &[0]].concat();
        let created = writer.record(RM_TBLSPC, 0, &long_data(&created));
        assert!(created.lsn < Lsn(4 << 20) && created.end > Lsn(4 << 20));
        while writer.bytes().len() < (2 << 20) - 8_000 {
            writer.record(RM_LOGICALMSG, 0, &long_data(&[1; 6_000]));
        }
        let mut bytes = writer.bytes().to_vec();
        bytes.resize(2 << 20, 0);
        bytes
    }

    fn met(data: &Path, wal: &[u8]) -> Vec<Obstacle> {
        let Some(mut walk) = before(data, name(2, 4), MIB) else {
            return Vec::new();
        };
        walk.update(&wal[1 << 20..]);
        let all = walk.obstacles().all().iter();
        all.map(|met| met.obstacle.clone()).collect()
    }

    #[test]
    fn fault_124_a_record_of_any_length_is_met_across_the_boundary() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("pg_wal");
        std::fs::create_dir(&folder).unwrap();
        for (left_bytes, location_bytes) in [(0, 10), (40, 900), (500, 900), (880, 900)] {
            let location = format!("/{}", "x".repeat(location_bytes));
            let wal = crossing(left_bytes, &location);
            let place = |timeline| folder.join(name(timeline, 3).to_string());
            std::fs::write(place(1), &wal[..1 << 20]).unwrap();
            let location = location.into_bytes();
            let obstacle = [Obstacle::Tablespace { oid: 99, location }];
            assert_eq!(met(home.path(), &wal), obstacle, "{left_bytes}");
            // A name that holds old WAL, and one that is not whole, are passed over.
            std::fs::write(place(2), &wal[1 << 20..]).unwrap();
            assert_eq!(met(home.path(), &wal), obstacle, "{left_bytes}");
            std::fs::write(place(2), "short").unwrap();
            assert_eq!(met(home.path(), &wal), obstacle, "{left_bytes}");
            std::fs::remove_file(place(2)).unwrap();
        }
        std::fs::remove_file(folder.join(name(1, 3).to_string())).unwrap();
        assert!(before(home.path(), name(2, 4), MIB).is_none());
    }
}
