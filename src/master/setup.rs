//! `setup` on the master: binds the archive to this cluster, turns archiving on, and proves it by
//! a segment that arrives. Never edits a file before the receiver has agreed. Invariant: the
//! archive_command it writes works from any working directory and any shell.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::MasterConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::master::ask::Asking;
use crate::master::cluster::ClusterFacts;
use crate::options::Options;
use crate::output;
use crate::pg::{conf, sql};

/// Pause between two looks whether the test segment has arrived.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Configures archiving.
pub fn run(config: &MasterConfig, options: &Options, check: bool) -> Result<()> {
    let facts = ClusterFacts::read(config)?;
    let changes = changes(config)?;
    let runtime = crate::master::runtime()?;
    if options.not_really {
        output::not_really(&format!(
            "bind the archive at {} to {}",
            config.slave, facts.cluster
        ))?;
        for change in conf::apply(&config.master_config, &changes, true)? {
            output::not_really(&format!("set {change} in {}", config.master_config.display()))?;
        }
        return Ok(());
    }
    runtime.block_on(async {
        bind(config, &facts).await?;
        edit(config, &changes)?;
        let active = activate(config).await?;
        match (check, active) {
            (false, _) => Ok(()),
            (true, true) => prove(config, &facts).await,
            (true, false) => Ok(()),
        }
    })
}

async fn bind(config: &MasterConfig, facts: &ClusterFacts) -> Result<()> {
    let done = Asking::connect(config, facts).await?.set_up().await?;
    let how = if done.newly_bound { "is bound to" } else { "was bound already to" };
    tracing::info!("{} on {} {how} {}", done.completed_wals, config.slave, facts.cluster);
    Ok(())
}

fn edit(config: &MasterConfig, changes: &[(&str, String)]) -> Result<()> {
    let path = &config.master_config;
    let made = conf::apply(path, changes, false)?;
    for change in &made {
        tracing::info!("{}: {change}", path.display());
    }
    if made.is_empty() {
        tracing::info!("{} is right already", path.display());
    }
    Ok(())
}
