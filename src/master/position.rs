//! How far the master's WAL reaches: asked of the server, or left to its files.
//! Never asks a server that does not run, and never counts what a running one has not flushed.
//! Invariant: one light question a look.

use std::path::Path;

use walmgr_protocol::names::{Lsn, TimelineId, WalFileName};

use crate::config::MasterConfig;
use crate::error::{IoContext, Kind, Result};
use crate::files;
use crate::master::cluster::ClusterFacts;
use crate::master::partial::MasterReach;
use crate::master::tail::WalFiles;
use crate::pg::control::{ControlFile, State};
use crate::pg::data_directory::DataDirectory;
use crate::pg::layout;
use crate::pg::sql::{Limits, Session};
use crate::wal::history::History;

/// Where a master stands.
pub(crate) struct Position {
    /// The cluster.
    pub facts: ClusterFacts,
    /// Its WAL on the timeline that is being written.
    pub files: WalFiles,
    /// How far it reaches.
    pub reach: MasterReach,
    /// Whether it was read from the files because nobody could be asked.
    pub unasked: bool,
    /// Whether the server said that it has written more than it has flushed.
    pub awaits_flush: bool,
}

/// What a look found.
pub(crate) enum PositionFound {
    /// A master.
    Master(Box<Position>),
    /// A server that replays: its WAL is another's.
    Standby,
}

/// Looks again and again; keeps the session with the server open in between where that harms nobody.
#[derive(Default)]
pub(crate) struct PositionReader {
    session: Option<Session>,
}

impl PositionReader {
    /// Where the master stands now.
    pub(crate) async fn look(&mut self, config: &MasterConfig) -> Result<PositionFound> {
        let data = DataDirectory::open(&config.master_data)?;
        if config.use_xlog_functions {
            match self.ask(config, &data).await {
                Err(error) if data.running()?.is_some() => return Err(error),
                // A server that is gone writes nothing more: its files say everything.
                Err(error) => tracing::debug!("the files are read instead: {error}"),
                Ok(look) => return Ok(look),
            }
        }
        from_files(config, &data)
    }

    async fn ask(&mut self, config: &MasterConfig, data: &DataDirectory) -> Result<PositionFound> {
        let session = match self.session.take().filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => {
                let limits = Limits {
                    connect: config.connect_timeout,
                    ..Limits::default()
                };
                let session = Session::connect(&config.master_db, limits).await?;
                session.ask_quietly().await;
                session
            }
        };
        let Some(found) = session.primary_wal_position().await? else {
            return Ok(PositionFound::Standby);
        };
        // `CREATE DATABASE` waits five seconds for the last session to leave its template.
        match session.is_harmless() {
            true => self.session = Some(session),
            false => session.close().await,
        }
        let facts = ClusterFacts::read(config)?;
        Ok(PositionFound::Master(Box::new(Position {
            files: WalFiles::new(data.wal(), facts.cluster, found.timeline),
            facts,
            reach: MasterReach::flushed(found.flushed),
            unasked: false,
            awaits_flush: found.flushed < found.written,
        })))
    }
}

fn from_files(config: &MasterConfig, data: &DataDirectory) -> Result<PositionFound> {
    let control = data.control()?;
    if is_replaying(&control, data.path()) {
        return Ok(PositionFound::Standby);
    }
    let facts = ClusterFacts::read(config)?;
    let files = WalFiles::new(data.wal(), facts.cluster, newest_timeline(&control, data)?);
    let near = last_written(&files, control.checkpoint);
    Ok(PositionFound::Master(Box::new(Position {
        files,
        facts,
        reach: MasterReach {
            bound: Lsn(u64::MAX),
            near,
            flushed: None,
        },
        unasked: true,
        awaits_flush: false,
    })))
}

/// Recovery that ends in a standby, or in a new timeline whose history is not written yet.
fn is_replaying(control: &ControlFile, data: &Path) -> bool {
    let asked = layout::SIGNALS;
    let state = matches!(
        control.state,
        State::InArchiveRecovery | State::ShutDownInRecovery
    );
    state || asked.iter().any(|name| data.join(name).exists())
}

/// The timeline of the last checkpoint, or the one that a promotion made of it since.
fn newest_timeline(control: &ControlFile, data: &DataDirectory) -> Result<TimelineId> {
    let mut newest = control.timeline;
    let folder = data.wal();
    for entry in std::fs::read_dir(&folder).at(Kind::Retry, "list", &folder)? {
        let entry = entry.at(Kind::Retry, "list", &folder)?;
        let name = entry
            .file_name()
            .to_str()
            .and_then(|text| text.parse().ok());
        let Some(WalFileName::History(timeline)) = name else {
            continue;
        };
        if timeline <= newest {
            continue;
        }
        let path = entry.path();
        let text = files::read(&path).at(Kind::Retry, "read", &path)?;
        let ours = History::parse(timeline, &text).is_ok_and(|history| {
            let mut ancestors = history.ancestors().iter();
            ancestors.any(|ancestor| {
                ancestor.timeline == control.timeline && control.checkpoint < ancestor.switch_point
            })
        });
        if ours {
            newest = timeline;
        }
    }
    Ok(newest)
}

/// The beginning of the newest segment that the server has written to, or the checkpoint if that is behind
/// it. A segment that was recycled for later still begins with an old page.
fn last_written(files: &WalFiles, checkpoint: Lsn) -> Lsn {
    let mut newest = files.containing(checkpoint);
    while let Some(next) = files.next(newest).filter(|next| files.exists(*next)) {
        let start = files.start(next);
        let mut first = Vec::new();
        let long_header = crate::wal::page::LONG_HEADER_BYTES as u64;
        if files.read(start, long_header, &mut first).is_err() {
            break;
        }
        let mut rest = &first[..];
        match files.scanner(start).advance(&mut rest) {
            crate::wal::scan::ScanStep::NeedMore => newest = next,
            _ => break,
        }
    }
    files.start(newest).max(checkpoint)
}
