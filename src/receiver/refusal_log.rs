//! Which refusals and which fetched files get a line, so that a flood of them does not fill a log, and how many there were.
//! Never hides that there were more: what is not said is counted, and the count is said later. Invariant: in
//! any [`REFUSAL_LOG_INTERVAL`] there are at most [`REFUSAL_LOG_LINES_MAX`] lines.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::audit::{Actor, AuditEvent, AuditLog, AuditOutcome};
use crate::metrics::Counter;
use crate::receiver::peer::AuditedPeer;
use crate::receiver::refusal_reason::RefusalReason;

/// A refusal of one address is logged at most this often; the rest is counted.
pub const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Addresses whose refusals are remembered; beyond it the others share one line.
const ADDRESSES_MAX: usize = 64;

/// One for each address that is remembered, and that of the others.
pub const REFUSAL_LOG_LINES_MAX: usize = ADDRESSES_MAX + 1;

/// Counts and logs refusals; one a receiver.
pub(crate) struct Refusals {
    log: Mutex<RefusalLog>,
    counts: [Counter; RefusalReason::ALL.len()],
    /// Where they are told of that belong to no cluster.
    audit: Arc<AuditLog>,
}

impl Refusals {
    /// Nobody was refused yet.
    pub(crate) fn new(audit: Arc<AuditLog>) -> Self {
        Refusals {
            log: Mutex::default(),
            counts: Default::default(),
            audit,
        }
    }

    /// Counts and logs a refusal of a peer that is known only by its address. Of a flood not every refusal is logged.
    pub(crate) fn refused(&self, address: IpAddr, reason: RefusalReason, text: &str) {
        let who = Actor::Peer {
            name: None,
            key: None,
            address: address.to_string(),
        };
        self.refused_whom(address, reason, &who, text);
    }

    /// Counts and logs a refusal of the peer `who`, whose name or key may be known. Of a flood not every refusal is
    /// logged.
    pub(crate) fn refused_whom(
        &self,
        address: IpAddr,
        reason: RefusalReason,
        who: &Actor,
        text: &str,
    ) {
        self.count(reason);
        self.log(address, who, text, &self.audit);
    }

    /// Counts a refusal that is told to a known peer.
    pub(crate) fn count(&self, reason: RefusalReason) {
        self.counts[reason as usize].add(1);
    }

    /// How many there were since the start, for each reason.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (RefusalReason, &Counter)> {
        RefusalReason::ALL.iter().copied().zip(&self.counts)
    }

    /// Logs a refusal, and tells of it where what belongs to a cluster is told; not every one of a flood.
    pub(crate) fn log(&self, address: IpAddr, who: &Actor, reason: &str, audit: &AuditLog) {
        let noted = lock(&self.log).note(address, Instant::now());
        let Some(more) = noted else { return };
        match more {
            0 => tracing::warn!("refused {reason}"),
            more => tracing::warn!("refused {reason} ({more} more since)"),
        }
        audit.record(
            who,
            &AuditOutcome::Refused(reason),
            &AuditEvent::Refused { more },
        );
    }
}

/// Tells the audit log of one cluster which files and records were offered and refused, but not each of a flood.
#[derive(Default)]
pub(crate) struct RewriteRefusals(Mutex<RefusalLog>);

impl RewriteRefusals {
    /// Another file of a stored name, or other records, were offered.
    pub(crate) fn refused(&self, audit: &AuditLog, by: &AuditedPeer, file: &str, why: &str) {
        let noted = lock(&self.0).note(by.address, Instant::now());
        let Some(more) = noted else { return };
        let event = AuditEvent::RewriteRefused { file, more };
        audit.record(&by.who, &AuditOutcome::Refused(why), &event);
    }
}

/// Tells the audit log of one cluster which archived files were fetched, but not each file of a recovery.
#[derive(Default)]
pub(crate) struct FetchedFiles(Mutex<RefusalLog>);

impl FetchedFiles {
    /// A file was sent, or some of it.
    pub(crate) fn fetched(
        &self,
        audit: &AuditLog,
        by: &AuditedPeer,
        file: &str,
        outcome: &AuditOutcome<'_>,
    ) {
        let noted = lock(&self.0).note(by.address, Instant::now());
        let Some(more) = noted else { return };
        audit.record(&by.who, outcome, &AuditEvent::WalFetched { file, more });
    }
}

fn lock(log: &Mutex<RefusalLog>) -> MutexGuard<'_, RefusalLog> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was said lately.
#[derive(Default)]
pub(crate) struct RefusalLog {
    addresses: HashMap<IpAddr, Mention>,
    others: Option<Mention>,
}

#[derive(Clone, Copy)]
struct Mention {
    last: Instant,
    unsaid: u64,
}

impl RefusalLog {
    /// Whether a refusal of this address is logged, and how many were not since the last that was.
    pub(crate) fn note(&mut self, address: IpAddr, now: Instant) -> Option<u64> {
        if self.addresses.len() >= ADDRESSES_MAX && !self.addresses.contains_key(&address) {
            self.forget(now);
        }
        let has_room = self.addresses.len() < ADDRESSES_MAX;
        let said = match self.addresses.get_mut(&address) {
            Some(said) => said,
            None if has_room => {
                let first = Mention {
                    last: now,
                    unsaid: 0,
                };
                self.addresses.insert(address, first);
                return Some(0);
            }
            None => match &mut self.others {
                Some(said) => said,
                others @ None => {
                    *others = Some(Mention {
                        last: now,
                        unsaid: 0,
                    });
                    return Some(0);
                }
            },
        };
        if now.duration_since(said.last) < REFUSAL_LOG_INTERVAL {
            said.unsaid += 1;
            return None;
        }
        said.last = now;
        Some(std::mem::take(&mut said.unsaid))
    }

    /// Forgets addresses that were silent for long enough; what was not said of them the others say.
    fn forget(&mut self, now: Instant) {
        let mut unsaid = 0;
        self.addresses.retain(|_, said| {
            let stays = now.duration_since(said.last) < REFUSAL_LOG_INTERVAL;
            unsaid += if stays { 0 } else { said.unsaid };
            stays
        });
        if let Some(others) = &mut self.others {
            others.unsaid += unsaid;
        } else if unsaid > 0 {
            // As if it had been said long ago: the next one may say it.
            let last = now.checked_sub(REFUSAL_LOG_INTERVAL).unwrap_or(now);
            self.others = Some(Mention { last, unsaid });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_118_flood_of_refusals_has_bounded_lines_and_a_full_count() {
        for hosts in [1, 50, 64, 65, 1_000] {
            let (mut log, begin) = (RefusalLog::default(), Instant::now());
            let (mut lines, mut told) = (Vec::new(), 0);
            // 2,000 a second for a minute, and a last one of each address when all is quiet again.
            for number in 0..120_000_u32 {
                let host = IpAddr::from((0x7F00_0000 + number % hosts).to_be_bytes());
                let now = begin + Duration::from_micros(500) * number;
                if let Some(more) = log.note(host, now) {
                    lines.push(now);
                    told += more + 1;
                }
            }
            for window in lines.windows(REFUSAL_LOG_LINES_MAX + 1) {
                let (first, last) = (window[0], window[REFUSAL_LOG_LINES_MAX]);
                assert!(last - first >= REFUSAL_LOG_INTERVAL, "{hosts} addresses");
            }
            let left = (log.addresses.values().chain(&log.others)).map(|said| said.unsaid);
            assert_eq!(told + left.sum::<u64>(), 120_000, "{hosts} addresses");
        }
    }
}
