//! The receiver's threads: a worker with a bounded queue for each flow, and single requests.
//! Never talks to a socket. Invariant: whatever a worker does, a panic included, its connection hears
//! of its end: without a report it, and the client behind it, would wait until their deadlines.
//!
//! A panic ends what it happened in and nothing else. Where it happened the process's hook has logged
//! by then; here it is counted, and answered `internal`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use walmgr_protocol::message::{Error, ErrorCode};

static PANICS: AtomicU64 = AtomicU64::new(0);

/// What a worker tells its connection.
pub trait WorkerReport: Send + 'static {
    /// It gave up; nothing follows.
    fn failed(error: Error) -> Self;
}

/// The connection's end of a worker.
pub struct Worker<Job> {
    jobs: mpsc::Sender<Job>,
}

impl<Job: Send + 'static> Worker<Job> {
    /// Starts a thread of this name, which does `work` and says in the end how that failed, if it did.
    /// As many jobs as `queue` wait for it. Dropping the returned value ends the queue.
    ///
    /// Whatever `work` wrote on its way is a temporary, which unwinding removes.
    pub fn start<R: WorkerReport>(
        name: &'static str,
        queue: usize,
        say: impl Fn(R) -> bool + Send + 'static,
        work: impl FnOnce(mpsc::Receiver<Job>, &dyn Fn(R) -> bool) -> Result<(), Error> + Send + 'static,
    ) -> Worker<Job> {
        let (jobs, inbox) = mpsc::channel(queue);
        tokio::task::spawn_blocking(move || {
            let ended = contained(name, || work(inbox, &say)).and_then(|ended| ended);
            if let Err(error) = ended {
                say(R::failed(error));
            }
        });
        Worker { jobs }
    }

    /// Hands over a job, waiting while the worker is behind. One that has ended takes none; its report
    /// is on the way.
    pub async fn give(&self, job: Job) {
        let _ = self.jobs.send(job).await;
    }

    /// Hands over a job that the worker can do without.
    pub fn offer(&self, job: Job) {
        let _ = self.jobs.try_send(job);
    }

    /// A worker that was refused: it takes no job.
    pub fn none() -> Worker<Job> {
        Worker {
            jobs: mpsc::channel(1).0,
        }
    }
}

/// Does one thing on a thread of this name, and waits for it.
pub async fn once<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let working = tokio::task::spawn_blocking(move || contained(name, work));
    working.await.unwrap_or_else(|_| Err(failed_on(name)))
}

/// Does one thing on a thread of this name, for which nobody waits.
pub fn aside(name: &'static str, work: impl FnOnce() + Send + 'static) {
    tokio::task::spawn_blocking(move || contained(name, work));
}

/// Panics of workers since the start.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// The answer to a panic.
pub fn failed_on(name: &str) -> Error {
    Error::channel(
        ErrorCode::Internal,
        format!("the receiver failed on this {name}"),
        "look at its log on the standby",
    )
}

fn contained<T>(name: &'static str, work: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
        let count = PANICS.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::error!("a panic ended this {name}; {count} panics since the start");
        failed_on(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Said {
        Done(u32),
        Failed(ErrorCode),
    }

    impl WorkerReport for Said {
        fn failed(error: Error) -> Self {
            Said::Failed(error.code)
        }
    }

    type Work = fn(mpsc::Receiver<u32>, &dyn Fn(Said) -> bool) -> Result<(), Error>;

    fn start(work: Work) -> (Worker<u32>, mpsc::Receiver<Said>) {
        let (reports, inbox) = mpsc::channel(8);
        let say = move |said| reports.blocking_send(said).is_ok();
        (Worker::start("test", 2, say, work), inbox)
    }

    #[tokio::test]
    async fn fault_116_a_worker_that_panics_reports_an_internal_failure() {
        let before = panics();
        let (worker, mut reports) = start(|mut jobs, say| {
            while let Some(job) = jobs.blocking_recv() {
                assert!(job < 2, "a bug");
                say(Said::Done(job));
            }
            Ok(())
        });
        for job in 0..5 {
            worker.give(job).await;
        }
        assert_eq!(reports.recv().await, Some(Said::Done(0)));
        assert_eq!(reports.recv().await, Some(Said::Done(1)));
        assert_eq!(
            reports.recv().await,
            Some(Said::Failed(ErrorCode::Internal))
        );
        assert_eq!(reports.recv().await, None);
        assert!(panics() > before);
    }

    #[tokio::test]
    async fn a_worker_says_why_it_failed_and_nothing_when_it_did_not() {
        let (worker, mut reports) = start(|_, _| Err(Error::channel(ErrorCode::Busy, "x", "")));
        assert_eq!(reports.recv().await, Some(Said::Failed(ErrorCode::Busy)));
        worker.give(1).await;
        let (worker, mut reports) = start(|mut jobs, _| {
            while jobs.blocking_recv().is_some() {}
            Ok(())
        });
        worker.offer(1);
        drop(worker);
        assert_eq!(reports.recv().await, None);
        Worker::<u32>::none().give(1).await;
    }

    #[tokio::test]
    async fn a_request_that_panics_is_answered_internal() {
        assert_eq!(once("test", || 5).await, Ok(5));
        let failed = once("test", || panic!("a bug")).await;
        assert_eq!(
            failed.map_err(|error: Error| error.code),
            Err::<(), _>(ErrorCode::Internal)
        );
    }
}
