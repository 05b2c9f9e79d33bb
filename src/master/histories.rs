//! The histories of a timeline and of those it came from, which the archive gets before any WAL of it.
//! Never holds WAL back: a history that cannot be sent is a warning. Invariant: WAL is not the first thing
//! that the archive hears of a timeline, as long as `pg_wal` has its history.
//!
//! PostgreSQL archives the history of the timeline that it begins, but only if archiving is on at that
//! moment. On a standby that is booted it is off.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::message::{Offer, WireVerify};
use walmgr_protocol::names::{TimelineId, WalFileName};
use walmgr_protocol::session::push::PushOutcome;

use crate::config::MasterConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::master::cluster::ClusterFacts;
use crate::master::push::{self, Blocks};
use crate::pg::layout;
use crate::transport::connect::{ReceiverTarget, refused};
use crate::transport::wire::Wire;
use crate::wal::history::History;

/// How long an answer counts: asking again costs an archiver that is busy one round trip a minute.
const ASKED_INTERVAL: Duration = Duration::from_secs(60);

/// Sends those of a timeline, the oldest first; `false` if its own is not in `pg_wal`.
pub(crate) async fn push_chain(
    wire: &mut Wire,
    pg_wal: &Path,
    timeline: TimelineId,
    blocks: Blocks,
    slave: &str,
) -> Result<bool> {
    if timeline == TimelineId::FIRST {
        return Ok(true);
    }
    let Some(own) = read(pg_wal, timeline)? else {
        return Ok(false);
    };
    // One that nobody can read is refused by the receiver, in better words.
    let history = History::parse(timeline, &own).ok();
    let ancestors = history.iter().flat_map(History::ancestors);
    let older: Vec<TimelineId> = ancestors.map(|ancestor| ancestor.timeline).collect();
    for timeline in older {
        if timeline != TimelineId::FIRST && read(pg_wal, timeline)?.is_some() {
            push_one(wire, pg_wal, timeline, blocks, slave).await?;
        }
    }
    push_one(wire, pg_wal, timeline, blocks, slave).await?;
    Ok(true)
}

/// Sends those of the newest timeline that the server has, over a connection of their own.
pub(crate) async fn push_newest(config: &MasterConfig, facts: &ClusterFacts) -> Result<()> {
    let pg_wal = config.master_data.join(layout::PG_WAL);
    let entries = std::fs::read_dir(&pg_wal).at(Kind::Retry, "list", &pg_wal)?;
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let timelines = names.filter_map(|name| match name.parse() {
        Ok(WalFileName::History(timeline)) => Some(timeline),
        _ => None,
    });
    let Some(newest) = timelines.max() else {
        return Ok(());
    };
    let mut connection = ReceiverTarget::from_config(config)?
        .connect(facts.cluster, facts.timeline)
        .await?;
    let blocks = blocks(config, connection.welcome.block_bytes_max);
    let slave = config.slave.to_string();
    push_chain(&mut connection.wire, &pg_wal, newest, blocks, &slave).await?;
    tracing::info!("the history of timeline {newest} is on {slave}");
    Ok(())
}

/// Sends those of a segment's timeline, unless the standby said a moment ago that it has them. It may have
/// lost them since, or be another one under the old address, so what is remembered is only when it was asked.
pub(crate) async fn push_once(
    config: &MasterConfig,
    wire: &mut Wire,
    timeline: TimelineId,
    block_bytes_max: u32,
) {
    let slave = config.slave.to_string();
    let remembered = format!("{timeline} {slave}\n");
    let memory = config.path.with_extension("timeline");
    let said_lately = || {
        asked_lately(&memory)
            && files::read(&memory).is_ok_and(|text| text == remembered.as_bytes())
    };
    if timeline == TimelineId::FIRST || said_lately() {
        return;
    }
    let pg_wal = Path::new(&config.master_data).join(layout::PG_WAL);
    let blocks = blocks(config, block_bytes_max);
    match push_chain(wire, &pg_wal, timeline, blocks, &slave).await {
        Ok(true) => {
            if let Err(error) = files::replace_own(&memory, remembered.as_bytes()) {
                tracing::debug!("{} is not written: {error}", memory.display());
            }
        }
        Ok(false) => tracing::warn!(
            "pg_wal has no history of timeline {timeline}: until the standby has it, it sets WAL \
            of this timeline apart"
        ),
        Err(error) => tracing::warn!("{error}"),
    }
}

/// Whether the memory was written within the last minute. A clock that was set back proves nothing.
fn asked_lately(memory: &Path) -> bool {
    let written = std::fs::metadata(memory).and_then(|found| found.modified());
    let age = written.ok().and_then(|written| written.elapsed().ok());
    age.is_some_and(|age| age < ASKED_INTERVAL)
}

fn blocks(config: &MasterConfig, block_bytes_max: u32) -> Blocks {
    Blocks {
        block_bytes: config.block_size.min(block_bytes_max),
        compression: config.network_level(),
    }
}

fn read(pg_wal: &Path, timeline: TimelineId) -> Result<Option<Vec<u8>>> {
    let path = pg_wal.join(WalFileName::History(timeline).to_string());
    match files::read_at_most(&path, SMALL_FILE_BYTES_MAX + 1) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.at(Kind::Retry, "read", &path).map(Some),
    }
}

async fn push_one(
    wire: &mut Wire,
    pg_wal: &Path,
    timeline: TimelineId,
    blocks: Blocks,
    slave: &str,
) -> Result<()> {
    let name = WalFileName::History(timeline);
    let path = pg_wal.join(name.to_string());
    let file = files::open_at_once(&path).at(Kind::Retry, "open", &path)?;
    let size = file.metadata().at(Kind::Retry, "look at", &path)?.len();
    if size > SMALL_FILE_BYTES_MAX {
        return Err(CommandError::retry(format!(
            "{} has {size} bytes",
            path.display()
        )));
    }
    let crc32 = push::digest(&file, size).at(Kind::Retry, "read", &path)?;
    let offer = Offer {
        name,
        size,
        crc32: Some(crc32),
        verify: WireVerify::Records,
    };
    match push::push(wire, Arc::new(file), offer, blocks).await? {
        PushOutcome::Stored => Ok(()),
        PushOutcome::Conflict(_) => Err(CommandError::new(
            Kind::Conflict,
            format!("{slave} holds another {name}: two servers were promoted to one timeline"),
        )
        .hint("`choose` on the standby shows both; or give this cluster its own archive")),
        PushOutcome::SourceChanged => Err(CommandError::retry(format!(
            "{name} changed while it was read"
        ))),
        PushOutcome::Refused(error) => {
            Err(refused(&slave, &format!("did not store {name}"), error))
        }
    }
}
