//! Whether a recovery of a set gets to where it is to end: the question about a set, and the verdict.
//! Never interprets either. Invariant: every text and list is bounded on both sides.
//!
//! The payloads are those of [`super::fetch`]'s kinds 66 and 67; their parts:
//!
//! | part | payload |
//! |------|---------|
//! | timeline | `u8` 0 the newest, 1 the set's own, 2 this one with a `u32` |
//! | target | `u8` 0 none, 1 a time with an `i64` of microseconds since 1970, 2 an LSN with a `u64`, 3 a transaction with a `u32`, each of these with a `bool` whether the recovery ends just before it, 4 a restore point with a `string`, 5 where the recovery becomes consistent |
//! | end of recovery | `u64` LSN, 0 for none; if there is one `u8` why: 0 `wal_level = minimal`, 1 `pg_resetwal`, 2 a record of a resource manager, with its `u8` |
//! | verdict | `u8` 0 in reach, or not asked for; 1 untold, with a `string` why; 2 out of reach, with the range and the `string` name of another set that gets there, or empty; 3 no way, with a `string` why |
//! | range | `u8` 0 nothing, 1 LSNs with two `u64`, 2 times with two `i64`, 3 transactions with two `u32`, 4 restore points with a `u64` how many, and a `u16` count and that many `string`, the newest last |

use bytes::{BufMut, BytesMut};

use crate::error::Malformed;
use crate::fields::{Fields, put_string};
use crate::limits::RESTORE_POINTS_MAX;
use crate::message::shared::{bounded, list};
use crate::names::{Lsn, TimelineId};

/// Asks about a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetQuestion {
    /// Its name.
    pub name: String,
    /// Along which timeline it is to be recovered.
    pub timeline: WantedTimeline,
    /// Up to where; none for all there is.
    pub target: Option<WantedTarget>,
}

/// `recovery_target_timeline`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantedTimeline {
    /// The newest.
    Newest,
    /// The one that the backup was made on.
    Own,
    /// This one.
    Number(TimelineId),
}

/// Where a recovery is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedTarget {
    /// A time in microseconds since 1970.
    Time(i64, TargetBound),
    /// A location in the WAL.
    Lsn(Lsn, TargetBound),
    /// A transaction.
    Xid(u32, TargetBound),
    /// A restore point.
    Name(String),
    /// Where it becomes consistent, which is where the backup ended.
    Consistent,
}

/// `recovery_target_inclusive`: whether what is at the target is recovered too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetBound {
    /// It is.
    Inclusive,
    /// The recovery ends just before it.
    Exclusive,
}

/// Where a recovery ends although there is more WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryEnd {
    /// Where the record begins that nobody gets past.
    pub lsn: Lsn,
    /// What it is.
    pub cause: EndCause,
}

/// What ends a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndCause {
    /// The master ran with `wal_level = minimal`.
    Minimal,
    /// `pg_resetwal` was run.
    Reset,
    /// A record of this resource manager, which no library brings.
    Manager(u8),
}

/// Whether a recovery of a set gets to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetVerdict {
    /// It does, or there is no target.
    Fits,
    /// Only PostgreSQL can tell, for this reason.
    Untold(String),
    /// It does not; this is in reach, and a recovery of this other set gets there, if one is known.
    OutOfReach(TargetRange, Option<String>),
    /// The timeline does not lead from the set to anywhere, for this reason.
    NoWay(String),
}

/// What is in reach, of the kind of the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetRange {
    /// LSNs, both included.
    Lsns(Lsn, Lsn),
    /// Times in microseconds since 1970, the second one excluded.
    Times(i64, i64),
    /// The first and the last transaction that ended.
    Xids(u32, u32),
    /// The newest restore points, at most [`RESTORE_POINTS_MAX`], and how many there are.
    Names(Vec<String>, u64),
    /// The archive holds nothing behind the end of the backup that could be a target of this kind.
    Nothing,
}

impl SetQuestion {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        put_string(out, &self.name);
        match self.timeline {
            WantedTimeline::Newest => out.put_u8(0),
            WantedTimeline::Own => out.put_u8(1),
            WantedTimeline::Number(timeline) => {
                out.put_u8(2);
                out.put_u32_le(timeline.number());
            }
        }
        match &self.target {
            None => out.put_u8(0),
            Some(WantedTarget::Time(time_us, bound)) => {
                out.put_u8(1);
                out.put_i64_le(*time_us);
                bound.encode(out);
            }
            Some(WantedTarget::Lsn(lsn, bound)) => {
                out.put_u8(2);
                out.put_u64_le(lsn.0);
                bound.encode(out);
            }
            Some(WantedTarget::Xid(xid, bound)) => {
                out.put_u8(3);
                out.put_u32_le(*xid);
                bound.encode(out);
            }
            Some(WantedTarget::Consistent) => out.put_u8(5),
            Some(WantedTarget::Name(name)) => {
                out.put_u8(4);
                put_string(out, name);
            }
        }
    }

    pub(super) fn decode(fields: &mut Fields) -> Result<SetQuestion, Malformed> {
        Ok(SetQuestion {
            name: fields.string("name of a backup set")?,
            timeline: match fields.u8()? {
                0 => WantedTimeline::Newest,
                1 => WantedTimeline::Own,
                2 => WantedTimeline::Number(fields.timeline()?),
                found => return Err(bad("which timeline", found)),
            },
            target: match fields.u8()? {
                0 => None,
                1 => Some(WantedTarget::Time(
                    fields.i64()?,
                    TargetBound::decode(fields)?,
                )),
                2 => Some(WantedTarget::Lsn(
                    Lsn(fields.u64()?),
                    TargetBound::decode(fields)?,
                )),
                3 => Some(WantedTarget::Xid(
                    fields.u32()?,
                    TargetBound::decode(fields)?,
                )),
                4 => Some(WantedTarget::Name(
                    fields.string("name of a restore point")?,
                )),
                5 => Some(WantedTarget::Consistent),
                found => return Err(bad("kind of a target", found)),
            },
        })
    }
}

