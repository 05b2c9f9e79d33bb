//! The bytes of one tar stream, made from the files of the data directory as they are read.
//! Never sends more or less of a file than its header says. Invariant: a page that is not torn is
//! never split between two blocks, so every block can be checked by itself.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use walmgr_protocol::patch::{self, PAGE_BYTES};

use crate::error::Result;
use crate::master::backup::patch_plan::{PatchPiece, PatchPlan};
use crate::master::backup::work_queue::{OnItsWay, Remainder, Resend, WorkQueue};
use crate::pg::base_backup::reading::{self, FileReading, ReadFrom};
use crate::pg::base_backup::{BadBlock, Content, Item};
use crate::pg::page::Pages;
use crate::tar::writer as tar;

/// Makes one stream.
pub(crate) struct StreamSource {
    load: Arc<WorkQueue>,
    on_its_way: Arc<OnItsWay>,
    again: VecDeque<Resend>,
    current: Option<Current>,
    /// Headers and padding that have to go out first.
    staged: Vec<u8>,
    staged_at: usize,
    has_ended: bool,
    /// Picks the pages that are looked at.
    random: u64,
}

struct Current {
    item: Arc<Item>,
    reading: FileReading,
    /// Bytes of it in this stream.
    size: u64,
    /// What follows it, where only some pages are sent.
    patch: Option<Patching>,
}

/// A file of which only some pages are sent.
struct Patching {
    file: File,
    plan: PatchPlan,
    pages: Option<Pages>,
}

impl StreamSource {
    /// A stream that first sends `again`, and then what is waiting.
    pub(crate) fn new(
        load: Arc<WorkQueue>,
        on_its_way: Arc<OnItsWay>,
        again: Vec<Resend>,
        random: u64,
    ) -> StreamSource {
        StreamSource {
            random,
            load,
            on_its_way,
            again: again.into(),
            current: None,
            staged: Vec::new(),
            staged_at: 0,
            has_ended: false,
        }
    }

    /// Appends the next bytes of the stream, about `bytes` of them and never more; nothing at its
    /// end.
    pub(crate) fn fill(&mut self, buffer: &mut Vec<u8>, bytes: usize) -> Result<()> {
        let end = buffer.len() + bytes;
        buffer.reserve_exact(bytes);
        while buffer.len() < end {
            let room = end - buffer.len();
            if self.staged_at < self.staged.len() {
                let staged = &self.staged[self.staged_at..];
                let taken = staged.len().min(room);
                buffer.extend_from_slice(&staged[..taken]);
                self.staged_at += taken;
            } else if let Some(mut current) = self.current.take() {
                let full = !self.read(&mut current, buffer, room)?;
                if !current.reading.is_at_end() {
                    self.current = Some(current);
                } else {
                    self.go_on(current)?;
                }
                if full {
                    break;
                }
            } else if !self.begin_next()? {
                break;
            }
        }
        if let Some(current) = &self.current {
            let (item, reading) = (&current.item, &current.reading);
            (self.on_its_way).checkpoint(item, reading.offset, reading.crc32c);
        }
        Ok(())
    }

    fn stage(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        self.staged.clear();
        self.staged_at = 0;
        put(&mut self.staged);
    }

    /// Begins the next thing; `false` when the stream is at its end.
    fn begin_next(&mut self) -> Result<bool> {
        let next = match self.again.pop_front() {
            Some(again) => Some(again),
            None => self.load.take().map(|item| Resend { item, rest: None }),
        };
        match next {
            Some(Resend { item, rest }) => self.begin(item, rest)?,
            None if self.has_ended => return Ok(false),
            None => {
                self.has_ended = true;
                self.stage(|staged| staged.extend_from_slice(&tar::END));
            }
        }
        Ok(true)
    }

    fn begin(&mut self, item: Arc<Item>, rest: Option<Remainder>) -> Result<()> {
        let (from, found) = match &item.content {
            Content::Directory => {
                self.on_its_way.begin(&item, 0, 0);
                self.stage(|staged| tar::put_directory(staged, item.target.as_bytes()));
                return Ok(());
            }
            Content::Note(bytes) => {
                let found = (bytes.len() as u64, 0);
                (ReadFrom::Note(bytes.clone()), Some(found))
            }
            Content::File(listed) => match reading::open(&self.load.roots, &item, listed)? {
                Some((file, metadata))
                    if self.load.needs.contains_key(&listed.path)
                        && metadata.len().is_multiple_of(PAGE_BYTES) =>
                {
                    return self.begin_patch(item, file, &metadata);
                }
                Some((file, metadata)) => {
                    let found = (metadata.len(), metadata.mtime());
                    (ReadFrom::File(file), Some(found))
                }
                None => (ReadFrom::Gone, None),
            },
        };
        let (offset, crc32c, len) = match (rest, found) {
            (Some(rest), _) => (rest.offset, rest.crc32c, rest.len),
            (None, Some((len, modified_s))) => {
                self.on_its_way.begin(&item, len, modified_s);
                (0, 0, len)
            }
            (None, None) => {
                // Dropped since it was listed; WAL says so too.
                self.on_its_way.vanished(&self.load, &item);
                return Ok(());
            }
        };
        let size = len - offset;
        self.stage(|staged| tar::put_file(staged, item.target.as_bytes(), size, offset));
        let pages = item
            .path()
            .and_then(|path| Pages::of(path, &self.load.control));
        let reading = FileReading::new(from, (offset, crc32c, len), pages);
        let current = Current {
            item,
            reading,
            size,
            patch: None,
        };
        if size == 0 {
            self.on_its_way.complete(&current.item, crc32c);
        } else {
            self.current = Some(current);
        }
        Ok(())
    }

