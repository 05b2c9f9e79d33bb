//! `bench`: what this link to this receiver can do, and the settings that get most out of it.
//! Never changes a setting, and never has anything stored. Invariant: each figure is of bytes that the receiver says have
//! arrived, all of them and the same.

mod advice;
mod sample;
mod trial;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use walmgr_protocol::limits::{STORE_LEVEL_MAX, TRIAL_BYTES_MAX};

use self::advice::{Advice, best_of};
use self::trial::{Measurement, TrialSettings};
use crate::config::MasterConfig;
use crate::error::{CommandError, Result};
use crate::master::cluster::ClusterFacts;
use crate::master::push::Blocks;
use crate::options::Options;
use crate::output;
use crate::transport::connect::ReceiverTarget;

/// What stood behind `bench`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct BenchArgs {
    /// Send what is in this file, not the WAL in pg_wal
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Take about so many seconds for each line of the table
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=60))]
    pub seconds: u8,

    /// Have the standby sync the blocks of a last line to the archive's disk, too
    #[arg(long)]
    pub synced: bool,
}

/// Sizes of blocks that are tried beside the one that is set.
const BLOCK_BYTES: [u32; 3] = [64 << 10, 128 << 10, 256 << 10];

/// Levels of zstd that are tried beside the one that is set.
const LEVELS: [u8; 4] = [0, 1, 3, 6];

/// Connections at once that are tried.
const JOBS: [u8; 4] = [1, 2, 4, 8];

/// What the first measurement sends; it grows until it takes long enough.
const FIRST_BYTES: u64 = 4 << 20;

/// Measures, and says which settings to use.
pub(crate) fn run(config: &MasterConfig, options: &Options, typed: &BenchArgs) -> Result<()> {
    let facts = ClusterFacts::read(config)?;
    let sample = Arc::new(sample::read(config, typed.file.as_deref(), facts.cluster)?);
    if options.not_really {
        return output::not_really(&format!(
            "send {} again and again to {}, and have it dropped there",
            sample.name, config.slave
        ));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(JOBS.len())
        .build()
        .map_err(|error| CommandError::retry("start the event loop").because(error))?;
    let bench = Bench {
        config,
        facts,
        target: ReceiverTarget::from_config(config)?,
        sample,
        enough: Duration::from_secs(typed.seconds.into()),
    };
    runtime.block_on(bench.run(typed.synced))
}

struct Bench<'a> {
    config: &'a MasterConfig,
    facts: ClusterFacts,
    target: ReceiverTarget,
    sample: Arc<sample::RepeatedBytes>,
    /// How long a measurement takes.
    enough: Duration,
}

impl Bench<'_> {
    async fn run(&self, is_synced: bool) -> Result<()> {
        let config = self.config;
        output::print(&format!(
            "{} to {}, {}\n\n{}",
            self.sample.name,
            config.slave,
            match config.tls.enabled {
                true => "over TLS 1.3",
                false => "without TLS",
            },
            Measurement::HEADING
        ))?;
        let set_level = self.set_level().await?;
        let mut settings = TrialSettings {
            blocks: Blocks {
                block_bytes: config.block_size,
                compression: set_level,
            },
            jobs: 1,
            is_synced: false,
        };
        let now = self.measure(settings).await?;
        // The first line is what is set, and wins where nothing else is better.
        let mut lines = vec![now];
        for block_bytes in BLOCK_BYTES.into_iter().filter(|n| *n != config.block_size) {
            settings.blocks.block_bytes = block_bytes;
            lines.push(self.measure(settings).await?);
        }
        settings = best_of(&lines).settings;
        lines = vec![best_of(&lines)];
        for compression in LEVELS.into_iter().filter(|n| *n != set_level) {
            settings.blocks.compression = compression;
            lines.push(self.measure(settings).await?);
        }
        let alone = best_of(&lines);
        settings = alone.settings;
        lines = vec![alone];
        for jobs in JOBS.into_iter().filter(|jobs| *jobs > 1) {
            settings.jobs = jobs;
            lines.push(self.measure(settings).await?);
        }
        let together = best_of(&lines);
        if is_synced {
            let settings = TrialSettings {
                is_synced: true,
                ..alone.settings
            };
            self.measure(settings).await?;
        }
        let advice = Advice {
            now,
            alone,
            together,
            backup_jobs: config.backup_jobs,
        };
        output::print(&format!("\n{advice}"))
    }

    /// The level at which a segment travels with what is set: unless that says one, as the standby stores it.
    async fn set_level(&self) -> Result<u8> {
        if let Some(level) = self.config.compression {
            return Ok(level);
        }
        let facts = self.facts;
        let connection = (self.target).connect(facts.cluster, facts.timeline).await?;
        let level = connection.welcome.store_level.min(STORE_LEVEL_MAX);
        connection.wire.goodbye().await;
        Ok(level)
    }

    /// Measures with these settings for long enough, and prints the line.
    async fn measure(&self, settings: TrialSettings) -> Result<Measurement> {
        let most = TRIAL_BYTES_MAX;
        let mut bytes = FIRST_BYTES;
        let measured = loop {
            let measured = (self.trial(settings, bytes)).await?;
            if measured.elapsed * 2 >= self.enough || bytes == most {
                break measured;
            }
            // Between twice and a hundred times as much, so that it fits.
            let times = self.enough.as_micros() / measured.elapsed.as_micros().max(1);
            let times = u64::try_from(times.clamp(2, 100)).unwrap_or(2);
            bytes = bytes.saturating_mul(times).min(most);
        };
        output::print(&measured.to_string())?;
        Ok(measured)
    }

    async fn trial(&self, settings: TrialSettings, bytes: u64) -> Result<Measurement> {
        let receiver = (&self.target, self.facts, &self.config.slave);
        trial::measure(receiver, &self.sample, settings, bytes).await
    }
}
