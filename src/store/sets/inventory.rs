//! What a set on its way holds so far, shared by all streams that fill it.
//! Never touches the disk. Invariant: a path is claimed once, by one stream, and a claim that was
//! not finished is not complete.

use std::collections::HashMap;

use walmgr_protocol::limits::{
    MANIFEST_ENTRY_BYTES_MAX, MANIFEST_FRAME_BYTES_MAX, SET_ENTRIES_MAX, SET_PATH_BYTES_MAX,
};
use walmgr_protocol::message::backup::FileDigest;
use walmgr_protocol::names::RelativePath;

use super::error::SetError;

/// What the standby holds of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldFile {
    /// Nothing.
    Absent,
    /// Its beginning: the stream that brought it was cut.
    Partial {
        /// What is there; the length is where it has to go on.
        held: FileDigest,
        /// The length that was announced.
        len: u64,
    },
    /// All of it.
    Complete(FileDigest),
    /// It is a directory, and an entry of its own has come.
    Directory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KnownFile {
    /// `is_declared` once an entry of its own has come.
    Directory {
        is_declared: bool,
    },
    Writing,
    Partial {
        held: FileDigest,
        len: u64,
    },
    Complete(FileDigest),
    /// Complete, and the manifest says the same.
    Confirmed,
}

/// How a claimed file is to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    Create,
    /// From its first byte, over what a cut stream left.
    Restart,
    Continue(FileDigest),
}

/// How long the line of a file can be: its path in hexadecimal digits, or as a string of JSON.
fn manifest_bytes(path: &RelativePath) -> u64 {
    let in_json = |byte: &u8| match byte {
        b'"' | b'\\' => 2,
        // As `\u0000`.
        0..=31 | 127 => 6,
        _ => 1,
    };
    let bytes = path.as_bytes();
    let json: u64 = bytes.iter().map(in_json).sum();
    MANIFEST_ENTRY_BYTES_MAX + json.max(2 * bytes.len() as u64)
}

/// What is held of the files of a set that is being received, by their paths.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    known: HashMap<RelativePath, KnownFile>,
    /// Bytes of all paths.
    path_bytes: usize,
    /// Bytes that the lines of all files can have in a manifest.
    manifest_bytes: u64,
    /// Streams that are open.
    pub(super) streams: usize,
    /// Why nothing more is taken, and whether a full backup would be.
    given_up: Option<(String, bool)>,
}

impl Inventory {
    /// Refuses once anything went wrong.
    pub(super) fn check(&self) -> Result<(), SetError> {
        match &self.given_up {
            None => Ok(()),
            Some((why, needs_full)) => Err(SetError::GivenUp {
                why: why.clone(),
                needs_full: *needs_full,
            }),
        }
    }

    /// Remembers the first failure.
    pub(super) fn give_up(&mut self, error: &SetError) {
        let needs_full = matches!(
            error,
            SetError::ParentUnfit { .. } | SetError::PageDiffers { .. }
        );
        (self.given_up).get_or_insert_with(|| (error.to_string(), needs_full));
    }

    pub(super) fn held(&self, path: &RelativePath) -> HeldFile {
        match self.known.get(path) {
            Some(KnownFile::Complete(digest)) => HeldFile::Complete(*digest),
            Some(KnownFile::Partial { held, len }) => HeldFile::Partial {
                held: *held,
                len: *len,
            },
            Some(KnownFile::Directory { is_declared: true }) => HeldFile::Directory,
            _ => HeldFile::Absent,
        }
    }

    pub(super) fn known(&self, path: &RelativePath) -> Option<KnownFile> {
        self.known.get(path).copied()
    }

    pub(super) fn set(&mut self, path: &RelativePath, known: KnownFile) -> Result<(), SetError> {
        if let Some(entry) = self.known.get_mut(path) {
            *entry = known;
            return Ok(());
        }
        if self.known.len() >= SET_ENTRIES_MAX {
            let limit = SET_ENTRIES_MAX;
            return Err(SetError::TooManyEntries { limit });
        }
        let path_bytes = self.path_bytes + path.as_bytes().len();
        if path_bytes > SET_PATH_BYTES_MAX {
            let limit = SET_PATH_BYTES_MAX;
            return Err(SetError::PathsTooLong { limit });
        }
        self.path_bytes = path_bytes;
        if !matches!(known, KnownFile::Directory { .. }) {
            self.manifest_bytes += manifest_bytes(path);
        }
        self.known.insert(path.clone(), known);
        Ok(())
    }

    /// The longest that a manifest of the files so far can be.
    pub(super) fn manifest_bytes_max(&self) -> u64 {
        MANIFEST_FRAME_BYTES_MAX + self.manifest_bytes
    }

    /// Claims a file for one stream.
    pub(super) fn claim(
        &mut self,
        path: &RelativePath,
        size: u64,
        offset: u64,
    ) -> Result<Claim, SetError> {
        let refuse = |why| {
            Err(SetError::Entry {
                path: path.clone(),
                why,
            })
        };
        let claim = match (self.known(path), offset) {
            (None, 0) => Claim::Create,
            (Some(KnownFile::Partial { .. }), 0) => Claim::Restart,
            (Some(KnownFile::Partial { held, len }), _)
                if held.len == offset && len - offset == size =>
            {
                Claim::Continue(held)
            }
            (Some(KnownFile::Partial { .. }), _) => {
                return refuse("it goes on at another place than where it was cut");
            }
            (None, _) => return refuse("it goes on without a beginning"),
            (Some(KnownFile::Directory { .. }), _) => return refuse("a file where a directory is"),
            (Some(KnownFile::Writing | KnownFile::Complete(_) | KnownFile::Confirmed), _) => {
                return refuse("it comes twice");
            }
        };
        self.set(path, KnownFile::Writing)?;
        Ok(claim)
    }

    /// Every path and what is known of it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&RelativePath, &KnownFile)> {
        self.known.iter()
    }
}
