//! What the agent counts, for monitoring and `status`.
//! Never waits. Invariant: a file that was asked for counts once as that.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::{Counter, Metric, Samples};
use crate::status::AgentFigures;

/// What an agent did for `xarchive`.
#[derive(Debug, Default)]
pub(in crate::master) struct AgentMeter {
    /// Files that were asked for.
    pub asked: Counter,
    /// Files that had been shipped, or were on their way, when they were asked for.
    pub answered: Counter,
    /// Files that were pushed because they were asked for.
    pub pushed: Counter,
    /// Files that were asked for and failed.
    pub failures: Counter,
    waiting: AtomicU64,
}

impl AgentMeter {
    /// So many files wait to be shipped ahead.
    pub(super) fn waits(&self, files: usize) {
        (self.waiting).store(u64::try_from(files).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What `status` shows.
    pub(super) fn figures(&self) -> AgentFigures {
        AgentFigures {
            asked: self.asked.get(),
            answered: self.answered.get(),
            failures: self.failures.get(),
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }

    /// Adds what it counted to a page.
    pub(in crate::master) fn show(&self, samples: &mut Samples) {
        for (metric, counter) in [
            (Metric::AgentAsked, &self.asked),
            (Metric::AgentAnswered, &self.answered),
            (Metric::AgentPushed, &self.pushed),
            (Metric::AgentFailures, &self.failures),
        ] {
            samples.counter(metric, &[], counter);
        }
        samples.whole(Metric::AgentWaiting, self.waiting.load(Ordering::Relaxed));
    }
}
