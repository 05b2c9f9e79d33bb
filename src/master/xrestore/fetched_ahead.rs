//! Segments that were fetched while the server replays the ones before them (`crate::laid_ready`).
//! Never asks the standby about one that lies ready. Invariant: what is handed out came whole within the last minute, for
//! this run of this server and with these settings, and nothing in it holds replay back: as if the server had asked then.
//!
//! One connection brings as many as are to lie ready. A segment with what may hold replay back is not laid: the call
//! fetches it and looks what the server has by then. A call whose segment is on its way waits for it while it grows, as
//! two would take each other's bandwidth.
//!
//! Nothing is fetched ahead for a server that would ask for it too late: one that replays slowly, and one that waits at
//! the end of the archive, which asks for a segment and then for one that is absent.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walmgr_protocol::message::fetch::GetFile;
use walmgr_protocol::names::{SegmentName, WalFileName, WalSegmentSize};
use walmgr_protocol::session::fetch::{FetchOutcome, FetchRequest};

use super::placing::{Look, Placing, Room};
use crate::config::MasterConfig;
use crate::error::{CommandError, Result};
use crate::files;
use crate::laid_ready::{LaidFolder, LaidSegment, TRUSTED_FOR};
use crate::master::agent;
use crate::master::cluster::ClusterFacts;
use crate::master::fetch::Fetching;
use crate::pg::crossing;
use crate::pg::data_directory::DataDirectory;
use crate::pg::location;
use crate::wal::obstacle::Obstacles;

/// Bytes of the settings' digest that a stamp has.
const SETTINGS_STAMP_BYTES: usize = 8;

/// How often whoever fetches looks whether its server is still there.
const SERVER_LOOK: Duration = Duration::from_millis(500);

/// Where fetched segments lie ready for one server.
pub(super) struct FetchedAhead<'a> {
    config: &'a MasterConfig,
    data: PathBuf,
    facts: ClusterFacts,
    folder: LaidFolder,
    /// Process and start of its server.
    server: (i32, i64),
    /// What tells this run of it, and the settings.
    stamp: String,
}

