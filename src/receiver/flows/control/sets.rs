//! Questions about the backup sets: which there are, and what is in one.
//! Never changes anything. Invariant: a set that is described is held meanwhile, so no rotation removes it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use walmgr_protocol::limits::{LISTED_BACKUPS_MAX, TARGET_SEARCH_S_MAX};
use walmgr_protocol::message::fetch::{
    Backups, Fetch, ListBackups, ListedSet, NotFound, SetDescription, SetLabel, Tablespace,
};
use walmgr_protocol::message::reach::{RecoveryEnd, SetQuestion, TargetVerdict};
use walmgr_protocol::message::{Error, ErrorCode, Message};

use crate::error::CommandError;
use crate::pg::backup_label::BackupLabel;
use crate::pg::conf::ServerSettings;
use crate::pg::recovery::TargetTimeline;
use crate::receiver::cluster::{Cluster, ServedCluster};
use crate::receiver::peer::PeerKey;
use crate::receiver::refusal;
use crate::receiver::shares::SharedPlaces;
use crate::receiver::worker::{self, AwaitedWork};
use crate::store::sets::{HeldSet, SetError};
use crate::store::{ArchiveReader, RealDisk, RecoveryReach, StoreError, WantedSet};
use crate::wal::obstacle::{Demands, Obstacle};

/// The answer to the question which sets there are.
pub(super) fn answer(cluster: &Cluster, request: &ListBackups) -> Message {
    told(list(cluster, request))
}

/// Begins to look for the answer to a question about one set, which may take a walk through much WAL: on a thread of
/// its own, as one of its peer's fetches. Dropping the returned value ends it, and so does
/// [`TARGET_SEARCH_S_MAX`].
pub(super) fn ask(
    served: ServedCluster,
    key: &PeerKey,
    question: SetQuestion,
) -> oneshot::Receiver<Result<Message, Error>> {
    let place = match served.cluster.fetches.take(key) {
        Ok(place) => place,
        Err(none) => {
            let (teller, answer) = oneshot::channel();
            // Whoever asked may be gone; then nobody needs to know.
            let _ = teller.send(Err(SharedPlaces::Fetches.all_taken(none)));
            return answer;
        }
    };
    let workforce = served.store.workforce.clone();
    let words = AwaitedWork::SetQuestion.words();
    worker::ask(&workforce, words, move |is_abandoned| {
        let _place = place;
        let (begun, most) = (Instant::now(), Duration::from_secs(TARGET_SEARCH_S_MAX));
        let goes_on = || !is_abandoned() && begun.elapsed() < most;
        told(describe(&served, &question, &goes_on))
    })
}

fn told(answered: Result<Fetch, Error>) -> Message {
    match answered {
        Ok(answer) => Message::Fetch(answer),
        Err(error) => {
            tracing::warn!("a question about the backup sets failed: {}", error.message);
            Message::Error(error)
        }
    }
}

fn list(cluster: &Cluster, request: &ListBackups) -> Result<Fetch, Error> {
    let sets = cluster.open_sets()?;
    let mut listed = sets
        .list()
        .map_err(|error| refusal::set_to_reader(&error))?;
    if !request.after.is_empty() {
        let after = sets.newest().parse_sibling(&request.after);
        let after =
            after.map_err(|error| Error::channel(ErrorCode::Malformed, error.to_string(), ""))?;
        listed.retain(|set| set.name > after);
    }
    let limit = usize::from(request.limit.min(LISTED_BACKUPS_MAX));
    let more = listed.len() > limit;
    let archive = ArchiveReader::open(&cluster.completed_wals, Arc::new(RealDisk)).ok();
    let newest = archive.as_ref().and_then(ArchiveReader::newest_line);
    let newest = archive.as_ref().zip(newest.as_ref());
    let listed = listed.into_iter().take(limit).map(|set| {
        let ahead = archive.as_ref().zip(set.label.as_ref().ok());
        let ahead = ahead.and_then(|(archive, label)| archive.ahead_of(label).ok());
        let of_no_use_on = newest.and_then(|(archive, line)| {
            set.off_line(archive, line)?;
            Some(line.newest_timeline())
        });
        ListedSet {
            name: set.name.to_string(),
            details: set.details(archive.as_ref()),
            label: set
                .readable_label(&ahead.unwrap_or_default(), of_no_use_on)
                .map(|it| label(&it)),
        }
    });
    let sets = listed.collect();
    Ok(Fetch::Backups(Backups { sets, more }))
}

