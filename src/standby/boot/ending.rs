//! What follows the promotion: what was recovered is told, and the new timeline's history archived.
//! Never changes the server. Invariant: whatever is read here outlives the promotion, and each step can be done
//! twice: a boot that was killed among them, or did not wait for them, is finished by the next.

use std::io;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::names::{TimelineId, WalFileName};

use super::BootedStandby;
use super::begun::BegunBoot;
use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::output;
use crate::pg::data_directory::DataDirectory;
use crate::standby::frozen::Partials;
use crate::standby::last_commit::Replayed;
use crate::standby::replay::ControlFiles;
use crate::store::differs::keep_history;
use crate::store::{ArchiveReader, RealDisk};
use crate::wal::history::History;

/// A server that opened.
pub(super) struct OpenedServer<'a> {
    pub(super) config: &'a StandbyConfig,
    pub(super) data: &'a DataDirectory,
    pub(super) archive: &'a ArchiveReader,
    /// With what it was to open.
    pub(super) begun: &'a BegunBoot,
}

impl BootedStandby {
    /// This server once it has opened.
    pub(super) fn opened<'a>(
        &'a self,
        config: &'a StandbyConfig,
        begun: &'a BegunBoot,
    ) -> OpenedServer<'a> {
        OpenedServer {
            config,
            data: &self.data,
            archive: &self.archive,
            begun,
        }
    }
}

impl OpenedServer<'_> {
    /// Says how the boot ended, and does what is left of it.
    pub(super) fn finish(&self, force: bool) -> Result<()> {
        // What is not being booted any more must not be treated so.
        ControlFiles::of(self.config).remove_stop_of(&self.begun.server)?;
        let (report, history) = self.report()?;
        output::print(&report)?;
        let verdict = self.judge(&history);
        // Nobody is to follow a timeline that left acknowledged records behind, unless a person said so.
        if verdict.is_ok() || force {
            self.archive_history(history.timeline())?;
        }
        if verdict.is_ok() {
            match Partials::open(self.config) {
                Ok(partials) => partials.remove_copies(),
                Err(error) => tracing::warn!(
                    "cannot remove the copies of partial segments: \
                    {error}"
                ),
            }
        }
        if verdict.is_ok() || force {
            self.begun.finish(self.config)?;
        }
        verdict
    }

    /// Whether the server opened with all that was acknowledged. At a recovery target it has what
    /// its administrator wanted.
    fn judge(&self, history: &History) -> Result<()> {
        let verdict = self.begun.acknowledged.judge(history);
        match verdict {
            Err(error) if self.begun.at_target => {
                tracing::info!("the recovery ended at its target: {error}");
                Ok(())
            }
            other => other,
        }
    }

    /// What the promotion brought back, and up to where.
    fn report(&self) -> Result<(String, History)> {
        let history = self.newest_history()?;
        let ended = history
            .ancestors()
            .last()
            .map(|parent| (parent.timeline, parent.switch_point));
        let Some((timeline, end)) = ended else {
            return Err(CommandError::retry("the new timeline has no history"));
        };
        let replayed = Replayed {
            archive: self.archive,
            pg_wal: self.data.wal(),
            history: &history,
            size: self.archive.binding().segment_size,
        };
        let commit = match replayed.last_commit_us(end) {
            Ok(Some(time_us)) => format!("the last commit was at {}", time_text(time_us)),
            Ok(None) => "its last segments hold no commit".to_owned(),
            Err(error) => format!("the time of the last commit is unknown: {error}"),
        };
        let report = format!(
            "The database is open on timeline {}. It has timeline {timeline} up to {end}; {commit}.",
            history.timeline()
        );
        Ok((report, history))
    }

    /// Before anybody archives WAL of the new timeline: its server has archiving off as a rule, and
    /// without its history nobody finds that WAL.
    fn archive_history(&self, timeline: TimelineId) -> Result<()> {
        let name = WalFileName::History(timeline);
        let text = read_small(&self.data.wal().join(name.to_string()))?;
        let kept = keep_history(&self.config.completed_wals, Arc::new(RealDisk), name, &text);
        let kept = kept.map_err(|error| {
            CommandError::new(error.kind(), format!("put {name} into the archive"))
                .because(error)
                .hint("the database is open; `setup` on it also sends the history")
        })?;
        if kept {
            tracing::info!(
                "{name} is in the archive; `setup` with a master.ini on this server turns archiving on"
            );
        }
        Ok(())
    }

    /// A promotion begins the highest timeline there is (`findNewestTimeLine`).
    fn newest_history(&self) -> Result<History> {
        let pg_wal = self.data.wal();
        let reading = |result: io::Result<_>| result.at(Kind::Retry, "list", &pg_wal);
        let mut newest = None;
        for entry in reading(std::fs::read_dir(&pg_wal))? {
            let name = reading_entry(entry, &pg_wal)?;
            if let Some(Ok(WalFileName::History(timeline))) = name.map(|name| name.parse()) {
                newest = newest.max(Some(timeline));
            }
        }
        let Some(timeline) = newest else {
            return Err(CommandError::retry(format!(
                "{} has no history of a new timeline",
                pg_wal.display()
            )));
        };
        let path = pg_wal.join(WalFileName::History(timeline).to_string());
        let text = read_small(&path)?;
        History::parse(timeline, &text)
            .map_err(|fault| CommandError::retry(format!("read {}", path.display())).because(fault))
    }
}

fn reading_entry(entry: io::Result<std::fs::DirEntry>, folder: &Path) -> Result<Option<String>> {
    let entry = entry.at(Kind::Retry, "list", folder)?;
    Ok(entry.file_name().into_string().ok())
}

fn read_small(path: &Path) -> Result<Vec<u8>> {
    files::read_at_most(path, SMALL_FILE_BYTES_MAX).at(Kind::Retry, "read", path)
}

fn time_text(time_us: i64) -> String {
    match Timestamp::from_microsecond(time_us) {
        Ok(time) => {
            let local = time.to_zoned(jiff::tz::TimeZone::system());
            local.strftime("%Y-%m-%d %H:%M:%S%.6f %Z").to_string()
        }
        Err(_) => format!("{time_us} microseconds since 1970"),
    }
}
