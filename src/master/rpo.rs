//! What would be lost if this host were lost now, known at any moment: for `walmgr_rpo_seconds`.
//! Never asks anybody: the receiver's acknowledgements are told to it, and the commits' times stand in `pg_wal`.
//! Invariant: 0 only shortly after a look that saw the WAL to its end without a commit that is missing.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use walmgr_protocol::message::Overview;
use walmgr_protocol::names::{Lsn, TimelineId};

use crate::master::held_note::HeldNote;
use crate::master::lag::seconds_since;
use crate::master::tail::WalFiles;
use crate::master::unshipped::{Unshipped, UnshippedScan};

/// From one look to the next, if nothing is acknowledged meanwhile: so late a commit may be noticed.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// From one look to the next at least, however much is acknowledged.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// How long nothing missing stays so without another look.
const LOOK_AGE_MAX: Duration = Duration::from_secs(1);

/// How long counts what the receiver said of its archive as a whole.
const OVERVIEW_AGE_MAX: Duration = Duration::from_secs(300);

/// How often what is held is noted at most: a daemon that is killed leaves a note that is so old.
const NOTE_INTERVAL: Duration = Duration::from_secs(1);

/// How many ends of WAL are remembered: the longer nothing is held, the farther apart they are.
const ENDS_MAX: usize = 256;

/// How far ahead a commit's time may lie: clocks are slewed.
const CLOCK_TOLERANCE_S: f64 = 1.0;

/// What is told, and what was seen. Looks go on as long as this lives.
#[derive(Default)]
pub(super) struct RpoWatch {
    shared: Arc<SharedRpo>,
}

#[derive(Default)]
struct SharedRpo {
    state: Mutex<RpoState>,
    told: Condvar,
}

#[derive(Default)]
struct RpoState {
    note: Option<HeldNote>,
    /// What an earlier syncdaemon noted.
    noted: Option<(TimelineId, Lsn)>,
    files: Option<WalFiles>,
    flushed: Lsn,
    /// Where the server's WAL ended, and when it was asked, in order: a commit behind such an end was made later.
    ends: VecDeque<(Instant, Lsn)>,
    stream: Option<StreamHeld>,
    overview: Option<OverviewHeld>,
    seen: Option<RpoSeen>,
    /// When a look last saw that nothing is missing.
    clear_at: Option<Instant>,
    has_news: bool,
    is_note_read: bool,
    is_looked: bool,
    is_over: bool,
}

/// What the stream of records says.
#[derive(Clone, Copy)]
struct StreamHeld {
    timeline: TimelineId,
    held: Lsn,
    /// Since when WAL before what it ships is known to be missing.
    gap_since: Option<Instant>,
}

/// What the receiver said of its archive.
#[derive(Clone, Copy)]
struct OverviewHeld {
    timeline: TimelineId,
    held: Lsn,
    is_missing: bool,
    /// When it was asked.
    asked: Instant,
}

#[derive(Clone, Copy)]
struct RpoSeen {
    what: Unshipped,
    at: Instant,
    /// When the server's WAL still ended before what is held.
    missing_since: Option<Instant>,
}

impl RpoWatch {
    /// From now on what is held is noted there, and read from there until the receiver has said it.
    pub(super) fn note_in(&self, note: HeldNote) {
        let mut state = self.shared.locked();
        if state.note.as_ref() != Some(&note) {
            (state.note, state.noted) = (Some(note), None);
            state.is_note_read = false;
        }
    }

    /// Looks from now on; a second call changes nothing.
    pub(super) fn start(&self) {
        let mut state = self.shared.locked();
        if std::mem::replace(&mut state.is_looked, true) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("rpo".to_owned());
        if let Err(error) = thread.spawn(move || shared.go_on()) {
            tracing::warn!("the RPO is not measured: {error}");
        }
    }

    /// Where the master's WAL is, and up to where the server called it flushed when it was asked, if it was.
    pub(super) fn writes(&self, files: &WalFiles, flushed: Option<Lsn>, asked: Instant) {
        let mut state = self.shared.locked();
        let had = state.files.replace(files.clone());
        if had.is_some_and(|had| had.timeline() != files.timeline()) {
            state.ends.clear();
        }
        state.flushed = flushed.unwrap_or_default();
        if let Some(flushed) = flushed {
            state.note_end(asked, flushed);
        }
    }

