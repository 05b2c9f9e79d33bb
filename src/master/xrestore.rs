//! `xrestore NAME PATH` on the master: the `restore_command` of a server that `restore` made there.
//! Never says 1 unless the standby has proven that its archive holds neither the file nor anything
//! behind it. Invariant: PATH gets either the whole file, proven on the standby to be what was stored and
//! checked here against what was sent, or nothing, wherever the process is killed.
//!
//! The exit codes are the standby's: 0, 1 for proven absent, 254 for everything else. A connection
//! that breaks is tried again for `push_timeout`, because 254 ends the server that asks.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::message::fetch::{GetFile, NotFound};
use walmgr_protocol::message::{Error, ErrorCode};
use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};
use walmgr_protocol::session::fetch::{FetchOutcome, FetchRequest};

use crate::abnormal;
use crate::config::MasterConfig;
use crate::error::{CommandError, ExitTable, IoContext, Kind, Result};
use crate::files::HandedOver;
use crate::master::cluster::ClusterFacts;
use crate::master::fetch::{Fetched, Fetching, Sink};
use crate::options::Options;
use crate::output;
use crate::pg::{crossing, location};
use crate::wal::obstacle_walk::ObstacleWalk;
use crate::wal::scan::Scanner;

/// Pause before the next attempt.
const PAUSE: Duration = Duration::from_secs(1);

/// The largest segment of any cluster, for a restore where the cluster is not known.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// How long a file that is missing among others may be on its way.
const GAP_PATIENCE: Duration = Duration::from_secs(3);

/// Hands over one file.
pub(crate) fn run(
    config: &MasterConfig,
    options: &Options,
    name: WalFileName,
    path: &Path,
) -> Result<()> {
    abnormal::log_signals(ExitTable::Xrestore)?;
    let data = location::data_directory_of(path);
    let facts = data.as_deref().map(ClusterFacts::of);
    let look = match (name, &data, &facts) {
        (WalFileName::Segment(segment), Some(data), Some(Ok(facts))) => {
            Some(Look::begin(data, segment, facts))
        }
        // Whatever may be replayed is looked at.
        (WalFileName::Segment(_), Some(_), Some(Err(error))) => {
            let doing = format!("{name} is held back, since the asking server is unknown");
            return Err(CommandError::retry(doing).because(error));
        }
        _ => None,
    };
    let restore = FetchCall {
        config,
        name,
        facts: facts.and_then(Result::ok),
        begun: Instant::now(),
    };
    let room = Room::of(name, restore.facts.as_ref());
    let runtime = super::runtime()?;
    let restored = match options.not_really {
        true => runtime.block_on(restore.keep_trying(|| {
            let look = look.clone();
            Ok(Nowhere { room, look })
        })),
        false => runtime.block_on(restore.keep_trying(|| Placing::begin(path, room, look.clone()))),
    };
    // A writer that is stuck in a dead disk must not hold the exit back.
    runtime.shutdown_background();
    match restored? {
        Whole::InPlace => {
            tracing::info!("{name} restored to {}", path.display());
            Ok(())
        }
        Whole::Seen => output::not_really(&format!("put {name} in place as {}", path.display())),
    }
}

/// What became of a whole file.
enum Whole {
    InPlace,
    Seen,
}

/// Where a file goes.
trait FileSink: Sink {
    fn finish(self) -> Result<Whole>;
}

/// `-n`: it is looked at only.
struct Nowhere {
    room: Room,
    look: Option<Look>,
}

impl Sink for Nowhere {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.room.take(bytes)?;
        self.look.iter_mut().for_each(|look| look.update(bytes));
        Ok(())
    }
}

/// A look for what replay may not get past in a segment; this host has the master's tablespaces.
#[derive(Clone)]
struct Look {
    data: PathBuf,
    major: u8,
    segment: SegmentName,
    walk: ObstacleWalk,
    /// From within the record that the segment before did not end.
    crossing: Option<ObstacleWalk>,
}

