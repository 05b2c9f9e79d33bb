//! The scanner against WAL that real servers wrote, of every version and segment size there is.
//! Never trusts itself: `pg_waldump`, `pg_walinspect` or `pg_control` say what is right.
//! Invariant: a version that is not on the machine is skipped aloud.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says aloud what it skips"
)]

mod cluster;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use cluster::{Cluster, Installation};
use walmgr::test_support::wal::history::History;
use walmgr::test_support::wal::record::{
    RM_XLOG, RecordInfo, XLOG_CHECKPOINT_SHUTDOWN, XLOG_OVERWRITE_CONTRECORD,
};
use walmgr::test_support::wal::scan::{ScanStep, Scanner, Why};
use walmgr::test_support::wal::segment::{ExpectedSegment, SegmentCheck, Verify};
use walmgr_protocol::names::{Lsn, SegmentName, SystemId, TimelineId, WalFileName, WalSegmentSize};

use crate::support::{report_skip, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

const BLOCK_BYTES: usize = 256 << 10;
const PAGE_BYTES: u64 = 8192;

#[test]
fn fault_51_wal_of_postgresql_13_reads_as_its_server_wrote_it() {
    check_version(13, 16);
}

#[test]
fn fault_51_wal_of_postgresql_14_reads_as_its_server_wrote_it() {
    check_version(14, 1);
}

#[test]
fn fault_51_wal_of_postgresql_15_reads_as_its_server_wrote_it() {
    check_version(15, 16);
}

#[test]
fn fault_51_postgresql_15_wal_reads_back_from_small_segments() {
    check_version(15, 1);
}

#[test]
fn fault_51_postgresql_15_wal_reads_back_from_large_segments() {
    check_version(15, 64);
}

#[test]
fn fault_51_wal_of_postgresql_16_reads_as_its_server_wrote_it() {
    check_version(16, 1);
}

#[test]
fn fault_51_wal_of_postgresql_17_reads_as_its_server_wrote_it() {
    check_version(17, 16);
}

#[test]
fn fault_51_wal_of_postgresql_18_reads_as_its_server_wrote_it() {
    check_version(18, 1);
}

fn check_version(major: u8, segment_mib: u32) {
    let installation = match Installation::find(major) {
        Ok(installation) => installation,
        Err(reason) => return report_skip(&reason),
    };
    let mut cluster = Cluster::create(installation, segment_mib);
    let archive = ExpectedSegment {
        system_id: SystemId(control_field(&cluster, 0)),
        segment_size: WalSegmentSize::new(segment_mib << 20).unwrap(),
        postgres_major: Some(major),
    };
    cluster.start();
    recycle_segments(&cluster);
    write_wal(&cluster);
    let flushed: Lsn = cluster
        .sql("SELECT pg_current_wal_flush_lsn()")
        .trim()
        .parse()
        .unwrap();
    // Whole pages are flushed, also where a record goes on that is still being written.
    wait_for("the record that was flushed last", PATIENCE, || {
        (scan_running(&cluster, &archive).end >= flushed).then_some(())
    });

    crash_under_load(&mut cluster);
    cluster.start();
    crash_within_a_record(&mut cluster, &archive);
    cluster.start();
    cluster.pgbench(&["-c", "2", "-t", "100"]).wait().unwrap();
    cluster.stop();

    let scan = scan_wal(&cluster, &archive);
    ends_with_shutdown(&cluster, &scan);
    let overwrite = |record: &&RecordInfo| record.is_xlog(XLOG_OVERWRITE_CONTRECORD);
    assert_eq!(scan.records.iter().filter(overwrite).count(), 1);
    assert!(scan.records.iter().any(RecordInfo::is_switch));
    agrees_with_the_server(&mut cluster, &archive, &scan, 1);

    promote(&mut cluster);
    cluster.pgbench(&["-c", "2", "-t", "100"]).wait().unwrap();
    cluster.sql("SELECT pg_switch_wal()");
    cluster.stop();
    let scan = scan_wal(&cluster, &archive);
    ends_with_shutdown(&cluster, &scan);
    history_is_read(&cluster, &archive, &scan);
    finished_segments_may_enter_the_archive(&cluster, &archive, &scan);
    agrees_with_the_server(&mut cluster, &archive, &scan, 2);
}

/// Leaves segments behind that hold pages from their first life.
fn recycle_segments(cluster: &Cluster) {
    cluster.sql("CREATE TABLE filler AS SELECT 1 AS number");
    for _ in 0..4 {
        cluster.sql("INSERT INTO filler SELECT generate_series(1, 20000)");
        cluster.sql("SELECT pg_switch_wal()");
        cluster.sql("CHECKPOINT");
    }
    cluster.sql("ALTER SYSTEM SET wal_keep_size = '3GB'");
    cluster.sql("SELECT pg_reload_conf()");
}

/// Records of many kinds: short, longer than a page, longer than a small segment.
fn write_wal(cluster: &Cluster) {
    cluster.pgbench(&["-i", "-q"]).wait().unwrap();
    cluster.pgbench(&["-c", "4", "-T", "1"]).wait().unwrap();
    for statement in [
        "CREATE TABLE plants (id serial PRIMARY KEY, name text, height numeric)",
        "INSERT INTO plants (name) SELECT repeat('leaf', 700) FROM generate_series(1, 500)",
        "CREATE INDEX ON plants USING hash (name)",
        "ALTER TABLE plants ADD COLUMN seen timestamptz DEFAULT now()",
        "SELECT pg_switch_wal()",
        "SELECT pg_switch_wal()",
        "DELETE FROM plants WHERE id % 3 = 0",
        "VACUUM FULL plants",
        "SELECT pg_logical_emit_message(true, 'walmgr', repeat('x', 3000000))",
        "SELECT pg_switch_wal()",
        "SELECT pg_logical_emit_message(false, 'walmgr', repeat('x', 100000))",
        "DROP TABLE plants",
    ] {
        cluster.sql(statement);
    }
}

fn crash_under_load(cluster: &mut Cluster) {
    let mut load = cluster.pgbench(&["-c", "4", "-T", "20"]);
    std::thread::sleep(Duration::from_millis(700));
    cluster.crash();
    load.wait().unwrap();
}

/// Takes the end of a long record away, as a crash of the machine would.
fn crash_within_a_record(cluster: &mut Cluster, archive: &ExpectedSegment) {
    cluster.sql("SELECT pg_logical_emit_message(true, 'walmgr', repeat('y', 50000))");
    cluster.crash();
    let scan = scan_wal(cluster, archive);
    let long = scan
        .records
        .iter()
        .rev()
        .find(|record| record.tot_len > 40_000)
        .unwrap();
    let first_lost = Lsn(long.lsn.0 - long.lsn.0 % PAGE_BYTES + 2 * PAGE_BYTES);
    let size = archive.segment_size;
    for number in first_lost.0 / size.bytes()..=scan.end.0 / size.bytes() {
        let name = SegmentName::from_number(TimelineId::new(1).unwrap(), number, size);
        let path = cluster.wal().join(name.to_string());
        let Ok(mut file) = fs::File::options().write(true).open(path) else {
            continue;
        };
        let start = number * size.bytes();
        let from = first_lost.0.saturating_sub(start);
        file.seek(SeekFrom::Start(from)).unwrap();
        file.write_all(&vec![0; usize::try_from(size.bytes() - from).unwrap()])
            .unwrap();
    }
    let cut = scan_wal(cluster, archive);
    // Of a record at the beginning of a page the one before ends ahead of the page's header.
    let ends_a_page = cut.end.0.is_multiple_of(PAGE_BYTES);
    let gap_bytes = long.lsn.0 - cut.end.0;
    assert!(
        gap_bytes == 0 || ends_a_page && gap_bytes <= 40,
        "{} of {}",
        cut.end,
        long.lsn
    );
}

/// Ends recovery of what is in `pg_wal` with a new timeline.
fn promote(cluster: &mut Cluster) {
    cluster.crash();
    fs::write(cluster.data().join("recovery.signal"), "").unwrap();
    let configuration = cluster.data().join("postgresql.auto.conf");
    let mut text = fs::read_to_string(&configuration).unwrap();
    text.push_str("restore_command = '/bin/false'\n");
    fs::write(&configuration, text).unwrap();
    cluster.start();
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while cluster.sql("SELECT pg_is_in_recovery()").trim() == "t" {
        assert!(std::time::Instant::now() < deadline, "{}", cluster.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

struct Scan {
    records: Vec<RecordInfo>,
    end: Lsn,
    invalid: Option<(Lsn, Why)>,
    start_number: u64,
}

/// Walks what a server left behind that no longer runs.
fn scan_wal(cluster: &Cluster, archive: &ExpectedSegment) -> Scan {
    let scan = scan_running(cluster, archive);
    assert_eq!(scan.invalid, None);
    scan
}

/// Walks `pg_wal` from its oldest segment, on the newest timeline each segment has. A server
/// that runs may be in the middle of a page, which looks invalid behind what it has flushed.
fn scan_running(cluster: &Cluster, archive: &ExpectedSegment) -> Scan {
    let size = archive.segment_size;
    let names = segment_names(&cluster.wal());
    let number_of = |name: &SegmentName| name.number(size).unwrap();
    let start_number = names.iter().map(number_of).min().unwrap();
    let mut scanner = Scanner::new(Lsn(start_number * size.bytes()), size)
        .of_cluster(archive.system_id)
        .of_major(cluster.installation.major);
    let mut scan = Scan {
        records: Vec::new(),
        end: Lsn(0),
        invalid: None,
        start_number,
    };
    let mut block = vec![0; BLOCK_BYTES];
    'segments: for number in start_number.. {
        let newest = names.iter().filter(|name| number_of(name) == number).max();
        let Some(name) = newest else { break };
        let mut file = fs::File::open(cluster.wal().join(name.to_string())).unwrap();
        loop {
            let length = file.read(&mut block).unwrap();
            let mut rest = &block[..length];
            loop {
                match scanner.advance(&mut rest) {
                    ScanStep::NeedMore => break,
                    ScanStep::Record(record) => scan.records.push(record),
                    ScanStep::EndOfWal(_) => break 'segments,
                    ScanStep::Invalid { lsn, why } => {
                        scan.invalid = Some((lsn, why));
                        break 'segments;
                    }
                }
            }
            if length == 0 {
                break;
            }
        }
    }
    scan.end = scanner.valid_end();
    scan
}

fn segment_names(folder: &Path) -> Vec<SegmentName> {
    fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .collect()
}

/// `system_identifier` is at 0 and `checkPoint` at 32 in `pg_control` of every version here.
fn control_field(cluster: &Cluster, at: usize) -> u64 {
    let control = fs::read(cluster.data().join("global/pg_control")).unwrap();
    u64::from_le_bytes(control[at..at + 8].try_into().unwrap())
}

fn ends_with_shutdown(cluster: &Cluster, scan: &Scan) {
    let last = scan.records.last().unwrap();
    assert_eq!(last.lsn, Lsn(control_field(cluster, 32)));
    assert!(last.is_xlog(XLOG_CHECKPOINT_SHUTDOWN));
    assert_eq!(last.end, scan.end);
}

fn history_is_read(cluster: &Cluster, archive: &ExpectedSegment, scan: &Scan) {
    let timeline = TimelineId::new(2).unwrap();
    let text = fs::read(cluster.wal().join("00000002.history")).unwrap();
    let history = History::parse(timeline, &text).unwrap();
    let fork = history.ancestors()[0].switch_point;
    assert!(
        scan.records
            .iter()
            .any(|record| record.end == fork || record.lsn == fork)
    );
    let mut check = SegmentCheck::new(WalFileName::History(timeline), archive, Verify::Records);
    check.update(&text).unwrap();
    assert_eq!(check.finish().unwrap().wal, None);
}

fn finished_segments_may_enter_the_archive(
    cluster: &Cluster,
    archive: &ExpectedSegment,
    scan: &Scan,
) {
    let size = archive.segment_size;
    let text = fs::read(cluster.wal().join("00000002.history")).unwrap();
    let history = History::parse(TimelineId::new(2).unwrap(), &text).unwrap();
    let fork = history.ancestors()[0].switch_point.0 / size.bytes();
    let mut passed = 0;
    for name in segment_names(&cluster.wal()) {
        let number = name.number(size).unwrap();
        let last = if name.timeline().number() == 1 {
            fork
        } else {
            scan.end.0 / size.bytes()
        };
        if number < scan.start_number {
            continue;
        }
        let bytes = fs::read(cluster.wal().join(name.to_string())).unwrap();
        let file = match number == last {
            true => WalFileName::Partial(name),
            false => WalFileName::Segment(name),
        };
        let mut check = SegmentCheck::new(file, archive, Verify::Records);
        let outcome = bytes
            .chunks(BLOCK_BYTES)
            .try_for_each(|block| check.update(block))
            .and_then(|()| check.finish());
        if number > last {
            // Recycled for the future: its name is ahead of its content, or it is blank.
            assert!(outcome.is_err(), "{file} is not written yet, but passed");
            continue;
        }
        let summary = outcome
            .unwrap_or_else(|fault| panic!("{file}: {fault}"))
            .wal
            .unwrap();
        assert_eq!(summary.postgres_major, cluster.installation.major);
        passed += 1;
    }
    assert!(passed >= 4, "only {passed} segments to check");
}

/// Compares with what PostgreSQL itself reads, where a program of the right version is at hand.
fn agrees_with_the_server(
    cluster: &mut Cluster,
    archive: &ExpectedSegment,
    scan: &Scan,
    timeline: u32,
) {
    let names = segment_names(&cluster.wal());
    let first_of_timeline = names
        .iter()
        .filter(|name| name.timeline().number() == timeline);
    let size = archive.segment_size;
    let start = first_of_timeline
        .filter_map(|name| name.start(size))
        .min()
        .unwrap();
    let ours = scan.records.iter().filter(|record| record.lsn >= start);
    let ours: Vec<RecordInfo> = ours.copied().collect();
    let theirs = if cluster.installation.has("pg_waldump") {
        waldump(cluster, timeline, ours[0].lsn, scan.end)
    } else if cluster.installation.major >= 16 {
        walinspect(cluster, ours[0].lsn, scan.end)
    } else {
        println!(
            "NOTE: no reader of PostgreSQL {} to compare with",
            cluster.installation.major
        );
        return cluster.start();
    };
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let ours = (ours.lsn, ours.prev, ours.tot_len, ours.rmid);
        assert_eq!(ours, *theirs);
    }
    assert_eq!(ours.len(), theirs.len());
    println!("{} records agree", ours.len());
    if !cluster.is_running() {
        cluster.start();
    }
}

/// LSN, link to the record before, length, resource manager.
type Read4 = (Lsn, Lsn, u32, u8);

/// Names of resource managers, in the order of their ids (`src/include/access/rmgrlist.h`).
const RMGRS: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

fn rmgr_id(name: &str) -> u8 {
    let at = RMGRS.iter().position(|known| *known == name.trim());
    u8::try_from(at.unwrap_or_else(|| panic!("unknown resource manager {name:?}"))).unwrap()
}

fn waldump(cluster: &Cluster, timeline: u32, start: Lsn, end: Lsn) -> Vec<Read4> {
    assert_eq!(rmgr_id("XLOG"), RM_XLOG);
    let output = cluster
        .installation
        .server_program("pg_waldump")
        .arg("-p")
        .arg(cluster.wal())
        .args([
            "-t",
            &timeline.to_string(),
            "-s",
            &start.to_string(),
            "-e",
            &end.to_string(),
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let field = |line: &str, from: &str, to: &str| {
        let rest = line.split_once(from).unwrap_or_else(|| panic!("{line}")).1;
        rest.split_once(to).unwrap().0.trim().to_owned()
    };
    text.lines()
        .filter(|line| line.starts_with("rmgr: "))
        .map(|line| {
            let lengths = field(line, "len (rec/tot):", ", tx:");
            (
                field(line, "lsn: ", ",").parse().unwrap(),
                field(line, "prev ", ",").parse().unwrap(),
                lengths.split_once('/').unwrap().1.trim().parse().unwrap(),
                rmgr_id(&field(line, "rmgr: ", "len")),
            )
        })
        .collect()
}

fn walinspect(cluster: &mut Cluster, start: Lsn, end: Lsn) -> Vec<Read4> {
    cluster.start();
    cluster.sql("CREATE EXTENSION IF NOT EXISTS pg_walinspect");
    let rows = cluster.sql(&format!(
        "SELECT start_lsn, prev_lsn, record_length, resource_manager \
         FROM pg_get_wal_records_info('{start}', '{end}')"
    ));
    rows.lines()
        .map(|row| {
            let fields: Vec<&str> = row.split('|').collect();
            (
                fields[0].parse().unwrap(),
                fields[1].parse().unwrap(),
                fields[2].parse().unwrap(),
                rmgr_id(fields[3]),
            )
        })
        .collect()
}
