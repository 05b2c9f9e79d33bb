//! Pages that wait in a file of the new directory until the old one may be touched.
//! Never counts after a kill: whoever types the restore again fetches anew. Invariant: they are of one file after the
//! other, in the order in which those were asked for.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{IoContext, Kind, Result};
use crate::files;
use crate::pg::old_files::OldFile;

/// The name of the file.
const NAME: &str = "walmgr.pages";

/// What a run of pages begins with: the number of its file, where it belongs, how long it is, its CRC-32C. They are
/// checked with their file and written later: the disk may have lost some of them in between.
const HEAD_BYTES: usize = 4 + 8 + 4 + 4;

/// Longest run: what one block of the wire holds.
const RUN_BYTES_MAX: usize = 1 << 20;

/// The file.
pub(super) struct KeptPages {
    path: PathBuf,
    file: File,
}

impl KeptPages {
    /// Makes it in a directory that has none.
    pub(super) fn create(directory: &Path) -> Result<KeptPages> {
        let path = directory.join(NAME);
        let mut options = File::options();
        let opened = options.read(true).write(true).create_new(true).open(&path);
        let file = opened.at(Kind::Retry, "create", &path)?;
        Ok(KeptPages { path, file })
    }

    /// For whoever appends: there is one at a time, and each goes on where the one before ended.
    pub(super) fn writer(&self) -> Result<PageKeeper> {
        let file = self.file.try_clone();
        let end = self.file.metadata().map(|found| found.len());
        Ok(PageKeeper {
            file: file.at(Kind::Retry, "open", &self.path)?,
            end: end.at(Kind::Retry, "examine", &self.path)?,
        })
    }

    /// For whoever goes through all of it, while more is appended or behind that.
    pub(super) const fn files(&self) -> KeptFiles<'_> {
        KeptFiles {
            kept: self,
            next: 0,
        }
    }

    /// Removes it.
    pub(super) fn remove(self) -> Result<()> {
        let removed = files::remove(&self.path).map(drop);
        removed.at(Kind::Retry, "remove", &self.path)
    }
}

/// Appends pages.
pub(super) struct PageKeeper {
    file: File,
    end: u64,
}

impl PageKeeper {
    /// Keeps pages of a file that belong at this offset.
    pub(super) fn keep(&mut self, number: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut offset = offset;
        for bytes in bytes.chunks(RUN_BYTES_MAX) {
            let mut run = Vec::with_capacity(HEAD_BYTES + bytes.len());
            run.extend_from_slice(&number.to_le_bytes());
            run.extend_from_slice(&offset.to_le_bytes());
            run.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(0).to_le_bytes());
            run.extend_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
            run.extend_from_slice(bytes);
            self.file.write_all_at(&run, self.end)?;
            self.end += run.len() as u64;
            offset += bytes.len() as u64;
        }
        Ok(())
    }
}

/// The files of which pages are kept, one after the other.
pub(super) struct KeptFiles<'a> {
    kept: &'a KeptPages,
    next: u64,
}

/// Pages of one file.
pub(super) struct ChangedFile<'a> {
    kept: &'a File,
    /// By where they belong.
    runs: Vec<KeptRun>,
}

/// Pages that belong beside each other.
struct KeptRun {
    /// Where they belong.
    at: u64,
    len: usize,
    /// Where they are kept.
    kept_at: u64,
    crc32c: u32,
}

impl<'a> KeptFiles<'a> {
    /// The pages of the file with this number, which is behind all that were asked for before.
    pub(super) fn of(&mut self, number: usize) -> Result<ChangedFile<'a>> {
        let runs = self.runs_of(number);
        Ok(ChangedFile {
            kept: &self.kept.file,
            runs: runs.at(Kind::Retry, "read", &self.kept.path)?,
        })
    }

    fn runs_of(&mut self, number: usize) -> io::Result<Vec<KeptRun>> {
        let (mut runs, end) = (Vec::new(), self.kept.file.metadata()?.len());
        while self.next < end {
            let mut head = [0; HEAD_BYTES];
            self.kept.file.read_exact_at(&mut head, self.next)?;
            let [a, b, c, d, offset @ .., e, f, g, h, i, j, k, l] = head;
            let found = u32::from_le_bytes([a, b, c, d]);
            let len = u32::from_le_bytes([e, f, g, h]) as usize;
            if len > RUN_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if usize::try_from(found) != Ok(number) {
                break;
            }
            let kept_at = self.next + HEAD_BYTES as u64;
            runs.push(KeptRun {
                at: u64::from_le_bytes(offset),
                len,
                kept_at,
                crc32c: u32::from_le_bytes([i, j, k, l]),
            });
            self.next = kept_at + len as u64;
        }
        runs.sort_by_key(|run| run.at);
        Ok(runs)
    }
}

