//! The arguments of `status`: from where on it warns and alarms, and where its numbers go.
//! Never looks at anything. Invariant: an alarm never comes before its warning.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::config::{read_duration, read_size};
use crate::error::{CommandError, Result};

/// Beyond this a threshold is a way to say never.
const TIME_MAX: Duration = Duration::from_secs(1_000 * 86_400);

const SIZE_MAX: u64 = 1 << 60;

/// From where on `status` warns and alarms, as far as it was typed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct Thresholds {
    /// Print a line for each cluster of a host's file, or of its folder; exit with the code of the worst
    #[arg(long)]
    pub all: bool,
    /// Write a page of metrics, too, for node_exporter's textfile collector: a file such as walmgr.prom
    #[arg(long, value_name = "FILE", conflicts_with = "all")]
    pub metrics: Option<PathBuf>,
    /// Warn when more seconds of transactions than this would be lost; 60s on the master
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub warning_lag: Option<Duration>,
    /// Alarm from there on; 300s on the master
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub critical_lag: Option<Duration>,
    /// Warn when the newest backup is older; 8d
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub warning_backup_age: Option<Duration>,
    /// Alarm from there on; 30d
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub critical_backup_age: Option<Duration>,
    /// Warn when less is free for the archive; 1GB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub warning_free: Option<u64>,
    /// Alarm from there on; 128MB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub critical_free: Option<u64>,
}

impl Thresholds {
    /// Refuses an alarm that would come before its warning.
    pub(crate) fn check(&self) -> Result<()> {
        let later = |warning: Option<Duration>, critical: Option<Duration>| {
            critical.is_some() && warning > critical
        };
        let wrong = [
            (later(self.warning_lag, self.critical_lag), "--critical-lag"),
            (
                later(self.warning_backup_age, self.critical_backup_age),
                "--critical-backup-age",
            ),
            (
                self.warning_free.is_some() && self.warning_free < self.critical_free,
                "--critical-free",
            ),
        ];
        match wrong.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, option)) => Err(CommandError::usage(format!(
                "{option} would come before the warning"
            ))),
            None => Ok(()),
        }
    }
}

fn time(text: &str) -> Result<Duration, String> {
    let expected = |expected: String| format!("expected {expected}");
    read_duration(text, Duration::ZERO, TIME_MAX).map_err(|error| expected(error.what))
}

fn size(text: &str) -> Result<u64, String> {
    read_size(text, 0, SIZE_MAX).map_err(|error| format!("expected {}", error.what))
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    fn parsed(arguments: &str) -> Option<Thresholds> {
        let grammar = Thresholds::augment_args(clap::Command::new("status").no_binary_name(true));
        let matches = grammar.try_get_matches_from(arguments.split_whitespace());
        let typed = Thresholds::from_arg_matches(&matches.ok()?).ok()?;
        typed.check().is_ok().then_some(typed)
    }

    #[test]
    fn thresholds_have_the_units_of_the_settings() {
        let line = "--warning-lag 90 --critical-lag 5min --critical-free 64MB";
        let found = parsed(line).unwrap();
        assert_eq!(found.warning_lag, Some(Duration::from_secs(90)));
        assert_eq!(found.critical_lag, Some(Duration::from_secs(300)));
        assert_eq!(found.critical_free, Some(64 << 20));
        assert_eq!(found.warning_backup_age, None);
        assert_eq!(parsed("").unwrap(), Thresholds::default());
    }

    #[test]
    fn senseless_thresholds_are_refused() {
        for wrong in [
            "--warning-lag 1h --critical-lag 1min",
            "--warning-backup-age 3d --critical-backup-age 2d",
            "--warning-free 1MB --critical-free 2MB",
            "--warning-lag soon",
            "--warning-free 3x",
            "--warning-lag -1",
        ] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
