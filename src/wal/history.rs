//! Timeline history files: which timelines a timeline came from, and where it left them.
//! Never reads the file itself. Invariant: a parsed history has at least one ancestor, each of a
//! lower number than the next, and the last lower than the timeline itself.
//!
//! Format (`readTimeLineHistory`, `src/backend/access/transam/timeline.c`): one line an ancestor,
//! oldest first: its number, where the next timeline leaves it, and the reason, with white space
//! between. Empty lines and what begins with `#` mean nothing.

use walmgr_protocol::names::{Lsn, TimelineId};

/// A timeline that another one came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    /// Its number.
    pub timeline: TimelineId,
    /// The next timeline begins here; WAL of this one behind it belongs to nobody's past.
    pub switch_point: Lsn,
    /// Why, as the server wrote it.
    pub reason: String,
}

/// Where a timeline came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    timeline: TimelineId,
    ancestors: Vec<Ancestor>,
}

impl History {
    /// Reads the history file of `timeline`.
    ///
    /// # Errors
    /// The first line that PostgreSQL would not read either, or a file without any ancestor:
    /// timeline 1 has no history file, so every file has one.
    pub fn parse(timeline: TimelineId, text: &[u8]) -> Result<History, HistoryFault> {
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let line_number = index + 1;
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let ancestor =
                parse_line(line).map_err(|why| HistoryFault::Line { line_number, why })?;
            let newest = ancestors.last().map(|before| before.timeline);
            if newest.is_some_and(|before| before >= ancestor.timeline) {
                let why = LineFault::Order;
                return Err(HistoryFault::Line { line_number, why });
            }
            ancestors.push(ancestor);
        }
        match ancestors.last() {
            None => Err(HistoryFault::Empty),
            Some(parent) if parent.timeline >= timeline => Err(HistoryFault::NotOlder {
                timeline,
                parent: parent.timeline,
            }),
            Some(_) => Ok(History {
                timeline,
                ancestors,
            }),
        }
    }

    /// The timeline whose history this is.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The timelines it came from, oldest first; never empty.
    pub fn ancestors(&self) -> &[Ancestor] {
        &self.ancestors
    }

    /// It and the timelines it came from, newest first, each with where it begins.
    pub fn timelines(&self) -> Vec<(TimelineId, Lsn)> {
        let (mut timelines, mut next) = (Vec::new(), self.timeline);
        for ancestor in self.ancestors.iter().rev() {
            timelines.push((next, ancestor.switch_point));
            next = ancestor.timeline;
        }
        timelines.push((next, Lsn(0)));
        timelines
    }

    /// Whose WAL holds the byte at `lsn`, on the way to this timeline
    /// (`tliOfPointInHistory`).
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.ancestors
            .iter()
            .find(|ancestor| lsn < ancestor.switch_point)
            .map_or(self.timeline, |ancestor| ancestor.timeline)
    }
}

/// Why a file is not the history of its timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HistoryFault {
    /// No line names an ancestor.
    #[error("it names no timeline")]
    Empty,
    /// A line that cannot be read.
    #[error("line {line_number}: {why}")]
    Line {
        /// Counted from 1.
        line_number: usize,
        /// What is wrong with it.
        why: LineFault,
    },
    /// The last ancestor is not older than the timeline.
    #[error("it says timeline {timeline} came from {parent}, which is not older")]
    NotOlder {
        /// Whose history the file should be.
        timeline: TimelineId,
        /// The last ancestor.
        parent: TimelineId,
    },
}

/// Why a line of a history file cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// It does not begin with a timeline's number.
    #[error("expected the number of a timeline")]
    Timeline,
    /// No LSN follows the number.
    #[error("expected a WAL location")]
    SwitchPoint,
    /// It is not newer than the line before.
    #[error("timelines have to increase")]
    Order,
}

fn parse_line(line: &[u8]) -> Result<Ancestor, LineFault> {
    let (number, rest) = split_word(line);
    let number = std::str::from_utf8(number).map_err(|_| LineFault::Timeline)?;
    let plain = number.bytes().all(|byte| byte.is_ascii_digit());
    let timeline = plain
        .then(|| number.parse().ok().and_then(TimelineId::new))
        .flatten()
        .ok_or(LineFault::Timeline)?;
    let (location, reason) = split_word(rest);
    let switch_point = std::str::from_utf8(location)
        .ok()
        .and_then(|location| location.parse().ok())
        .ok_or(LineFault::SwitchPoint)?;
    Ok(Ancestor {
        timeline,
        switch_point,
        reason: String::from_utf8_lossy(reason).into_owned(),
    })
}

