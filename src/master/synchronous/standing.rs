//! How long the standby has been behind what the server had flushed, and whether it keeps up.
//! Never looks at a clock by itself. Invariant: WAL that was flushed and not acknowledged has a time from which on
//! the wait for it counts, and only an acknowledgement of that WAL ends the wait.

use std::time::{Duration, Instant};

use walmgr_protocol::names::Lsn;

/// Where the standby stands.
#[derive(Debug)]
pub(super) struct StandbyStanding {
    behind: Option<AwaitedFlush>,
    end: Lsn,
    keeps_up: bool,
}

/// WAL that is waited for.
#[derive(Debug, Clone, Copy)]
struct AwaitedFlush {
    since: Instant,
    /// Up to where it was flushed when the wait began.
    target: Lsn,
}

impl StandbyStanding {
    /// Of a standby that nobody has heard of yet.
    pub(super) const fn new(now: Instant) -> StandbyStanding {
        let (since, target) = (now, Lsn(1));
        StandbyStanding {
            behind: Some(AwaitedFlush { since, target }),
            end: Lsn(0),
            keeps_up: false,
        }
    }

    /// The server has flushed WAL up to `end`, and the standby's disk has it up to `held`. Whoever waited longer than
    /// `timeout` has to be as fast as that once more before it keeps up.
    pub(super) fn hears(&mut self, end: Lsn, held: Lsn, now: Instant, timeout: Duration) {
        self.end = self.end.max(end);
        let ahead = |since| (end > held).then_some(AwaitedFlush { since, target: end });
        match self.behind {
            None => self.behind = ahead(now),
            Some(behind) if held >= behind.target => {
                self.behind = ahead(now);
                self.keeps_up = self.behind.is_none() || now.duration_since(behind.since) < timeout;
            }
            Some(_) => {}
        }
    }

    /// The receiver is away, or the server does not stream.
    pub(super) fn is_lost(&mut self, now: Instant) {
        let (since, target) = (now, self.end.max(Lsn(1)));
        self.behind.get_or_insert(AwaitedFlush { since, target });
        self.keeps_up = false;
    }

    /// It was taken out: it has to show anew that it keeps up.
    pub(super) const fn is_out(&mut self) {
        self.keeps_up = false;
    }

    /// Whether what the server flushes is on the standby's disk in time.
    pub(super) const fn keeps_up(&self) -> bool {
        self.keeps_up
    }

    /// When the wait will have been so long.
    pub(super) fn overdue_at(&self, timeout: Duration) -> Option<Instant> {
        Some(self.behind?.since + timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(2);

    #[test]
    fn fault_275_a_wait_begins_with_a_flush_and_ends_with_its_acknowledgement() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut standing = StandbyStanding::new(begun);
        assert_eq!(standing.overdue_at(TIMEOUT), Some(at(2_000)));
        standing.hears(Lsn(100), Lsn(0), at(100), TIMEOUT);
        assert!(!standing.keeps_up());
        standing.hears(Lsn(100), Lsn(100), at(200), TIMEOUT);
        assert!(standing.keeps_up());
        assert_eq!(standing.overdue_at(TIMEOUT), None);

        // Always a little behind, under load: each wait is its own.
        for step in 0..50 {
            let end = 200 + step * 100;
            standing.hears(Lsn(end), Lsn(end - 100), at(300 + 100 * step), TIMEOUT);
            assert!(standing.keeps_up());
            let overdue = standing.overdue_at(TIMEOUT).unwrap();
            assert!(
                overdue
                    >= at(300 + 100 * step)
                        .checked_sub(Duration::from_millis(100))
                        .unwrap()
                        + TIMEOUT
            );
        }

        // More and more is flushed, nothing is acknowledged: the first counts.
        let overdue = standing.overdue_at(TIMEOUT);
        standing.hears(Lsn(9_000), Lsn(5_000), at(9_000), TIMEOUT);
        standing.is_lost(at(9_500));
        assert_eq!(standing.overdue_at(TIMEOUT), overdue);
        assert!(!standing.keeps_up());
    }

    #[test]
    fn fault_275_one_that_was_away_keeps_up_once_it_has_all_again() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut standing = StandbyStanding::new(begun);
        standing.hears(Lsn(100), Lsn(100), at(0), TIMEOUT);
        standing.is_lost(at(1_000));
        assert_eq!(standing.overdue_at(TIMEOUT), Some(at(3_000)));
        // It has what there was, but the server is far ahead.
        standing.hears(Lsn(900), Lsn(100), at(60_000), TIMEOUT);
        assert!(!standing.keeps_up());
        standing.hears(Lsn(950), Lsn(900), at(61_000), TIMEOUT);
        assert!(standing.keeps_up());
        standing.is_lost(at(61_500));
        standing.hears(Lsn(950), Lsn(950), at(90_000), TIMEOUT);
        assert!(standing.keeps_up());
    }
}
