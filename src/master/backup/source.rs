//! The bytes of one tar stream, made from the files of the data directory as they are read.
//! Never sends more or less of a file than its header says. Invariant: a page that is not torn is
//! never split between two blocks, so every block can be checked by itself.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::io::{pread, retry_on_intr};

use crate::error::{CommandError, Result};
use crate::master::backup::work_queue::{
    BadBlock, Content, Item, OnItsWay, Remainder, Resend, WorkQueue,
};
use crate::pg::layout;
use crate::pg::page::{PAGE_BYTES, PageState, Pages};
use crate::pg::walk;
use crate::tar::writer as tar;

/// How often a page is read again that may just be being written, and the pause before it.
const REREADS_MAX: usize = 8;
const REREAD_PAUSE: Duration = Duration::from_millis(5);

/// Files without which there is no cluster: they never vanish from a running one.
const NEVER_VANISH: [&[u8]; 2] = [layout::PG_VERSION.as_bytes(), layout::PG_CONTROL.as_bytes()];

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
    bytes: Bytes,
    /// The next byte to be read.
    offset: u64,
    len: u64,
    /// Bytes of it in this stream.
    size: u64,
    crc32c: u32,
    pages: Option<Pages>,
}

/// Where the bytes of a file come from.
enum Bytes {
    File(File),
    Note(bytes::Bytes),
    /// It vanished since its beginning was sent: the rest of it is zeros.
    Gone,
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
                if current.offset == current.len {
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
            let (item, offset) = (&current.item, current.offset);
            self.on_its_way.checkpoint(item, offset, current.crc32c);
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
        let (bytes, found) = match &item.content {
            Content::Directory => {
                self.on_its_way.begin(&item, 0, 0);
                self.stage(|staged| tar::put_directory(staged, item.target.as_bytes()));
                return Ok(());
            }
            Content::Note(bytes) => (Bytes::Note(bytes.clone()), Some((bytes.len() as u64, 0))),
            Content::File(listed) => match self.open(&item, listed)? {
                Some((file, metadata)) => {
                    let found = (metadata.len(), metadata.mtime());
                    (Bytes::File(file), Some(found))
                }
                None => (Bytes::Gone, None),
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
        let current = Current {
            bytes,
            offset,
            len,
            size,
            crc32c,
            pages,
            item,
        };
        if size == 0 {
            self.on_its_way.complete(&current.item, crc32c);
        } else {
            self.current = Some(current);
        }
        Ok(())
    }

    /// Opens a file; `None` when it is gone, as a relation may be that was dropped.
    fn open(&self, item: &Item, listed: &walk::File) -> Result<Option<(File, Metadata)>> {
        let opened = self.load.roots.open_file(listed);
        let opened = opened.and_then(|file| {
            let metadata = file.metadata()?;
            Ok((file, metadata))
        });
        match opened {
            Ok(opened) => Ok(Some(opened)),
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && !NEVER_VANISH.contains(&listed.path.as_bytes()) =>
            {
                Ok(None)
            }
            Err(error) => Err(reading(item, error)),
        }
    }

    /// Appends what fits of the file; `false` when the block is to end here.
    fn read(&self, current: &mut Current, buffer: &mut Vec<u8>, room: usize) -> Result<bool> {
        let left = usize::try_from(current.len - current.offset).unwrap_or(usize::MAX);
        let mut want = left.min(room);
        let mut ends = false;
        if current.pages.is_some() && want < left {
            // Behind a page, counted from the file's beginning.
            let page_bytes = PAGE_BYTES as u64;
            let end = (current.offset + want as u64) / page_bytes * page_bytes;
            want = usize::try_from(end.saturating_sub(current.offset)).unwrap_or(0);
            ends = true;
            if want == 0 {
                return Ok(false);
            }
        }
        let begin = buffer.len();
        let found = read_at(&current.bytes, current.offset, want, buffer)
            .map_err(|error| reading(&current.item, error))?;
        if let Some(pages) = current.pages {
            self.check_pages(current, pages, &mut buffer[begin..begin + found])?;
        }
        // It was truncated since its header went out; WAL says so too.
        buffer.resize(begin + want, 0);
        current.crc32c = crc32c::crc32c_append(current.crc32c, &buffer[begin..]);
        current.offset += want as u64;
        self.on_its_way
            .count(&self.load, &current.item, want as u64);
        Ok(!ends)
    }

    fn finish(&mut self, current: &Current) {
        self.on_its_way.complete(&current.item, current.crc32c);
        let padding = tar::padding(current.size);
        self.stage(|staged| staged.resize(padding, 0));
    }

    fn check_pages(&self, current: &Current, pages: Pages, bytes: &mut [u8]) -> Result<()> {
        let start = self.load.start;
        let first = current.offset / PAGE_BYTES as u64;
        for (index, page) in bytes.chunks_exact_mut(PAGE_BYTES).enumerate() {
            let Ok(page) = <&mut [u8; PAGE_BYTES]>::try_from(page) else {
                continue;
            };
            let index = u32::try_from(first + index as u64).unwrap_or(u32::MAX);
            let mut rereads = 0;
            while pages.judge(page, index, start) == PageState::Bad && rereads < REREADS_MAX {
                std::thread::sleep(REREAD_PAUSE);
                let mut fresh = Vec::with_capacity(PAGE_BYTES);
                let offset = u64::from(index) * PAGE_BYTES as u64;
                let found = read_at(&current.bytes, offset, PAGE_BYTES, &mut fresh)
                    .map_err(|error| reading(&current.item, error))?;
                if found < PAGE_BYTES {
                    // Truncated meanwhile.
                    break;
                }
                page.copy_from_slice(&fresh);
                rereads += 1;
            }
            if pages.judge(page, index, start) == PageState::Bad
                && let Some(path) = current.item.path()
            {
                let path = path.clone();
                let block = index;
                tracing::error!("{path}: the checksum of block {block} is wrong");
                self.load.note_bad(BadBlock { path, block });
            }
        }
        Ok(())
    }
}

/// Appends what there is at an offset, at most `want` bytes, into memory that nobody filled with
/// zeros first; returns how many there were.
fn read_at(bytes: &Bytes, offset: u64, want: usize, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let begin = buffer.len();
    match bytes {
        Bytes::Gone => {}
        Bytes::Note(note) => {
            let from = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(note.len());
            buffer.extend(note[from..].iter().take(want));
        }
        Bytes::File(file) => {
            while buffer.len() < begin + want {
                let at = offset + (buffer.len() - begin) as u64;
                // The spare room may be larger than what is wanted.
                if retry_on_intr(|| pread(file, spare_capacity(buffer), at))? == 0 {
                    break;
                }
            }
            buffer.truncate(begin + want);
        }
    }
    Ok(buffer.len() - begin)
}

fn reading(item: &Item, error: io::Error) -> CommandError {
    let path = item.path().unwrap_or(&item.target);
    CommandError::retry(format!("read {path} of the data directory"))
        .because(error)
        .hint("this backup was removed; check the master's disk and the file permissions")
}
