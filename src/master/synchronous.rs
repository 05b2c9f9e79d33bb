//! `synchronous = 1`: the syncdaemon as a standby of which the server knows what its disk holds.
//! Never keeps WAL, and never calls flushed what the receiver has not acknowledged as durable. Invariant: what is
//! reported grows only by what was shipped over a connection that was begun after this one.
//!
//! The server sends WAL that it has flushed, as to any standby. Its bytes are dropped, since `pg_wal` has them. A pass
//! begins when the kernel tells of a write to `pg_wal`, so that the standby's disk syncs while the master's does; and where
//! the WAL that was sent ends behind what is durable. What both disks have goes back as written and flushed.
//!
//! # Why everything up to the reported position can be recovered on the standby's host
//!
//! 1. The server that streams is the one whose WAL is shipped: `IDENTIFY_SYSTEM` has the system identifier and the
//!    timeline of `master_data`. A restart, a crash and a new timeline end the stream.
//! 2. A shipper that has shipped something is not taken over by a stream: a new one opens its first segment after the
//!    stream has begun, so the receiver compared its copy of the segment in progress with the files of this very server,
//!    after any crash recovery. A stream does not outlive its shipper either: whoever asks `pg_stat_replication` sees a
//!    standby only while the receiver answers.
//! 3. What is reported is the end of a pass: the receiver acknowledged every whole record up to there, from the
//!    beginning of the shipper's first segment on. It acknowledges after the sync of the file and of its folder.
//! 4. Nothing is missing before that first segment. The receiver said so after the shipper had begun: WAL of its
//!    newest set (of its oldest segment, where there is no set) is there without a gap. Until it says so, the stream
//!    reports a flushed position of 0, and the server waits for such a standby no more than for an absent one.
//!    A shipper that begins anew beyond what it had acknowledged has to be told again.
//! 5. A pass ends at the last whole record that the files have, and a commit waits for the end of its record. So a
//!    commit that returned is whole on the standby's disk.
//! 6. A pass may ship records that the master has not flushed and that a crash of its host takes away; nobody was told of
//!    them. They are no part of what is reported, which ends where the WAL ends that the server sent; and behind the crash
//!    the receiver compares what it has with the files, as with any shipper. No segment is finished early before it is flushed.
//!
//! A keepalive is answered at once, by a task of its own, with what was reported last: a receiver that is slow costs
//! no connection. Nothing is ever reported as applied, so `synchronous_commit = remote_apply` waits for ever.

mod guard;
mod standing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use walmgr_protocol::names::{Lsn, TimelineId};

use self::guard::{Guard, Watched};
use crate::config::MasterConfig;
use crate::error::{CommandError, Result};
use crate::master::ask::Asking;
use crate::master::backoff::backoff;
use crate::master::cluster::ClusterFacts;
use crate::master::partial::Shipper;
use crate::master::tail::WalFiles;
use crate::pg::replication_messages::StreamSaid;
use crate::pg::replication_stream::{ReplicationStream, StreamWish};
use crate::pg::sql::Limits;

/// How often the server hears from us, whatever happens: as from `pg_receivewal`.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// How often the receiver is asked whether WAL is missing, while that keeps commits waiting.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// What is said of the standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Reported {
    written: Lsn,
    flushed: Lsn,
}

impl Reported {
    /// Nothing is said of WAL that the server has not sent.
    fn up_to(self, end: Lsn) -> Reported {
        Reported {
            written: self.written.min(end),
            flushed: self.flushed.min(end),
        }
    }
}

/// A server that streams to us.
struct MasterStream {
    timeline: TimelineId,
    facts: ClusterFacts,
    /// Up to where it has flushed its WAL.
    end: watch::Receiver<Lsn>,
    /// Dropped, it ends the stream.
    reported: watch::Sender<Reported>,
    task: JoinHandle<Option<CommandError>>,
}

/// The standby that the syncdaemon is, or tries to be.
pub(super) struct Synchronous {
    guard: Option<Guard>,
    link: Option<MasterStream>,
    failures: u32,
    not_before: Option<Instant>,
    asked: Option<Instant>,
    /// Why no commit may wait for it.
    trouble: Option<String>,
}

impl Synchronous {
    /// The standby of these settings; none without `synchronous = 1`.
    pub(super) fn of(config: &MasterConfig) -> Synchronous {
        Synchronous {
            guard: config.synchronous.then(|| Guard::start(config)),
            link: None,
            failures: 0,
            not_before: None,
            asked: None,
            trouble: None,
        }
    }

    /// Up to where the server has flushed its WAL of this timeline; `None` unless it streams.
    pub(super) async fn end(&mut self) -> Option<Lsn> {
        self.note_end().await;
        let link = self.link.as_mut()?;
        Some(*link.end.borrow_and_update())
    }

    /// Tells of WAL that was flushed since [`Synchronous::end`] was asked.
    pub(super) fn news(&self) -> Option<watch::Receiver<Lsn>> {
        self.link.as_ref().map(|link| link.end.clone())
    }

    /// Whether the server streams.
    pub(super) const fn is_open(&self) -> bool {
        self.link.is_some()
    }

    /// Why no commit may wait for this standby.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// When there is something to try again, however little is written.
    pub(super) fn tries_again(&self) -> Option<Instant> {
        match &self.link {
            None => Some((self.not_before).unwrap_or_else(|| Instant::now() + ASK_INTERVAL)),
            Some(_) => (self.asked.filter(|_| self.trouble.is_some())).map(|at| at + ASK_INTERVAL),
        }
    }

    /// The receiver is gone: the server is to see no standby.
    pub(super) fn close(&mut self) {
        self.link = None;
        self.is_lost();
    }

