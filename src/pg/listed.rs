//! What a set's manifest lists, and its files compared with that one by one as they pass.
//! Never reads a file. Invariant: a set is whole only if nothing is left when all its files have
//! passed, and none of them was refused.

use std::collections::HashMap;

use walmgr_protocol::names::RelativePath;

use super::layout;
use super::manifest::{ManifestFault, Reader};

/// What a manifest need not list: itself, and what `pg_basebackup -R` changes when it adds a signal file.
const UNLISTED: [&str; 2] = [layout::BACKUP_MANIFEST, layout::AUTO_CONF];

/// The files that still have to pass, with their lengths and CRC-32C.
pub(crate) struct Listed {
    files: HashMap<RelativePath, (u64, Option<u32>)>,
    /// Why the settings of `ALTER SYSTEM` are not the manifest's.
    changed_settings: Option<String>,
    is_prepared: bool,
}

impl Listed {
    /// Reads a manifest, the whole of it.
    pub(crate) fn parse(manifest: &[u8]) -> Result<Listed, ManifestFault> {
        let mut files = HashMap::new();
        for file in Reader::new(manifest)? {
            let file = file?;
            let crc32c = file.crc32c();
            files.insert(file.path, (file.size, crc32c));
        }
        Ok(Listed {
            files,
            changed_settings: None,
            is_prepared: false,
        })
    }

    /// Compares a file that a set has at this path; the error says what differs.
    pub(crate) fn pass(
        &mut self,
        path: &RelativePath,
        len: u64,
        crc32c: u32,
    ) -> Result<(), String> {
        let is = |name: &&str| path.as_bytes() == name.as_bytes();
        self.is_prepared |= layout::SIGNALS.iter().any(is);
        let listed = self.files.remove(&listed_path(path));
        let differs = listed.and_then(|(listed_len, listed_crc32c)| {
            if listed_len != len {
                return Some(format!(
                    "its manifest says {listed_len} bytes, it has {len}"
                ));
            }
            let is_other = listed_crc32c.is_some_and(|listed| listed != crc32c);
            is_other.then(|| "its CRC-32C is not the manifest's".to_owned())
        });
        match differs {
            // Whether that is damage the whole of the set says.
            Some(why) if is(&layout::AUTO_CONF) => self.changed_settings = Some(why),
            Some(why) => return Err(why),
            None if listed.is_some() || is_in_wal(path) => {}
            None if UNLISTED.iter().chain(&layout::SINCE_THE_BACKUP).any(is) => {}
            None => return Err("it is not in the manifest".to_owned()),
        }
        Ok(())
    }

    /// Behind the last file: a file that is not as it is listed, and why.
    pub(crate) fn finish(&self) -> Result<(), (RelativePath, String)> {
        self.finish_but(|_| false)
    }

    /// Behind the last file: a file that is not as it is listed, and why. A listed file that is missing is no fault if
    /// `comes` says that it will come from elsewhere.
    pub(crate) fn finish_but(
        &self,
        comes: impl Fn(&RelativePath) -> bool,
    ) -> Result<(), (RelativePath, String)> {
        if let Some(path) = self.missing(comes) {
            let why = "the manifest lists it, and it is missing".to_owned();
            return Err((path.clone(), why));
        }
        match (&self.changed_settings, layout::AUTO_CONF.parse()) {
            (Some(why), Ok(path)) if !self.is_prepared => Err((path, why.clone())),
            _ => Ok(()),
        }
    }

    /// Whether a file that may come from elsewhere has not passed yet.
    pub(crate) fn awaits(&self, path: &RelativePath) -> bool {
        self.files.contains_key(&listed_path(path))
    }

    /// A listed file that has not passed.
    fn missing(&self, comes: impl Fn(&RelativePath) -> bool) -> Option<&RelativePath> {
        let is_settings = |path: &RelativePath| path.as_bytes() == layout::AUTO_CONF.as_bytes();
        let is_needed = |path: &&RelativePath| !is_settings(path) && !comes(path);
        self.files.keys().filter(is_needed).min()
    }
}

