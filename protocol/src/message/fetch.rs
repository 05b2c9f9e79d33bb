//! The messages of fetching: what the standby keeps, on its way back; kinds 64 to 73.
//! Never interprets one. Invariant: every list is bounded on both sides, and an answer that a file
//! is not there says what that proves.
//!
//! # Payloads
//!
//! Fields as in [`crate::message`]; `lsn` is a `u64`. Kinds 64 to 67 belong to channel 0, the others to
//! a channel from 1 on. What is fetched travels in data blocks (kind 5) from the receiver.
//!
//! | kind | message | sent by | payload |
//! |-----:|---------|---------|---------|
//! | 64 | list backups | client | `string` name of a set to begin behind, or empty; `u16` limit |
//! | 65 | backups | receiver | `u16` count, then that many sets; `bool` more follow |
//! | 66 | describe a set | client | `string` name, the wanted timeline and target |
//! | 67 | a set described | receiver | `string` name, its label, `u64` length of its stream, `u64` bytes outside its tablespaces, the end of its recovery, 5 times `u32` demands, the verdict about the target, `u16` count, then that many times `u32` OID, `u64` bytes, `u16` length and the path on the master |
//! | 68 | get a file | client | `name`, `u8` zstd level, 0 for none |
//! | 69 | get a set | client | `lsn` start and `string` timestamp of its label, `u64` offset in its stream, `u8` zstd level |
//! | 70 | end | receiver | `u64` size, `u32` CRC-32 of what was sent |
//! | 71 | not found | receiver | `u8` what that means (0 nothing later is there, 1 a gap, 2 only a damaged copy is there, 3 there is no such set) with, for 1, the `name` of the later file, and for 2, the `string` name of the copy |
//! | 72 | get an outline | client | as 69, of a stream of its own |
//! | 73 | get pages | client | `lsn` start and `string` timestamp of its label, `u8` zstd level; `u16` count, then that many times `path`, `u64` offset, `u64` length, `u16` count of digests and that many times `u64` |
//!
//! The outline of a set is its stream without the files that an old data directory may have: those at the top, all
//! directories and `pg_wal` are in it. Wanted pages are sent as a tar archive, too: in the order of the request, and an entry
//! for each run of pages whose digest is not the one that was sent, with its place in the file as
//! [`TAR_OFFSET_KEYWORD`](crate::message::backup::TAR_OFFSET_KEYWORD). Pages behind the digests are all sent, up to the
//! length, or to where the file ends. An offset is that of a page of [`PAGE_BYTES`]; the digest of one is its CRC-32C, and in the upper half its CRC-32.
//!
//! A set in a list is `string` name, `bool` its label can be read, and then its label, or `string` why
//! not, and then its details. Details are a `bool` for each of size, duration and end, and behind it, where that is
//! one, the `u64` bytes, the `u64` seconds or the `lsn`; then `u8` where the set was made: 0 nobody knows, 1 on the
//! master, 2 on a standby. A label is `string` timestamp, `string` label, `name` of the first segment, `lsn` start.
//!
//! Timeline, target, end of recovery and verdict are those of [`super::reach`]. Demands are what the WAL along
//! that timeline asks of a hot standby at least: `max_connections`, `max_worker_processes`, `max_wal_senders`,
//! `max_prepared_transactions` and `max_locks_per_transaction`, 0 for nothing. Whether a transaction or a restore
//! point is in reach is found record by record: the answer comes within
//! [`TARGET_SEARCH_S_MAX`](crate::limits::TARGET_SEARCH_S_MAX), and pings until then.
//!
//! The stream of a set is one tar archive. It is the same whenever it is asked for, so whoever lost
//! the connection goes on at an offset.

use bytes::{BufMut, BytesMut};

use crate::error::Malformed;
use crate::fields::{Fields, put_bytes, put_path, put_string};
use crate::limits::{
    LISTED_BACKUPS_MAX, PATH_BYTES_MAX, SET_TABLESPACES_MAX, WANTED_DIGESTS_MAX, WANTED_FILES_MAX,
    ZSTD_LEVEL_MAX,
};
use crate::message::kind::MessageKind;
use crate::message::reach::{RecoveryEnd, SetQuestion, TargetVerdict};
use crate::message::shared::{Digest, bounded, list};
use crate::names::{Lsn, RelativePath, SegmentName, WalFileName};
use crate::patch::PAGE_BYTES;

