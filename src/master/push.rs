//! The push flow from the master's side: one file, from its offer to its acknowledgement.
//! Never holds the file in memory: blocks pass from reading threads to the socket through
//! bounded queues. Invariant: `Stored` is returned only for the bytes that were offered.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::io::{pread, retry_on_intr};
use tokio::task::JoinError;
use walmgr_protocol::message::{Message, Offer};
use walmgr_protocol::session::push::{PushOutcome, PushSender, PushSenderAction};

use crate::error::{CommandError, Result};
use crate::files;
use crate::master::packed_blocks::{NoBlock, PackedBlocks};
use crate::transport::wire::{Wire, WireFault};

pub use crate::master::packed_blocks::Blocks;

/// The channel an upload that is alone on its connection uses.
const CHANNEL: u16 = 1;

/// Bytes read at once while only a checksum is wanted.
const DIGEST_BYTES: usize = 64 << 10;

/// How far the disk is ahead of who packs: threads that take turns with the blocks do not look like one reader to the
/// kernel, which then reads little ahead.
const READ_AHEAD_BYTES: u64 = 16 << 20;

const READ_FAILED: &str = "read the file to be archived";

/// CRC-32 of the first `bytes` bytes of a file.
pub fn digest(file: &File, bytes: u64) -> std::io::Result<u32> {
    Ok(hash(file, 0..bytes)?.finalize())
}

/// Starts two threads on the same at once, one for each half: nothing goes on before the answer is known.
pub(crate) fn start_digest(
    file: &Arc<File>,
    bytes: u64,
) -> impl Future<Output = Result<u32>> + use<> {
    let start = |range: Range<u64>| {
        let file = Arc::clone(file);
        tokio::task::spawn_blocking(move || hash(&file, range))
    };
    let (first, second) = (start(0..bytes / 2), start(bytes / 2..bytes));
    async {
        let mut crc = worked(first.await)?;
        crc.combine(&worked(second.await)?);
        Ok(crc.finalize())
    }
}

/// Has the kernel read the file from its beginning, in a thread of its own; nobody waits for it.
pub(in crate::master) fn start_reading(file: &Arc<File>, bytes: u64) {
    let file = Arc::clone(file);
    let ahead = 0..bytes.min(READ_AHEAD_BYTES);
    drop(tokio::task::spawn_blocking(move || {
        files::read_ahead(file.as_fd(), ahead);
    }));
}

fn hash(file: &File, range: Range<u64>) -> std::io::Result<crc32fast::Hasher> {
    let mut crc = crc32fast::Hasher::new();
    let mut buffer = vec![0; DIGEST_BYTES];
    let mut offset = range.start;
    while offset < range.end {
        let want = buffer
            .len()
            .min(usize::try_from(range.end - offset).unwrap_or(usize::MAX));
        let got = file.read_at(&mut buffer[..want], offset)?;
        if got == 0 {
            break;
        }
        crc.update(&buffer[..got]);
        offset += got as u64;
    }
    Ok(crc)
}

/// Offers the file and sends what the receiver lacks of it. The offer has to have its checksum.
pub async fn push(
    wire: &mut Wire,
    file: Arc<File>,
    offer: Offer,
    blocks: Blocks,
) -> Result<PushOutcome> {
    let is_unchanged = &|| offer.crc32.is_some();
    let source = PushedFile { file, is_unchanged };
    Ok(push_watched(wire, source, offer, blocks).await?.outcome)
}

/// A file that is pushed.
pub(in crate::master) struct PushedFile<'a> {
    pub file: Arc<File>,
    /// Whether it still is what it was when its offer was made. Asked behind its last byte, before the commit.
    pub is_unchanged: &'a (dyn Fn() -> bool + Sync),
}

/// What came of a push.
pub(in crate::master) struct Pushed {
    pub outcome: PushOutcome,
    /// The CRC-32 that was offered or committed, if it got that far.
    pub crc32: Option<u32>,
}

