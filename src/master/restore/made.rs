//! What a file of the new directory is, or will be, that is made of old pages and of new ones, compared with the manifest.
//! Never believes a page that came before it was read where it lies. Invariant: the checksum is of what the file holds, of
//! which nobody else writes; an old page counts as what it was when it was compared.

use std::io;
use std::ops::Range;

use walmgr_protocol::names::RelativePath;
use walmgr_protocol::patch::PAGE_BYTES;

use super::tree::{failed, refused};
use crate::error::Result;
use crate::files::slices::{PartDigest, in_slices};
use crate::pg::hashed_pages::{HASHED_BYTES, HashedPages};
use crate::pg::manifest::{Checksum, FileEntry, ListedDigest};
use crate::pg::old_files::{WHOLE_BLOCKS, crc32c_of};

/// A file of the set that an old directory may have.
pub(super) struct SetFile {
    /// Its path in the set.
    pub path: RelativePath,
    pub entry: FileEntry,
}

/// The old pages of such a file, as they were read of it.
#[derive(Default)]
pub(super) struct MadePages {
    /// Until they are asked for.
    digests: Vec<u64>,
    /// Of those that are whole.
    crc32c: Vec<u32>,
}

impl MadePages {
    /// Those that were read.
    pub(super) fn of(found: HashedPages) -> MadePages {
        let whole = found.digest.len / PAGE_BYTES;
        let whole = usize::try_from(whole).unwrap_or(usize::MAX);
        let digests = found.digests;
        MadePages {
            crc32c: (digests.iter().take(whole).map(|it| crc32c_of(*it))).collect(),
            digests,
        }
    }

    /// What it has, for whoever asks for the rest.
    pub(super) fn take_digests(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.digests)
    }

    /// Refuses a file that is not what the manifest lists, now that these runs of it came; its CRC-32C. `read` reads the file
    /// as it is or will be.
    pub(super) fn check(
        &self,
        file: &SetFile,
        written: &[Range<u64>],
        buffer: &mut [u8],
        read: impl Fn(&mut [u8], u64) -> io::Result<usize> + Sync,
    ) -> Result<u32> {
        match file.entry.checksum {
            Some(Checksum::Crc32c(listed)) if !self.crc32c.is_empty() => {
                let found = self.digest(file.entry.size, written, &read);
                let found = found.map_err(|error| failed("read", &file.path, error))?;
                let agrees = (found.len, found.crc32c) == (file.entry.size, listed);
                agreed(file, agrees, found.crc32c)
            }
            _ => check(file, buffer, read),
        }
    }

    /// The checksum of a file of this length. What was written is read, and what was not read before.
    fn digest(
        &self,
        len: u64,
        written: &[Range<u64>],
        read: impl Fn(&mut [u8], u64) -> io::Result<usize>,
    ) -> io::Result<PartDigest> {
        let mut found = PartDigest::default();
        let (mut buffer, mut written) = (vec![0; HASHED_BYTES], written.iter().peekable());
        while found.len < len {
            let offset = found.len;
            while written.next_if(|run| run.end <= offset).is_some() {}
            let page = usize::try_from(offset / PAGE_BYTES).unwrap_or(usize::MAX);
            let known = (self.crc32c.get(page)).filter(|_| {
                let end = offset + PAGE_BYTES;
                end <= len && written.peek().is_none_or(|run| run.start >= end)
            });
            if let Some(crc32c) = known {
                WHOLE_BLOCKS.append(&mut found, *crc32c);
                continue;
            }
            // To the end of the run, and behind the last old page to the end of the file.
            let stop = match written.peek() {
                Some(run) if page < self.crc32c.len() => run.end.next_multiple_of(PAGE_BYTES),
                _ => len,
            };
            let left = usize::try_from(stop.min(len) - offset).unwrap_or(HASHED_BYTES);
            let piece = &mut buffer[..left.min(HASHED_BYTES)];
            let read_bytes = read(piece, offset)?;
            found.update(&piece[..read_bytes]);
            if read_bytes < piece.len() {
                break;
            }
        }
        Ok(found)
    }
}

