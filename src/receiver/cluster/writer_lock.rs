//! Who ships a cluster's records: one client at a time, and who gives way to whom.
//! Never reads or writes the archive. Invariant: whoever lost the lock is told so before anything else is done
//! for him, and does not free it by leaving.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use walmgr_protocol::message::{Error, ErrorCode};
use walmgr_protocol::names::{SegmentName, TimelineId};

use crate::receiver::{STREAM_DOUBTED_FOR, STREAM_IDLE_MAX};

/// For how many segments it is remembered who shipped them, and how many are doubted at once: more than a master
/// is ahead of its archiver when that works.
const REMEMBERED_MAX: usize = 256;

/// A job that takes longer is the disk's fault: a peer that asks for the lock is then told of the disk.
const DISK_HANGS: Duration = Duration::from_secs(5);

/// The lock that the writer of the stream of records has.
#[derive(Default)]
pub(crate) struct WriterLock(Mutex<Holding>);

#[derive(Default)]
struct Holding {
    /// Counts those who had the lock.
    number: u64,
    holder: Option<StreamHolder>,
    /// Who shipped the last of the segments that are in progress.
    shippers: BTreeMap<SegmentName, String>,
    /// Whose records an archived segment contradicted, and when.
    doubted: BTreeMap<String, Instant>,
}

struct StreamHolder {
    who: String,
    timeline: TimelineId,
    /// Since when it has been doing a job, if it is.
    at_work: Option<Instant>,
    /// When it took the lock, or its last records became durable.
    since: Instant,
}

/// What the holder of the lock is doing. Only records renew its claim to the lock, since questions cost nothing.
#[derive(Clone, Copy)]
pub(crate) enum StreamWork {
    /// A job begins.
    Begins,
    /// A job ends.
    Ends,
    /// A job ends, and records became durable by it.
    Shipped,
}

/// The lock, as long as nobody else takes it; it is free again when this is dropped.
pub(crate) struct WriterGuard {
    lock: Arc<WriterLock>,
    number: u64,
}

impl WriterLock {
    /// Who has it.
    pub(crate) fn taken_by(&self) -> Option<String> {
        let holding = self.holding();
        holding.holder.as_ref().map(|holder| holder.who.clone())
    }

    /// Takes the lock. Its holder loses it to a newer timeline, which the archive follows, and to any peer after
    /// shipping nothing for [`STREAM_IDLE_MAX`]. A holder whose records the archive contradicts loses the lock to a
    /// peer whose records it does not. While a job of its holder is under way nobody gets it.
    pub(crate) fn take(
        self: &Arc<Self>,
        who: &str,
        timeline: TimelineId,
        now: Instant,
    ) -> Result<WriterGuard, Error> {
        let mut holding = self.holding();
        if let Some(holder) = &holding.holder {
            let is_idle = now.duration_since(holder.since) >= STREAM_IDLE_MAX;
            let is_better = timeline > holder.timeline
                || (holding.is_doubted(&holder.who, now) && !holding.is_doubted(who, now));
            if holder.at_work.is_some() || (!is_idle && !is_better) {
                return Err(active(holder, now));
            }
            tracing::info!("{who} takes over the stream of records from {}", holder.who);
        }
        holding.number += 1;
        holding.holder = Some(StreamHolder {
            who: who.to_owned(),
            timeline,
            at_work: None,
            since: now,
        });
        Ok(WriterGuard {
            lock: Arc::clone(self),
            number: holding.number,
        })
    }

    /// An archived segment is another than what was shipped of it.
    pub(crate) fn doubt(&self, segment: SegmentName) {
        self.doubt_at(segment, Instant::now());
    }

    fn doubt_at(&self, segment: SegmentName, now: Instant) {
        let mut holding = self.holding();
        let Some(who) = holding.shippers.remove(&segment) else {
            return;
        };
        tracing::warn!(
            "{who} shipped other records of {segment} than were archived: any other peer may take \
            the stream over"
        );
        let doubted = &mut holding.doubted;
        doubted.retain(|_, since| now.duration_since(*since) < STREAM_DOUBTED_FOR);
        if doubted.len() < REMEMBERED_MAX {
            doubted.insert(host_of(&who).to_owned(), now);
        }
    }

    fn holding(&self) -> MutexGuard<'_, Holding> {
        // Each change is complete before the next can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WriterGuard {
    /// Records of a segment were shipped.
    pub(crate) fn shipped(&self, segment: SegmentName) {
        let mut holding = self.lock.holding();
        let who = holding.holder.as_ref().map(|holder| holder.who.clone());
        if let Some(who) = who.filter(|_| holding.number == self.number) {
            holding.shippers.insert(segment, who);
            while holding.shippers.len() > REMEMBERED_MAX {
                holding.shippers.pop_first();
            }
        }
    }

    /// A job begins or ends; fails when the lock is another's.
    pub(crate) fn work(&self, work: StreamWork, now: Instant) -> Result<(), Error> {
        let mut holding = self.lock.holding();
        let is_own = holding.number == self.number;
        match &mut holding.holder {
            Some(holder) if is_own => {
                holder.at_work = matches!(work, StreamWork::Begins).then_some(now);
                if let StreamWork::Shipped = work {
                    holder.since = now;
                }
                Ok(())
            }
            Some(holder) => Err(active(holder, now)),
            None => Err(not_begun()),
        }
    }
}

