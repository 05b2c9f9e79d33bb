//! Turning PostgreSQL's archiving on and off: the edit of `postgresql.conf`, and making the server
//! take it. Never claims that a parameter is in force without having asked the server.

use std::time::{Duration, Instant};

use walmgr_protocol::names::{SegmentName, TimelineId};

use crate::config::MasterConfig;
use crate::error::{CommandError, Result};
use crate::master::archiver::{Archives, DISABLED};
use crate::output::{self, Waiting};
use crate::pg::archive_command::LETS_GO;
use crate::pg::conf;
use crate::pg::data_directory::DataDirectory;
use crate::pg::grants::Task;
use crate::pg::layout;
use crate::pg::sql::{Limits, Session};
use crate::shell::{SettingsCommand, check_log_of};

/// How long a restarted server may take to accept connections, and a reloaded one to take a value.
const TAKES_EFFECT: Duration = Duration::from_secs(60);
const RELOAD_TAKES_EFFECT: Duration = Duration::from_secs(5);

/// A restart with a long checkpoint and a long recovery fits; a command that waits for ever does not.
const RESTART_LIMIT: Duration = Duration::from_secs(600);

/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What became of a change.
pub(crate) enum Activation {
    /// The server runs with it.
    Done(Box<Session>),
    /// The server has to be restarted by hand; that was said.
    RestartNeeded,
}

/// Edits `master_config`, or says what would be edited.
pub(crate) fn edit(
    config: &MasterConfig,
    changes: &[(&str, String)],
    not_really: bool,
) -> Result<()> {
    let path = &config.master_config;
    let changes: Vec<(&str, &str)> = changes
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let made = conf::apply(path, &changes, not_really)?;
    for change in &made {
        let (name, new) = (&change.name, &change.new);
        let old = change.old.as_deref().unwrap_or("unset");
        if not_really {
            output::not_really(&format!(
                "set {name} = '{new}' in {} (was {old})",
                path.display()
            ))?;
        } else {
            tracing::info!("{}: {name} = '{new}' (was {old})", path.display());
        }
    }
    if made.is_empty() {
        tracing::info!("{} needs no change", path.display());
    }
    Ok(())
}

/// Takes `archive_mode = off` out of `postgresql.auto.conf`, which beats `master_config`: `restore`
/// wrote it for the time in which the server replays. Whatever else stands there somebody typed.
pub(crate) async fn reset_automatic(
    config: &MasterConfig,
    changes: &[(&str, String)],
    not_really: bool,
) -> Result<()> {
    if !resets_automatic(config, changes)? {
        return Ok(());
    }
    let doing = "take archive_mode = 'off' out of postgresql.auto.conf";
    if not_really {
        return output::not_really(doing);
    }
    let session = connect_for(config, Task::SetupWithReset).await?;
    (session.query("ALTER SYSTEM RESET archive_mode", &[])).await?;
    session.close().await;
    tracing::info!("{doing}: done");
    Ok(())
}

/// Whether [`reset_automatic`] has something to do.
pub(crate) fn resets_automatic(config: &MasterConfig, changes: &[(&str, String)]) -> Result<bool> {
    let name = "archive_mode";
    let automatic = config.master_data.join(layout::AUTO_CONF);
    let wanted = (changes.iter()).any(|(changed, value)| *changed == name && value != "off");
    let setter = conf::last_setter(&config.master_config, &config.master_data, name)?;
    let is_off = |setter: &conf::Setter| setter.file == automatic && setter.value == "off";
    Ok(wanted && setter.as_ref().is_some_and(is_off))
}

/// A session of a role that may do what the command needs, or an error with the grants to type.
pub(crate) async fn connect_for(config: &MasterConfig, task: Task) -> Result<Session> {
    Session::connect_for(&config.master_db, limits(config), task).await
}

/// What a server was found to do.
pub(crate) struct ArchivingFound {
    /// With finished segments, before anything is changed.
    pub archives: Archives,
    /// The segment it writes; those before it are finished.
    pub segment: Option<SegmentName>,
    /// The timeline it writes.
    pub timeline: Option<TimelineId>,
}

