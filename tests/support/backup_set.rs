//! Backup sets made by hand, with any version: a copy of the running master and its label.
//! Never made by walmgr, so that a restore is tested by itself. Invariant: what is placed is whole:
//! the WAL it needs is in the archive when the function returns.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::place::give_to_server;
use super::{Site, run};
use crate::load::drain;

/// Where the set of this name goes: `data.master` and so on.
pub fn set_path(site: &Site, name: &str) -> PathBuf {
    site.completed_wals().with_file_name(name)
}

/// Copies the running master into a set, tablespaces into `tmpspc/OID`.
pub fn make_set(site: &Site, name: &str) -> PathBuf {
    let set = set_path(site, name);
    let making = set.with_extension("making");
    fs::create_dir(&making).unwrap();
    give_to_server(&making);
    let [label, map] = copy_while_backing_up(site, &making);
    clean(&making);
    fs::write(making.join("backup_label"), label).unwrap();
    if !map.trim().is_empty() {
        fs::write(making.join("tablespace_map"), map).unwrap();
    }
    take_in_tablespaces(&making);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&making, mode).unwrap();
    give_to_server(&making);
    drain(site);
    fs::rename(&making, &set).unwrap();
    set
}

/// The label and the map, from the session that began the backup.
fn copy_while_backing_up(site: &Site, set: &Path) -> [String; 2] {
    let cluster = site.cluster();
    let (start, stop) = match cluster.major() {
        13 | 14 => (
            "pg_start_backup('FullBackup', true, false)",
            "pg_stop_backup(false)",
        ),
        _ => (
            "pg_backup_start('FullBackup', true)",
            "pg_backup_stop(false)",
        ),
    };
    let (data, set) = (cluster.data().display(), set.display());
    let script = [
        format!("SELECT 'begun ' || {start}"),
        // Files come and go meanwhile.
        format!("\\! cp -a {data}/. {set} 2>/dev/null"),
        format!("SELECT '@@' || labelfile || '@@' || spcmapfile || '@@' FROM {stop}"),
    ];
    let mut psql = cluster.command("psql");
    psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]);
    for line in &script {
        psql.args(["-c", line]);
    }
    let said = run(&mut psql).unwrap();
    let mut parts = said.split("@@").skip(1);
    [parts.next().unwrap(), parts.next().unwrap()].map(str::to_owned)
}

/// Leaves out what pg_basebackup leaves out, as far as it matters.
fn clean(set: &Path) {
    for name in ["postmaster.pid", "postmaster.opts"] {
        let _ = fs::remove_file(set.join(name));
    }
    for name in ["pg_wal", "pg_replslot"] {
        fs::remove_dir_all(set.join(name)).unwrap();
        fs::create_dir(set.join(name)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(set.join(name), mode).unwrap();
    }
}

fn take_in_tablespaces(set: &Path) {
    for entry in fs::read_dir(set.join("pg_tblspc")).unwrap().flatten() {
        let oid = entry.file_name();
        let from = fs::read_link(entry.path()).unwrap();
        let to = set.join("tmpspc").join(&oid);
        fs::create_dir_all(set.join("tmpspc")).unwrap();
        run(Command::new("cp").arg("-a").arg(&from).arg(&to)).unwrap();
        fs::remove_file(entry.path()).unwrap();
        symlink(Path::new("../tmpspc").join(&oid), entry.path()).unwrap();
    }
}
