//! The set that a backup is built on is chosen, and what WAL changed since it was made is looked up.
//! Never believes the master about either. Invariant: whatever cannot be told makes the backup a full one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use walmgr_protocol::message::Error;
use walmgr_protocol::message::parent::ParentRequest;

use crate::receiver::cluster::ServedCluster;
use crate::receiver::cluster::incremental::Incremental;
use crate::receiver::{WAL_WAIT_MAX, refusal};
use crate::store::maps::{MapStretch, NoChanges, changes_between};
use crate::store::sets::ParentOfSet;
use crate::store::{ArchiveReader, PartialWals, RealDisk};

/// Pause between two looks whether records were shipped; a finished file says so itself.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A set that a backup like this can be built on, or why there is none. Waits for WAL as long as is asked, until
/// `is_over`; `found` hears of the set before that.
pub(crate) fn choose(
    served: &ServedCluster,
    asked: &ParentRequest,
    is_over: &dyn Fn() -> bool,
    found: impl FnOnce(&ParentOfSet),
) -> Result<Result<Incremental, String>, Error> {
    let ServedCluster { cluster, store } = served;
    let full_every = cluster.settings.borrow().full_every;
    let disk = || Arc::new(RealDisk);
    let archive = ArchiveReader::open(&cluster.completed_wals, disk());
    let archive = archive.map_err(|error| refusal::of(&error))?;
    let line = match archive.lineage(&[]) {
        Ok(lineage) => lineage.line_to(asked.timeline),
        Err(why) => return Ok(Err(format!("what changed cannot be told: {why}"))),
    };
    let parent = store.backups.sets()?.parent(asked, &line, full_every);
    let parent = match parent.map_err(|error| refusal::of_set(&error))? {
        Ok(parent) => parent,
        Err(why) => return Ok(Err(why)),
    };
    found(&parent);
    let partials = PartialWals::open(&cluster.folders.partial_wals, disk()).ok();
    let stretch = MapStretch {
        from: (parent.timeline(), parent.start()),
        to: (asked.timeline, asked.start),
    };
    let patience = Duration::from_secs(u64::from(asked.wal_wait_s)).min(WAL_WAIT_MAX);
    let until = Instant::now() + patience;
    let changes = loop {
        let stored = store.stored();
        match changes_between(&archive, partials.as_ref(), stretch) {
            Ok(changes) => break changes,
            Err(missing @ NoChanges::Missing { .. }) if Instant::now() >= until || is_over() => {
                return Ok(Err(format!("what changed cannot be told: {missing}")));
            }
            Err(NoChanges::Missing { .. }) => {}
            Err(why) => return Ok(Err(format!("what changed cannot be told: {why}"))),
        }
        Handle::current().block_on(async {
            tokio::select! {
                // First: a runtime that ends has no clock any more.
                biased;
                () = cluster.stopping.cancelled() => {}
                () = store.retired.cancelled() => {}
                () = stored => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        });
        if cluster.stopping.is_cancelled() || store.retired.is_cancelled() {
            return Ok(Err("the receiver is stopping".to_owned()));
        }
    };
    if let Some((lsn, why)) = changes.everything() {
        return Ok(Err(format!("what changed cannot be told: {why}, at {lsn}")));
    }
    Ok(Ok(Incremental {
        parent: Arc::new(parent),
        changes,
        segment_blocks: asked.segment_blocks,
    }))
}
