//! Looks after a cluster's store as long as it is open, and opens it again once it has retired.
//! Never serves a peer. Invariant: a store is opened again only when nobody works with the one before.
//!
//! # Why opening again is as good as a fresh start
//!
//! A failed sync leaves three things that must not be believed.
//!
//! *What the process remembers*: names, ends, positions, checksums, what was found to be records, who holds which
//! lock. All of it lies in the [`OpenStore`] or below its archive and its sets, so it goes when the last of that is
//! dropped, and the archive's `flock`, which goes last, is the proof: `Archive::open` takes it anew or fails. What
//! the [`Cluster`] keeps beside the store is about peers (who ships, who is connected, who has which place) and what
//! was bound, which is for good.
//!
//! *What the kernel says of later syncs*: it reports a failed write once, marks the page clean, and the next sync of
//! that file succeeds although the bytes are gone. So nothing that had been written and not yet acknowledged is ever
//! synced and believed: files that were on their way are removed and sent again, an incoming set is removed, and a
//! file that has its final name had been synced before it got that. A name itself is metadata, which a journal
//! either keeps or the file system is aborted over; recovery syncs the folders before it serves a name.
//!
//! *What the kernel shows on reading*: such a page still has the bytes that the disk has not. The start-up recovery
//! never looks at it: before it reads a finished or a partial segment it syncs that file and has the kernel drop its
//! copy, so it finds the records that the disk gives back, a fresh process as much as this one.
//! Acknowledged ends (`.acknowledged`) are the exception, on purpose: they are never synced, and count as long as
//! the kernel that wrote them runs, so its copy is the one to believe.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::receiver::cluster::open_store::OpenStore;
use crate::receiver::cluster::{Cluster, disk_use, rounds};
use crate::receiver::worker::{self, Workforce};
use crate::receiver::{REOPEN_LOG_INTERVAL, REOPEN_PAUSE_MAX, REOPEN_PAUSE_MIN};

/// Pause behind a panic, which would come again at once.
const PANIC_PAUSE: Duration = Duration::from_secs(60);

/// Looks after the cluster until it is dropped, or the cluster stops.
pub(crate) async fn run(cluster: Arc<Cluster>) {
    // A fault in here must not leave a store without anybody to open it again.
    while worker::contained_task("keeper", keep(&cluster))
        .await
        .is_err()
    {
        tokio::select! {
            () = tokio::time::sleep(PANIC_PAUSE) => {}
            () = cluster.stopping.cancelled() => return,
        }
    }
}

async fn keep(cluster: &Arc<Cluster>) {
    loop {
        let before = match cluster.current() {
            Some(store) => {
                tokio::select! {
                    () = look_after(cluster, &store) => {}
                    () = store.retired.cancelled() => {}
                    () = cluster.stopping.cancelled() => return,
                }
                Some(close(cluster, store).await)
            }
            // Whoever closed it was ended by a panic; the archive's lock says whether somebody is left.
            None => None,
        };
        tokio::select! {
            is_open = reopen(cluster, before.as_ref()) => match is_open {
                true => {}
                false => return,
            },
            () = cluster.stopping.cancelled() => return,
        }
    }
}

async fn look_after(cluster: &Arc<Cluster>, store: &Arc<OpenStore>) {
    tokio::join!(
        note_older_obstacles(cluster, store),
        rounds::run(cluster, store),
        disk_use::run(store)
    );
}

async fn note_older_obstacles(cluster: &Arc<Cluster>, store: &Arc<OpenStore>) {
    let _turn = cluster.census.turn_to_read().await;
    let (stopping, store_too) = (cluster.stopping.clone(), Arc::clone(store));
    let look = move || {
        let stops = || stopping.is_cancelled() || store_too.retired.is_cancelled();
        if let Err(error) = store_too.archive.note_older_obstacles(&stops) {
            tracing::warn!("cannot note which older WAL replay cannot pass: {error}");
        }
    };
    // A panic has its line in the log already.
    let _ = worker::once(&store.workforce, "look at older WAL", look).await;
}

/// A store that nobody is given any more, as long as somebody still works with it.
struct RetiredStore {
    store: Weak<OpenStore>,
    workforce: Workforce,
}

impl RetiredStore {
    /// Waits so long for the last to let go of it; says who has not.
    async fn let_go(&self, patience: Duration) -> Result<(), String> {
        // Threads first: each holds the store.
        let _ = tokio::time::timeout(patience, self.workforce.ended()).await;
        let held = self.store.strong_count();
        match held {
            0 => Ok(()),
            _ => {
                let threads = self.workforce.len();
                Err(format!(
                    "{threads} threads and {held} others have not let go of it"
                ))
            }
        }
    }
}

async fn close(cluster: &Arc<Cluster>, store: Arc<OpenStore>) -> RetiredStore {
    cluster.close(&store);
    let before = RetiredStore {
        store: Arc::downgrade(&store),
        workforce: store.workforce.clone(),
    };
    let ending = move || store.backups.end(&store.refusal());
    let _ = worker::once(&before.workforce, "backup", ending).await;
    before
}

/// Tries until it is open again; `false` when the process ends.
async fn reopen(cluster: &Arc<Cluster>, before: Option<&RetiredStore>) -> bool {
    let since = Instant::now();
    let mut pause = REOPEN_PAUSE_MIN;
    let mut said: Option<Instant> = None;
    loop {
        tokio::time::sleep(pause).await;
        let why = match try_to_open(cluster, before, pause).await {
            Ok(is_open) => return is_open,
            Err(why) => why,
        };
        if said.is_none_or(|said| said.elapsed() >= REOPEN_LOG_INTERVAL) {
            said = Some(Instant::now());
            tracing::error!(
                "the archive is closed for {} s since a sync failed, and cannot be opened again: {why}",
                since.elapsed().as_secs()
            );
        }
        pause = (pause * 2).min(REOPEN_PAUSE_MAX);
    }
}

async fn try_to_open(
    cluster: &Arc<Cluster>,
    before: Option<&RetiredStore>,
    patience: Duration,
) -> Result<bool, String> {
    if let Some(before) = before {
        before.let_go(patience).await?;
    }
    let opener = Workforce::new(cluster.span.clone(), || {});
    let this = Arc::clone(cluster);
    let opened = worker::once(&opener, "opening", move || this.reopen()).await;
    let is_open = opened.map_err(|error| error.message)??;
    if is_open {
        tracing::warn!("the archive is open again: its disk gave back what counts");
    }
    Ok(is_open)
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
