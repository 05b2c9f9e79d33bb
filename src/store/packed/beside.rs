//! Blocks that are packed beside whoever brings them: the tools, and the threads that use them.
//! Never waits for a disk or a socket. Invariant: whoever waits for a block waits for a thread that is packing it, or
//! packs it itself; so nobody waits for a thread that could not be started, or is busy with another file.
//!
//! A block's way: `Waiting` → `Begun` (by a thread, or by the one who waits for it) → `Ended`. Giving a block up while
//! it is `Waiting` leaves nothing to do.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use walmgr_protocol::compress::set_level;
use zstd::zstd_safe::{CCtx, get_error_name};

use super::{BlockUnpacker, PackedFault, STORED_BLOCK_BYTES_MAX};
use crate::abnormal;

/// How many tools there are at most; more processors than that are not kept busy by packing alone.
const TOOLS_MAX: usize = 4;

/// How long a thread waits for another block before it ends.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// What a test plants a panic in.
const PACKING: &str = "packing";

/// The bytes of a block before it is packed.
pub(super) enum RawBlock {
    /// Those of a buffer, which is used again.
    Own(Vec<u8>),
    /// Those of a frame, which nobody changes.
    Shared(Bytes),
}

impl RawBlock {
    fn bytes(&self) -> &[u8] {
        match self {
            RawBlock::Own(bytes) => bytes,
            RawBlock::Shared(bytes) => bytes,
        }
    }

    /// The buffer, emptied, if it is one.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        match self {
            RawBlock::Own(mut bytes) => {
                bytes.clear();
                bytes
            }
            RawBlock::Shared(_) => Vec::new(),
        }
    }
}

/// A block as it is stored.
pub(super) struct PackedBytes<Stored> {
    pub(super) stored: Stored,
    pub(super) raw_bytes: usize,
    pub(super) crc32: u32,
}

impl<Stored: AsRef<[u8]>> PackedBytes<Stored> {
    /// These bytes, which unpack to so many.
    pub(super) fn of(stored: Stored, raw_bytes: usize) -> PackedBytes<Stored> {
        let crc32 = crc32fast::hash(stored.as_ref());
        PackedBytes {
            stored,
            raw_bytes,
            crc32,
        }
    }
}

type Packed = Result<PackedBytes<Vec<u8>>, PackedFault>;

/// A block that is packed beside whoever brought it. Dropping it gives it up.
pub(super) struct BlockToPack(Arc<SharedBlock>);

/// What the one who brought a block and the thread that packs it have in common.
struct SharedBlock {
    level: u8,
    stage: Mutex<PackingStage>,
    ended: Condvar,
}

enum PackingStage {
    Waiting(RawBlock),
    Begun,
    /// The error is what a panic said.
    Ended(Result<(Packed, RawBlock), String>),
    Over,
}

/// The blocks that wait for a thread, and the threads.
struct Threads {
    blocks: VecDeque<Arc<SharedBlock>>,
    running: usize,
    idle: usize,
}

static THREADS: Mutex<Threads> = Mutex::new(Threads {
    blocks: VecDeque::new(),
    running: 0,
    idle: 0,
});
static MORE_TO_PACK: Condvar = Condvar::new();

/// How many threads pack at most. With one processor a thread would only take turns with the one that brings blocks.
pub(super) fn threads_max() -> usize {
    static MAX: OnceLock<usize> = OnceLock::new();
    *MAX.get_or_init(|| match thread::available_parallelism() {
        Ok(processors) if processors.get() > 1 => processors.get().min(TOOLS_MAX),
        _ => 0,
    })
}

/// How many threads there are.
#[cfg(test)]
pub(super) fn threads_running() -> usize {
    lock(&THREADS).running
}

impl BlockToPack {
    /// Has a thread pack this, as soon as one has time.
    pub(super) fn begin(level: u8, raw: RawBlock) -> BlockToPack {
        let block = Arc::new(SharedBlock {
            level,
            stage: Mutex::new(PackingStage::Waiting(raw)),
            ended: Condvar::new(),
        });
        if threads_max() > 0 {
            lock(&THREADS).take_on(Arc::clone(&block));
        }
        BlockToPack(block)
    }

    /// Whether it is packed, or cannot be.
    pub(super) fn is_done(&self) -> bool {
        matches!(*lock(&self.0.stage), PackingStage::Ended(_))
    }

