//! `sync`: one pass of the partial flow, and a look at what the archive lacks before it.
//! Never says that it is done before every whole record that could be shipped is durable. Invariant: what is
//! claimed of WAL that this call did not ship is the receiver's answer.

use walmgr_protocol::message::Overview;
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId};

use crate::config::MasterConfig;
use crate::error::{CommandError, Result};
use crate::master::ask::Asking;
use crate::master::cluster::ClusterFacts;
use crate::master::partial::Shipper;
use crate::master::position::{PositionFound, PositionReader};
use crate::master::tail::WalFiles;
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
    let facts = position.facts;
    let mut shipper =
        Shipper::connect(config, &facts, position.files.clone(), position.reach).await?;
    shipper.pass(position.reach).await?;
    if let Some(note) = shipper.note() {
        tracing::warn!("{note}");
    }
    let shipped = Shipped {
        slave: slave.to_string(),
        timeline,
        from: shipper.from(),
        durable: shipper.durable(),
    };
    shipper.close().await;
    let overview = overview(config, &facts).await.inspect_err(|error| {
        tracing::warn!(
            "whether the archive lacks WAL before {} is unknown: {error}",
            shipped.from
        );
    });
    let overview = overview.ok();
    if let Some(missing) = overview.as_ref().and_then(|overview| overview.missing) {
        return Err(shipped.behind_gap(missing, &position.files));
    }
    tracing::info!("{}", shipped.claim(overview.as_ref()));
    Ok(())
}

/// A key without the right to read may ship as well, and is told nothing.
async fn overview(config: &MasterConfig, facts: &ClusterFacts) -> Result<Overview> {
    let mut asking = Asking::connect(config, facts).await?;
    let overview = asking.overview().await;
    asking.close().await;
    overview
}

/// What this call has seen to.
struct Shipped {
    slave: String,
    timeline: TimelineId,
    from: Lsn,
    durable: Lsn,
}

impl Shipped {
    /// As much as is known: of all that the newest set needs only if the receiver says so.
    fn claim(&self, overview: Option<&Overview>) -> String {
        let Shipped {
            slave,
            timeline,
            from,
            durable,
        } = self;
        let leads_here = |overview: &&Overview| {
            (overview.held).is_some_and(|(line, end)| line == *timeline && end >= *durable)
        };
        let sets = overview.filter(leads_here).map(|overview| &overview.sets);
        let set = sets.and_then(|sets| {
            let mut sets = sets.iter();
            sets.find_map(|set| Some((set.name.clone(), set.reach.as_ref().ok()?.start)))
        });
        match set {
            Some((name, start)) => format!(
                "{slave} holds every record from the beginning of {name}, {start}, to timeline \
                {timeline}, {durable}"
            ),
            None => {
                format!(
                    "{slave} holds every record of timeline {timeline} from {from} to {durable}"
                )
            }
        }
    }

    fn behind_gap(&self, missing: SegmentName, files: &WalFiles) -> CommandError {
        let (slave, from, durable) = (&self.slave, self.from, self.durable);
        let doing = format!(
            "{slave} holds every record from {from} to {durable}, but {missing} is missing in the \
            archive: a recovery ends there"
        );
        let hint = match (files.exists(missing), files.waits_for_archiver(missing)) {
            (true, true) => {
                "PostgreSQL has yet to archive it, and its log says why if it fails; type \
                sync again afterwards"
                    .to_owned()
            }
            (true, false) => format!(
                "it is in pg_wal: archive it, in the master's data directory, with `walmgr \
                MASTER.ini xarchive pg_wal/{missing} {missing}`"
            ),
            (false, _) => format!(
                "it is not in {}: archive a copy from another server, or make a new backup \
                (walmgr help hole-in-archive)",
                files.folder().display()
            ),
        };
        CommandError::retry(doing).hint(hint)
    }
}
