//! Whether a set is good, as far as that is seen without reading all of it.
//! Never changes anything and never reads a relation. Invariant: a flipped bit in the label, the map,
//! the manifest, the control file or `postgresql.auto.conf` of a set that has a manifest is seen.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use walmgr_protocol::limits::{MANIFEST_BYTES_MAX, SMALL_FILE_BYTES_MAX};

use super::BackupSets;
use crate::pg::backup_label::BackupLabel;
use crate::pg::control;
use crate::pg::layout;
use crate::pg::left_out::{DAMAGED_PAGES, LEFT_OUT, LEFT_OUT_ALLOWED};
use crate::pg::manifest::{FileEntry, Scan, Scanned};
use crate::store::StoreError;
use crate::store::tree::Node;

/// The small files that a recovery goes by, which are read whenever sets are listed.
pub(super) const SMALL_FILES: [&str; 5] = [
    layout::BACKUP_LABEL,
    layout::TABLESPACE_MAP,
    layout::AUTO_CONF,
    layout::PG_VERSION,
    layout::PG_CONTROL,
];

/// How a set is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Nothing speaks against it.
    Good,
    /// It holds damaged pages, as the master did when it was made.
    DamagedPages,
    /// It lacks something that was in the data directory, and nobody said that it may.
    LeftOut,
    /// It lacks something, as whoever made it had allowed.
    LeftOutAllowed,
    /// It is not what was sealed, and why.
    Damaged(String),
    /// A file of it is not what was sealed, and which. What WAL it needs is known all the same.
    DamagedFile(String),
    /// The disk did not let anybody see.
    Unreadable(String),
}

impl Condition {
    /// Why nobody may recover from the set.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Condition::Damaged(why) | Condition::DamagedFile(why) | Condition::Unreadable(why) => {
                Some(why)
            }
            _ => None,
        }
    }

    /// Whether the set may take the place of an older good one.
    pub fn is_good(&self) -> bool {
        matches!(self, Condition::Good | Condition::LeftOutAllowed)
    }

    /// What a list says beside the label of a set that holds all it was sealed with.
    pub const fn remark(&self) -> Option<&'static str> {
        match self {
            Condition::DamagedPages => Some("damaged pages"),
            Condition::LeftOut => Some("something left out"),
            Condition::LeftOutAllowed => Some("something left out, as allowed"),
            _ => None,
        }
    }
}

impl BackupSets {
    /// How the set in this directory is.
    pub(super) fn condition(
        &self,
        root: BorrowedFd<'_>,
        set: &str,
        label: &Result<BackupLabel, String>,
    ) -> Condition {
        self.examine(root, set, label).0
    }

    /// How the set in this directory is, and what its manifest says. The manifest is empty where it is absent, damaged or
    /// unreadable, or where the label is damaged.
    pub(super) fn examine(
        &self,
        root: BorrowedFd<'_>,
        set: &str,
        label: &Result<BackupLabel, String>,
    ) -> (Condition, Scanned) {
        if let Err(why) = label {
            let why = format!("its backup_label: {why}");
            return (Condition::Damaged(why), Scanned::default());
        }
        let scanned = match self.scan_manifest(root, set) {
            Ok(Ok(scanned)) => scanned.unwrap_or_default(),
            Ok(Err(why)) => {
                let why = format!("its {}: {why}", layout::BACKUP_MANIFEST);
                return (Condition::Damaged(why), Scanned::default());
            }
            Err(error) => {
                return (Condition::Unreadable(error.to_string()), Scanned::default());
            }
        };
        let condition = match self.damage(root, set, &scanned.entries) {
            Ok(Some(why)) => Condition::Damaged(why),
            Ok(None) => self.marked(root, set),
            Err(error) => Condition::Unreadable(error.to_string()),
        };
        (condition, scanned)
    }

    /// What whoever sealed it left as a mark.
    fn marked(&self, root: BorrowedFd<'_>, set: &str) -> Condition {
        let marks = [
            (DAMAGED_PAGES, Condition::DamagedPages),
            (LEFT_OUT, Condition::LeftOut),
            (LEFT_OUT_ALLOWED, Condition::LeftOutAllowed),
        ];
        for (name, condition) in marks {
            match self.node(root, set, name) {
                Ok(None) => {}
                Ok(Some(_)) => return condition,
                Err(error) => return Condition::Unreadable(error.to_string()),
            }
        }
        Condition::Good
    }

    fn damage(
        &self,
        root: BorrowedFd<'_>,
        set: &str,
        entries: &[FileEntry],
    ) -> Result<Option<String>, StoreError> {
        for name in SMALL_FILES {
            let listed = (entries.iter()).find(|file| file.path.as_bytes() == name.as_bytes());
            if name == layout::AUTO_CONF && self.is_prepared(root, set)? {
                continue;
            }
            let Some(node) = self.node(root, set, name)? else {
                if listed.is_some() && name != layout::AUTO_CONF {
                    return Ok(Some(format!("its {name} is gone")));
                }
                continue;
            };
            if !matches!(node, Node::File(len) if len <= SMALL_FILE_BYTES_MAX) {
                return Ok(Some(format!("its {name} is no small file")));
            }
            let bytes = self.read_small(root, set, name)?;
            if listed.is_none()
                && name == layout::PG_CONTROL
                && let Err(fault) = control::parse(&bytes)
            {
                return Ok(Some(format!("its {name}: {fault}")));
            }
            if listed.is_some_and(|listed| !fits(listed, &bytes)) {
                return Ok(Some(format!("its {name} is not what its manifest lists")));
            }
        }
        Ok(None)
    }

    /// What the manifest says, or what is wrong with it; `None` if there is none.
    fn scan_manifest(
        &self,
        root: BorrowedFd<'_>,
        set: &str,
    ) -> Result<Result<Option<Scanned>, String>, StoreError> {
        let parent = &self.parent;
        let shown = format!("{set}/{}", layout::BACKUP_MANIFEST);
        let file = match parent
            .disk
            .open_file(root, layout::BACKUP_MANIFEST.as_ref())
        {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
            other => other.map_err(|error| parent.failure("open", &shown, error))?,
        };
        let mut scan = Scan::new(&SMALL_FILES);
        let (mut fed, mut read_bytes) = (Ok(()), 0);
        parent.read_through(file.as_fd(), &shown, |piece| {
            read_bytes += piece.len() as u64;
            fed = scan.feed(piece);
            fed.is_ok() && read_bytes <= MANIFEST_BYTES_MAX
        })?;
        let found = fed.and_then(|()| scan.finish());
        Ok(found.map(Some).map_err(|fault| fault.to_string()))
    }

    /// Whether somebody gave the set a signal file, as `pg_basebackup -R` does, which changes the
    /// settings behind the manifest.
    fn is_prepared(&self, root: BorrowedFd<'_>, set: &str) -> Result<bool, StoreError> {
        for signal in layout::SIGNALS {
            if self.node(root, set, signal)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn node(
        &self,
        root: BorrowedFd<'_>,
        set: &str,
        name: &str,
    ) -> Result<Option<Node>, StoreError> {
        let parent = &self.parent;
        match parent.disk.node(root, name.as_ref()) {
            Ok(node) => Ok(Some(node)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(parent.failure("examine", &format!("{set}/{name}"), error)),
        }
    }
}

fn fits(listed: &FileEntry, bytes: &[u8]) -> bool {
    let is_same = |crc32c| crc32c::crc32c(bytes) == crc32c;
    listed.size == bytes.len() as u64 && listed.crc32c().is_none_or(is_same)
}
