//! Pages of a set's files for a master that has files which are nearly the same, as a tar stream.
//! Never changes a set and never follows a link in one. Invariant: what is asked for is sent in the order in which it was
//! asked for, and a page is left out only if its digest is the one that was sent.
//!
//! A window of a file is compared, by several threads, and then what differs in it is read again and sent.

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use walmgr_protocol::message::fetch::WantedPages;
use walmgr_protocol::names::RelativePath;

use super::error::SetError;
use super::list::HeldSet;
use super::slices::from_offset;
use super::stream::Streamed;
use crate::files::slices::{PartDigest, SLICE_BYTES, in_slices};
use crate::pg::hashed_pages::each_piece;
use crate::pg::old_files::{BLOCK_BYTES, ChangedBlocks, PIECE_BYTES};
use crate::tar::writer;

/// How much of a file is compared before what differs in it is sent: slices for every thread, and no more than is still in
/// memory when its pages are read again.
const WINDOW_BYTES: u64 = 4 * SLICE_BYTES;

/// Takes what is sent; `false` when it has seen enough.
type Each<'a> = &'a mut dyn FnMut(&[u8]) -> bool;

impl HeldSet {
    /// Hands the wanted pages of its files on to `each`; ends when that has seen enough.
    pub fn pages(&self, wanted: &[WantedPages], each: Each<'_>) -> Result<Streamed, SetError> {
        let mut buffer = vec![0; PIECE_BYTES];
        for wanted in wanted {
            if !self.pages_of(wanted, &mut buffer, each)? {
                return Ok(Streamed::Stopped);
            }
        }
        Ok(match each(&writer::END) {
            true => Streamed::Whole,
            false => Streamed::Stopped,
        })
    }

    fn pages_of(
        &self,
        wanted: &WantedPages,
        buffer: &mut [u8],
        each: Each<'_>,
    ) -> Result<bool, SetError> {
        let path = Path::new(OsStr::from_bytes(wanted.path.as_bytes()));
        let root = self.directory().try_clone_to_owned();
        let opened = root.and_then(|root| self.sets.open_below(&root, &wanted.path));
        let (file, _) = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SetError::Manifest {
                path: wanted.path.clone(),
                why: "the manifest lists it, and it is missing".to_owned(),
            },
            _ => self.failure("open", path, error),
        })?;
        let known_bytes = (wanted.digests.len() as u64).saturating_mul(BLOCK_BYTES as u64);
        let known_end = wanted.offset.saturating_add(known_bytes.min(wanted.len));
        let mut offset = wanted.offset;
        while offset < known_end {
            let window = offset..known_end.min(offset + WINDOW_BYTES);
            let changed = self.changed((file.as_fd(), path), wanted, window.clone())?;
            for (at, len) in changed.runs(window.end - offset) {
                let piece = &mut buffer[..len];
                let read_bytes = self.read_piece(file.as_fd(), piece, offset + at, path)?;
                if !send(&wanted.path, offset + at, &piece[..read_bytes], each) {
                    return Ok(false);
                }
            }
            offset = window.end;
        }
        // What is behind the last digest is all new.
        let end = wanted.offset.saturating_add(wanted.len);
        while offset < end {
            let most = usize::try_from(end - offset).unwrap_or(PIECE_BYTES);
            let piece = &mut buffer[..most.min(PIECE_BYTES)];
            let read_bytes = self.read_piece(file.as_fd(), piece, offset, path)?;
            if !send(&wanted.path, offset, &piece[..read_bytes], each) {
                return Ok(false);
            }
            if read_bytes < piece.len() {
                break;
            }
            offset += read_bytes as u64;
        }
        Ok(true)
    }

    /// Which blocks of a part of a file are not what the digests say, counted from its beginning.
    fn changed(
        &self,
        (file, shown): (BorrowedFd<'_>, &Path),
        wanted: &WantedPages,
        window: Range<u64>,
    ) -> Result<ChangedBlocks, SetError> {
        let slices = in_slices(window.end - window.start, |slice| {
            let (mut changed, mut whole) = (ChangedBlocks::default(), PartDigest::default());
            let start = window.start + slice.start;
            let read = |piece: &mut [u8], offset| self.read_piece(file, piece, offset, shown);
            each_piece(
                file,
                start..window.start + slice.end,
                read,
                |piece, offset| {
                    let digests = from_offset(&wanted.digests, offset - wanted.offset);
                    changed.compare_digests(offset - start, digests, piece, &mut whole);
                    Ok::<_, SetError>(())
                },
            )?;
            Ok::<_, SetError>(changed)
        })?;
        let mut changed = ChangedBlocks::default();
        for (number, slice) in (0..).zip(&slices) {
            changed.append(number * SLICE_BYTES, slice);
        }
        Ok(changed)
    }
}

