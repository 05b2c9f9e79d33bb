//! What a backup has to send, what is on its way, and what has arrived; shared by all its streams.
//! Never opens a file. Invariant: a file is in one of three places: waiting, on its way in one
//! stream, or arrived with the checksum that both sides computed; only one that vanished is in none.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use walmgr_protocol::message::backup::{BackupHeld, FileDigest, FileDone};
use walmgr_protocol::names::{Lsn, RelativePath};

use crate::error::{CommandError, Result};
use crate::master::backup::needs::Needs;
use crate::output::progress::Counters;
use crate::pg::base_backup::{Arrived, BadBlock, Item};
use crate::pg::control::ControlFile;
use crate::pg::roots::Roots;

/// Blocks of a file whose checksums are remembered: a stream that was cut goes on behind one of
/// them. More than a segment of 1 GiB has at the smallest useful block.
const CHECKPOINTS_MAX: usize = 1 << 16;

/// What the streams of a backup take their work from, and lay down what became of it.
pub(crate) struct WorkQueue {
    /// Where files are opened.
    pub roots: Roots,
    /// Where the backup began: what is newer on a page, WAL writes again.
    pub start: Lsn,
    /// What the cluster's pages look like.
    pub control: ControlFile,
    /// What is needed of files of which not all is.
    pub needs: Needs,
    /// How far everything is.
    pub counters: Counters,
    /// Files that were gone before they could be read.
    pub vanished: AtomicU64,
    /// Files that were put in, to see that none of them got lost.
    put_in: AtomicU64,
    waiting: Mutex<VecDeque<Arc<Item>>>,
    arrived: Mutex<Vec<Arrived>>,
    bad_blocks: Mutex<Vec<BadBlock>>,
}

impl WorkQueue {
    /// Everything in `waiting` is to be sent, in that order.
    pub(crate) fn new(
        roots: Roots,
        start: Lsn,
        (control, needs): (ControlFile, Needs),
        waiting: impl IntoIterator<Item = Item>,
    ) -> WorkQueue {
        let queue = WorkQueue {
            roots,
            start,
            control,
            needs,
            counters: Counters::default(),
            vanished: AtomicU64::new(0),
            put_in: AtomicU64::new(0),
            waiting: Mutex::default(),
            arrived: Mutex::default(),
            bad_blocks: Mutex::default(),
        };
        waiting.into_iter().for_each(|item| queue.put(item));
        queue
    }

    /// The next thing that no stream has taken.
    pub(crate) fn take(&self) -> Option<Arc<Item>> {
        lock(&self.waiting).pop_front()
    }

    /// Adds one more thing behind the rest.
    pub(crate) fn put(&self, item: Item) {
        if item.path().is_some() {
            self.put_in.fetch_add(1, Ordering::Relaxed);
        }
        lock(&self.waiting).push_back(Arc::new(item));
    }

    /// Fails unless every file that was put in has arrived or vanished. The manifest names what arrived, so that
    /// nobody who reads the set could tell what is missing.
    pub(crate) fn all_is_settled(&self) -> Result<()> {
        let arrived = lock(&self.arrived).len() as u64;
        let vanished = self.vanished.load(Ordering::Relaxed);
        let put_in = self.put_in.load(Ordering::Relaxed);
        if arrived + vanished == put_in {
            return Ok(());
        }
        let text = format!("of {put_in} files {arrived} arrived and {vanished} vanished");
        Err(CommandError::retry(text).hint("nothing of this backup was kept; please report this"))
    }

    /// Notes a block that stayed bad.
    pub(crate) fn note_bad(&self, bad: BadBlock) {
        lock(&self.bad_blocks).push(bad);
    }

    /// Every block that stayed bad.
    pub(crate) fn bad_blocks(&self) -> Vec<BadBlock> {
        let mut bad = lock(&self.bad_blocks).clone();
        bad.sort_by(|one, other| (&one.path, one.block).cmp(&(&other.path, other.block)));
        bad.dedup();
        bad
    }

    /// Everything that arrived, by its path.
    pub(crate) fn arrived(&self) -> Vec<Arrived> {
        let mut arrived = lock(&self.arrived).clone();
        arrived.sort_by(|one, other| one.path.cmp(&other.path));
        arrived
    }
}

/// What one stream has sent and not yet heard of.
#[derive(Default)]
pub(crate) struct OnItsWay(Mutex<HashMap<RelativePath, SentItem>>);

struct SentItem {
    item: Arc<Item>,
    /// The length that was announced.
    len: u64,
    modified_s: i64,
    /// CRC-32C of all of it, once all of it was read.
    crc32c: Option<u32>,
    /// Only the receiver knows the checksum of the file that comes of it.
    is_patch: bool,
    /// Offsets behind blocks, and the CRC-32C up to there.
    checkpoints: Vec<(u64, u32)>,
    /// Bytes of it that the progress counts.
    counted_bytes: u64,
}

