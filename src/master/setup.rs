//! `setup` on the master: binds the archive to this cluster, turns archiving on, and proves it by
//! a segment that arrives. Never edits a file before the receiver has agreed. Invariant: the
//! archive_command it writes works from any working directory and through any shell.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::MasterConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::master::archiving::{self, Activation};
use crate::master::ask::Asking;
use crate::master::cluster::ClusterFacts;
use crate::options::Options;
use crate::output;
use crate::pg::conf;
use crate::pg::sql::{Session, Switched};

/// Pause between two looks whether the test segment has arrived.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Configures archiving.
pub fn run(config: &MasterConfig, options: &Options, check: bool) -> Result<()> {
    let facts = ClusterFacts::read(config)?;
    let changes = changes(config)?;
    let runtime = crate::master::runtime()?;
    if options.not_really {
        return runtime.block_on(rehearse(config, &facts, &changes));
    }
    runtime.block_on(async {
        bind(config, &facts).await?;
        // A server that cannot be asked must not find its file edited.
        archiving::reach(config).await?;
        archiving::edit(config, &changes, false)?;
        let wanted: Vec<(&str, &str)> = changes
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        match archiving::activate(config, &wanted).await? {
            Activation::Done(session) if check => prove(config, &facts, &session).await,
            Activation::Done(_) | Activation::RestartNeeded => Ok(()),
        }
    })
}

/// Asks whoever the real run would ask, and changes nothing.
async fn rehearse(
    config: &MasterConfig,
    facts: &ClusterFacts,
    changes: &[(&str, String)],
) -> Result<()> {
    Asking::connect(config, facts).await?.close().await;
    let cluster = facts.cluster;
    output::not_really(&format!(
        "bind the archive at {} to {cluster}",
        config.slave
    ))?;
    archiving::edit(config, changes, true)?;
    archiving::reach(config).await
}

async fn bind(config: &MasterConfig, facts: &ClusterFacts) -> Result<()> {
    let mut asking = Asking::connect(config, facts).await?;
    let done = asking.set_up().await?;
    asking.close().await;
    let how = if done.newly_bound {
        "is bound to"
    } else {
        "was bound already to"
    };
    let cluster = facts.cluster;
    tracing::info!(
        "{} on {} {how} {cluster}",
        done.completed_wals,
        config.slave
    );
    Ok(())
}

/// What `postgresql.conf` has to say for archiving to work.
fn changes(config: &MasterConfig) -> Result<Vec<(&'static str, String)>> {
    let text = std::fs::read(&config.master_config).at(
        Kind::Config,
        "read master_config,",
        &config.master_config,
    )?;
    let mut changes = vec![("archive_mode", "on".to_owned())];
    // `always` also archives on a standby that this server may become.
    if conf::value(&text, "archive_mode").as_deref() == Some("always") {
        changes.clear();
    }
    let level = conf::value(&text, "wal_level");
    // PostgreSQL reads both old names as `replica`, and `replica` is what it takes when nothing
    // is set; writing it out guards against an included file that says otherwise.
    let enough = matches!(
        level.as_deref(),
        Some("replica" | "logical" | "hot_standby" | "archive")
    );
    if !enough {
        changes.push(("wal_level", "replica".to_owned()));
    }
    changes.push(("archive_command", archive_command(config)?));
    Ok(changes)
}

/// `walmgr INI xarchive %p %f` with absolute paths that survive the shell and `%` substitution.
fn archive_command(config: &MasterConfig) -> Result<String> {
    let program = std::env::current_exe()
        .and_then(std::fs::canonicalize)
        .map_err(|error| CommandError::retry("find this program's own path").because(error))?;
    let words = [program, PathBuf::from(&config.path)];
    let quoted: Result<Vec<String>> = words.iter().map(|path| shell_word(path)).collect();
    Ok(format!("{} xarchive %p %f", quoted?.join(" ")))
}

fn shell_word(path: &Path) -> Result<String> {
    let Some(text) = path.to_str().filter(|text| !text.contains('\n')) else {
        return Err(CommandError::config(format!(
            "{} cannot stand in archive_command: it is not plain text",
            path.display()
        ))
        .hint("move it to a path of ordinary characters"));
    };
    let text = text.replace('%', "%%");
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+=:@%".contains(&byte);
    if text.bytes().all(plain) {
        return Ok(text);
    }
    Ok(format!("'{}'", text.replace('\'', "'\\''")))
}

/// Forces a segment out and waits until the receiver holds it.
async fn prove(config: &MasterConfig, facts: &ClusterFacts, session: &Session) -> Result<()> {
    if session.is_in_recovery().await? {
        tracing::warn!(
            "the server is in recovery: no segment can be forced out to prove archiving"
        );
        return Ok(());
    }
    // Something to finish: a switch right after another one does nothing.
    session.create_restore_point("walmgr setup").await?;
    let Switched { segment, .. } = session.switch_wal().await?;
    tracing::info!("waiting for {segment} to arrive");
    let began = Instant::now();
    let failed_before = session.archiver_statistics().await?.failed_count;
    let mut asking = Asking::connect(config, facts).await?;
    while !asking.holds(segment, facts.cluster.segment_size).await? {
        let statistics = session.archiver_statistics().await?;
        if statistics.failed_count > failed_before + 1 || began.elapsed() > config.push_timeout {
            return Err(CommandError::retry(format!(
                "{segment} did not arrive within {:.0?}; PostgreSQL counts {} failed attempts",
                began.elapsed(),
                statistics.failed_count - failed_before
            ))
            .hint(
                "the reason stands in PostgreSQL's log, in the line before `archive command \
                 failed`; archive_command runs as the server's user, who must be able to read the \
                 ini file and the key",
            ));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    asking.close().await;
    tracing::info!(
        "{segment} arrived after {:.1?}: archiving works",
        began.elapsed()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell_and_percent_substitution() {
        let word = |text: &str| shell_word(Path::new(text)).unwrap();
        assert_eq!(word("/usr/bin/walmgr"), "/usr/bin/walmgr");
        assert_eq!(word("/srv/my files/100%.ini"), "'/srv/my files/100%%.ini'");
        assert_eq!(word("/srv/it's"), "'/srv/it'\\''s'");
        assert!(shell_word(Path::new("/srv/a\nb")).is_err());
    }
}
