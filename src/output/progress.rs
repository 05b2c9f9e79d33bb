//! How far a backup is, for people: a bar on a terminal, otherwise a line every ten seconds.
//! Never slows the work down. Invariant: counters only grow, also when something is sent again.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::options::Options;

/// How often the bar moves, and how often a line is said instead.
const BAR_INTERVAL: Duration = Duration::from_millis(200);
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// What was done so far.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Bytes of files that were read, each once.
    pub read_bytes: AtomicU64,
    /// Bytes that went to the sockets, repetitions included.
    pub sent_bytes: AtomicU64,
    /// Files that were confirmed.
    pub files: AtomicU64,
    /// Times that a connection was made again.
    pub reconnections: AtomicU64,
}

impl Counters {
    /// Adds to one of them.
    pub(crate) fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Ordering::Relaxed);
    }

    /// Reads one of them.
    pub(crate) fn of(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// Shows the counters until it is dropped.
pub(crate) struct BackupProgress {
    /// What is done with the bytes, in one word.
    done: &'static str,
    bar: Option<ProgressBar>,
    total_bytes: u64,
    began: Instant,
    said: Instant,
}

impl BackupProgress {
    /// Begins to show a work of this many bytes; `done` is what happens to them: `sent`, `copied`.
    pub(crate) fn begin(done: &'static str, total_bytes: u64, options: &Options) -> BackupProgress {
        let bar = (!options.quiet && std::io::stderr().is_terminal()).then(|| {
            let target = ProgressDrawTarget::stderr();
            let bar = ProgressBar::with_draw_target(Some(total_bytes), target);
            let template =
                "{bar:30} {percent:>3}% {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
            // A template that is wrong leaves indicatif's own.
            bar.clone().with_style(
                ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            )
        });
        let began = Instant::now();
        BackupProgress {
            done,
            bar,
            total_bytes,
            began,
            said: began,
        }
    }

    /// Shows the counters again and again; never ends by itself.
    pub(crate) async fn show(&mut self, counters: &Counters) {
        loop {
            tokio::time::sleep(BAR_INTERVAL).await;
            let read_bytes = Counters::of(&counters.read_bytes);
            match &self.bar {
                // Files grow while they are copied.
                Some(bar) => bar.set_position(read_bytes.min(self.total_bytes)),
                None if self.said.elapsed() >= LINE_INTERVAL => {
                    self.said = Instant::now();
                    self.say(read_bytes);
                }
                None => {}
            }
        }
    }

    fn say(&self, read_bytes: u64) {
        let elapsed = self.began.elapsed();
        let left_bytes = self.total_bytes.saturating_sub(read_bytes);
        let left = elapsed.mul_f64(ratio(left_bytes, read_bytes.max(1)));
        tracing::info!(
            "{} of {} {}, {}/s, {} left",
            HumanBytes(read_bytes),
            HumanBytes(self.total_bytes),
            self.done,
            HumanBytes(per_second(read_bytes, elapsed)),
            HumanDuration(left.min(Duration::from_secs(100 * 86_400)))
        );
    }
}

impl Drop for BackupProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Bytes a second, rounded down.
pub(crate) fn per_second(bytes: u64, elapsed: Duration) -> u64 {
    let elapsed_ms = elapsed.as_millis().max(1);
    u64::try_from(u128::from(bytes) * 1_000 / elapsed_ms).unwrap_or(u64::MAX)
}

/// The bound on bytes a second that is set, behind what it bounds; nothing where there is none.
pub(crate) fn rate_limit_text(rate: Option<u64>) -> String {
    rate.map_or_else(String::new, |rate| {
        format!(" (at most {}/s, as backup_rate says)", HumanBytes(rate))
    })
}

/// One number as a multiple of another, for people.
pub(crate) fn ratio(one: u64, other: u64) -> f64 {
    // Megabytes are exact enough, and fit a float.
    let small = |bytes: u64| f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX));
    small(one) / small(other).max(1.0)
}