    fn is_lost(&self) {
        if let Some(guard) = &self.guard {
            guard.watched.is_lost();
        }
    }

    /// Whether the server does not stream and has not just refused to.
    pub(super) fn is_due(&self) -> bool {
        self.link.is_none() && self.not_before.is_none_or(|at| Instant::now() >= at)
    }

    /// Has the server stream.
    pub(super) async fn open(
        &mut self,
        config: &MasterConfig,
        facts: ClusterFacts,
        files: &WalFiles,
    ) {
        let Some(guard) = &self.guard else { return };
        let watched = Arc::clone(&guard.watched);
        match Box::pin(MasterStream::open(config, facts, files, watched)).await {
            Ok(link) => {
                (self.link, self.failures, self.asked) = (Some(link), 0, None);
                (self.not_before, self.trouble) = (None, None);
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                self.not_before = Some(Instant::now() + backoff(self.failures));
                let name = &config.job_name;
                self.trouble = Some(format!("no commit can wait for {name}: {error}"));
            }
        }
    }

    /// A pass ended: reports what it made durable, once it is known that nothing is missing before that.
    pub(super) async fn passed(&mut self, config: &MasterConfig, shipper: &mut Shipper) {
        let Some(link) = &self.link else { return };
        let is_due = self.asked.is_none_or(|at| at.elapsed() >= ASK_INTERVAL);
        if shipper.is_unproven() && is_due {
            let asked = Instant::now();
            self.asked = Some(asked);
            self.trouble = Box::pin(link.prove(config, shipper, asked)).await.err();
        }
        let written = shipper.durable();
        let flushed = match shipper.is_unproven() {
            true => Lsn(0),
            false => written,
        };
        if flushed != Lsn(0) {
            (self.trouble, self.asked) = (None, None);
        }
        link.reported.send_if_modified(|had| {
            let is_new = *had != Reported { written, flushed };
            *had = Reported { written, flushed };
            is_new
        });
    }

    /// Says why a stream ended.
    async fn note_end(&mut self) {
        let Some(link) = self.link.take_if(|link| link.task.is_finished()) else {
            return;
        };
        self.is_lost();
        if let Ok(Some(error)) = link.task.await {
            tracing::info!(
                "the server no longer streams its WAL of timeline {}: {error}",
                link.timeline
            );
        }
    }
}

impl MasterStream {
    async fn open(
        config: &MasterConfig,
        facts: ClusterFacts,
        files: &WalFiles,
        watched: Arc<Watched>,
    ) -> Result<MasterStream> {
        let wish = StreamWish {
            conninfo: &config.master_db,
            name: &config.job_name,
            slot: config.slot.as_deref(),
            cluster: files.cluster().system_id,
            timeline: files.timeline(),
            limits: Limits {
                connect: config.connect_timeout,
                ..Limits::default()
            },
        };
        let stream = ReplicationStream::open(&wish).await?;
        let (tell_end, mut end) = watch::channel(stream.started());
        // The first pass is for what was flushed before.
        end.mark_changed();
        let (reported, report) = watch::channel(Reported::default());
        Ok(MasterStream {
            timeline: files.timeline(),
            facts,
            end,
            reported,
            task: tokio::spawn(follow(stream, tell_end, report, watched)),
        })
    }

    /// Asks the receiver whether it holds everything before what is shipped; an error in words if it does not say so.
    async fn prove(
        &self,
        config: &MasterConfig,
        shipper: &mut Shipper,
        asked: Instant,
    ) -> std::result::Result<(), String> {
        let asking = async {
            let mut asking = Asking::connect_to_read(config, Some(&self.facts)).await?;
            let overview = asking.overview().await?;
            asking.close().await;
            Ok::<_, CommandError>(overview)
        };
        let waits = format!("no commit can wait for {}", config.job_name);
        let overview = asking.await.map_err(|error| format!("{waits}: {error}"))?;
        shipper.overview(&overview, asked);
        match (&overview.missing, shipper.is_unproven()) {
            (_, false) => Ok(()),
            (Some(missing), true) => Err(format!(
                "{waits}: {missing} is missing on {}, and what is behind it cannot be recovered",
                config.slave
            )),
            (None, true) => Err(format!(
                "{waits}: {} does not say yet that it holds all WAL before {}",
                config.slave,
                shipper.durable()
            )),
        }
    }
}

/// Hears what the server has flushed and reports what the standby holds, until either side ends.
async fn follow(
    mut stream: ReplicationStream,
    end: watch::Sender<Lsn>,
    mut reported: watch::Receiver<Reported>,
    watched: Arc<Watched>,
) -> Option<CommandError> {
    let mut said_last = Reported::default();
    loop {
        let is_due = tokio::select! {
            said = stream.next() => {
                let (to, wants_answer) = match said {
                    Ok(StreamSaid::Wal { end }) => (end, false),
                    Ok(StreamSaid::Keepalive { end, wants_answer }) => (end, wants_answer),
                    Err(error) => return Some(error),
                };
                end.send_if_modified(|had| {
                    let is_new = to > *had;
                    *had = to.max(*had);
                    is_new
                });
                wants_answer
            }
            changed = reported.changed() => match changed {
                Ok(()) => true,
                Err(_) => {
                    stream.end().await;
                    return None;
                }
            },
            () = tokio::time::sleep(REPORT_INTERVAL) => true,
        };
        let ended = *end.borrow();
        let now = reported.borrow_and_update().up_to(ended);
        watched.hears(ended, now.flushed);
        // What was shipped before the server sent it needs no pass.
        if (is_due || now != said_last)
            && let Err(error) = stream.report(now.written, now.flushed).await
        {
            return Some(error);
        }
        said_last = now;
    }
}
