//! What is fetched of a set, over as many connections as that takes.
//! Never begins anew what has arrived. Invariant: a stream counts as fetched only if the receiver said that it was whole.

use std::sync::Arc;
use std::time::{Duration, Instant};

use walmgr_protocol::message::ErrorCode;
use walmgr_protocol::message::fetch::{GetSet, SetDescription};
use walmgr_protocol::session::fetch::{FetchOutcome, FetchRequest};

use crate::config::MasterConfig;
use crate::error::{CommandError, Kind, Result};
use crate::master::cluster::ClusterFacts;
use crate::master::fetch::{Fetching, Sink};
use crate::options::Options;
use crate::output::progress::{BackupProgress, Counters};

/// Pause before a connection that broke is made again.
const PAUSE: Duration = Duration::from_secs(1);

/// A sink that lives through as many connections as it needs.
pub(super) trait Continued: Sink {
    /// Asks for what is missing of this set.
    fn request(&mut self, of: GetSet) -> FetchRequest;

    /// How much it has taken.
    fn taken_bytes(&self) -> u64;
}

/// The set that is fetched, and by whom.
pub(super) struct RemoteSet<'a> {
    pub config: &'a MasterConfig,
    pub options: &'a Options,
    pub facts: Option<ClusterFacts>,
    pub described: SetDescription,
}

/// What one restore fetches over.
pub(super) struct Streams<'a, 'c> {
    set: &'a RemoteSet<'c>,
    /// The connection for what comes next, if there is one.
    connected: Option<Fetching<'c>>,
    progress: BackupProgress,
    counters: Arc<Counters>,
}

impl<'a, 'c> Streams<'a, 'c> {
    /// Begins with a connection.
    pub(super) fn begin(set: &'a RemoteSet<'c>, first: Fetching<'c>) -> Streams<'a, 'c> {
        let total_bytes = set.described.stream_bytes;
        Streams {
            set,
            connected: Some(first),
            progress: BackupProgress::begin("sent", total_bytes, set.options),
            counters: Arc::default(),
        }
    }

    /// Where what arrives is counted.
    pub(super) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Lets the receiver go: nothing is asked for a while.
    pub(super) async fn pause(&mut self) {
        if let Some(fetching) = self.connected.take() {
            fetching.close().await;
        }
    }

    /// Gets all of one stream.
    pub(super) async fn get<S: Continued>(&mut self, mut sink: S) -> Result<S> {
        let set = self.set;
        let mut patience = ReconnectLimit::new(set.config.push_timeout);
        loop {
            let before = sink.taken_bytes();
            let attempt = match self.connected.take() {
                Some(fetching) => Ok(fetching),
                None => Fetching::connect(set.config, set.facts.as_ref()).await,
            };
            let broken = match attempt {
                Err(error) if error.kind() != Kind::Retry => return Err(error),
                Err(error) => error,
                Ok(mut fetching) => {
                    let request = sink.request(set.whole());
                    let fetched = tokio::select! {
                        fetched = fetching.get(request, sink) => fetched,
                        () = self.progress.show(&self.counters) => return Err(CommandError::retry("show progress")),
                    };
                    let lost = || CommandError::retry("write what was fetched");
                    sink = fetched.sink.ok_or_else(lost)?;
                    if let Some(error) = fetched.refusal {
                        return Err(error);
                    }
                    match set.judge(&fetching, fetched.outcome)? {
                        None => {
                            self.connected = Some(fetching);
                            return Ok(sink);
                        }
                        Some(error) => error,
                    }
                }
            };
            patience.broken(broken, sink.taken_bytes() > before)?;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl RemoteSet<'_> {
    /// All of the set, from its beginning.
    fn whole(&self) -> GetSet {
        GetSet {
            start: self.described.label.start,
            timestamp: self.described.label.timestamp.clone(),
            offset: 0,
            compression: self.config.network_level(),
        }
    }

    /// `None` for a stream that is whole; otherwise what another connection may mend.
    fn judge(
        &self,
        fetching: &Fetching<'_>,
        outcome: Result<FetchOutcome>,
    ) -> Result<Option<CommandError>> {
        let name = &self.described.name;
        match outcome {
            Ok(FetchOutcome::Whole) => Ok(None),
            Err(error) if error.kind() == Kind::Retry => Ok(Some(error)),
            Err(error) => Err(error),
            Ok(FetchOutcome::NotFound(_)) => Err(CommandError::retry(format!(
                "{name} is gone from {}: it was removed meanwhile",
                self.config.slave
            ))
            .hint("`listbackups` lists the sets")),
            Ok(FetchOutcome::Differs { .. }) => Err(CommandError::retry(format!(
                "{name} was changed on the way"
            ))),
            Ok(FetchOutcome::Refused(error)) => {
                let is_passing = matches!(
                    error.code,
                    ErrorCode::Busy | ErrorCode::ShuttingDown | ErrorCode::TimedOut
                );
                let error = fetching.refused(&format!("send {name}"), error);
                match is_passing {
                    true => Ok(Some(error)),
                    false => Err(error),
                }
            }
        }
    }
}

/// How long broken connections are made again.
struct ReconnectLimit {
    limit: Duration,
    since: Option<Instant>,
}

impl ReconnectLimit {
    const fn new(limit: Duration) -> ReconnectLimit {
        ReconnectLimit { limit, since: None }
    }

    /// Fails when nothing has come for too long.
    fn broken(&mut self, error: CommandError, has_come_further: bool) -> Result<()> {
        if has_come_further {
            self.since = None;
        }
        match self.since {
            None => tracing::warn!("{error}; continuing where it stopped"),
            Some(since) if since.elapsed() >= self.limit => {
                return Err(CommandError::retry(format!(
                    "nothing more came within push_timeout = {:?}",
                    self.limit
                ))
                .because(error));
            }
            Some(_) => {}
        }
        self.since.get_or_insert_with(Instant::now);
        Ok(())
    }
}
