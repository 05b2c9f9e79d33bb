//! `synchronous_timeout`: who takes the standby out of the way of commits, and puts it back.
//! Never does the one or the other twice. Invariant: it runs beside the passes, so a receiver that hangs in one of them
//! holds nothing up here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use walmgr_protocol::names::Lsn;

use super::standing::StandbyStanding;
use crate::config::MasterConfig;
use crate::error::Result;
use crate::master::synch_note::SynchNote;
use crate::master::synch_standby::{put_back, take_out};

/// The pause after a failure, and the least one between two looks.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// The longest pause: whoever is not named may be named meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// What the guard and those who know how the standby fares have in common.
#[derive(Debug)]
pub(super) struct Watched {
    standing: Mutex<StandbyStanding>,
    timeout: Duration,
    keeps_up: Notify,
}

impl Watched {
    fn locked(&self) -> MutexGuard<'_, StandbyStanding> {
        // Each change is one assignment, so a panic elsewhere cannot have left half of one.
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server has flushed WAL up to `end`, and the standby's disk has it up to `held`.
    pub(super) fn hears(&self, end: Lsn, held: Lsn) {
        let mut standing = self.locked();
        let did = standing.keeps_up();
        standing.hears(end, held, Instant::now(), self.timeout);
        if standing.keeps_up() && !did {
            self.keeps_up.notify_one();
        }
    }

    /// The receiver is away, or the server does not stream.
    pub(super) fn is_lost(&self) {
        self.locked().is_lost(Instant::now());
    }
}

/// The task that guards; it ends when this is dropped.
pub(super) struct Guard {
    /// What it looks at.
    pub watched: Arc<Watched>,
    task: JoinHandle<()>,
}

impl Guard {
    /// Guards the standby of these settings.
    pub(super) fn start(config: &MasterConfig) -> Guard {
        let watched = Arc::new(Watched {
            standing: Mutex::new(StandbyStanding::new(Instant::now())),
            timeout: config.synchronous_timeout,
            keeps_up: Notify::new(),
        });
        let task = tokio::spawn(guard(config.clone(), Arc::clone(&watched)));
        Guard { watched, task }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn guard(config: MasterConfig, watched: Arc<Watched>) {
    let mut said = String::new();
    loop {
        let pause = match step(&config, &watched).await {
            Ok(pause) => {
                said.clear();
                pause
            }
            Err(error) => {
                let text = error.to_string();
                if text != said {
                    tracing::warn!("{text}");
                    said = text;
                }
                TRY_AGAIN
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = watched.keeps_up.notified() => {}
        }
    }
}

/// Does what is to be done now, and says when to look again.
async fn step(config: &MasterConfig, watched: &Watched) -> Result<Duration> {
    let (name, timeout) = (&config.job_name, watched.timeout);
    let is_out = SynchNote::read(&config.master_data).taken_out().is_some();
    let now = Instant::now();
    let (overdue_at, keeps_up) = {
        let mut standing = watched.locked();
        let overdue_at = standing.overdue_at(timeout);
        if is_out && overdue_at.is_some_and(|at| at <= now) {
            standing.is_out();
        }
        (overdue_at, standing.keeps_up())
    };
    if is_out {
        if keeps_up {
            match Box::pin(put_back(config)).await? {
                Some(names) => tracing::info!(
                    "{name} is back in synchronous_standby_names = '{names}': commits wait for it"
                ),
                None => tracing::warn!(
                    "{name} is not put back: somebody has set other synchronous_standby_names"
                ),
            }
            return Ok(Duration::ZERO);
        }
        return Ok(LOOK_AGAIN);
    }
    if timeout.is_zero() {
        return Ok(LOOK_AGAIN);
    }
    let overdue_at = overdue_at.unwrap_or(now + timeout);
    if overdue_at > now {
        return Ok(overdue_at - now);
    }
    let slave = &config.slave;
    if let Some(left) = Box::pin(take_out(config)).await? {
        tracing::error!(
            "{name} is taken out of synchronous_standby_names, now '{left}': {slave} did not acknowledge for \
            synchronous_timeout = {timeout:?}; commits do not wait for it"
        );
        return Ok(Duration::ZERO);
    }
    // Nobody waits for it.
    Ok(timeout.clamp(TRY_AGAIN, LOOK_AGAIN))
}
