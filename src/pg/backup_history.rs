//! The backup history file (`NAME.BACKUP`), which PostgreSQL archives behind the WAL of a backup of a primary:
//! where and when that ended. Never needed for a recovery. Invariant: what is not as PostgreSQL writes it is unknown,
//! never an error.
//!
//! `build_backup_content` writes it (`src/backend/access/transam/xlog.c` up to 14, `xlogbackup.c` from 15 on). A
//! time is `pg_strftime` of `%Y-%m-%d %H:%M:%S %Z` in `log_timezone`.

use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use walmgr_protocol::names::Lsn;

/// What it says about the end of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BackupHistory {
    /// `STOP WAL LOCATION`.
    pub stop: Option<Lsn>,
    /// From `START TIME` to `STOP TIME`.
    pub duration_s: Option<u64>,
}

impl BackupHistory {
    /// Reads what there is of it.
    pub(crate) fn parse(text: &str) -> BackupHistory {
        let value = |key: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
        };
        let stop = value("STOP WAL LOCATION");
        let times = value("START TIME").zip(value("STOP TIME"));
        BackupHistory {
            stop: stop.and_then(|stop| stop.split(' ').next()?.parse().ok()),
            duration_s: times.and_then(|(start, stop)| between(start, stop)),
        }
    }
}

/// How long a backup took whose label has this `START TIME`, and that ended at this time, in seconds since 1970.
pub(crate) fn seconds_until(start_time: &str, ended_s: i64) -> Option<u64> {
    let (start, zone) = start_time.rsplit_once(' ')?;
    let start: DateTime = start.parse().ok()?;
    let start_s = start.to_zoned(zone_of(zone, start)?).ok()?;
    let seconds = ended_s.checked_sub(start_s.timestamp().as_second())?;
    u64::try_from(seconds).ok()
}

/// The time between two of the same zone. Two names for a zone, as on the night when the clocks change, say
/// nothing without its rules.
fn between(start: &str, stop: &str) -> Option<u64> {
    let (start, start_zone) = start.rsplit_once(' ')?;
    let (stop, stop_zone) = stop.rsplit_once(' ')?;
    if start_zone != stop_zone {
        return None;
    }
    let (start, stop): (DateTime, DateTime) = (start.parse().ok()?, stop.parse().ok()?);
    u64::try_from(stop.duration_since(start).as_secs()).ok()
}

/// What a zone is that a server names so: in most cases the one that this host is in. `CST` is in China too.
fn zone_of(name: &str, at: DateTime) -> Option<TimeZone> {
    if matches!(name, "UTC" | "GMT") {
        return Some(TimeZone::UTC);
    }
    // A zone without a name of its own: `+03`, `-0330`.
    if let Some((sign, digits)) = (name.strip_prefix('+').map(|digits| (1, digits)))
        .or_else(|| name.strip_prefix('-').map(|digits| (-1, digits)))
        && matches!(digits.len(), 2 | 4)
        && digits.bytes().all(|byte| byte.is_ascii_digit())
    {
        let number = |text: &str| text.parse::<i32>().unwrap_or(0);
        let (hours, minutes) = (number(&digits[..2]), number(&digits[2..]));
        let offset = Offset::from_seconds(sign * (hours * 3_600 + minutes * 60)).ok()?;
        return Some(TimeZone::fixed(offset));
    }
    let own = TimeZone::system();
    let here = at.to_zoned(own.clone()).ok()?;
    (here.strftime("%Z").to_string() == name).then_some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HISTORY: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        STOP WAL LOCATION: 0/2000138 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-01-31 23:59:50 CET\nLABEL: STOP TIME: now\nSTART TIMELINE: 1\n\
        STOP TIME: 2026-02-01 00:01:05 CET\nSTOP TIMELINE: 1\n";

    #[test]
    fn where_and_when_a_backup_ended_is_read() {
        let expected = BackupHistory {
            stop: Some(Lsn(0x200_0138)),
            duration_s: Some(75),
        };
        assert_eq!(BackupHistory::parse(HISTORY), expected);
    }

    #[test]
    fn what_is_cut_or_makes_no_sense_is_unknown() {
        for end in 0..HISTORY.len() {
            let _ = BackupHistory::parse(&HISTORY[..end]);
        }
        assert_eq!(BackupHistory::parse(""), BackupHistory::default());
        let summer = HISTORY.replace("05 CET", "05 CEST");
        assert_eq!(BackupHistory::parse(&summer).duration_s, None);
        let backwards = HISTORY.replace("2026-02-01", "2026-01-01");
        assert_eq!(BackupHistory::parse(&backwards).duration_s, None);
        let odd = HISTORY.replace("0/2000138", "0/x");
        assert_eq!(BackupHistory::parse(&odd).stop, None);
    }

    #[test]
    fn a_duration_counts_from_the_start_time_of_a_label() {
        for (start, expected) in [
            ("2026-01-31 23:59:50 UTC", Some(10)),
            ("2026-01-31 23:59:50 GMT", Some(10)),
            ("2026-02-01 02:59:50 +03", Some(10)),
            ("2026-01-31 20:29:50 -0330", Some(10)),
            ("2026-02-01 00:00:01 UTC", None),
            ("2026-01-31 23:59:50 XYZ", None),
            ("2026-01-31 23:59:50 +99", None),
            ("2026-01-31 23:59:50 +0€", None),
            ("yesterday UTC", None),
            ("", None),
        ] {
            assert_eq!(seconds_until(start, 1_769_904_000), expected, "{start}");
        }
    }
}
