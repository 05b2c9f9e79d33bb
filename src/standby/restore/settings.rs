//! What a set's settings and leftovers may do on this host, settled before a server sees them.
//! Never trusts a set, unless it is told to. Invariant: what was switched off is named once.

use std::path::Path;

use super::plan::Plan;
use super::transfer::{self, entries};
use crate::config::StandbyConfig;
use crate::error::{IoContext, Kind, Result};
use crate::pg::conf::foreign::{Host, SwitchedOff};
use crate::pg::hba;

/// Files by which a server or an administrator was told something, and which no set is to bring:
/// they promote, rotate, end the start, or stand for another life of the server.
const LEFTOVERS: [&str; 8] = [
    "promote",
    "fallback_promote",
    "logrotate",
    "recovery.conf",
    "recovery.done",
    "current_logfiles",
    "backup_label.unsealed",
    super::taken::NOTE,
];

/// Folders whose content belongs to a running server. `pg_stat_tmp` may hold what `boot` would take
/// for an answer that this host's `xrestore` gave.
const EMPTIED: [&str; 5] = [
    "pg_stat_tmp",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_snapshots",
];

/// Settles what lies in `staging`; every step can be done twice.
pub fn settle(plan: &Plan<'_>, staging: &Path) -> Result<()> {
    remove_leftovers(staging)?;
    let own_hba = own_file(plan.config, "pg_hba.conf");
    let hba = staging.join("pg_hba.conf");
    let has_other_files = plan.place.is_slave_data && plan.config.slave_config_dir.is_some();
    if !has_other_files && let Ok(foreign) = std::fs::read(&hba) {
        tell_wider(
            &plan.place.data.join("pg_hba.conf"),
            &foreign,
            own_hba.as_deref(),
        );
    }
    if plan.trusts_settings {
        tracing::info!("the set's settings are taken as they are (--trust-settings)");
        return Ok(());
    }
    let own = own_file(plan.config, "postgresql.conf").unwrap_or_default();
    let host = Host {
        own: &own,
        data: &plan.place.data,
    };
    let replaced = plan.recovery.settings();
    let mut off = host.neutralise_directory(staging)?;
    // These are set for this recovery in any case.
    off.retain(|(_, off)| !replaced.iter().any(|(name, _)| *name == off.name));
    for (path, off) in &off {
        let path = path.strip_prefix(staging).unwrap_or(path);
        tell_off(&plan.place.data.join(path), off);
    }
    Ok(())
}

fn remove_leftovers(staging: &Path) -> Result<()> {
    for name in LEFTOVERS {
        transfer::remove(&staging.join(name))?;
    }
    for name in EMPTIED {
        let folder = staging.join(name);
        match folder.symlink_metadata() {
            Ok(found) if found.is_dir() => transfer::remove_entries(&folder)?,
            _ => {}
        }
    }
    for name in entries(staging).at(Kind::Retry, "list", staging)? {
        let path = staging.join(&name);
        if path.is_symlink() && name != "pg_wal" {
            tracing::warn!("{} is a symlink and was removed", path.display());
            transfer::remove(&path)?;
        }
    }
    Ok(())
}

/// A file of settings as the standby's own server has it.
fn own_file(config: &StandbyConfig, name: &str) -> Option<Vec<u8>> {
    let folder = config.slave_config_dir.as_ref();
    let folder = folder.or(config.slave_data.as_ref())?;
    std::fs::read(folder.join(name)).ok()
}

/// Names a line that was switched off.
pub fn tell_off(path: &Path, off: &SwitchedOff) {
    tracing::warn!("{}", off.sentence(path));
}

/// Names the lines that let in whom this host's own file does not.
pub fn tell_wider(path: &Path, foreign: &[u8], own: Option<&[u8]>) {
    for line in hba::wider(foreign, own) {
        let (path, line) = (path.display(), line.escape_debug());
        tracing::warn!("{path} lets in more than this host's own file did: {line}");
    }
}
