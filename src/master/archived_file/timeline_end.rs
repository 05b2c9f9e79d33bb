//! The segment in which a timeline ends: PostgreSQL names it as a whole one where `archive_mode` is `always`.
//! Never decides by a name alone. Invariant: a segment whose records lead to its end goes under its own name.
//!
//! A server that is promoted archives this segment as `NAME.partial`. A standby that follows the new timeline has the
//! same segment, offers it as `NAME` (`WalReceiverMain`), and would offer it for ever: it holds the WAL up to
//! the switch point, and behind that what the file held when it was another segment. What counts of it is the
//! beginning of the new timeline's segment.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::names::{SegmentName, WalFileName};

use crate::error::{IoContext, Kind, Result};
use crate::files;
use crate::master::cluster::ClusterFacts;
use crate::wal::history::History;
use crate::wal::segment::{ExpectedSegment, SegmentCheck, SegmentFault, Verify};

const PIECE_BYTES: usize = 1 << 20;

/// What a segment of this cluster has to be like.
pub(super) fn expected(facts: &ClusterFacts) -> ExpectedSegment {
    ExpectedSegment {
        system_id: facts.cluster.system_id,
        segment_size: facts.cluster.segment_size,
        postgres_major: u8::try_from(facts.cluster.postgres_major).ok(),
    }
}

/// Whether the segment's timeline ends within it, so that its records do not lead to its end.
pub(super) fn is_in(
    file: &File,
    segment: SegmentName,
    facts: &ClusterFacts,
    pg_wal: &Path,
) -> Result<bool> {
    Ok(is_left_within(segment, facts, pg_wal)? && !leads_to_its_end(file, segment, facts)?)
}

/// Whether a history in `pg_wal` says that another timeline left this one within the segment.
fn is_left_within(segment: SegmentName, facts: &ClusterFacts, pg_wal: &Path) -> Result<bool> {
    let size = facts.cluster.segment_size;
    let Some(start) = segment.start(size) else {
        return Ok(false);
    };
    let entries = std::fs::read_dir(pg_wal).at(Kind::Retry, "list", pg_wal)?;
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    for name in names {
        let Ok(WalFileName::History(timeline)) = name.parse() else {
            continue;
        };
        // PostgreSQL may remove it meanwhile, and what nobody can read says nothing.
        let text = files::read_at_most(&pg_wal.join(&name), SMALL_FILE_BYTES_MAX + 1);
        let history = text
            .ok()
            .and_then(|text| History::parse(timeline, &text).ok());
        let ancestors = history.iter().flat_map(History::ancestors);
        let mut own = ancestors.filter(|ancestor| ancestor.timeline == segment.timeline());
        if own.any(|own| own.switch_point > start && own.switch_point.0 - start.0 < size.bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn leads_to_its_end(file: &File, segment: SegmentName, facts: &ClusterFacts) -> Result<bool> {
    let name = WalFileName::Segment(segment);
    let mut check = SegmentCheck::new(name, &expected(facts), Verify::Records);
    let mut piece = vec![0; PIECE_BYTES];
    let mut offset = 0;
    while offset < facts.cluster.segment_size.bytes() {
        file.read_exact_at(&mut piece, offset).at(
            Kind::Retry,
            "read",
            Path::new(&segment.to_string()),
        )?;
        if let Err(fault) = check.update(&piece) {
            return Ok(is_foreign(&fault));
        }
        offset += PIECE_BYTES as u64;
    }
    Ok(check.finish().is_ok())
}

/// What is of another cluster is refused in the words for that.
const fn is_foreign(fault: &SegmentFault) -> bool {
    matches!(fault, SegmentFault::Foreign { .. })
}
