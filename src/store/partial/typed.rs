//! Records that an administrator's script brings (`xpartialsync`): behind what is held of a segment in progress.
//! Never replaces or drops a byte that is held, and never takes part of what was brought. Invariant: all of it is
//! checked before the first byte is written, and durable when this says that it is stored.

use walmgr_protocol::message::partial::Open;
use walmgr_protocol::names::{Lsn, SegmentName};

use super::file::PartialFile;
use super::open::PartialStream;
use super::records::RecordSearch;
use super::rewrite::scanner_behind_previous;
use super::state::SegmentState;
use crate::store::error::StoreError;
use crate::store::shared::Archive;

/// What became of the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TypedRecords {
    /// The end of the last whole record of the segment, durable.
    pub(crate) end: Lsn,
    /// How many bytes were written; the others were held already, or are the padding.
    pub(crate) new_bytes: u64,
}

/// Why nothing was taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotTaken {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Bytes are missing between what is held and what was brought.
    #[error("{segment} is held up to byte {held_bytes}, and these begin at {offset}")]
    Gap {
        segment: SegmentName,
        held_bytes: u64,
        offset: u64,
    },
    /// What was brought is not what is held.
    #[error("byte {at} of {segment} differs from what is held")]
    Differs { segment: SegmentName, at: u64 },
    /// The bytes end within a record, or are no records.
    #[error("the records of {segment} end at byte {whole_bytes}, expected byte {typed_bytes}")]
    NotWhole {
        segment: SegmentName,
        whole_bytes: u64,
        typed_bytes: u64,
    },
}

impl Archive {
    /// Appends the records in `bytes`, which begin at this offset of the segment. Zeros behind the last record are the
    /// padding. What of it is held already is compared.
    pub(crate) fn take_typed(
        &self,
        segment: SegmentName,
        offset: u64,
        bytes: &[u8],
    ) -> Result<TypedRecords, NotTaken> {
        let (mut stream, _) = self.partial_stream(segment.timeline())?;
        let binding = stream.binding;
        if let Some(scanner) = scanner_behind_previous(&stream.shared, &binding, segment)? {
            // As the stream has it that comes from there: the first record is checked from its beginning.
            stream.carried = Some((segment, scanner.forgetting()));
        }
        let typed_bytes = offset + bytes.len() as u64;
        let asked = Open {
            segment,
            bytes: typed_bytes,
            // What is held is compared byte by byte below.
            crc32: 0,
        };
        let held_bytes = stream.open(&asked)?.held_bytes;
        if let SegmentState::Finished = stream.opened()?.state {
            return Err(StoreError::Finished { segment }.into());
        }
        if offset > held_bytes {
            return Err(NotTaken::Gap {
                segment,
                held_bytes,
                offset,
            });
        }
        let common = compare(&mut stream, (offset, bytes), held_bytes)?;
        let behind = &bytes[common..];
        let (records, end) = whole_records(&mut stream, behind, held_bytes)?;
        if records == 0 {
            let end = stream.opened()?.position.end;
            return Ok(TypedRecords { end, new_bytes: 0 });
        }
        stream.append(held_bytes, end, &behind[..records])?;
        stream.sync()?;
        Ok(TypedRecords {
            end,
            new_bytes: records as u64,
        })
    }
}

/// How many of the bytes are held; all of those have to be the same.
fn compare(
    stream: &mut PartialStream,
    (offset, bytes): (u64, &[u8]),
    held_bytes: u64,
) -> Result<usize, NotTaken> {
    let common = usize::try_from(held_bytes - offset).unwrap_or(usize::MAX);
    let common = common.min(bytes.len());
    if common == 0 {
        return Ok(0);
    }
    let open = stream.opened()?;
    let segment = open.position.segment;
    let mut same = 0_usize;
    let file: &PartialFile = &open.held()?.file;
    file.read(offset..offset + common as u64, |piece| {
        let ours = &bytes[same..same + piece.len()];
        let equal = ours.iter().zip(piece).take_while(|(a, b)| a == b).count();
        same += equal;
        equal == piece.len()
    })?;
    match same == common {
        true => Ok(common),
        false => Err(NotTaken::Differs {
            segment,
            at: offset + same as u64,
        }),
    }
}

/// How many of the bytes behind what is held are records, and where the last one ends; the rest of them has to be padding.
fn whole_records(
    stream: &mut PartialStream,
    behind: &[u8],
    held_bytes: u64,
) -> Result<(usize, Lsn), NotTaken> {
    let binding = stream.binding;
    let open = stream.opened()?;
    let segment = open.position.segment;
    let is_padding = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    // Behind a switch nothing means anything, and zeros are records of nobody.
    if open.position.last_switch.is_some() || is_padding(behind) {
        return match is_padding(behind) {
            true => Ok((0, open.position.end)),
            false => Err(NotTaken::Differs {
                segment,
                at: held_bytes,
            }),
        };
    }
    let mut search = RecordSearch::new(segment, &binding, open.position.first_scanner.clone());
    if let SegmentState::Writing(held) | SegmentState::Damaged(held) = &open.state {
        held.file.read(0..held_bytes, |piece| search.feed(piece))?;
    }
    search.feed(behind);
    let end = search.finish();
    let whole = usize::try_from(end.held_bytes.saturating_sub(held_bytes)).unwrap_or(usize::MAX);
    let whole = whole.min(behind.len());
    match is_padding(&behind[whole..]) {
        true => Ok((whole, end.lsn)),
        false => Err(NotTaken::NotWhole {
            segment,
            whole_bytes: held_bytes + whole as u64,
            typed_bytes: held_bytes + behind.len() as u64,
        }),
    }
}
