//! Which of the measurements wins, and what to write into the ini file for it.
//! Never measures. Invariant: what is set wins over what is hardly better, as figures of one run differ by some percent.

use std::fmt;

use super::trial::{Measurement, TrialSettings};

/// By how much something has to be better, in percent.
const MARGIN_PERCENT: u64 = 5;

/// The first of the lines, unless another is better by more than chance.
pub(super) fn best_of(lines: &[Measurement]) -> Measurement {
    let mut best = lines[0];
    for line in &lines[1..] {
        if line.rate() > best.rate() + best.rate() / 100 * MARGIN_PERCENT {
            best = *line;
        }
    }
    best
}

/// What the measurements come to.
pub(super) struct Advice {
    /// With what is set.
    pub now: Measurement,
    /// The best of one connection, as `xarchive` and the syncdaemon have it.
    pub alone: Measurement,
    /// The best of several, as `backup` has them.
    pub together: Measurement,
    /// What is set.
    pub backup_jobs: u32,
}

impl fmt::Display for Advice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = |better: &Measurement, than: &Measurement| {
            crate::output::progress::ratio(better.rate(), than.rate().max(1))
        };
        let TrialSettings { blocks: now, .. } = self.now.settings;
        let TrialSettings { blocks: best, .. } = self.alone.settings;
        let jobs = u32::from(self.together.settings.jobs);
        let mut lines = Vec::new();
        if best.block_bytes != now.block_bytes {
            lines.push(format!("block_size = {}kB", best.block_bytes >> 10));
        }
        if best.compression != now.compression {
            lines.push(format!("compression = {}", best.compression));
        }
        if jobs != self.backup_jobs {
            lines.push(format!("backup_jobs = {jobs}"));
        }
        if lines.is_empty() {
            return out.write_str("What is set is as good as anything that was tried.");
        }
        writeln!(out, "Use these settings:\n")?;
        for line in &lines {
            writeln!(out, "    {line}")?;
        }
        write!(
            out,
            "\nOne connection then sends {:.2} times as fast as now. All connections of a backup ({jobs}) \
            together send {:.2} times as fast as one.",
            times(&self.alone, &self.now),
            times(&self.together, &self.alone),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::master::push::Blocks;

    fn line(compression: u8, jobs: u8, mib: u64) -> Measurement {
        Measurement {
            settings: TrialSettings {
                blocks: Blocks {
                    block_bytes: 256 << 10,
                    compression,
                },
                jobs,
                is_synced: false,
            },
            raw_bytes: mib << 20,
            wire_bytes: mib << 20,
            elapsed: Duration::from_secs(1),
            cpu: Duration::ZERO,
            receiver_worked: Duration::ZERO,
            synced: Duration::ZERO,
        }
    }

    #[test]
    fn what_is_set_wins_over_what_is_hardly_better() {
        let lines = [line(0, 1, 1_000), line(1, 1, 1_040), line(3, 1, 900)];
        assert_eq!(best_of(&lines).settings.blocks.compression, 0);
        let lines = [line(0, 1, 1_000), line(1, 1, 1_100), line(3, 1, 1_120)];
        assert_eq!(best_of(&lines).settings.blocks.compression, 1);
    }

    #[test]
    fn only_settings_that_change_are_advised() {
        let now = line(0, 1, 1_000);
        let as_set = Advice {
            now,
            alone: now,
            together: line(0, 4, 2_000),
            backup_jobs: 4,
        };
        assert!(as_set.to_string().starts_with("What is set"));
        let other = Advice {
            alone: line(3, 1, 3_000),
            together: line(3, 2, 4_500),
            ..as_set
        };
        let text = other.to_string();
        assert!(
            text.contains("    compression = 3\n    backup_jobs = 2\n"),
            "{text}"
        );
        assert!(
            text.contains(
                "3.00 times as fast as now. All connections of a backup (2) together send 1.50"
            ),
            "{text}"
        );
        assert!(!text.contains("block_size"), "{text}");
    }
}