/// Asks which backup sets there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListBackups {
    /// Only sets older than this one; empty for all.
    pub after: String,
    /// At most this many, and never more than [`LISTED_BACKUPS_MAX`].
    pub limit: u16,
}

/// What the label of a set says (`backup_label`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetLabel {
    /// `START TIME`, as the server wrote it.
    pub timestamp: String,
    /// `LABEL`.
    pub label: String,
    /// The first segment that a recovery of the set reads.
    pub first_segment: SegmentName,
    /// `START WAL LOCATION`.
    pub start: Lsn,
}

/// A set in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedSet {
    /// Its name.
    pub name: String,
    /// What its label says, or why nobody can tell.
    pub label: Result<SetLabel, String>,
    /// What is known beside it.
    pub details: SetDetails,
}

/// What is known of a set beside its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetDetails {
    /// The lengths of its files.
    pub size_bytes: Option<u64>,
    /// What no other file has of the blocks on the standby's disk, as it was measured last.
    pub own_bytes: Option<u64>,
    /// How long it took to make, in seconds.
    pub duration_s: Option<u64>,
    /// Where the backup ended: a recovery of the set is consistent from there on.
    pub stop: Option<Lsn>,
    /// On which host it was made.
    pub made_on: Option<MadeOn>,
}

/// Where a set was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MadeOn {
    /// On the master.
    Master,
    /// On a standby.
    Standby,
}

impl MadeOn {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            MadeOn::Master => "master",
            MadeOn::Standby => "standby",
        }
    }
}

/// Sets, the newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backups {
    /// At most [`LISTED_BACKUPS_MAX`].
    pub sets: Vec<ListedSet>,
    /// Whether sets follow behind the last.
    pub more: bool,
}

/// A tablespace of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID, which is its name in the set.
    pub oid: u32,
    /// Bytes in it.
    pub bytes: u64,
    /// Where it was on the master.
    pub path: Vec<u8>,
}

/// What has to be known of a set before it is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetDescription {
    /// Its name.
    pub name: String,
    /// What its label says: the set is known by this from here on, as its name may change.
    pub label: SetLabel,
    /// Length of its tar stream.
    pub stream_bytes: u64,
    /// Bytes outside its tablespaces.
    pub bytes: u64,
    /// Where a recovery of it ends although there is more WAL; none if nothing is known that ends it.
    pub recovery_end: Option<RecoveryEnd>,
    /// What the WAL behind it demands of a hot standby at least, of `max_connections`, `max_worker_processes`,
    /// `max_wal_senders`, `max_prepared_transactions` and `max_locks_per_transaction`; 0 for nothing.
    pub demands: [u32; 5],
    /// Whether a recovery of it gets to the target that was asked for.
    pub verdict: TargetVerdict,
    /// Its tablespaces; at most [`SET_TABLESPACES_MAX`].
    pub tablespaces: Vec<Tablespace>,
}

/// Asks for an archived file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GetFile {
    /// Its name.
    pub name: WalFileName,
    /// zstd level of its blocks, 0 for none; those that are stored packed travel as they are stored.
    pub compression: u8,
}

/// Asks for the stream of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetSet {
    /// The `start` of its label.
    pub start: Lsn,
    /// The `timestamp` of its label.
    pub timestamp: String,
    /// Where in its stream to begin, in bytes.
    pub offset: u64,
    /// zstd level of its blocks, 0 for none.
    pub compression: u8,
}

/// Asks for pages of files of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetPages {
    /// The `start` of its label.
    pub start: Lsn,
    /// The `timestamp` of its label.
    pub timestamp: String,
    /// zstd level of its blocks, 0 for none.
    pub compression: u8,
    /// At most [`WANTED_FILES_MAX`], with [`WANTED_DIGESTS_MAX`] digests between them.
    pub files: Vec<WantedPages>,
}

/// What of a file of a set is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedPages {
    /// Its path in the set.
    pub path: RelativePath,
    /// Where the first page begins.
    pub offset: u64,
    /// How many bytes are wanted, at most.
    pub len: u64,
    /// What whoever asks has already, page by page from the offset on.
    pub digests: Vec<u64>,
}

