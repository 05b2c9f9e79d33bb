//! The files of the data directory on their way into the new set, on this host.
//! Never makes a second name for a file of the server, and never writes one of them. Invariant: a page that goes into
//! the set was checked as a backup of the master checks it, also where the file system shares the blocks.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use indicatif::HumanBytes;
use tokio_util::sync::CancellationToken;
use walmgr_protocol::names::Lsn;

use crate::error::{CommandError, Result};
use crate::output::progress::Counters;
use crate::pg::base_backup::reading::{self, FileReading, ReadFrom};
use crate::pg::base_backup::{Arrived, BadBlock, Content, Item, listing};
use crate::pg::control::{self, ControlFile};
use crate::pg::layout;
use crate::pg::page::Pages;
use crate::pg::roots::Roots;
use crate::rate_limit::RateLimit;
use crate::standby::sets;
use crate::store::sets::{FileWriter, IncomingSet};

/// What is read at once: whole pages, and enough that the disk need not seek for each.
const PIECE_BYTES: usize = 1 << 20;

/// What stays free where the set lies: the archive may lie there too, and its next segments with it.
const FREE_BYTES_MIN: u64 = 256 << 20;

/// A set that is being filled.
pub(super) struct SetCopy {
    writer: FileWriter,
    roots: Roots,
    control: ControlFile,
    start: Lsn,
    counters: Arc<Counters>,
    cancelled: CancellationToken,
    /// How fast it reads.
    limit: RateLimit,
    buffer: Vec<u8>,
    /// Bytes that were not copied when the copying began.
    total_bytes: u64,
    /// Whether there is room for them was looked at.
    has_room: bool,
    /// What came of it.
    done: CopiedFiles,
}

/// What came of the copying.
#[derive(Debug, Default)]
pub(super) struct CopiedFiles {
    /// Every file that is in the set.
    pub files: Vec<Arrived>,
    /// Blocks whose checksum does not hold.
    pub bad_blocks: Vec<BadBlock>,
    /// Bytes that the file system shares with the data directory.
    pub shared_bytes: u64,
    /// Files that were gone before they could be read.
    pub vanished: u64,
}

impl SetCopy {
    /// Copies what lies below these roots, of a cluster like this; the backup begins at `start`.
    pub(super) fn new(
        set: &IncomingSet,
        (roots, control, start): (Roots, ControlFile, Lsn),
        (counters, cancelled): (Arc<Counters>, CancellationToken),
        (total_bytes, rate): (u64, Option<u64>),
    ) -> Result<SetCopy> {
        Ok(SetCopy {
            writer: set.files().map_err(|error| failed(&error))?,
            roots,
            control,
            start,
            counters,
            cancelled,
            limit: RateLimit::new(rate),
            buffer: Vec::with_capacity(PIECE_BYTES),
            total_bytes,
            has_room: false,
            done: CopiedFiles::default(),
        })
    }

    /// Copies `items`, then the control file (`last`), then `notes` and the note of damaged pages.
    pub(super) fn run(
        mut self,
        items: &[Item],
        last: &Item,
        notes: Vec<Item>,
    ) -> Result<(CopiedFiles, ControlFile)> {
        for item in items {
            self.take(item)?;
        }
        let control = self.take_control(last)?;
        let bad_pages = listing::note_of_pages(&self.done.bad_blocks);
        for note in notes.into_iter().chain(bad_pages) {
            self.take(&note)?;
        }
        Ok((self.done, control))
    }

    /// Copies one thing.
    fn take(&mut self, item: &Item) -> Result<()> {
        if self.cancelled.is_cancelled() {
            return Err(stopped());
        }
        match &item.content {
            Content::Directory => self.writer.declare(&item.target).map_err(|e| failed(&e)),
            Content::Note(note) => {
                let len = note.len() as u64;
                let from = ReadFrom::Note(note.clone());
                self.begin(item, len)?;
                self.pour(item, FileReading::new(from, (0, 0, len), None), 0, false)
            }
            Content::File(listed) => {
                let Some((file, metadata)) = reading::open(&self.roots, item, listed)? else {
                    // Dropped since it was listed; WAL says so too.
                    self.done.vanished += 1;
                    return Ok(());
                };
                self.begin(item, metadata.len())?;
                let pages = Pages::of(&listed.path, &self.control);
                let shared = self.writer.share(file.as_fd()).map_err(|e| failed(&e))?;
                let is_shared = shared.is_some();
                let (from, len) = match shared {
                    Some((copy, len)) => (ReadFrom::Snapshot { copy, file }, len),
                    None => {
                        self.look_for_room()?;
                        (ReadFrom::File(file), metadata.len())
                    }
                };
                let reading = FileReading::new(from, (0, 0, len), pages);
                self.pour(item, reading, metadata.mtime(), is_shared)
            }
        }
    }

