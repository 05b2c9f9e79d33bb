//! What messages of several flows carry.
//! Never a message itself. Invariant: a list is bounded on both sides.

use std::fmt;

use bytes::{BufMut, BytesMut};

use crate::error::Malformed;
use crate::fields::Fields;
use crate::names::{SystemId, WalSegmentSize};

/// Size and CRC-32 of a whole file, as [`super::MessageKind::Commit`], [`super::MessageKind::Stored`] and [`super::MessageKind::Conflict`]
/// carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    /// Its size in bytes.
    pub size: u64,
    /// CRC-32 of its content.
    pub crc32: u32,
}

/// What identifies a cluster and its WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterIdentity {
    /// `system_identifier` of `pg_control`.
    pub system_id: SystemId,
    /// PostgreSQL's major version.
    pub postgres_major: u16,
    /// `wal_segment_size`.
    pub segment_size: WalSegmentSize,
}

impl ClusterIdentity {
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.system_id.0);
        out.put_u16_le(self.postgres_major);
        out.put_u32_le(self.segment_size.bytes_u32());
    }

    pub(crate) fn decode(fields: &mut Fields) -> Result<ClusterIdentity, Malformed> {
        let system_id = SystemId(fields.u64()?);
        let postgres_major = fields.u16()?;
        let size_bytes = fields.u32()?;
        let segment_size = WalSegmentSize::new(size_bytes).ok_or(Malformed::BadValue {
            what: "wal_segment_size",
            found: u64::from(size_bytes),
        })?;
        Ok(ClusterIdentity {
            system_id,
            postgres_major,
            segment_size,
        })
    }
}

impl fmt::Display for ClusterIdentity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "system identifier {}, PostgreSQL {}, {} segments",
            self.system_id, self.postgres_major, self.segment_size
        )
    }
}

/// Appends the number of entries, and returns those that are to follow it.
pub(super) fn bounded<'a, T>(out: &mut BytesMut, entries: &'a [T], most: u16) -> &'a [T] {
    let count = entries.len().min(usize::from(most));
    out.put_u16_le(u16::try_from(count).unwrap_or(most));
    &entries[..count]
}

pub(super) fn list<T>(
    fields: &mut Fields,
    what: &'static str,
    most: u16,
    mut entry: impl FnMut(&mut Fields) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let count = fields.u16()?;
    if count > most {
        return Err(Malformed::TooLong {
            what,
            most: u64::from(most),
            found: u64::from(count),
        });
    }
    (0..count).map(|_| entry(fields)).collect()
}
