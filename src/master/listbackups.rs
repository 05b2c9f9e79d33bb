//! `listbackups`: which base backups the standby has.
//! Never shows one that is not complete. Invariant: the newest stands first.

use walmgr_protocol::message::fetch::ListedSet;

use crate::config::MasterConfig;
use crate::error::Result;
use crate::master::cluster::ClusterFacts;
use crate::master::fetch::Fetching;
use crate::options::Options;
use crate::output;
use crate::output::backups::{self, BackupFacts, BackupLine};

/// Prints the list.
pub(crate) fn run(config: &MasterConfig, options: &Options) -> Result<()> {
    let listed = super::runtime()?.block_on(ask(config))?;
    let lines = listed.into_iter().map(|set| BackupLine {
        set: set.name,
        details: set.details.into(),
        kept: None,
        off_line: None,
        label: set.label.map(|label| BackupFacts {
            timestamp: label.timestamp,
            label: label.label,
            first_wal: label.first_segment.to_string(),
            timeline: label.first_segment.timeline().number(),
            start: label.start.to_string(),
        }),
    });
    let lines: Vec<BackupLine> = lines.collect();
    output::print(&match options.json {
        true => backups::json(&lines),
        false => backups::text(&lines, options.verbosity > 0),
    })
}

async fn ask(config: &MasterConfig) -> Result<Vec<ListedSet>> {
    let facts = ClusterFacts::read(config).ok();
    let mut fetching = Fetching::connect(config, facts.as_ref()).await?;
    let listed = fetching.list_backups().await?;
    fetching.close().await;
    Ok(listed)
}
