//! Full speed: what a busy PostgreSQL finishes is in the archive, and memory stays in its bounds.
//! Never compares names alone: content decides. Invariant: nothing fails, not even once.
//!
//! `WALMGR_SOAK=1` makes the long runs; the figures are printed either way.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use walmgr_protocol::limits::{BLOCK_BYTES_MAX, CHANNELS_MAX};
use walmgr_protocol::message::Message;

use crate::support::peer::{Peer, data};
use crate::support::place::server_user;
use crate::support::proxy::{Direction, Fault};
use crate::support::receiver::{PROGRAM_KIB, memory_kib};
use crate::support::{Cluster, Site, soak, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// The promises of docs/explain/receiver.md.
const RECEIVER_KIB: u64 = 32 << 10;
const CONNECTION_KIB: u64 = 4 << 10;
const CLIENT_KIB: u64 = 24 << 10;

/// Finishes the current segment and waits until everything finished is in the archive.
pub fn drain(site: &Site) {
    let cluster = site.cluster();
    cluster.psql("SELECT pg_create_restore_point('x')");
    cluster.switch_wal();
    let folder = cluster.data().join("pg_wal/archive_status");
    wait_for("everything to be archived", PATIENCE, || {
        let ready = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|x| x == "ready");
        let entries = fs::read_dir(&folder).unwrap();
        (!entries.flatten().any(|entry| ready(&entry))).then_some(())
    });
}

/// Compares the archive with what the master has kept; returns how many files and bytes.
pub fn assert_archive_equals_master(site: &Site) -> (usize, u64) {
    let wal = site.cluster().data().join("pg_wal");
    let names = site.archived_names();
    let mut bytes = 0;
    for name in &names {
        let stored = site.archived(name);
        bytes += u64::try_from(stored.len()).unwrap();
        let kept = fs::read(wal.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(stored == kept, "{name} differs from the master's");
    }
    for entry in fs::read_dir(wal.join("archive_status")).unwrap().flatten() {
        let file = entry.file_name().into_string().unwrap();
        if let Some(name) = file.strip_suffix(".done") {
            assert!(names.iter().any(|stored| stored == name), "{name} is lost");
        }
    }
    let failed = "SELECT failed_count, last_failed_wal IS NULL FROM pg_stat_archiver";
    assert_eq!(
        site.cluster().psql(failed),
        "0|t",
        "{}",
        site.cluster().log()
    );
    assert_eq!(site.temporaries(), Vec::<String>::new());
    (names.len(), bytes)
}

#[test]
fn under_pgbench_at_full_speed_every_segment_arrives_as_it_is() {
    skip_unless!(Cluster::available(15));
    let seconds = if soak() { 120 } else { 15 };
    let cluster = Cluster::builder()
        .wal_segment_size_mb(16)
        .conf("archive_mode", "on")
        .conf("wal_keep_size", "60GB")
        .conf("synchronous_commit", "off")
        .start();
    let site = Site::with_cluster(cluster);
    site.master_command(&["setup"]).succeed();
    site.cluster().pgbench(&["-i", "-q", "-s", "5"]);
    let begun = Instant::now();
    let time = seconds.to_string();
    let report = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let words = ["-c", "4", "-j", "2", "-n", "-T", time.as_str()];
            site.cluster().pgbench(&words)
        });
        while !load.is_finished() {
            site.cluster().switch_wal();
            std::thread::sleep(Duration::from_millis(500));
        }
        load.join().unwrap()
    });
    let took = begun.elapsed();
    drain(&site);
    let (count, bytes) = assert_archive_equals_master(&site);
    // setup's proof, pgbench's own tables and the forced switches.
    assert!(count > seconds, "{count} files in {seconds} s");
    let peak_kib = site.receiver.memory_peak_kib();
    let tps = report.lines().find(|line| line.starts_with("tps"));
    println!(
        "{count} files, {} MiB in {took:.0?}; {}; receiver at most {peak_kib} KiB",
        bytes >> 20,
        tps.unwrap_or("no tps")
    );
    // xarchive comes alone; the one before may not be gone yet.
    let allowed_kib = RECEIVER_KIB + 2 * CONNECTION_KIB;
    assert!(peak_kib <= allowed_kib, "{peak_kib} KiB");
}

/// Clients that end with the test, however that ends.
struct Clients(Vec<Child>);

impl Drop for Clients {
    fn drop(&mut self) {
        for client in &mut self.0 {
            let _ = client.kill();
            let _ = client.wait();
        }
    }
}

