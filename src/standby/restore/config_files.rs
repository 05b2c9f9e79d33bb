//! Brings PostgreSQL's configuration files back from `config_backup`, with archiving turned off.
//! Never removes a file. Invariant: what belongs to this host and not to the cluster stays as the
//! standby's own `postgresql.conf` has it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;

use super::plan::Plan;
use super::settings;
use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::conf;
use crate::pg::conf::foreign::{Host, is_outside_postgresql};
use crate::pg::layout;
use crate::pg::set_place::transfer::entries;
use crate::store::{ConfigCopies, LIST_NAME};

/// What a person can do about a copy that is not what it was.
const HINT: &str = "the next backup replaces it; if it was changed on purpose, remove \
    .walmgr-checksums beside it";

/// Settings that are about the host: the standby's own win over the master's.
const OF_THE_HOST: [&str; 9] = [
    "port",
    "listen_addresses",
    "unix_socket_directories",
    "hba_file",
    "ident_file",
    "external_pid_file",
    "cluster_name",
    "ssl_cert_file",
    "ssl_key_file",
];

/// Folders such as `conf.d`, and no deeper.
const DEPTH_MAX: usize = 3;

/// Copies the files to `slave_config_dir`, or into the new data directory if it has none of its own.
pub(super) fn restore(plan: &Plan<'_>, staging: &Path) -> Result<()> {
    let (config, data) = (plan.config, &plan.place.data);
    let target = match &config.slave_config_dir {
        Some(folder) => folder.clone(),
        None if !staging.join(layout::MAIN_CONF).exists() => staging.to_path_buf(),
        None => return Ok(()),
    };
    let Some(source) = &config.config_backup else {
        if config.slave_config_dir.is_some() {
            tracing::info!("there is no config_backup: configuration files are not changed");
        } else {
            tracing::warn!(
                "the set has no {} and there is no config_backup",
                layout::MAIN_CONF
            );
        }
        return Ok(());
    };
    if !source.is_dir() {
        tracing::warn!(
            "{} does not exist: configuration files are not changed",
            source.display()
        );
        return Ok(());
    }
    copy_folder(
        source,
        &target,
        &ConfEdit {
            source,
            target: &target,
            home: config.slave_config_dir.as_deref().unwrap_or(data),
            data,
            trusts: plan.trusts_settings,
            copies: ConfigCopies::read(source),
        },
        DEPTH_MAX,
    )
}

/// Refuses copies that are not what their backup brought, before anything is touched.
pub(super) fn check(config: &StandbyConfig) -> Result<()> {
    let copies = config.config_backup.as_deref().map(ConfigCopies::read);
    match copies.and_then(|copies| copies.damage()) {
        Some(why) => Err(CommandError::retry(why).hint(HINT)),
        None => Ok(()),
    }
}

/// What the edit of `postgresql.conf` needs.
struct ConfEdit<'a> {
    source: &'a Path,
    target: &'a Path,
    /// Where the files will lie: what is prepared beside the data directory moves there.
    home: &'a Path,
    data: &'a Path,
    /// Whether the files are taken as they are.
    trusts: bool,
    copies: ConfigCopies,
}