/// Why there is nothing to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotFound {
    /// It is proven that neither the file nor anything later on its timeline is there.
    NothingLater,
    /// It is not there, but this later one is, which shows that it should be.
    Gap(WalFileName),
    /// All there is of it is this damaged copy.
    OnlyDamaged(String),
    /// There is no such backup set.
    NoSuchSet,
}

/// A message of fetching.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetch {
    /// Which sets are there? Answered by [`Fetch::Backups`].
    ListBackups(ListBackups),
    /// These.
    Backups(Backups),
    /// What is there to know of this set? Answered by [`Fetch::Set`] or
    /// [`Fetch::NotFound`].
    DescribeSet(SetQuestion),
    /// This.
    Set(SetDescription),
    /// Send this file; answered by data blocks and [`Fetch::End`], or [`Fetch::NotFound`].
    GetFile(GetFile),
    /// Send this set; answered as [`Fetch::GetFile`].
    GetSet(GetSet),
    /// Send the outline of this set; answered as [`Fetch::GetFile`].
    GetOutline(GetSet),
    /// Send these pages of a set; answered as [`Fetch::GetFile`].
    GetPages(GetPages),
    /// That was all of it.
    End(Digest),
    /// There is no such thing.
    NotFound(NotFound),
}

impl Fetch {
    pub(crate) const fn kind(&self) -> MessageKind {
        match self {
            Fetch::ListBackups(_) => MessageKind::FetchListBackups,
            Fetch::Backups(_) => MessageKind::FetchBackups,
            Fetch::DescribeSet(_) => MessageKind::FetchDescribeSet,
            Fetch::Set(_) => MessageKind::FetchSet,
            Fetch::GetFile(_) => MessageKind::FetchGetFile,
            Fetch::GetSet(_) => MessageKind::FetchGetSet,
            Fetch::GetOutline(_) => MessageKind::FetchGetOutline,
            Fetch::GetPages(_) => MessageKind::FetchGetPages,
            Fetch::End(_) => MessageKind::FetchEnd,
            Fetch::NotFound(_) => MessageKind::FetchNotFound,
        }
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        match self {
            Fetch::ListBackups(request) => {
                put_string(out, &request.after);
                out.put_u16_le(request.limit);
            }
            Fetch::Backups(backups) => backups.encode(out),
            Fetch::DescribeSet(question) => question.encode(out),
            Fetch::Set(set) => set.encode(out),
            Fetch::GetFile(request) => {
                put_string(out, &request.name.to_string());
                out.put_u8(request.compression);
            }
            Fetch::GetSet(request) | Fetch::GetOutline(request) => request.encode(out),
            Fetch::GetPages(request) => request.encode(out),
            Fetch::End(digest) => {
                out.put_u64_le(digest.size);
                out.put_u32_le(digest.crc32);
            }
            Fetch::NotFound(not_found) => not_found.encode(out),
        }
    }

    /// The message of a kind that belongs to fetching.
    pub(crate) fn decode(
        kind: MessageKind,
        fields: &mut Fields,
    ) -> Result<Option<Fetch>, Malformed> {
        Ok(Some(match kind {
            MessageKind::FetchListBackups => Fetch::ListBackups(ListBackups {
                after: fields.string("name of a backup set")?,
                limit: fields.u16()?,
            }),
            MessageKind::FetchBackups => Fetch::Backups(Backups::decode(fields)?),
            MessageKind::FetchDescribeSet => Fetch::DescribeSet(SetQuestion::decode(fields)?),
            MessageKind::FetchSet => Fetch::Set(SetDescription::decode(fields)?),
            MessageKind::FetchGetFile => Fetch::GetFile(GetFile {
                name: fields.name()?.parse()?,
                compression: level(fields)?,
            }),
            MessageKind::FetchGetSet => Fetch::GetSet(GetSet::decode(fields)?),
            MessageKind::FetchGetOutline => Fetch::GetOutline(GetSet::decode(fields)?),
            MessageKind::FetchGetPages => Fetch::GetPages(GetPages::decode(fields)?),
            MessageKind::FetchEnd => Fetch::End(Digest {
                size: fields.u64()?,
                crc32: fields.u32()?,
            }),
            MessageKind::FetchNotFound => Fetch::NotFound(NotFound::decode(fields)?),
            _ => return Ok(None),
        }))
    }
}