/// Pushes a file that may change meanwhile. The offer needs no checksum. A file that changed is not committed.
pub(in crate::master) async fn push_watched(
    wire: &mut Wire,
    PushedFile { file, is_unchanged }: PushedFile<'_>,
    offer: Offer,
    blocks: Blocks,
) -> Result<Pushed> {
    let size = offer.size;
    let (mut sender, mut action) = PushSender::start(offer);
    // Of the part that the receiver holds.
    let mut prefix_crc32 = 0;
    loop {
        let next = match action {
            PushSenderAction::Send(message) => {
                wire.send(CHANNEL, &message).await?;
                None
            }
            PushSenderAction::TakeChecksum => {
                let crc32 = start_digest(&file, size).await?;
                Some(sender.checksum_taken(crc32)?)
            }
            PushSenderAction::HashPrefix(bytes) => {
                prefix_crc32 = match sender.checksum().filter(|_| bytes == size) {
                    Some(crc32) => crc32,
                    None => start_digest(&file, bytes).await?,
                };
                Some(sender.prefix_hashed(prefix_crc32)?)
            }
            PushSenderAction::SendFrom(offset) => {
                let crc = crc32fast::Hasher::new_with_initial_len(
                    if offset > 0 { prefix_crc32 } else { 0 },
                    offset,
                );
                match send_from(wire, &file, (offset, crc), blocks, &mut sender).await? {
                    BlocksSent::All(crc32) if is_unchanged() => Some(sender.source_ended(crc32)?),
                    BlocksSent::All(_) => Some(sender.source_changed()?),
                    BlocksSent::Interrupted(message) => {
                        Some(on_channel(sender.received(*message))?)
                    }
                }
            }
            PushSenderAction::Finish(outcome) => {
                let crc32 = sender.checksum();
                return Ok(Pushed { outcome, crc32 });
            }
        };
        action = match next {
            Some(action) => action,
            None => on_channel(sender.received(wire.next().await?.message))?,
        };
    }
}

fn on_channel(
    action: std::result::Result<PushSenderAction, walmgr_protocol::error::ProtocolError>,
) -> Result<PushSenderAction> {
    Ok(action.map_err(WireFault::from)?)
}

enum BlocksSent {
    /// Everything up to the source's end, whose CRC-32 over all of it this is.
    All(u32),
    /// The receiver spoke up before that.
    Interrupted(Box<Message>),
}

async fn send_from(
    wire: &mut Wire,
    file: &Arc<File>,
    from: (u64, crc32fast::Hasher),
    blocks: Blocks,
    sender: &mut PushSender,
) -> Result<BlocksSent> {
    let (source, block_bytes) = (Arc::clone(file), blocks.block_bytes as usize);
    let mut packed = PackedBlocks::start(from, blocks, move |at, buffer| {
        let ahead = at.saturating_add(READ_AHEAD_BYTES);
        let later = ahead..ahead.saturating_add(block_bytes as u64);
        files::read_ahead(source.as_fd(), later);
        read_block(&source, at, block_bytes, buffer)
    });
    while let Some(mut block) = packed.next().await.map_err(unread)? {
        let raw_bytes = block.raw_bytes;
        match wire.send_block(CHANNEL, &mut block).await {
            Ok(()) => sender.block_sent(raw_bytes)?,
            // The receiver may have said why before it stopped reading.
            Err(fault) => match refusal_behind(wire).await {
                Some(message) => return Ok(BlocksSent::Interrupted(Box::new(message))),
                None => return Err(fault.into()),
            },
        }
        packed.give_back(block);
    }
    Ok(BlocksSent::All(packed.crc32()))
}

fn unread(why: NoBlock<std::io::Error>) -> CommandError {
    let failed = CommandError::retry(READ_FAILED);
    match why {
        NoBlock::Unread(error) => failed.because(error),
        NoBlock::Lost(error) => failed.because(error),
    }
}

async fn refusal_behind(wire: &mut Wire) -> Option<Message> {
    loop {
        match wire.receive().await.ok()?.message {
            message @ Message::Error(_) => return Some(message),
            _ => continue,
        }
    }
}

/// Appends what the file has from `offset` on, at most `bytes`: in one call as a rule, and into
/// memory that nobody filled with zeros first.
fn read_block(file: &File, offset: u64, bytes: usize, buffer: &mut Vec<u8>) -> std::io::Result<()> {
    let begin = buffer.len();
    buffer.reserve_exact(bytes);
    while buffer.len() < begin + bytes {
        let at = offset + (buffer.len() - begin) as u64;
        if retry_on_intr(|| pread(file, spare_capacity(buffer), at))? == 0 {
            break;
        }
    }
    // A buffer that was used before may have room for more.
    buffer.truncate(begin + bytes);
    Ok(())
}

/// What a thread that read the file came to.
fn worked<T>(joined: std::result::Result<std::io::Result<T>, JoinError>) -> Result<T> {
    let failed = || CommandError::retry(READ_FAILED);
    joined
        .map_err(|error| failed().because(error))?
        .map_err(|error| failed().because(error))
}