    /// Appends what fits of the file; `false` when the block is to end here.
    fn read(&self, current: &mut Current, buffer: &mut Vec<u8>, room: usize) -> Result<bool> {
        let (want, ends) = current.reading.whole_pages(room);
        if want == 0 && ends {
            return Ok(false);
        }
        let pages = (current.reading)
            .read(want, buffer, self.load.start)
            .map_err(|error| reading::failed(&current.item, error))?;
        for block in pages.bad {
            if let Some(path) = current.item.path() {
                let path = path.clone();
                tracing::error!("{path}: the checksum of block {block} is wrong");
                self.load.note_bad(BadBlock { path, block });
            }
        }
        self.on_its_way
            .count(&self.load, &current.item, want as u64);
        Ok(!ends)
    }

    /// Begins a file of which the receiver has all but some pages.
    fn begin_patch(&mut self, item: Arc<Item>, file: File, metadata: &Metadata) -> Result<()> {
        let len = metadata.len();
        let path = item.path().unwrap_or(&item.target);
        let pages = Pages::of(path, &self.load.control);
        let mut random = self.random;
        let mut next_random = || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            random >> 33
        };
        let plan = match self.load.needs.get(path) {
            Some(needed) => PatchPlan::make(
                &file,
                (needed, len),
                (pages, self.load.start),
                &mut next_random,
            ),
            None => return Ok(()),
        };
        let plan = plan.map_err(|error| reading::failed(&item, error))?;
        self.random = random;
        self.on_its_way.begin_patch(&item, len, metadata.mtime());
        let looks = (plan.0.iter()).filter(|piece| matches!(piece, PatchPiece::Look(..)));
        let looked_bytes = looks.count() as u64 * PAGE_BYTES;
        self.on_its_way.count(&self.load, &item, looked_bytes);
        let size = plan.bytes();
        self.stage(|staged| tar::put_patch(staged, item.target.as_bytes(), size, len));
        if size == 0 {
            self.on_its_way.complete(&item, 0);
            return Ok(());
        }
        self.current = Some(Current {
            item,
            reading: FileReading::new(ReadFrom::Gone, (0, 0, 0), None),
            size,
            patch: Some(Patching { file, plan, pages }),
        });
        Ok(())
    }

    /// Goes on with what follows, or ends the file.
    fn go_on(&mut self, mut current: Current) -> Result<()> {
        let Some(patching) = &mut current.patch else {
            self.finish(&current);
            return Ok(());
        };
        match patching.plan.0.pop_front() {
            None => self.finish(&current),
            Some(PatchPiece::Look(block, look)) => {
                let is_last = patching.plan.0.is_empty();
                self.stage(|staged| patch::put_look(staged, block, look));
                match is_last {
                    // The receiver has the file when it has this, and says so.
                    true => self.finish_behind_staged(&current),
                    false => self.current = Some(current),
                }
            }
            Some(PatchPiece::Pages(range)) => {
                let file = patching.file.try_clone();
                let file = file.map_err(|error| reading::failed(&current.item, error))?;
                let (offset, end) = (u64::from(range.start), u64::from(range.end));
                let place = (offset * PAGE_BYTES, 0, end * PAGE_BYTES);
                current.reading = FileReading::new(ReadFrom::File(file), place, patching.pages);
                let count = range.end - range.start;
                self.stage(|staged| patch::put_pages(staged, range.start, count));
                self.current = Some(current);
            }
        }
        Ok(())
    }

    fn finish(&mut self, current: &Current) {
        self.stage(|_| ());
        self.finish_behind_staged(current);
    }

    fn finish_behind_staged(&mut self, current: &Current) {
        (self.on_its_way).complete(&current.item, current.reading.crc32c);
        let end = self.staged.len() + tar::padding(current.size);
        self.staged.resize(end, 0);
    }
}
