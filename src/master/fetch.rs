//! The fetch flow from the master's side: questions about what the standby keeps, and getting it.
//! Never holds more of it in memory than a few blocks: they pass from the socket to a writing thread
//! through a bounded queue. Invariant: [`FetchOutcome::Whole`] means that every byte reached the sink.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use walmgr_protocol::compress::Unpacker;
use walmgr_protocol::limits::{BACKUP_NUMBER_MAX, BLOCKS_IN_FLIGHT, TARGET_SEARCH_S_MAX};
use walmgr_protocol::message::fetch::{Fetch, ListBackups, ListedSet, NotFound, SetDescription};
use walmgr_protocol::message::reach::SetQuestion;
use walmgr_protocol::message::{Data, Digest, Error, ErrorCode, Message};
use walmgr_protocol::session::fetch::{FetchOutcome, FetchRequest, Fetcher, FetcherAction};

use crate::config::MasterConfig;
use crate::error::{CommandError, Result};
use crate::master::cluster::ClusterFacts;
use crate::output::Waiting;
use crate::transport::connect::{Connection, ReceiverTarget, answered_with, refused};
use crate::transport::wire::{Wire, WireFault};

/// The channel of a fetch that is alone on its connection.
const CHANNEL: u16 = 1;

/// Silence in the middle of a fetch after which the receiver counts as gone.
const SILENCE: Duration = Duration::from_secs(60);

/// How often a long wait looks whether there is something to say.
const LOOK: Duration = Duration::from_secs(1);

/// Sets in a list: the newest, and one for each number.
const SETS_MAX: usize = BACKUP_NUMBER_MAX as usize + 2;

/// Bytes of text in a list: a label of ordinary length for each of the sets.
const LIST_BYTES_MAX: usize = 8 << 20;

/// Takes what is fetched, in order, on a thread of its own.
pub(crate) trait Sink: Send + 'static {
    /// Takes the next bytes.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;
}

/// How a fetch went.
pub(crate) struct Fetched<S> {
    /// With everything that has arrived; `None` when its thread panicked.
    pub sink: Option<S>,
    /// What the receiver said, or how the connection broke.
    pub outcome: Result<FetchOutcome>,
    /// Why the sink took no more.
    pub refusal: Option<CommandError>,
}

/// A connection on which the standby's files are asked for.
pub(crate) struct Fetching<'a> {
    config: &'a MasterConfig,
    connection: Connection,
}

impl<'a> Fetching<'a> {
    /// Connects to the receiver that the settings name. The cluster is unknown when its files are
    /// what was lost.
    pub(crate) async fn connect(
        config: &'a MasterConfig,
        facts: Option<&ClusterFacts>,
    ) -> Result<Self> {
        let connection = ReceiverTarget::from_config(config)?
            .connect_to_read(facts.map(|facts| facts.cluster))
            .await?;
        Ok(Fetching { config, connection })
    }

    /// Every backup set, newest first.
    pub(crate) async fn list_backups(&mut self) -> Result<Vec<ListedSet>> {
        let (mut sets, mut bytes) = (Vec::<ListedSet>::new(), 0);
        loop {
            let after = sets.last().map_or_else(String::new, |set| set.name.clone());
            let limit = walmgr_protocol::limits::LISTED_BACKUPS_MAX;
            let question = Fetch::ListBackups(ListBackups { after, limit });
            match self.ask(question).await? {
                Fetch::Backups(page) => {
                    let is_last = !page.more || page.sets.is_empty();
                    bytes += page.sets.iter().map(text_bytes).sum::<usize>();
                    sets.extend(page.sets);
                    if sets.len() > SETS_MAX || bytes > LIST_BYTES_MAX {
                        let slave = &self.config.slave;
                        let text = format!(
                            "{slave} lists more backup sets than an archive can \
                            have"
                        );
                        return Err(CommandError::retry(text).hint(
                            "look at `full_backup` on the standby, and check that its receiver is \
                            yours",
                        ));
                    }
                    if is_last {
                        return Ok(sets);
                    }
                }
                other => {
                    return Err(answered_with(
                        &self.config.slave,
                        Message::Fetch(other).kind(),
                    ));
                }
            }
        }
    }

