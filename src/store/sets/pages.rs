//! Pages of a set's files for a master that has files which are nearly the same, as a tar stream.
//! Never changes a set and never follows a link in one. Invariant: what is asked for is sent in the order in which it was
//! asked for, and a page is left out only if its digest is the one that was sent.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use walmgr_protocol::message::fetch::WantedPages;

use super::error::SetError;
use super::list::HeldSet;
use super::stream::Streamed;
use crate::pg::old_files::{BLOCK_BYTES, ChangedBlocks, PIECE_BYTES};
use crate::tar::writer;

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
        let end = wanted.offset.saturating_add(wanted.len);
        let (mut offset, mut digests) = (wanted.offset, &wanted.digests[..]);
        while offset < end {
            let most = usize::try_from(end - offset).unwrap_or(PIECE_BYTES);
            let piece = &mut buffer[..most.min(PIECE_BYTES)];
            let read_bytes = self.read_piece(file.as_fd(), piece, offset, path)?;
            let piece = &piece[..read_bytes];
            let mut changed = ChangedBlocks::default();
            changed.compare_digests(0, digests, piece);
            for (at, len) in changed.runs(read_bytes as u64) {
                let from = usize::try_from(at).unwrap_or_default();
                let mut header = Vec::new();
                writer::put_file(&mut header, wanted.path.as_bytes(), len as u64, offset + at);
                let padding = writer::padding(len as u64);
                let padding = &[0; writer::BLOCK_BYTES][..padding];
                if !(each(&header) && each(&piece[from..from + len]) && each(padding)) {
                    return Ok(false);
                }
            }
            digests = &digests[digests.len().min(PIECE_BYTES / BLOCK_BYTES)..];
            offset += read_bytes as u64;
            if read_bytes < PIECE_BYTES.min(most) {
                break;
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use walmgr_protocol::names::RelativePath;

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
}