/// Something that has to be sent again, or from where it was cut.
#[derive(Debug)]
pub(crate) struct Resend {
    /// What.
    pub item: Arc<Item>,
    /// The rest of it, if its beginning is there.
    pub rest: Option<Remainder>,
}

/// What is missing of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Remainder {
    /// Bytes that are there.
    pub offset: u64,
    /// CRC-32C of them.
    pub crc32c: u32,
    /// The length that was announced.
    pub len: u64,
    /// The time that was noted for it.
    pub modified_s: i64,
}

impl OnItsWay {
    /// Something is being sent from its beginning.
    pub(crate) fn begin(&self, item: &Arc<Item>, len: u64, modified_s: i64) {
        self.begin_as(item, len, modified_s, false);
    }

    /// A patch is being sent that makes a file so long.
    pub(crate) fn begin_patch(&self, item: &Arc<Item>, len: u64, modified_s: i64) {
        self.begin_as(item, len, modified_s, true);
    }

    fn begin_as(&self, item: &Arc<Item>, len: u64, modified_s: i64, is_patch: bool) {
        let sent = SentItem {
            item: Arc::clone(item),
            len,
            modified_s,
            crc32c: None,
            is_patch,
            checkpoints: Vec::new(),
            counted_bytes: 0,
        };
        lock(&self.0).insert(item.target.clone(), sent);
    }

    /// A block ends inside this file.
    pub(crate) fn checkpoint(&self, item: &Item, offset: u64, crc32c: u32) {
        if let Some(sent) = lock(&self.0).get_mut(&item.target)
            && !sent.is_patch
            && sent.checkpoints.len() < CHECKPOINTS_MAX
        {
            sent.checkpoints.push((offset, crc32c));
        }
    }

    /// Bytes of this file were read.
    pub(crate) fn count(&self, load: &WorkQueue, item: &Item, bytes: u64) {
        if let Some(sent) = lock(&self.0).get_mut(&item.target) {
            sent.counted_bytes += bytes;
        }
        Counters::add(&load.counters.read_bytes, bytes);
    }

    /// All of this file was read.
    pub(crate) fn complete(&self, item: &Item, crc32c: u32) {
        if let Some(sent) = lock(&self.0).get_mut(&item.target) {
            sent.crc32c = Some(crc32c);
        }
    }

    /// It is gone from the data directory, and nothing of it will be sent.
    pub(crate) fn vanished(&self, load: &WorkQueue, item: &Item) {
        load.vanished.fetch_add(1, Ordering::Relaxed);
        lock(&self.0).remove(&item.target);
    }

    /// The receiver confirms a file.
    pub(crate) fn done(&self, load: &WorkQueue, done: &FileDone) -> Result<()> {
        let sent = lock(&self.0).remove(&done.path);
        let digest = sent.as_ref().and_then(|sent| {
            let (len, crc32c) = match (sent.is_patch, sent.crc32c?) {
                (true, _) => (sent.len, done.digest.crc32c),
                (false, crc32c) => (sent.len, crc32c),
            };
            Some(FileDigest { len, crc32c })
        });
        match (sent, digest) {
            (Some(sent), Some(digest)) if digest == done.digest => {
                if let Some(path) = sent.item.path() {
                    Counters::add(&load.counters.files, 1);
                    lock(&load.arrived).push(Arrived {
                        path: path.clone(),
                        modified_s: sent.modified_s,
                        digest,
                    });
                }
                Ok(())
            }
            (_, sent) => Err(CommandError::retry(format!(
                "the receiver confirms {} with {:?}, which was sent as {sent:?}",
                done.path, done.digest
            ))),
        }
    }

    /// The stream was taken to its end; what it holds beside files needs no confirmation.
    pub(crate) fn ended(&self) -> Result<()> {
        let mut sent = lock(&self.0);
        sent.retain(|_, sent| sent.item.path().is_some());
        match sent.keys().next() {
            None => Ok(()),
            Some(path) => Err(CommandError::retry(format!(
                "the receiver accepted a stream and did not confirm {path}"
            ))),
        }
    }

    /// What nobody has heard of.
    pub(crate) fn unconfirmed(&self) -> Vec<RelativePath> {
        lock(&self.0).keys().cloned().collect()
    }

