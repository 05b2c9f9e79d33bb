//! `init` on the standby: a first ini file, the identity, and what to type next.
//! Never overwrites a file.

use std::path::{Path, PathBuf};

use crate::config::{self, Config, DEFAULT_PORT, HostConfig, StandbyConfig, sample};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::options::Options;
use crate::{files, identity, output};

/// Writes `ini`, creates the key, and says what comes next.
pub(crate) fn run(ini: &Path, options: &Options) -> Result<()> {
    let ini = std::path::absolute(ini).at(Kind::Config, "find", ini)?;
    let host = config::host_around(&ini);
    let name = ini.file_stem().unwrap_or_default().to_string_lossy();
    let base = archive_base(&ini);
    let text = sample::standby_ini(&sample::InitStandby {
        walmgr_data: match &host {
            Some(_) => base.join(&*name),
            None => base,
        },
        hosted_name: host.as_ref().map(|_| name.into_owned()),
        ..sample::InitStandby::default()
    })?;
    if options.not_really {
        return output::not_really(&format!("write {}:\n{text}", ini.display()));
    }
    files::create_settings(&ini, &text)?;
    let Config::Standby(config) = config::load(&ini, &options.overrides)? else {
        return Err(CommandError::config(
            "the file that was written is no standby's",
        ));
    };
    if let Some(host) = host {
        return say_of_hosted(&config, &host);
    }
    let fingerprint = identity::ensure(&config.tls, &config.job_name)?;
    let ini = ini.display();
    let port = config.listen.first().map_or(DEFAULT_PORT, |at| at.port);
    output::print(&format!(
        "Wrote {ini}: the archive goes to {}, the receiver listens on {}.\nChange both in this \
        file if they are wrong. The master must reach the receiver's address; only this host \
        reaches 127.0.0.1. Then type here:\n\n    walmgr {ini} setup && walmgr {ini} receiver \
        -d\n\nand on the master (as the user that runs PostgreSQL):\n\n    walmgr master.ini init \
        --pgdata DIR --slave THIS_HOST:{port} --slave-fingerprint {fingerprint}",
        config.completed_wals.display(),
        config.listen_text(),
    ))
}

/// What comes next where a host serves the cluster; its key is what the masters meet.
fn say_of_hosted(config: &StandbyConfig, host: &HostConfig) -> Result<()> {
    let fingerprint = identity::ensure(&host.tls, &host.job_name)?;
    let port = host.listen.first().map_or(DEFAULT_PORT, |at| at.port);
    output::print(&format!(
        "Wrote {ini}: the archive goes to {}. Change it in this file if it is wrong.\nThe receiver of {host} serves \
         this cluster with its others. Type here:\n\n    walmgr {ini} setup\n    walmgr {host} receiver --reload\n\n\
         (or `walmgr {host} receiver -d` if it does not run yet) and on the master (as the user that runs \
         PostgreSQL):\n\n    walmgr master.ini init --pgdata DIR --slave THIS_HOST:{port} --slave-fingerprint \
         {fingerprint}\n\nand here with the fingerprint that this prints:\n\n    \
         walmgr {ini} authorize FPR NAME",
        config.completed_wals.display(),
        ini = config.path.display(),
        host = host.path.display(),
    ))
}

/// The manual's place when PostgreSQL's user runs this; below any other user's home otherwise.
fn archive_base(ini: &Path) -> PathBuf {
    let home = std::env::home_dir().filter(|home| home.is_absolute());
    let base = home
        .or_else(|| ini.parent().map(Path::to_path_buf))
        .unwrap_or_default();
    base.join("walshipping")
}