    /// The stream holds every whole record up to there.
    pub(super) fn holds(&self, timeline: TimelineId, held: Lsn, has_gap: bool) {
        let mut state = self.shared.locked();
        let had = state.stream.filter(|had| had.timeline == timeline);
        if had.is_some_and(|had| had.held == held && had.gap_since.is_some() == has_gap) {
            return;
        }
        let since = had
            .and_then(|had| had.gap_since)
            .unwrap_or_else(Instant::now);
        state.stream = Some(StreamHeld {
            timeline,
            held,
            gap_since: has_gap.then_some(since),
        });
        state.has_news = true;
        self.shared.told.notify_all();
    }

    /// What the receiver answered to a question that was asked then.
    pub(super) fn overview(&self, overview: &Overview, asked: Instant) {
        let mut state = self.shared.locked();
        state.overview = overview.held.map(|(timeline, held)| OverviewHeld {
            timeline,
            held,
            is_missing: overview.missing.is_some(),
            asked,
        });
        state.has_news = true;
        self.shared.told.notify_all();
    }

    /// Seconds of transactions that would be lost now; no less than that where it is not known exactly.
    pub(super) fn seconds(&self) -> Option<f64> {
        let state = self.shared.locked();
        let seen = state.seen?;
        let missing_since = state.clear_at.max(seen.missing_since);
        let at_most = missing_since.map(|at| at.elapsed().as_secs_f64());
        match seen.what {
            Unshipped::Commit(time_us) => {
                let seconds = seconds_since(time_us);
                (seconds > -CLOCK_TOLERANCE_S).then_some(seconds.max(0.0))
            }
            Unshipped::Nothing if seen.at.elapsed() < LOOK_AGE_MAX => Some(0.0),
            Unshipped::Nothing | Unshipped::Unseen => at_most,
        }
    }
}

impl Drop for RpoWatch {
    fn drop(&mut self) {
        self.shared.locked().is_over = true;
        self.shared.told.notify_all();
    }
}

impl RpoState {
    /// Once, as soon as it is known whose WAL this is.
    fn read_note(&mut self) {
        if let (false, Some(files), Some(note)) = (self.is_note_read, &self.files, &self.note) {
            self.noted = note.read(files.cluster());
            self.is_note_read = true;
        }
    }

    /// The server's WAL ended there when it was asked.
    fn note_end(&mut self, asked: Instant, end: Lsn) {
        match self.ends.back_mut() {
            Some((at, last)) if *last == end => *at = asked,
            Some((_, last)) if *last > end => self.ends = VecDeque::from([(asked, end)]),
            _ => self.ends.push_back((asked, end)),
        }
        if self.ends.len() > ENDS_MAX {
            let mut stays = false;
            self.ends.retain(|_| {
                stays = !stays;
                stays
            });
        }
    }

    /// The last moment known at which no WAL was flushed behind what is held.
    fn missing_since(&mut self, held: Lsn) -> Option<Instant> {
        while self.ends.get(1).is_some_and(|(_, end)| *end <= held) {
            self.ends.pop_front();
        }
        let (at, end) = *self.ends.front()?;
        (end <= held).then_some(at)
    }

    /// Up to where the standby holds all; nothing if that is not known.
    fn held(&self) -> Option<(TimelineId, Lsn)> {
        let fresh = |overview: &OverviewHeld| overview.asked.elapsed() < OVERVIEW_AGE_MAX;
        let overview = self.overview.filter(fresh);
        let Some(stream) = self.stream else {
            let said = overview.map(|overview| (overview.timeline, overview.held));
            return said.or(self.noted);
        };
        let overview = overview.filter(|overview| overview.timeline == stream.timeline);
        match (overview, stream.gap_since) {
            // WAL behind a gap does not count.
            (Some(overview), _) if overview.is_missing => Some((stream.timeline, overview.held)),
            (Some(overview), Some(gap_since)) if overview.asked < gap_since => None,
            (None, Some(_)) => None,
            (Some(overview), _) => Some((stream.timeline, stream.held.max(overview.held))),
            (None, None) => Some((stream.timeline, stream.held)),
        }
    }
}

