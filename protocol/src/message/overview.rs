//! The overview: what a standby holds and how it fares, for `status`; kinds 20 and 21.
//! Never interprets one. Invariant: every list is bounded on both sides, and times are ages, so that
//! two hosts need not agree on the clock; that they do not is for whoever compares the clocks to say.
//!
//! # Payloads
//!
//! Fields as in [`crate::message`]; `lsn` is a `u64`, `age` an `i64` of milliseconds, below 0 for a
//! time that is still to come by the standby's clock. Both kinds belong
//! to channel 0.
//!
//! | kind | message | sent by | payload |
//! |-----:|---------|---------|---------|
//! | 20 | overview request | client | nothing |
//! | 21 | overview | receiver | `bool` bound, then if so a cluster; `name` newest finished segment or empty, `age` since it was stored; `name` newest partial segment or empty, `lsn` end of its records; `u32` timeline of what is held, 0 for nothing, `lsn` its end; `name` first missing segment or empty; `u64` damaged files, `string` the first of them; `u64` files set apart, `string` the first of them; `u64` files of which another is kept, `string` the first of them; `age` since WAL arrived, `u64` free bytes, `string` trouble with the disk, `string` who ships records, `u16` count, then that many `string` masters; `u64` all masters, `u32` connections; `string` path of the archive; `u16` count, then that many backup sets; `u64` all sets; `i64` the standby's clock, milliseconds since 1970 |
//!
//! A backup set is `string` name, `bool` it can be read, and then `string` timestamp, `age`, `u32`
//! timeline, `lsn` start, `lsn` up to where it can be recovered; or `string` why it cannot be read.

use bytes::{BufMut, BytesMut};

use crate::error::Malformed;
use crate::fields::{Fields, put_string};
use crate::limits::{OVERVIEW_MASTERS_MAX, OVERVIEW_SETS_MAX};
use crate::message::shared::{ClusterIdentity, bounded, list};
use crate::names::{Lsn, SegmentName, TimelineId};

/// What a standby holds and how it fares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overview {
    /// The cluster the archive is bound to, once `setup` ran.
    pub cluster: Option<ClusterIdentity>,
    /// The newest finished segment of the newest timeline.
    pub newest_segment: Option<SegmentName>,
    /// Milliseconds since it got its name.
    pub newest_age_ms: i64,
    /// The newest partial segment.
    pub partial_segment: Option<SegmentName>,
    /// Where its records end.
    pub partial_end: Lsn,
    /// Up to where WAL is held without a gap, and on which timeline: from the newest backup set on,
    /// or where there is none, behind the last gap.
    pub held: Option<(TimelineId, Lsn)>,
    /// The first segment that is missing on the way of the newest set, or where there is none, of
    /// the archive.
    pub missing: Option<SegmentName>,
    /// Files that were set aside as damaged and of which there is no good copy.
    pub damaged_count: u64,
    /// The first of them; empty if there is none.
    pub damaged: String,
    /// Files that are set apart, so that no reader follows them.
    pub apart_count: u64,
    /// The first of them, who brought it and why; empty if there is none.
    pub apart: String,
    /// Files of which another one of the same name is kept beside.
    pub differing_count: u64,
    /// The first of them, and who brought the other; empty if there is none.
    pub differing: String,
    /// Milliseconds since WAL arrived, partial or finished.
    pub received_age_ms: i64,
    /// Bytes free for the receiver's user where the archive is.
    pub free_bytes: u64,
    /// What the disk said when it refused last; empty if it works.
    pub trouble: String,
    /// Who ships records at the moment; empty for nobody.
    pub shipped_by: String,
    /// Masters that are connected; at most [`OVERVIEW_MASTERS_MAX`].
    pub masters: Vec<String>,
    /// How many there are.
    pub masters_count: u64,
    /// Connections of the cluster open, the one that asks included.
    pub connections: u32,
    /// Where the archive is on the receiver's host, for people.
    pub completed_wals: String,
    /// Backup sets, newest first; at most [`OVERVIEW_SETS_MAX`].
    pub sets: Vec<SetStanding>,
    /// How many there are.
    pub sets_count: u64,
    /// The standby's clock, in milliseconds since 1970.
    pub clock_ms: i64,
}

/// A backup set and what it is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetStanding {
    /// Its name.
    pub name: String,
    /// How far it leads, or why nobody can tell.
    pub reach: Result<SetReach, String>,
}

/// What a backup set can be recovered to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetReach {
    /// `START TIME` of its label, as the server wrote it.
    pub timestamp: String,
    /// Milliseconds since the checkpoint that it began with.
    pub age_ms: i64,
    /// The timeline it was made on.
    pub timeline: TimelineId,
    /// Where the WAL begins that it needs.
    pub start: Lsn,
    /// Up to where WAL is held from there without a gap.
    pub reaches: Lsn,
}

