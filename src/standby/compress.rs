//! `compress`: packs the finished segments that lie in the archive as they came.
//! Never keeps the receiver or anybody who reads waiting, and never packs what is damaged. Invariant: killed at any
//! moment, it leaves each segment in one form at least, and typed again it goes on.

use std::sync::Arc;

use crate::config::{StandbyConfig, StoreCompression};
use crate::error::{CommandError, Kind, Result};
use crate::options::Options;
use crate::output::{self, Waiting};
use crate::store::compress::{Compressed, Compressor, plain_segments};
use crate::store::{RealDisk, StoreError};

/// How many segments are named that stay as they are; the count is of all.
const NAMED_MAX: usize = 20;

/// Packs them, the oldest first.
pub(crate) fn run(config: &StandbyConfig, options: &Options) -> Result<()> {
    let failed =
        |error: StoreError| CommandError::new(error.kind(), "compress the archive").because(error);
    let completed_wals = &config.completed_wals;
    let list = || plain_segments(completed_wals, Arc::new(RealDisk)).map_err(failed);
    if options.not_really {
        let (plain, bytes) = list()?;
        let what = format!("{} segments, {}", plain.len(), size_text(bytes));
        return output::not_really(&format!("pack {what}, in {}", completed_wals.display()));
    }
    let opened = Compressor::open(completed_wals, Arc::new(RealDisk)).map_err(failed)?;
    let compressor = opened.ok_or_else(|| {
        CommandError::new(Kind::AlreadyRunning, "another compress packs this archive")
            .hint("wait until it has ended")
    })?;
    // Whoever archives or replays goes first.
    let _ = rustix::process::nice(19);
    let form = match config.store_compression {
        StoreCompression::None => StoreCompression::default(),
        packed @ StoreCompression::Zstd(_) => packed,
    };
    let mut waiting = Waiting::begin();
    let (mut packed, mut before_bytes, mut after_bytes, mut left) = (0_u64, 0, 0, 0_usize);
    // Behind the lock: what a killed run had retired has its name again.
    for name in list()?.0 {
        let became = match compressor.pack(name, form) {
            Err(error) if compressor.concerns_one(&error) => Compressed::Left {
                name,
                why: error.to_string(),
            },
            other => other.map_err(failed)?,
        };
        match became {
            Compressed::Packed { before, after } => {
                packed += 1;
                before_bytes += before;
                after_bytes += after;
            }
            Compressed::Left { name, why } => {
                left += 1;
                if left <= NAMED_MAX {
                    tracing::warn!("{name} stays as it is: {why}");
                }
            }
            Compressed::Gone => {}
        }
        if waiting.is_due() {
            tracing::info!("{packed} segments packed so far");
        }
    }
    if !options.quiet {
        output::print(&format!(
            "{packed} segments packed: {} became {}, {} saved; {left} stay as they are",
            size_text(before_bytes),
            size_text(after_bytes),
            size_text(before_bytes.saturating_sub(after_bytes)),
        ))?;
    }
    if left > 0 {
        return Err(
            CommandError::new(Kind::Warned, format!("{left} segments stay as they are"))
                .hint("type `verify`: it says what is wrong with them"),
        );
    }
    Ok(())
}

fn size_text(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
