//! `init` on the standby: a first ini file, the identity, and what to type next.
//! Never overwrites a file.

use std::path::{Path, PathBuf};

use crate::config::{self, Config, DEFAULT_PORT, sample};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::options::Options;
use crate::{files, identity, output};

/// Writes `ini`, creates the key, and says what comes next.
pub(crate) fn run(ini: &Path, options: &Options) -> Result<()> {
    let ini = std::path::absolute(ini).at(Kind::Config, "find", ini)?;
    let text = sample::standby_ini(&sample::InitStandby {
        walmgr_data: archive_base(&ini),
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

/// The manual's place when PostgreSQL's user runs this; below any other user's home otherwise.
fn archive_base(ini: &Path) -> PathBuf {
    let home = std::env::home_dir().filter(|home| home.is_absolute());
    let base = home
        .or_else(|| ini.parent().map(Path::to_path_buf))
        .unwrap_or_default();
    base.join("walshipping")
}
