//! `status` on the master: what the server has flushed against what the standby holds.
//! Never changes anything, and never waits longer than its limit for either side. Invariant: a side
//! that does not answer is a finding; the other side's facts are shown all the same.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use walmgr_protocol::message::Overview;
use walmgr_protocol::names::{Lsn, TimelineId};

use crate::config::MasterConfig;
use crate::daemon;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::master::agent;
use crate::master::archiver::Archives;
use crate::master::ask::Asking;
use crate::master::cluster::ClusterFacts;
use crate::master::lag::{Oldest, oldest_missing, seconds_since};
use crate::master::position::{Position, PositionFound, PositionReader};
use crate::master::synch_note::SynchNote;
use crate::master::tail::{Records, WalFiles};
use crate::options::Options;
use crate::pg::data_directory::DataDirectory;
use crate::pg::sql::{ArchiverStatistics, Limits, Session};
use crate::status::{self, Archiver, Facts, Here, Lag, Master, Syncdaemon, Thresholds};

/// How long either side may take to answer: monitoring gives up on a check after a minute or less.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Prints how it stands.
pub(crate) fn run(config: &MasterConfig, options: &Options, thresholds: &Thresholds) -> Result<()> {
    status::finish(&facts(config)?, &config.job_name, thresholds, options)
}

/// Everything that is to be found out from here.
pub(super) fn facts(config: &MasterConfig) -> Result<Facts> {
    let runtime = crate::master::runtime()?;
    let facts = runtime.block_on(look(config));
    // A name that is still being looked up must not hold the exit back.
    runtime.shutdown_background();
    Ok(facts)
}

async fn look(config: &MasterConfig) -> Facts {
    // It tells its settings from others', so it is asked with all of them.
    let runs = syncdaemon(config);
    let asked = (runs == Syncdaemon::Running).then(|| config.clone());
    let agent = tokio::task::spawn_blocking(move || agent::look(&asked?));
    let config = &impatient(config);
    let (server, standby, agent) = tokio::join!(
        within("PostgreSQL", ask_server(config)),
        within("the receiver", ask_standby(config)),
        agent
    );
    let mut master = Master {
        receiver: config.slave.to_string(),
        syncdaemon: runs,
        agent: agent.ok().flatten(),
        taken_out: taken_out(config),
        ..Master::default()
    };
    let position = match server {
        Ok(server) => {
            master.archiving = Some(server.archives.archiving);
            master.archiving_pending = server.archives.pending;
            master.archiver = Some(server.archiver);
            server.position
        }
        Err(error) => {
            master.unasked = Some(error.to_string());
            from_files(config).await
        }
    };
    let standby = standby.map_err(|error| error.to_string());
    let standby = standby.map(|(overview, clock_ahead)| {
        master.clock_ahead = Some(clock_ahead);
        overview
    });
    let lag = match position {
        Some(MasterFound::Master(files, flushed)) => {
            master.flushed = Some((files.timeline(), flushed));
            lag(&mut master, &files, flushed, standby.as_ref().ok())
        }
        Some(MasterFound::Standby) => {
            master.is_standby = true;
            Lag::default()
        }
        None => Lag::default(),
    };
    Facts {
        lag,
        standby,
        here: Here::Master(Box::new(master)),
    }
}

/// The settings with no wait longer than the limit.
fn impatient(config: &MasterConfig) -> MasterConfig {
    MasterConfig {
        connect_timeout: config.connect_timeout.min(ANSWER_LIMIT),
        push_timeout: config.push_timeout.min(ANSWER_LIMIT),
        ..config.clone()
    }
}

async fn within<T>(whom: &str, asking: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(ANSWER_LIMIT, asking).await.unwrap_or_else(|_| {
        let text = format!("{whom} did not answer within {ANSWER_LIMIT:?}");
        Err(CommandError::retry(text))
    })
}

/// What the standby holds, and how far its clock is ahead of this one's.
async fn ask_standby(config: &MasterConfig) -> Result<(Overview, f64)> {
    let facts = ClusterFacts::read(config).ok();
    let mut asking = Asking::connect_to_read(config, facts.as_ref()).await?;
    let (asked, overview) = (Instant::now(), asking.overview().await?);
    // It looked at its clock between the question and the answer.
    let since_s = seconds_since(overview.clock_ms.saturating_mul(1_000));
    let clock_ahead = (asked.elapsed().as_secs_f64() / 2.0) - since_s;
    asking.close().await;
    Ok((overview, clock_ahead))
}

/// What the server says.
struct Server {
    position: Option<MasterFound>,
    archives: Archives,
    archiver: Archiver,
}

/// Where the master's WAL ends.
enum MasterFound {
    Master(WalFiles, Lsn),
    /// It replays another's.
    Standby,
}

