//! The messages of a backup, each struct beside its encoding; kinds 128 to 143.
//! Never interprets one. Invariant: every list is bounded on both sides, and no path leads out of
//! the set.
//!
//! # Payloads
//!
//! Fields as in [`crate::message`]; `path` is a `u16` length and that many bytes of a
//! [`RelativePath`], `token` is 16 bytes, `lsn` is a `u64`. All of them belong to a channel from 1 on.
//!
//! | kind | message | sent by | payload |
//! |-----:|---------|---------|---------|
//! | 128 | begin | client | `string` who, `string` origin, `string` label, `u32` timeline |
//! | 129 | granted | receiver | `token`, `u32` lease in seconds, `u16` streams |
//! | 130 | resume | client | `token` |
//! | 131 | join | client | `token`, `u16` number of the stream, from 0 |
//! | 132 | held request | client | `u16` count, then that many `path` |
//! | 133 | held | receiver | `u16` count, then in the same order `u8` what (0 nothing, 1 its beginning, 2 all of it, 3 a directory) with, for 1, `u64` bytes, `u32` CRC-32C of them, `u64` length, and for 2, `u64` length, `u32` CRC-32C |
//! | 134 | files done | receiver | `u16` count, then that many times `path`, `u64` length, `u32` CRC-32C |
//! | 135 | end of a stream | client | `u64` length of the stream |
//! | 136 | stream taken | receiver | `u64` length of the stream |
//! | 137 | part | client | `u8` which (1 label, 2 tablespace map, 3 manifest, 4 a configuration file), for 4 its `path`; `u64` size, `u32` CRC-32; its data blocks follow |
//! | 138 | finish | client | `lsn` start, `lsn` stop, `u32` timeline, `u32` seconds to wait for the WAL |
//! | 139 | sealed | receiver | `string` name, `string` where it is, `u64` bytes that the set takes up by itself, `u32` sets expired, `u32` WAL files purged, `u16` count, then that many `string` warnings |
//! | 140 | parent request | client | `lsn` start, `u32` timeline, `bool` checksums, `u32` bytes in a page, `u32` pages in a file, `u32` seconds to wait for the WAL |
//! | 141 | parent | receiver | `u8` 0 and `string` why there is none, or 1, `string` name, `lsn` start, `u32` backups since a full one |
//! | 142 | needed request | client | `u16` count, then that many times `path` in the data directory, `u64` length |
//! | 143 | needed | receiver | `u16` count, then in the same order `u8` 0 all of it, or 1 and `u16` count, then that many times `u32` first block, `u32` blocks |

use bytes::{BufMut, BytesMut};

use crate::error::Malformed;
use crate::fields::{Fields, put_path, put_string};
use crate::limits::{
    BACKUP_PATHS_MAX, BACKUP_WARNINGS_MAX, CONFIG_FILE_BYTES_MAX, MANIFEST_BYTES_MAX,
    SMALL_FILE_BYTES_MAX,
};
use crate::message::kind::MessageKind;
use crate::message::parent::{self, FileLen, FileNeed, ParentAnswer, ParentRequest};
use crate::message::shared::{bounded, list};
use crate::names::{Lsn, RelativePath, TimelineId};

/// The pax keyword with which a stream continues a file at an offset: the entry then holds what is
/// missing, so that the stream stays a valid tar for every other program.
pub const TAR_OFFSET_KEYWORD: &str = "WALMGR.offset";

/// What a backup is known by on every connection of it. Random, and told only to whoever began it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub [u8; 16]);

/// Asks for the right to make a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupBegin {
    /// Who asks: host, job and process, for those who find a backup running.
    pub who: String,
    /// What only one living process can send at a time, because it holds a lock for it. A backup
    /// of the same origin that is still open is therefore a dead one's, and gives way.
    pub origin: String,
    /// The label of the backup.
    pub label: String,
    /// The timeline that the cluster is on.
    pub timeline: TimelineId,
}

/// The backup may begin, or go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// What its other connections show.
    pub token: Token,
    /// How long it outlives the connection that controls it, in seconds.
    pub lease_s: u32,
    /// Streams that may be open at once.
    pub streams_max: u16,
}

/// Brings one more connection into a backup; it carries one tar stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Join {
    /// Which backup.
    pub token: Token,
    /// Which of its streams; a connection that carried the same one before gives way.
    pub stream: u16,
}

