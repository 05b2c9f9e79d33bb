//! Protocol versions as a changelog, and the rule by which two sides choose one.
//! Never lists a version that no program speaks.

use std::fmt;

/// The highest version this program speaks.
///
/// | version | since         | what it brought                                       |
/// |---------|---------------|-------------------------------------------------------|
/// | 1       | 4.0.0-alpha.1 | hello, setup, list and overview of the archive; push, |
/// |         |               | backup, fetch, partial stream and trial; ping and     |
/// |         |               | goodbye                                               |
///
/// # When the wire changes
///
/// Whatever a release sends stays readable, from 4.0.0-alpha.1 on. Its frames are in
/// `protocol/tests/golden`, a file a release. The file of a release changes until the release is
/// tagged, and never afterwards.
///
/// - A field is added at the end of the body of a hello or a welcome: readers skip what they do not
///   know there. Nothing else has room for one; it becomes a message of its own.
/// - A message takes a free number of its flow (`message/kind.rs`) and an error the next free one.
///   Numbers are not used again. Whoever does not know a kind hangs up, so a message that a side of
///   the version before may get needs a higher version, a row above and, where that is spoken, the
///   old words.
/// - The file of the version under way is what `every_message_of_version_1_is_frozen` prints; the
///   tests of `tests/skew.rs` take it up by themselves.
pub const HIGHEST: u16 = 1;

/// The lowest version this program speaks: a receiver serves the last two, so that either side
/// may be upgraded first.
pub const LOWEST: u16 = if HIGHEST > 1 { HIGHEST - 1 } else { 1 };

/// A run of versions that one side speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionRange {
    /// The lowest.
    pub lowest: u16,
    /// The highest.
    pub highest: u16,
}

impl VersionRange {
    /// What this program speaks.
    pub const OURS: VersionRange = VersionRange {
        lowest: LOWEST,
        highest: HIGHEST,
    };

    /// Whether this version is one of them.
    pub fn contains(self, version: u16) -> bool {
        (self.lowest..=self.highest).contains(&version)
    }

    /// The highest version in both runs, or `None` when they do not meet.
    pub fn common(self, other: VersionRange) -> Option<u16> {
        let highest = self.highest.min(other.highest);
        let lowest = self.lowest.max(other.lowest);
        (lowest <= highest && lowest > 0).then_some(highest)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lowest == self.highest {
            write!(out, "{}", self.highest)
        } else {
            write!(out, "{} to {}", self.lowest, self.highest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FAULTS 98: the matrix of N-2 to N, whichever side is upgraded first.
    #[test]
    fn fault_98_the_highest_common_version_wins_or_there_is_none() {
        let range = |lowest, highest| VersionRange { lowest, highest };
        let serves = |highest: u16| range(highest.saturating_sub(1).max(1), highest);
        for newest in 1..=6_u16 {
            for back in 0..=2_u16 {
                let Some(older) = newest.checked_sub(back).filter(|older| *older > 0) else {
                    continue;
                };
                let expected = (back <= 1 || older >= serves(newest).lowest).then_some(older);
                assert_eq!(serves(newest).common(serves(older)), expected);
                assert_eq!(serves(older).common(serves(newest)), expected);
            }
        }
        assert_eq!(range(3, 2).common(range(1, 9)), None);
        assert_eq!(range(0, 0).common(range(0, 0)), None);
    }
}