    /// What has to be known of a set before it is fetched.
    pub(crate) async fn describe(&mut self, question: SetQuestion) -> Result<SetDescription> {
        let name = &question.name.clone();
        let answered = match &question.target {
            None => self.ask(Fetch::DescribeSet(question)).await,
            Some(_) => self.ask_at_length(Fetch::DescribeSet(question)).await,
        };
        match answered? {
            Fetch::Set(set) if set.name == *name => Ok(set),
            Fetch::Set(_) => Err(CommandError::retry(format!(
                "{} was asked about {name} and described another set",
                self.config.slave
            ))),
            Fetch::NotFound(NotFound::NoSuchSet) => Err(CommandError::usage(format!(
                "there is no backup set {name} on {}",
                self.config.slave
            ))
            .hint("`listbackups` lists the sets")),
            other => Err(answered_with(
                &self.config.slave,
                Message::Fetch(other).kind(),
            )),
        }
    }

    /// Gets something into a sink.
    pub(crate) async fn get<S: Sink>(&mut self, request: FetchRequest, sink: S) -> Fetched<S> {
        let (jobs, inbox) = mpsc::channel(BLOCKS_IN_FLIGHT);
        let writing = tokio::task::spawn_blocking(move || write(sink, inbox));
        let (mut fetcher, message) = Fetcher::start(request);
        let wire = &mut self.connection.wire;
        let mut outcome = match wire.send(CHANNEL, &message).await {
            Ok(()) => pass_on(wire, &mut fetcher, &jobs).await,
            Err(fault) => Err(fault.into()),
        };
        drop(jobs);
        let Ok((sink, found, refusal)) = writing.await else {
            return Fetched {
                sink: None,
                outcome: Err(CommandError::retry("write what was fetched")),
                refusal: None,
            };
        };
        if let Ok(Passed::Checking) = outcome {
            outcome = match fetcher.checked(found) {
                Ok(FetcherAction::Finish(outcome)) => Ok(Passed::Finished(outcome)),
                Ok(_) => Err(CommandError::retry("check what was fetched")),
                Err(misuse) => Err(misuse.into()),
            };
        }
        Fetched {
            sink: Some(sink),
            outcome: outcome.map(|passed| match passed {
                Passed::Finished(outcome) => outcome,
                Passed::Checking | Passed::Unwanted => FetchOutcome::Refused(Error::channel(
                    ErrorCode::Abandoned,
                    "nobody took it",
                    "",
                )),
            }),
            refusal,
        }
    }

    /// What a receiver's refusal means to a command that was doing this.
    pub(crate) fn refused(&self, doing: &str, error: Error) -> CommandError {
        refused(&self.config.slave, &format!("did not {doing}"), error)
    }

    /// Ends the connection in good order.
    pub(crate) async fn close(self) {
        self.connection.wire.goodbye().await;
    }

    /// The answer within `push_timeout`: a receiver that is stuck must not hold a person up for good.
    async fn ask(&mut self, question: Fetch) -> Result<Fetch> {
        let (slave, deadline) = (&self.config.slave, self.config.push_timeout);
        let question = Message::Fetch(question);
        let name = question.name();
        let answered = tokio::time::timeout(deadline, self.exchange(question)).await;
        answered.unwrap_or_else(|_| {
            Err(CommandError::retry(format!(
                "{slave} did not answer {name} within push_timeout = {deadline:?}"
            ))
            .hint("look at the receiver's log on the standby"))
        })
    }

