//! `sync`: one pass of the partial flow.
//! Never says that it is done before every whole record that could be shipped is durable.

use crate::config::MasterConfig;
use crate::error::{CommandError, Result};
use crate::master::partial::Shipper;
use crate::master::position::{PositionFound, PositionReader};
use crate::options::Options;
use crate::output;

/// Ships what the standby lacks.
pub(crate) fn run(config: &MasterConfig, options: &Options) -> Result<()> {
    let runtime = crate::master::runtime()?;
    let done = runtime.block_on(pass(config, options));
    runtime.shutdown_background();
    done
}

async fn pass(config: &MasterConfig, options: &Options) -> Result<()> {
    let PositionFound::Master(position) = PositionReader::default().look(config).await? else {
        return Err(CommandError::config(
            "the server is a standby: its master ships the WAL",
        ));
    };
    let (timeline, slave) = (position.files.timeline(), &config.slave);
    if options.not_really {
        let current = position.files.containing(position.reach.near);
        return output::not_really(&format!(
            "ship WAL of timeline {timeline} to {slave}, up to the records in {current}"
        ));
    }
    let mut shipper =
        Shipper::connect(config, &position.facts, position.files, position.reach).await?;
    shipper.pass(position.reach).await?;
    if let Some(note) = shipper.note() {
        tracing::warn!("{note}");
    }
    let durable = shipper.durable();
    shipper.close().await;
    tracing::info!("{slave} holds every record of timeline {timeline} up to {durable}");
    Ok(())
}
