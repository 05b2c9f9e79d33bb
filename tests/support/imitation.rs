//! A data directory and WAL that no server wrote, for a cluster of any identity and size.
//! Never given to a real server. Invariant: walmgr cannot tell them from the real ones.

use std::path::Path;

use walmgr::test_support::wal::record::{RM_XLOG, XLOG_NOOP};
use walmgr::test_support::wal::writer::WalWriter;
use walmgr_protocol::message::ClusterIdentity as Facts;
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId};

use super::place::give_to_server;

#[path = "../../src/pg/fixtures.rs"]
mod fixtures;

/// Makes a directory that walmgr takes for the data directory of such a cluster.
pub fn write_data_directory(data: &Path, facts: &Facts, timeline: u32) {
    let major = u8::try_from(facts.postgres_major).unwrap();
    for folder in ["global", "pg_wal"] {
        std::fs::create_dir_all(data.join(folder)).unwrap();
    }
    std::fs::write(data.join("PG_VERSION"), format!("{major}\n")).unwrap();
    std::fs::write(data.join("postgresql.conf"), "").unwrap();
    let control = control_file(major, facts, timeline);
    std::fs::write(data.join("global/pg_control"), control).unwrap();
    give_to_server(data);
}

/// A real control file with the fields that matter replaced (`src/include/catalog/pg_control.h`).
fn control_file(major: u8, facts: &Facts, timeline: u32) -> Vec<u8> {
    let mut file = fixtures::control_file(major);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &facts.system_id.0.to_le_bytes());
    put(48, &timeline.to_le_bytes());
    put(52, &timeline.to_le_bytes());
    put(228, &facts.segment_size.bytes_u32().to_le_bytes());
    let crc_at = if major >= 18 { 292 } else { 288 };
    let crc = crc32c::crc32c(&file[..crc_at]);
    file[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    file
}

/// A whole segment of valid WAL of such a cluster. It follows the one before, whatever salt that has: the
/// last record of each begins at the same place.
pub fn segment_of(facts: &Facts, timeline: TimelineId, number: u64, salt: &str) -> Vec<u8> {
    const PAGE: usize = 8192;
    const HEADER: usize = 24;
    let size = facts.segment_size;
    let segment_bytes = usize::try_from(size.bytes()).unwrap();
    let name = SegmentName::from_number(timeline, number, size);
    let major = u8::try_from(facts.postgres_major).unwrap();
    let last_begins = segment_bytes - 2 * PAGE;
    let start = name.start(size).unwrap();
    let previous = Lsn((start.0 + HEADER as u64).saturating_sub(2 * PAGE as u64));
    let mut writer = WalWriter::new(name, size, facts.system_id, major).following(previous);
    let words = format!("{salt} {number} ").repeat(40);
    while writer.bytes().len() + 4 * PAGE < segment_bytes {
        writer.record(RM_XLOG, XLOG_NOOP, words.as_bytes());
    }
    let begins = writer.bytes().len();
    let headers = last_begins / PAGE - begins.div_ceil(PAGE);
    let body = last_begins - begins - HEADER * (headers + 1);
    writer.record(RM_XLOG, XLOG_NOOP, &vec![0x5A; body]);
    assert_eq!(writer.bytes().len(), last_begins);
    writer.fill_segment();
    writer.bytes().to_vec()
}