impl Look {
    fn begin(data: &Path, segment: SegmentName, facts: &ClusterFacts) -> Look {
        let size = facts.cluster.segment_size;
        let scanner = Scanner::new(segment.start(size).unwrap_or_default(), size);
        Look {
            data: data.to_path_buf(),
            major: u8::try_from(facts.cluster.postgres_major).unwrap_or_default(),
            segment,
            walk: ObstacleWalk::from(scanner.without_checksums()),
            crossing: crossing::before(data, segment, size),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.walk.update(bytes);
        self.crossing.iter_mut().for_each(|walk| walk.update(bytes));
    }

    fn judge(&self) -> Result<()> {
        let mut obstacles = self.walk.obstacles().clone();
        if let Some(crossing) = &self.crossing {
            obstacles.add_before(crossing.obstacles(), Lsn(u64::MAX));
        }
        match location::held_back(&self.data, self.major, &obstacles) {
            Some(held) => {
                let doing = format!("{} is held back", self.segment);
                Err(CommandError::retry(doing).because(held))
            }
            None => Ok(()),
        }
    }
}

/// What a file may be long: a receiver that sends without end fills no disk here.
#[derive(Clone, Copy)]
struct Room {
    name: WalFileName,
    most_bytes: u64,
    left_bytes: u64,
}

impl Room {
    fn of(name: WalFileName, facts: Option<&ClusterFacts>) -> Room {
        let segment = facts.map_or(SEGMENT_BYTES_MAX, |facts| {
            facts.cluster.segment_size.bytes()
        });
        let most_bytes = match name {
            WalFileName::Segment(_) | WalFileName::Partial(_) => segment,
            _ => SMALL_FILE_BYTES_MAX,
        };
        Room {
            name,
            most_bytes,
            left_bytes: most_bytes,
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        match self.left_bytes.checked_sub(bytes.len() as u64) {
            Some(left_bytes) => {
                self.left_bytes = left_bytes;
                Ok(())
            }
            None => Err(CommandError::retry(format!(
                "the standby sent more for {} than the {} bytes that such a file can have",
                self.name, self.most_bytes
            ))
            .hint("look at the file on the standby, and check that its receiver is yours")),
        }
    }
}

impl FileSink for Nowhere {
    fn finish(self) -> Result<Whole> {
        self.look.as_ref().map_or(Ok(()), Look::judge)?;
        Ok(Whole::Seen)
    }
}

struct Placing {
    room: Room,
    file: HandedOver,
    path: PathBuf,
    look: Option<Look>,
}

impl Placing {
    fn begin(path: &Path, room: Room, look: Option<Look>) -> Result<Placing> {
        let begun = HandedOver::begin(path);
        Ok(Placing {
            room,
            file: begun.at(Kind::Retry, "create a file beside", path)?,
            path: path.to_path_buf(),
            look,
        })
    }

    fn writing(path: &Path, result: io::Result<()>) -> Result<()> {
        result.at(Kind::Retry, "write", path)
    }
}

impl Sink for Placing {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.room.take(bytes)?;
        self.look.iter_mut().for_each(|look| look.update(bytes));
        Placing::writing(&self.path, self.file.append(bytes))
    }
}

impl FileSink for Placing {
    fn finish(self) -> Result<Whole> {
        self.look.as_ref().map_or(Ok(()), Look::judge)?;
        Placing::writing(&self.path, self.file.put_in_place())?;
        Ok(Whole::InPlace)
    }
}

/// One call of the command.
struct FetchCall<'a> {
    config: &'a MasterConfig,
    name: WalFileName,
    facts: Option<ClusterFacts>,
    begun: Instant,
}

/// Why an attempt led to no file.
enum Failure {
    /// It may be different in a moment.
    Passing(CommandError),
    /// It may be different for a moment only.
    Gap(CommandError),
    Final(CommandError),
}