/// A file's path as PostgreSQL and the manifest see it: tablespaces are below `pg_tblspc`.
pub(crate) fn listed_path(path: &RelativePath) -> RelativePath {
    layout::tablespace_of(path.as_bytes(), layout::TMPSPC)
        .and_then(|_| layout::relocated(path, layout::TMPSPC, layout::PG_TBLSPC))
        .unwrap_or_else(|| path.clone())
}

/// Where a set keeps what the manifest lists under this path.
pub(crate) fn stored_path(path: RelativePath) -> RelativePath {
    layout::tablespace_of(path.as_bytes(), layout::PG_TBLSPC)
        .and_then(|_| layout::relocated(&path, layout::PG_TBLSPC, layout::TMPSPC))
        .unwrap_or(path)
}

/// Whether it is below `pg_wal`, which a manifest need not list.
fn is_in_wal(path: &RelativePath) -> bool {
    let is_top = path.components().next() == Some(layout::PG_WAL.as_bytes());
    is_top && path.parent().is_some()
}

#[cfg(test)]
mod tests {
    use walmgr_protocol::names::SystemId;

    use super::*;
    use crate::pg::manifest::{Checksum, FileEntry, ManifestWriter};

    fn path(text: &str) -> RelativePath {
        text.parse().unwrap()
    }

    fn listed(files: &[(&str, u64, u32)]) -> Listed {
        let mut writer = ManifestWriter::new(Vec::new(), 15, SystemId(1)).unwrap();
        for (name, size, crc32c) in files {
            let entry = FileEntry {
                path: path(name),
                size: *size,
                last_modified: 0,
                checksum: Some(Checksum::Crc32c(*crc32c)),
            };
            writer.add(&entry).unwrap();
        }
        Listed::parse(&writer.finish(&[]).unwrap()).unwrap()
    }

    #[test]
    fn fault_68_files_pass_as_they_are_listed_and_no_other_way() {
        let mut listed = listed(&[
            ("PG_VERSION", 3, 1),
            ("base/1/1", 8192, 2),
            ("pg_tblspc/16385/PG_15/5/1", 10, 3),
            ("postgresql.auto.conf", 88, 4),
        ]);
        listed.pass(&path("PG_VERSION"), 3, 1).unwrap();
        assert!(listed.pass(&path("PG_VERSION"), 3, 1).is_err(), "twice");
        let moved = path("tmpspc/16385/PG_15/5/1");
        listed.pass(&moved, 10, 3).unwrap();
        for free in ["backup_manifest", "pg_wal/x"] {
            listed.pass(&path(free), 1, 0).unwrap();
        }
        listed.pass(&path("postmaster.opts"), 1, 0).unwrap();
        assert!(listed.pass(&path("base/1/2"), 1, 0).is_err());
        assert_eq!(listed.missing(|_| false), Some(&path("base/1/1")));
        for (len, crc32c, why) in [(8191, 2, "8192 bytes"), (8192, 3, "CRC-32C")] {
            let mut again = self::listed(&[("base/1/1", 8192, 2)]);
            let said = again.pass(&path("base/1/1"), len, crc32c).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
        listed.pass(&path("base/1/1"), 8192, 2).unwrap();
        assert_eq!(listed.missing(|_| false), None);
    }

    #[test]
    fn fault_107_changed_settings_are_damage_unless_the_set_was_prepared() {
        let settings = path("postgresql.auto.conf");
        let again = || listed(&[("postgresql.auto.conf", 88, 4)]);
        let mut same = again();
        same.pass(&settings, 88, 4).unwrap();
        assert_eq!(same.finish(), Ok(()));
        assert_eq!(again().finish(), Ok(()), "removed by hand");
        let mut flipped = again();
        flipped.pass(&settings, 88, 5).unwrap();
        assert_eq!(flipped.finish().unwrap_err().0, settings);
        // As pg_basebackup -R leaves a set.
        flipped.pass(&path("standby.signal"), 0, 0).unwrap();
        assert_eq!(flipped.finish(), Ok(()));
    }
}