impl GetSet {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.start.0);
        put_string(out, &self.timestamp);
        out.put_u64_le(self.offset);
        out.put_u8(self.compression);
    }

    fn decode(fields: &mut Fields) -> Result<GetSet, Malformed> {
        Ok(GetSet {
            start: Lsn(fields.u64()?),
            timestamp: fields.string("timestamp of a backup set")?,
            offset: fields.u64()?,
            compression: level(fields)?,
        })
    }
}

impl GetPages {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.start.0);
        put_string(out, &self.timestamp);
        out.put_u8(self.compression);
        let mut left = usize::from(WANTED_DIGESTS_MAX);
        for file in bounded(out, &self.files, WANTED_FILES_MAX) {
            put_path(out, &file.path);
            out.put_u64_le(file.offset);
            out.put_u64_le(file.len);
            // What is not said is sent, so nothing is lost where there is more than a request may say.
            let said = &file.digests[..file.digests.len().min(left)];
            left -= said.len();
            out.put_u16_le(u16::try_from(said.len()).unwrap_or(WANTED_DIGESTS_MAX));
            for digest in said {
                out.put_u64_le(*digest);
            }
        }
    }

    fn decode(fields: &mut Fields) -> Result<GetPages, Malformed> {
        let (start, timestamp) = (
            Lsn(fields.u64()?),
            fields.string("timestamp of a backup set")?,
        );
        let compression = level(fields)?;
        let mut left = WANTED_DIGESTS_MAX;
        let wanted = |fields: &mut Fields| {
            let (path, offset) = (fields.path()?, fields.u64()?);
            if offset % PAGE_BYTES != 0 {
                return Err(Malformed::BadValue {
                    what: "where a page begins",
                    found: offset,
                });
            }
            let (len, count) = (fields.u64()?, fields.u16()?);
            let too_long = || Malformed::TooLong {
                what: "a list of digests",
                most: u64::from(WANTED_DIGESTS_MAX),
                found: u64::from(WANTED_DIGESTS_MAX - left) + u64::from(count),
            };
            left = left.checked_sub(count).ok_or_else(too_long)?;
            Ok(WantedPages {
                path,
                offset,
                len,
                digests: (0..count).map(|_| fields.u64()).collect::<Result<_, _>>()?,
            })
        };
        Ok(GetPages {
            start,
            timestamp,
            compression,
            files: list(fields, "a list of wanted files", WANTED_FILES_MAX, wanted)?,
        })
    }
}

impl Backups {
    fn encode(&self, out: &mut BytesMut) {
        let sent = bounded(out, &self.sets, LISTED_BACKUPS_MAX);
        for set in sent {
            put_string(out, &set.name);
            out.put_u8(u8::from(set.label.is_ok()));
            match &set.label {
                Ok(label) => label.encode(out),
                Err(why) => put_string(out, why),
            }
            set.details.encode(out);
        }
        out.put_u8(u8::from(self.more || sent.len() < self.sets.len()));
    }

    fn decode(fields: &mut Fields) -> Result<Backups, Malformed> {
        let sets = list(fields, "a list of backups", LISTED_BACKUPS_MAX, |fields| {
            let name = fields.string("name of a backup set")?;
            let label = match fields.boolean("has a label")? {
                true => Ok(SetLabel::decode(fields)?),
                false => Err(fields.string("why a label cannot be read")?),
            };
            Ok(ListedSet {
                name,
                label,
                details: SetDetails::decode(fields)?,
            })
        })?;
        let more = fields.boolean("more")?;
        Ok(Backups { sets, more })
    }
}

impl SetDetails {
    fn encode(&self, out: &mut BytesMut) {
        let stop = self.stop.map(|lsn| lsn.0);
        for number in [self.size_bytes, self.own_bytes, self.duration_s, stop] {
            out.put_u8(u8::from(number.is_some()));
            if let Some(number) = number {
                out.put_u64_le(number);
            }
        }
        out.put_u8(match self.made_on {
            None => 0,
            Some(MadeOn::Master) => 1,
            Some(MadeOn::Standby) => 2,
        });
    }

