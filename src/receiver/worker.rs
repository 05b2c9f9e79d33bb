//! The receiver's threads: a worker with a bounded queue for each flow, and single requests.
//! Never talks to a socket. Invariant: whatever a worker does, a panic included, its connection hears
//! of its end: without a report it, and the client behind it, would wait until their deadlines.
//!
//! A panic ends what it happened in and nothing else. It is one line in the log, with the place, is counted, and
//! answered `internal`.

use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use walmgr_protocol::message::{Error, ErrorCode};

use crate::abnormal;

static PANICS: AtomicU64 = AtomicU64::new(0);
static WORKERS: AtomicU64 = AtomicU64::new(0);

/// The threads that work with one store: counted, in the log under the name of its cluster, and looked after when
/// one of them has done its work. Clones are the same.
#[derive(Clone)]
pub(crate) struct Workforce {
    threads: TaskTracker,
    span: tracing::Span,
    /// Called behind every piece of work, however it ended.
    worked: Arc<dyn Fn() + Send + Sync>,
    ends: Arc<WorkEnds>,
}

/// How many threads have done their work.
#[derive(Default)]
struct WorkEnds {
    count: Mutex<u64>,
    more: Condvar,
}

impl Workforce {
    /// No thread yet; what they log is in `span`.
    pub(crate) fn new(span: tracing::Span, worked: impl Fn() + Send + Sync + 'static) -> Self {
        Workforce {
            threads: TaskTracker::new(),
            span,
            worked: Arc::new(worked),
            ends: Arc::default(),
        }
    }

    /// Returns when none of them is at work.
    pub(crate) async fn ended(&self) {
        self.threads.close();
        self.threads.wait().await;
    }

    /// Where their lines in the log belong.
    pub(crate) const fn span(&self) -> &tracing::Span {
        &self.span
    }

    /// How many are at work.
    pub(crate) fn len(&self) -> usize {
        self.threads.len()
    }

    /// How many have done their work, and let go of what they held.
    pub(crate) fn ends(&self) -> u64 {
        *self.ends.count()
    }

    /// Waits until more have than `seen`, but no longer than so. Blocks.
    pub(crate) fn wait_for_an_end(&self, seen: u64, patience: Duration) {
        let ends = &self.ends;
        let _waited = (ends.more).wait_timeout_while(ends.count(), patience, |n| *n == seen);
    }

    /// Does something on a thread of this name.
    fn spawn<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
        then: impl FnOnce(Result<T, Error>) + Send + 'static,
    ) {
        let (counted, this) = (self.threads.token(), self.clone());
        tokio::task::spawn_blocking(move || {
            let _counted = counted;
            let _named = this.span.enter();
            let ended = contained(name, work);
            (this.worked)();
            *this.ends.count() += 1;
            this.ends.more.notify_all();
            then(ended);
        });
    }
}