    /// Copies the control file, read until it is whole, and returns its content. It is read after the files, so that it
    /// is not older than they are.
    fn take_control(&mut self, item: &Item) -> Result<ControlFile> {
        let Content::File(listed) = &item.content else {
            return Err(CommandError::retry(
                "the data directory has no control file",
            ));
        };
        let read = || {
            let gone = || reading::failed(item, io::ErrorKind::NotFound.into());
            let (file, _) = reading::open(&self.roots, item, listed)?.ok_or_else(gone)?;
            let mut bytes = Vec::new();
            let len = listed.size;
            (FileReading::new(ReadFrom::File(file), (0, 0, len), None))
                .read(usize::try_from(len).unwrap_or(0), &mut bytes, self.start)
                .map_err(|error| reading::failed(item, error))?;
            Ok(bytes)
        };
        let (bytes, control) = control::read_until_whole(Path::new(layout::PG_CONTROL), read)?;
        let len = bytes.len() as u64;
        self.begin(item, len)?;
        let from = ReadFrom::Note(bytes.into());
        self.pour(
            item,
            FileReading::new(from, (0, 0, len), None),
            listed.modified_s,
            false,
        )?;
        Ok(control)
    }

    fn begin(&mut self, item: &Item, len: u64) -> Result<()> {
        let begun = self.writer.begin(item.target.clone(), len, 0);
        begun.map_err(|error| failed(&error))
    }

    /// Reads a file to its end and writes it into the file that was begun. If that shares its blocks with the source
    /// already (`is_shared`), only mended pages are written.
    fn pour(
        &mut self,
        item: &Item,
        mut reading: FileReading,
        modified_s: i64,
        is_shared: bool,
    ) -> Result<()> {
        while !reading.is_at_end() {
            let (want, _) = reading.whole_pages(PIECE_BYTES);
            let goes_on = || !self.cancelled.is_cancelled();
            if !self.limit.take(want as u64, &goes_on) {
                return Err(stopped());
            }
            self.buffer.clear();
            let pages = reading
                .read(want, &mut self.buffer, self.start)
                .map_err(|error| reading::failed(item, error))?;
            let written = match is_shared {
                true => self.writer.pass(&self.buffer, pages.is_mended),
                false => self.writer.append(&self.buffer),
            };
            written.map_err(|error| failed(&error))?;
            for block in pages.bad {
                if let Some(path) = item.path() {
                    let path = path.clone();
                    tracing::error!("{path}: the checksum of block {block} is wrong");
                    self.done.bad_blocks.push(BadBlock { path, block });
                }
            }
            Counters::add(&self.counters.read_bytes, want as u64);
        }
        if is_shared {
            self.done.shared_bytes += reading.len;
        }
        let sealed = self.writer.end().map_err(|error| failed(&error))?;
        if let (Some(sealed), Some(path)) = (sealed, item.path()) {
            Counters::add(&self.counters.files, 1);
            self.done.files.push(Arrived {
                path: path.clone(),
                modified_s,
                digest: sealed.digest,
            });
        }
        Ok(())
    }

    /// Whether what is left fits, once it is seen that the file system shares nothing: the archive may lie on the
    /// same disk, and must not run out of it.
    fn look_for_room(&mut self) -> Result<()> {
        if self.has_room {
            return Ok(());
        }
        let free_bytes = self.writer.free_bytes().map_err(|error| failed(&error))?;
        let read_bytes = Counters::of(&self.counters.read_bytes);
        let left_bytes = self.total_bytes.saturating_sub(read_bytes);
        if free_bytes < left_bytes.saturating_add(FREE_BYTES_MIN) {
            return Err(CommandError::retry(format!(
                "the new set needs {} and {} to spare, and {} are free where full_backup lies",
                HumanBytes(left_bytes),
                HumanBytes(FREE_BYTES_MIN),
                HumanBytes(free_bytes)
            ))
            .hint("nothing was kept; make room there, or lower keep_backups"));
        }
        self.has_room = true;
        Ok(())
    }
}

/// What is said of a backup that somebody ended.
pub(super) fn stopped() -> CommandError {
    CommandError::retry("the backup was stopped")
}

fn failed(error: &crate::store::sets::SetError) -> CommandError {
    sets::failed("copy the data directory into the new set", error)
}
