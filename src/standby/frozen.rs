//! What a boot does with the segments in progress: freezes them, and later hands them to replay.
//! Never changes a partial segment. Invariant: replay gets a frozen segment only under the `STOP` of
//! the server it was frozen for, and never in place of more that this server has itself.

use std::io;
use std::path::Path;
use std::sync::Arc;

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName};

use crate::audit::{AuditEvent, AuditOutcome};
use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::data_directory::Postmaster;
use crate::pg::layout;
use crate::standby::ahead;
use crate::standby::audited;
use crate::standby::replay::server_text;
use crate::standby::verdict::{AcknowledgedEnd, InProgress};
use crate::store::{
    ArchiveReader, FrozenSegment, OwnSegment, PartialWals, RealDisk, Route, StoreError,
};
use crate::wal::obstacle::Met;
use crate::wal::scan::Scanner;

/// The partial segments of an archive.
pub(super) struct Partials(PartialWals, Box<StandbyConfig>);

/// What PostgreSQL shall have of a segment.
pub(super) enum Serving {
    /// The frozen copy.
    Copy(FrozenSegment),
    /// Its own: it has more of it.
    Own,
    /// Neither: this contradicts the other.
    Other(CommandError),
}

impl Partials {
    /// Opens those of the settings.
    pub(super) fn open(config: &StandbyConfig) -> Result<Partials> {
        PartialWals::open(&config.partial_wals, Arc::new(RealDisk))
            .map(|partials| Partials(partials, Box::new(config.clone())))
            .map_err(|error| failed("open partial_wals", &error))
    }

    /// How far each of them goes, and which are gone.
    pub(super) fn in_progress(&self) -> Result<InProgress> {
        let found = (self.0.vanished()).and_then(|vanished| {
            let ends = self.0.ends()?;
            Ok(InProgress { ends, vanished })
        });
        found.map_err(|error| failed("read partial_wals", &error))
    }

    /// What may keep a server that stands there from going on, in finished segments and in these.
    pub(super) fn ahead(&self, archive: &ArchiveReader, at: (TimelineId, Lsn)) -> Result<Vec<Met>> {
        let found = ahead::find(archive, Some(&self.0), at);
        found.map_err(|error| failed("look at what is ahead", &error))
    }

    /// Freezes the stream for this server, which stands there; says up to where, and on which timeline,
    /// replay can go with what was frozen. `force` takes of a damaged segment what is before the damage.
    pub(super) fn freeze(
        &self,
        archive: &ArchiveReader,
        at: (TimelineId, Lsn),
        server: &Postmaster,
        force: bool,
    ) -> Result<Option<AcknowledgedEnd>> {
        let frozen = Route::of_server(archive, &[], at).and_then(|route| {
            let newest = route.line().newest_timeline();
            let wanted = |segment: SegmentName| {
                let finished = archive.find(WalFileName::Segment(segment))?;
                // What an old master archived since goes further than it may.
                let absent = finished.is_none() || archive.is_passed_over(segment)?;
                Ok(absent && route.line().led_to(segment, at.1).is_some())
            };
            let before = |segment| archive.scanner_before(segment);
            let server = server_text(server);
            let freeze = self.0.freeze(newest, &server, force, wanted, &before)?;
            Ok((freeze, route))
        });
        let (freeze, route) = frozen.map_err(|error| {
            failed("freeze the incoming stream", &error).hint(
                "boot --force opens without the segments in progress, and so without the last \
                commits",
            )
        })?;
        let segments = freeze.segments.unwrap_or_default();
        let ends = segments.iter();
        let ends = ends.filter_map(|copy| {
            let end = route.line().led_to(copy.segment, copy.end)?;
            let timeline = copy.segment.timeline();
            Some(AcknowledgedEnd { timeline, end })
        });
        let end = ends.max_by_key(|acknowledged| acknowledged.end);
        let place = end.map_or_else(String::new, |found| format!(" at {}", found.end));
        let frozen = AuditEvent::Frozen {
            timeline: freeze.timeline.number(),
        };
        audited::tell(&self.1, AuditOutcome::Done, &frozen);
        tracing::info!(
            "the stream of timeline {} is frozen{place}; segments in progress: {}",
            freeze.timeline,
            segments.len()
        );
        Ok(end)
    }

    /// Lets the stream go on.
    pub(super) fn thaw(&self) -> Result<()> {
        let thawed = (self.0.thaw()).map_err(|error| failed("let the stream continue", &error))?;
        if thawed {
            tracing::info!("the stream of the master can continue");
            audited::tell(&self.1, AuditOutcome::Done, &AuditEvent::Thawed {});
        }
        Ok(())
    }

    /// Removes the copies that were replayed; a failure is only worth a word.
    pub(super) fn remove_copies(&self) {
        if let Err(error) = self.0.remove_copies() {
            tracing::warn!("cannot remove the copies of partial segments: {error}");
        }
    }

    /// What a server that is being booted shall have of a segment; `None` if it is not frozen.
    pub(super) fn serving(
        &self,
        name: WalFileName,
        server: &Postmaster,
    ) -> Result<Option<Serving>> {
        let failed = |error: StoreError| failed(&format!("look for {name}"), &error);
        let Some(freeze) = self.0.frozen().map_err(failed)? else {
            return Ok(None);
        };
        let WalFileName::Segment(segment) = name else {
            return Ok(None);
        };
        let ours = freeze.server == server_text(server);
        let mut segments = freeze.segments.unwrap_or_default().into_iter();
        let Some(copy) = segments.find(|copy| ours && copy.segment == segment) else {
            return Ok(None);
        };
        // PostgreSQL puts what it gets in the place of what it has.
        let path = Path::new(layout::PG_WAL).join(name.to_string());
        let own = match files::open_at_once(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Some(Serving::Copy(copy)));
            }
            other => other.at(Kind::Retry, "open", &path)?,
        };
        Ok(Some(match self.0.compare(&copy, &own).map_err(failed)? {
            OwnSegment::NoMore => Serving::Copy(copy),
            OwnSegment::Further => Serving::Own,
            OwnSegment::Other => Serving::Other(
                CommandError::retry(format!(
                    "{name} in this server's pg_wal differs from its shipped records"
                ))
                .hint("boot --force opens with this server's own WAL"),
            ),
        }))
    }

    /// A scanner that comes out of what is replayed before a frozen segment; `None` where nothing can be said.
    pub(super) fn scanner_before(
        &self,
        segment: SegmentName,
        archive: &ArchiveReader,
    ) -> std::result::Result<Option<Scanner>, StoreError> {
        let before = |segment| archive.scanner_before(segment);
        self.0.scanner_before_copy(segment, &before)
    }

    /// Hands a frozen segment to `each`, zeros behind its records up to its length.
    pub(super) fn read(
        &self,
        copy: &FrozenSegment,
        each: impl FnMut(&[u8]) -> bool,
    ) -> std::result::Result<(), StoreError> {
        self.0.read_copy(copy, each)
    }
}

fn failed(doing: &str, error: &StoreError) -> CommandError {
    CommandError::new(error.kind(), doing).because(error)
}
