//! A store whose sync failed, wherever that was: it retires alone, and takes files again when its disk works.
//! Never over a network. Invariant tested: nothing of what was open before is used behind it.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio_util::sync::CancellationToken;
use walmgr_protocol::message::ErrorCode;
use walmgr_protocol::message::backup::BackupBegin;
use walmgr_protocol::message::partial::Open;
use walmgr_protocol::names::{SegmentName, TimelineId, WalFileName};

use super::run;
use crate::config;
use crate::receiver::cluster::Cluster;
use crate::receiver::cluster::census::StoreCensus;
use crate::receiver::cluster::open_store::OpenStore;
use crate::receiver::cluster::settings::ClusterSettings;
use crate::receiver::process_settings::ProcessSettings;
use crate::receiver::worker;
use crate::store::testing::{
    BINDING, FaultyDisk, Op, Sample, assert_stored, new_archive, push, real, scratch_folder,
    segment,
};
use crate::store::{Disk, StoreError};
use crate::wal::writer::WalWriter;

/// More than any of this takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A cluster that is looked after, beside another one whose store is open.
struct KeptCluster {
    folder: tempfile::TempDir,
    disk: Arc<FaultyDisk>,
    census: Arc<StoreCensus>,
    cluster: Arc<Cluster>,
    keeper: tokio::task::JoinHandle<()>,
}

impl KeptCluster {
    async fn new() -> KeptCluster {
        let folder = scratch_folder();
        new_archive(folder.path());
        let root = folder.path().display();
        let ini = folder.path().join("standby.ini");
        let text = format!(
            "[walmgr]\ncompleted_wals = {root}/logs.complete\npartial_wals = {root}/logs.partial\n\
             full_backup = {root}/data.master\ntls = off\nlisten = 127.0.0.1:1\n"
        );
        std::fs::write(&ini, text).unwrap();
        let config = config::load(&ini, &[])
            .unwrap()
            .into_standby("receiver")
            .unwrap();
        let disk = FaultyDisk::over(real());
        let census = Arc::new(StoreCensus::default());
        let shared: Arc<dyn Disk> = disk.clone();
        let process =
            ProcessSettings::load(&config.tls, (1, None), ("", None, PathBuf::new())).unwrap();
        let settings = ClusterSettings::load(&config, &process).unwrap();
        let (stopping, span) = (CancellationToken::new(), tracing::Span::none());
        let cluster =
            Cluster::open(("a", &config), settings, &shared, &census, stopping, span).unwrap();
        let cluster = Arc::new(cluster);
        census.opened();
        census.is_complete();
        let keeper = tokio::spawn(run(Arc::clone(&cluster)));
        let kept = KeptCluster {
            folder,
            disk,
            census,
            cluster,
            keeper,
        };
        kept.settle().await;
        kept
    }

    fn store(&self) -> Arc<OpenStore> {
        self.cluster.store().unwrap()
    }

