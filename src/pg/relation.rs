//! What the name of a file in a data directory says: relation, fork, segment, temporary or not.
//! Never looks at the file. Invariant: a name that PostgreSQL would not give a relation is none.

use walmgr_protocol::names::RelativePath;

use super::layout;
use super::tablespace_map::oid_of;
use crate::wal::changes::RelationFork;

pub(crate) use crate::wal::changes::Fork;

/// Of `base` (`src/include/catalog/pg_tablespace.dat`).
const DEFAULTTABLESPACE_OID: u32 = 1663;
/// Of `global`.
const GLOBALTABLESPACE_OID: u32 = 1664;

/// A file that holds a segment of a fork of a relation (`src/common/relpath.c`,
/// `parse_filename_for_nontemp_relation` in `src/backend/storage/file/reinit.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RelationFile {
    /// `relfilenode`.
    pub number: u32,
    /// Which fork.
    pub fork: Fork,
    /// Which part of it; all but the last are as long as `--with-segsize` said, 1 GiB.
    pub segment: u32,
    /// Whether it belongs to a session's temporary relation.
    pub is_temporary: bool,
}

impl RelationFile {
    /// The relation file at this path, as the manifest spells it, or `None`.
    pub(crate) fn of(path: &RelativePath) -> Option<RelationFile> {
        let parent = path.parent()?;
        let in_relations = parent.as_bytes() == layout::GLOBAL.as_bytes() || is_database(&parent);
        in_relations.then(|| RelationFile::named(path.file_name()))?
    }

    /// Whether every block of it that changes is named in the WAL: those of rows and of indexes are.
    pub(crate) fn is_rows(&self) -> bool {
        self.fork == Fork::Main && !self.is_temporary
    }

    /// The relation file of this name in a directory that [`is_database`] or `global`.
    pub(crate) fn named(name: &[u8]) -> Option<RelationFile> {
        let text = std::str::from_utf8(name).ok()?;
        let (rest, is_temporary) = match text.strip_prefix('t') {
            // The number of the session, with at least one digit.
            Some(rest) => {
                let (session, rest) = rest.split_once('_')?;
                is_number(session).then_some((rest, true))?
            }
            None => (text, false),
        };
        let (rest, segment) = match rest.split_once('.') {
            // Segment 0 has no number.
            Some((rest, segment)) => (rest, oid_of(segment.as_bytes())?),
            None => (rest, 0),
        };
        let (number, fork) = match rest.split_once('_') {
            Some((number, "fsm")) => (number, Fork::FreeSpace),
            Some((number, "vm")) => (number, Fork::Visibility),
            Some((number, "init")) => (number, Fork::Init),
            Some(_) => return None,
            None => (rest, Fork::Main),
        };
        Some(RelationFile {
            number: oid_of(number.as_bytes())?,
            fork,
            segment,
            is_temporary,
        })
    }
}

/// The fork that the file at this path is of, as WAL names it, and which part of it; `None` if the file is no
/// relation's, or a temporary one's.
pub fn fork_at(path: &RelativePath) -> Option<(RelationFork, u32)> {
    let file = RelationFile::of(path).filter(|file| !file.is_temporary)?;
    let components: Vec<&[u8]> = path.components().collect();
    let (tablespace, database) = match components[..] {
        [_, _] => (GLOBALTABLESPACE_OID, 0),
        [_, database, _] => (DEFAULTTABLESPACE_OID, oid_of(database)?),
        [_, tablespace, _, database, _] => (oid_of(tablespace)?, oid_of(database)?),
        _ => return None,
    };
    let fork = RelationFork {
        tablespace,
        database,
        relfilenode: file.number,
        fork: file.fork,
    };
    Some((fork, file.segment))
}

/// Whether a directory holds the relations of a database: `base/OID`, or
/// `pg_tblspc/OID/PG_VERSION/OID` (`sendDir` in `src/backend/backup/basebackup.c`).
pub(crate) fn is_database(path: &RelativePath) -> bool {
    let components: Vec<&[u8]> = path.components().take(5).collect();
    match components[..] {
        [b"base", database] => oid_of(database).is_some(),
        [links, tablespace, version, database] => {
            links == layout::PG_TBLSPC.as_bytes()
                && oid_of(tablespace).is_some()
                && version.starts_with(b"PG_")
                && oid_of(database).is_some()
        }
        _ => false,
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str) -> Option<(u32, Fork, u32, bool)> {
        let file = RelationFile::of(&path.parse().unwrap())?;
        Some((file.number, file.fork, file.segment, file.is_temporary))
    }

    #[test]
    fn relations_forks_and_segments_are_recognised() {
        assert_eq!(of("base/5/16384"), Some((16384, Fork::Main, 0, false)));
        assert_eq!(of("base/5/16384.2"), Some((16384, Fork::Main, 2, false)));
        assert_eq!(
            of("global/1262_fsm"),
            Some((1262, Fork::FreeSpace, 0, false))
        );
        let deep = "pg_tblspc/16385/PG_15_202209061/5/16390_vm.1";
        assert_eq!(of(deep), Some((16390, Fork::Visibility, 1, false)));
        assert_eq!(of("base/5/16384_init"), Some((16384, Fork::Init, 0, false)));
        assert_eq!(of("base/5/t3_16384"), Some((16384, Fork::Main, 0, true)));
        assert_eq!(
            of("base/5/t12_9_fsm.4"),
            Some((9, Fork::FreeSpace, 4, true))
        );
    }

    #[test]
    fn a_path_says_which_fork_wal_means() {
        let at = |path: &str| {
            let (fork, segment) = fork_at(&path.parse().unwrap())?;
            let place = (fork.tablespace, fork.database, fork.relfilenode);
            Some((place, fork.fork, segment))
        };
        assert_eq!(at("global/1262"), Some(((1664, 0, 1262), Fork::Main, 0)));
        let second = Some(((1663, 5, 16384), Fork::Main, 1));
        assert_eq!(at("base/5/16384.1"), second);
        let deep = "pg_tblspc/16385/PG_15_202209061/5/16390_init";
        assert_eq!(at(deep), Some(((16385, 5, 16390), Fork::Init, 0)));
        assert_eq!(at("base/5/t3_16384"), None);
        assert_eq!(at("base/5/PG_VERSION"), None);
    }

    #[test]
    fn other_names_and_places_are_no_relations() {
        for path in [
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "base/5/16384.",
            "base/5/16384.0",
            "base/5/16384.01",
            "base/5/16384_",
            "base/5/16384_map",
            "base/5/16384_init_fsm",
            "base/5/0",
            "base/5/99999999999",
            "base/5/t_16384",
            "base/5/tx_16384",
            "base/5/t3",
            "base/5/t3_",
            "base/pgsql_tmp/16384",
            "base/16384",
            "global/5/16384",
            "pg_xact/0000",
            "pg_tblspc/16385/16384",
            "pg_tblspc/16385/PG_15_202209061/16384",
            "pg_tblspc/x/PG_15_202209061/5/16384",
            "other/16385/PG_15_202209061/5/16384",
            "16384",
        ] {
            assert_eq!(of(path), None, "{path}");
        }
    }
}
