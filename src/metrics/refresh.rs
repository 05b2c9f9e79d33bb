//! Looks that cost, at an interval of their own: what `status` finds out, for a page that must not wait.
//! Never looks for whoever asks: who asks gets what was found last. Invariant: one look at a time, never more than one
//! twentieth of the time, and a look that hangs holds one thread, however often it is due.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::samples::Samples;
use crate::patience::Patience;

/// From the end of a look to the next one, at least.
pub(crate) const REFRESH_INTERVAL: Duration = Duration::from_secs(15);

/// So many times as long as it took is not looked again.
const PAUSE_TIMES: u32 = 20;

/// How long is waited for a look; behind it its thread is left alone, and no further one begins.
const LOOK_PATIENCE: Duration = Duration::from_secs(60);

/// How old what was found may be before it is shown no more.
const STALE_AFTER: Duration = Duration::from_secs(300);

/// What to look at.
#[derive(Clone)]
pub(crate) struct Subject {
    /// Its cluster's name.
    pub name: String,
    /// What it is known by: of two looks at the same no two are under way.
    pub path: PathBuf,
    /// How to look; nothing comes of one that failed.
    pub look: Arc<dyn Fn() -> Option<Samples> + Send + Sync>,
}

/// What was found, for as long as this lives.
pub(crate) struct Refreshes {
    shared: Arc<SharedRefreshes>,
}

#[derive(Default)]
struct SharedRefreshes {
    found: Mutex<BTreeMap<String, Found>>,
    is_over: Mutex<bool>,
    over: Condvar,
}

struct Found {
    samples: Samples,
    at: Instant,
}

impl Refreshes {
    /// Looks again and again at what there is to look at, which may change.
    pub(crate) fn start(
        subjects: impl Fn() -> Vec<Subject> + Send + 'static,
        interval: Duration,
    ) -> Refreshes {
        let shared: Arc<SharedRefreshes> = Arc::default();
        let refreshes = Refreshes {
            shared: Arc::clone(&shared),
        };
        let thread = thread::Builder::new().name("metrics-refresh".to_owned());
        let spawned = thread.spawn(move || go_on(&shared, &subjects, interval));
        if let Err(error) = spawned {
            tracing::warn!("metrics show only what is counted: {error}");
        }
        refreshes
    }

    /// What was found last of this cluster, and how long ago; nothing if that is too long.
    pub(crate) fn of(&self, name: &str) -> Option<(Samples, Duration)> {
        let found = self.shared.found();
        let found = found.get(name)?;
        let age = found.at.elapsed();
        (age < STALE_AFTER).then(|| (found.samples.clone(), age))
    }
}

impl Drop for Refreshes {
    fn drop(&mut self) {
        *locked(&self.shared.is_over) = true;
        self.shared.over.notify_all();
    }
}

impl SharedRefreshes {
    fn found(&self) -> MutexGuard<'_, BTreeMap<String, Found>> {
        locked(&self.found)
    }

    /// `false` when no more is to be looked at.
    fn pause(&self, pause: Duration) -> bool {
        let is_over = locked(&self.is_over);
        let waited = self.over.wait_timeout_while(is_over, pause, |over| !*over);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// How often is looked for what is due: a cluster that was added has its values soon.
const DUE_INTERVAL: Duration = Duration::from_millis(500);

fn go_on(shared: &SharedRefreshes, subjects: &impl Fn() -> Vec<Subject>, interval: Duration) {
    let patience = Patience::of(LOOK_PATIENCE);
    let mut due: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        let all = subjects();
        due.retain(|name, _| all.iter().any(|one| one.name == *name));
        shared.found().retain(|name, _| due.contains_key(name));
        for Subject { name, path, look } in all {
            if due.get(&name).is_some_and(|due| *due > Instant::now()) {
                continue;
            }
            let begun = Instant::now();
            let mut answers = patience.each([path], move |_| look());
            let found = answers
                .pop_first()
                .and_then(|(_, answer)| answer.ok().flatten());
            if let Some(found) = found {
                let (samples, at) = (found.refreshed_now(), Instant::now());
                shared.found().insert(name.clone(), Found { samples, at });
            }
            let pause = (begun.elapsed() * PAUSE_TIMES).max(interval);
            due.insert(name, Instant::now() + pause);
            if !shared.pause(Duration::ZERO) {
                return;
            }
        }
        if !shared.pause(DUE_INTERVAL) {
            return;
        }
    }
}

fn locked<T>(field: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one call, so a panic elsewhere cannot have left half of one.
    field.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::metrics::Metric;

    #[test]
    fn a_cluster_is_looked_at_again_and_forgotten_when_it_is_gone() {
        let (looks, gone) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(false)));
        let (counted, is_gone) = (Arc::clone(&looks), Arc::clone(&gone));
        let subjects = move || {
            let counted = Arc::clone(&counted);
            let quick = Subject {
                name: "quick".to_owned(),
                path: "quick".into(),
                look: Arc::new(move || {
                    let mut samples = Samples::default();
                    samples.whole(Metric::Backups, counted.fetch_add(1, Ordering::SeqCst));
                    Some(samples)
                }),
            };
            let mut subjects = vec![quick];
            subjects.retain(|_| !*locked(&is_gone));
            subjects
        };
        let refreshes = Refreshes::start(subjects, Duration::from_millis(1));
        let until = Instant::now() + Duration::from_secs(60);
        let wait = |done: &dyn Fn() -> bool| {
            while !done() {
                assert!(Instant::now() < until);
                thread::sleep(Duration::from_millis(10));
            }
        };
        wait(&|| {
            refreshes
                .of("quick")
                .and_then(|(found, _)| found.get(Metric::Backups))
                > Some(1.0)
        });
        *locked(&gone) = true;
        wait(&|| refreshes.of("quick").is_none());
    }
}