    /// Waits until nobody is looking at older WAL, which syncs too.
    async fn settle(&self) {
        let looked = self.folder.path().join("logs.complete/.obstacles/walked");
        let until = Instant::now() + PATIENCE;
        while !looked.exists() || self.store().workforce.len() > 0 {
            assert!(Instant::now() < until, "nobody looks at older WAL");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Lets a sync fail in `work`, and says whose store that was.
    fn retire(&self, op: Op, work: impl FnOnce(&OpenStore)) -> Weak<OpenStore> {
        let store = self.store();
        self.disk.fail(op, 0, 1, Errno::IO);
        work(&store);
        assert!(store.check_health());
        let refusal = self.cluster.store().map(drop).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::DiskFailed);
        assert!(refusal.message.starts_with("a sync failed: "), "{refusal}");
        assert_eq!(self.census.ends_because(), None);
        assert!(self.cluster.identity().is_some());
        Arc::downgrade(&store)
    }

    async fn opened_again(&self) -> Arc<OpenStore> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Ok(store) = self.cluster.store() {
                return store;
            }
            assert!(Instant::now() < until, "it was not opened again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// It is open again, nothing is left of the one before, and everything works.
    async fn assert_works(&self, before: &Weak<OpenStore>, number: u64) {
        let store = self.opened_again().await;
        assert_eq!(before.strong_count(), 0);
        assert_stored(&store.archive, &segment(number, 1));
        ship(&store, number + 1).unwrap();
        let begun = store.backups.begin(&backup()).unwrap();
        store.backups.end(&worker::failed_on("test"));
        assert!(begun.is_over());
        assert!(!store.check_health());
    }
}

impl Drop for KeptCluster {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

fn backup() -> BackupBegin {
    BackupBegin {
        who: "db1".to_owned(),
        origin: "db1".to_owned(),
        label: String::new(),
        timeline: TimelineId::FIRST,
    }
}

/// Ships a record of this segment.
fn ship(store: &OpenStore, number: u64) -> Result<(), StoreError> {
    let segment = SegmentName::from_number(TimelineId::FIRST, number, BINDING.segment_size);
    let mut writer = WalWriter::new(segment, BINDING.segment_size, BINDING.system_id, 15);
    let end = writer.record(10, 0, &[7; 100]).end;
    let size = BINDING.segment_size.bytes();
    let bytes = &writer.bytes()[..usize::try_from(end.0 % size).unwrap()];
    let (mut stream, _) = store.archive.partial_stream(TimelineId::FIRST)?;
    stream.open(&Open {
        segment,
        bytes: bytes.len() as u64,
        crc32: crc32fast::hash(bytes),
    })?;
    stream.append(0, end, bytes)?;
    let proof = stream.sync()?;
    store.note_records(&proof);
    Ok(())
}

fn stored(store: &OpenStore, sample: &Sample) {
    assert_stored(&store.archive, sample);
    store.note_stored(sample.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_33_a_store_whose_archive_cannot_sync_is_opened_again() {
    let kept = KeptCluster::new().await;
    let first = segment(3, 1);
    stored(&kept.store(), &first);
    let before = kept.retire(Op::SyncFile, |store| {
        push(&store.archive, &segment(4, 1)).unwrap_err();
        // What was in memory says more than the disk holds.
        store.note_stored(segment(9, 1).name);
    });
    let WalFileName::Segment(newest) = first.name else {
        panic!("{}", first.name);
    };
    assert_eq!(kept.opened_again().await.newest_segment(), Some(newest));
    kept.assert_works(&before, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_33_a_store_whose_stream_cannot_sync_is_opened_again() {
    let kept = KeptCluster::new().await;
    stored(&kept.store(), &segment(3, 1));
    let before = kept.retire(Op::SyncBytes, |store| {
        ship(store, 7).unwrap_err();
    });
    kept.assert_works(&before, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_33_a_store_whose_sets_cannot_sync_is_opened_again() {
    let kept = KeptCluster::new().await;
    let before = kept.retire(Op::SyncDirectory, |store| {
        store.backups.begin(&backup()).map(drop).unwrap_err();
    });
    kept.assert_works(&before, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_33_a_backup_ends_with_the_store_that_it_was_made_in() {
    let kept = KeptCluster::new().await;
    let running = kept.store().backups.begin(&backup()).unwrap();
    let incoming = kept.folder.path().join("data.master.incoming");
    assert!(incoming.exists());
    let before = kept.retire(Op::SyncFile, |store| {
        push(&store.archive, &segment(4, 1)).unwrap_err();
    });
    kept.opened_again().await;
    assert!(running.is_over());
    assert!(!incoming.exists());
    kept.assert_works(&before, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_33_a_store_is_not_opened_again_below_who_works_with_it() {
    let kept = KeptCluster::new().await;
    let (release, held) = std::sync::mpsc::channel::<()>();
    let store = kept.store();
    let workforce = store.workforce.clone();
    worker::aside(&workforce, "test", move || {
        let _store = store;
        let _ = held.recv();
    });
    let before = kept.retire(Op::SyncFile, |store| {
        push(&store.archive, &segment(4, 1)).unwrap_err();
    });
    // Longer than the first try waits.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(kept.cluster.is_retired());
    assert_eq!(before.strong_count(), 1);
    drop(release);
    kept.assert_works(&before, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_33_a_store_whose_opening_fails_stays_closed_until_it_does_not() {
    let kept = KeptCluster::new().await;
    ship(&kept.store(), 7).unwrap();
    for (op, number) in [(Op::SyncDirectory, 3), (Op::SyncFile, 5)] {
        kept.settle().await;
        // The second comes when it is opened, in the archive's folders or in that of the sets.
        kept.disk
            .fail(op, usize::from(op == Op::SyncFile), 1, Errno::IO);
        let log = kept.disk.log().len();
        let before = kept.retire(Op::SyncFile, |store| {
            push(&store.archive, &segment(number, 1)).unwrap_err();
        });
        kept.opened_again().await;
        let tries = kept.disk.log()[log..].to_vec();
        let locks = tries
            .iter()
            .filter(|(op, name)| *op == Op::Lock && name.starts_with(".walmgr-lock"));
        assert_eq!(locks.count(), 2, "{op:?}");
        kept.assert_works(&before, number).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_33_a_store_is_not_opened_again_without_its_sets() {
    let kept = KeptCluster::new().await;
    let before = kept.retire(Op::SyncFile, |store| {
        push(&store.archive, &segment(4, 1)).unwrap_err();
        let root = kept.folder.path().file_name().unwrap();
        (kept.disk).fail_named(Op::SyncDirectory, root.to_str().unwrap(), Errno::IO);
    });
    kept.assert_works(&before, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_33_opening_again_reads_a_partial_segment_from_the_disk() {
    let kept = KeptCluster::new().await;
    ship(&kept.store(), 7).unwrap();
    let before = kept.retire(Op::SyncFile, |store| {
        push(&store.archive, &segment(4, 1)).unwrap_err();
    });
    let log = kept.disk.log().len();
    kept.opened_again().await;
    let name = "000000010000000000000007";
    let of_it: Vec<Op> = kept.disk.log()[log..]
        .iter()
        .filter(|(_, about)| about == name)
        .map(|(op, _)| *op)
        .collect();
    let at = |op| of_it.iter().position(|found| *found == op);
    let last_read = of_it.iter().rposition(|op| *op == Op::Read);
    let synced = at(Op::SyncFile).or(at(Op::SyncBytes));
    assert!(
        synced.is_some() && synced < at(Op::ForgetCache),
        "{of_it:?}"
    );
    assert!(at(Op::ForgetCache) < last_read, "{of_it:?}");
    kept.assert_works(&before, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_33_the_last_open_store_is_not_opened_again() {
    let kept = KeptCluster::new().await;
    kept.census.closed(false);
    let store = kept.store();
    kept.disk.fail(Op::SyncFile, 0, 1, Errno::IO);
    push(&store.archive, &segment(4, 1)).unwrap_err();
    assert!(store.check_health());
    drop(store);
    kept.census.none_left().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(kept.cluster.is_retired());
    let why = kept.census.ends_because().unwrap();
    assert!(why.contains("Input/output error"), "{why}");
}