impl FetchCall<'_> {
    async fn keep_trying<D: FileSink>(&self, begin: impl Fn() -> Result<D>) -> Result<Whole> {
        let mut was_said = false;
        loop {
            let left = (self.config.push_timeout).saturating_sub(self.begun.elapsed());
            let attempt = tokio::time::timeout(left.max(PAUSE), self.attempt(begin()?));
            let failure = match attempt.await {
                Ok(Ok(whole)) => return Ok(whole),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::Passing(self.late()),
            };
            let (error, patience) = match failure {
                Failure::Passing(error) => (error, self.config.push_timeout),
                Failure::Gap(error) => (error, GAP_PATIENCE),
                Failure::Final(error) => return Err(error),
            };
            if self.begun.elapsed() + PAUSE > patience {
                return Err(error);
            }
            if !was_said {
                // No warning: what PostgreSQL's log gets is one line, and that only if it fails.
                tracing::info!("{error}; trying again");
                was_said = true;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn attempt<D: FileSink>(&self, destination: D) -> Result<Whole, Failure> {
        let connected = Fetching::connect(self.config, self.facts.as_ref()).await;
        let mut fetching = connected.map_err(passing)?;
        let request = FetchRequest::File(GetFile {
            name: self.name,
            compression: self.config.network_level(),
        });
        let fetched = fetching.get(request, destination).await;
        let Fetched {
            sink,
            outcome,
            refusal,
        } = fetched;
        if let Some(error) = refusal {
            return Err(Failure::Final(error));
        }
        let outcome = outcome.map_err(passing)?;
        let doing = format!("send {}", self.name);
        let ended = match (outcome, sink) {
            (FetchOutcome::Whole, Some(destination)) => {
                destination.finish().map_err(Failure::Final)
            }
            (FetchOutcome::NotFound(what), _) => Err(self.absent(what)),
            (FetchOutcome::Refused(error), _) => {
                let is_passing = is_passing(&error);
                let error = fetching.refused(&doing, error);
                Err(match is_passing {
                    true => Failure::Passing(error),
                    false => Failure::Final(error),
                })
            }
            (FetchOutcome::Differs { .. } | FetchOutcome::Whole, _) => Err(Failure::Passing(
                CommandError::retry(format!("{} was changed on the way", self.name)),
            )),
        };
        fetching.close().await;
        ended
    }

    fn absent(&self, what: NotFound) -> Failure {
        let (name, slave) = (self.name, &self.config.slave);
        match what {
            NotFound::NothingLater => Failure::Final(CommandError::new(
                Kind::Absent,
                format!("{name} is not in the archive"),
            )),
            NotFound::Gap(later) => Failure::Gap(
                CommandError::retry(format!(
                    "{name} is missing on {slave} although {later} is there: the archive has a gap"
                ))
                .hint("put the file into the standby's archive, or recover to a target before it"),
            ),
            NotFound::OnlyDamaged(copy) => Failure::Final(
                CommandError::retry(format!(
                    "{name} was found damaged on {slave} and set aside as {copy}; replay without \
                    it would lose data"
                ))
                .hint("archive the file again, or recover to a target before it"),
            ),
            NotFound::NoSuchSet => {
                let text = format!("{slave} answered about a backup set");
                Failure::Final(CommandError::retry(text))
            }
        }
    }

    fn late(&self) -> CommandError {
        let (slave, deadline) = (&self.config.slave, self.config.push_timeout);
        let name = self.name;
        CommandError::retry(format!(
            "{name} did not come from {slave} within push_timeout = {deadline:?}"
        ))
        .hint("look at the network and at the receiver's log on the standby")
    }
}

/// A receiver that is down or a link that broke; nothing that a person has to mend.
fn passing(error: CommandError) -> Failure {
    match error.kind() {
        Kind::Retry => Failure::Passing(error),
        _ => Failure::Final(error),
    }
}

fn is_passing(error: &Error) -> bool {
    matches!(
        error.code,
        ErrorCode::Busy | ErrorCode::ShuttingDown | ErrorCode::TimedOut | ErrorCode::Abandoned
    )
}
