//! What a drill's server has reached, read from the files that its opening left.
//! Never asks the server. Invariant: the end is that of the last record it replayed.

use std::path::Path;

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::names::{Lsn, TimelineId, WalFileName};

use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::layout;
use crate::standby::last_commit::Replayed;
use crate::store::ArchiveReader;
use crate::wal::history::History;

/// What was reached.
pub(super) struct ReachedEnd {
    /// The timeline that was replayed.
    pub timeline: TimelineId,
    /// The end of its last record.
    pub end: Lsn,
    /// When the last commit before that happened, in microseconds since 1970, if there is one near; or why that is
    /// unknown.
    pub commit_us: std::result::Result<Option<i64>, String>,
    /// Of the timeline that the server opened.
    pub history: History,
}

/// Reads it in a data directory whose server has opened.
pub(super) fn of(data: &Path, archive: &ArchiveReader) -> Result<ReachedEnd> {
    let pg_wal = data.join(layout::PG_WAL);
    let history = newest_history(&pg_wal)?;
    let ancestors = history.ancestors();
    let Some(parent) = ancestors.last() else {
        return Err(CommandError::retry("the new timeline has no history"));
    };
    let (timeline, end) = (parent.timeline, parent.switch_point);
    let replayed = Replayed {
        archive,
        pg_wal,
        history: &history,
        size: archive.binding().segment_size,
    };
    let commit_us = replayed.last_commit_us(end);
    let commit_us =
        commit_us.map_err(|error| format!("the time of the last commit is unknown: {error}"));
    Ok(ReachedEnd {
        timeline,
        end,
        commit_us,
        history,
    })
}

/// Opening begins the highest timeline there is (`findNewestTimeLine`).
fn newest_history(pg_wal: &Path) -> Result<History> {
    let mut newest = None;
    for entry in std::fs::read_dir(pg_wal).at(Kind::Retry, "list", pg_wal)? {
        let name = entry.at(Kind::Retry, "list", pg_wal)?.file_name();
        if let Some(Ok(WalFileName::History(timeline))) = name.to_str().map(str::parse) {
            newest = newest.max(Some(timeline));
        }
    }
    let Some(timeline) = newest else {
        let pg_wal = pg_wal.display();
        return Err(CommandError::retry(format!(
            "{pg_wal} has no history of a new timeline"
        )));
    };
    let path = pg_wal.join(WalFileName::History(timeline).to_string());
    let text = files::read_at_most(&path, SMALL_FILE_BYTES_MAX).at(Kind::Retry, "read", &path)?;
    let parsed = History::parse(timeline, &text);
    parsed.map_err(|fault| CommandError::retry(format!("read {}", path.display())).because(fault))
}
