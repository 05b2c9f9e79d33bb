//! What things are called in a data directory and in a set of one: PostgreSQL's names, and the few that walmgr
//! gives there. Never looks at a disk. Invariant: no room spells
//! them its own way.

use walmgr_protocol::names::RelativePath;

use super::tablespace_map::oid_of;

/// The major version, as a line of text.
pub(crate) const PG_VERSION: &str = "PG_VERSION";

/// Databases of the default tablespace.
pub(crate) const BASE: &str = "base";

/// Catalogs that all databases share, and the control file.
pub(crate) const GLOBAL: &str = "global";

/// The control file, as a path.
pub(crate) const PG_CONTROL: &str = "global/pg_control";

/// [`PG_CONTROL`] of a set that was copied, until everything is done.
pub(crate) const CONTROL_COPIED: &str = "global/pg_control.copied";

/// [`PG_CONTROL`] of a set that was moved, and so exists nowhere else, until everything is done.
pub(crate) const CONTROL_MOVED: &str = "global/pg_control.moved";

/// [`PG_CONTROL`] of a set that comes over the network, until all of it is there.
pub(crate) const CONTROL_RESTORING: &str = "global/pg_control.restoring";

/// [`PG_CONTROL`] of an old data directory whose files go over into a new one: no server starts from the rest.
pub(crate) const CONTROL_TAKEN: &str = "global/pg_control.taken";

/// The WAL, or a link to it.
pub(crate) const PG_WAL: &str = "pg_wal";

/// In [`PG_WAL`]: what the archiver has before and behind it.
pub(crate) const ARCHIVE_STATUS: &str = "archive_status";

/// In [`PG_WAL`], of PostgreSQL 17 and newer: which blocks WAL changes.
pub(crate) const SUMMARIES: &str = "summaries";

/// A link for each tablespace, named by its OID.
pub(crate) const PG_TBLSPC: &str = "pg_tblspc";

/// In a set: a directory for each tablespace, named by its OID.
pub(crate) const TMPSPC: &str = "tmpspc";

/// Where recovery from a backup begins.
pub(crate) const BACKUP_LABEL: &str = "backup_label";

/// What the server renames the backup label to.
pub(crate) const BACKUP_LABEL_DONE: &str = "backup_label.old";

/// What the backup label is called until its set is sealed: PostgreSQL does not start from it.
pub(crate) const BACKUP_LABEL_UNSEALED: &str = "backup_label.unsealed";

/// Where the tablespaces of a backup were.
pub(crate) const TABLESPACE_MAP: &str = "tablespace_map";

/// A [`TABLESPACE_MAP`] that a server has gone by: the links it speaks of are made.
pub(crate) const TABLESPACE_MAP_DONE: &str = "tablespace_map.old";

/// Which files a backup has.
pub(crate) const BACKUP_MANIFEST: &str = "backup_manifest";

/// With it a server never opens by itself.
pub(crate) const STANDBY_SIGNAL: &str = "standby.signal";

/// With it a server recovers up to a target.
pub(crate) const RECOVERY_SIGNAL: &str = "recovery.signal";

/// Either makes a server begin with a recovery.
pub(crate) const SIGNALS: [&str; 2] = [STANDBY_SIGNAL, RECOVERY_SIGNAL];

/// The process that runs on the directory.
pub(crate) const POSTMASTER_PID: &str = "postmaster.pid";

/// The command line it was started with.
pub(crate) const POSTMASTER_OPTS: &str = "postmaster.opts";

/// What a server leaves behind that runs no more; a copy of a stopped one has them.
pub(crate) const OF_A_SERVER: [&str; 2] = [POSTMASTER_PID, POSTMASTER_OPTS];

/// What a set may have got since it was made and a manifest does not list, and what a new server must not find.
pub(crate) const SINCE_THE_BACKUP: [&str; 5] = [
    TABLESPACE_MAP_DONE,
    STANDBY_SIGNAL,
    RECOVERY_SIGNAL,
    POSTMASTER_PID,
    POSTMASTER_OPTS,
];

/// Folders whose content belongs to a server that runs, or that one clears when it starts: a backup has them empty.
pub(crate) const EMPTIED: [&str; 7] = [
    "pg_stat_tmp",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
];

/// The settings that a server reads first, here or beside the data directory.
pub(crate) const MAIN_CONF: &str = "postgresql.conf";

/// The settings of `ALTER SYSTEM`, always in the data directory.
pub(crate) const AUTO_CONF: &str = "postgresql.auto.conf";

/// Who may connect, beside [`MAIN_CONF`].
pub(crate) const HBA_CONF: &str = "pg_hba.conf";

/// Which users may be which roles, beside [`MAIN_CONF`].
pub(crate) const IDENT_CONF: &str = "pg_ident.conf";

/// The last component of a path in a data directory.
pub(crate) fn name_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// The OID of the tablespace that a path lies in or is, with what of the path is below it (empty, or without
/// its first slash); `above` is [`PG_TBLSPC`] in a data directory and [`TMPSPC`] in a set.
pub(crate) fn tablespace_of<'a>(path: &'a [u8], above: &str) -> Option<(u32, &'a [u8])> {
    let rest = path.strip_prefix(above.as_bytes())?.strip_prefix(b"/")?;
    let end = rest.iter().position(|byte| *byte == b'/');
    let (oid, below) = match end {
        Some(end) => (&rest[..end], &rest[end + 1..]),
        None => (rest, &rest[rest.len()..]),
    };
    Some((oid_of(oid)?, below))
}

/// Where a path below `from` ([`PG_TBLSPC`] or [`TMPSPC`]) lies in a directory that keeps that below `to`.
pub(crate) fn relocated(path: &RelativePath, from: &str, to: &str) -> Option<RelativePath> {
    let behind = path.as_bytes().strip_prefix(from.as_bytes())?;
    let behind = behind.strip_prefix(b"/")?;
    RelativePath::new(&[to.as_bytes(), b"/", behind].concat()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tablespace_of_a_path_is_its_second_component() {
        let of = |path: &'static str, above| tablespace_of(path.as_bytes(), above);
        assert_eq!(of("tmpspc/16385", TMPSPC), Some((16_385, &b""[..])));
        assert_eq!(
            of("tmpspc/16385/PG/1", TMPSPC),
            Some((16_385, &b"PG/1"[..]))
        );
        assert_eq!(of("pg_tblspc/7/x", PG_TBLSPC), Some((7, &b"x"[..])));
        for other in [
            "pg_tblspc/7",
            "tmpspc",
            "tmpspc/",
            "tmpspc/x/1",
            "tmpspcs/1",
            "base/tmpspc/1",
        ] {
            assert_eq!(of(other, TMPSPC), None, "{other}");
        }
    }
}