/// Asks the server. One that cannot be asked must not find its file edited.
pub(crate) async fn found(config: &MasterConfig) -> Result<ArchivingFound> {
    let session = Session::connect(&config.master_db, limits(config)).await?;
    let archives = Archives::ask(config, &session).await?;
    // A server in recovery has none.
    let (segment, timeline) = match session.wal_position().await {
        Ok(at) => {
            let size = session.wal_segment_size().await?;
            let segment = SegmentName::containing(at.timeline, at.written, size);
            (Some(segment), Some(at.timeline))
        }
        Err(_) => (None, None),
    };
    session.close().await;
    Ok(ArchivingFound {
        archives,
        segment,
        timeline,
    })
}

fn limits(config: &MasterConfig) -> Limits {
    Limits {
        connect: config.connect_timeout,
        ..Limits::default()
    }
}

/// Makes the server take these values, with no more disturbance than they need, and sees that it
/// did.
pub(crate) async fn activate(
    config: &MasterConfig,
    wanted: &[(&str, &str)],
    task: Task,
) -> Result<Activation> {
    let mut session = connect_for(config, task).await?;
    let read_before_ms = session.settings_read_ms().await?;
    session.reload_conf().await?;
    let mut until = Instant::now() + RELOAD_TAKES_EFFECT;
    // The archiver is told when this session is: before that it may run a command of before.
    while session.settings_read_ms().await? == read_before_ms && Instant::now() < until {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let mut restarted = false;
    loop {
        let Some((name, value, found)) = first_difference(&session, wanted).await? else {
            return Ok(Activation::Done(Box::new(session)));
        };
        if needs_restart(name) && !restarted {
            let Some(command) = &config.master_restart_cmd else {
                tracing::warn!(
                    "{name} is still {found}: restart PostgreSQL, so that {name} = {value} takes \
                    effect; then run this again to check it"
                );
                return Ok(Activation::RestartNeeded);
            };
            tracing::info!("restarting PostgreSQL: {command}");
            // A smart shutdown would wait for this very session to end.
            session.close().await;
            restart(command, config)?;
            session = connect_patiently(config, task).await?;
            restarted = true;
            until = Instant::now() + RELOAD_TAKES_EFFECT;
        } else if Instant::now() > until {
            return Err(overridden(config, name, value, &found));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn first_difference<'a>(
    session: &Session,
    wanted: &[(&'a str, &'a str)],
) -> Result<Option<(&'a str, &'a str, String)>> {
    for (name, value) in wanted {
        let found = session.show(name).await?;
        // With archive_mode off no command runs, and none is what was wanted.
        let let_go = (*value, found.as_str()) == (LETS_GO, DISABLED);
        if found != *value && !let_go {
            return Ok(Some((name, value, found)));
        }
    }
    Ok(None)
}

/// PostgreSQL reads these only when it starts.
fn needs_restart(name: &str) -> bool {
    matches!(name, "archive_mode" | "wal_level")
}

fn overridden(config: &MasterConfig, name: &str, value: &str, found: &str) -> CommandError {
    let setter = conf::last_setter(&config.master_config, &config.master_data, name);
    let hint = match setter.ok().flatten() {
        Some(setter) if setter.file != config.master_config => {
            format!(
                "{}, line {}, has the last value: remove it there",
                setter.file.display(),
                setter.line
            )
        }
        _ => "look at PostgreSQL's log, and check that master_config is the file that the server \
            reads"
            .to_owned(),
    };
    CommandError::config(format!(
        "{name} is {found} in the running server, not {value}"
    ))
    .hint(hint)
}

fn restart(command: &str, config: &MasterConfig) -> Result<()> {
    let restart = SettingsCommand {
        setting: "master_restart_cmd",
        command,
        limit: RESTART_LIMIT,
        programs: config.master_bin.as_deref(),
    };
    let hint = "postgresql.conf is already edited; restart PostgreSQL and run this again";
    restart.run().map_err(|error| error.hint(hint))?;
    if let Ok(Some(server)) =
        DataDirectory::open(&config.master_data).and_then(|data| data.running())
    {
        check_log_of("master_restart_cmd", server.pid);
    }
    Ok(())
}

async fn connect_patiently(config: &MasterConfig, task: Task) -> Result<Session> {
    let (until, mut waiting) = (Instant::now() + TAKES_EFFECT, Waiting::begin());
    loop {
        match connect_for(config, task).await {
            Ok(session) => return Ok(session),
            Err(error) if Instant::now() > until => return Err(error),
            Err(error) => {
                if waiting.is_due() {
                    tracing::info!("waiting until PostgreSQL accepts connections: {error}");
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }
}
