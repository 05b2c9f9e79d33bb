//! Where a fetched file goes, and what is looked at on the way.
//! Never gives half a file its name. Invariant: a file that has its name came whole, and was looked
//! at.

use std::io;
use std::path::{Path, PathBuf};

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};

use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files::HandedOver;
use crate::master::cluster::ClusterFacts;
use crate::master::fetch::Sink;
use crate::pg::{crossing, location};
use crate::wal::obstacle_walk::ObstacleWalk;
use crate::wal::scan::Scanner;

/// The largest segment of any cluster, for a restore where the cluster is not known.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// What became of a whole file.
pub(super) enum Whole {
    /// It has its name.
    InPlace,
    /// It was looked at only.
    Seen,
}

/// Where a file goes.
pub(super) trait FileSink: Sink {
    /// All of it has come.
    fn finish(self) -> Result<Whole>;
}

/// `-n`: it is looked at only.
pub(super) struct Nowhere {
    /// What it may be long.
    pub(super) room: Room,
    /// What is looked for.
    pub(super) look: Option<Look>,
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
pub(super) struct Look {
    data: PathBuf,
    major: u8,
    segment: SegmentName,
    walk: ObstacleWalk,
    /// From within the record that the segment before did not end.
    crossing: Option<ObstacleWalk>,
}

impl Look {
    /// At the segment for which the server in `data` asks.
    pub(super) fn begin(data: &Path, segment: SegmentName, facts: &ClusterFacts) -> Look {
        Look {
            crossing: crossing::before(data, segment, facts.cluster.segment_size),
            ..Look::within(data, segment, facts)
        }
    }

    /// One that leaves to another the record that the segment before did not end.
    pub(super) fn within(data: &Path, segment: SegmentName, facts: &ClusterFacts) -> Look {
        let size = facts.cluster.segment_size;
        let scanner = Scanner::new(segment.start(size).unwrap_or_default(), size);
        Look {
            data: data.to_path_buf(),
            major: u8::try_from(facts.cluster.postgres_major).unwrap_or_default(),
            segment,
            walk: ObstacleWalk::from(scanner.without_checksums()),
            crossing: None,
        }
    }

    /// Whether it has met what may hold replay back.
    fn may_hold_back(&self) -> bool {
        location::may_hold_back(self.walk.obstacles())
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
pub(super) struct Room {
    name: WalFileName,
    most_bytes: u64,
    left_bytes: u64,
}

impl Room {
    /// For a file of this name.
    pub(super) fn of(name: WalFileName, facts: Option<&ClusterFacts>) -> Room {
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

/// Under a temporary name until all of it has come.
pub(super) struct Placing {
    room: Room,
    file: HandedOver,
    path: PathBuf,
    look: Option<Look>,
}

impl Placing {
    /// Begins a file that is to appear at `path`.
    pub(super) fn begin(path: &Path, room: Room, look: Option<Look>) -> Result<Placing> {
        let begun = HandedOver::begin(path);
        Ok(Placing {
            room,
            file: begun.at(Kind::Retry, "create a file beside", path)?,
            path: path.to_path_buf(),
            look,
        })
    }

    /// Gives it its name unless there is something in it that may hold replay back; whether it has it.
    pub(super) fn lay(self) -> Result<bool> {
        if self.look.as_ref().is_none_or(Look::may_hold_back) {
            return Ok(false);
        }
        let placed = self.file.put_in_place();
        placed.at(Kind::Retry, "rename", &self.path)?;
        Ok(true)
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
