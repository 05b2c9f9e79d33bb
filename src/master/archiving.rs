//! Turning PostgreSQL's archiving on and off: the edit of `postgresql.conf`, and making the server
//! take it. Never claims that a parameter is in force without having asked the server.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::config::MasterConfig;
use crate::error::{CommandError, Result};
use crate::output;
use crate::pg::conf;
use crate::pg::sql::{Limits, Session};

/// How long a restarted server may take to accept connections, and a reloaded one to take a value.
const TAKES_EFFECT: Duration = Duration::from_secs(60);
const RELOAD_TAKES_EFFECT: Duration = Duration::from_secs(5);

/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What became of a change.
pub enum Activation {
    /// The server runs with it.
    Done(Session),
    /// The server has to be restarted by hand; that was said.
    RestartNeeded,
}

/// Edits `master_config`, or says what would be edited.
pub fn edit(config: &MasterConfig, changes: &[(&str, String)], not_really: bool) -> Result<()> {
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
        tracing::info!("{} is right already", path.display());
    }
    Ok(())
}

/// Sees that the server can be talked to.
pub async fn reach(config: &MasterConfig) -> Result<()> {
    Session::connect(&config.master_db, limits(config))
        .await
        .map(|_| ())
}

fn limits(config: &MasterConfig) -> Limits {
    Limits {
        connect: config.connect_timeout,
        ..Limits::default()
    }
}

/// Makes the server take these values, with no more disturbance than they need, and sees that it
/// did.
pub async fn activate(config: &MasterConfig, wanted: &[(&str, &str)]) -> Result<Activation> {
    let limits = limits(config);
    let mut session = Session::connect(&config.master_db, limits).await?;
    session.reload_conf().await?;
    let mut until = Instant::now() + RELOAD_TAKES_EFFECT;
    let mut restarted = false;
    loop {
        let Some((name, value, found)) = first_difference(&session, wanted).await? else {
            return Ok(Activation::Done(session));
        };
        if needs_restart(name) && !restarted {
            let Some(command) = &config.master_restart_cmd else {
                tracing::warn!(
                    "{name} is still {found}: PostgreSQL has to be restarted for {name} = {value} \
                     to take effect; then run this again to have it checked"
                );
                return Ok(Activation::RestartNeeded);
            };
            tracing::info!("restarting PostgreSQL: {command}");
            // A smart shutdown would wait for this very session to end.
            session.close().await;
            restart(command)?;
            session = connect_patiently(config, limits).await?;
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
        if found != *value {
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
                "{}, line {}, sets it last: take it out there",
                setter.file.display(),
                setter.line
            )
        }
        _ => "look at PostgreSQL's log; is master_config the file the server reads?".to_owned(),
    };
    CommandError::config(format!(
        "{name} is {found} in the running server, not {value}"
    ))
    .hint(hint)
}

fn restart(command: &str) -> Result<()> {
    let failed = || CommandError::retry(format!("run master_restart_cmd `{command}`"));
    let status = Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(|error| failed().because(error))?;
    if status.success() {
        return Ok(());
    }
    Err(CommandError::retry(format!(
        "master_restart_cmd `{command}` failed with {status}"
    ))
    .hint("postgresql.conf is edited already; restart PostgreSQL and run this again"))
}

async fn connect_patiently(config: &MasterConfig, limits: Limits) -> Result<Session> {
    let until = Instant::now() + TAKES_EFFECT;
    loop {
        match Session::connect(&config.master_db, limits).await {
            Ok(session) => return Ok(session),
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}
