//! Reads the archive and its backup sets round after round, at the rate that the settings say.
//! Never decides what is damaged; the store does. Invariant: what is read in a second is bounded, so whoever
//! archives or recovers meanwhile does not notice.

use std::time::Duration;

use crate::receiver::cluster::Cluster;
use crate::receiver::cluster::open_store::OpenStore;
use crate::receiver::worker;
use crate::store::rounds::{Rounds, Stride};

/// A start has just read so much of the newest files, which counts like the rest.
const START_BYTES: u64 = 256 << 20;

/// From the end of a round to the next one: a small archive is not read all the time.
const ROUND_PAUSE: Duration = Duration::from_secs(3600);

/// Until an archive is looked at again that could not be read, or has nobody to say how fast.
const IDLE_PAUSE: Duration = Duration::from_secs(60);

/// Goes round until it is dropped.
pub(crate) async fn run(cluster: &Cluster, store: &OpenStore) {
    let mut rounds = None;
    let mut pause = time_for(START_BYTES, rate(cluster));
    loop {
        tokio::time::sleep(pause).await;
        let rate = rate(cluster);
        if rate == 0 {
            pause = IDLE_PAUSE;
            continue;
        }
        let (archive, left) = (store.archive.clone(), rounds.take());
        let sets = store.backups.to_read();
        let step = move || {
            let mut rounds: Rounds = match left {
                Some(rounds) => rounds,
                None => archive.rounds(sets)?,
            };
            let stride = rounds.step()?;
            Ok::<_, crate::store::sets::SetError>((rounds, stride))
        };
        pause = match worker::once(&store.workforce, "look at the archive", step).await {
            Ok(Ok((left, stride))) => {
                rounds = Some(left);
                pause_behind(stride, rate)
            }
            Ok(Err(error)) => {
                tracing::warn!("the archive cannot be read for damage: {error}");
                IDLE_PAUSE
            }
            Err(_) => IDLE_PAUSE,
        };
    }
}

fn rate(cluster: &Cluster) -> u64 {
    cluster.settings.borrow().recheck_rate
}

fn pause_behind(stride: Stride, rate: u64) -> Duration {
    match stride.is_round_done {
        true => ROUND_PAUSE,
        false => time_for(stride.read_bytes, rate),
    }
}

/// What that much takes at that rate.
fn time_for(bytes: u64, rate: u64) -> Duration {
    let ms = bytes.saturating_mul(1_000).checked_div(rate);
    ms.map_or(IDLE_PAUSE, Duration::from_millis)
}
