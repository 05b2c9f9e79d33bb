//! Records that create a tablespace, changed into ones that create it in place: below the data directory, wherever that is.
//! Never changes a record's length. Invariant: only the first byte of the location and the checksum become others, and
//! changing a record twice is changing it once.
//!
//! PostgreSQL takes an empty location for "in place" from 13.8, 14.5 and 15 on; older ones end with an error there. Where
//! `pg_tblspc` has a link of that OID already, replay follows it.

use walmgr_protocol::names::{Lsn, WalSegmentSize};

use super::commit::main_data;
use super::obstacle::{INFO_MASK, OBSTACLE_BYTES_MAX, RM_TBLSPC, XLOG_TBLSPC_CREATE};
use super::page::{PAGE_BYTES, header_bytes};
use super::record::{CHECKED_HEADER_BYTES, RECORD_HEADER_BYTES, RecordHeader, read_record};

/// The change of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InPlace {
    /// The tablespace.
    pub(crate) oid: u32,
    /// Where it would have been; empty if the record was changed before.
    pub(crate) location: Vec<u8>,
    /// The bytes that become others, and where they lie.
    pub(crate) changes: Vec<(Lsn, u8)>,
}

/// Whether the record with this header creates a tablespace.
pub(crate) fn creates_tablespace(header: &[u8; RECORD_HEADER_BYTES]) -> bool {
    let header = RecordHeader::decode(header);
    header.rmid == RM_TBLSPC && header.info & INFO_MASK == XLOG_TBLSPC_CREATE
}

/// The header of the record at `lsn`, unless it is cut off.
pub(crate) fn header_at<E>(
    lsn: Lsn,
    size: WalSegmentSize,
    read_at: impl FnMut(Lsn, &mut [u8]) -> Result<usize, E>,
) -> Result<Option<[u8; RECORD_HEADER_BYTES]>, E> {
    let mut header = [0; RECORD_HEADER_BYTES];
    let filled = read_record(lsn, size, &mut header, read_at)?;
    Ok((filled == header.len()).then_some(header))
}

/// How the record at `lsn` is changed; `None` if it creates no tablespace, or is cut off. `read_at` as in
/// [`read_record`].
pub(crate) fn change_of<E>(
    lsn: Lsn,
    size: WalSegmentSize,
    mut read_at: impl FnMut(Lsn, &mut [u8]) -> Result<usize, E>,
) -> Result<Option<InPlace>, E> {
    let Some(header) = header_at(lsn, size, &mut read_at)? else {
        return Ok(None);
    };
    let total_bytes = usize::try_from(RecordHeader::decode(&header).total_bytes);
    let total_bytes = total_bytes.unwrap_or(usize::MAX);
    if !creates_tablespace(&header)
        || !(RECORD_HEADER_BYTES..=OBSTACLE_BYTES_MAX).contains(&total_bytes)
    {
        return Ok(None);
    }
    let mut record = vec![0; total_bytes];
    let filled = read_record(lsn, size, &mut record, &mut read_at)?;
    Ok((filled == total_bytes)
        .then(|| change(lsn, size, &record))
        .flatten())
}

fn change(lsn: Lsn, size: WalSegmentSize, record: &[u8]) -> Option<InPlace> {
    let (oid, location) = main_data(record)?.split_first_chunk()?;
    let end = location.iter().position(|byte| *byte == 0)?;
    let at = record.len() - location.len();
    let mut changed = record.to_vec();
    changed[at] = 0;
    let body = crc32c::crc32c(&changed[RECORD_HEADER_BYTES..]);
    let crc = crc32c::crc32c_append(body, &changed[..CHECKED_HEADER_BYTES]).to_le_bytes();
    let crc = (CHECKED_HEADER_BYTES..).zip(crc);
    let changes = crc.chain([(at, 0)]);
    Some(InPlace {
        oid: u32::from_le_bytes(*oid),
        location: location[..end].to_vec(),
        changes: changes
            .map(|(offset, byte)| (place_of(lsn, offset, size), byte))
            .collect(),
    })
}