/// Reads what a file is or will be, and refuses it if it is not what the manifest lists; its CRC-32C.
fn check(
    file: &SetFile,
    buffer: &mut [u8],
    read: impl Fn(&mut [u8], u64) -> io::Result<usize> + Sync,
) -> Result<u32> {
    let (path, entry) = (&file.path, &file.entry);
    let failed = |error| failed("read", path, error);
    let (agrees, crc32c) = match entry.checksum {
        Some(Checksum::Crc32c(listed)) => {
            let found = check_slices(entry.size, &read).map_err(failed)?;
            (
                found.len == entry.size && found.crc32c == listed,
                found.crc32c,
            )
        }
        _ => {
            let mut digest = ListedDigest::begin(entry.checksum.as_ref());
            loop {
                let read_bytes = read(buffer, digest.len()).map_err(failed)?;
                digest.update(&buffer[..read_bytes]);
                if read_bytes < buffer.len() {
                    break;
                }
            }
            let crc32c = digest.crc32c();
            (digest.agrees(entry) != Some(false), crc32c)
        }
    };
    agreed(file, agrees, crc32c)
}

fn agreed(file: &SetFile, agrees: bool, crc32c: u32) -> Result<u32> {
    match agrees {
        true => Ok(crc32c),
        false => Err(refused(
            &file.path,
            "its length or checksum is not the manifest's",
        )),
    }
}

