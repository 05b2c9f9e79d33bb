//! The bytes of one tar stream, made from the files of the data directory as they are read.
//! Never sends more or less of a file than its header says. Invariant: a page that is not torn is
//! never split between two blocks, so every block can be checked by itself.

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use crate::error::Result;
use crate::master::backup::work_queue::{OnItsWay, Remainder, Resend, WorkQueue};
use crate::pg::base_backup::reading::{self, ReadFrom, Reading};
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
}

struct Current {
    item: Arc<Item>,
    reading: Reading,
    /// Bytes of it in this stream.
    size: u64,
}

impl StreamSource {
    /// A stream that first sends `again`, and then what is waiting.
    pub(crate) fn new(
        load: Arc<WorkQueue>,
        on_its_way: Arc<OnItsWay>,
        again: Vec<Resend>,
    ) -> StreamSource {
        StreamSource {
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
                if current.reading.is_at_end() {
                    self.finish(&current);
                } else {
                    self.current = Some(current);
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
        let reading = Reading::new(from, (offset, crc32c, len), pages);
        let current = Current {
            item,
            reading,
            size,
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

    fn finish(&mut self, current: &Current) {
        (self.on_its_way).complete(&current.item, current.reading.crc32c);
        let padding = tar::padding(current.size);
        self.stage(|staged| staged.resize(padding, 0));
    }
}
