//! `xrestore NAME PATH` on the master: the `restore_command` of a server that `restore` made there.
//! Never says 1 unless the standby has proven that its archive holds neither the file nor anything
//! behind it. Invariant: PATH gets either the whole file, proven on the standby to be what was stored and
//! checked here against what was sent, or nothing, wherever the process is killed.
//!
//! The exit codes are the standby's: 0, 1 for proven absent, 254 for everything else. A connection
//! that breaks is tried again for `push_timeout`, because 254 ends the server that asks.

mod fetched_ahead;
mod placing;

use std::path::Path;
use std::time::{Duration, Instant};

use walmgr_protocol::message::fetch::{GetFile, NotFound};
use walmgr_protocol::message::{Error, ErrorCode};
use walmgr_protocol::names::WalFileName;
use walmgr_protocol::session::fetch::{FetchOutcome, FetchRequest};

use self::fetched_ahead::FetchedAhead;
use self::placing::{FileSink, Look, Nowhere, Placing, Room, Whole};
use crate::abnormal;
use crate::config::MasterConfig;
use crate::error::{CommandError, ExitTable, Kind, Result};
use crate::master::cluster::ClusterFacts;
use crate::master::fetch::{Fetched, Fetching};
use crate::options::Options;
use crate::output;
use crate::pg::location;

/// Pause before the next attempt.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a file that is missing among others may be on its way.
const GAP_PATIENCE: Duration = Duration::from_secs(3);

/// Hands over one file.
pub(crate) fn run(
    config: &MasterConfig,
    options: &Options,
    name: WalFileName,
    path: &Path,
) -> Result<()> {
    let data = location::data_directory_of(path);
    let facts = data.as_deref().map(ClusterFacts::of);
    // Whoever lays segments knows the settings of the file alone.
    let ahead = match (&data, &facts) {
        (Some(data), Some(Ok(facts))) if !options.not_really && options.overrides.is_empty() => {
            FetchedAhead::of_server(config, data, *facts, path)
        }
        _ => None,
    };
    if let (Some(ahead), Some(segment)) = (&ahead, name.segment())
        && (ahead.hand_over(segment, path)? || ahead.wait_for(segment, path)?)
    {
        tracing::info!("{name} lay ready for {}", path.display());
        ahead.lay_behind(segment, path);
        return Ok(());
    }
    abnormal::log_signals(ExitTable::Xrestore)?;
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
    if let Some(ahead) = ahead {
        match (name, &restored) {
            (WalFileName::Segment(segment), Ok(_)) => ahead.lay_behind(segment, path),
            // PostgreSQL asks for a history before it begins to replay a timeline and when it ends.
            _ => ahead.clear(),
        }
    }
    match restored? {
        Whole::InPlace => {
            tracing::info!("{name} restored to {}", path.display());
            Ok(())
        }
        Whole::Seen => output::not_really(&format!("put {name} in place as {}", path.display())),
    }
}

/// Fetches the segments behind one for the server that has asked for it.
///
/// Never fails: nobody waits for it, and a server that is the first process of its container hears of each child's end.
pub(crate) fn lay_behind(config: &MasterConfig, name: WalFileName, path: &Path) {
    let laid = abnormal::log_signals(ExitTable::Unawaited).and_then(|()| {
        let (Some(data), Some(segment)) = (location::data_directory_of(path), name.segment())
        else {
            return Ok(());
        };
        let facts = ClusterFacts::of(&data)?;
        let Some(ahead) = FetchedAhead::of_server(config, &data, facts, path) else {
            return Ok(());
        };
        let runtime = super::runtime()?;
        let laid = runtime.block_on(ahead.lay(segment));
        runtime.shutdown_background();
        laid
    });
    if let Err(error) = laid {
        tracing::debug!("no segment behind {name} is fetched ahead: {error}");
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
