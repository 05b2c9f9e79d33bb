//! Questions about the backup sets: which there are, and what is in one.
//! Never changes anything. Invariant: a set that is described is held meanwhile, so no rotation removes it.

use std::sync::Arc;

use walmgr_protocol::limits::LISTED_BACKUPS_MAX;
use walmgr_protocol::message::fetch::{
    Backups, Fetch, ListBackups, ListedSet, NotFound, SetDescription, SetLabel, Tablespace,
};
use walmgr_protocol::message::{Error, ErrorCode, Message};

use crate::pg::backup_label::BackupLabel;
use crate::pg::conf::ServerSettings;
use crate::receiver::cluster::Cluster;
use crate::receiver::refusal;
use crate::store::sets::SetError;
use crate::store::{ArchiveReader, RealDisk, StoreError};
use crate::wal::obstacle::{Demands, Obstacle};

/// The answer to a question about the sets.
pub fn answer(cluster: &Cluster, question: &Fetch) -> Message {
    let answered = match question {
        Fetch::ListBackups(request) => list(cluster, request),
        Fetch::DescribeSet(name) => describe(cluster, name),
        other => {
            let text = format!(
                "{} has no place on channel 0",
                Message::Fetch(other.clone()).name()
            );
            return Message::Error(Error::connection(ErrorCode::Misbehaved, text, ""));
        }
    };
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
    let listed = listed.into_iter().take(limit).map(|set| {
        let ahead = archive.as_ref().zip(set.label.as_ref().ok());
        let ahead = ahead.and_then(|(archive, label)| archive.ahead_of(label).ok());
        ListedSet {
            name: set.name.to_string(),
            label: set
                .readable_label(&ahead.unwrap_or_default())
                .map(|it| label(&it)),
        }
    });
    let sets = listed.collect();
    Ok(Fetch::Backups(Backups { sets, more }))
}

fn describe(cluster: &Cluster, name: &str) -> Result<Fetch, Error> {
    use std::os::unix::ffi::OsStringExt;
    let Some(binding) = cluster.archive.binding() else {
        return Err(refusal::to_reader(&StoreError::NotBound));
    };
    let sets = cluster.open_sets()?;
    let Ok(name) = sets.newest().parse_sibling(name) else {
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
    let archive = ArchiveReader::open(&cluster.completed_wals, Arc::new(RealDisk)).ok();
    let met = archive.and_then(|archive| archive.ahead_of(held.label()).ok());
    let met = met.unwrap_or_default();
    let loads = ServerSettings::of(held.path(), None).may_load_libraries();
    let end = met.iter().find(|met| met.obstacle.ends(loads));
    let demands = met.iter().filter_map(|met| match met.obstacle {
        Obstacle::Settings(demands) => Some(demands),
        _ => None,
    });
    let demands = demands.fold(Demands::default(), Demands::or);
    Ok(Fetch::Set(SetDescription {
        name: name.to_string(),
        label: label(held.label()),
        stream_bytes: content.stream_bytes,
        bytes: content.bytes,
        recovery_end: end.map(|met| met.lsn),
        demands: demands
            .each()
            .map(|(_, needed)| u32::try_from(needed).unwrap_or_default()),
        tablespaces: tablespaces.collect(),
    }))
}

fn label(label: &BackupLabel) -> SetLabel {
    SetLabel {
        timestamp: label.start_time.clone(),
        label: label.label.clone(),
        first_segment: label.first_segment,
        start: label.start,
    }
}
