//! When to say what a command waits for: after a few seconds, and then every ten.
//! Never says it itself. Invariant: nobody looks at a silent screen for longer than five seconds.

use std::time::{Duration, Instant};

/// Whoever waits for less does not wonder.
const FIRST: Duration = Duration::from_secs(3);

/// A long wait does not fill a log.
const AGAIN: Duration = Duration::from_secs(10);

/// A wait that somebody may be looking at.
#[derive(Debug)]
pub struct Waiting {
    begun: Instant,
    next: Duration,
}

impl Waiting {
    /// One that begins now.
    pub fn begin() -> Waiting {
        Waiting {
            begun: Instant::now(),
            next: FIRST,
        }
    }

    /// Whether it is time to say what is waited for.
    pub fn is_due(&mut self) -> bool {
        self.is_due_at(self.begun.elapsed())
    }

    fn is_due_at(&mut self, elapsed: Duration) -> bool {
        let is_due = elapsed >= self.next;
        if is_due {
            self.next = elapsed + AGAIN;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_after_three_seconds_and_then_every_ten() {
        let mut waiting = Waiting::begin();
        let told = (0..30).filter(|second| waiting.is_due_at(Duration::from_secs(*second)));
        assert_eq!(told.collect::<Vec<_>>(), [3, 13, 23]);
    }
}