fn describe(
    served: &ServedCluster,
    question: &SetQuestion,
    goes_on: &dyn Fn() -> bool,
) -> Result<Fetch, Error> {
    use std::os::unix::ffi::OsStringExt;
    let Some(binding) = served.store.archive.binding() else {
        return Err(refusal::to_reader(&StoreError::NotBound));
    };
    let sets = served.cluster.open_sets()?;
    let Ok(name) = sets.newest().parse_sibling(&question.name) else {
        return Ok(Fetch::NotFound(NotFound::NoSuchSet));
    };
    let held = match sets.hold(&name) {
        Err(SetError::Absent { .. }) => return Ok(Fetch::NotFound(NotFound::NoSuchSet)),
        held => held.map_err(|error| refusal::set_to_reader(&error))?,
    };
    let content = held.content(binding.postgres_major);
    let content = content.map_err(|error| refusal::set_to_reader(&error))?;
    let tablespaces = content.tablespaces.into_iter().map(|(oid, space)| {
        let (bytes, path) = (space.bytes, space.location.into_os_string().into_vec());
        Tablespace { oid, bytes, path }
    });
    let found = ahead(&served.cluster, &held, question, goes_on);
    let (recovery_end, demands, verdict) = found.unwrap_or_else(|error| {
        let verdict = TargetVerdict::NoWay(error.to_string());
        (None, Demands::default(), verdict)
    });
    Ok(Fetch::Set(SetDescription {
        name: name.to_string(),
        label: label(held.label()),
        stream_bytes: content.stream_bytes,
        bytes: content.bytes,
        recovery_end,
        demands: demands
            .each()
            .map(|(_, needed)| u32::try_from(needed).unwrap_or_default()),
        verdict,
        tablespaces: tablespaces.collect(),
    }))
}

/// What a recovery of the set meets along the timeline that was asked for, and whether it gets to the target.
fn ahead(
    cluster: &Cluster,
    held: &HeldSet,
    question: &SetQuestion,
    goes_on: &dyn Fn() -> bool,
) -> Result<(Option<RecoveryEnd>, Demands, TargetVerdict), CommandError> {
    let archive = ArchiveReader::open(&cluster.completed_wals, Arc::new(RealDisk));
    let archive =
        archive.map_err(|error| CommandError::retry("open the archive").because(error))?;
    let loads_libraries = |set: &Path| ServerSettings::of(set, None).may_load_libraries();
    let loads = loads_libraries(held.path());
    let timeline = TargetTimeline::from(question.timeline);
    let reach = RecoveryReach::of(&archive, held.path(), held.label(), timeline, loads)?;
    let demands = reach
        .obstacles()
        .iter()
        .filter_map(|met| match met.obstacle {
            Obstacle::Settings(demands) => Some(demands),
            _ => None,
        });
    let demands = demands.fold(Demands::default(), Demands::or);
    let verdict = match &question.target {
        None => TargetVerdict::Fits,
        Some(target) => {
            let target = target.into();
            let verdict = reach.judge(&target, goes_on)?;
            let wanted = WantedSet {
                target: &target,
                timeline,
                loads_libraries: &loads_libraries,
                goes_on,
            };
            let TargetVerdict::OutOfReach(range, _) = verdict else {
                return Ok((reach.ended_by(), demands, verdict));
            };
            let sets = cluster.open_sets();
            let other = sets
                .ok()
                .and_then(|sets| wanted.find_other(&archive, &sets, held.name()));
            TargetVerdict::OutOfReach(range, other.map(|set| set.to_string()))
        }
    };
    Ok((reach.ended_by(), demands, verdict))
}

fn label(label: &BackupLabel) -> SetLabel {
    SetLabel {
        timestamp: label.start_time.clone(),
        label: label.label.clone(),
        first_segment: label.first_segment,
        start: label.start,
    }
}
