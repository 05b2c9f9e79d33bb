//! What PostgreSQL has marked as ready to be archived, in `pg_wal/archive_status`.
//! Never changes anything there: only PostgreSQL renames `.ready` to `.done`. Invariant: histories come before all
//! others, and of those the oldest first, as PostgreSQL's archiver takes them.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use walmgr_protocol::names::WalFileName;

use super::shelf::WAITING_MAX;
use crate::pg::layout;

/// Where the marks are.
pub(super) fn folder(data: &Path) -> PathBuf {
    data.join(layout::PG_WAL).join("archive_status")
}

/// Whether somebody may still ask for this file: PostgreSQL has neither archived nor removed it.
pub(super) fn is_wanted(data: &Path, name: WalFileName) -> bool {
    let done = folder(data).join(format!("{name}.done"));
    let file = data.join(layout::PG_WAL).join(name.to_string());
    !done.exists() && file.exists()
}

/// Whether PostgreSQL waits for this file to be archived.
pub(in crate::master) fn is_ready(data: &Path, name: WalFileName) -> bool {
    folder(data).join(format!("{name}.ready")).exists()
}

/// What PostgreSQL says of its files.
pub(super) struct Marks {
    /// The files that the archiver waits for, histories first and then the oldest, [`WAITING_MAX`] at most.
    pub ready: Vec<WalFileName>,
    /// Files that were asked about and that the archiver does not want any more.
    pub unwanted: BTreeSet<WalFileName>,
}

impl Marks {
    /// Reads the marks. `shipped` are the files that are asked about.
    pub(super) fn read(data: &Path, shipped: Vec<WalFileName>) -> io::Result<Marks> {
        let is_unwanted = |name: &WalFileName| !is_wanted(data, *name);
        Ok(Marks {
            ready: names(&folder(data))?,
            unwanted: shipped.into_iter().filter(is_unwanted).collect(),
        })
    }
}

/// The files that are ready, histories first and then the oldest, [`WAITING_MAX`] at most.
pub(super) fn names(folder: &Path) -> io::Result<Vec<WalFileName>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(".ready"));
        names.extend(name.and_then(|name| name.parse::<WalFileName>().ok()));
    }
    names.sort_by_key(|name| (!matches!(name, WalFileName::History(_)), name.to_string()));
    names.truncate(WAITING_MAX);
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histories_come_first_and_then_the_oldest() {
        let data = tempfile::tempdir().unwrap();
        let folder = folder(data.path());
        std::fs::create_dir_all(&folder).unwrap();
        let put = |name: &str| std::fs::write(folder.join(name), b"").unwrap();
        for name in [
            "000000010000000000000007.ready",
            "000000010000000000000005.ready",
            "000000010000000000000005.00000028.backup.ready",
            "000000010000000000000004.done",
            "00000002.history.ready",
            "nonsense.ready",
        ] {
            put(name);
        }
        let found: Vec<String> = (names(&folder).unwrap().iter())
            .map(ToString::to_string)
            .collect();
        let wanted = [
            "00000002.history",
            "000000010000000000000005",
            "000000010000000000000005.00000028.backup",
            "000000010000000000000007",
        ];
        assert_eq!(found, wanted);
        for number in 0..200 {
            put(&format!("0000000100000001{number:08X}.ready"));
        }
        assert_eq!(names(&folder).unwrap().len(), WAITING_MAX);
        let wanted = |name: &str| is_wanted(data.path(), name.parse().unwrap());
        assert!(!wanted("000000010000000000000005"), "it is gone");
        std::fs::write(data.path().join("pg_wal/000000010000000000000005"), b"").unwrap();
        std::fs::write(data.path().join("pg_wal/000000010000000000000004"), b"").unwrap();
        assert!(wanted("000000010000000000000005"));
        assert!(!wanted("000000010000000000000004"), "it is done");
    }
}
