//! Any message, made of what the fuzzer chooses.
//! Never bytes: what is made here has passed a constructor. Invariant: numbers are mostly small, so
//! that offsets and lengths meet, and sometimes at the end of what they can hold.

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;

use crate::fuzzing::sample_messages;
use crate::message::backup::{
    Backup, BackupBegin, BackupHeld, FileDigest, Finish, Granted, Join, Part, PartName, Token,
};
use crate::message::fetch::{Fetch, GetFile, GetPages, GetSet, NotFound, WantedPages};
use crate::message::parent::{FileLen, FileNeed, ParentAnswer, ParentRequest, ParentSet};
use crate::message::partial::{Append, At, Begun, DurableTo, Open, Partial, PartialBegin};
use crate::message::{Acknowledgement, Data, Digest, Error, ErrorCode, Have, Message, Offer};
use crate::message::{Scope, WireVerify};
use crate::names::{Lsn, RelativePath, SegmentName, TimelineId, WalFileName, WalSegmentSize};
use crate::patch::PAGE_BYTES;

/// A segment of the size that every session here has.
pub(super) const SEGMENT_SIZE: WalSegmentSize = match WalSegmentSize::new(1 << 20) {
    Some(size) => size,
    None => WalSegmentSize::DEFAULT,
};

/// One message of every kind, the long ones among them.
static SAMPLES: LazyLock<Vec<Message>> = LazyLock::new(sample_messages);

pub(super) fn number(choices: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match choices.int_in_range(0_u8..=9)? {
        0..=5 => u64::from(choices.arbitrary::<u8>()?),
        6 => SEGMENT_SIZE.bytes() - u64::from(choices.arbitrary::<u8>()?),
        7 => u64::MAX - u64::from(choices.arbitrary::<u8>()?),
        8 => choices.arbitrary()?,
        _ => 0,
    })
}

pub(super) fn length(choices: &mut Unstructured<'_>) -> Result<u32> {
    choices.int_in_range(1..=64)
}

/// Any message of any flow, whether it has a place now or not.
pub(super) fn any(choices: &mut Unstructured<'_>) -> Result<Message> {
    Ok(match choices.int_in_range(0_u8..=9)? {
        0 => Message::Error(error(choices)?),
        1 | 2 => push(choices)?,
        3 | 4 => Message::Partial(partial(choices)?),
        5 | 6 => Message::Backup(backup(choices)?),
        7 | 8 => Message::Fetch(fetch(choices)?),
        _ => choices.choose(&SAMPLES)?.clone(),
    })
}

pub(super) fn error(choices: &mut Unstructured<'_>) -> Result<Error> {
    let code = *choices.choose(ErrorCode::ALL)?;
    let is_channel: bool = choices.arbitrary()?;
    Ok(Error {
        code,
        scope: if is_channel {
            Scope::Channel
        } else {
            Scope::Connection
        },
        message: "it failed".into(),
        hint: String::new(),
    })
}

pub(super) fn digest(choices: &mut Unstructured<'_>) -> Result<Digest> {
    Ok(Digest {
        size: number(choices)?,
        crc32: choices.arbitrary()?,
    })
}

pub(super) fn segment(choices: &mut Unstructured<'_>) -> Result<SegmentName> {
    let timeline = timeline(choices)?;
    let number = choices.int_in_range(1..=5)?;
    Ok(SegmentName::from_number(timeline, number, SEGMENT_SIZE))
}

pub(super) fn timeline(choices: &mut Unstructured<'_>) -> Result<TimelineId> {
    let number = choices.int_in_range(1..=3)?;
    TimelineId::new(number).ok_or(arbitrary::Error::IncorrectFormat)
}

pub(super) fn file_name(choices: &mut Unstructured<'_>) -> Result<WalFileName> {
    let segment = segment(choices)?;
    Ok(match choices.int_in_range(0_u8..=5)? {
        0 => WalFileName::History(segment.timeline()),
        1 => WalFileName::Partial(segment),
        2 => WalFileName::BackupHistory(segment, choices.arbitrary()?),
        _ => WalFileName::Segment(segment),
    })
}

pub(super) fn data(offset: u64, raw_bytes: u32, choices: &mut Unstructured<'_>) -> Result<Data> {
    let byte: u8 = choices.arbitrary()?;
    Ok(Data {
        offset,
        raw_bytes,
        zstd: false,
        bytes: Bytes::from(vec![byte; raw_bytes as usize]),
    })
}

