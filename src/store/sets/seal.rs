//! From a received set to `data.master`: everything is compared, made durable, and put in place.
//! Never seals what is not complete. Invariant: there is one instant at which the set comes into
//! being, the rename of the intent, and everything the set holds is durable before it.
//!
//! ```text
//! compare with the manifest, and modes  a crash up to the intent leaves an incoming set without a
//! links of the tablespaces              label, which the next start removes
//! syncfs                                every file, as it was received
//! map, manifest, label (other name)     each with a sync of its own
//! sync the set's directory
//! write the intent                      from here on the next start finishes what is left
//! rename the label to backup_label      still below the incoming name
//! rename older sets, oldest first       each followed by a sync of the directory above
//! rename the set to data.master
//! remove the intent
//! ```

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use walmgr_protocol::message::backup::FileDigest;
use walmgr_protocol::names::{BackupName, RelativePath};
use walmgr_protocol::session::backup::ProofOfSeal;

use super::error::SetError;
use super::incoming::IncomingSet;
use super::inventory::{Inventory, KnownFile};
use super::lock::NamesLock;
use super::names::UNSEALED_LABEL;
use super::shared::{SetShared, descend};
use crate::pg::backup_label::BackupLabel;
use crate::pg::group_access;
use crate::pg::layout;
use crate::pg::tablespace_map::oid_of;
use crate::store::StoreError;
use crate::store::durable::DurableWal;

/// A file as the manifest has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedFile {
    /// Its path as PostgreSQL sees it: files of tablespaces are below `pg_tblspc`.
    pub path: RelativePath,
    /// Its length in bytes.
    pub len: u64,
    /// Its CRC-32C; `None` when the manifest was made without checksums.
    pub crc32c: Option<u32>,
}

/// What a set needs beside its files.
pub struct Parts<'a> {
    /// `backup_label` as the server returned it.
    pub backup_label: &'a [u8],
    /// `tablespace_map` as the server returned it.
    pub tablespace_map: Option<&'a [u8]>,
    /// `backup_manifest`, byte for byte.
    pub manifest: &'a [u8],
    /// What the manifest lists.
    pub files: &'a mut dyn Iterator<Item = ExpectedFile>,
    /// The proof that the archive holds what a recovery of the set reads.
    pub wal: &'a DurableWal,
}

/// A set that was sealed: the proof without which nobody is told so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSet {
    name: BackupName,
}

impl SealedSet {
    /// The name it got.
    pub const fn name(&self) -> &BackupName {
        &self.name
    }
}

impl ProofOfSeal for SealedSet {
    fn name(&self) -> String {
        self.name.to_string()
    }
}

impl IncomingSet {
    /// Seals the set and gives it its name. Sets that were there move one number up; none is
    /// removed: that is [`expire`](super::BackupSets::expire)'s.
    pub fn seal(self, mut parts: Parts<'_>) -> Result<SealedSet, SetError> {
        let shared = &self.shared;
        shared.compare(&mut parts)?;
        shared.link_tablespaces()?;
        let parent = &shared.sets.parent;
        let name = shared.sets.incoming_name();
        let modes = group_access::apply(&parent.path().join(&name), &[]);
        modes.map_err(|error| parent.failure("change the modes of", &name, error))?;
        parent.sync_tree(shared.root.as_fd(), &name)?;
        shared.write_part(layout::BACKUP_MANIFEST, parts.manifest)?;
        if let Some(map) = parts.tablespace_map {
            shared.write_part(layout::TABLESPACE_MAP, map)?;
        }
        shared.write_part(UNSEALED_LABEL, parts.backup_label)?;
        parent.sync_names(shared.root.as_fd(), &name)?;

        let _names = NamesLock::acquire_to_seal(parent, &shared.sets.lock_name())?;
        shared.ensure_in_place()?;
        let shifted = shared.sets.names_to_shift()?;
        // From the first attempt to write the intent on, the disk decides whether the set exists.
        shared.keep();
        if let Err(error) = shared.sets.write_intent(shifted) {
            if shared.sets.withdraw_intent().is_ok() {
                shared.may_go();
            }
            return Err(error);
        }
        shared.sets.finish_intent(shifted)?;
        let name = shared.sets.newest.clone();
        Ok(SealedSet { name })
    }
}

impl SetShared {
    /// Compares what was received with the manifest: the same files, lengths and checksums.
    fn compare(&self, parts: &mut Parts<'_>) -> Result<(), SetError> {
        let mut inventory = self.inventory();
        inventory.check()?;
        let incomplete = |why: String| Err(SetError::NotComplete { why });
        if inventory.streams > 0 {
            return incomplete("a stream of it is still open".to_owned());
        }
        let is_cut =
            |known: &KnownFile| matches!(known, KnownFile::Writing | KnownFile::Partial { .. });
        let cut = inventory.iter().find(|(_, known)| is_cut(known));
        if let Some((path, _)) = cut {
            return incomplete(format!("{path} has not arrived to its end"));
        }
        let facts = match BackupLabel::parse(parts.backup_label) {
            Ok(facts) => facts,
            Err(why) => return incomplete(format!("its backup_label is not one: {why}")),
        };
        if facts.incremental_from.is_some() {
            return incomplete("it is an incremental backup, which needs another set".to_owned());
        }
        let first = parts.wal.first();
        if facts.first_segment != first {
            let needed = facts.first_segment;
            return incomplete(format!(
                "it needs WAL from {needed} on, the archive was asked from {first} on"
            ));
        }
        let own = [
            (layout::BACKUP_LABEL, Some(parts.backup_label)),
            (layout::TABLESPACE_MAP, parts.tablespace_map),
        ];
        for expected in &mut *parts.files {
            confirm(&mut inventory, &own, &expected)?;
        }
        match inventory
            .iter()
            .find(|(_, known)| matches!(known, KnownFile::Complete(_)))
        {
            None => Ok(()),
            Some((path, _)) => Err(SetError::Manifest {
                path: path.clone(),
                why: "it is not in the manifest".to_owned(),
            }),
        }
    }

