//! `init` on the standby: a first ini file, the identity, and what to type next.
//! Never overwrites a file.

use std::path::{Path, PathBuf};

use crate::config::{self, Config, DEFAULT_PORT, HostConfig, StandbyConfig, sample};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::options::{InitArgs, Options};
use crate::standby::password::{self, NewPassword};
use crate::standby::start::{self, ReceiverStart};
use crate::standby::{next_step, setup};
use crate::{files, identity, output};

/// Writes `ini`, creates the key, and says what comes next.
pub(crate) fn run(ini: &Path, options: &Options, typed: &InitArgs) -> Result<()> {
    let ini = std::path::absolute(ini).at(Kind::Config, "find", ini)?;
    if typed.remove_password {
        return password::remove(&ini, typed, options);
    }
    let password = NewPassword::read(&ini, typed)?;
    // Typed again for the password alone.
    if let Some(password) = password.as_ref().filter(|_| ini.exists()) {
        tracing::info!("{} exists already and is not changed", ini.display());
        return match options.not_really {
            true => output::not_really(&password.in_words()),
            false => password.add(),
        };
    }
    if typed.start && ini.exists() {
        return start_again(&ini, options, typed);
    }
    let host = config::host_around(&ini);
    if let Some(host) = host
        .as_ref()
        .filter(|_| typed.start || typed.listen.is_some())
    {
        let host = host.path.display();
        return Err(CommandError::usage(format!(
            "the receiver of {host} serves this cluster, and listens where {host} says: --start and --listen are not for it"
        ))
        .hint(format!("leave them out; `walmgr {host} receiver -d` starts it")));
    }
    let name = ini.file_stem().unwrap_or_default().to_string_lossy();
    let base = archive_base(&ini);
    let text = sample::standby_ini(&sample::InitStandby {
        walmgr_data: match &host {
            Some(_) => base.join(&*name),
            None => base,
        },
        hosted_name: host.as_ref().map(|_| name.into_owned()),
        listen: typed.listen.clone(),
        slave_data: slave_data(typed)?,
        primary_conninfo: typed.primary_conninfo.clone(),
        ..sample::InitStandby::default()
    })?;
    if options.not_really {
        let password = password.map(|password| format!("{}, and ", password.in_words()));
        let password = password.unwrap_or_default();
        return output::not_really(&format!("{password}write {}:\n{text}", ini.display()));
    }
    files::create_settings(&ini, &text)?;
    let Config::Standby(config) = config::load(&ini, &options.overrides)? else {
        return Err(CommandError::config(
            "the file that was written is no standby's",
        ));
    };
    if let Some(password) = password {
        password.add()?;
    }
    if let Some(host) = host {
        return say_of_hosted(&config, &host);
    }
    say_what_is_next(&config, options, typed, "Wrote")
}

/// What was begun before is finished: the file stays as it is, everything else is made unless it is there.
fn start_again(ini: &Path, options: &Options, typed: &InitArgs) -> Result<()> {
    let Config::Standby(config) = config::load(ini, &options.overrides)? else {
        return Err(CommandError::usage(format!(
            "{} is no standby's ini file",
            ini.display()
        )));
    };
    match options.not_really {
        true => output::not_really(&format!(
            "make the folders of {} and start its receiver",
            ini.display()
        )),
        false => say_what_is_next(&config, options, typed, "Left as it was:"),
    }
}

fn say_what_is_next(
    config: &StandbyConfig,
    options: &Options,
    typed: &InitArgs,
    what: &str,
) -> Result<()> {
    let fingerprint = identity::ensure(&config.tls, &config.job_name)?;
    let ini = config.path.display();
    let port = config.listen.first().map_or(DEFAULT_PORT, |at| at.port);
    let begin = format!(
        "{what} {ini}: the archive goes to {}, the receiver listens on {}.",
        config.completed_wals.display(),
        config.listen_text(),
    );
    if !typed.start {
        return output::print(&format!(
            "{begin}\nChange both in this file if they are wrong. The master must reach the receiver's address; only \
            this host reaches 127.0.0.1. Then type here:\n\n    walmgr {ini} setup && walmgr {ini} receiver -d\n\n\
            and on the master (as the user that runs PostgreSQL):\n\n    walmgr master.ini init --pgdata DIR --slave \
            THIS_HOST:{port} --slave-fingerprint {fingerprint}",
        ));
    }
    setup::make(config, options)?;
    let next = match start::receiver(config, typed.unit_follows)? {
        ReceiverStart::Runs(words) => format!("{words}."),
        ReceiverStart::TypedByRoot(line) => format!("Type here:\n\n    {line}\n"),
    };
    output::print(&format!(
        "{begin}\n{next}\nType on the master, with --pgdata DIR if it has several clusters:\n\n    {}",
        next_step::master_init(&config.path, &config.listen, &fingerprint),
    ))
}

/// The directory of the standby's server, which need not be there yet.
fn slave_data(typed: &InitArgs) -> Result<Option<PathBuf>> {
    let path = typed.pgdata.as_deref();
    path.map(|path| std::path::absolute(path).at(Kind::Config, "find", path))
        .transpose()
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
