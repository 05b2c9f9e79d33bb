//! Looks after a cluster's store as long as it is open.
//! Never serves a peer. Invariant: whoever looks after a store lets go of it once it retires.

use std::sync::Arc;

use crate::receiver::cluster::open_store::OpenStore;
use crate::receiver::cluster::{Cluster, rounds};
use crate::receiver::worker;

/// Looks after the cluster until it is dropped.
pub(crate) async fn run(cluster: Arc<Cluster>) {
    let Ok(store) = cluster.store() else { return };
    tokio::select! {
        () = look_after(&cluster, &store) => {}
        () = store.retired.cancelled() => {}
    }
}

async fn look_after(cluster: &Arc<Cluster>, store: &Arc<OpenStore>) {
    tokio::join!(
        note_older_obstacles(cluster, store),
        rounds::run(cluster, store)
    );
}

async fn note_older_obstacles(cluster: &Arc<Cluster>, store: &Arc<OpenStore>) {
    let _turn = cluster.census.turn_to_read().await;
    let (stopping, store_too) = (cluster.stopping.clone(), Arc::clone(store));
    let look = move || {
        let stops = || stopping.is_cancelled() || store_too.retired.is_cancelled();
        if let Err(error) = store_too.archive.note_older_obstacles(&stops) {
            tracing::warn!("what replay may not get past in older WAL is not noted: {error}");
        }
    };
    // A panic has its line in the log already.
    let _ = worker::once(&store.workforce, "look at older WAL", look).await;
}