/// The first word, and what follows the white space behind it.
fn split_word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text
        .iter()
        .position(u8::is_ascii_whitespace)
        .unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    (word, rest.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn fault(number: u32, text: &str) -> HistoryFault {
        History::parse(timeline(number), text.as_bytes()).unwrap_err()
    }

    #[test]
    fn a_file_a_server_wrote_is_read() {
        let text = b"1\t0/3000158\tno recovery target specified\n\n\
                     2\t0/5000000\tbefore 2026-01-01 00:00:00+00\n";
        let history = History::parse(timeline(3), text).unwrap();
        assert_eq!(history.timeline(), timeline(3));
        assert_eq!(history.ancestors().len(), 2);
        assert_eq!(history.ancestors()[0].switch_point, Lsn(0x300_0158));
        assert_eq!(
            history.ancestors()[0].reason,
            "no recovery target specified"
        );
        let begins = [(3, 0x500_0000), (2, 0x300_0158), (1, 0)];
        let begins = begins.map(|(number, begin)| (timeline(number), Lsn(begin)));
        assert_eq!(history.timelines(), begins);
        assert_eq!(history.timeline_at(Lsn(0x300_0157)), timeline(1));
        assert_eq!(history.timeline_at(Lsn(0x300_0158)), timeline(2));
        assert_eq!(history.timeline_at(Lsn(0x500_0000)), timeline(3));
    }

    #[test]
    fn comments_and_white_space_mean_nothing() {
        let text = b"# by hand\n  1 0/3000158 why\r\n   \n";
        let history = History::parse(timeline(2), text).unwrap();
        assert_eq!(history.ancestors()[0].reason, "why");
    }

    #[test]
    fn each_wrong_line_is_named() {
        let at = |line_number, why| HistoryFault::Line { line_number, why };
        assert_eq!(fault(2, "x\t0/1\n"), at(1, LineFault::Timeline));
        assert_eq!(fault(2, "0\t0/1\n"), at(1, LineFault::Timeline));
        assert_eq!(fault(2, "+1\t0/1\n"), at(1, LineFault::Timeline));
        assert_eq!(fault(2, "99999999999\t0/1\n"), at(1, LineFault::Timeline));
        assert_eq!(fault(2, "1"), at(1, LineFault::SwitchPoint));
        assert_eq!(fault(2, "#\n1\t0-1\t\n"), at(2, LineFault::SwitchPoint));
        assert_eq!(fault(4, "2\t0/1\tx\n2\t0/2\tx\n"), at(2, LineFault::Order));
    }

    #[test]
    fn a_file_without_a_past_is_refused() {
        assert_eq!(fault(2, ""), HistoryFault::Empty);
        assert_eq!(fault(2, "\n#\n"), HistoryFault::Empty);
        assert_eq!(
            fault(2, "\0\0\0"),
            HistoryFault::Line {
                line_number: 1,
                why: LineFault::Timeline
            }
        );
        assert!(matches!(
            fault(2, "2\t0/1\tx\n"),
            HistoryFault::NotOlder { .. }
        ));
        assert!(matches!(
            fault(1, "1\t0/1\tx\n"),
            HistoryFault::NotOlder { .. }
        ));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            numbers in proptest::collection::btree_set(1_u32..u32::MAX, 1..20),
            lsn: u64, reason in "[a-z \"]{0,20}",
        ) {
            let text: String = numbers
                .iter()
                .map(|number| format!("{number}\t{}\t{reason}\n", Lsn(lsn)))
                .collect();
            let history = History::parse(timeline(u32::MAX), text.as_bytes()).unwrap();
            let read: Vec<u32> =
                history.ancestors().iter().map(|ancestor| ancestor.timeline.number()).collect();
            prop_assert_eq!(read, numbers.into_iter().collect::<Vec<_>>());
            prop_assert!(history.ancestors().iter().all(|one| one.switch_point == Lsn(lsn)));
            prop_assert!(history.ancestors().iter().all(|one| one.reason == reason.trim()));
        }
    }
}