impl Clients {
    fn start(site: &Site, numbers: std::ops::Range<u64>) -> Clients {
        let spawn = |number| {
            let name = site.segment_name(number);
            let path = site.data().join("pg_wal").join(&name);
            let mut command = site.xarchive_walmgr(&path, &name);
            command.stdin(Stdio::null()).spawn().unwrap()
        };
        Clients(numbers.map(spawn).collect())
    }

    fn succeed(&mut self) {
        for client in &mut self.0 {
            assert!(client.wait().unwrap().success());
        }
    }
}

/// Before the acknowledgement is read all work is done, so what the client needed most it has
/// needed by then.
#[test]
fn a_client_needs_at_most_24_mib() {
    let _user = skip_unless!(server_user());
    for (size_mb, compression) in [(16, "0"), (16, "1"), (16, "19"), (64, "1")] {
        let site = Site::builder()
            .segment_size_mb(size_mb)
            .master_set("compression", compression)
            .proxied()
            .build();
        for number in 1..=3 {
            site.write_segment(number);
        }
        // From the second on each session is as long as the next.
        for number in 1..=2 {
            site.archive(&site.segment_name(number)).succeed();
        }
        let clean = site.proxy().recordings().pop().unwrap();
        let (_, Fault::Cut { at_byte }) = Fault::lose_last_bytes(&clean, 40) else {
            unreachable!("losing bytes is a cut");
        };
        let never = (Direction::ToClient, Fault::Blackhole { at_byte });
        site.proxy().set_faults([never]);
        let clients = Clients::start(&site, 3..4);
        let name = site.segment_name(3);
        wait_for("the file", PATIENCE, || site.holds(&name).then_some(()));
        let client = clients.0[0].id();
        let peak_kib = memory_kib(client, "VmHWM:").unwrap();
        let program_kib = memory_kib(client, "RssFile:").unwrap();
        println!(
            "xarchive of {size_mb} MiB, compression {compression}: {peak_kib} KiB, {program_kib} \
             of them its program"
        );
        // An unoptimised program is larger than the one that people install.
        let own_kib = peak_kib.saturating_sub(program_kib);
        assert!(own_kib + PROGRAM_KIB <= CLIENT_KIB, "{own_kib} KiB");
    }
}

#[test]
fn a_receiver_needs_at_most_4_mib_more_for_each_connection() {
    let _user = skip_unless!(server_user());
    for (clients, compression) in [(1, "0"), (8, "0"), (8, "3")] {
        let site = Site::builder()
            .segment_size_mb(16)
            .master_set("compression", compression)
            .build();
        let numbers = 1..1 + clients;
        for number in numbers.clone() {
            site.write_segment(number);
        }
        Clients::start(&site, numbers).succeed();
        let peak_kib = site.receiver.memory_peak_kib();
        println!("receiver, {clients} at once, compression {compression}: {peak_kib} KiB");
        assert!(peak_kib <= RECEIVER_KIB + clients * CONNECTION_KIB);
        assert_eq!(u64::try_from(site.archived_names().len()).unwrap(), clients);
    }
}

/// More than any of our own clients does: all channels of every connection, the largest blocks,
/// and more of them than the disk takes at once.
#[test]
fn busy_connection_costs_the_receiver_at_most_4_mib() {
    let _user = skip_unless!(server_user());
    let site = Site::builder().segment_size_mb(16).plain().build();
    let idle_kib = site.receiver.memory_peak_kib();
    let connections = 8_u16;
    std::thread::scope(|scope| {
        for connection in 0..connections {
            let site = &site;
            scope.spawn(move || {
                let mut peer = Peer::connect(site.address(), Some(site.facts().cluster));
                let first = u64::from(connection * CHANNELS_MAX) + 1;
                let segments: Vec<_> = (1..=CHANNELS_MAX)
                    .map(|channel| {
                        let number = first + u64::from(channel);
                        let content = site.segment(number, "walmgr");
                        let name = site.segment_name(number).parse().unwrap();
                        peer.offer(channel, name, &content);
                        content
                    })
                    .collect();
                for _ in &segments {
                    let answer = peer.receive().unwrap().message;
                    assert!(matches!(answer, Message::Have(_)), "{answer:?}");
                }
                let block_bytes = BLOCK_BYTES_MAX as usize;
                for offset in (0..segments[0].len()).step_by(block_bytes) {
                    for (channel, content) in (1..).zip(&segments) {
                        let block = &content[offset..offset + block_bytes];
                        peer.send(channel, &data(offset as u64, block));
                    }
                }
            });
        }
    });
    let peak_kib = site.receiver.memory_peak_kib();
    println!("receiver: {idle_kib} KiB idle, {peak_kib} KiB with {connections} connections");
    assert!(peak_kib <= RECEIVER_KIB + u64::from(connections) * CONNECTION_KIB);
}