impl ChangedFile<'_> {
    /// Where pages are kept of it, by where that begins.
    pub(super) fn ranges(&self) -> Vec<Range<u64>> {
        let ranges = self.runs.iter();
        ranges.map(KeptRun::range).collect()
    }

    /// Reads what the file will be, which is to have this length: the old one with the pages over it.
    pub(super) fn read_over(
        &self,
        old: &OldFile,
        len: u64,
        piece: &mut [u8],
        offset: u64,
    ) -> io::Result<usize> {
        let found = old.read(piece, offset)?;
        let left = usize::try_from(len.saturating_sub(offset));
        let len = left.map_or(piece.len(), |left| left.min(piece.len()));
        piece[found.min(len)..len].fill(0);
        self.overlay(&mut piece[..len], offset)?;
        Ok(len)
    }

    /// Puts the pages into a piece of the file that lies at this offset.
    fn overlay(&self, piece: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + piece.len() as u64;
        let first = (self.runs).partition_point(|run| run.at + (RUN_BYTES_MAX as u64) <= offset);
        for run in &self.runs[first..] {
            if run.at >= end {
                break;
            }
            let (from, to) = (offset.max(run.at), end.min(run.range().end));
            if from < to {
                let [begin, stop] = [from, to].map(|it| usize::try_from(it - offset).unwrap_or(0));
                let kept_at = run.kept_at + (from - run.at);
                self.kept.read_exact_at(&mut piece[begin..stop], kept_at)?;
            }
        }
        Ok(())
    }

    /// Writes the pages into the file, if they are what was kept.
    pub(super) fn write_into(&self, file: &File) -> io::Result<()> {
        let mut piece = Vec::new();
        for run in &self.runs {
            piece.resize(run.len, 0);
            self.kept.read_exact_at(&mut piece, run.kept_at)?;
            if crc32c::crc32c(&piece) != run.crc32c {
                let what = "what was kept for it is damaged; restore again";
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            file.write_all_at(&piece, run.at)?;
        }
        Ok(())
    }
}

impl KeptRun {
    const fn range(&self) -> Range<u64> {
        self.at..self.at + self.len as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_each_file_come_back_where_they_belong() {
        let folder = tempfile::tempdir().unwrap();
        let kept = KeptPages::create(folder.path()).unwrap();
        let mut writer = kept.writer().unwrap();
        writer.keep(3, 8192, &[1; 8192]).unwrap();
        writer.keep(3, 32_768, &[2; 100]).unwrap();
        let mut files = kept.files();
        assert!(files.of(2).unwrap().runs.is_empty());
        let changed = files.of(3).unwrap();
        // What is appended later is there for whoever has begun.
        let mut writer = kept.writer().unwrap();
        writer.keep(7, 0, &[3; 9]).unwrap();
        assert_eq!(changed.ranges(), [8192..16_384, 32_768..32_868]);
        for offset in [0, 8192, 12_000, 32_700] {
            let mut piece = vec![0; 30_000];
            changed.overlay(&mut piece, offset).unwrap();
            for (at, byte) in (offset..).zip(&piece) {
                let expected = match at {
                    8192..16_384 => 1,
                    32_768..32_868 => 2,
                    _ => 0,
                };
                assert_eq!(*byte, expected, "{at} from {offset}");
            }
        }
        let path = folder.path().join("file");
        std::fs::write(&path, [9; 20]).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        files.of(7).unwrap().write_into(&file).unwrap();
        let found = std::fs::read(&path).unwrap();
        assert_eq!(found, [&[3; 9][..], &[9; 11]].concat());
        // It is not what was kept by now.
        let mut other = std::fs::read(&kept.path).unwrap();
        *other.last_mut().unwrap() ^= 1;
        std::fs::write(&kept.path, other).unwrap();
        let mut files = kept.files();
        files.of(3).unwrap().write_into(&file).unwrap();
        let damaged = files.of(7).unwrap().write_into(&file).unwrap_err();
        assert_eq!(damaged.kind(), io::ErrorKind::InvalidData);
        kept.remove().unwrap();
    }
}