fn copy_folder(
    source: &Path,
    target: &Path,
    settings: &ConfEdit<'_>,
    depth_left: usize,
) -> Result<()> {
    files::make_directory(target)?;
    for name in entries(source).at(Kind::Retry, "list", source)? {
        if name == LIST_NAME {
            continue;
        }
        let (from, to) = (source.join(&name), target.join(&name));
        let found = from.symlink_metadata().at(Kind::Retry, "examine", &from)?;
        if found.is_dir() && depth_left > 1 {
            copy_folder(&from, &to, settings, depth_left - 1)?;
        } else if is_outside_postgresql(&name.to_string_lossy()) {
            tracing::warn!(
                "{} is left out: it has an effect outside PostgreSQL",
                from.display()
            );
        } else if found.is_file() && found.len() <= SMALL_FILE_BYTES_MAX {
            copy_file(&from, &to, settings)?;
        } else {
            tracing::warn!("{} is left out", from.display());
        }
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path, settings: &ConfEdit<'_>) -> Result<()> {
    let mut text = files::read(from).at(Kind::Retry, "read", from)?;
    // One step down lies what `include_dir` reads.
    let name = from.strip_prefix(settings.source).unwrap_or(from);
    if let Some(why) = settings.copies.contradicts(&name.to_string_lossy(), &text) {
        return Err(CommandError::retry(why).hint(HINT));
    }
    let old = files::read(to).ok();
    if to == settings.target.join(layout::MAIN_CONF) {
        text = settings.edit(&text, old.as_deref().unwrap_or_default())?;
    }
    text = settings.settle(text, to, old.as_deref());
    match old {
        Some(old) if old == text => return Ok(()),
        Some(old) => {
            let copy = conf::old_copy_of(to);
            files::replace(&copy, &old, 0o600).at(Kind::Retry, "write", &copy)?;
        }
        None => {}
    }
    files::replace(to, &text, 0o640).at(Kind::Retry, "write", to)?;
    tracing::info!("{} restored", to.display());
    Ok(())
}

impl ConfEdit<'_> {
    /// The text without orders, which are named; or what it lets in that the old one did not.
    fn settle(&self, text: Vec<u8>, to: &Path, old: Option<&[u8]>) -> Vec<u8> {
        match to.file_name().and_then(OsStr::to_str) {
            Some(layout::HBA_CONF) => {
                settings::tell_wider(to, &text, old);
                text
            }
            Some(layout::IDENT_CONF) => text,
            _ if self.trusts => text,
            _ => {
                let host = Host {
                    own: old.unwrap_or_default(),
                    data: self.data,
                };
                let (kept, off) = host.neutralise(&text, self.target);
                for off in &off {
                    settings::tell_off(to, off);
                }
                kept
            }
        }
    }

    fn edit(&self, text: &[u8], old: &[u8]) -> Result<Vec<u8>> {
        let mut changes = vec![
            ("archive_mode", "off".to_owned()),
            ("archive_command", String::new()),
        ];
        if conf::value(text, "data_directory").is_some() {
            changes.push(("data_directory", self.data.display().to_string()));
        }
        for name in OF_THE_HOST {
            let theirs = conf::value(text, name);
            let value = match (conf::value(old, name), theirs) {
                (Some(own), _) => own,
                (None, Some(theirs)) => match self.on_this_host(name, theirs) {
                    Some(value) => value,
                    None => continue,
                },
                (None, None) => continue,
            };
            changes.push((name, value));
        }
        let changes: Vec<(&str, &str)> = changes
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        Ok(conf::edit(text, &changes)?.0)
    }

    /// What the master's value of a path means here; `None` if it may stay.
    fn on_this_host(&self, name: &str, theirs: String) -> Option<String> {
        let beside = || {
            let name = PathBuf::from(&theirs);
            let path = self.home.join(name.file_name()?);
            Some(path.display().to_string())
        };
        match name {
            "hba_file" | "ident_file" => beside(),
            // Two servers on one host must not write one file.
            "external_pid_file" => Some(String::new()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_settings_stay_and_archiving_is_off() {
        let settings = ConfEdit {
            target: Path::new("/data/standby.restoring"),
            home: Path::new("/etc/standby"),
            data: Path::new("/data/standby"),
            trusts: false,
            source: Path::new("/archive/config.backup"),
            copies: ConfigCopies::read(Path::new("/archive/config.backup")),
        };
        let master = b"data_directory = '/data/main'\nport = 5432\nwork_mem = 5MB\n\
            hba_file = '/etc/main/pg_hba.conf'\nexternal_pid_file = '/run/15-main.pid'\n\
            archive_mode = on\narchive_command = 'walmgr m.ini xarchive %p %f'\n";
        let edited = settings.edit(master, b"port = 5433\ncluster_name = 's'\nwork_mem = 1MB\n");
        let edited = edited.unwrap();
        for (name, value) in [
            ("data_directory", "/data/standby"),
            ("port", "5433"),
            ("cluster_name", "s"),
            ("work_mem", "5MB"),
            ("hba_file", "/etc/standby/pg_hba.conf"),
            ("external_pid_file", ""),
            ("archive_mode", "off"),
            ("archive_command", ""),
        ] {
            assert_eq!(conf::value(&edited, name).as_deref(), Some(value), "{name}");
        }
    }
}
