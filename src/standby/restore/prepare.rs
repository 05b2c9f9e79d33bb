//! Turns a set's files into a data directory that replays: tablespaces, pg_wal, settings, signal.
//! Never lets PostgreSQL start from it: the control file is out of the way. Invariant: every step
//! can be done twice, and what it leaves is durable.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use walmgr_protocol::names::WalFileName;

use super::plan::Plan;
use crate::error::{IoContext, Kind, Result};
use crate::files;
use crate::pg::conf::{self, brought};
use crate::pg::layout;
use crate::pg::needs::WITHIN_PREFIX;
use crate::pg::set_place::transfer::{self, entries};
use crate::pg::set_place::within;
use crate::pg::set_place::{claim_tablespaces, free_name};
use crate::pg::{group_access, mounts};

/// The set's pg_wal while its content moves elsewhere.
const OLD_WAL: &str = "pg_wal.restoring";

/// Prepares the files in `staging`.
pub(super) fn run(plan: &Plan<'_>, staging: &Path) -> Result<()> {
    // PostgreSQL refuses a directory that others may look into.
    let mode = PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(staging, mode).at(Kind::Retry, "change the mode of", staging)?;
    for left in layout::OF_A_SERVER {
        let path = staging.join(left);
        files::remove(&path).at(Kind::Retry, "remove", &path)?;
    }
    place_tablespaces(plan, staging)?;
    plan.later.lead()?;
    place_wal(plan, staging)?;
    // Before anything comes that may be a key: that stays closed.
    let spaces: Vec<PathBuf> = plan.tablespaces.values().cloned().collect();
    let modes = group_access::apply(staging, &spaces);
    modes.at(Kind::Retry, "change the modes of", staging)?;
    for path in brought::put_in_place(staging, &plan.place.data)? {
        let path = path.strip_prefix(staging).unwrap_or(&path);
        tracing::info!("{} is the one that the set brought", path.display());
    }
    if plan.place.is_slave_data && plan.config.slave_config_dir.is_none() {
        // Before they are settled: they may include what the set brought.
        super::config_files::restore(plan, staging)?;
    }
    super::settings::settle(plan, staging)?;
    for path in conf::make_missing_folders(&staging.join(layout::MAIN_CONF), staging)? {
        let path = path.strip_prefix(staging).unwrap_or(&path);
        tracing::info!("{} is made, as the set has no empty folder", path.display());
    }
    // Behind it, as it removes links that a set may have brought.
    plan.kept.link_logs(staging)?;
    plan.recovery.write(staging)?;
    super::settings::raise(plan, staging)?;
    files::sync_directory(staging).at(Kind::Retry, "sync", staging)
}

/// Leads the links to where the tablespaces are. PostgreSQL would make them anew, to the master's
/// paths, as long as there is a `tablespace_map`.
fn place_tablespaces(plan: &Plan<'_>, staging: &Path) -> Result<()> {
    claim_tablespaces(staging, &plan.tablespaces)?;
    let (kept, links) = (
        staging.join(layout::TMPSPC),
        staging.join(layout::PG_TBLSPC),
    );
    let kept_oids = match kept.is_dir() {
        true => entries(&kept).at(Kind::Retry, "list", &kept)?,
        false => Vec::new(),
    };
    for oid in &kept_oids {
        if !plan.tablespaces.contains_key(oid) {
            let link = links.join(oid);
            let target = plan.place.data.join(layout::TMPSPC).join(oid);
            files::link(&link, &target).at(Kind::Retry, "link", &link)?;
        }
    }
    for (oid, space) in &plan.tablespaces {
        let from = kept.join(oid);
        if from.is_dir() {
            transfer::move_entries(&from, space)?;
            files::remove_any(&from)?;
        }
    }
    let (map, done) = (
        staging.join(layout::TABLESPACE_MAP),
        staging.join(layout::TABLESPACE_MAP_DONE),
    );
    if map.exists() {
        files::remove_any(&done)?;
        files::move_to(&map, &done).at(Kind::Retry, "rename", &map)?;
    }
    Ok(())
}

/// An empty pg_wal, but for what the set had in it, in the data directory or at `slave_pg_xlog`.
fn place_wal(plan: &Plan<'_>, staging: &Path) -> Result<()> {
    let wal = staging.join(layout::PG_WAL);
    let old_wal = staging.join(OLD_WAL);
    let Some(place) = plan.wal_directory() else {
        if wal.is_symlink() {
            files::remove_any(&wal)?;
        }
        return files::make_directory(&wal);
    };
    if std::fs::read_link(&wal).ok().as_deref() != Some(place) {
        move_old_wal_aside(plan, place)?;
        files::make_directory(place)?;
        if wal.is_dir() && !wal.is_symlink() {
            files::move_to(&wal, &old_wal).at(Kind::Retry, "rename", &wal)?;
        }
        files::link(&wal, place).at(Kind::Retry, "link", &wal)?;
    }
    files::make_directory(place)?;
    if old_wal.is_dir() {
        transfer::move_entries(&old_wal, place)?;
        files::remove_any(&old_wal)?;
    }
    Ok(())
}

/// The WAL of another life of the server must not be replayed. What its own pg_wal leads to stays
/// with the old data directory.
fn move_old_wal_aside(plan: &Plan<'_>, place: &Path) -> Result<()> {
    if !place.is_dir() || std::fs::remove_dir(place).is_ok() {
        return Ok(());
    }
    let is_mount = mounts::is_mount_point(place)?;
    let keeps = plan.config.backup_datadir || !holds_only_wal(place, is_mount)?;
    if is_mount {
        let aside = within::make_way(place, keeps)?;
        return match aside {
            Some(aside) if !keeps => files::remove_any(&aside),
            Some(aside) if plan.place.data.is_dir() => {
                transfer::relink(&plan.place.data, place, &aside)
            }
            _ => Ok(()),
        };
    }
    if !keeps {
        return files::remove_any(place);
    }
    let aside = free_name(place)?;
    files::move_to(place, &aside).at(Kind::Retry, "move aside", place)?;
    tracing::info!("the old {} is now {}", place.display(), aside.display());
    if plan.place.data.is_dir() {
        transfer::relink(&plan.place.data, place, &aside)?;
    }
    Ok(())
}

/// Whether all that is there is what a server keeps in its `pg_wal`, so that it may go with the server. Where a
/// file system is mounted, what belongs to that stays anyway.
fn holds_only_wal(place: &Path, is_mount: bool) -> Result<bool> {
    let is_of_a_server = |name: &std::ffi::OsStr| {
        let name = name.to_str().unwrap_or_default();
        let prefixes = ["RECOVERY", "xlogtemp.", WITHIN_PREFIX];
        [layout::ARCHIVE_STATUS, layout::SUMMARIES].contains(&name)
            || prefixes.iter().any(|prefix| name.starts_with(prefix))
            || name.parse::<WalFileName>().is_ok()
            || is_mount && name == mounts::LOST_AND_FOUND
    };
    for entry in std::fs::read_dir(place).at(Kind::Retry, "list", place)? {
        let name = entry.at(Kind::Retry, "list", place)?.file_name();
        if !is_of_a_server(&name) {
            let path = place.join(name);
            tracing::info!("{} belongs to no server and is kept", path.display());
            return Ok(false);
        }
    }
    Ok(true)
}