impl<'a> FetchedAhead<'a> {
    /// For the server that runs in `data` and asks for a file under this path; nothing for a person.
    pub(super) fn of_server(
        config: &'a MasterConfig,
        data: &Path,
        facts: ClusterFacts,
        path: &Path,
    ) -> Option<FetchedAhead<'a>> {
        let boot = files::boot();
        if config.restore_ahead == 0 || boot.is_empty() {
            return None;
        }
        let folder = LaidFolder::beside(path, facts.cluster.segment_size)?;
        let (pid, started) = server_in(data)?;
        let settings = &agent::settings_digest(config)[..SETTINGS_STAMP_BYTES];
        let settings: String = settings.iter().map(|byte| format!("{byte:02x}")).collect();
        Some(FetchedAhead {
            config,
            data: data.to_path_buf(),
            facts,
            folder,
            server: (pid, started),
            stamp: format!("{boot}.{pid:x}.{started:x}.{settings}"),
        })
    }

    /// Hands over the segment if it lies ready; whether it did.
    pub(super) fn hand_over(&self, segment: SegmentName, path: &Path) -> Result<bool> {
        let Some(laid) = self.folder.find(&self.name_of(segment)) else {
            return Ok(false);
        };
        if !laid.is_young() {
            // Its server has no use for what is fetched ahead.
            self.folder.clear();
            return Ok(false);
        }
        let read = self.obstacles_across(segment, &laid);
        if let Some(held) = read.as_ref().ok().and_then(|met| self.held_back(met)) {
            let doing = format!("{segment} is held back");
            return Err(CommandError::retry(doing).because(held));
        }
        let placed = read.and_then(|_| laid.put_in_place(path));
        if let Err(error) = &placed {
            tracing::debug!("{segment} lies ready and is fetched all the same: {error}");
        }
        Ok(placed.is_ok())
    }

    /// Waits for the segment if it is on its way, and hands it over; whether it did.
    pub(super) fn wait_for(&self, segment: SegmentName, path: &Path) -> Result<bool> {
        let patience = self.config.push_timeout;
        self.folder.wait_for(&self.name_of(segment), patience);
        self.hand_over(segment, path)
    }

    /// Has the segments behind this one fetched, if the server will ask for all of them before they are too old.
    pub(super) fn lay_behind(&self, segment: SegmentName, path: &Path) {
        let config = self.config;
        let in_time = TRUSTED_FOR / config.restore_ahead.max(1);
        if !self.folder.is_asked_again_within(in_time) {
            return;
        }
        let is_to_be_laid = |next| !self.lies_ready(next);
        let asked = (segment, path);
        (self.folder).have_laid(&config.path, asked, config.restore_ahead, is_to_be_laid);
    }

    /// Removes everything: replay of the archive has come to an end, for now or for good.
    pub(super) fn clear(&self) {
        self.folder.clear();
    }

    /// Fetches the segments behind this one, which PostgreSQL has.
    pub(super) async fn lay(&self, segment: SegmentName) -> Result<()> {
        let Some(lock) = self.folder.lock()? else {
            return Ok(());
        };
        let behind = self.folder.behind(segment, self.config.restore_ahead);
        let (ready, missing): (Vec<_>, Vec<_>) = behind.partition(|it| self.lies_ready(*it));
        let ready: Vec<_> = ready.into_iter().map(|it| self.path_of(it)).collect();
        self.folder.keep_only(&ready)?;
        if missing.is_empty() {
            return Ok(());
        }
        let mut fetching = Fetching::connect(self.config, Some(&self.facts)).await?;
        for segment in missing {
            self.folder.check(&lock)?;
            let laid = tokio::select! {
                laid = self.fetch(&mut fetching, segment) => Some(laid?),
                () = tokio::time::sleep(self.config.push_timeout) => None,
                () = self.server_is_gone() => None,
            };
            match laid {
                Some(true) => {}
                Some(false) => break,
                None => return Ok(()),
            }
        }
        fetching.close().await;
        Ok(())
    }

    async fn server_is_gone(&self) {
        while server_in(&self.data) == Some(self.server) {
            tokio::time::sleep(SERVER_LOOK).await;
        }
    }

    /// Whether it lies there now.
    async fn fetch(&self, fetching: &mut Fetching<'_>, segment: SegmentName) -> Result<bool> {
        let name = WalFileName::Segment(segment);
        let look = Look::within(&self.data, segment, &self.facts);
        let room = Room::of(name, Some(&self.facts));
        let placing = Placing::begin(&self.path_of(segment), room, Some(look))?;
        let request = FetchRequest::File(GetFile {
            name,
            compression: self.config.network_level(),
        });
        let fetched = fetching.get(request, placing).await;
        match (fetched.outcome?, fetched.sink, fetched.refusal) {
            (FetchOutcome::Whole, Some(placing), None) => placing.lay(),
            _ => Ok(false),
        }
    }

    /// What the server meets in it of the record that began in the segment before. Of those that begin in it none may hold
    /// replay back.
    fn obstacles_across(&self, segment: SegmentName, laid: &LaidSegment) -> io::Result<Obstacles> {
        let mut obstacles = Obstacles::default();
        let crossing = crossing::before(&self.data, segment, self.size());
        if let Some((mut walk, boundary)) = crossing.zip(segment.start(self.size())) {
            laid.read(|bytes| walk.cross(boundary, bytes))?;
            obstacles.add_before(walk.obstacles(), boundary);
        }
        Ok(obstacles)
    }

    fn held_back(&self, obstacles: &Obstacles) -> Option<CommandError> {
        let major = u8::try_from(self.facts.cluster.postgres_major).unwrap_or_default();
        location::held_back(&self.data, major, obstacles)
    }

    fn lies_ready(&self, segment: SegmentName) -> bool {
        let laid = self.folder.find(&self.name_of(segment));
        laid.is_some_and(|laid| laid.is_young())
    }

    fn path_of(&self, segment: SegmentName) -> PathBuf {
        self.folder.path_of(&self.name_of(segment))
    }

    fn name_of(&self, segment: SegmentName) -> String {
        format!("{segment}.{}", self.stamp)
    }

    const fn size(&self) -> WalSegmentSize {
        self.facts.cluster.segment_size
    }
}

/// Process and start of the server that runs there.
fn server_in(data: &Path) -> Option<(i32, i64)> {
    let server = DataDirectory::open(data).ok()?.running().ok()??;
    Some((server.pid, server.started_s?))
}
