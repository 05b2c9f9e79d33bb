//! `cleanup` on the master: removes what `init`, `setup` and the daemons made beside the ini file.
//! Never touches the data directory, and never runs while anything still uses the ini file. Invariant: PostgreSQL calls no
//! walmgr with this ini file when it is removed.

use crate::cleanup::{self, CleanupArgs, Neighbours, Trace};
use crate::config::MasterConfig;
use crate::daemon;
use crate::error::{CommandError, Result};
use crate::master::agent;
use crate::master::archiving;
use crate::master::held_note;
use crate::master::synch_note::SynchNote;
use crate::options::Options;
use crate::pg::archive_command::restores::may_restore_with;
use crate::pg::archive_command::{Destination, Ours, destination};
use crate::pg::conf;
use crate::pg::data_directory::DataDirectory;
use crate::pg::layout;
use crate::pg::leftovers::SYNCHRONOUS_NOTE;
use crate::pg::sql_standbys::SYNCHRONOUS_NAMES;
use crate::status::Archiving;

/// What `setup` and `stop` change in `postgresql.conf`.
const CHANGED: [&str; 3] = ["archive_mode", "archive_command", "wal_level"];

/// Longest `postgresql.conf` that is compared with its copy.
const CONF_BYTES_MAX: u64 = 4 << 20;

/// Lists what goes, asks, and removes it.
pub(crate) fn run(config: &MasterConfig, options: &Options, typed: CleanupArgs) -> Result<()> {
    refuse_while_used(config)?;
    let (ini, others) = (&config.path, Neighbours::of(&config.path));
    let beside_ini = ini.with_extension("log");
    let log = config.logfile.as_deref().unwrap_or(&beside_ini);
    let mut traces: Vec<Trace> = [
        Some(Trace::stays(
            &config.master_data,
            "data directory",
            "cleanup removes none",
        )),
        Trace::file(
            &config.master_data.join(SYNCHRONOUS_NOTE),
            "synchronous standbys that were set",
        ),
        Trace::file(&ini.with_extension("timeline"), "which histories were sent"),
        Trace::file(&held_note::path(ini), "what the receiver had acknowledged"),
        Trace::file(&ini.with_extension("periodic"), "when periodic_command ran"),
        cleanup::log(log, &others),
        old_copy(config, &others),
    ]
    .into_iter()
    .flatten()
    .collect();
    for pidfile in agent::pidfiles(config) {
        let what = "where a killed syncdaemon or xarchive was asked";
        traces.extend(Trace::socket(&agent::socket_beside(&pidfile), what));
        traces.extend(cleanup::pidfile(&pidfile, &others));
    }
    traces.extend(cleanup::identity(&config.tls, &others));
    cleanup::finish(ini, traces, options, typed, || refuse_while_used(config))
}

fn refuse_while_used(config: &MasterConfig) -> Result<()> {
    let ini = config.path.display();
    if daemon::is_running(&config.syncdaemon_pidfile())? {
        return Err(CommandError::config(
            "the syncdaemon of this ini file runs; nothing was removed",
        )
        .hint(format!("type: walmgr {ini} syncdaemon --stop")));
    }
    // One that is gone archives nothing.
    if !config.master_data.exists() {
        return Ok(());
    }
    let data = DataDirectory::open(&config.master_data)?;
    let runs = data.running()?.is_some();
    let asked = match runs {
        true => {
            let found = crate::master::runtime()?.block_on(archiving::found(config))?;
            matches!(
                found.archives.archiving,
                Archiving::On | Archiving::Unheard(_)
            )
        }
        false => false,
    };
    if asked || archives_by_its_files(config)? {
        let hint = match runs {
            true => format!("type: walmgr {ini} stop"),
            false => format!("start PostgreSQL and type: walmgr {ini} stop"),
        };
        let why = "PostgreSQL archives with this ini file; nothing was removed";
        return Err(CommandError::config(why).hint(hint));
    }
    let waits_for = setting(config, SYNCHRONOUS_NAMES)?.unwrap_or_default();
    if !waits_for.is_empty() && SynchNote::read(&config.master_data).has(&waits_for) {
        let why = format!(
            "commits wait for the standbys that walmgr set ({waits_for}); nothing was removed"
        );
        return Err(CommandError::config(why).hint(format!("type: walmgr {ini} stop")));
    }
    let ours = Ours {
        ini: &config.path,
        data: &config.master_data,
    };
    let restores =
        setting(config, "restore_command")?.is_some_and(|it| may_restore_with(&it, &ours));
    let replays = layout::SIGNALS
        .iter()
        .any(|name| data.path().join(name).exists());
    match runs && restores && replays {
        false => Ok(()),
        true => Err(CommandError::config(format!(
            "the server in {} replays with this ini file; nothing was removed",
            data.path().display()
        ))
        .hint("promote or stop it first")),
    }
}

fn archives_by_its_files(config: &MasterConfig) -> Result<bool> {
    let is_on =
        setting(config, "archive_mode")?.is_some_and(|mode| mode == "always" || conf::is_on(&mode));
    let ours = Ours {
        ini: &config.path,
        data: &config.master_data,
    };
    let command = setting(config, "archive_command")?.unwrap_or_default();
    let goes_here = matches!(
        destination(&command, &ours),
        Destination::Here | Destination::Unheard
    );
    Ok(is_on && goes_here)
}

fn setting(config: &MasterConfig, name: &str) -> Result<Option<String>> {
    if !config.master_config.exists() {
        return Ok(None);
    }
    let setter = conf::last_setter(&config.master_config, &config.master_data, name)?;
    Ok(setter.map(|setter| setter.value))
}

/// The copy that `setup` and `stop` make of `postgresql.conf`. It is theirs while only their settings differ.
fn old_copy(config: &MasterConfig, others: &Neighbours) -> Option<Trace> {
    let path = conf::old_copy_of(&config.master_config);
    let trace = Trace::file(&path, "copy of postgresql.conf from before setup or stop")?;
    let lines = |path: &std::path::Path| {
        let text = crate::files::read_at_most(path, CONF_BYTES_MAX).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let others = text
            .lines()
            .filter(|line| !CHANGED.iter().any(|name| line.contains(name)));
        Some(others.map(str::to_owned).collect::<Vec<String>>())
    };
    let own = lines(&path);
    let is_theirs = own.is_some() && own == lines(&config.master_config);
    let why = (!is_theirs).then(|| "it differs in more than the settings of walmgr".to_owned());
    Some(
        trace
            .unless(others.user_of(&config.master_config))
            .unless(why),
    )
}