/// Where a byte of the record at `lsn` lies, the headers of pages counted.
fn place_of(lsn: Lsn, offset: usize, size: WalSegmentSize) -> Lsn {
    let (mut position, mut left) = (lsn.0, offset as u64);
    loop {
        if position.is_multiple_of(PAGE_BYTES) {
            position += header_bytes(Lsn(position), size) as u64;
        }
        let on_page = PAGE_BYTES - position % PAGE_BYTES;
        if left < on_page {
            return Lsn(position + left);
        }
        left -= on_page;
        position += on_page;
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use walmgr_protocol::names::SystemId;

    use super::*;
    use crate::wal::obstacle::{Met, Obstacle};
    use crate::wal::record::RecordInfo;
    use crate::wal::scan::{ScanStep, Scanner};
    use crate::wal::writer::WalWriter;

    const MIB: WalSegmentSize = WalSegmentSize::new(1 << 20).expect("a size PostgreSQL has");
    const START: Lsn = Lsn(3 << 20);

    fn created(location: &str) -> Vec<u8> {
        let data = [&99_u32.to_le_bytes()[..], location.as_bytes(), &[0]].concat();
        let len = u32::try_from(data.len()).unwrap().to_le_bytes();
        [&[254][..], &len, &data].concat()
    }

    /// WAL in which a tablespace is created this far before the end of a segment, and that record.
    fn crossing(left_bytes: usize, location: &str) -> (Vec<u8>, RecordInfo) {
        let segment = "000000010000000000000003".parse().unwrap();
        let mut writer = WalWriter::new(segment, MIB, SystemId(7), 15);
        while writer.bytes().len() < (1 << 20) - left_bytes {
            let left_bytes = (1 << 20) - left_bytes - writer.bytes().len();
            writer.record(10, 0, &vec![1; if left_bytes > 9_000 { 6_000 } else { 8 }]);
        }
        let record = writer.record(RM_TBLSPC, XLOG_TBLSPC_CREATE, &created(location));
        writer.record(10, 0, &[1; 40]);
        (writer.bytes().to_vec(), record)
    }

    fn reader(wal: &[u8]) -> impl FnMut(Lsn, &mut [u8]) -> Result<usize, Infallible> {
        |lsn, piece| {
            let from = usize::try_from(lsn.0 - START.0).unwrap().min(wal.len());
            let read_bytes = piece.len().min(wal.len() - from);
            piece[..read_bytes].copy_from_slice(&wal[from..from + read_bytes]);
            Ok(read_bytes)
        }
    }

    fn walked(wal: &[u8]) -> (Vec<Met>, Lsn) {
        let mut scanner = Scanner::new(START, MIB);
        let mut rest = wal;
        while let ScanStep::Record(_) = scanner.advance(&mut rest) {}
        (scanner.obstacles().all().to_vec(), scanner.valid_end())
    }

    #[test]
    fn fault_173_a_changed_record_is_valid_wherever_it_is_cut() {
        let long = format!("/{}", "x".repeat(1_000));
        let lefts = (0..48).step_by(8).chain((48..1_120).step_by(64));
        for location in ["/srv/space", &long] {
            for left_bytes in lefts.clone() {
                let (mut wal, record) = crossing(left_bytes, location);
                let before = wal.clone();
                let end = walked(&wal).1;
                let change = change_of(record.lsn, MIB, reader(&wal)).unwrap().unwrap();
                assert_eq!((change.oid, &*change.location), (99, location.as_bytes()));
                for (lsn, byte) in &change.changes {
                    wal[usize::try_from(lsn.0 - START.0).unwrap()] = *byte;
                }
                let differ = before.iter().zip(&wal).filter(|(one, other)| one != other);
                assert!((2..=5).contains(&differ.count()), "{left_bytes}");
                let in_place = Obstacle::Tablespace {
                    oid: 99,
                    location: Vec::new(),
                };
                let met = Met {
                    lsn: record.lsn,
                    obstacle: in_place,
                };
                assert_eq!(walked(&wal), (vec![met], end), "{left_bytes}");
                let again = change_of(record.lsn, MIB, reader(&wal)).unwrap().unwrap();
                assert_eq!(again.changes, change.changes);
                assert!(again.location.is_empty());
            }
        }
    }

    #[test]
    fn what_is_cut_off_or_is_another_record_is_not_changed() {
        let (wal, record) = crossing(400, "/srv/space");
        let at = usize::try_from(record.lsn.0 - START.0).unwrap();
        for end in at..at + record.tot_len as usize {
            let change = change_of(record.lsn, MIB, reader(&wal[..end])).unwrap();
            assert_eq!(change, None, "{end}");
        }
        assert_eq!(change_of(record.end, MIB, reader(&wal)), Ok(None));
        let mut lengthy = wal;
        lengthy[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(change_of(record.lsn, MIB, reader(&lengthy)), Ok(None));
    }
}
