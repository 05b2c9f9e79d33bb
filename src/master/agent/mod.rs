//! The agent of `xarchive`: it takes files for it over connections that it keeps, and looks ahead. A syncdaemon is one, and
//! where none runs a process that `xarchive` begins for a backlog (`on_demand`).
//! Never acknowledges what no receiver has proven, and never touches `archive_status`. Invariant: what the archiver
//! asks for has a connection of its own, so it waits for nothing that nobody asked for.
//!
//! | file | what |
//! |---|---|
//! | `socket` | the socket, and who is at its other end |
//! | `words` | what is said over it |
//! | `client` | `xarchive`'s side |
//! | `attend` | the agent's side |
//! | `shelf` | what is shipped, under way, and next |
//! | `meter` | what is counted |
//! | `marks`, `ready` | what PostgreSQL has ready |
//! | `shared` | what its tasks have in common |
//! | `courier` | a connection that is kept, and what goes over it |
//! | `look_ahead` | ships what is ready before it is asked for |

mod attend;
mod client;
mod courier;
mod look_ahead;
mod marks;
mod meter;
mod ready;
mod shared;
mod shelf;
mod socket;
mod words;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use walmgr_protocol::names::{SegmentName, WalFileName};

pub(super) use self::client::{AgentAnswer, ask, look};
pub(super) use self::marks::is_ready;
pub(super) use self::meter::AgentMeter;
use self::shared::AgentShared;
pub(super) use self::shared::settings_digest;
use self::shelf::Shelf;
use self::socket::BoundSocket;
pub(super) use self::socket::{
    beside as socket_beside, can_listen, on_demand_pidfile, pidfiles, wait_until_heard,
};
pub use self::words::read_any;
use crate::config::MasterConfig;

/// Those who may ask at once: an archiver asks for one file at a time.
const ASKERS_MAX: usize = 16;

/// Threads for files that a connection needs at once: both halves of a checksum, or both that pack a file in turns, and
/// one that has the kernel read ahead of them.
const FILE_THREADS: usize = 3;

/// An agent that listens; dropping it ends it.
pub(super) struct Agent {
    shared: Arc<AgentShared>,
    /// Goes first, so that nobody asks one that ends.
    socket: Option<BoundSocket>,
    runtime: Option<Runtime>,
}

impl Agent {
    /// Listens at this path from now on. Without one `xarchive` pushes by itself, so a failure is a line in the log.
    ///
    /// The caller holds the lock on the pidfile.
    pub(super) fn start(
        config: &MasterConfig,
        path: &Path,
        meter: Arc<AgentMeter>,
    ) -> Option<Agent> {
        match Agent::listen(config, path, meter) {
            Ok(agent) => {
                tracing::debug!("xarchive is heard at {}", path.display());
                Some(agent)
            }
            Err(error) => {
                tracing::warn!(
                    "listen on {}: {error}: xarchive pushes by itself, each time over a connection of its own",
                    path.display()
                );
                None
            }
        }
    }

    fn listen(
        config: &MasterConfig,
        path: &Path,
        meter: Arc<AgentMeter>,
    ) -> std::io::Result<Agent> {
        let jobs = usize::try_from(config.archive_jobs).unwrap_or(1);
        let batch = usize::try_from(config.archive_batch).unwrap_or(0);
        let (listening, socket) = socket::listen(path)?;
        let (to_front, asked) = mpsc::channel(1);
        let shared = Arc::new(AgentShared {
            config: config.clone(),
            settings: settings_digest(config),
            meter,
            shelf: Mutex::new(Shelf::new(batch)),
            has_work: watch::channel(()).0,
            out_of_work: Notify::new(),
            is_there: Notify::new(),
            asked_at: Mutex::default(),
            askers: Arc::new(Semaphore::new(ASKERS_MAX)),
            front: Semaphore::new(1),
            to_front,
        });
        let runtime = Builder::new_multi_thread()
            .worker_threads(jobs + 1)
            .max_blocking_threads(FILE_THREADS * (jobs + 1) + 1)
            .thread_name("agent")
            .enable_all()
            .build()?;
        let tasks = runtime.handle().clone();
        let agent = Agent {
            shared: Arc::clone(&shared),
            socket: Some(socket),
            // A runtime may not be dropped where this runs, but for the way in which this one's agent drops it.
            runtime: Some(runtime),
        };
        let entered = tasks.enter();
        let listener = tokio::net::UnixListener::from_std(listening.into())?;
        drop(entered);
        tasks.spawn(attend::accept(Arc::clone(&shared), listener));
        tasks.spawn(attend::carry(Arc::clone(&shared), asked));
        if batch > 0 {
            tasks.spawn(ready::watch(Arc::clone(&shared)));
            for _ in 0..jobs {
                tasks.spawn(look_ahead::carry(Arc::clone(&shared)));
            }
        }
        Ok(agent)
    }

    /// An archiver is at work, for which this file was pushed, and will ask for others.
    pub(super) fn expects_archiver(&self, pushed: WalFileName) {
        self.shared.shelf().leave_out(pushed);
        self.shared.hears_archiver();
    }

    /// Whether somebody waits for an answer.
    pub(super) fn is_asked(&self) -> bool {
        self.shared.askers.available_permits() < ASKERS_MAX
    }

    /// Whether nobody has asked for so long, and nothing is under way.
    pub(super) fn is_idle(&self, patience: Duration) -> bool {
        !self.shared.was_asked_within(patience) && !self.shared.shelf().is_at_work()
    }

    /// The server has closed this segment and flushed all of it, and the receiver has its records: they are finished
    /// whether an archiver has asked or not, so that one that was away finds a proof of each.
    pub(super) fn is_closed(&self, segment: SegmentName) {
        if self.shared.config.archive_batch > 0 {
            self.shared.shelf().close(WalFileName::Segment(segment));
            self.shared.has_work.send_replace(());
        }
    }

    /// The receiver answers again.
    pub(super) fn receiver_is_there(&self, lacks: SegmentName) {
        let is_lacking = |name| match name {
            WalFileName::Segment(segment) => {
                segment.timeline() == lacks.timeline() && segment >= lacks
            }
            _ => false,
        };
        self.shared.shelf().disprove(is_lacking);
        self.shared.is_there.notify_waiters();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.socket.take());
        // Whoever waits for an answer sees the socket close, and pushes by itself.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