    fn decode(fields: &mut Fields) -> Result<SetDetails, Malformed> {
        let mut number = |what: &'static str| match fields.boolean(what)? {
            true => fields.u64().map(Some),
            false => Ok(None),
        };
        Ok(SetDetails {
            size_bytes: number("has a size")?,
            own_bytes: number("has a size of its own")?,
            duration_s: number("has a duration")?,
            stop: number("has an end")?.map(Lsn),
            made_on: match fields.u8()? {
                0 => None,
                1 => Some(MadeOn::Master),
                2 => Some(MadeOn::Standby),
                found => {
                    return Err(Malformed::BadValue {
                        what: "where a set was made",
                        found: u64::from(found),
                    });
                }
            },
        })
    }
}

impl SetLabel {
    fn encode(&self, out: &mut BytesMut) {
        put_string(out, &self.timestamp);
        put_string(out, &self.label);
        put_string(out, &self.first_segment.to_string());
        out.put_u64_le(self.start.0);
    }

    fn decode(fields: &mut Fields) -> Result<SetLabel, Malformed> {
        Ok(SetLabel {
            timestamp: fields.string("timestamp of a backup set")?,
            label: fields.string("label of a backup set")?,
            first_segment: fields.name()?.parse()?,
            start: Lsn(fields.u64()?),
        })
    }
}

impl SetDescription {
    fn encode(&self, out: &mut BytesMut) {
        put_string(out, &self.name);
        self.label.encode(out);
        out.put_u64_le(self.stream_bytes);
        out.put_u64_le(self.bytes);
        RecoveryEnd::encode(self.recovery_end.as_ref(), out);
        for demand in self.demands {
            out.put_u32_le(demand);
        }
        self.verdict.encode(out);
        for space in bounded(out, &self.tablespaces, SET_TABLESPACES_MAX) {
            out.put_u32_le(space.oid);
            out.put_u64_le(space.bytes);
            put_bytes(out, &space.path, PATH_BYTES_MAX);
        }
    }

    fn decode(fields: &mut Fields) -> Result<SetDescription, Malformed> {
        let tablespace = |fields: &mut Fields| {
            Ok(Tablespace {
                oid: fields.u32()?,
                bytes: fields.u64()?,
                path: fields
                    .bytes("path of a tablespace", PATH_BYTES_MAX)?
                    .to_vec(),
            })
        };
        Ok(SetDescription {
            name: fields.string("name of a backup set")?,
            label: SetLabel::decode(fields)?,
            stream_bytes: fields.u64()?,
            bytes: fields.u64()?,
            recovery_end: RecoveryEnd::decode(fields)?,
            demands: [
                fields.u32()?,
                fields.u32()?,
                fields.u32()?,
                fields.u32()?,
                fields.u32()?,
            ],
            verdict: TargetVerdict::decode(fields)?,
            tablespaces: list(
                fields,
                "a list of tablespaces",
                SET_TABLESPACES_MAX,
                tablespace,
            )?,
        })
    }
}

impl NotFound {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            NotFound::NothingLater => out.put_u8(0),
            NotFound::Gap(later) => {
                out.put_u8(1);
                put_string(out, &later.to_string());
            }
            NotFound::OnlyDamaged(copy) => {
                out.put_u8(2);
                put_string(out, copy);
            }
            NotFound::NoSuchSet => out.put_u8(3),
        }
    }

    fn decode(fields: &mut Fields) -> Result<NotFound, Malformed> {
        match fields.u8()? {
            0 => Ok(NotFound::NothingLater),
            1 => Ok(NotFound::Gap(fields.name()?.parse()?)),
            2 => Ok(NotFound::OnlyDamaged(
                fields.string("name of a damaged copy")?,
            )),
            3 => Ok(NotFound::NoSuchSet),
            found => Err(Malformed::BadValue {
                what: "why something is not found",
                found: u64::from(found),
            }),
        }
    }
}

fn level(fields: &mut Fields) -> Result<u8, Malformed> {
    match fields.u8()? {
        level if level <= ZSTD_LEVEL_MAX => Ok(level),
        found => Err(Malformed::BadValue {
            what: "zstd level",
            found: u64::from(found),
        }),
    }
}
