//! An agent that `xarchive` starts where no syncdaemon runs and segments wait: it looks ahead as a syncdaemon does, and
//! ends with the backlog.
//! Never gets in a syncdaemon's way: it has its own pidfile and socket, and ends when a syncdaemon runs. Invariant: it may be
//! killed at any moment; whoever asked it pushes by himself.
//!
//! Its parent ends before it does. Where the server is the first process of its container it is the server's child then:
//! so it always ends with 0 (`ExitTable::Unawaited`), and only SIGKILL would be taken for a crash of one of the server's own.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::Duration;

use walmgr_protocol::names::{WalFileName, WalSegmentSize};

use crate::abnormal::LOOK_AHEAD;
use crate::config::MasterConfig;
use crate::daemon::{self, Notices, PidFile};
use crate::error::{Kind, Result};
use crate::master::agent::{self, Agent};
use crate::pg::layout;
use crate::shell;

/// Finished segments behind one that was pushed which are a backlog.
const BACKLOG_SEGMENTS: usize = 2;

/// It ends when nobody has asked for so long and nothing is under way. PostgreSQL's archiver tries again after a second,
/// and after three tries rests for a minute.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// It is heard within this, or the next file is pushed without it.
const HEARD_WITHIN: Duration = Duration::from_millis(100);

/// How often it looks whether its time has come.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Begins one, if more segments wait behind the one that this process has pushed.
pub(super) fn start(config: &MasterConfig, pushed: WalFileName, size: WalSegmentSize) {
    if config.archive_batch == 0 || !has_backlog(config, pushed, size) {
        return;
    }
    let pidfile = agent::on_demand_pidfile(config);
    let is_there = |pidfile| daemon::is_running(pidfile).unwrap_or(true);
    if is_there(&pidfile) || is_there(&config.syncdaemon_pidfile()) || !agent::can_listen(&pidfile)
    {
        return;
    }
    let begun = shell::unawaited().and_then(|mut program| {
        program.args(told_to_look_ahead(std::env::args_os().skip(1)));
        shell::begin(&mut program)
    });
    match begun {
        // The next file would be pushed by two.
        Ok(()) => agent::wait_until_heard(&pidfile, HEARD_WITHIN),
        Err(error) => tracing::debug!("nobody looks ahead: {error}"),
    }
}

fn has_backlog(config: &MasterConfig, pushed: WalFileName, size: WalSegmentSize) -> bool {
    let WalFileName::Segment(pushed) = pushed else {
        return false;
    };
    let behind = std::iter::successors(pushed.next(size), |segment| segment.next(size));
    let mut behind = behind.take(BACKLOG_SEGMENTS);
    behind.all(|segment| agent::is_ready(&config.master_data, WalFileName::Segment(segment)))
}

/// The words of an `xarchive` that was typed, with the one behind its name that makes it an agent: so the settings are
/// the very same.
fn told_to_look_ahead(typed: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words = Vec::new();
    let mut is_told = false;
    for word in typed {
        let is_command = word == OsStr::new("xarchive") && !is_told;
        words.push(word);
        if is_command {
            words.push(LOOK_AHEAD.into());
            is_told = true;
        }
    }
    words
}

/// Is the agent until the backlog behind this file is archived.
pub(super) fn serve(config: &MasterConfig, pushed: WalFileName) {
    if let Err(error) = look_ahead(config, pushed) {
        tracing::debug!("nobody looks ahead: {error}");
    }
}

fn look_ahead(config: &MasterConfig, pushed: WalFileName) -> Result<()> {
    leave_data_directory(config);
    let runtime = crate::master::runtime()?;
    // Before the pidfile names this process: whoever reads it there may send a signal.
    let mut notices = runtime.block_on(async { Notices::listen() })?;
    let pidfile = agent::on_demand_pidfile(config);
    let _lock = match PidFile::acquire(&pidfile) {
        // Two were begun at once.
        Err(error) if error.kind() == Kind::AlreadyRunning => return Ok(()),
        lock => lock?,
    };
    let Some(agent) = Agent::start(config, &agent::socket_beside(&pidfile), Arc::default()) else {
        return Ok(());
    };
    agent.expects_archiver(pushed);
    let has_server = || config.master_data.join(layout::POSTMASTER_PID).exists();
    let had_server = has_server();
    runtime.block_on(async {
        let is_over = || {
            let is_down = had_server && !has_server();
            is_down || !config.master_data.exists() || runs_syncdaemon(config)
        };
        // Who has asked gets his answer, if it is not told to end.
        while agent.is_asked() || !(agent.is_idle(IDLE_MAX) || is_over()) {
            tokio::select! {
                _ = notices.next() => break,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    });
    tracing::debug!("nothing is left to look ahead for");
    Ok(())
}

/// Whoever works in a data directory is taken for its server, and keeps its file system from being unmounted.
fn leave_data_directory(config: &MasterConfig) {
    let pidfile = config.syncdaemon_pidfile();
    let tls = &config.tls;
    let paths = [
        &config.path,
        &config.master_data,
        &pidfile,
        &tls.key,
        &tls.certificate,
    ];
    // What is relative is so to the data directory.
    if paths.into_iter().all(|path| path.is_absolute()) {
        let _ = std::env::set_current_dir("/");
    }
}

fn runs_syncdaemon(config: &MasterConfig) -> bool {
    daemon::is_running(&config.syncdaemon_pidfile()).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_stands_behind_the_command_and_the_rest_as_it_was_typed() {
        let told = |line: &str| {
            let words = told_to_look_ahead(line.split(' ').map(OsString::from));
            let words: Vec<_> = words.iter().filter_map(|word| word.to_str()).collect();
            words.join(" ")
        };
        assert_eq!(
            told("-q /etc/m.ini xarchive pg_wal/1 1"),
            "-q /etc/m.ini xarchive --look-ahead pg_wal/1 1"
        );
        assert_eq!(
            told("m.ini --set a=b xarchive -- xarchive 1"),
            "m.ini --set a=b xarchive --look-ahead -- xarchive 1"
        );
    }
}
