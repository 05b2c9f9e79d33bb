//! The checksum of a file, computed as the manifest has it, while its bytes pass.
//! Never opens a file. Invariant: a file agrees only by its length and its checksum together; one that is listed without
//! a checksum never does.

use aws_lc_rs::digest::{Context, SHA224, SHA256, SHA384, SHA512};

use super::{Checksum, FileEntry};
use crate::files::slices::PartDigest;

/// A file that is being read.
pub(crate) struct ListedDigest {
    len: u64,
    crc32c: u32,
    sha: Option<Context>,
}

impl ListedDigest {
    /// Begins a file that is listed with this checksum; its CRC-32C is computed in any case.
    pub(crate) fn begin(checksum: Option<&Checksum>) -> ListedDigest {
        ListedDigest {
            len: 0,
            crc32c: 0,
            sha: checksum.and_then(sha_of),
        }
    }

    /// A file that is not listed with a SHA, and was read in parts.
    pub(crate) const fn of(whole: PartDigest) -> ListedDigest {
        ListedDigest {
            len: whole.len,
            crc32c: whole.crc32c,
            sha: None,
        }
    }

    /// Takes the next bytes.
    pub(crate) fn update(&mut self, piece: &[u8]) {
        self.len += piece.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, piece);
        if let Some(sha) = &mut self.sha {
            sha.update(piece);
        }
    }

    /// How many bytes have passed.
    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    /// The CRC-32C of what has passed.
    pub(crate) const fn crc32c(&self) -> u32 {
        self.crc32c
    }

    /// Whether this is what is listed; `None` where that cannot be told for want of a checksum.
    pub(crate) fn agrees(self, entry: &FileEntry) -> Option<bool> {
        if self.len != entry.size {
            return Some(false);
        }
        match (&entry.checksum, self.sha) {
            (Some(Checksum::Crc32c(listed)), _) => Some(*listed == self.crc32c),
            (Some(Checksum::Sha(listed)), Some(sha)) => Some(sha.finish().as_ref() == &**listed),
            (Some(Checksum::Sha(_)), None) => Some(false),
            (None, _) => None,
        }
    }
}

/// What computes a SHA-2 of the length that the listed one has.
pub(crate) fn sha_of(checksum: &Checksum) -> Option<Context> {
    let Checksum::Sha(digest) = checksum else {
        return None;
    };
    Some(Context::new(match digest.len() {
        28 => &SHA224,
        32 => &SHA256,
        48 => &SHA384,
        _ => &SHA512,
    }))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{Algorithm, digest};

    use super::*;

    #[test]
    fn a_file_agrees_by_length_and_checksum_of_every_kind() {
        let sha = |algorithm: &'static Algorithm, bytes: &[u8]| {
            Some(Checksum::Sha(digest(algorithm, bytes).as_ref().into()))
        };
        let checksums = |bytes: &[u8]| {
            vec![
                Some(Checksum::Crc32c(crc32c::crc32c(bytes))),
                sha(&SHA224, bytes),
                sha(&SHA256, bytes),
                sha(&SHA384, bytes),
                sha(&SHA512, bytes),
            ]
        };
        for checksum in checksums(b"content") {
            let entry = FileEntry {
                path: "base/1/1".parse().unwrap(),
                size: 7,
                last_modified: 0,
                checksum,
            };
            for (bytes, expected) in [
                (&b"content"[..], true),
                (b"contenT", false),
                (b"conten", false),
                (b"", false),
            ] {
                let mut found = ListedDigest::begin(entry.checksum.as_ref());
                bytes.chunks(3).for_each(|piece| found.update(piece));
                assert_eq!(found.agrees(&entry), Some(expected), "{entry:?} {bytes:?}");
            }
            let unlisted = FileEntry {
                checksum: None,
                ..entry
            };
            let mut found = ListedDigest::begin(None);
            found.update(b"content");
            assert_eq!(found.agrees(&unlisted), None);
        }
    }
}
