//! One measurement: some connections that send blocks at once, and what the receiver says of each.
//! Never believes more than the receiver's count. Invariant: the clock runs from the first block to the last answer.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;
use walmgr_protocol::message::trial::{Measured, TrialBegin};
use walmgr_protocol::session::trial::{TrialClient, TrialClientAction, TrialOutcome};

use super::sample::RepeatedBytes;
use crate::config::address::SlaveAddress;
use crate::error::{CommandError, Result};
use crate::master::cluster::ClusterFacts;
use crate::master::packed_blocks::{Blocks, NoBlock, PackedBlocks};
use crate::output::progress::{per_second, ratio};
use crate::transport::connect::{Connection, ReceiverTarget, refused};
use crate::transport::wire::{Wire, WireFault};

/// The channel of a trial that is alone on its connection.
const CHANNEL: u16 = 1;

/// Silence after which the receiver counts as gone; a sync may take long.
const SILENCE: Duration = Duration::from_secs(60);

/// What a measurement is made with.
#[derive(Debug, Clone, Copy)]
pub(super) struct TrialSettings {
    /// How blocks are made.
    pub blocks: Blocks,
    /// Connections at once.
    pub jobs: u8,
    /// Whether the blocks are synced.
    pub is_synced: bool,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measurement {
    pub settings: TrialSettings,
    pub raw_bytes: u64,
    pub wire_bytes: u64,
    /// From the first block to the last answer.
    pub elapsed: Duration,
    /// Processor time of this process.
    pub cpu: Duration,
    /// Time that the receiver's workers had to do.
    pub receiver_worked: Duration,
    /// Time of the longest sync.
    pub synced: Duration,
}

impl Measurement {
    /// Above the lines.
    pub(super) const HEADING: &'static str =
        "block_size  compression  jobs  MiB/s of WAL  MiB/s sent  ratio  own CPU  receiver";

    /// Bytes a second before compression.
    pub(super) fn rate(&self) -> u64 {
        per_second(self.raw_bytes, self.elapsed)
    }

    fn part(&self, time: Duration) -> f64 {
        time.as_secs_f64() / self.elapsed.as_secs_f64().max(1e-6)
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TrialSettings {
            blocks,
            jobs,
            is_synced,
        } = self.settings;
        let mib = |bytes| ratio(per_second(bytes, self.elapsed), 1 << 20);
        write!(
            out,
            "{:>8}kB  {:>11}  {jobs:>4}  {:>12.1}  {:>10.1}  {:>5.1}  {:>6.0}%  {:>7.0}%",
            blocks.block_bytes >> 10,
            blocks.compression,
            mib(self.raw_bytes),
            mib(self.wire_bytes),
            ratio(self.raw_bytes, self.wire_bytes),
            100.0 * self.part(self.cpu),
            100.0 * self.part(self.receiver_worked),
        )?;
        match is_synced {
            true => write!(out, "  synced in {:.0} ms", self.synced.as_secs_f64() * 1e3),
            false => Ok(()),
        }
    }
}

/// Sends so many bytes over each of so many connections.
pub(super) async fn measure(
    (target, facts, slave): (&ReceiverTarget, ClusterFacts, &SlaveAddress),
    sample: &Arc<RepeatedBytes>,
    settings: TrialSettings,
    bytes: u64,
) -> Result<Measurement> {
    let mut connections = Vec::new();
    for _ in 0..settings.jobs {
        connections.push(target.connect(facts.cluster, facts.timeline).await?);
    }
    let mut sending = JoinSet::new();
    let size = bytes / u64::from(settings.jobs.max(1));
    let (begun, cpu) = (Instant::now(), cpu_time());
    for connection in connections {
        let sample = Arc::clone(sample);
        sending.spawn(send(connection, sample, settings, size));
    }
    let mut sum = Measurement {
        settings,
        raw_bytes: 0,
        wire_bytes: 0,
        elapsed: Duration::ZERO,
        cpu: Duration::ZERO,
        receiver_worked: Duration::ZERO,
        synced: Duration::ZERO,
    };
    while let Some(ended) = sending.join_next().await {
        let ended = ended.map_err(|error| CommandError::retry("send blocks").because(error))?;
        let SentTrial {
            outcome,
            wire_bytes,
        } = ended?;
        match outcome {
            TrialOutcome::Measured(measured) => sum.add(measured, wire_bytes),
            TrialOutcome::Refused(error) => return Err(refused(slave, "refused", error)),
        }
    }
    sum.elapsed = begun.elapsed();
    sum.cpu = cpu_time().saturating_sub(cpu);
    Ok(sum)
}

impl Measurement {
    fn add(&mut self, measured: Measured, wire_bytes: u64) {
        self.raw_bytes += measured.digest.size;
        self.wire_bytes += wire_bytes;
        self.receiver_worked += Duration::from_micros(measured.worked_us);
        self.synced = (self.synced).max(Duration::from_micros(measured.synced_us));
    }
}

/// Processor time of this process, all its threads together.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(time.tv_nsec).unwrap_or_default();
    Duration::new(seconds, nanos)
}

struct SentTrial {
    outcome: TrialOutcome,
    wire_bytes: u64,
}

async fn send(
    connection: Connection,
    sample: Arc<RepeatedBytes>,
    settings: TrialSettings,
    size: u64,
) -> Result<SentTrial> {
    let Connection { mut wire, welcome } = connection;
    let block_bytes = (settings.blocks.block_bytes).min(welcome.block_bytes_max);
    let blocks = Blocks {
        block_bytes,
        ..settings.blocks
    };
    let begin = TrialBegin {
        size,
        synced: settings.is_synced,
    };
    let (mut client, message) = TrialClient::start(begin);
    wire.send(CHANNEL, &message).await?;
    let mut wire_bytes = 0;
    let outcome = loop {
        let message = wire.next_within(SILENCE).await?.message;
        match client.received(message).map_err(WireFault::from)? {
            TrialClientAction::Finish(outcome) => break outcome,
            TrialClientAction::SendBlocks => {
                wire_bytes = send_blocks(&mut wire, &mut client, &sample, blocks, size).await?;
            }
        }
    };
    wire.goodbye().await;
    Ok(SentTrial {
        outcome,
        wire_bytes,
    })
}

/// Returns how many bytes of blocks went over the wire.
async fn send_blocks(
    wire: &mut Wire,
    client: &mut TrialClient,
    sample: &Arc<RepeatedBytes>,
    blocks: Blocks,
    size: u64,
) -> Result<u64> {
    let source = Arc::clone(sample);
    let start = (0, crc32fast::Hasher::new());
    let mut packed = PackedBlocks::start(start, blocks, move |at, buffer| {
        let len = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX);
        source.append(at, len.min(blocks.block_bytes as usize), buffer);
        Ok::<(), std::convert::Infallible>(())
    });
    let mut wire_bytes = 0;
    while let Some(mut block) = packed.next().await.map_err(unpacked)? {
        wire_bytes += block.payload().len() as u64;
        let raw_bytes = block.raw_bytes;
        wire.send_block(CHANNEL, &mut block).await?;
        client.block_sent(raw_bytes)?;
        packed.give_back(block);
    }
    wire.send(CHANNEL, &client.ended(packed.crc32())?).await?;
    Ok(wire_bytes)
}

fn unpacked(why: NoBlock<std::convert::Infallible>) -> CommandError {
    match why {
        NoBlock::Unread(never) => match never {},
        NoBlock::Lost(error) => CommandError::retry("pack").because(error),
    }
}
