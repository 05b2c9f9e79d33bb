//! What a set's settings and leftovers may do on this host, settled before a server sees them.
//! Never trusts a set, unless it is told to. Invariant: what was switched off is named once.

use std::path::Path;
use std::sync::Arc;

use walmgr_protocol::names::Lsn;

use super::plan::Plan;
use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::archive_command::cleanup;
use crate::pg::backup_label::BackupLabel;
use crate::pg::conf::foreign::{Host, SwitchedOff};
use crate::pg::conf::{self, ServerSettings};
use crate::pg::layout;
use crate::pg::set_place::transfer::entries;
use crate::pg::sql_settings::COMMAND_LINE;
use crate::pg::{hba, leftovers};
use crate::standby::ahead;
use crate::store::{ArchiveReader, RealDisk, StoreError};

/// Settles what lies in `staging`; every step can be done twice.
pub(super) fn settle(plan: &Plan<'_>, staging: &Path) -> Result<()> {
    remove_leftovers(staging)?;
    if let Some(note) = plan.recovery.note(&plan.server) {
        tracing::info!("{note}");
    }
    let own_hba = own_hba(plan.config);
    let hba = staging.join(layout::HBA_CONF);
    let has_other_files = plan.place.is_slave_data && plan.config.slave_config_dir.is_some();
    if !has_other_files
        && !plan.is_drill
        && let Ok(foreign) = files::read(&hba)
    {
        tell_wider(
            &plan.place.data.join(layout::HBA_CONF),
            &foreign,
            own_hba.as_deref(),
        );
    }
    if plan.trusts_settings {
        tracing::info!("the set's settings are kept unchanged (--trust-settings)");
        return Ok(());
    }
    let own = match plan.is_drill {
        true => Vec::new(),
        false => own_settings(plan.config).unwrap_or_default(),
    };
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
        if plan.is_drill {
            tracing::debug!("{}", off.sentence(path));
            continue;
        }
        tell_off(&plan.place.data.join(path), off);
    }
    Ok(())
}

/// Raises the settings that the master raised behind the backup: a hot standby with less pauses there, or
/// ends. What is set higher stays.
pub(super) fn raise(plan: &Plan<'_>, staging: &Path) -> Result<()> {
    let text = files::read(staging.join(layout::BACKUP_LABEL)).unwrap_or_default();
    let Ok(label) = BackupLabel::parse(&text) else {
        return Ok(());
    };
    let failed =
        |error: StoreError| CommandError::new(error.kind(), "look at what is ahead").because(error);
    let archive =
        ArchiveReader::open(&plan.config.completed_wals, Arc::new(RealDisk)).map_err(failed)?;
    let at = (label.first_segment.timeline(), label.start);
    let met = ahead::find(&archive, None, at).map_err(failed)?;
    let Some(demands) = ahead::demands(&met, Lsn(u64::MAX)) else {
        return Ok(());
    };
    conf::raise(&plan.server, demands)
}

/// Switches off commands that would remove WAL from the archive, which the server replays and sets need. This includes
/// the commands of this host's own files, and `--trust-settings` does not keep them.
pub(super) fn protect_archive(plan: &Plan<'_>) -> Result<()> {
    let archive = &plan.config.completed_wals;
    let mut changes = Vec::new();
    for name in cleanup::SETTINGS {
        let Some(set) = plan.server.get(name) else {
            continue;
        };
        if !cleanup::reaches(&set.value, archive, &plan.place.data) {
            continue;
        }
        let (place, value) = (&set.place, set.value.escape_debug());
        match place == COMMAND_LINE {
            true => tracing::warn!(
                "the server was last started with {name} = '{value}' on its command line, which removes WAL from the \
                archive and overrides every file: take it out of slave_start_cmd"
            ),
            false => tracing::warn!(
                "{name} = '{value}' ({place}) would remove WAL from the archive that backup sets need, and is set to \
                '' in {}; keep_backups and `xpurgewals` remove what nobody needs",
                layout::AUTO_CONF
            ),
        }
        changes.push((name, ""));
    }
    if changes.is_empty() {
        return Ok(());
    }
    let path = plan.server.automatic();
    let text = files::read(&path).at(Kind::Retry, "read", &path)?;
    let (edited, _) = conf::edit(&text, &changes)?;
    files::replace(&path, &edited, 0o600).at(Kind::Retry, "write", &path)
}

fn remove_leftovers(staging: &Path) -> Result<()> {
    leftovers::remove(staging)?;
    for name in entries(staging).at(Kind::Retry, "list", staging)? {
        let path = staging.join(&name);
        if path.is_symlink() && name != layout::PG_WAL {
            tracing::warn!("{} is a symlink and was removed", path.display());
            files::remove_any(&path)?;
        }
    }
    Ok(())
}

/// The main file of the standby's own server, wherever that lies.
fn own_settings(config: &StandbyConfig) -> Option<Vec<u8>> {
    files::read(own_server(config)?.config_file()).ok()
}

/// Whom that server lets in.
fn own_hba(config: &StandbyConfig) -> Option<Vec<u8>> {
    let server = own_server(config)?;
    let named = server.value("hba_file").filter(|name| !name.is_empty());
    let named = named.unwrap_or_else(|| layout::HBA_CONF.to_owned());
    // A relative name begins in the folder that `-D` leads to: that of the main file, or the data directory.
    let folders = [server.config_file().parent(), config.slave_data.as_deref()];
    let mut places = folders
        .into_iter()
        .flatten()
        .map(|folder| folder.join(&named));
    files::read(places.find(|path| path.exists())?).ok()
}

fn own_server(config: &StandbyConfig) -> Option<ServerSettings> {
    let folder = config.slave_config_dir.as_ref();
    let main = folder.map(|folder| folder.join(layout::MAIN_CONF));
    let data = config.slave_data.as_ref()?;
    Some(ServerSettings::of(data, main.as_deref()))
}

/// Names a line that was switched off.
pub(super) fn tell_off(path: &Path, off: &SwitchedOff) {
    tracing::warn!("{}", off.sentence(path));
}

/// Names the lines that let in whom this host's own file does not.
pub(super) fn tell_wider(path: &Path, foreign: &[u8], own: Option<&[u8]>) {
    for line in hba::wider(foreign, own) {
        let (path, line) = (path.display(), line.escape_debug());
        tracing::warn!("{path} lets in more than this host's own file did: {line}");
    }
}
