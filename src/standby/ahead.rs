//! What lies ahead of a server that replays and may keep it from going on, in all WAL that is here.
//! Never looks at the server. Invariant: nothing is named that the server does not read on its way.

use walmgr_protocol::message::reach::RecoveryEnd;
use walmgr_protocol::names::{Lsn, TimelineId};

use crate::error::{CommandError, Kind};
use crate::pg::data_directory::DataDirectory;
use crate::pg::in_reach;
use crate::pg::location;
use crate::store::{ArchiveReader, PartialWals, Route, StoreError};
use crate::wal::obstacle::{Demands, Met, Obstacle};

/// The obstacles ahead of a server that stands at this timeline and LSN, in the order of the WAL. They come
/// from the notes beside finished segments and from the records of `partials`, which are read. The server is
/// taken to follow the newest timeline that came from its own.
///
/// `at` is a lower bound from `pg_control`, so the server may have passed some of the obstacles.
pub(crate) fn find(
    archive: &ArchiveReader,
    partials: Option<&PartialWals>,
    at: (TimelineId, Lsn),
) -> Result<Vec<Met>, StoreError> {
    // Older than the look at the archive, where a segment may be finished any moment.
    let partials = match partials {
        Some(partials) => partials.obstacles(&|segment| archive.scanner_before(segment))?,
        None => Vec::new(),
    };
    let route = Route::of_server(archive, &[], at)?;
    let mut found = route.obstacles(at.1)?;
    for (segment, obstacles) in partials {
        if let Some((_, end)) = route.line().part_of(segment) {
            found.extend(obstacles.between(at.1, end).cloned());
        }
    }
    found.sort_by_key(|met| met.lsn);
    found.dedup();
    Ok(found)
}

/// Why a server with this data directory does not get past these, or must not; the first of them.
pub(crate) fn refusal(
    data: &DataDirectory,
    loads_libraries: bool,
    met: &[Met],
) -> Option<CommandError> {
    let (data, major) = (data.path(), data.major());
    let end = in_reach::end_of(met, loads_libraries);
    let before = |met: &&Met| end.is_none_or(|end| met.lsn < end.lsn);
    let held = location::refusal(data, major, met.iter().filter(before));
    let shared = || location::shared(data);
    held.or_else(shared)
        .or_else(|| end.as_ref().map(end_of_recovery))
}

/// The refusal of a recovery that would have to get past this.
pub(crate) fn end_of_recovery(end: &RecoveryEnd) -> CommandError {
    CommandError::new(Kind::Retry, in_reach::end_text(end)).hint(in_reach::remedy(end).unwrap_or(
        "make a new backup on the master; older sets can be recovered up to that \
                point",
    ))
}

/// The settings that a hot standby needs to replay the obstacles before `to`: of each the highest value
/// that a `XLOG_PARAMETER_CHANGE` among them has. `None` if there is none: then what `pg_control`
/// says (`ControlFile::max_connections` and the next four) is all that is needed. PostgreSQL compares
/// with each of both: at its start with the control file, later with each record.
pub(crate) fn demands(met: &[Met], to: Lsn) -> Option<Demands> {
    let before = met.iter().filter(|met| met.lsn < to);
    let each = before.filter_map(|met| match met.obstacle {
        Obstacle::Settings(demands) => Some(demands),
        _ => None,
    });
    each.reduce(Demands::or)
}