/// What the receiver has of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupHeld {
    /// Nothing.
    Nothing,
    /// Its beginning: the stream that brought it was cut.
    Beginning {
        /// Bytes of it; the place to go on from.
        bytes: u64,
        /// CRC-32C of them.
        crc32c: u32,
        /// The length that was announced.
        len: u64,
    },
    /// All of it.
    All(FileDigest),
    /// It is a directory, and there.
    Directory,
}

/// Length and CRC-32C of a file, as a `backup_manifest` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileDigest {
    /// Bytes.
    pub len: u64,
    /// CRC-32C of them.
    pub crc32c: u32,
}

/// A file that arrived completely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDone {
    /// Where it is in the set.
    pub path: RelativePath,
    /// What it is.
    pub digest: FileDigest,
}

/// What a [`Part`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartName {
    /// `backup_label` as the server returned it.
    Label,
    /// `tablespace_map` as the server returned it.
    TablespaceMap,
    /// `backup_manifest`.
    Manifest,
    /// A configuration file that lies outside the data directory, by its file name.
    Config(RelativePath),
}

/// Something that belongs to the set beside its files; its data blocks follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub name: PartName,
    /// Its size in bytes.
    pub size: u64,
    /// CRC-32 of it.
    pub crc32: u32,
}

/// Everything was sent: check, seal, and say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finish {
    /// Where a recovery of the set begins.
    pub start: Lsn,
    /// Where it is consistent.
    pub stop: Lsn,
    /// The timeline of both.
    pub timeline: TimelineId,
    /// How long to wait for WAL up to there to be in the archive, in seconds.
    pub wal_wait_s: u32,
}

/// The set is whole, durable and listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupSealed {
    /// Its name.
    pub name: String,
    /// Where it is on the receiver's host, for people.
    pub path: String,
    /// Bytes that it takes up on the disk and shares with no other set.
    pub stored_bytes: u64,
    /// Older sets that were removed.
    pub expired: u32,
    /// WAL files that were removed because no set needs them any more.
    pub purged: u32,
    /// What did not go as it should, and harms the set in no way.
    pub warnings: Vec<String>,
}

/// A message of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backup {
    /// Asks for a backup; answered by [`Backup::Granted`] or a refusal that names the holder.
    Begin(BackupBegin),
    /// It may go on.
    Granted(Granted),
    /// Takes control of it again after the connection was lost; answered by [`Backup::Granted`],
    /// or by [`Backup::Sealed`] when it is over.
    Resume(Token),
    /// Brings in a stream; answered by [`Backup::Granted`].
    Join(Join),
    /// Asks what is held of these.
    HeldRequest(Vec<RelativePath>),
    /// That is held of them, in their order.
    Held(Vec<BackupHeld>),
    /// These have arrived.
    FilesDone(Vec<FileDone>),
    /// That was all of the stream.
    StreamEnd(u64),
    /// All of it was taken.
    StreamTaken(u64),
    /// A part of the set, whose blocks follow.
    Part(Part),
    /// Seal it.
    Finish(Finish),
    /// It is sealed. Only [`crate::session::backup`] builds one, from a proof.
    Sealed(SetAcknowledgement),
    /// Asks for a set that need not be sent again.
    ParentRequest(ParentRequest),
    /// The answer.
    Parent(ParentAnswer),
    /// Asks what is needed of these files beside what the parent has.
    NeededRequest(Vec<FileLen>),
    /// That is needed of them, in their order.
    Needed(Vec<FileNeed>),
}

/// A set that is sealed. The only way to one on the sending side is
/// [`crate::session::backup::acknowledge`], which asks for a proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAcknowledgement(pub(crate) BackupSealed);

impl SetAcknowledgement {
    /// What became of the backup.
    pub const fn facts(&self) -> &BackupSealed {
        &self.0
    }
}

impl Part {
    /// The largest that a part of this name may be.
    pub const fn size_max(name: &PartName) -> u64 {
        match name {
            PartName::Label | PartName::TablespaceMap => SMALL_FILE_BYTES_MAX,
            PartName::Manifest => MANIFEST_BYTES_MAX,
            PartName::Config(_) => CONFIG_FILE_BYTES_MAX,
        }
    }
}

