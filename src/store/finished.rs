//! The one way to the bytes of a finished file, for everybody who reads one, whichever form it is stored in.
//! Never changes a file. Invariant: whoever reads through it gets the bytes that the master offered, or an error.
//!
//! A segment, or a copy that is kept beside one, is stored under its name as it is or, packed, under that name with
//! `.zst` behind it. Everybody else knows only the name. Where both are there with the same content they are one file.
//! Where they differ, the one that was acknowledged counts; if nobody knows which one that was, neither is handed out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use walmgr_protocol::compress::worth_bytes;

use super::beside::{PACKED_SUFFIX, file_of};
use super::checksums::{Checksums, KeptChecksum};
use super::disk::read_full;
use super::error::StoreError;
use super::folder::Folder;
use super::packed::{BlockUnpacker, ForeignUnpacker, PackedBlock, PackedFault, SeekTable};

/// Enough of a file's end to know how much of it says what is in it.
const END_BYTES: u64 = 16;

/// A finished file, or a copy that is kept beside one, open for reading.
pub(super) struct FinishedFile {
    text: String,
    file: OwnedFd,
    form: StoredForm,
}

/// A piece of a finished file, for whoever unpacks it.
pub(crate) enum StoredPiece<'a> {
    /// Its bytes.
    Raw(&'a [u8]),
    /// What so many of its bytes were packed to.
    Packed { frame: &'a [u8], raw_bytes: u32 },
}

/// How it is stored.
enum StoredForm {
    Plain,
    Blocks(SeekTable),
    /// By somebody else.
    Foreign,
    Broken(PackedFault),
}

impl FinishedFile {
    /// What lies on the disk, to sync it, to drop the kernel's copy of it or to copy it as it is stored; its bytes are
    /// nobody's to read.
    pub(super) fn handle(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether it is stored as it is.
    pub(super) const fn is_plain(&self) -> bool {
        matches!(self.form, StoredForm::Plain)
    }
}

impl Folder {
    /// Opens the finished file of this name, or says `None` where there is none.
    pub(super) fn open_finished(&self, text: &str) -> Result<Option<FinishedFile>, StoreError> {
        let plain = self.open_file(text)?.map(|file| FinishedFile {
            text: text.to_owned(),
            file,
            form: StoredForm::Plain,
        });
        let packed = match self.packed_name(text) {
            Some(stored) => self.open_packed(text, &stored)?,
            None => None,
        };
        match (plain, packed) {
            (Some(plain), Some(packed)) => self.one_of_two(plain, packed).map(Some),
            (plain, packed) => Ok(plain.or(packed)),
        }
    }

    /// Opens a packed file under the name that it has on the disk; it is read as the file `text`.
    pub(super) fn open_packed(
        &self,
        text: &str,
        stored: &str,
    ) -> Result<Option<FinishedFile>, StoreError> {
        let Some(file) = self.open_file(stored)? else {
            return Ok(None);
        };
        let form = match self.seek_table(file.as_fd(), stored)? {
            Ok(Some(table)) => StoredForm::Blocks(table),
            Ok(None) => StoredForm::Foreign,
            Err(fault) => StoredForm::Broken(fault),
        };
        let text = text.to_owned();
        Ok(Some(FinishedFile { text, file, form }))
    }

    /// Opens a temporary of this name on the disk.
    pub(super) fn open_temporary(
        &self,
        stored: &str,
        is_packed: bool,
    ) -> Result<Option<FinishedFile>, StoreError> {
        if is_packed {
            return self.open_packed(stored, stored);
        }
        Ok(self.open_file(stored)?.map(|file| FinishedFile {
            text: stored.to_owned(),
            file,
            form: StoredForm::Plain,
        }))
    }

    /// Whether a file lies here packed, and not as it is.
    pub(super) fn is_packed(&self, text: &str) -> Result<bool, StoreError> {
        Ok(self.stat_stored(text)?.is_none() && !self.stored_names(text)?.is_empty())
    }

    fn seek_table(
        &self,
        file: BorrowedFd<'_>,
        stored: &str,
    ) -> Result<Result<Option<SeekTable>, PackedFault>, StoreError> {
        let stat =
            (self.disk.stat(file)).map_err(|error| self.failure("examine", stored, error))?;
        let from_end = |bytes: u64| -> Result<Vec<u8>, StoreError> {
            let bytes = bytes.min(stat.len);
            let mut end = vec![0; usize::try_from(bytes).unwrap_or_default()];
            let read = self.read_exactly(file, stored, &mut end, stat.len - bytes)?;
            end.truncate(read);
            Ok(end)
        };
        let tail_bytes = match SeekTable::tail_bytes(&from_end(END_BYTES)?) {
            Ok(Some(tail_bytes)) => tail_bytes as u64,
            Ok(None) => return Ok(Ok(None)),
            Err(fault) => return Ok(Err(fault)),
        };
        Ok(SeekTable::parse(stat.len, &from_end(tail_bytes)?).map(Some))
    }

    /// Fills a buffer as far as the file has bytes.
    fn read_exactly(
        &self,
        file: BorrowedFd<'_>,
        stored: &str,
        buffer: &mut [u8],
        offset_bytes: u64,
    ) -> Result<usize, StoreError> {
        let read = read_full(&*self.disk, file, buffer, offset_bytes);
        read.map_err(|error| self.failure("read", stored, error))
    }

    /// Which of the two forms of a file counts.
    fn one_of_two(
        &self,
        plain: FinishedFile,
        packed: FinishedFile,
    ) -> Result<FinishedFile, StoreError> {
        let digest = |file: &FinishedFile| match self.digest_of(file) {
            Err(StoreError::Damaged { .. }) => Ok(None),
            other => other.map(Some),
        };
        let (of_plain, of_packed) = (digest(&plain)?, digest(&packed)?);
        if of_plain == of_packed {
            return Ok(plain);
        }
        let kept = file_of(&plain.text)
            .and_then(|name| KeptChecksum::parse(name, &Checksums::open(self).text(&plain.text)?));
        let is_kept = |digest: Option<(u64, u32)>| {
            let same =
                |kept: KeptChecksum| digest.is_some_and(|digest| digest == (kept.len, kept.crc32));
            kept.is_some_and(same)
        };
        match (is_kept(of_plain), is_kept(of_packed)) {
            (true, _) => Ok(plain),
            (false, true) => Ok(packed),
            (false, false) => {
                let text = &plain.text;
                let why = format!(
                    "{text} and {text}{PACKED_SUFFIX} hold different bytes, and nothing tells which was \
                     acknowledged: look at both (zstd -dc unpacks the second) and move one of them out of \
                     the directory"
                );
                Err(self.failure("choose a form of", text, io::Error::other(why)))
            }
        }
    }

    /// Length and CRC-32 of what a finished file holds.
    pub(super) fn digest_of(&self, file: &FinishedFile) -> Result<(u64, u32), StoreError> {
        let (mut len, mut crc) = (0, crc32fast::Hasher::new());
        self.read_finished(file, |piece| {
            len += piece.len() as u64;
            crc.update(piece);
            true
        })?;
        Ok((len, crc.finalize()))
    }

    /// The length of what a finished file holds; `None` where only reading it tells.
    pub(super) fn finished_len(&self, file: &FinishedFile) -> Result<Option<u64>, StoreError> {
        match &file.form {
            StoredForm::Plain => {
                let stat = self.disk.stat(file.handle());
                let stat = stat.map_err(|error| self.failure("examine", &file.text, error))?;
                Ok(Some(stat.len))
            }
            StoredForm::Blocks(table) => Ok(Some(table.raw_bytes)),
            StoredForm::Foreign | StoredForm::Broken(_) => Ok(None),
        }
    }

    /// Hands a finished file to `each` from its first byte on, in large pieces, to its end or until `each` has seen
    /// enough.
    pub(super) fn read_finished(
        &self,
        file: &FinishedFile,
        each: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), StoreError> {
        match file.form {
            StoredForm::Plain => self.read_on(file.handle(), &file.text, 0, each),
            _ => self.read_unpacked(file, 0, each),
        }
    }

    /// Hands a finished file to `each` from an offset on, until `each` has seen enough: for those who want only some
    /// of it.
    pub(super) fn read_finished_pages(
        &self,
        file: &FinishedFile,
        from_bytes: u64,
        each: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), StoreError> {
        match file.form {
            StoredForm::Plain => self.read_pages(file.handle(), &file.text, from_bytes, each),
            _ => self.read_unpacked(file, from_bytes, each),
        }
    }

    /// Fills as much of a buffer from an offset on as there is; 0 at the end.
    pub(super) fn read_finished_at(
        &self,
        file: &FinishedFile,
        buffer: &mut [u8],
        from_bytes: u64,
    ) -> Result<usize, StoreError> {
        let mut filled = 0;
        self.read_finished_pages(file, from_bytes, |piece| {
            let count = piece.len().min(buffer.len() - filled);
            buffer[filled..filled + count].copy_from_slice(&piece[..count]);
            filled += count;
            filled < buffer.len()
        })?;
        Ok(filled)
    }

    fn read_unpacked(
        &self,
        file: &FinishedFile,
        from_bytes: u64,
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let mut left_out = from_bytes;
        let read = match &file.form {
            StoredForm::Blocks(table) => self.read_blocks(file, table, from_bytes, &mut each)?,
            StoredForm::Broken(fault) => Err(fault.clone()),
            StoredForm::Foreign | StoredForm::Plain => {
                self.read_foreign(file, &mut |piece: &[u8]| {
                    let skipped = piece
                        .len()
                        .min(usize::try_from(left_out).unwrap_or(usize::MAX));
                    left_out -= skipped as u64;
                    skipped == piece.len() || each(&piece[skipped..])
                })?
            }
        };
        read.map_err(|fault| self.packed_damage(&file.text, &fault))
    }

    /// Hands the blocks of a packed file to `each`, until `each` has seen enough. A block comes packed, or unpacked if
    /// packing saved little. Returns the unpacked file's length in bytes and its CRC-32; `None` for a file that is not
    /// packed in blocks.
    pub(super) fn read_packed(
        &self,
        file: &FinishedFile,
        mut each: impl FnMut(StoredPiece<'_>) -> bool,
    ) -> Result<Option<(u64, u32)>, StoreError> {
        let StoredForm::Blocks(table) = &file.form else {
            return Ok(None);
        };
        let damaged = |fault| self.packed_damage(&file.text, &fault);
        let (mut unpacker, mut stored) = (BlockUnpacker::new(), Vec::new());
        for block in &table.blocks {
            let frame = self.read_block(file, block, &mut stored)?;
            let raw_bytes = block.raw_bytes();
            let is_enough = if frame.len() <= worth_bytes(raw_bytes as usize) {
                block.check(frame).map_err(damaged)?;
                !each(StoredPiece::Packed { frame, raw_bytes })
            } else {
                !each(StoredPiece::Raw(
                    unpacker.unpack(block, frame).map_err(damaged)?,
                ))
            };
            if is_enough {
                break;
            }
        }
        Ok(Some((table.raw_bytes, table.raw_crc32)))
    }

    /// What is stored of a block, as far as the file has it.
    fn read_block<'a>(
        &self,
        file: &FinishedFile,
        block: &PackedBlock,
        stored: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], StoreError> {
        stored.resize(block.bytes as usize, 0);
        let read = self.read_exactly(file.handle(), &file.text, stored, block.offset_bytes)?;
        Ok(&stored[..read])
    }

    fn read_blocks(
        &self,
        file: &FinishedFile,
        table: &SeekTable,
        from_bytes: u64,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Result<(), PackedFault>, StoreError> {
        let mut unpacker = BlockUnpacker::new();
        let (mut stored, mut crc) = (Vec::new(), crc32fast::Hasher::new());
        let mut ends_at = 0;
        for block in &table.blocks {
            let begins_at = ends_at;
            ends_at += u64::from(block.raw_bytes());
            if ends_at <= from_bytes {
                continue;
            }
            let frame = self.read_block(file, block, &mut stored)?;
            let raw = match unpacker.unpack(block, frame) {
                Ok(raw) => raw,
                Err(fault) => return Ok(Err(fault)),
            };
            crc.update(raw);
            let skipped = usize::try_from(from_bytes.saturating_sub(begins_at)).unwrap_or(0);
            if !each(&raw[skipped..]) {
                return Ok(Ok(()));
            }
        }
        Ok(table.check_whole(from_bytes, crc.finalize()))
    }

    fn read_foreign(
        &self,
        file: &FinishedFile,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Result<(), PackedFault>, StoreError> {
        let mut unpacker = match ForeignUnpacker::new() {
            Ok(unpacker) => unpacker,
            Err(fault) => return Ok(Err(fault)),
        };
        let mut unpacked = Ok(true);
        self.read_on(file.handle(), &file.text, 0, |stored| {
            unpacked = unpacker.update(stored, &mut *each);
            matches!(unpacked, Ok(true))
        })?;
        Ok(match unpacked {
            Ok(true) => unpacker.finish(),
            other => other.map(drop),
        })
    }

    fn packed_damage(&self, text: &str, fault: &PackedFault) -> StoreError {
        match file_of(text) {
            Some(name) => StoreError::Damaged {
                name,
                why: format!("{text}{PACKED_SUFFIX} cannot be unpacked: {fault}"),
            },
            None => self.failure("unpack", text, io::Error::other(fault.clone())),
        }
    }
}