impl Overview {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u8(u8::from(self.cluster.is_some()));
        if let Some(cluster) = self.cluster {
            cluster.encode(out);
        }
        put_segment(out, self.newest_segment);
        out.put_i64_le(self.newest_age_ms);
        put_segment(out, self.partial_segment);
        out.put_u64_le(self.partial_end.0);
        let (timeline, end) = self
            .held
            .map_or((0, 0), |(timeline, end)| (timeline.number(), end.0));
        out.put_u32_le(timeline);
        out.put_u64_le(end);
        put_segment(out, self.missing);
        out.put_u64_le(self.damaged_count);
        put_string(out, &self.damaged);
        out.put_u64_le(self.apart_count);
        put_string(out, &self.apart);
        out.put_u64_le(self.differing_count);
        put_string(out, &self.differing);
        out.put_i64_le(self.received_age_ms);
        out.put_u64_le(self.free_bytes);
        put_string(out, &self.trouble);
        put_string(out, &self.shipped_by);
        for master in bounded(out, &self.masters, OVERVIEW_MASTERS_MAX) {
            put_string(out, master);
        }
        out.put_u64_le(self.masters_count);
        out.put_u32_le(self.connections);
        put_string(out, &self.completed_wals);
        for set in bounded(out, &self.sets, OVERVIEW_SETS_MAX) {
            set.encode(out);
        }
        out.put_u64_le(self.sets_count);
        out.put_i64_le(self.clock_ms);
    }

    pub(super) fn decode(fields: &mut Fields) -> Result<Overview, Malformed> {
        let bound = fields.boolean("bound")?;
        Ok(Overview {
            cluster: bound.then(|| ClusterIdentity::decode(fields)).transpose()?,
            newest_segment: fields.optional_segment()?,
            newest_age_ms: fields.i64()?,
            partial_segment: fields.optional_segment()?,
            partial_end: Lsn(fields.u64()?),
            held: held(fields)?,
            missing: fields.optional_segment()?,
            damaged_count: fields.u64()?,
            damaged: fields.string("a damaged file")?,
            apart_count: fields.u64()?,
            apart: fields.string("a file that is set apart")?,
            differing_count: fields.u64()?,
            differing: fields.string("a file that differs")?,
            received_age_ms: fields.i64()?,
            free_bytes: fields.u64()?,
            trouble: fields.string("trouble with the disk")?,
            shipped_by: fields.string("who ships records")?,
            masters: list(fields, "masters", OVERVIEW_MASTERS_MAX, |fields| {
                fields.string("a master")
            })?,
            masters_count: fields.u64()?,
            connections: fields.u32()?,
            completed_wals: fields.string("path of the archive")?,
            sets: list(
                fields,
                "backup sets",
                OVERVIEW_SETS_MAX,
                SetStanding::decode,
            )?,
            sets_count: fields.u64()?,
            clock_ms: fields.i64()?,
        })
    }
}

impl SetStanding {
    fn encode(&self, out: &mut BytesMut) {
        put_string(out, &self.name);
        out.put_u8(u8::from(self.reach.is_ok()));
        match &self.reach {
            Ok(reach) => {
                put_string(out, &reach.timestamp);
                out.put_i64_le(reach.age_ms);
                out.put_u32_le(reach.timeline.number());
                out.put_u64_le(reach.start.0);
                out.put_u64_le(reach.reaches.0);
            }
            Err(why) => put_string(out, why),
        }
    }

    fn decode(fields: &mut Fields) -> Result<SetStanding, Malformed> {
        let name = fields.string("name of a backup set")?;
        let reach = match fields.boolean("can be read")? {
            true => Ok(SetReach {
                timestamp: fields.string("timestamp")?,
                age_ms: fields.i64()?,
                timeline: fields.timeline()?,
                start: Lsn(fields.u64()?),
                reaches: Lsn(fields.u64()?),
            }),
            false => Err(fields.string("why not")?),
        };
        Ok(SetStanding { name, reach })
    }
}

fn held(fields: &mut Fields) -> Result<Option<(TimelineId, Lsn)>, Malformed> {
    let (timeline, end) = (TimelineId::new(fields.u32()?), Lsn(fields.u64()?));
    Ok(timeline.map(|timeline| (timeline, end)))
}

fn put_segment(out: &mut BytesMut, segment: Option<SegmentName>) {
    put_string(
        out,
        &segment.map_or_else(String::new, |name| name.to_string()),
    );
}
