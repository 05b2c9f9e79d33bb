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