/// Hands pages of a file that lie at this offset on; `false` when enough was seen.
fn send(path: &RelativePath, offset: u64, pages: &[u8], each: Each<'_>) -> bool {
    if pages.is_empty() {
        return true;
    }
    let mut header = Vec::new();
    writer::put_file(&mut header, path.as_bytes(), pages.len() as u64, offset);
    let padding = writer::padding(pages.len() as u64);
    each(&header) && each(pages) && each(&[0; writer::BLOCK_BYTES][..padding])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::testing::{held_sample, sample_files};
    use super::*;
    use crate::pg::old_files::{block_digest, may_be_taken};
    use crate::store::testing::scratch_folder;
    use crate::tar::{EntryKind, TarReader, TarStep};

    /// What belongs where.
    type Runs = BTreeMap<(String, u64), Vec<u8>>;

    /// What a stream holds, and its directories.
    fn taken_apart(stream: &[u8]) -> (Runs, Vec<String>) {
        let (mut reader, mut rest) = (TarReader::default(), stream);
        let (mut runs, mut folders) = (BTreeMap::new(), Vec::new());
        let mut last = (String::new(), 0);
        loop {
            match reader.next(&mut rest).unwrap() {
                TarStep::Entry(entry) => match entry.kind {
                    EntryKind::Directory => folders.push(entry.path.to_string()),
                    EntryKind::Patch { .. } => panic!("a set has no patches"),
                    EntryKind::File { offset, .. } => {
                        last = (entry.path.to_string(), offset);
                        runs.insert(last.clone(), Vec::new());
                    }
                },
                TarStep::Data(data) => runs.get_mut(&last).unwrap().extend_from_slice(data),
                TarStep::FileEnd => {}
                TarStep::NeedMore => break,
            }
        }
        reader.finish().unwrap();
        (runs, folders)
    }

    #[test]
    fn an_outline_and_the_files_that_may_be_taken_are_all_of_a_set() {
        let folder = scratch_folder();
        let set = held_sample(folder.path());
        let mut outline = Vec::new();
        let ended = set.outline(0, &mut |bytes| {
            outline.extend_from_slice(bytes);
            true
        });
        assert_eq!(ended.unwrap(), Streamed::Whole);
        let (runs, folders) = taken_apart(&outline);
        for expected in ["base/1", "pg_wal", "tmpspc/16385/PG_15_202209061/5"] {
            assert!(folders.iter().any(|found| found == expected), "{folders:?}");
        }
        for (name, content) in sample_files(1) {
            let path: RelativePath = name.parse().unwrap();
            let found = runs.get(&(name.clone(), 0));
            assert_eq!(found.is_none(), may_be_taken(&path), "{name}");
            assert!(found.is_none_or(|found| *found == content), "{name}");
        }
        // It goes on at any offset, as the whole stream does.
        for from in (0..outline.len()).step_by(701) {
            let mut rest = Vec::new();
            let ended = set.outline(from as u64, &mut |bytes| {
                rest.extend_from_slice(bytes);
                true
            });
            assert_eq!(ended.unwrap(), Streamed::Whole);
            assert!(rest == outline[from..], "{from}");
        }
    }

    #[test]
    fn fault_227_pages_come_unless_their_digest_is_the_one_that_was_sent() {
        let folder = scratch_folder();
        let set = held_sample(folder.path());
        let content: Vec<u8> = (0..=250).flat_map(|at| [at; 11_953]).collect();
        std::fs::write(set.path().join("base/1/1259"), &content).unwrap();
        let path: RelativePath = "base/1/1259".parse().unwrap();
        for (offset, len, known, wrong) in [
            (0, u64::MAX, 400, vec![0, 1, 127, 128, 300, 366]),
            (8192 * 5, 8192 * 7 + 1, 3, vec![2]),
            (0, u64::MAX, 0, vec![]),
            (8192 * 400, u64::MAX, 0, vec![]),
        ] {
            let from = usize::try_from(offset).unwrap().min(content.len());
            let mut digests: Vec<u64> = content[from..]
                .chunks(BLOCK_BYTES)
                .take(known)
                .map(block_digest)
                .collect();
            wrong.iter().for_each(|at: &usize| digests[*at] ^= 1 << 40);
            let wanted = WantedPages {
                path: path.clone(),
                offset,
                len,
                digests: digests.clone(),
            };
            let mut stream = Vec::new();
            let ended = set.pages(&[wanted.clone(), wanted], &mut |bytes| {
                stream.extend_from_slice(bytes);
                true
            });
            assert_eq!(ended.unwrap(), Streamed::Whole);
            let (runs, _) = taken_apart(&stream);
            let to = content
                .len()
                .min(from.saturating_add(usize::try_from(len).unwrap_or(usize::MAX)));
            let mut came = vec![false; to.saturating_sub(from).div_ceil(BLOCK_BYTES)];
            for ((_, at), bytes) in &runs {
                let at = usize::try_from(*at).unwrap();
                assert!(content[at..at + bytes.len()] == bytes[..], "{at}");
                let first = (at - from) / BLOCK_BYTES;
                came[first..first + bytes.len().div_ceil(BLOCK_BYTES)].fill(true);
            }
            for (page, came) in came.iter().enumerate() {
                assert_eq!(
                    *came,
                    page >= digests.len() || wrong.contains(&page),
                    "{page}"
                );
            }
        }
        let gone = WantedPages {
            path: "base/1/gone".parse().unwrap(),
            offset: 0,
            len: 1,
            digests: Vec::new(),
        };
        let error = set.pages(&[gone], &mut |_| true).unwrap_err().to_string();
        assert!(error.contains("base/1/gone"), "{error}");
    }

    #[test]
    fn fault_290_of_a_long_file_just_the_pages_that_differ_come() {
        let folder = scratch_folder();
        let set = held_sample(folder.path());
        let window = usize::try_from(WINDOW_BYTES).unwrap();
        let slice = usize::try_from(SLICE_BYTES).unwrap();
        let mut content = vec![0; window + slice + BLOCK_BYTES + 100];
        (content.chunks_mut(BLOCK_BYTES).zip(1_u32..))
            .for_each(|(page, number)| page[..4].copy_from_slice(&number.to_le_bytes()));
        std::fs::write(set.path().join("base/1/1259"), &content).unwrap();
        // It does not begin where a slice does.
        let offset = 3 * BLOCK_BYTES;
        let mut digests: Vec<u64> = content[offset..]
            .chunks(BLOCK_BYTES)
            .map(block_digest)
            .collect();
        let last = content.len() - 100;
        let wrong = [
            offset,
            offset + slice - BLOCK_BYTES,
            offset + slice,
            offset + window - BLOCK_BYTES,
            offset + window,
            last,
        ];
        for at in wrong {
            digests[(at - offset) / BLOCK_BYTES] ^= 1;
        }
        let wanted = WantedPages {
            path: "base/1/1259".parse().unwrap(),
            offset: offset as u64,
            len: (content.len() - offset) as u64,
            digests,
        };
        let mut stream = Vec::new();
        let ended = set.pages(&[wanted], &mut |bytes| {
            stream.extend_from_slice(bytes);
            true
        });
        assert_eq!(ended.unwrap(), Streamed::Whole);
        let mut came = Vec::new();
        for ((_, at), bytes) in taken_apart(&stream).0 {
            let at = usize::try_from(at).unwrap();
            assert!(content[at..at + bytes.len()] == bytes[..], "{at}");
            came.extend((at..at + bytes.len()).step_by(BLOCK_BYTES));
        }
        assert_eq!(came, wrong);
    }
}
