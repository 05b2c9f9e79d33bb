//! How long to wait after so many failures.
//! Never waits. Invariant: pauses double up to their bound.

use std::time::Duration;

use crate::transport::connect::fresh_nonce;

/// The first pause after a failure; each further one doubles it.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);

/// The longest pause after a failure: a standby that is back is noticed within this, however long it was away. Shipping
/// is to go on within ten seconds, and a connection is cheap.
const BACKOFF_MAX: Duration = Duration::from_secs(8);

/// Doubling, and never the same for two daemons that lost the same receiver.
pub(super) fn backoff(failures: u32) -> Duration {
    let longest = BACKOFF_FIRST
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(BACKOFF_MAX);
    let random = fresh_nonce().map_or(0, |nonce| nonce[0]);
    longest / 2 + longest.mul_f64(f64::from(random) / 512.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_differ() {
        for failures in [1, 2, 5, 9, 40] {
            let longest = BACKOFF_FIRST * (1 << (failures - 1).min(9));
            assert!(backoff(failures) < Duration::from_secs(10));
            let longest = longest.min(BACKOFF_MAX);
            for _ in 0..20 {
                let pause = backoff(failures);
                assert!(pause >= longest / 2 && pause <= longest, "{pause:?}");
            }
        }
        let pauses: std::collections::BTreeSet<_> = (0..40).map(|_| backoff(9)).collect();
        assert!(pauses.len() > 5);
    }
}