fn push(choices: &mut Unstructured<'_>) -> Result<Message> {
    Ok(match choices.int_in_range(0_u8..=7)? {
        0 => Message::Offer(offer(choices)?),
        1 => Message::Have(Have {
            prefix_bytes: number(choices)?,
            prefix_crc32: choices.arbitrary()?,
        }),
        2 => Message::Commit(digest(choices)?),
        3 => Message::Stored(Acknowledgement(digest(choices)?)),
        4 => Message::Conflict(digest(choices)?),
        5 => Message::ChecksumRequest,
        _ => {
            let (offset, raw_bytes) = (number(choices)?, length(choices)?);
            Message::Data(data(offset, raw_bytes, choices)?)
        }
    })
}

fn offer(choices: &mut Unstructured<'_>) -> Result<Offer> {
    Ok(Offer {
        name: file_name(choices)?,
        size: number(choices)?,
        crc32: choices.arbitrary()?,
        verify: *choices.choose(&[WireVerify::Off, WireVerify::Headers, WireVerify::Records])?,
    })
}

fn partial(choices: &mut Unstructured<'_>) -> Result<Partial> {
    Ok(match choices.int_in_range(0_u8..=6)? {
        0 => Partial::Begin(partial_begin(choices)?),
        1 => Partial::Begun(begun(choices)?),
        2 => Partial::Open(open(choices)?),
        3 => Partial::At(At {
            held_bytes: number(choices)?,
            common_bytes: number(choices)?,
            common_crc32: choices.arbitrary()?,
        }),
        4 => Partial::Rewrite,
        5 => Partial::Append(Append {
            offset: number(choices)?,
            end: Lsn(number(choices)?),
            raw_bytes: length(choices)?,
            zstd: choices.arbitrary()?,
            bytes: Bytes::new(),
        }),
        _ => Partial::Durable(DurableTo(Lsn(number(choices)?))),
    })
}

pub(super) fn partial_begin(choices: &mut Unstructured<'_>) -> Result<PartialBegin> {
    Ok(PartialBegin {
        timeline: timeline(choices)?,
    })
}

pub(super) fn open(choices: &mut Unstructured<'_>) -> Result<Open> {
    Ok(Open {
        segment: segment(choices)?,
        bytes: u64::from(choices.arbitrary::<u8>()?),
        crc32: choices.arbitrary()?,
    })
}

pub(super) fn begun(choices: &mut Unstructured<'_>) -> Result<Begun> {
    let mut one = || choices.ratio(1, 2)?.then(|| segment(choices)).transpose();
    Ok(Begun {
        newest_finished: one()?,
        oldest_partial: one()?,
        newest_partial: one()?,
    })
}

fn backup(choices: &mut Unstructured<'_>) -> Result<Backup> {
    Ok(match choices.int_in_range(0_u8..=12)? {
        9 => Backup::ParentRequest(parent_request(choices)?),
        10 => Backup::Parent(parent(choices)?),
        11 => Backup::NeededRequest(file_lens(choices)?),
        12 => Backup::Needed(vec![FileNeed::Whole; choices.int_in_range(0..=3)?]),
        0 => Backup::Begin(begin(choices)?),
        1 => Backup::Granted(granted(choices)?),
        2 => Backup::Resume(token(choices)?),
        3 => Backup::Join(join(choices)?),
        4 => Backup::HeldRequest(paths(choices)?),
        5 => Backup::StreamEnd(number(choices)?),
        6 => Backup::StreamTaken(number(choices)?),
        7 => Backup::Part(part(choices)?),
        _ => Backup::Finish(finish(choices)?),
    })
}

pub(super) fn parent_request(choices: &mut Unstructured<'_>) -> Result<ParentRequest> {
    Ok(ParentRequest {
        start: Lsn(number(choices)?),
        timeline: timeline(choices)?,
        data_checksums: choices.arbitrary()?,
        block_bytes: choices.arbitrary()?,
        segment_blocks: choices.arbitrary()?,
        wal_wait_s: choices.arbitrary()?,
    })
}

pub(super) fn parent(choices: &mut Unstructured<'_>) -> Result<ParentAnswer> {
    Ok(match choices.arbitrary()? {
        true => ParentAnswer::Full("there is no older set".into()),
        false => ParentAnswer::Parent(ParentSet {
            name: "data.master".into(),
            start: Lsn(number(choices)?),
            since_full: choices.arbitrary()?,
        }),
    })
}

pub(super) fn file_lens(choices: &mut Unstructured<'_>) -> Result<Vec<FileLen>> {
    let len = number(choices)?;
    let paths = paths(choices)?.into_iter();
    Ok(paths.map(|path| FileLen { path, len }).collect())
}

pub(super) fn token(choices: &mut Unstructured<'_>) -> Result<Token> {
    Ok(Token([choices.arbitrary()?; 16]))
}

pub(super) fn begin(choices: &mut Unstructured<'_>) -> Result<BackupBegin> {
    Ok(BackupBegin {
        who: "master on db1, process 4711".into(),
        origin: "db1 2049 131 boot".into(),
        label: "FullBackup".into(),
        timeline: timeline(choices)?,
    })
}