impl TargetBound {
    fn encode(self, out: &mut BytesMut) {
        out.put_u8(u8::from(self == TargetBound::Exclusive));
    }

    fn decode(fields: &mut Fields) -> Result<TargetBound, Malformed> {
        Ok(match fields.boolean("ends before its target")? {
            false => TargetBound::Inclusive,
            true => TargetBound::Exclusive,
        })
    }
}

impl RecoveryEnd {
    pub(super) fn encode(end: Option<&RecoveryEnd>, out: &mut BytesMut) {
        // No record begins at 0.
        let Some(end) = end.filter(|end| end.lsn != Lsn(0)) else {
            return out.put_u64_le(0);
        };
        out.put_u64_le(end.lsn.0);
        match end.cause {
            EndCause::Minimal => out.put_u8(0),
            EndCause::Reset => out.put_u8(1),
            EndCause::Manager(id) => {
                out.put_u8(2);
                out.put_u8(id);
            }
        }
    }

    pub(super) fn decode(fields: &mut Fields) -> Result<Option<RecoveryEnd>, Malformed> {
        let lsn = Lsn(fields.u64()?);
        if lsn == Lsn(0) {
            return Ok(None);
        }
        let cause = match fields.u8()? {
            0 => EndCause::Minimal,
            1 => EndCause::Reset,
            2 => EndCause::Manager(fields.u8()?),
            found => return Err(bad("what ends a recovery", found)),
        };
        Ok(Some(RecoveryEnd { lsn, cause }))
    }
}

impl TargetVerdict {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        match self {
            TargetVerdict::Fits => out.put_u8(0),
            TargetVerdict::Untold(why) => {
                out.put_u8(1);
                put_string(out, why);
            }
            TargetVerdict::OutOfReach(range, other_set) => {
                out.put_u8(2);
                range.encode(out);
                put_string(out, other_set.as_deref().unwrap_or_default());
            }
            TargetVerdict::NoWay(why) => {
                out.put_u8(3);
                put_string(out, why);
            }
        }
    }

    pub(super) fn decode(fields: &mut Fields) -> Result<TargetVerdict, Malformed> {
        Ok(match fields.u8()? {
            0 => TargetVerdict::Fits,
            1 => TargetVerdict::Untold(fields.string("why a target is not told")?),
            2 => {
                let range = TargetRange::decode(fields)?;
                let other_set = fields.string("name of another backup set")?;
                TargetVerdict::OutOfReach(range, Some(other_set).filter(|set| !set.is_empty()))
            }
            3 => TargetVerdict::NoWay(fields.string("why there is no way")?),
            found => return Err(bad("verdict about a target", found)),
        })
    }
}

impl TargetRange {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            TargetRange::Nothing => out.put_u8(0),
            TargetRange::Lsns(first, last) => {
                out.put_u8(1);
                out.put_u64_le(first.0);
                out.put_u64_le(last.0);
            }
            TargetRange::Times(first, last) => {
                out.put_u8(2);
                out.put_i64_le(*first);
                out.put_i64_le(*last);
            }
            TargetRange::Xids(first, last) => {
                out.put_u8(3);
                out.put_u32_le(*first);
                out.put_u32_le(*last);
            }
            TargetRange::Names(names, count) => {
                out.put_u8(4);
                out.put_u64_le(*count);
                for name in bounded(out, names, RESTORE_POINTS_MAX) {
                    put_string(out, name);
                }
            }
        }
    }

    fn decode(fields: &mut Fields) -> Result<TargetRange, Malformed> {
        Ok(match fields.u8()? {
            0 => TargetRange::Nothing,
            1 => TargetRange::Lsns(Lsn(fields.u64()?), Lsn(fields.u64()?)),
            2 => TargetRange::Times(fields.i64()?, fields.i64()?),
            3 => TargetRange::Xids(fields.u32()?, fields.u32()?),
            4 => {
                let count = fields.u64()?;
                let what = "a list of restore points";
                let names = list(fields, what, RESTORE_POINTS_MAX, |fields| {
                    fields.string("name of a restore point")
                })?;
                TargetRange::Names(names, count)
            }
            found => return Err(bad("kind of a range", found)),
        })
    }
}

fn bad(what: &'static str, found: u8) -> Malformed {
    Malformed::BadValue {
        what,
        found: u64::from(found),
    }
}