    /// What has to be done about a path of which the receiver holds this. What is sent again stays on its way: the
    /// connection may be cut before it is its turn.
    pub(crate) fn settle(
        &self,
        load: &WorkQueue,
        path: &RelativePath,
        held: BackupHeld,
    ) -> Result<Option<Resend>> {
        if let BackupHeld::All(digest) = held
            && self.is_complete(path)
        {
            let path = path.clone();
            self.done(load, &FileDone { path, digest })?;
            return Ok(None);
        }
        let mut on_its_way = lock(&self.0);
        let Some(sent) = on_its_way.get_mut(path) else {
            return Ok(None);
        };
        if held == BackupHeld::Directory {
            on_its_way.remove(path);
            return Ok(None);
        }
        let item = Arc::clone(&sent.item);
        if let BackupHeld::Beginning { bytes, crc32c, len } = held
            && len == sent.len
            && sent.checkpoints.contains(&(bytes, crc32c))
        {
            let modified_s = sent.modified_s;
            let rest = Some(Remainder {
                offset: bytes,
                crc32c,
                len,
                modified_s,
            });
            sent.crc32c = None;
            sent.checkpoints.retain(|(offset, _)| *offset <= bytes);
            sent.uncount(load, bytes);
            return Ok(Some(Resend { item, rest }));
        }
        sent.uncount(load, 0);
        sent.crc32c = None;
        sent.checkpoints.clear();
        Ok(Some(Resend { item, rest: None }))
    }

    fn is_complete(&self, path: &RelativePath) -> bool {
        let on_its_way = lock(&self.0);
        (on_its_way.get(path)).is_some_and(|sent| sent.crc32c.is_some())
    }
}

impl SentItem {
    /// Takes what will be sent again back from the progress.
    fn uncount(&mut self, load: &WorkQueue, kept_bytes: u64) {
        let again = self.counted_bytes.saturating_sub(kept_bytes);
        self.counted_bytes -= again;
        (load.counters.read_bytes).fetch_sub(again, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::pg::base_backup::Content;
    use crate::pg::data_directory::DataDirectory;
    use crate::pg::fixtures::control_file;
    use crate::pg::walk;

    fn queue(items: impl IntoIterator<Item = Item>) -> (WorkQueue, tempfile::TempDir) {
        let home = tempfile::tempdir().unwrap();
        for folder in ["global", "pg_tblspc", "pg_wal"] {
            std::fs::create_dir(home.path().join(folder)).unwrap();
        }
        std::fs::write(home.path().join("PG_VERSION"), "15\n").unwrap();
        std::fs::write(home.path().join("global/pg_control"), control_file(15)).unwrap();
        let data = DataDirectory::open(home.path()).unwrap();
        let roots = walk::walk(&data).unwrap().roots;
        let control = data.control().unwrap();
        let needs = Needs::new();
        (WorkQueue::new(roots, Lsn(1), (control, needs), items), home)
    }

    fn path(text: &str) -> RelativePath {
        RelativePath::new(text.as_bytes()).unwrap()
    }

    fn item(target: &str, content: Content) -> Item {
        let target = path(target);
        Item { target, content }
    }

    #[test]
    fn fault_67_what_is_to_be_sent_again_survives_a_second_cut() {
        let note = || Content::Note(Bytes::from_static(b"x"));
        let (load, _home) = queue([
            item("a", note()),
            item("b", note()),
            item("c", Content::Directory),
        ]);
        let on_its_way = OnItsWay::default();
        while let Some(item) = load.take() {
            on_its_way.begin(&item, 1, 0);
            on_its_way.complete(&item, 7);
        }
        // Twice the connection is cut after the answer, and before any of it is sent again.
        for _ in 0..2 {
            let mut asked = on_its_way.unconfirmed();
            asked.sort();
            assert_eq!(asked, [path("a"), path("b"), path("c")]);
            for path in &asked {
                let again = on_its_way.settle(&load, path, BackupHeld::Nothing).unwrap();
                assert_eq!(again.unwrap().item.target, *path);
            }
        }
        let digest = FileDigest { len: 1, crc32c: 7 };
        // One comes, one is gone by now, and the directory is there.
        let again = on_its_way
            .settle(&load, &path("a"), BackupHeld::Nothing)
            .unwrap();
        let item = again.unwrap().item;
        on_its_way.begin(&item, 1, 0);
        on_its_way.complete(&item, 7);
        let path_of_a = path("a");
        let done = FileDone {
            path: path_of_a,
            digest,
        };
        on_its_way.done(&load, &done).unwrap();
        assert!(load.all_is_settled().is_err());
        let again = on_its_way
            .settle(&load, &path("b"), BackupHeld::Nothing)
            .unwrap();
        on_its_way.vanished(&load, &again.unwrap().item);
        let again = on_its_way
            .settle(&load, &path("c"), BackupHeld::Directory)
            .unwrap();
        assert!(again.is_none());
        on_its_way.ended().unwrap();
        load.all_is_settled().unwrap();
        assert_eq!(load.arrived().len(), 1);
    }
}
