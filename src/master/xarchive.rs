//! `xarchive PATH NAME`: PostgreSQL's `archive_command`.
//! Never says 0 before the receiver said that the file is durable, never hangs longer than
//! `push_timeout`. Invariant: every failure is one of the codes of `ExitTable::Xarchive`.
//!
//! A syncdaemon of the same settings has connections open and may have shipped the file already, so it is asked
//! first. Without one, or with one that is silent, the file is pushed from here; where others wait behind it, a process
//! is begun that looks ahead of them and is asked in the syncdaemon's place (`on_demand`).

use std::path::{Path, PathBuf};

use clap::Args;
use tokio::time::Instant;
use walmgr_protocol::names::WalFileName;

use crate::abnormal;
use crate::config::MasterConfig;
use crate::error::{CommandError, ExitTable, Result};
use crate::files::FileId;
use crate::master::agent::{self, AgentAnswer};
use crate::master::archived_file::{ArchivedFile, not_in_time, verdict};
use crate::master::on_demand;
use crate::master::periodic;
use crate::options::Options;
use crate::output;
use crate::pg::control;

/// What stood behind `xarchive`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct XarchiveArgs {
    /// %p
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// %f
    #[arg(value_name = "NAME")]
    pub name: WalFileName,
    /// For the process that looks ahead of a backlog, which `xarchive` begins itself
    #[arg(long, hide = true)]
    pub look_ahead: bool,
}

/// Archives one file.
pub(crate) fn run(
    config: &MasterConfig,
    options: &Options,
    XarchiveArgs {
        path,
        name,
        look_ahead,
    }: &XarchiveArgs,
) -> Result<()> {
    if *look_ahead {
        on_demand::serve(config, *name);
        return Ok(());
    }
    let deadline = Instant::now() + config.push_timeout;
    refuse_another_server(config, path)?;
    let source = ArchivedFile::open(config, path, *name)?;
    if options.not_really {
        crate::master::runtime()?.block_on(source.greet(config))?;
        let (path, name, slave) = (path.display(), source.name, &config.slave);
        return output::not_really(&format!("send {path} as {name} to {slave}"));
    }
    periodic::start(config);
    let size = source.facts.cluster.segment_size;
    match agent::ask(config, (path, *name), &source, deadline.into_std()) {
        AgentAnswer::Said(said) => said,
        AgentAnswer::PushYourself => push(config, source, deadline),
        AgentAnswer::NobodyListens => {
            push(config, source, deadline)?;
            on_demand::start(config, *name, size);
            Ok(())
        }
    }
}

fn push(config: &MasterConfig, source: ArchivedFile, deadline: Instant) -> Result<()> {
    let name = source.name;
    abnormal::log_signals(ExitTable::Xarchive)?;
    let runtime = crate::master::runtime()?;
    let outcome = runtime.block_on(async {
        tokio::time::timeout_at(deadline, source.push(config))
            .await
            .unwrap_or_else(|_| Err(not_in_time(config, name)))
    });
    // A reader that is stuck in a dead disk must not hold the exit back.
    runtime.shutdown_background();
    verdict(config, name, outcome?)
}

/// A copy of the master brings the master's `archive_command` along: promoted beside it, it would archive a timeline
/// of its own in the master's name. PostgreSQL runs commands in its data directory.
fn refuse_another_server(config: &MasterConfig, path: &Path) -> Result<()> {
    let Ok(here) = std::env::current_dir() else {
        return Ok(());
    };
    let cluster = |data: &Path| control::read(data).ok().map(|control| control.system_id);
    let [own, found] = [&config.master_data, &here].map(|path| FileId::at(path));
    let is_theirs = path.is_relative() || path.starts_with(&here);
    // A server of another cluster hears of that below.
    if own == found
        || !is_theirs
        || cluster(&here).is_none_or(|there| Some(there) != cluster(&config.master_data))
    {
        return Ok(());
    }
    let (here, ini, own) = (
        here.display(),
        config.path.display(),
        config.master_data.display(),
    );
    Err(CommandError::config(format!(
        "the server in {here} archives by {ini}, which is for the server in {own}: nothing was sent"
    ))
    .hint("set archive_mode = off there, or give it an ini file of its own; correct master_data if this server moved"))
}
