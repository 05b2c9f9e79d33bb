//! Measures what the backup sets take on the disk, when one came or went.
//! Never hurries: a set at a time. Invariant: where sets share no blocks each is measured once.

use std::time::Duration;

use crate::receiver::cluster::open_store::OpenStore;
use crate::receiver::worker;

/// Until it is looked again whether a set came or went.
const LOOK_PAUSE: Duration = Duration::from_secs(10);

/// Between two sets that have to be measured, and before the first: others use the disk too.
const SET_PAUSE: Duration = Duration::from_millis(500);

/// Until sets are looked at again that could not be measured.
const FAILED_PAUSE: Duration = Duration::from_secs(600);

/// Measures until it is dropped.
pub(crate) async fn run(store: &OpenStore) {
    let mut pause = SET_PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        let Some(sets) = store.backups.to_read() else {
            pause = LOOK_PAUSE;
            continue;
        };
        let measure = move || sets.measure_next();
        pause = match worker::once(&store.workforce, "measure the backup sets", measure).await {
            Ok(Ok(true)) => SET_PAUSE,
            Ok(Ok(false)) => LOOK_PAUSE,
            Ok(Err(error)) => {
                tracing::warn!("cannot measure what the backup sets take on the disk: {error}");
                FAILED_PAUSE
            }
            Err(_) => FAILED_PAUSE,
        };
    }
}
