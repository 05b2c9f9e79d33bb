//! `init --host`: a first file of a host of many clusters, its folder and its identity, and what to type next.
//! Never overwrites a file.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::config::{self, Config, DEFAULT_PORT, sample};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::options::Options;
use crate::{files, identity, output};

/// Writes `ini`, makes the folder `clusters.d` beside it and the key, and says what comes next.
pub(crate) fn run(ini: &Path, options: &Options) -> Result<()> {
    let ini = std::path::absolute(ini).at(Kind::Config, "find", ini)?;
    let folder = ini.with_file_name("clusters.d");
    let text = sample::host_ini(&folder)?;
    if options.not_really {
        return output::not_really(&format!(
            "make {} and write {}:\n{text}",
            folder.display(),
            ini.display()
        ));
    }
    files::create_settings(&ini, &text)?;
    if !folder.is_dir() {
        // Who writes there decides which archives this host's receiver opens, and who is let in.
        let made = DirBuilder::new().mode(0o700).create(&folder);
        made.at_setting("make", &folder)?;
    }
    let Config::Host(config) = config::load(&ini, &options.overrides)? else {
        return Err(CommandError::config(
            "the file that was written is no host's",
        ));
    };
    let fingerprint = identity::ensure(&config.tls, &config.job_name)?;
    let port = config.listen.first().map_or(DEFAULT_PORT, |at| at.port);
    let (ini, cluster) = (ini.display(), folder.join("db1.ini"));
    output::print(&format!(
        "Wrote {ini}: the receiver listens on {} and serves every cluster of {}.\nChange the address in this file if it \
         is wrong. The masters must reach it; only this host reaches 127.0.0.1. Then type for each cluster, by a name \
         of its own:\n\n    walmgr {cluster} init standby && walmgr {cluster} setup\n\nand once here:\n\n    \
         walmgr {ini} receiver -d\n\nEach master is given:\n\n    \
         walmgr master.ini init --pgdata DIR --slave THIS_HOST:{port} --slave-fingerprint {fingerprint}",
        config.listen_text(),
        folder.display(),
        cluster = cluster.display(),
    ))
}
