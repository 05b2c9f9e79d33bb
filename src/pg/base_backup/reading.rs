//! A file of a running server as a backup reads it, piece by piece: as long as it was, with its pages checked.
//! Never gives more or less of a file than was said of its length. Invariant: a page that looks torn is read again
//! until it is whole, or named as bad.

use std::fs::{File, Metadata};
use std::io;
use std::time::Duration;

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::{pread, retry_on_intr};
use walmgr_protocol::names::Lsn;

use super::Item;
use crate::error::{CommandError, Result};
use crate::pg::layout;
use crate::pg::page::{PAGE_BYTES, PageState, Pages};
use crate::pg::roots::Roots;
use crate::pg::walk;

/// How often a page is read again that may just be being written, and the pause before it.
const REREADS_MAX: usize = 8;
const REREAD_PAUSE: Duration = Duration::from_millis(5);

/// Files without which there is no cluster: they never vanish from a running one.
const NEVER_VANISH: [&[u8]; 2] = [layout::PG_VERSION.as_bytes(), layout::PG_CONTROL.as_bytes()];

/// Where the bytes of a file come from.
pub(crate) enum ReadFrom {
    /// The file itself.
    File(File),
    /// A copy of the file as it was at one instant; a page that looks torn in it is read again from the file.
    Snapshot {
        /// The copy.
        copy: File,
        /// What it is of.
        file: File,
    },
    /// A file that only the backup has.
    Note(Bytes),
    /// It vanished since its beginning was read: the rest of it is zeros.
    Gone,
}

/// A file that is being read.
pub(crate) struct FileReading {
    from: ReadFrom,
    /// The next byte to be read.
    pub offset: u64,
    /// The length that it has in the set.
    pub len: u64,
    /// CRC-32C of what was read.
    pub crc32c: u32,
    pages: Option<Pages>,
}

/// What came of the pages of a piece.
#[derive(Debug, Default)]
pub(crate) struct ReadPages {
    /// Places of pages in the file that stayed bad.
    pub bad: Vec<u32>,
    /// Whether a page was read again and is another one than it was.
    pub is_mended: bool,
}

impl FileReading {
    /// Reads this from an offset on, of a file of so many bytes; `crc32c` is that of what lies before.
    pub(crate) const fn new(
        from: ReadFrom,
        (offset, crc32c, len): (u64, u32, u64),
        pages: Option<Pages>,
    ) -> FileReading {
        FileReading {
            from,
            offset,
            len,
            crc32c,
            pages,
        }
    }

    /// Whether all of it was read.
    pub(crate) const fn is_at_end(&self) -> bool {
        self.offset == self.len
    }

    /// How much of it to read so that `room` is not exceeded and no page is cut, and whether that is less than
    /// would fit. Nothing where no page fits.
    pub(crate) fn whole_pages(&self, room: usize) -> (usize, bool) {
        let left = usize::try_from(self.len - self.offset).unwrap_or(usize::MAX);
        let want = left.min(room);
        if self.pages.is_none() || want == left {
            return (want, false);
        }
        // Behind a page, counted from the file's beginning.
        let page_bytes = PAGE_BYTES as u64;
        let end = (self.offset + want as u64) / page_bytes * page_bytes;
        let want = usize::try_from(end.saturating_sub(self.offset)).unwrap_or(0);
        (want, true)
    }

    /// Appends the next `want` bytes. `start` is where the backup began: what is newer on a page, WAL writes again.
    pub(crate) fn read(
        &mut self,
        want: usize,
        buffer: &mut Vec<u8>,
        start: Lsn,
    ) -> io::Result<ReadPages> {
        let begin = buffer.len();
        let found = read_at(&self.from, self.offset, want, buffer)?;
        let pages = match self.pages {
            Some(pages) => self.check_pages(pages, &mut buffer[begin..begin + found], start)?,
            None => ReadPages::default(),
        };
        // It was truncated since its length was noted; WAL says so too.
        buffer.resize(begin + want, 0);
        self.crc32c = crc32c::crc32c_append(self.crc32c, &buffer[begin..]);
        self.offset += want as u64;
        Ok(pages)
    }

    fn check_pages(&self, pages: Pages, bytes: &mut [u8], start: Lsn) -> io::Result<ReadPages> {
        let mut found = ReadPages::default();
        let first = self.offset / PAGE_BYTES as u64;
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
                if self.from.read_again(offset, &mut fresh)? < PAGE_BYTES {
                    // Truncated meanwhile.
                    break;
                }
                found.is_mended |= *page != fresh[..];
                page.copy_from_slice(&fresh);
                rereads += 1;
            }
            if pages.judge(page, index, start) == PageState::Bad {
                found.bad.push(index);
            }
        }
        Ok(found)
    }
}

impl ReadFrom {
    fn read_again(&self, offset: u64, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self {
            ReadFrom::Snapshot { file, .. } => read_file(file, offset, PAGE_BYTES, buffer),
            other => read_at(other, offset, PAGE_BYTES, buffer),
        }
    }
}

/// Opens a file; `None` when it is gone, as a relation may be that was dropped.
pub(crate) fn open(
    roots: &Roots,
    item: &Item,
    listed: &walk::File,
) -> Result<Option<(File, Metadata)>> {
    let opened = roots.open_file(listed);
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
        Err(error) => Err(failed(item, error)),
    }
}

/// The failure to read a thing of the backup.
pub(crate) fn failed(item: &Item, error: io::Error) -> CommandError {
    let path = item.path().unwrap_or(&item.target);
    CommandError::retry(format!("read {path} of the data directory"))
        .because(error)
        .hint("this backup was removed; check the disk below the data directory and the file permissions")
}

/// Appends what there is at an offset, at most `want` bytes, into memory that nobody filled with
/// zeros first; returns how many there were.
fn read_at(from: &ReadFrom, offset: u64, want: usize, buffer: &mut Vec<u8>) -> io::Result<usize> {
    match from {
        ReadFrom::Gone => Ok(0),
        ReadFrom::Note(note) => {
            let begin = buffer.len();
            let from = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(note.len());
            buffer.extend(note[from..].iter().take(want));
            Ok(buffer.len() - begin)
        }
        ReadFrom::File(file) | ReadFrom::Snapshot { copy: file, .. } => {
            read_file(file, offset, want, buffer)
        }
    }
}

fn read_file(file: &File, offset: u64, want: usize, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let begin = buffer.len();
    buffer.reserve(want);
    while buffer.len() < begin + want {
        let at = offset + (buffer.len() - begin) as u64;
        // The spare room may be larger than what is wanted.
        if retry_on_intr(|| pread(file, spare_capacity(buffer), at))? == 0 {
            break;
        }
    }
    buffer.truncate(begin + want);
    Ok(buffer.len() - begin)
}