pub(super) fn granted(choices: &mut Unstructured<'_>) -> Result<Granted> {
    Ok(Granted {
        token: token(choices)?,
        lease_s: choices.arbitrary()?,
        streams_max: choices.arbitrary()?,
    })
}

pub(super) fn join(choices: &mut Unstructured<'_>) -> Result<Join> {
    Ok(Join {
        token: token(choices)?,
        stream: choices.arbitrary()?,
    })
}

pub(super) fn paths(choices: &mut Unstructured<'_>) -> Result<Vec<RelativePath>> {
    let path = RelativePath::new(b"base/1/1259").map_err(|_| arbitrary::Error::IncorrectFormat)?;
    Ok(vec![path; choices.int_in_range(0..=3)?])
}

pub(super) fn held(choices: &mut Unstructured<'_>) -> Result<BackupHeld> {
    Ok(match choices.int_in_range(0_u8..=3)? {
        0 => BackupHeld::Nothing,
        1 => BackupHeld::Directory,
        2 => BackupHeld::All(FileDigest {
            len: number(choices)?,
            crc32c: choices.arbitrary()?,
        }),
        _ => BackupHeld::Beginning {
            bytes: number(choices)?,
            crc32c: choices.arbitrary()?,
            len: number(choices)?,
        },
    })
}

pub(super) fn part(choices: &mut Unstructured<'_>) -> Result<Part> {
    Ok(Part {
        name: part_name(choices)?,
        size: choices.int_in_range(0..=1_000)?,
        crc32: choices.arbitrary()?,
    })
}

pub(super) fn part_name(choices: &mut Unstructured<'_>) -> Result<PartName> {
    let path = RelativePath::new(b"postgresql.conf");
    let path = path.map_err(|_| arbitrary::Error::IncorrectFormat)?;
    Ok(match choices.int_in_range(0_u8..=3)? {
        0 => PartName::Label,
        1 => PartName::TablespaceMap,
        2 => PartName::Manifest,
        _ => PartName::Config(path),
    })
}

pub(super) fn finish(choices: &mut Unstructured<'_>) -> Result<Finish> {
    Ok(Finish {
        start: Lsn(number(choices)?),
        stop: Lsn(number(choices)?),
        timeline: timeline(choices)?,
        wal_wait_s: choices.arbitrary()?,
    })
}

fn fetch(choices: &mut Unstructured<'_>) -> Result<Fetch> {
    Ok(match choices.int_in_range(0_u8..=5)? {
        0 => Fetch::GetFile(get_file(choices)?),
        1 => Fetch::GetSet(get_set(choices)?),
        4 => Fetch::GetOutline(get_set(choices)?),
        5 => Fetch::GetPages(get_pages(choices)?),
        2 => Fetch::End(digest(choices)?),
        _ => Fetch::NotFound(not_found(choices)?),
    })
}

pub(super) fn get_file(choices: &mut Unstructured<'_>) -> Result<GetFile> {
    Ok(GetFile {
        name: file_name(choices)?,
        compression: choices.int_in_range(0..=19)?,
    })
}

pub(super) fn get_set(choices: &mut Unstructured<'_>) -> Result<GetSet> {
    Ok(GetSet {
        start: Lsn(number(choices)?),
        timestamp: "2011-09-21 17:00:17 CEST".into(),
        offset: number(choices)?,
        compression: choices.int_in_range(0..=19)?,
    })
}

pub(super) fn get_pages(choices: &mut Unstructured<'_>) -> Result<GetPages> {
    let GetSet {
        start,
        timestamp,
        compression,
        ..
    } = get_set(choices)?;
    let path = RelativePath::new(b"base/5/16384").map_err(|_| arbitrary::Error::IncorrectFormat)?;
    let wanted = WantedPages {
        path,
        offset: u64::from(choices.arbitrary::<u16>()?) * PAGE_BYTES,
        len: number(choices)?,
        digests: vec![choices.arbitrary()?; usize::from(choices.int_in_range(0_u8..=3)?)],
    };
    Ok(GetPages {
        start,
        timestamp,
        compression,
        files: vec![wanted; usize::from(choices.int_in_range(0_u8..=2)?)],
    })
}

pub(super) fn not_found(choices: &mut Unstructured<'_>) -> Result<NotFound> {
    Ok(match choices.int_in_range(0_u8..=3)? {
        0 => NotFound::NothingLater,
        1 => NotFound::NoSuchSet,
        2 => NotFound::OnlyDamaged("000000010000000000000001.damaged".into()),
        _ => NotFound::Gap(file_name(choices)?),
    })
}
