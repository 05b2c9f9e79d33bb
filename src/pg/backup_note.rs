//! The file in a set that says how it was made: how many backups it is away from a full one, what was read and sent.
//! Never says which sets those were: no set needs another one. Invariant: a set without it is a full one.

/// The file. PostgreSQL does not look at it, and no backup takes it.
pub(crate) const NAME: &str = "walmgr_backup";

/// More than three numbers take with their names.
pub(crate) const BYTES_MAX: u64 = 128;

/// What stands in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BackupNote {
    /// How many backups the set is away from a full one; 0 for one that is full.
    pub since_full: u32,
    /// Bytes of files that were read on the master. Its last small files, of which this is one, are not counted.
    pub read_bytes: u64,
    /// Bytes that were sent for them, repetitions included.
    pub sent_bytes: u64,
}

impl BackupNote {
    /// The content of the file.
    pub(crate) fn text(&self) -> String {
        let BackupNote {
            since_full,
            read_bytes,
            sent_bytes,
        } = self;
        format!("since_full {since_full}\nread_bytes {read_bytes}\nsent_bytes {sent_bytes}\n")
    }

    /// What it says; `None` if that is not what [`BackupNote::text`] makes.
    pub(crate) fn parse(text: &[u8]) -> Option<BackupNote> {
        let mut lines = std::str::from_utf8(text).ok()?.lines();
        let mut number = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let note = BackupNote {
            since_full: number("since_full")?.parse().ok()?,
            read_bytes: number("read_bytes")?.parse().ok()?,
            sent_bytes: number("sent_bytes")?.parse().ok()?,
        };
        (note.text().as_bytes() == text).then_some(note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_is_read() {
        for since_full in [0, 1, 9, u32::MAX] {
            let note = BackupNote {
                since_full,
                read_bytes: u64::MAX,
                sent_bytes: u64::MAX - 1,
            };
            let text = note.text();
            assert_eq!(BackupNote::parse(text.as_bytes()), Some(note));
            assert!(text.len() as u64 <= BYTES_MAX, "{text}");
            for cut in 0..text.len() {
                let cut = &text.as_bytes()[..cut];
                assert_eq!(BackupNote::parse(cut), None, "{cut:?}");
            }
        }
        for other in [
            "since_full 01\nread_bytes 2\nsent_bytes 3\n",
            "since_full +1\nread_bytes 2\nsent_bytes 3\n",
            "since_full 1\nread_bytes 2\nsent_bytes 3\n\n",
            "since_full 1\nsent_bytes 3\nread_bytes 2\n",
            "since_full 4294967296\nread_bytes 2\nsent_bytes 3\n",
            "since_full 1\nread_bytes 2\nsent_bytes -3\n",
        ] {
            assert_eq!(BackupNote::parse(other.as_bytes()), None, "{other:?}");
        }
    }
}