impl Backup {
    pub(crate) const fn kind(&self) -> MessageKind {
        match self {
            Backup::Begin(_) => MessageKind::BackupBegin,
            Backup::Granted(_) => MessageKind::BackupGranted,
            Backup::Resume(_) => MessageKind::BackupResume,
            Backup::Join(_) => MessageKind::BackupJoin,
            Backup::HeldRequest(_) => MessageKind::BackupHeldRequest,
            Backup::Held(_) => MessageKind::BackupHeld,
            Backup::FilesDone(_) => MessageKind::BackupFilesDone,
            Backup::StreamEnd(_) => MessageKind::BackupStreamEnd,
            Backup::StreamTaken(_) => MessageKind::BackupStreamTaken,
            Backup::Part(_) => MessageKind::BackupPart,
            Backup::Finish(_) => MessageKind::BackupFinish,
            Backup::Sealed(_) => MessageKind::BackupSealed,
            Backup::ParentRequest(_) => MessageKind::BackupParentRequest,
            Backup::Parent(_) => MessageKind::BackupParent,
            Backup::NeededRequest(_) => MessageKind::BackupNeededRequest,
            Backup::Needed(_) => MessageKind::BackupNeeded,
        }
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        match self {
            Backup::Begin(begin) => {
                put_string(out, &begin.who);
                put_string(out, &begin.origin);
                put_string(out, &begin.label);
                out.put_u32_le(begin.timeline.number());
            }
            Backup::Granted(granted) => {
                out.put_slice(&granted.token.0);
                out.put_u32_le(granted.lease_s);
                out.put_u16_le(granted.streams_max);
            }
            Backup::Resume(token) => out.put_slice(&token.0),
            Backup::Join(join) => {
                out.put_slice(&join.token.0);
                out.put_u16_le(join.stream);
            }
            Backup::HeldRequest(paths) => {
                for path in bounded(out, paths, BACKUP_PATHS_MAX) {
                    put_path(out, path);
                }
            }
            Backup::Held(held) => {
                for held in bounded(out, held, BACKUP_PATHS_MAX) {
                    held.encode(out);
                }
            }
            Backup::FilesDone(files) => {
                for file in bounded(out, files, BACKUP_PATHS_MAX) {
                    put_path(out, &file.path);
                    file.digest.encode(out);
                }
            }
            Backup::StreamEnd(bytes) | Backup::StreamTaken(bytes) => out.put_u64_le(*bytes),
            Backup::Part(part) => part.encode(out),
            Backup::Finish(finish) => {
                out.put_u64_le(finish.start.0);
                out.put_u64_le(finish.stop.0);
                out.put_u32_le(finish.timeline.number());
                out.put_u32_le(finish.wal_wait_s);
            }
            Backup::Sealed(SetAcknowledgement(sealed)) => {
                put_string(out, &sealed.name);
                put_string(out, &sealed.path);
                out.put_u64_le(sealed.stored_bytes);
                out.put_u32_le(sealed.expired);
                out.put_u32_le(sealed.purged);
                for warning in bounded(out, &sealed.warnings, BACKUP_WARNINGS_MAX) {
                    put_string(out, warning);
                }
            }
            Backup::ParentRequest(request) => request.encode(out),
            Backup::Parent(answer) => answer.encode(out),
            Backup::NeededRequest(files) => parent::put_files(out, files),
            Backup::Needed(needs) => parent::put_needs(out, needs),
        }
    }