impl WorkEnds {
    fn count(&self) -> MutexGuard<'_, u64> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

macro_rules! awaited_work {
    ($($(#[$what:meta])* $name:ident = $words:literal;)*) => {
        /// The work that a client waits for, each on a thread of its own.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum AwaitedWork {
            $($(#[$what])* $name,)*
        }

        impl AwaitedWork {
            /// All of them.
            pub(crate) const ALL: &'static [AwaitedWork] = &[$(AwaitedWork::$name,)*];

            /// What the client and the log call it.
            pub(crate) const fn words(self) -> &'static str {
                match self {
                    $(AwaitedWork::$name => $words,)*
                }
            }
        }
    };
}

awaited_work! {
    /// A file comes into the archive.
    Upload = "upload";
    /// Records of the segment in progress come.
    Stream = "stream";
    /// A backup set comes.
    Backup = "backup";
    /// A file or a backup set is sent back.
    Fetch = "fetch";
    /// Blocks are measured and dropped.
    Trial = "trial";
    /// A request about the archive is answered.
    Request = "request";
    /// A question about a backup set is looked into.
    SetQuestion = "question about a backup set";
}

/// What a worker tells its connection.
pub(crate) trait WorkerReport: Send + 'static {
    /// It gave up; nothing follows.
    fn failed(error: Error) -> Self;
}

/// What a worker said, and which: its connection may have begun another since.
pub(crate) struct FromWorker<Report> {
    /// The worker's [`Worker::id`].
    pub worker: u64,
    /// Its words.
    pub report: Report,
}

/// The way of a worker's reports to its connection; `false` when that is gone.
pub(crate) type Say<Report> = Arc<dyn Fn(Report) -> bool + Send + Sync>;

/// The connection's end of a worker.
pub(crate) struct Worker<Job, Report> {
    id: u64,
    jobs: mpsc::Sender<Job>,
    says: PhantomData<fn(Report)>,
}

impl<Job: Send + 'static, Report: WorkerReport> Worker<Job, Report> {
    /// Starts a thread for this work, which does `work` and says in the end how that failed, if it did.
    /// As many jobs as `queue` wait for it. Dropping the returned value ends the queue.
    ///
    /// Whatever `work` wrote on its way is a temporary, which unwinding removes.
    pub(crate) fn start(
        of: &Workforce,
        awaited: AwaitedWork,
        queue: usize,
        say: impl Fn(FromWorker<Report>) -> bool + Send + Sync + 'static,
        work: impl FnOnce(mpsc::Receiver<Job>, &Say<Report>) -> Result<(), Error> + Send + 'static,
    ) -> Self {
        let (jobs, inbox) = mpsc::channel(queue);
        let (worker, say) = new(say, jobs);
        let at_work = Arc::clone(&say);
        let ended = move |ended: Result<Result<(), Error>, Error>| {
            if let Err(error) = ended.and_then(|ended| ended) {
                say(Report::failed(error));
            }
        };
        of.spawn(awaited.words(), move || work(inbox, &at_work), ended);
        worker
    }

    /// A worker that was refused: it says why, and takes no job.
    pub(crate) fn refused(
        error: Error,
        say: impl Fn(FromWorker<Report>) -> bool + Send + Sync + 'static,
    ) -> Self {
        let (worker, say) = new(say, mpsc::channel(1).0);
        say(Report::failed(error));
        worker
    }

    /// Its number: no two workers of a process have the same.
    pub(crate) const fn id(&self) -> u64 {
        self.id
    }

    /// Hands over a job, waiting while the worker is behind. One that has ended takes none; its report
    /// is on the way.
    pub(crate) async fn give(&self, job: Job) {
        let _ = self.jobs.send(job).await;
    }

    /// Hands over a job that the worker can do without.
    pub(crate) fn offer(&self, job: Job) {
        let _ = self.jobs.try_send(job);
    }
}

fn new<Job, Report: 'static>(
    say: impl Fn(FromWorker<Report>) -> bool + Send + Sync + 'static,
    jobs: mpsc::Sender<Job>,
) -> (Worker<Job, Report>, Say<Report>) {
    let id = WORKERS.fetch_add(1, Ordering::Relaxed) + 1;
    let says = PhantomData;
    let say = Arc::new(move |report| say(FromWorker { worker: id, report }));
    (Worker { id, jobs, says }, say)
}

/// Does one thing on a thread of this name, and waits for it. What a client waits for has its name from
/// [`AwaitedWork`].
pub(crate) async fn once<T: Send + 'static>(
    of: &Workforce,
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let told = ask(of, name, |_| work());
    told.await.unwrap_or_else(|_| Err(failed_on(name)))
}

/// Begins one thing on a thread of this name, and hands out its answer, a panic's too. The work may ask whether nobody
/// waits for the answer any more.
pub(crate) fn ask<T: Send + 'static>(
    of: &Workforce,
    name: &'static str,
    work: impl FnOnce(&dyn Fn() -> bool) -> T + Send + 'static,
) -> oneshot::Receiver<Result<T, Error>> {
    let (teller, told) = oneshot::channel();
    let teller = Arc::new(teller);
    let asked = Arc::clone(&teller);
    let at_work = move || work(&|| asked.is_closed());
    of.spawn(name, at_work, move |ended| {
        // The work has let go of its own; whoever asked may be gone, then nobody needs to know.
        if let Some(teller) = Arc::into_inner(teller) {
            let _ = teller.send(ended);
        }
    });
    told
}

/// Does one thing on a thread of this name, and does not wait for it.
pub(crate) fn aside(of: &Workforce, name: &'static str, work: impl FnOnce() + Send + 'static) {
    of.spawn(name, work, drop);
}

/// Panics of workers since the start.
#[cfg(test)]
pub(crate) fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// The answer to a panic.
pub(crate) fn failed_on(name: &str) -> Error {
    Error::channel(
        ErrorCode::Internal,
        format!("the receiver failed on this {name}"),
        "look at its log on the standby",
    )
}

