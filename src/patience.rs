//! Work that a file system which does not answer may hold for ever, on threads that nobody waits for any longer.
//! Never ends a thread: the kernel alone can. Invariant: of work with one key no two pieces are under way, so that a
//! file system that hangs for good holds one thread for each key.

pub(crate) mod process;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long is waited for a file and the paths that it names: a healthy disk needs a thousandth of it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Pieces of work at once. More gain nothing on one disk.
const AT_ONCE: usize = 4;

/// Work that takes longer keeps others from beginning no more: it waits for something.
const SLOW_AFTER: Duration = Duration::from_millis(100);

/// How often is looked for work that has become slow, or takes too long.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How often is looked whether the piece whose turn it is takes too long.
const TURN_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Who waits with patience. Clones know of each other's work.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    /// How long is waited for an answer, or for the first step of work that takes steps.
    first: Duration,
    /// How long is waited for an answer, or for the next step of work that takes steps.
    most: Duration,
    /// Whether a piece begins when that before it has ended or was given up on.
    in_turn: bool,
    /// The keys of work that has not come back.
    away: Arc<Mutex<BTreeSet<PathBuf>>>,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// It is not done after so long, or that before it is not.
    Overdue(Duration),
    /// It has made no step for so long.
    Stalled(Duration),
    /// It cannot be begun, or was ended by a panic that has been logged.
    Failed,
}

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoAnswer::Overdue(most) => write!(
                out,
                "a file system does not answer: after {} s its paths could not be looked at; check the mounts below \
                 the paths that it names",
                most.as_secs_f32()
            ),
            NoAnswer::Stalled(most) => write!(
                out,
                "a file system does not answer: the work got no further for {} s; check the mounts below \
                 the paths that it names",
                most.as_secs_f32()
            ),
            NoAnswer::Failed => out.write_str("it could not be read: see the log"),
        }
    }
}

impl Default for Patience {
    fn default() -> Self {
        Patience::of(PATIENCE)
    }
}

impl Patience {
    /// Waits so long for each piece of work.
    pub(crate) fn of(most: Duration) -> Self {
        Patience {
            first: most,
            most,
            in_turn: false,
            away: Arc::default(),
        }
    }

    /// Does one piece of work at a time. Waits `first` for its first step, which a disk that hangs does not let it make,
    /// and then as long as no two of its steps are `most` apart.
    pub(crate) fn in_turn(first: Duration, most: Duration) -> Self {
        Patience {
            first,
            in_turn: true,
            ..Patience::of(most)
        }
    }

    /// Does the work of every key, some at a time, and answers by key. Blocks, for each key no longer than the
    /// patience lasts.
    pub(crate) fn each<T: Send + 'static>(
        &self,
        keys: impl IntoIterator<Item = PathBuf>,
        work: impl Fn(&Path) -> T + Send + Sync + 'static,
    ) -> BTreeMap<PathBuf, Result<T, NoAnswer>> {
        self.each_by_steps(keys, move |key, _| work(key))
    }

    /// Does it for work that says when it has made a step: from there the patience lasts anew.
    pub(crate) fn each_by_steps<T: Send + 'static>(
        &self,
        keys: impl IntoIterator<Item = PathBuf>,
        work: impl Fn(&Path, &LastStep) -> T + Send + Sync + 'static,
    ) -> BTreeMap<PathBuf, Result<T, NoAnswer>> {
        let (teller, told) = channel();
        let mut round = Round {
            patience: self,
            work: Arc::new(work),
            left: keys.into_iter().collect(),
            begun: BTreeMap::new(),
            answers: BTreeMap::new(),
            teller,
        };
        while round.begin() {
            round.wait(&told);
        }
        round.answers
    }

    fn away(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        // Each change is one call.
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a piece of work last made a step.
#[derive(Debug)]
pub(crate) struct LastStep(Mutex<StepTime>);

/// The beginning of the work, or its newest step.
#[derive(Debug, Clone, Copy)]
struct StepTime {
    at: Instant,
    is_beginning: bool,
}

impl LastStep {
    fn now() -> Arc<Self> {
        Arc::new(LastStep(Mutex::new(StepTime {
            at: Instant::now(),
            is_beginning: true,
        })))
    }

    /// Says that the work goes on.
    pub(crate) fn made(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = StepTime {
            at: Instant::now(),
            is_beginning: false,
        };
    }

    /// Why it is waited for no longer; `None` if it is.
    fn given_up(&self, patience: &Patience) -> Option<NoAnswer> {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let most = match last.is_beginning {
            true => patience.first,
            false => patience.most,
        };
        let why = match patience.in_turn {
            true => NoAnswer::Stalled(most),
            false => NoAnswer::Overdue(most),
        };
        (last.at.elapsed() >= most).then_some(why)
    }
}

/// A key, and what came of its work; nothing after a panic.
type Told<T> = (PathBuf, Option<T>);

/// The work of several keys.
struct Round<'a, T, Work> {
    patience: &'a Patience,
    work: Arc<Work>,
    left: VecDeque<PathBuf>,
    begun: BTreeMap<PathBuf, (Instant, Arc<LastStep>)>,
    answers: BTreeMap<PathBuf, Result<T, NoAnswer>>,
    teller: Sender<Told<T>>,
}