    /// The message of a kind that is a backup's.
    pub(crate) fn decode(
        kind: MessageKind,
        fields: &mut Fields,
    ) -> Result<Option<Backup>, Malformed> {
        Ok(Some(match kind {
            MessageKind::BackupBegin => Backup::Begin(BackupBegin {
                who: fields.string("who asks for a backup")?,
                origin: fields.string("origin of a backup")?,
                label: fields.string("label of a backup")?,
                timeline: fields.timeline()?,
            }),
            MessageKind::BackupGranted => Backup::Granted(Granted {
                token: Token(fields.array()?),
                lease_s: fields.u32()?,
                streams_max: fields.u16()?,
            }),
            MessageKind::BackupResume => Backup::Resume(Token(fields.array()?)),
            MessageKind::BackupJoin => Backup::Join(Join {
                token: Token(fields.array()?),
                stream: fields.u16()?,
            }),
            MessageKind::BackupHeldRequest => Backup::HeldRequest(list(
                fields,
                "a list of paths",
                BACKUP_PATHS_MAX,
                |fields| fields.path(),
            )?),
            MessageKind::BackupHeld => Backup::Held(list(
                fields,
                "a list of what is held",
                BACKUP_PATHS_MAX,
                BackupHeld::decode,
            )?),
            MessageKind::BackupFilesDone => Backup::FilesDone(list(
                fields,
                "a list of files",
                BACKUP_PATHS_MAX,
                |fields| {
                    Ok(FileDone {
                        path: fields.path()?,
                        digest: FileDigest::decode(fields)?,
                    })
                },
            )?),
            MessageKind::BackupStreamEnd => Backup::StreamEnd(fields.u64()?),
            MessageKind::BackupStreamTaken => Backup::StreamTaken(fields.u64()?),
            MessageKind::BackupPart => Backup::Part(Part::decode(fields)?),
            MessageKind::BackupFinish => Backup::Finish(Finish {
                start: Lsn(fields.u64()?),
                stop: Lsn(fields.u64()?),
                timeline: fields.timeline()?,
                wal_wait_s: fields.u32()?,
            }),
            MessageKind::BackupSealed => Backup::Sealed(SetAcknowledgement(BackupSealed {
                name: fields.string("name of a backup set")?,
                path: fields.string("path of a backup set")?,
                stored_bytes: fields.u64()?,
                expired: fields.u32()?,
                purged: fields.u32()?,
                warnings: list(
                    fields,
                    "a list of warnings",
                    BACKUP_WARNINGS_MAX,
                    |fields| fields.string("a warning"),
                )?,
            })),
            MessageKind::BackupParentRequest => {
                Backup::ParentRequest(ParentRequest::decode(fields)?)
            }
            MessageKind::BackupParent => Backup::Parent(ParentAnswer::decode(fields)?),
            MessageKind::BackupNeededRequest => Backup::NeededRequest(parent::files(fields)?),
            MessageKind::BackupNeeded => Backup::Needed(parent::needs(fields)?),
            _ => return Ok(None),
        }))
    }
}

impl BackupHeld {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            BackupHeld::Nothing => out.put_u8(0),
            BackupHeld::Beginning { bytes, crc32c, len } => {
                out.put_u8(1);
                out.put_u64_le(*bytes);
                out.put_u32_le(*crc32c);
                out.put_u64_le(*len);
            }
            BackupHeld::All(digest) => {
                out.put_u8(2);
                digest.encode(out);
            }
            BackupHeld::Directory => out.put_u8(3),
        }
    }

    fn decode(fields: &mut Fields) -> Result<BackupHeld, Malformed> {
        Ok(match fields.u8()? {
            0 => BackupHeld::Nothing,
            1 => BackupHeld::Beginning {
                bytes: fields.u64()?,
                crc32c: fields.u32()?,
                len: fields.u64()?,
            },
            2 => BackupHeld::All(FileDigest::decode(fields)?),
            3 => BackupHeld::Directory,
            found => {
                return Err(Malformed::BadValue {
                    what: "what is held",
                    found: u64::from(found),
                });
            }
        })
    }
}

impl FileDigest {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.len);
        out.put_u32_le(self.crc32c);
    }

    fn decode(fields: &mut Fields) -> Result<FileDigest, Malformed> {
        Ok(FileDigest {
            len: fields.u64()?,
            crc32c: fields.u32()?,
        })
    }
}

impl Part {
    fn encode(&self, out: &mut BytesMut) {
        match &self.name {
            PartName::Label => out.put_u8(1),
            PartName::TablespaceMap => out.put_u8(2),
            PartName::Manifest => out.put_u8(3),
            PartName::Config(path) => {
                out.put_u8(4);
                put_path(out, path);
            }
        }
        out.put_u64_le(self.size);
        out.put_u32_le(self.crc32);
    }

    fn decode(fields: &mut Fields) -> Result<Part, Malformed> {
        let name = match fields.u8()? {
            1 => PartName::Label,
            2 => PartName::TablespaceMap,
            3 => PartName::Manifest,
            4 => PartName::Config(fields.path()?),
            found => {
                return Err(Malformed::BadValue {
                    what: "part of a backup set",
                    found: u64::from(found),
                });
            }
        };
        let size = fields.u64()?;
        let most = Part::size_max(&name);
        if size > most {
            let (what, found) = ("a part of a backup set", size);
            return Err(Malformed::TooLong { what, most, found });
        }
        Ok(Part {
            name,
            size,
            crc32: fields.u32()?,
        })
    }
}