/// Polls a task of this name, and answers its panic as a worker's is answered.
pub(crate) async fn contained_task<T>(
    name: &'static str,
    task: impl Future<Output = T>,
) -> Result<T, Error> {
    let mut task = pin!(async {
        abnormal::plant(name);
        task.await
    });
    let polled = poll_fn(
        |context| match abnormal::caught(|| task.as_mut().poll(context)) {
            Ok(polled) => polled.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        },
    );
    polled.await.map_err(|panic| answered(name, &panic))
}

/// Does one thing on this very thread, and answers its panic as a worker's is answered.
pub(crate) fn contained<T>(name: &'static str, work: impl FnOnce() -> T) -> Result<T, Error> {
    let ended = abnormal::caught(|| {
        abnormal::plant(name);
        work()
    });
    ended.map_err(|panic| answered(name, &panic))
}

fn answered(name: &str, panic: &str) -> Error {
    let count = PANICS.fetch_add(1, Ordering::Relaxed) + 1;
    tracing::error!(
        "a panic ended this {name}: {panic}; it is number {count} since the start, please report it"
    );
    failed_on(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Spoken {
        Done(u32),
        Failed(ErrorCode),
    }

    impl WorkerReport for Spoken {
        fn failed(error: Error) -> Self {
            Spoken::Failed(error.code)
        }
    }

    type Work = fn(mpsc::Receiver<u32>, &Say<Spoken>) -> Result<(), Error>;

    fn start(work: Work) -> (Worker<u32, Spoken>, mpsc::Receiver<Spoken>) {
        let (reports, inbox) = mpsc::channel(8);
        let say = move |said: FromWorker<Spoken>| reports.try_send(said.report).is_ok();
        let worker = Worker::start(&workforce(), AwaitedWork::Upload, 2, say, work);
        (worker, inbox)
    }

    fn workforce() -> Workforce {
        Workforce::new(tracing::Span::none(), || {})
    }

    #[tokio::test]
    async fn fault_116_a_worker_that_panics_reports_an_internal_failure() {
        let before = panics();
        let (worker, mut reports) = start(|mut jobs, say| {
            while let Some(job) = jobs.blocking_recv() {
                assert!(job < 2, "a bug");
                say(Spoken::Done(job));
            }
            Ok(())
        });
        for job in 0..5 {
            worker.give(job).await;
        }
        assert_eq!(reports.recv().await, Some(Spoken::Done(0)));
        assert_eq!(reports.recv().await, Some(Spoken::Done(1)));
        assert_eq!(
            reports.recv().await,
            Some(Spoken::Failed(ErrorCode::Internal))
        );
        assert_eq!(reports.recv().await, None);
        assert!(panics() > before);
    }

    #[tokio::test]
    async fn a_worker_says_why_it_failed_and_nothing_when_it_did_not() {
        let (worker, mut reports) = start(|_, _| Err(Error::channel(ErrorCode::Busy, "x", "")));
        assert_eq!(reports.recv().await, Some(Spoken::Failed(ErrorCode::Busy)));
        worker.give(1).await;
        let (worker, mut reports) = start(|mut jobs, _| {
            while jobs.blocking_recv().is_some() {}
            Ok(())
        });
        worker.offer(1);
        drop(worker);
        assert_eq!(reports.recv().await, None);
        let (reports, mut inbox) = mpsc::channel(1);
        let say = move |said: FromWorker<Spoken>| reports.try_send(said.report).is_ok();
        let refused = Worker::<u32, _>::refused(Error::channel(ErrorCode::Busy, "x", ""), say);
        refused.give(1).await;
        assert_eq!(inbox.recv().await, Some(Spoken::Failed(ErrorCode::Busy)));
    }

    #[tokio::test]
    async fn a_task_that_panics_is_answered_internal() {
        assert_eq!(contained_task("test", async { 5 }).await, Ok(5));
        let before = panics();
        let failing = async {
            tokio::task::yield_now().await;
            assert!(before > panics(), "a bug");
        };
        let failed = contained_task("test", failing).await.unwrap_err();
        assert_eq!(failed.code, ErrorCode::Internal);
        assert!(panics() > before);
    }

    #[tokio::test]
    async fn a_request_that_panics_is_answered_internal() {
        assert_eq!(once(&workforce(), "test", || 5).await, Ok(5));
        let failed = once(&workforce(), "test", || panic!("a bug")).await;
        assert_eq!(
            failed.map_err(|error: Error| error.code),
            Err::<(), _>(ErrorCode::Internal)
        );
    }
}
