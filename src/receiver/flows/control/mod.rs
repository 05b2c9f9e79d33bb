//! Requests about the archive itself, on channel 0: bind it to a cluster, describe it, list it.
//! Never changes a stored file. Runs on a blocking thread, because it reads the disk.

mod sets;

use std::sync::Arc;

use walmgr_protocol::limits::{LIST_ENTRIES_MAX, OVERVIEW_MASTERS_MAX};
use walmgr_protocol::message::fetch::Fetch;
use walmgr_protocol::message::{
    ClusterIdentity, Error, ErrorCode, List, ListRequest, Message, Overview, Scope, SetupDone,
};

use crate::audit::{AuditEvent, AuditOutcome};
use crate::receiver::cluster::ServedCluster;
use crate::receiver::cluster::open_store::OpenStore;
use crate::receiver::link::{ConnectionEnd, Link};
use crate::receiver::peer::{AuditedPeer, Peer};
use crate::receiver::refusal;
use crate::receiver::worker::{self, AwaitedWork};
use crate::store::survey::survey;
use crate::store::{Binding, Disk, RealDisk, StoreError};
use crate::transport::authorized_keys::Right;

/// A request arrived.
pub(crate) async fn received(link: &mut Link, request: Message) -> Result<(), ConnectionEnd> {
    let rights = link.peer.rights;
    let (allowed, needed) = match request {
        Message::Setup => (rights.push, Right::Push),
        Message::Fetch(_) => (rights.read, Right::Read),
        _ => (rights.any(), Right::Read),
    };
    if !allowed {
        let refusal = link.lacks_right(request.name(), needed);
        return link.refuse(0, refusal).await;
    }
    if let Message::Fetch(Fetch::DescribeSet(question)) = request {
        if link.asking.is_busy() {
            let text = "the receiver is still answering an earlier question";
            let busy = Error::channel(ErrorCode::Busy, text, "wait for it");
            return link.refuse(0, busy).await;
        }
        let answer = sets::ask(link.served.clone(), &link.peer.key(), question);
        link.asking.begin(answer);
        return Ok(());
    }
    let connections = link.slot.connections();
    let answer = answer(&link.served, &link.peer, connections, request).await;
    link.heard();
    match answer {
        Message::Error(error) if error.scope == Scope::Connection => {
            Err(ConnectionEnd::Hangup(error))
        }
        answer => link.send(0, &answer).await,
    }
}

/// The answer to a request, which may be a refusal.
async fn answer(
    served: &ServedCluster,
    peer: &Peer,
    connections: usize,
    request: Message,
) -> Message {
    let (shared, theirs, by) = (served.clone(), peer.cluster, peer.audited());
    let working = worker::once(
        &served.store.workforce,
        AwaitedWork::Request.words(),
        move || match request {
            Message::Setup => set_up(&shared, theirs, &by),
            Message::OverviewRequest => overview(&shared, connections),
            Message::ListRequest(request) => list(&shared.store, &request),
            Message::Fetch(Fetch::ListBackups(request)) => {
                Ok(sets::answer(&shared.cluster, &request))
            }
            other => Ok(unexpected(&other)),
        },
    );
    match working.await {
        Ok(Ok(message)) => message,
        Ok(Err(error)) => {
            // Binding syncs too.
            if !served.store.check_health() {
                tracing::warn!("a request of {peer} failed: {error}");
            }
            Message::Error(refusal::of(&error))
        }
        Err(error) => Message::Error(error),
    }
}

fn set_up(
    served: &ServedCluster,
    theirs: Option<ClusterIdentity>,
    by: &AuditedPeer,
) -> Result<Message, StoreError> {
    let Some(theirs) = theirs else {
        return Ok(unexpected(&Message::Setup));
    };
    let Ok(postgres_major) = u8::try_from(theirs.postgres_major) else {
        let found = format!("there is no PostgreSQL {}", theirs.postgres_major);
        return Ok(Message::Error(Error::channel(
            ErrorCode::ForeignCluster,
            found,
            "",
        )));
    };
    let newly_bound = served.store.archive.binding().is_none();
    served.store.archive.bind(&Binding {
        system_id: theirs.system_id,
        segment_size: theirs.segment_size,
        postgres_major,
    })?;
    if newly_bound {
        tracing::info!("the archive now belongs to {theirs}");
        let bound = AuditEvent::Bound {
            system_id: theirs.system_id.to_string(),
            postgres_major: theirs.postgres_major.into(),
            segment_bytes: theirs.segment_size.bytes_u32(),
        };
        (served.cluster.audit).record(&by.who, &AuditOutcome::Done, &bound);
        served.store.keep_index();
    }
    let completed_wals = served.cluster.completed_wals.display().to_string();
    Ok(Message::SetupDone(SetupDone {
        newly_bound,
        completed_wals,
    }))
}

fn overview(served: &ServedCluster, connections: usize) -> Result<Message, StoreError> {
    let ServedCluster { cluster, store } = served;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let full_backup = cluster.full_backup.as_deref();
    let found = survey(&cluster.folders, full_backup, &disk, store.partial_end())?;
    let (masters, masters_count) = cluster.masters.some(usize::from(OVERVIEW_MASTERS_MAX));
    Ok(Message::Overview(Box::new(Overview {
        trouble: store.trouble(),
        shipped_by: cluster.writer.taken_by().unwrap_or_default(),
        masters,
        masters_count,
        connections: u32::try_from(connections).unwrap_or(u32::MAX),
        ..found
    })))
}

fn list(store: &OpenStore, request: &ListRequest) -> Result<Message, StoreError> {
    let limit = usize::from(request.limit.min(LIST_ENTRIES_MAX));
    let mut found = store.archive.list(request.after, limit + 1)?;
    let more = found.len() > limit;
    found.truncate(limit);
    let entries = found
        .into_iter()
        .map(|entry| (entry.name, entry.len))
        .collect();
    Ok(Message::List(List { entries, more }))
}

fn unexpected(message: &Message) -> Message {
    Message::Error(Error::connection(
        ErrorCode::Misbehaved,
        format!("{} has no place on channel 0", message.name()),
        "",
    ))
}