/// The length and checksum of what is read up to this length.
fn check_slices(
    len: u64,
    read: &(impl Fn(&mut [u8], u64) -> io::Result<usize> + Sync),
) -> io::Result<PartDigest> {
    let slices = in_slices(len, |slice| {
        let (mut buffer, mut found) = (vec![0; HASHED_BYTES], PartDigest::default());
        for offset in slice.clone().step_by(HASHED_BYTES) {
            let left = usize::try_from(slice.end - offset).unwrap_or(HASHED_BYTES);
            let piece = &mut buffer[..left.min(HASHED_BYTES)];
            let read_bytes = read(piece, offset)?;
            found.update(&piece[..read_bytes]);
        }
        Ok::<_, io::Error>(found)
    })?;
    let mut all = PartDigest::default();
    slices.into_iter().for_each(|found| all.append(found));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use crate::error::CommandError;
    use crate::files::slices::SLICE_BYTES;
    use crate::pg::old_files::{BLOCK_BYTES, OldFiles, block_digest, read_full};

    use super::super::kept::KeptPages;
    use super::*;

    #[test]
    fn fault_240_a_long_old_file_has_the_digests_that_one_reading_finds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("old");
        let len = usize::try_from(2 * SLICE_BYTES).unwrap() + 5 * BLOCK_BYTES + 17;
        let numbers = (0_u32..).map(|at| u8::try_from(at.wrapping_mul(at) % 253).unwrap());
        let content: Vec<u8> = numbers.take(len).collect();
        std::fs::write(&path, &content).unwrap();
        let (old, new) = (File::open(&path).unwrap(), tempfile::tempfile().unwrap());
        let found = HashedPages::of(old.as_fd(), len as u64, |piece, offset| {
            new.write_all_at(piece, offset)
                .map_err(|error| CommandError::retry("write").because(error))
        });
        let found = found.unwrap();
        let digests: Vec<u64> = content.chunks(BLOCK_BYTES).map(block_digest).collect();
        assert!(found.digests == digests);
        assert_eq!(found.digest.len, len as u64);
        assert_eq!(found.digest.crc32c, crc32c::crc32c(&content));
        let mut copied = vec![0; len];
        new.read_exact_at(&mut copied, 0).unwrap();
        assert!(copied == content);
        let read = |piece: &mut [u8], offset| read_full(new.as_fd(), piece, offset);
        assert_eq!(check_slices(len as u64, &read).unwrap(), found.digest);
        // Nothing counts behind what cannot be read.
        let longer = HashedPages::of(old.as_fd(), 4 * SLICE_BYTES, |_, _| {
            Ok::<_, CommandError>(())
        })
        .unwrap();
        assert_eq!(longer.digest, found.digest);
    }

    #[test]
    fn fault_276_of_a_made_file_what_came_is_read_where_it_lies() {
        let page = |number: usize| vec![u8::try_from(number % 251).unwrap(); BLOCK_BYTES];
        let tail = 1000;
        let mut old: Vec<u8> = (0..100).flat_map(page).collect();
        old.extend(vec![9; tail]);
        for (written, len) in [
            (vec![], old.len()),
            (vec![(0, 1)], old.len()),
            (vec![(3, 5), (40, 41), (99, 100)], old.len()),
            (vec![(0, 100)], old.len() - tail),
            (vec![(10, 11)], 50 * BLOCK_BYTES),
            (vec![(2, 3), (100, 140)], 140 * BLOCK_BYTES),
        ] {
            let (made, mut expected) = (tempfile::tempfile().unwrap(), old.clone());
            made.write_all_at(&old, 0).unwrap();
            made.set_len(len as u64).unwrap();
            expected.resize(len, 0);
            let pages = HashedPages::of(made.as_fd(), old.len().min(len) as u64, |_, _| {
                Ok::<_, CommandError>(())
            });
            let pages = MadePages::of(pages.unwrap());
            let runs: Vec<Range<u64>> = (written.iter())
                .map(|(start, end): &(u64, u64)| start * PAGE_BYTES..end * PAGE_BYTES)
                .collect();
            for run in &runs {
                let place = usize::try_from(run.start).unwrap()..usize::try_from(run.end).unwrap();
                expected[place.clone()].fill(0xA5);
                made.write_all_at(&expected[place], run.start).unwrap();
            }
            let read = |piece: &mut [u8], offset| read_full(made.as_fd(), piece, offset);
            let found = pages.digest(len as u64, &runs, read).unwrap();
            assert_eq!(found.len, len as u64, "{written:?}");
            assert_eq!(found.crc32c, crc32c::crc32c(&expected), "{written:?}");
            // What was lost on the way there is found.
            for run in &runs {
                let mut byte = [0];
                made.read_exact_at(&mut byte, run.start).unwrap();
                made.write_all_at(&[byte[0] ^ 1], run.start).unwrap();
                let found = pages.digest(len as u64, &runs, read).unwrap();
                assert_ne!(found.crc32c, crc32c::crc32c(&expected), "{written:?}");
                made.write_all_at(&byte, run.start).unwrap();
            }
        }
    }

    #[test]
    fn fault_291_what_is_kept_for_an_old_file_is_read_where_it_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("base/1")).unwrap();
        let page = |number: usize| vec![u8::try_from(number % 251).unwrap(); BLOCK_BYTES];
        let old: Vec<u8> = (0..60).flat_map(page).chain(vec![9; 1000]).collect();
        let path: RelativePath = "base/1/1".parse().unwrap();
        std::fs::write(folder.path().join("base/1/1"), &old).unwrap();
        let files = OldFiles::open(folder.path()).unwrap();
        for (number, (written, len)) in (1..).zip([
            (vec![(0, 1)], old.len()),
            (vec![(3, 5), (40, 41), (60, 61)], 61 * BLOCK_BYTES),
            (vec![(10, 11)], 50 * BLOCK_BYTES + 7),
            (vec![(2, 3), (60, 80)], 80 * BLOCK_BYTES),
        ]) {
            let below = folder.path().join(format!("{number}"));
            std::fs::create_dir(&below).unwrap();
            let kept = KeptPages::create(&below).unwrap();
            let (mut keeper, mut expected) = (kept.writer().unwrap(), old.clone());
            expected.resize(len, 0);
            for (start, end) in written {
                let bytes = vec![0xA5; (end - start) * BLOCK_BYTES];
                let offset = start * BLOCK_BYTES;
                expected[offset..end * BLOCK_BYTES].copy_from_slice(&bytes);
                // The connection broke in its middle, and it came again.
                let half = &bytes[..BLOCK_BYTES / 2];
                keeper.keep(number, offset as u64, half).unwrap();
                keeper.keep(number, offset as u64, &bytes).unwrap();
            }
            let checksum = Some(Checksum::Crc32c(crc32c::crc32c(&expected)));
            let entry = FileEntry {
                path: path.clone(),
                size: len as u64,
                last_modified: 0,
                checksum,
            };
            let file = SetFile {
                path: path.clone(),
                entry,
            };
            let check = || {
                let found = files.find(&path).unwrap();
                let end = old.len().min(len) as u64;
                let pages = HashedPages::of(found.handle(), end, |_, _| Ok::<_, CommandError>(()));
                let pages = MadePages::of(pages.unwrap());
                let changed = kept.files().of(usize::try_from(number).unwrap()).unwrap();
                let read =
                    |piece: &mut [u8], offset| changed.read_over(&found, len as u64, piece, offset);
                pages.check(&file, &changed.ranges(), &mut vec![0; 100_000], read)
            };
            assert_eq!(check().unwrap(), crc32c::crc32c(&expected), "{number}");
            let kept_at = below.join("walmgr.pages");
            let mut bytes = std::fs::read(&kept_at).unwrap();
            let last = bytes.len() - 5;
            bytes[last] ^= 1;
            std::fs::write(&kept_at, bytes).unwrap();
            let error = check().unwrap_err().to_string();
            assert!(error.contains("base/1/1"), "{error}");
        }
    }
}