    /// Makes the links through which PostgreSQL and the manifest find the tablespaces. They are
    /// relative, so they hold under every name the set will get.
    fn link_tablespaces(&self) -> Result<(), SetError> {
        let mut oids = Vec::new();
        for (path, known) in self.inventory().iter() {
            let components: Vec<&[u8]> = path.components().take(3).collect();
            if let [first, oid] = components[..]
                && first == layout::TMPSPC.as_bytes()
            {
                let is_directory = matches!(known, KnownFile::Directory { .. });
                if !is_directory || oid_of(oid).is_none() {
                    return Err(SetError::Entry {
                        path: path.clone(),
                        why: "it is no tablespace",
                    });
                }
                oids.push(path.clone());
            }
        }
        if oids.is_empty() {
            return Ok(());
        }
        let links = RelativePath::new(layout::PG_TBLSPC.as_bytes());
        let links = links.map_err(|error| SetError::NotComplete {
            why: error.to_string(),
        })?;
        let directory = descend(self, &links)?;
        for path in oids {
            let oid = OsStr::from_bytes(path.file_name());
            let target = [b"../", path.as_bytes()].concat();
            (self.sets.parent.disk)
                .make_link(directory.as_fd(), oid, OsStr::from_bytes(&target))
                .map_err(|error| self.failure("link", &path, error))?;
        }
        Ok(())
    }

    /// Writes a file that only sealing may write.
    fn write_part(&self, name: &str, content: &[u8]) -> Result<(), SetError> {
        let parent = &self.sets.parent;
        let shown = format!("{}/{name}", self.sets.incoming_name());
        let write = || -> Result<OwnedFd, (&'static str, io::Error)> {
            let disk = &parent.disk;
            let root = self.root.as_fd();
            let file = disk
                .make_file(root, name.as_ref())
                .map_err(|error| ("create", error))?;
            disk.write_all(file.as_fd(), content, 0)
                .map_err(|error| ("write", error))?;
            Ok(file)
        };
        let file = write().map_err(|(op, error)| parent.failure(op, &shown, error))?;
        Ok(parent.sync_and_close(file, &shown)?)
    }

    /// Fails when somebody moved the set or the directory above it.
    fn ensure_in_place(&self) -> Result<(), SetError> {
        let parent = &self.sets.parent;
        parent.ensure_in_place()?;
        let name = self.sets.incoming_name();
        match parent.stat_at(&name)? {
            Some(stat) if stat.identity == self.identity => Ok(()),
            _ => Err(StoreError::Moved {
                path: parent.path().join(name),
            }
            .into()),
        }
    }
}

/// Compares one file of the manifest with what was received.
fn confirm(
    inventory: &mut Inventory,
    own: &[(&str, Option<&[u8]>)],
    expected: &ExpectedFile,
) -> Result<(), SetError> {
    let refuse = |why: String| {
        let path = expected.path.clone();
        Err(SetError::Manifest { path, why })
    };
    let part = own
        .iter()
        .find(|(name, _)| name.as_bytes() == expected.path.as_bytes());
    let path = stored_path(inventory, &expected.path);
    let found = match (part, inventory.known(&path)) {
        (Some((_, Some(content))), _) => FileDigest {
            len: content.len() as u64,
            crc32c: crc32c::crc32c(content),
        },
        (Some((_, None)), _) => {
            return refuse("the manifest lists it, the server sent none".into());
        }
        (None, Some(KnownFile::Complete(digest))) => digest,
        (None, Some(KnownFile::Confirmed)) => return refuse("the manifest lists it twice".into()),
        (None, _) => return refuse("it has not arrived".into()),
    };
    if found.len != expected.len {
        let (expected, found) = (expected.len, found.len);
        return refuse(format!("expected {expected} bytes, found {found}"));
    }
    if expected.crc32c.is_some_and(|crc32c| crc32c != found.crc32c) {
        return refuse("its CRC-32C is not the manifest's".into());
    }
    match part {
        Some(_) => Ok(()),
        None => inventory.set(&path, KnownFile::Confirmed),
    }
}

/// Where a file of the manifest is kept: tablespaces lie in `tmpspc`.
fn stored_path(inventory: &Inventory, path: &RelativePath) -> RelativePath {
    let behind = path.as_bytes().strip_prefix(layout::PG_TBLSPC.as_bytes());
    let moved = behind
        .filter(|behind| behind.starts_with(b"/"))
        .map(|behind| [layout::TMPSPC.as_bytes(), behind].concat())
        .and_then(|moved| RelativePath::new(&moved).ok());
    match moved {
        Some(moved) if inventory.known(&moved).is_some() => moved,
        _ => path.clone(),
    }
}
