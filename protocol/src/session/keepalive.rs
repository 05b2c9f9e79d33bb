//! When to ask whether the other side is there, and when to give it up.
//! Never reads a clock: every call says what time it is. Invariant: a peer that sends nothing is
//! given up after [`Keepalive::dead_after`], whatever this side sends.

use std::time::Duration;

/// What the driver does next.
#[must_use = "a session goes on only when its driver does what it says"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Send [`crate::message::Message::Ping`] and ask again.
    Ping,
    /// Close: nothing was heard for too long.
    Dead,
    /// Ask again after this time.
    Wait(Duration),
}

/// The state of one connection, in time since any fixed moment.
#[derive(Debug, Clone)]
pub struct Keepalive {
    ping_after: Duration,
    dead_after: Duration,
    heard: Duration,
    pinged: bool,
}

impl Keepalive {
    /// Pings a peer that was silent for a third of `dead_after`.
    pub fn new(now: Duration, dead_after: Duration) -> Self {
        Keepalive {
            ping_after: dead_after / 3,
            dead_after,
            heard: now,
            pinged: false,
        }
    }

    /// Silence after which the peer counts as dead.
    pub fn dead_after(&self) -> Duration {
        self.dead_after
    }

    /// Bytes arrived.
    pub fn heard(&mut self, now: Duration) {
        self.heard = self.heard.max(now);
        self.pinged = false;
    }

    /// What to do at `now`.
    pub fn next(&mut self, now: Duration) -> Next {
        let silent = now.saturating_sub(self.heard);
        if silent >= self.dead_after {
            Next::Dead
        } else if silent >= self.ping_after && !self.pinged {
            self.pinged = true;
            Next::Ping
        } else if self.pinged {
            Next::Wait(self.dead_after - silent)
        } else {
            Next::Wait(self.ping_after - silent)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn fault_24_a_silent_peer_is_pinged_once_and_then_given_up() {
        let mut keepalive = Keepalive::new(at(100), at(30));
        assert_eq!(keepalive.next(at(100)), Next::Wait(at(10)));
        assert_eq!(keepalive.next(at(110)), Next::Ping);
        assert_eq!(keepalive.next(at(110)), Next::Wait(at(20)));
        assert_eq!(keepalive.next(at(130)), Next::Dead);
        keepalive.heard(at(131));
        assert_eq!(keepalive.next(at(131)), Next::Wait(at(10)));
    }

    #[test]
    fn fault_40_a_clock_that_jumps_back_kills_nobody() {
        let mut keepalive = Keepalive::new(at(100), at(30));
        keepalive.heard(at(5));
        assert_eq!(keepalive.next(at(0)), Next::Wait(at(10)));
    }
}
