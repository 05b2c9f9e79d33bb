//! One file from the client's library to a real receiver's disk, over loopback, synced.
//! Never in memory only: it refuses a temporary folder that is no disk. The connection stays open
//! between files, so this is the push flow alone; `xarchive.sh` measures the whole process.

mod wal_like;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use walmgr::test_support::config::{self, Config};
use walmgr::test_support::master::push::{self, Blocks};
use walmgr::test_support::store::{Archive, ArchiveFolders, Binding, RealDisk};
use walmgr::test_support::transport::connect::{Connection, ReceiverTarget};
use walmgr_protocol::limits::BLOCK_BYTES_DEFAULT;
use walmgr_protocol::message::{ClusterIdentity, Offer, WireVerify};
use walmgr_protocol::names::{TimelineId, WalFileName, WalSegmentSize};
use walmgr_protocol::session::push::PushOutcome;

/// `f_type` of tmpfs, from `linux/magic.h`.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// A standby with its receiver, and a master's settings for it, in a folder of their own.
struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    fn start(tls: bool) -> Site {
        let parent = std::env::var_os("WALMGR_BENCH_DIR").unwrap_or_else(|| "/var/tmp".into());
        let folder = tempfile::Builder::new()
            .prefix("walmgr-bench.")
            .tempdir_in(&parent)
            .expect("the folder for the bench can be made");
        let kind = rustix::fs::statfs(folder.path())
            .expect("the folder is there")
            .f_type;
        assert_ne!(
            kind, TMPFS_MAGIC,
            "{parent:?} is in memory; set WALMGR_BENCH_DIR to a disk"
        );
        let site = Site { folder };
        site.write_settings(if tls { "on" } else { "off" });
        site.bind_archive();
        site.walmgr(&["standby.ini", "receiver", "-d"]);
        site
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn walmgr(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_walmgr"))
            .arg("-q")
            .args(arguments)
            .current_dir(self.path())
            .output()
            .expect("walmgr can be started");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn write_settings(&self, tls: &str) {
        let free = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = free.local_addr().expect("it is bound").port();
        let write = |name: &str, text: String| {
            fs::write(self.path().join(name), text).expect("the folder can be written");
        };
        write(
            "standby.ini",
            format!("[walmgr]\nwalmgr_data = .\nlisten = 127.0.0.1:{port}\ntls = {tls}\n"),
        );
        let receiver = self.walmgr(&["standby.ini", "identity"]);
        write(
            "master.ini",
            format!(
                "[walmgr]\nmaster_data = pgdata\nslave = 127.0.0.1:{port}\ntls = {tls}\n\
                 slave_fingerprint = {receiver}\n"
            ),
        );
        let master = self.walmgr(&["master.ini", "identity"]);
        self.walmgr(&["standby.ini", "authorize", &master, "bench"]);
        self.walmgr(&["standby.ini", "setup"]);
    }

    /// What `walmgr master.ini setup` does, without a server.
    fn bind_archive(&self) {
        let loaded = config::load(&self.path().join("standby.ini"), &[]);
        let Ok(Config::Standby(standby)) = loaded else {
            unreachable!("the settings were written for a standby: {loaded:?}")
        };
        let binding = Binding {
            system_id: wal_like::SYSTEM_ID,
            segment_size: WalSegmentSize::DEFAULT,
            postgres_major: wal_like::MAJOR,
        };
        Archive::open(&ArchiveFolders::of(&standby), Arc::new(RealDisk))
            .and_then(|archive| archive.bind(&binding))
            .expect("a fresh archive can be bound");
    }

    async fn connect(&self) -> Connection {
        let loaded = config::load(&self.path().join("master.ini"), &[]);
        let Ok(Config::Master(master)) = loaded else {
            unreachable!("the settings were written for a master: {loaded:?}")
        };
        let cluster = ClusterIdentity {
            system_id: wal_like::SYSTEM_ID,
            postgres_major: wal_like::MAJOR.into(),
            segment_size: WalSegmentSize::DEFAULT,
        };
        let target = ReceiverTarget::from_config(&master).expect("the settings are complete");
        target
            .connect(cluster, TimelineId::new(1).expect("1 is a timeline"))
            .await
            .expect("the receiver listens")
    }

    /// Archives the file once, forgets it again, and says how long the first took.
    async fn push(
        &self,
        connection: &mut Connection,
        file: &Arc<fs::File>,
        blocks: Blocks,
    ) -> Duration {
        let name: WalFileName = wal_like::SEGMENT.parse().expect("it is a segment's name");
        let size = WalSegmentSize::DEFAULT.bytes();
        let begun = Instant::now();
        let offer = Offer {
            name,
            size,
            crc32: Some(push::digest(file, size).expect("the file can be read")),
            verify: WireVerify::Records,
        };
        let outcome = push::push(&mut connection.wire, Arc::clone(file), offer, blocks).await;
        let took = begun.elapsed();
        assert_eq!(outcome.expect("the receiver is there"), PushOutcome::Stored);
        let stored = format!("logs.complete/{}.zst", wal_like::SEGMENT);
        fs::remove_file(self.path().join(stored)).expect("it was stored");
        took
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let stopping = Command::new(env!("CARGO_BIN_EXE_walmgr"))
            .args(["-q", "standby.ini", "receiver", "-s"])
            .current_dir(self.path())
            .status();
        if !stopping.is_ok_and(|status| status.success()) {
            eprintln!("the receiver of {} may still run", self.path().display());
        }
    }
}

/// The same file written, synced and renamed here, without anything in between.
fn floor(source: &Path, folder: &Path) -> Duration {
    let (incoming, stored) = (folder.join("floor.in"), folder.join("floor"));
    let begun = Instant::now();
    fs::copy(source, &incoming).expect("the folder can be written");
    let written = fs::File::open(&incoming).expect("it was written");
    written.sync_all().expect("it can be synced");
    fs::rename(&incoming, &stored).expect("it can be renamed");
    let took = begun.elapsed();
    fs::remove_file(stored).expect("it is there");
    took
}

fn push_segment(criterion: &mut Criterion) {
    let runtime = walmgr::test_support::master::runtime().expect("a runtime can be made");
    let mut group = criterion.benchmark_group("push 16 MiB");
    group.throughput(Throughput::Bytes(WalSegmentSize::DEFAULT.bytes()));
    let plain = Site::start(false);
    let tls = Site::start(true);
    let source = tls.path().join("source");
    fs::write(&source, wal_like::segment()).expect("the folder can be written");
    let file = Arc::new(fs::File::open(&source).expect("it was written"));
    group.bench_function("floor: copy, sync, rename", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| floor(&source, tls.path())).sum());
    });
    for (name, site, compression) in [
        ("plain", &plain, 0),
        ("TLS", &tls, 0),
        ("TLS, compression = 1", &tls, 1),
    ] {
        let mut connection = runtime.block_on(site.connect());
        let blocks = Blocks {
            block_bytes: BLOCK_BYTES_DEFAULT,
            compression,
        };
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                let one = |_| runtime.block_on(site.push(&mut connection, &file, blocks));
                (0..times).map(one).sum()
            });
        });
        runtime.block_on(connection.wire.close());
    }
    group.finish();
}

fn quick() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
}

criterion_group! { name = benches; config = quick(); targets = push_segment }
criterion_main!(benches);