impl SharedRpo {
    fn locked(&self) -> MutexGuard<'_, RpoState> {
        // Each change is one assignment, so a panic elsewhere cannot have left half of one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go_on(&self) {
        let mut scan: Option<UnshippedScan> = None;
        let mut written = None;
        loop {
            let (files, held, flushed, missing_since, is_over) = {
                let mut state = self.locked();
                state.has_news = false;
                state.read_note();
                let held = state.held();
                let missing_since = held.and_then(|(_, held)| state.missing_since(held));
                let files = state.files.clone();
                (files, held, state.flushed, missing_since, state.is_over)
            };
            self.write_note((files.as_ref(), held), &mut written, is_over);
            if is_over {
                return;
            }
            let seen = match (files, held) {
                (Some(files), Some((timeline, held))) if files.timeline() == timeline => {
                    scan = scan.filter(|scan| scan.is_from(&files, held));
                    let scan = scan.get_or_insert_with(|| UnshippedScan::from(&files, held));
                    let what = scan.look(flushed).unwrap_or_else(|error| {
                        tracing::debug!("read WAL in {}: {error}", files.folder().display());
                        Unshipped::Unseen
                    });
                    Some(RpoSeen {
                        what,
                        at: Instant::now(),
                        missing_since,
                    })
                }
                _ => None,
            };
            let mut state = self.locked();
            state.seen = seen;
            if let Some(seen) = seen.filter(|seen| seen.what == Unshipped::Nothing) {
                state.clear_at = Some(seen.at);
            }
            drop(state);
            thread::sleep(LOOK_PAUSE);
            self.wait();
        }
    }

    /// Notes what is held, for who starts next; not each of many acknowledgements in a moment.
    fn write_note(
        &self,
        (files, held): (Option<&WalFiles>, Option<(TimelineId, Lsn)>),
        written: &mut Option<(Instant, (TimelineId, Lsn))>,
        is_last: bool,
    ) {
        let is_due = |(at, what): &(Instant, (TimelineId, Lsn))| {
            Some(*what) != held && (is_last || at.elapsed() >= NOTE_INTERVAL)
        };
        let (Some(files), Some(held)) = (files, held) else {
            return;
        };
        let note = self.locked().note.clone();
        if let Some(note) = note.filter(|_| written.as_ref().is_none_or(is_due)) {
            note.write(files.cluster(), held);
            *written = Some((Instant::now(), held));
        }
    }

    /// Returns when there is something to look at again.
    fn wait(&self) {
        let state = self.locked();
        let waits = |state: &mut RpoState| !state.has_news && !state.is_over;
        let waited = (self.told).wait_timeout_while(state, LOOK_INTERVAL - LOOK_PAUSE, waits);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the metric says of a look that did not come to its end, with everything held up to there.
    fn seconds_unseen(ends: &[(u64, u64)], held: u64) -> f64 {
        let now = Instant::now();
        let ago = |seconds| now.checked_sub(Duration::from_secs(seconds)).unwrap();
        let watch = RpoWatch::default();
        let mut state = watch.shared.locked();
        state.clear_at = Some(ago(60));
        for (seconds, end) in ends {
            state.note_end(ago(*seconds), Lsn(*end));
        }
        let missing_since = state.missing_since(Lsn(held));
        state.seen = Some(RpoSeen {
            what: Unshipped::Unseen,
            at: now,
            missing_since,
        });
        drop(state);
        watch.seconds().unwrap().floor()
    }

    #[test]
    fn fault_190_an_unfinished_look_counts_from_where_held_wal_was_the_end() {
        let ends = [(50, 100), (40, 100), (3, 200), (1, 300)];
        assert_eq!(seconds_unseen(&ends, 99), 60.0);
        assert_eq!(seconds_unseen(&ends, 100), 40.0);
        assert_eq!(seconds_unseen(&ends, 299), 3.0);
        assert_eq!(seconds_unseen(&ends, 300), 1.0);
    }

    #[test]
    fn fault_190_an_end_that_went_back_is_believed_alone() {
        let ends = [(50, 100), (40, 200), (3, 150)];
        assert_eq!(seconds_unseen(&ends, 149), 60.0);
        assert_eq!(seconds_unseen(&ends, 150), 3.0);
    }

    #[test]
    fn fault_190_many_ends_are_remembered_farther_apart() {
        let watch = RpoWatch::default();
        let mut state = watch.shared.locked();
        for end in 0..1_000 {
            state.note_end(Instant::now(), Lsn(end));
        }
        assert!(state.ends.len() <= ENDS_MAX);
        assert_eq!(state.ends.front().unwrap().1, Lsn(0));
        assert_eq!(state.ends.back().unwrap().1, Lsn(999));
    }
}
