//! `xpartialsync NAME OFFSET BYTES`: records of a segment in progress from standard input, for scripts that ship them.
//! Never takes part of them, and never changes a byte that is held. Invariant: when it returns 0, all of them are durable
//! here, checked record by record like those of the stream.

use std::io::{IsTerminal, Read};
use std::sync::Arc;

use clap::Args;
use walmgr_protocol::names::SegmentName;

use crate::config::StandbyConfig;
use crate::error::{CommandError, Kind, Result};
use crate::options::Options;
use crate::output;
use crate::store::{Archive, ArchiveFolders, ArchiveReader, NotTaken, RealDisk, StoreError};

/// What stood behind `xpartialsync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct XpartialsyncArgs {
    /// The segment in progress
    #[arg(value_name = "NAME")]
    pub name: SegmentName,
    /// The place in it where the bytes begin
    #[arg(value_name = "OFFSET")]
    pub offset: u64,
    /// The number of bytes on standard input
    #[arg(value_name = "BYTES")]
    pub bytes: u64,
}

/// Reads the records, and appends them.
pub(crate) fn run(
    config: &StandbyConfig,
    options: &Options,
    typed: XpartialsyncArgs,
) -> Result<()> {
    let XpartialsyncArgs {
        name,
        offset,
        bytes,
    } = typed;
    check(config, typed)?;
    if options.not_really {
        return output::not_really(&format!(
            "append {bytes} bytes from standard input to {name} at {offset}"
        ));
    }
    // Before the archive is locked: whoever sends slowly keeps no receiver out.
    let content = read(bytes)?;
    let archive = Archive::open(&ArchiveFolders::of(config), Arc::new(RealDisk))
        .map_err(|error| failed(name, NotTaken::Store(error)))?;
    let taken = archive.take_typed(name, offset, &content);
    let taken = taken.map_err(|error| failed(name, error))?;
    match taken.new_bytes {
        0 => tracing::info!("{name}: all of it was held, up to {}", taken.end),
        new => tracing::info!("{name}: {new} bytes appended, durable up to {}", taken.end),
    }
    Ok(())
}

/// The numbers have to fit the archive's segments.
fn check(config: &StandbyConfig, typed: XpartialsyncArgs) -> Result<()> {
    let XpartialsyncArgs {
        name,
        offset,
        bytes,
    } = typed;
    let reader = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk))
        .map_err(|error| failed(name, NotTaken::Store(error)))?;
    let size = reader.binding().segment_size;
    let hint = "the line is: walmgr STANDBY.ini xpartialsync NAME OFFSET BYTES";
    if name.number(size).is_none() {
        let why = format!(
            "{name} is no segment of an archive with segments of {} bytes",
            size.bytes()
        );
        return Err(CommandError::usage(why).hint(hint));
    }
    let end = offset.checked_add(bytes).filter(|end| *end <= size.bytes());
    if end.is_none() || bytes == 0 {
        let why = format!(
            "OFFSET and BYTES have to be within a segment: expected 1 to {} bytes behind OFFSET, found {offset} and {bytes}",
            size.bytes()
        );
        return Err(CommandError::usage(why).hint(hint));
    }
    Ok(())
}

fn read(bytes: u64) -> Result<Vec<u8>> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(
            CommandError::usage("standard input is a terminal, expected records")
                .hint("pipe the bytes of the segment into it"),
        );
    }
    let mut content = Vec::new();
    // A segment at most, as `check` has seen: 1 GiB.
    let read = stdin.lock().take(bytes).read_to_end(&mut content);
    read.map_err(|error| CommandError::retry("read standard input").because(error))?;
    if content.len() as u64 == bytes {
        return Ok(content);
    }
    let found = content.len();
    Err(CommandError::retry(format!(
        "standard input ended early: expected {bytes} bytes, found {found}; nothing was written"
    ))
    .hint("send them again"))
}

fn failed(name: SegmentName, error: NotTaken) -> CommandError {
    let hint = match &error {
        NotTaken::Store(StoreError::Locked { .. }) => {
            "a running receiver takes records from `sync` and `syncdaemon` only; stop the receiver first"
        }
        NotTaken::Store(StoreError::Frozen { .. }) => "ship to a standby that was not booted",
        NotTaken::Gap { .. } => "begin at a byte that is held, or at 0",
        NotTaken::Differs { .. } => {
            "what is held was acknowledged and stays: archive the segment when it is full; walmgr then compares both"
        }
        NotTaken::NotWhole { .. } => {
            "send whole records: up to the end of the last one, or up to the end of the segment"
        }
        NotTaken::Store(_) => "",
    };
    let kind = match &error {
        NotTaken::Store(error) => match error.kind() {
            Kind::ReceiverDisk | Kind::AlreadyRunning => Kind::Retry,
            kind => kind,
        },
        _ => Kind::Retry,
    };
    CommandError::new(kind, format!("append to {name}"))
        .because(error)
        .hint(hint)
}
