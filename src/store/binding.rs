//! The marker `.walmgr-archive`: which archive a directory belongs to and which cluster fills it.
//! Never guesses a missing field. Invariant: both directories carry the same archive id, and
//! `completed_wals` learns its cluster before `partial_wals` does.

use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};
use walmgr_protocol::message::ClusterIdentity;
use walmgr_protocol::names::{SystemId, WalSegmentSize};

use super::error::StoreError;
use super::folder::{Folder, random_suffix};
use crate::wal::segment::ExpectedSegment;

/// The marker's name in each of the two directories.
pub(crate) const MARKER_NAME: &str = ".walmgr-archive";

/// The newest format of the archive that this walmgr reads and writes.
pub(crate) const FORMAT: u64 = 1;

/// A marker has some two hundred bytes; more is somebody else's file.
const MARKER_BYTES_MAX: usize = 4 << 10;

/// The cluster whose WAL an archive keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Its `system_identifier`.
    pub system_id: SystemId,
    /// Its `wal_segment_size`.
    pub segment_size: WalSegmentSize,
    /// The major version of its server.
    pub postgres_major: u8,
}

impl Binding {
    /// What a file has to be to belong here.
    pub(super) const fn expected(&self) -> ExpectedSegment {
        ExpectedSegment {
            system_id: self.system_id,
            segment_size: self.segment_size,
            postgres_major: Some(self.postgres_major),
        }
    }
}

impl From<Binding> for ClusterIdentity {
    fn from(binding: Binding) -> Self {
        ClusterIdentity {
            system_id: binding.system_id,
            postgres_major: u16::from(binding.postgres_major),
            segment_size: binding.segment_size,
        }
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "system {}, PostgreSQL {}, segments of {}",
            self.system_id, self.postgres_major, self.segment_size
        )
    }
}

/// Which of the two directories a marker stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MarkerRole {
    Completed,
    Partial,
}

impl MarkerRole {
    const fn other(self) -> MarkerRole {
        match self {
            MarkerRole::Completed => MarkerRole::Partial,
            MarkerRole::Partial => MarkerRole::Completed,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            MarkerRole::Completed => "completed_wals",
            MarkerRole::Partial => "partial_wals",
        }
    }
}

/// The content of a marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) archive_id: String,
    pub(super) binding: Option<Binding>,
}

impl Marker {
    /// The marker of an archive that did not exist before.
    pub(super) fn fresh(folder: &Folder) -> Result<Self, StoreError> {
        let half = || random_suffix().map_err(|error| folder.failure("name", MARKER_NAME, error));
        Ok(Marker {
            archive_id: half()? + &half()?,
            binding: None,
        })
    }

    /// Reads the marker of a directory; `None` when it has none.
    pub(super) fn read(folder: &Folder, role: MarkerRole) -> Result<Option<Self>, StoreError> {
        let Some(content) = folder.read_small(MARKER_NAME, MARKER_BYTES_MAX)? else {
            return Ok(None);
        };
        let wrong = |why: String| StoreError::Marker {
            path: folder.path().join(MARKER_NAME),
            why,
        };
        let damaged = |why: String| StoreError::DamagedMarker {
            path: folder.path().join(MARKER_NAME),
            why,
            other: role.other().text(),
        };
        if content.len() > MARKER_BYTES_MAX {
            return Err(wrong(format!("it is longer than {MARKER_BYTES_MAX} bytes")));
        }
        let mut value: Value = serde_json::from_slice(&content)
            .map_err(|error| damaged(format!("it is not JSON: {error}")))?;
        let format = value.get("format").and_then(Value::as_u64);
        if let Some(found) = format.filter(|format| *format > FORMAT) {
            return Err(StoreError::NewerFormat {
                path: folder.path().join(MARKER_NAME),
                found,
                supported: FORMAT,
            });
        }
        if format != Some(FORMAT) {
            return Err(wrong(format!("its `format` should be {FORMAT}")));
        }
        if let Some(why) = contradiction(&mut value) {
            return Err(damaged(why));
        }
        Self::parse(&value, role).map(Some).map_err(wrong)
    }

    fn parse(value: &Value, role: MarkerRole) -> Result<Self, String> {
        let text = |key: &str| {
            value
                .get(key)
                .and_then(Value::as_str)
                .ok_or_else(|| format!("it has no text `{key}`"))
        };
        let number = |key: &str| {
            let number = value.get(key).and_then(Value::as_u64);
            number.ok_or_else(|| format!("it has no number `{key}`"))
        };
        let found = text("role")?;
        if found != role.text() {
            return Err(format!("its `role` is {found}, expected {}", role.text()));
        }
        let archive_id = text("archive_id")?.to_owned();
        if value.get("system_identifier").is_none() {
            return Ok(Marker {
                archive_id,
                binding: None,
            });
        }
        let system_id = (text("system_identifier")?.parse())
            .map_err(|error| format!("its `system_identifier` is no number: {error}"))?;
        let segment_size = u32::try_from(number("wal_segment_size")?)
            .ok()
            .and_then(WalSegmentSize::new)
            .ok_or("its `wal_segment_size` is none that PostgreSQL has")?;
        let postgres_major = u8::try_from(number("postgres_major")?)
            .map_err(|_| "its `postgres_major` is no version of PostgreSQL")?;
        Ok(Marker {
            archive_id,
            binding: Some(Binding {
                system_id: SystemId(system_id),
                segment_size,
                postgres_major,
            }),
        })
    }

    /// Puts the marker into a directory, durably.
    pub(super) fn write(&self, folder: &Arc<Folder>, role: MarkerRole) -> Result<(), StoreError> {
        let mut value = json!({
            "format": FORMAT,
            "archive_id": self.archive_id,
            "role": role.text(),
        });
        if let Some(binding) = &self.binding {
            // A system identifier has 64 bits; as a JSON number many readers would round it.
            value["system_identifier"] = json!(binding.system_id.to_string());
            value["wal_segment_size"] = json!(binding.segment_size.bytes());
            value["postgres_major"] = json!(binding.postgres_major);
        }
        value["checksum"] = json!(checksum(&value));
        folder.write_small(MARKER_NAME, format!("{value:#}\n").as_bytes())
    }
}

/// Over the other fields, as they stand in the file but for white space.
fn checksum(value: &Value) -> String {
    format!("{:08X}", crc32fast::hash(value.to_string().as_bytes()))
}

/// Takes the checksum out of `value`, and says why it does not fit the other fields; `None` if it fits. No
/// field is believed after a misfit: a wrong binding would refuse the right WAL and take another cluster's.
fn contradiction(value: &mut Value) -> Option<String> {
    let stated = value.as_object_mut()?.remove("checksum");
    let Some(stated) = stated.as_ref().and_then(Value::as_str) else {
        return Some("it has no text `checksum`".to_owned());
    };
    let computed = checksum(value);
    (stated != computed).then(|| format!("its checksum is {stated}, its fields give {computed}"))
}