    /// The answer to a question that is looked into as long as [`TARGET_SEARCH_S_MAX`], during which the receiver
    /// pings: only its silence, or more than that, is too long.
    async fn ask_at_length(&mut self, question: Fetch) -> Result<Fetch> {
        let slave = &self.config.slave;
        let most = Duration::from_secs(TARGET_SEARCH_S_MAX) + SILENCE;
        let (begun, mut waiting) = (Instant::now(), Waiting::begin());
        let wire = &mut self.connection.wire;
        wire.send(0, &Message::Fetch(question)).await?;
        let message = {
            let mut answering = std::pin::pin!(wire.next_within(SILENCE));
            loop {
                if let Ok(frame) = tokio::time::timeout(LOOK, &mut answering).await {
                    break frame?.message;
                }
                if waiting.is_due() {
                    tracing::info!("{slave} looks through its WAL for the target");
                }
                if begun.elapsed() >= most {
                    let text = format!(
                        "{slave} did not say within {most:?} whether the target is in \
                            reach"
                    );
                    return Err(
                        CommandError::retry(text).hint("look at the receiver's log on the standby")
                    );
                }
            }
        };
        self.answered(message)
    }

    async fn exchange(&mut self, question: Message) -> Result<Fetch> {
        self.connection.wire.send(0, &question).await?;
        let message = self.connection.wire.next().await?.message;
        self.answered(message)
    }

    fn answered(&self, message: Message) -> Result<Fetch> {
        match message {
            Message::Fetch(answer) => Ok(answer),
            Message::Error(error) => Err(refused(&self.config.slave, "refused", error)),
            other => Err(answered_with(&self.config.slave, other.kind())),
        }
    }
}

fn text_bytes(set: &ListedSet) -> usize {
    let words = match &set.label {
        Ok(label) => label.timestamp.len() + label.label.len(),
        Err(why) => why.len(),
    };
    set.name.len() + words
}

enum Passed {
    /// Everything was handed over and is to be checked.
    Checking,
    Finished(FetchOutcome),
    /// The sink takes no more.
    Unwanted,
}

/// Hands what arrives to the writing thread, until the receiver says that it is over.
async fn pass_on(
    wire: &mut Wire,
    fetcher: &mut Fetcher,
    jobs: &mpsc::Sender<Data>,
) -> Result<Passed> {
    loop {
        // Pings are no blocks: a receiver whose disk hangs must not hold a restore up for good.
        let Ok(frame) = tokio::time::timeout(SILENCE, wire.next()).await else {
            let text = format!("nothing came from the receiver for {SILENCE:?}");
            return Err(CommandError::retry(text));
        };
        match fetcher.received(frame?.message).map_err(WireFault::from)? {
            FetcherAction::Append(data) => {
                if jobs.send(data).await.is_err() {
                    return Ok(Passed::Unwanted);
                }
            }
            FetcherAction::Check => return Ok(Passed::Checking),
            FetcherAction::Finish(outcome) => return Ok(Passed::Finished(outcome)),
        }
    }
}

/// Unpacks blocks into the sink; returns it with what it has taken.
fn write<S: Sink>(
    mut sink: S,
    mut jobs: mpsc::Receiver<Data>,
) -> (S, Digest, Option<CommandError>) {
    let (mut unpacker, mut crc, mut size) = (Unpacker::default(), crc32fast::Hasher::new(), 0);
    let mut refusal = None;
    while let Some(data) = jobs.blocking_recv() {
        let taken = unpacker
            .unpack(&data.bytes, data.raw_bytes, data.zstd)
            .map_err(|error| CommandError::retry("unpack what was fetched").because(error))
            .and_then(|raw| {
                sink.append(raw)?;
                crc.update(raw);
                size += raw.len() as u64;
                Ok(())
            });
        if let Err(error) = taken {
            refusal = Some(error);
            break;
        }
    }
    let crc32 = crc.finalize();
    (sink, Digest { size, crc32 }, refusal)
}