async fn ask_server(config: &MasterConfig) -> Result<Server> {
    let limits = Limits {
        connect: config.connect_timeout,
        statement: ANSWER_LIMIT,
    };
    let session = Session::connect(&config.master_db, limits).await?;
    let position = match session.primary_wal_position().await? {
        Some(position) => MasterFound::Master(files(config, position.timeline)?, position.flushed),
        None => MasterFound::Standby,
    };
    let archiver = archiver_of(&session.archiver_statistics().await?);
    let archives = Archives::ask(config, &session).await?;
    session.close().await;
    Ok(Server {
        position: Some(position),
        archives,
        archiver,
    })
}

fn files(config: &MasterConfig, timeline: TimelineId) -> Result<WalFiles> {
    let data = DataDirectory::open(&config.master_data)?;
    let facts = ClusterFacts::read(config)?;
    Ok(WalFiles::new(data.wal(), facts.cluster, timeline))
}

fn archiver_of(statistics: &ArchiverStatistics) -> Archiver {
    let aged = |name: &Option<_>, at_ms: Option<i64>| {
        let name: &Option<walmgr_protocol::names::WalFileName> = name;
        let age_s = seconds_since(at_ms?.saturating_mul(1_000));
        Some((name.as_ref()?.to_string(), age_s))
    };
    Archiver {
        last_archived: aged(&statistics.last_archived, statistics.last_archived_ms),
        failed_count: statistics.failed_count,
        last_failed: aged(&statistics.last_failed, statistics.last_failed_ms),
    }
}

/// The end of WAL as the files tell it, for a server that is down.
async fn from_files(config: &MasterConfig) -> Option<MasterFound> {
    let config = MasterConfig {
        use_xlog_functions: false,
        ..config.clone()
    };
    let found = match PositionReader::default().look(&config).await {
        Ok(PositionFound::Master(position)) => end_in_files(&position).map(|end| {
            let Position { files, .. } = *position;
            MasterFound::Master(files, end)
        }),
        Ok(PositionFound::Standby) => return Some(MasterFound::Standby),
        Err(error) => Err(error),
    };
    match found {
        Ok(found) => Some(found),
        Err(error) => {
            tracing::debug!("the end of WAL is unknown: {error}");
            None
        }
    }
}

fn end_in_files(position: &Position) -> Result<Lsn> {
    let (files, bound) = (&position.files, position.reach.bound);
    let mut records = Records::from(files, files.containing(position.reach.near));
    records
        .look_ahead(bound, Lsn(u64::MAX))
        .at(Kind::Retry, "read WAL in", files.folder())?;
    Ok(records.end())
}

fn syncdaemon(config: &MasterConfig) -> Syncdaemon {
    let pidfile = config.syncdaemon_pidfile();
    match daemon::is_running(&pidfile) {
        Ok(true) => Syncdaemon::Running,
        Ok(false) if pidfile.exists() => Syncdaemon::Died,
        Ok(false) => Syncdaemon::Stopped,
        Err(error) => {
            tracing::debug!("cannot tell whether a syncdaemon runs: {error}");
            Syncdaemon::Stopped
        }
    }
}

/// Who does not keep commits waiting any more, and since when.
fn taken_out(config: &MasterConfig) -> Option<(String, f64)> {
    let note = SynchNote::read(&config.master_data);
    let taken_out = note.taken_out()?;
    let age_s = seconds_since(taken_out.at_s.saturating_mul(1_000_000));
    Some((taken_out.name.clone(), age_s))
}

fn lag(master: &mut Master, files: &WalFiles, flushed: Lsn, overview: Option<&Overview>) -> Lag {
    let Some(overview) = overview else {
        // What PostgreSQL was told is durable is so, and the standby may have more.
        let archiver = master.archiver.as_ref();
        let archived = archiver.and_then(|archiver| archiver.last_archived.as_ref());
        return Lag {
            seconds_at_most: archived.map(|(_, age_s)| *age_s),
            ..Lag::default()
        };
    };
    let Some((_, held)) = overview.held else {
        return Lag::default();
    };
    let bytes = Some(flushed.0.saturating_sub(held.0));
    if held >= flushed {
        let seconds = Some(0.0);
        return Lag {
            seconds,
            bytes,
            ..Lag::default()
        };
    }
    let wanted = files.containing(held);
    if !files.exists(wanted) {
        master.gone = Some(wanted.to_string());
    }
    let seconds = match oldest_missing(files, held, flushed) {
        Ok(Oldest::Nothing) => Some(0.0),
        Ok(Oldest::Seconds(seconds)) => Some(seconds),
        Ok(Oldest::Unknown) => None,
        Err(error) => {
            tracing::debug!("read WAL in {}: {error}", files.folder().display());
            None
        }
    };
    Lag {
        seconds,
        bytes,
        ..Lag::default()
    }
}
