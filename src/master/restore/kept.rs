//! Pages that wait in a file of the new directory until the old one may be touched.
//! Never counts after a kill: whoever types the restore again fetches anew. Invariant: they are of one file after the
//! other, in the order in which those were asked for.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{IoContext, Kind, Result};
use crate::files;

/// The name of the file.
const NAME: &str = "walmgr.pages";

/// What a run of pages begins with: the number of its file, where it belongs, how long it is.
const HEAD_BYTES: usize = 4 + 8 + 4;

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

    /// For whoever goes through all of it.
    pub(super) fn files(&self) -> Result<KeptFiles<'_>> {
        let end = self.file.metadata().map(|found| found.len());
        Ok(KeptFiles {
            kept: self,
            end: end.at(Kind::Retry, "examine", &self.path)?,
            next: 0,
        })
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
        for bytes in bytes.chunks(RUN_BYTES_MAX) {
            let mut run = Vec::with_capacity(HEAD_BYTES + bytes.len());
            run.extend_from_slice(&number.to_le_bytes());
            run.extend_from_slice(&offset.to_le_bytes());
            run.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(0).to_le_bytes());
            run.extend_from_slice(bytes);
            self.file.write_all_at(&run, self.end)?;
            self.end += run.len() as u64;
        }
        Ok(())
    }
}

/// The files of which pages are kept, one after the other.
pub(super) struct KeptFiles<'a> {
    kept: &'a KeptPages,
    end: u64,
    next: u64,
}

/// Pages of one file.
pub(super) struct ChangedFile<'a> {
    kept: &'a File,
    /// Where each run belongs, by that, with its length and its place in the kept file.
    runs: Vec<(u64, usize, u64)>,
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

    fn runs_of(&mut self, number: usize) -> io::Result<Vec<(u64, usize, u64)>> {
        let mut runs = Vec::new();
        while self.next < self.end {
            let mut head = [0; HEAD_BYTES];
            self.kept.file.read_exact_at(&mut head, self.next)?;
            let [a, b, c, d, offset @ .., e, f, g, h] = head;
            let found = u32::from_le_bytes([a, b, c, d]);
            let len = u32::from_le_bytes([e, f, g, h]) as usize;
            if len > RUN_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if usize::try_from(found) != Ok(number) {
                break;
            }
            let at = self.next + HEAD_BYTES as u64;
            runs.push((u64::from_le_bytes(offset), len, at));
            self.next = at + len as u64;
        }
        runs.sort_by_key(|(offset, ..)| *offset);
        Ok(runs)
    }
}

impl ChangedFile<'_> {
    /// Puts the pages into a piece of the file that lies at this offset.
    pub(super) fn overlay(&self, piece: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + piece.len() as u64;
        let first = (self.runs).partition_point(|(at, ..)| *at + (RUN_BYTES_MAX as u64) <= offset);
        for (at, len, kept_at) in &self.runs[first..] {
            if *at >= end {
                break;
            }
            let (from, to) = (offset.max(*at), end.min(at + *len as u64));
            if from < to {
                let [begin, stop] = [from, to].map(|it| usize::try_from(it - offset).unwrap_or(0));
                let kept_at = kept_at + (from - at);
                self.kept.read_exact_at(&mut piece[begin..stop], kept_at)?;
            }
        }
        Ok(())
    }

    /// Writes the pages into the file.
    pub(super) fn write_into(&self, file: &File) -> io::Result<()> {
        let mut piece = Vec::new();
        for (at, len, kept_at) in &self.runs {
            piece.resize(*len, 0);
            self.kept.read_exact_at(&mut piece, *kept_at)?;
            file.write_all_at(&piece, *at)?;
        }
        Ok(())
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
        let mut writer = kept.writer().unwrap();
        writer.keep(7, 0, &[3; 9]).unwrap();
        let mut files = kept.files().unwrap();
        assert!(files.of(2).unwrap().runs.is_empty());
        let changed = files.of(3).unwrap();
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
        kept.remove().unwrap();
    }
}
