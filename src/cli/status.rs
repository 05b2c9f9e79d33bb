//! The thresholds of `status`.
//! Never looks at anything. Invariant: an alarm never comes before its warning.

use std::time::Duration;

use clap::Args;

use crate::config::{read_duration, read_size};
use crate::error::{CommandError, Result};
use crate::options::Thresholds;

/// Beyond this a threshold is a way to say never.
const TIME_MAX: Duration = Duration::from_secs(1_000 * 86_400);

const SIZE_MAX: u64 = 1 << 60;

#[derive(Args)]
pub(super) struct StatusArgs {
    /// Warn when more seconds of transactions than this would be lost; 60s on the master
    #[arg(long, value_name = "TIME", value_parser = time)]
    warning_lag: Option<Duration>,
    /// Alarm from there on; 300s on the master
    #[arg(long, value_name = "TIME", value_parser = time)]
    critical_lag: Option<Duration>,
    /// Warn when the newest backup is older; 8d
    #[arg(long, value_name = "TIME", value_parser = time)]
    warning_backup_age: Option<Duration>,
    /// Alarm from there on; 30d
    #[arg(long, value_name = "TIME", value_parser = time)]
    critical_backup_age: Option<Duration>,
    /// Warn when less is free for the archive; 1GB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    warning_free: Option<u64>,
    /// Alarm from there on; 128MB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    critical_free: Option<u64>,
}

impl StatusArgs {
    pub(super) fn into_thresholds(self) -> Result<Thresholds> {
        let later = |warning: Option<Duration>, critical: Option<Duration>| warning > critical;
        let wrong = [
            (
                self.critical_lag.is_some() && later(self.warning_lag, self.critical_lag),
                "--critical-lag",
            ),
            (
                self.critical_backup_age.is_some()
                    && later(self.warning_backup_age, self.critical_backup_age),
                "--critical-backup-age",
            ),
            (
                self.warning_free.is_some() && self.warning_free < self.critical_free,
                "--critical-free",
            ),
        ];
        if let Some((_, option)) = wrong.into_iter().find(|(wrong, _)| *wrong) {
            let text = format!("{option} would come before the warning");
            return Err(CommandError::usage(text));
        }
        Ok(Thresholds {
            warning_lag: self.warning_lag,
            critical_lag: self.critical_lag,
            warning_backup_age: self.warning_backup_age,
            critical_backup_age: self.critical_backup_age,
            warning_free: self.warning_free,
            critical_free: self.critical_free,
        })
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
    use super::super::{Command, Parsed, parse};
    use super::*;

    fn parsed(line: &str) -> Result<Thresholds> {
        let words = line.split_whitespace().map(std::ffi::OsString::from);
        match parse(words) {
            Parsed::Run(invocation) => match invocation.command {
                Command::Status(thresholds) => Ok(thresholds),
                other => panic!("{other:?}"),
            },
            Parsed::Usage(error, _) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn thresholds_have_the_units_of_the_settings() {
        let line = "walmgr m.ini status --warning-lag 90 --critical-lag 5min --critical-free 64MB";
        let found = parsed(line).unwrap();
        assert_eq!(found.warning_lag, Some(Duration::from_secs(90)));
        assert_eq!(found.critical_lag, Some(Duration::from_secs(300)));
        assert_eq!(found.critical_free, Some(64 << 20));
        assert_eq!(found.warning_backup_age, None);
        assert_eq!(
            parsed("walmgr m.ini status --json").unwrap(),
            Thresholds::default()
        );
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
            parsed(&format!("walmgr m.ini status {wrong}")).unwrap_err();
        }
    }
}
