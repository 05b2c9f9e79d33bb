//! How old the first commit is that the standby does not hold.
//! Never asks anybody and never changes anything. Invariant: the age comes from the record of the commit;
//! a file's time stands in for it only where no such record is found in time.
//!
//! What the standby lacks begins at the LSN that it holds, and is still in the master's `pg_wal`. The first
//! commit there carries its time: that transaction, and what came after it, would be lost. Where there is
//! none, nothing that anybody was promised is missing, however many bytes are. This is the same whether
//! records are shipped one by one or segments when they are full.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use walmgr_protocol::names::Lsn;

use crate::master::tail::WalFiles;
use crate::wal::commit::{TIME_BYTES_MAX, commit_time_us, is_commit};
use crate::wal::record::read_record;
use crate::wal::scan::ScanStep;

/// Bytes read at once.
pub(super) const PIECE_BYTES: u64 = 256 << 10;

/// How long a commit is looked for: one load of data can fill a hundred segments.
const PATIENCE: Duration = Duration::from_secs(2);

/// What was found of the WAL that the standby lacks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Oldest {
    /// No commit is among it.
    Nothing,
    /// The first commit, so many seconds ago; below 0 where this host's clock was set back since.
    Seconds(f64),
    /// It is not in `pg_wal` any more, or not to be read.
    Unknown,
}

/// The age of the first commit between what is held and what is flushed.
pub(super) fn oldest_missing(files: &WalFiles, held: Lsn, flushed: Lsn) -> io::Result<Oldest> {
    let (begun, mut scanner) = (Instant::now(), files.scanner(held));
    let mut piece = Vec::new();
    while scanner.position() < flushed {
        let at = scanner.position();
        piece.clear();
        files.read(at, PIECE_BYTES.min(flushed.0 - at.0), &mut piece)?;
        if piece.is_empty() {
            return Ok(Oldest::Unknown);
        }
        if begun.elapsed() > PATIENCE {
            return written_last(files, held);
        }
        let mut rest = &piece[..];
        loop {
            match scanner.advance(&mut rest) {
                ScanStep::NeedMore => break,
                ScanStep::Record(record) if is_commit(&record) => {
                    return Ok(match commit_time_at(files, record.lsn)? {
                        Some(time_us) => Oldest::Seconds(seconds_since(time_us)),
                        None => Oldest::Unknown,
                    });
                }
                ScanStep::Record(record) if record.is_switch() => {
                    // Nothing behind it means anything.
                    scanner = files.scanner(record.end).following(record.lsn);
                    break;
                }
                ScanStep::Record(_) => {}
                ScanStep::EndOfWal(_) | ScanStep::Invalid { .. } => {
                    return written_last(files, held);
                }
            }
        }
    }
    Ok(Oldest::Nothing)
}

/// Seconds since a time in microseconds since 1970; below 0 for one that is still to come.
#[expect(clippy::cast_precision_loss, reason = "an age has no 53 bits")]
pub(super) fn seconds_since(time_us: i64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_us = now.map_or(0, |now| i64::try_from(now.as_micros()).unwrap_or(i64::MAX));
    now_us.saturating_sub(time_us) as f64 / 1e6
}

/// What was held at the time when the segment was written last, at least.
fn written_last(files: &WalFiles, held: Lsn) -> io::Result<Oldest> {
    let path = files.folder().join(files.containing(held).to_string());
    let written = std::fs::metadata(path)?.modified()?;
    let seconds = match SystemTime::now().duration_since(written) {
        Ok(age) => age.as_secs_f64(),
        Err(ahead) => -ahead.duration().as_secs_f64(),
    };
    Ok(Oldest::Seconds(seconds))
}

/// When the commit was made whose record is there.
pub(super) fn commit_time_at(files: &WalFiles, lsn: Lsn) -> io::Result<Option<i64>> {
    let mut record = [0; TIME_BYTES_MAX];
    let read_at = |lsn: Lsn, piece: &mut [u8]| -> io::Result<usize> {
        let mut bytes = Vec::new();
        files.read(lsn, piece.len() as u64, &mut bytes)?;
        piece[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    };
    let read_bytes = read_record(lsn, files.segment_size(), &mut record, read_at)?;
    Ok(commit_time_us(&record[..read_bytes]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_109_a_commit_from_the_future_has_a_negative_age() {
        let far_us = i64::MAX / 2;
        assert!(seconds_since(far_us) < -1.0);
        assert!(seconds_since(0) > 1.0);
    }
}
