//! A bound on bytes a second, shared by all who read for one purpose: `backup_rate` and `fetch_rate`.
//! Never limits what archives, ships or replays WAL. Invariant: in any stretch of time at most that many bytes are
//! begun as the rate allows, those of [`BURST`], and one piece more.
//!
//! Whoever reads waits on its own thread before it reads. Each has its turn in the order of asking, so that none of
//! many is left behind; a rate that is changed meanwhile holds at once, also for those who wait.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// For so long what was not used may be used later: a machine under load wakes nobody on time.
const BURST: Duration = Duration::from_millis(100);

/// How soon somebody who waits notices that nobody wants the bytes any more, or that the rate is another.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

const NANOSECONDS: u128 = 1_000_000_000;

/// So many bytes a second, over all who ask.
pub(crate) struct RateLimit(Mutex<RateState>);

impl Default for RateLimit {
    fn default() -> Self {
        RateLimit::new(None)
    }
}

struct RateState {
    /// Bytes a second; `None` for as many as there are.
    rate: Option<u64>,
    /// Bytes that were asked for since the beginning: the place of the next who asks.
    asked_bytes: u64,
    /// Up to which place reading may begin.
    allowed_bytes: u64,
    /// Until when the rate has been counted.
    counted: Instant,
}

impl RateLimit {
    /// Bytes a second; `None` is no limit.
    pub(crate) fn new(rate: Option<u64>) -> RateLimit {
        RateLimit(Mutex::new(RateState {
            rate,
            asked_bytes: 0,
            allowed_bytes: 0,
            counted: Instant::now(),
        }))
    }

    /// From now on so many.
    pub(crate) fn set(&self, rate: Option<u64>) {
        let mut state = self.state();
        state.count(Instant::now());
        state.rate = rate;
    }

    /// Waits until so many bytes may be read; `false` once nobody wants them any more. Blocks.
    pub(crate) fn take(&self, bytes: u64, is_wanted: &dyn Fn() -> bool) -> bool {
        let place = {
            let mut state = self.state();
            state.count(Instant::now());
            let place = state.asked_bytes;
            state.asked_bytes += bytes;
            place
        };
        loop {
            if !is_wanted() {
                self.give_back(bytes);
                return false;
            }
            let wait = {
                let mut state = self.state();
                state.count(Instant::now());
                state.until(place)
            };
            if wait.is_zero() {
                return true;
            }
            sleep(wait.min(LOOK_INTERVAL));
        }
    }

    /// Bytes of what was taken were not read.
    pub(crate) fn give_back(&self, bytes: u64) {
        let mut state = self.state();
        state.allowed_bytes += bytes;
    }

    fn state(&self) -> MutexGuard<'_, RateState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RateState {
    /// Allows what the rate has brought since the last look.
    fn count(&mut self, now: Instant) {
        let Some(rate) = self.rate else {
            (self.counted, self.allowed_bytes) = (now, self.asked_bytes);
            return;
        };
        let passed = now.saturating_duration_since(self.counted).as_nanos();
        let bytes = passed * u128::from(rate) / NANOSECONDS;
        // What is less than a byte is counted by the next look.
        let counted = bytes * NANOSECONDS / u128::from(rate.max(1));
        self.counted += Duration::from_nanos(u64::try_from(counted).unwrap_or(u64::MAX));
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let burst_bytes = u128::from(rate) * BURST.as_nanos() / NANOSECONDS;
        let most =
            (self.asked_bytes).saturating_add(u64::try_from(burst_bytes).unwrap_or(u64::MAX));
        self.allowed_bytes = self.allowed_bytes.saturating_add(bytes).min(most);
    }

    /// How long it takes until reading may begin at this place.
    fn until(&self, place: u64) -> Duration {
        let Some(rate) = self.rate else {
            return Duration::ZERO;
        };
        let missing = u128::from(place.saturating_sub(self.allowed_bytes));
        let ns = (missing * NANOSECONDS).div_ceil(u128::from(rate.max(1)));
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MB: u64 = 1 << 20;

    /// Bytes that are begun within `seconds` by as many readers, by a clock of its own; how many each began.
    fn simulated(rate: u64, piece: u64, readers: usize, seconds: u64) -> Vec<u64> {
        let limit = RateLimit::new(Some(rate));
        let mut state = limit.state();
        let begin = state.counted;
        let (mut now, end) = (begin, begin + Duration::from_secs(seconds));
        let mut places: Vec<u64> = (0..readers as u64).map(|number| number * piece).collect();
        state.asked_bytes = piece * readers as u64;
        let mut begun = vec![0; readers];
        while now < end {
            state.count(now);
            let next = places.iter().enumerate().min_by_key(|(_, place)| **place);
            let (reader, place) = next.map(|(reader, place)| (reader, *place)).unwrap();
            match state.until(place) {
                Duration::ZERO => {
                    begun[reader] += piece;
                    places[reader] = state.asked_bytes;
                    state.asked_bytes += piece;
                }
                // As late as a machine under load wakes somebody.
                wait => now += wait + Duration::from_millis(7),
            }
        }
        begun
    }

    #[test]
    fn fault_188_a_rate_is_kept_from_one_mb_to_gbs_by_any_number() {
        for rate in [MB, 20 * MB, 100 * MB, 1_024 * MB, 4_096 * MB] {
            for readers in [1, 4, 64] {
                let begun = simulated(rate, 256 << 10, readers, 10);
                let sum: u64 = begun.iter().sum();
                let ratio = sum as f64 / (10 * rate) as f64;
                assert!((0.97..1.03).contains(&ratio), "{rate} {readers}: {ratio}");
                let (least, most) = (begun.iter().min(), begun.iter().max());
                assert!(
                    most.unwrap() - least.unwrap() <= 256 << 10,
                    "{rate} {readers}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn fault_188_no_pause_earns_more_than_the_burst(
            rate in MB..4_096 * MB,
            pauses in prop::collection::vec(0_u64..5_000, 1..20),
        ) {
            let limit = RateLimit::new(Some(rate));
            let mut state = limit.state();
            let mut now = state.counted;
            for pause in pauses {
                now += Duration::from_millis(pause);
                state.count(now);
                // A pause of nothing leaves the place that was asked for beyond what is allowed.
                let left = state.allowed_bytes.saturating_sub(state.asked_bytes);
                prop_assert!(left <= rate / 10);
                // All of it, and then nothing is left.
                state.asked_bytes = state.allowed_bytes + 1;
                let place = state.asked_bytes;
                prop_assert!(!state.until(place).is_zero());
            }
        }
    }

    #[test]
    fn a_rate_that_is_lifted_lets_those_go_who_wait() {
        let limit = RateLimit::new(Some(1));
        assert!(limit.take(MB, &|| true));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| limit.take(MB, &|| true));
            sleep(LOOK_INTERVAL);
            assert!(!waits.is_finished());
            limit.set(None);
            assert!(waits.join().unwrap());
        });
    }

    #[test]
    fn who_wants_nothing_more_waits_no_longer_and_costs_nothing() {
        let limit = RateLimit::new(Some(1));
        assert!(limit.take(MB, &|| true));
        let looks = std::cell::Cell::new(0);
        let is_wanted = || {
            looks.set(looks.get() + 1);
            looks.get() < 3
        };
        assert!(!limit.take(MB, &is_wanted));
        let state = limit.state();
        assert!(state.asked_bytes - state.allowed_bytes <= MB);
    }
}