impl<T: Send + 'static, Work: Fn(&Path, &LastStep) -> T + Send + Sync + 'static>
    Round<'_, T, Work>
{
    /// Begins what may begin; `false` when all is over.
    fn begin(&mut self) -> bool {
        let is_quick = |since: &Instant| since.elapsed() < SLOW_AFTER;
        let quick = self.begun.values().filter(|(since, _)| is_quick(since));
        let mut room = match self.patience.in_turn {
            true => usize::from(self.begun.is_empty()),
            false => AT_ONCE.saturating_sub(quick.count()),
        };
        while room > 0
            && let Some(key) = self.left.pop_front()
        {
            if !self.patience.away().insert(key.clone()) {
                let overdue = NoAnswer::Overdue(self.patience.most);
                self.answers.insert(key, Err(overdue));
                continue;
            }
            let piece = PieceOfWork {
                key: key.clone(),
                answer: None,
                patience: self.patience.clone(),
                teller: self.teller.clone(),
            };
            let work = Arc::clone(&self.work);
            let last_step = LastStep::now();
            let of_piece = Arc::clone(&last_step);
            let thread = thread::Builder::new().name("patience".to_owned());
            // Where no thread can be had the piece is dropped, which tells that it failed.
            let _ = thread.spawn(move || piece.work(&*work, &of_piece));
            self.begun.insert(key, (Instant::now(), last_step));
            room -= 1;
        }
        !self.begun.is_empty()
    }

    /// Takes in an answer, and gives up on what takes too long.
    fn wait(&mut self, told: &Receiver<Told<T>>) {
        // What ends tells it; this is for what does not.
        let look_interval = match self.patience.in_turn {
            true => (self.patience.first / 10).min(TURN_LOOK_INTERVAL),
            false => LOOK_INTERVAL,
        };
        match told.recv_timeout(look_interval) {
            // What was given up on is not believed later.
            Ok((key, answer)) if self.begun.remove(&key).is_some() => {
                let answer = answer.ok_or(NoAnswer::Failed);
                self.answers.insert(key, answer);
            }
            Ok(_) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        let (patience, answers) = (self.patience, &mut self.answers);
        self.begun.retain(|key, (_, last)| {
            let given_up = last.given_up(patience);
            answers.extend(given_up.map(|why| (key.clone(), Err(why))));
            given_up.is_none()
        });
    }
}

/// One key's work, which tells what came of it however it ends.
struct PieceOfWork<T> {
    key: PathBuf,
    answer: Option<T>,
    patience: Patience,
    teller: Sender<Told<T>>,
}

impl<T> PieceOfWork<T> {
    fn work(mut self, work: &dyn Fn(&Path, &LastStep) -> T, last_step: &LastStep) {
        let answer = work(&self.key, last_step);
        self.answer = Some(answer);
    }
}

impl<T> Drop for PieceOfWork<T> {
    fn drop(&mut self) {
        self.patience.away().remove(&self.key);
        let key = std::mem::take(&mut self.key);
        // Whoever asked may have given up.
        let _ = self.teller.send((key, self.answer.take()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn whoever_does_not_come_back_keeps_nobody_else_from_answering() {
        let patience = Patience::of(Duration::from_millis(300));
        let names: Vec<PathBuf> = (0..50)
            .map(|number| PathBuf::from(number.to_string()))
            .collect();
        let (end, ended) = channel::<()>();
        let ended = Mutex::new(ended);
        let hangs = |key: &Path| key.to_str().unwrap().parse::<u32>().unwrap() % 5 == 0;
        let work = move |key: &Path| {
            if hangs(key) {
                let _ = ended.lock().unwrap().recv();
            }
            key.to_path_buf()
        };
        let answers = patience.each(names.clone(), work);
        assert_eq!(answers.len(), names.len());
        for (key, answer) in answers {
            match hangs(&key) {
                true => assert_eq!(answer, Err(NoAnswer::Overdue(patience.most))),
                false => assert_eq!(answer, Ok(key)),
            }
        }
        // None of them is begun again as long as it is away.
        let again = patience.each(names.clone(), |_| ());
        let away = again.values().filter(|answer| answer.is_err()).count();
        assert_eq!((away, patience.away().len()), (10, 10));
        drop(end);
        while !patience.away().is_empty() {
            thread::sleep(LOOK_INTERVAL);
        }
        let answers = patience.each(names, |_| ());
        assert!(answers.values().all(Result::is_ok));
    }

    #[test]
    fn work_in_turn_is_waited_for_while_it_makes_steps() {
        let (first, most) = (Duration::from_millis(1_000), Duration::from_millis(1_500));
        let patience = Patience::in_turn(first, most);
        let (end, ended) = channel::<()>();
        let (ended, under_way) = (Mutex::new(ended), Mutex::new(BTreeSet::new()));
        let all = keys(&["a", "hangs", "hangs later", "z"]);
        let answers = patience.each_by_steps(all, move |key, step| {
            let hangs = key.to_str().unwrap().starts_with("hangs");
            under_way.lock().unwrap().insert(key.to_path_buf());
            if key == Path::new("hangs later") {
                step.made();
            }
            if hangs {
                let _ = ended.lock().unwrap().recv();
            }
            for _ in 0..12 {
                thread::sleep(most / 10);
                step.made();
            }
            let mut under_way = under_way.lock().unwrap();
            under_way.remove(key);
            under_way.len()
        });
        // Longer than the patience lasts, and alone but for what was given up on.
        assert_eq!(answers[Path::new("a")], Ok(0));
        assert_eq!(answers[Path::new("hangs")], Err(NoAnswer::Stalled(first)));
        assert_eq!(
            answers[Path::new("hangs later")],
            Err(NoAnswer::Stalled(most))
        );
        assert_eq!(answers[Path::new("z")], Ok(2));
        drop(end);
    }

    #[test]
    fn work_that_panics_is_told_from_work_that_hangs() {
        let patience = Patience::default();
        let work = |key: &Path| assert_ne!(key, Path::new("b"), "a bug");
        let answers = patience.each(keys(&["a", "b"]), work);
        assert_eq!(answers[Path::new("a")], Ok(()));
        assert_eq!(answers[Path::new("b")], Err(NoAnswer::Failed));
    }
}