impl Drop for WriterGuard {
    fn drop(&mut self) {
        let mut holding = self.lock.holding();
        if holding.number == self.number {
            holding.holder = None;
        }
    }
}

impl Holding {
    fn is_doubted(&self, who: &str, now: Instant) -> bool {
        let since = self.doubted.get(host_of(who));
        since.is_some_and(|since| now.duration_since(*since) < STREAM_DOUBTED_FOR)
    }
}

/// A peer with its address, whatever port it comes from.
fn host_of(who: &str) -> &str {
    who.rsplit_once(':').map_or(who, |(host, _)| host)
}

fn active(holder: &StreamHolder, now: Instant) -> Error {
    let who = &holder.who;
    let at_work = holder.at_work.map(|since| now.duration_since(since));
    let (text, hint) = match at_work {
        Some(waited) if waited >= DISK_HANGS => (
            format!(
                "records that {who} shipped wait for the disk of the archive, for {} s now",
                waited.as_secs()
            ),
            "look at that disk; walmgr tries again",
        ),
        _ => (
            format!("{who} already ships records of this WAL"),
            "run one syncdaemon; if its host died, its place is free after 30 s",
        ),
    };
    Error::channel(ErrorCode::WriterActive, text, hint)
}

/// The session lets nothing through before the stream was granted.
pub(crate) fn not_begun() -> Error {
    Error::channel(ErrorCode::Internal, "no partial stream was begun", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_116_a_writer_whom_the_archive_contradicts_loses_the_stream() {
        let lock = Arc::new(WriterLock::default());
        let one = TimelineId::FIRST;
        let [segment, other] = ["000000010000000000000005", "000000010000000000000006"]
            .map(|name| name.parse().unwrap());
        let now = Instant::now();
        let thief = lock.take("db1 (192.0.2.9:1)", one, now).unwrap();
        thief.shipped(segment);
        assert!(lock.take("db1 (192.0.2.1:7)", one, now).is_err());
        // Somebody else's segment is no reason.
        lock.doubt_at(other, now);
        assert!(lock.take("db1 (192.0.2.1:7)", one, now).is_err());
        lock.doubt_at(segment, now);
        // Nor does it get the lock back, from whatever port it comes; but where nobody else is, it may ship.
        let genuine = lock.take("db1 (192.0.2.1:7)", one, now).unwrap();
        assert!(lock.take("db1 (192.0.2.9:2)", one, now).is_err());
        drop(genuine);
        let _again = lock.take("db1 (192.0.2.9:3)", one, now).unwrap();
        let _genuine = lock.take("db1 (192.0.2.1:8)", one, now).unwrap();
        let later = now + STREAM_DOUBTED_FOR;
        let _again = lock.take("db1 (192.0.2.9:4)", one, later).unwrap();
        assert!(lock.take("db1 (192.0.2.1:9)", one, later).is_err());
    }

    #[test]
    fn fault_116_an_idle_writer_loses_the_stream_and_a_busy_one_does_not() {
        let lock = Arc::new(WriterLock::default());
        let [one, two] = [1, 2].map(|number| TimelineId::new(number).unwrap());
        let begin = Instant::now();
        let first = lock.take("first", one, begin).unwrap();
        let soon = begin + STREAM_IDLE_MAX / 2;
        assert!(lock.take("second", one, soon).is_err());
        first.work(StreamWork::Begins, soon).unwrap();
        let late = soon + STREAM_IDLE_MAX * 2;
        let refused = lock.take("second", two, late).err().unwrap();
        assert!(refused.message.contains("first shipped wait"), "{refused}");
        first.work(StreamWork::Shipped, late).unwrap();
        let refused = lock.take("second", one, late).err().unwrap();
        assert!(refused.message.contains("first already ships"), "{refused}");
        let second = lock.take("second", one, late + STREAM_IDLE_MAX).unwrap();
        assert!(
            first
                .work(StreamWork::Begins, late + STREAM_IDLE_MAX)
                .is_err()
        );
        // Whoever lost the lock does not free it by leaving.
        drop(first);
        assert_eq!(lock.taken_by().as_deref(), Some("second"));
        // A newer timeline does not wait.
        let third = lock.take("third", two, late + STREAM_IDLE_MAX).unwrap();
        assert!(second.work(StreamWork::Begins, late).is_err());
        // A job that ships nothing renews no claim.
        let (taken, later) = (late + STREAM_IDLE_MAX, late + STREAM_IDLE_MAX * 2);
        third.work(StreamWork::Begins, taken).unwrap();
        third.work(StreamWork::Ends, later).unwrap();
        let fourth = lock.take("fourth", two, later).unwrap();
        drop(third);
        assert_eq!(lock.taken_by().as_deref(), Some("fourth"));
        drop(fourth);
        assert_eq!(lock.taken_by(), None);
    }
}
