//! What a base backup takes of a data directory and how it is read, the same for a master and a standby.
//! Never says where it goes: a master sends it, a standby copies it. Invariant: both take the same files, check
//! the same pages, and list them in the same manifest.
//!
//! [`contents`] is what is taken, in its order, [`configs`] the configuration files beside it, [`reading`] a file as it is
//! read, with its pages checked, [`listing`] the manifest and the notes of what came of it.

pub(crate) mod configs;
pub(crate) mod contents;
pub(crate) mod listing;
pub(crate) mod reading;

use bytes::Bytes;
use walmgr_protocol::message::backup::FileDigest;
use walmgr_protocol::names::RelativePath;

use crate::pg::walk;

/// One thing of a backup.
#[derive(Debug)]
pub(crate) struct Item {
    /// Where it goes inside the set.
    pub target: RelativePath,
    /// What it is.
    pub content: Content,
}

/// What an [`Item`] is.
#[derive(Debug)]
pub(crate) enum Content {
    /// A directory.
    Directory,
    /// A file of the data directory.
    File(walk::File),
    /// A file that only the backup has.
    Note(Bytes),
}

impl Item {
    /// What the manifest calls it; `None` for a directory.
    pub(crate) const fn path(&self) -> Option<&RelativePath> {
        match &self.content {
            Content::Directory => None,
            Content::File(file) => Some(&file.path),
            Content::Note(_) => Some(&self.target),
        }
    }
}

/// A file that is in the set, as the manifest has it.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    /// Its path in the data directory.
    pub path: RelativePath,
    /// When it was changed last, in seconds since 1970.
    pub modified_s: i64,
    /// What the set holds of it.
    pub digest: FileDigest,
}

/// A block of a file whose checksum does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadBlock {
    /// The file, in the data directory.
    pub path: RelativePath,
    /// The block, counted from the beginning of the file.
    pub block: u32,
}