    /// Waits for it, or packs it if no thread has begun. Panics where the thread that packed it has.
    pub(super) fn finish(self) -> (Packed, RawBlock) {
        if let Some(raw) = self.0.take() {
            return (pack(self.0.level, &raw), raw);
        }
        let mut stage = lock(&self.0.stage);
        loop {
            match std::mem::replace(&mut *stage, PackingStage::Over) {
                PackingStage::Ended(Ok(ended)) => return ended,
                PackingStage::Ended(Err(panic)) => {
                    drop(stage);
                    abnormal::pass_on(panic)
                }
                other => *stage = other,
            }
            stage = (self.0.ended.wait(stage)).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for BlockToPack {
    fn drop(&mut self) {
        // Nobody wants it any more: a thread that has not begun need not.
        drop(self.0.take());
    }
}

impl SharedBlock {
    /// What is to be packed, for whoever is the first to ask.
    fn take(&self) -> Option<RawBlock> {
        let mut stage = lock(&self.stage);
        match std::mem::replace(&mut *stage, PackingStage::Begun) {
            PackingStage::Waiting(raw) => Some(raw),
            other => {
                *stage = other;
                None
            }
        }
    }

    /// Packs it on a thread of its own.
    fn pack_beside(&self) {
        let Some(raw) = self.take() else {
            return;
        };
        let ended = abnormal::caught(|| (pack(self.level, &raw), raw));
        *lock(&self.stage) = PackingStage::Ended(ended);
        self.ended.notify_one();
    }
}

impl Threads {
    fn take_on(&mut self, block: Arc<SharedBlock>) {
        self.blocks.push_back(block);
        if self.idle >= self.blocks.len() || self.running >= threads_max() {
            MORE_TO_PACK.notify_one();
            return;
        }
        let named = thread::Builder::new().name(PACKING.to_owned());
        if named.spawn(pack_what_comes).is_ok() {
            self.running += 1;
        } else if self.running == 0 {
            // Whoever waits for a block packs it, and nobody takes it out of here.
            self.blocks.clear();
        }
    }
}

/// A thread's work.
fn pack_what_comes() {
    let mut threads = lock(&THREADS);
    loop {
        if let Some(block) = threads.blocks.pop_front() {
            drop(threads);
            block.pack_beside();
            threads = lock(&THREADS);
            continue;
        }
        threads.idle += 1;
        let woken = MORE_TO_PACK.wait_timeout(threads, IDLE_MAX);
        let (again, waited) = woken.unwrap_or_else(PoisonError::into_inner);
        threads = again;
        threads.idle -= 1;
        if waited.timed_out() && threads.blocks.is_empty() {
            threads.running -= 1;
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pack(level: u8, raw: &RawBlock) -> Packed {
    abnormal::plant(PACKING);
    BorrowedTools::with(|tools| tools.pack(level, raw.bytes()))
}

/// What packs a block and unpacks it again: more than a megabyte, so there are as few as can work at once, however many
/// files arrive.
struct PackingTools {
    context: CCtx<'static>,
    again: BlockUnpacker,
    packed: Vec<u8>,
}

/// Those that nobody uses at the moment, and how many were made.
static TOOLS: Mutex<(Vec<PackingTools>, usize)> = Mutex::new((Vec::new(), 0));
static TOOLS_ARE_BACK: Condvar = Condvar::new();

/// Tools for one block; `None` until they are made. Whoever has them waits for nothing, least of all for a disk.
struct BorrowedTools(Option<PackingTools>);

impl BorrowedTools {
    fn take() -> BorrowedTools {
        let mut tools = lock(&TOOLS);
        loop {
            if let Some(free) = tools.0.pop() {
                return BorrowedTools(Some(free));
            }
            if tools.1 < TOOLS_MAX {
                tools.1 += 1;
                return BorrowedTools(None);
            }
            tools = (TOOLS_ARE_BACK.wait(tools)).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn with<T>(work: impl FnOnce(&mut PackingTools) -> T) -> T {
        let mut borrowed = BorrowedTools::take();
        work(borrowed.0.get_or_insert_with(PackingTools::new))
    }
}

impl Drop for BorrowedTools {
    fn drop(&mut self) {
        let mut tools = lock(&TOOLS);
        match self.0.take() {
            Some(back) => tools.0.push(back),
            // They were counted, and a panic kept them from being made.
            None => tools.1 -= 1,
        }
        drop(tools);
        TOOLS_ARE_BACK.notify_one();
    }
}

impl PackingTools {
    fn new() -> PackingTools {
        PackingTools {
            context: CCtx::create(),
            again: BlockUnpacker::new(),
            packed: vec![0; STORED_BLOCK_BYTES_MAX],
        }
    }

    /// A block packed at this level, once it unpacks to the same.
    fn pack(&mut self, level: u8, raw: &[u8]) -> Packed {
        let unusable = |why: &str| PackedFault(format!("it cannot be packed: {why}"));
        set_level(&mut self.context, level);
        let packed_bytes = (self.context.compress2(&mut self.packed[..], raw))
            .map_err(|code| unusable(get_error_name(code)))?;
        let stored = &self.packed[..packed_bytes];
        match self.again.unpack_exactly(stored, raw.len()) {
            Ok(again) if again == raw => Ok(PackedBytes::of(stored.to_vec(), raw.len())),
            _ => Err(unusable("what zstd made of it does not unpack to the same")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_that_were_never_made_are_in_nobodys_way() {
        for _ in 0..=TOOLS_MAX {
            // As if making them had panicked.
            drop(BorrowedTools::take().0.take());
        }
        assert_eq!(
            BorrowedTools::with(|tools| tools.packed.len()),
            STORED_BLOCK_BYTES_MAX
        );
    }
}
