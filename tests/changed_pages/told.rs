//! Record by record, the decoder has to note what PostgreSQL's own readers say of varied work.
//! Never trusts walmgr's decoder for what is expected. Invariant: a record that only one side has fails the test.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use walmgr::test_support::pg::relation::fork_at;
use walmgr::test_support::wal::changes::{Changes, Fork, RelationFork};
use walmgr::test_support::wal::scan::{ScanStep, Scanner};
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId};

use super::{SIZE, Workload};
use crate::support::dice::Dice;
use crate::support::versions::is_its_turn;
use crate::support::{Cluster, StopMode, soak};

/// From this one on a server tells of its own WAL. 15 could too, and its pg_waldump is everywhere.
const FIRST_WALINSPECT: u8 = 16;
/// From this one on an image may be compressed in more than one way.
const FIRST_METHOD: u8 = 15;
/// Since this one a database is made in one of two ways: by copying files, or page by page.
const FIRST_STRATEGY: u8 = 15;

#[test]
fn fault_223_references_are_those_that_pg_waldump_tells_of_13() {
    told(13);
}

#[test]
fn fault_223_references_are_those_that_pg_waldump_tells_of_14() {
    told(14);
}

#[test]
fn fault_223_references_are_those_that_pg_waldump_tells_of_15() {
    told(15);
}

#[test]
fn fault_223_references_are_those_that_pg_walinspect_tells_of_16() {
    told(16);
}

#[test]
fn fault_223_references_are_those_that_pg_walinspect_tells_of_17() {
    told(17);
}

#[test]
fn fault_223_references_are_those_that_pg_walinspect_tells_of_18() {
    told(18);
}

/// What PostgreSQL tells of a record.
#[derive(Debug)]
struct ToldRecord {
    manager: String,
    /// Its kind, and what is in its main data.
    description: String,
    blocks: String,
}

fn told(major: u8) {
    if !is_its_turn(major) {
        println!("SKIP PostgreSQL {major} with ALL_VERSIONS=1 only");
        return;
    }
    if let Err(reason) = Cluster::available(major) {
        crate::support::report_skip(&reason);
        return;
    }
    // Another version's reads none of its WAL.
    if major < FIRST_WALINSPECT && !Cluster::has(major, "pg_waldump") {
        crate::support::report_skip(&format!(
            "no pg_waldump of PostgreSQL {major}; tests/fetch-postgres.sh can fetch it"
        ));
        return;
    }
    let mut dice = Dice::thrown(&format!("told changes on {major}"));
    let mut cluster = Cluster::builder()
        .major(major)
        .wal_segment_size_mb(1)
        .conf("wal_keep_size", "20GB")
        .conf("wal_level", "logical")
        .conf("track_commit_timestamp", "on")
        .conf("max_prepared_transactions", "5")
        .conf("autovacuum", "off")
        .start();
    let mut work = Workload::new(major, cluster.home());
    work.prepare(&cluster);
    cluster.pgbench(&["-q", "-i", "-s", "1"]);
    let compressions = cluster.wal_compressions();
    for _ in 0..if soak() { 20 } else { 2 } {
        let compression = *dice.choose(&compressions);
        cluster.compress_wal(compression);
        for _ in 0..20 {
            work.step(&mut cluster, &mut dice);
        }
        cluster.pgbench(&["-n", "-t", "100"]);
    }
    let databases = match major {
        FIRST_STRATEGY.. => [
            "CREATE DATABASE copied STRATEGY file_copy",
            "CREATE DATABASE logged STRATEGY wal_log",
        ],
        _ => ["CREATE DATABASE copied", "CREATE DATABASE logged"],
    };
    for statement in databases {
        cluster.psql(statement);
    }
    for statement in [
        "ALTER DATABASE logged SET TABLESPACE space",
        "CREATE UNLOGGED TABLE unlogged (id int)",
        "CREATE TABLE cut AS SELECT i FROM generate_series(1, 5000) i",
        "DELETE FROM cut WHERE i > 100",
        "VACUUM cut",
        "SELECT pg_logical_emit_message(false, 'walmgr', repeat('x', 100000))",
        "CREATE TABLE pressed AS SELECT i, repeat('x', 100) FROM generate_series(1, 2000) i",
    ] {
        cluster.psql(statement);
    }
    for kind in &compressions {
        cluster.psql("CHECKPOINT");
        let change = "UPDATE pressed SET i = i + 1";
        cluster.psql(&format!("SET wal_compression = {kind}; {change}"));
    }
    cluster.stop(StopMode::Fast);
    let (ours, end) = noted(&cluster.data().join("pg_wal"));
    let begin = *ours.keys().next().unwrap();
    let theirs = match major {
        ..FIRST_WALINSPECT => waldump(&cluster, begin, end),
        _ => walinspect(&mut cluster, begin, end),
    };
    compare(&ours, &theirs, major);
    for kind in compressions.iter().filter(|kind| **kind != "off") {
        let told = match (*kind, major) {
            ("on", ..FIRST_METHOD) => "compression saved: ",
            ("on", _) => "method: pglz",
            ("lz4", _) => "method: lz4",
            ("zstd", _) => "method: zstd",
            other => panic!("{other:?}"),
        };
        let images = theirs.values().map(|record| &record.blocks);
        let images = images.filter(|blocks| blocks.contains(told)).count();
        println!("wal_compression = {kind}: {images} records");
        assert!(images > 0, "{kind}");
    }
}

/// What each record changes for walmgr, and where the WAL ends.
fn noted(pg_wal: &Path) -> (BTreeMap<Lsn, Changes>, Lsn) {
    let names = fs::read_dir(pg_wal).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name());
    let segments = names.filter_map(|name| name.to_str()?.parse::<SegmentName>().ok());
    let first = segments.filter_map(|name| name.number(SIZE)).min().unwrap();
    let mut scanner = Scanner::new(Lsn(first * SIZE.bytes()), SIZE).noting_changes();
    let mut noted = BTreeMap::new();
    for number in first.. {
        let name = SegmentName::from_number(TimelineId::FIRST, number, SIZE);
        let Ok(bytes) = fs::read(pg_wal.join(name.to_string())) else {
            break;
        };
        let mut rest = &bytes[..];
        while let ScanStep::Record(record) = scanner.advance(&mut rest) {
            let (changes, open) = scanner.take_changes().unwrap();
            assert_eq!(open, None, "{}", record.lsn);
            noted.insert(record.lsn, changes);
            scanner = scanner.noting_changes();
        }
    }
    (noted, scanner.valid_end())
}

/// The words between two others.
fn between<'a>(line: &'a str, from: &str, to: &str) -> &'a str {
    let rest = line.split_once(from).unwrap_or_else(|| panic!("{line}")).1;
    rest.split_once(to).map_or(rest, |(word, _)| word).trim()
}

fn waldump(cluster: &Cluster, begin: Lsn, end: Lsn) -> BTreeMap<Lsn, ToldRecord> {
    let mut dump = cluster.command("pg_waldump");
    dump.arg("--bkp-details");
    dump.arg("-p").arg(cluster.data().join("pg_wal"));
    dump.args(["-s", &begin.to_string(), "-e", &end.to_string()]);
    let output = dump.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut told: Vec<(Lsn, ToldRecord)> = Vec::new();
    for line in text.lines() {
        if line.starts_with("rmgr: ") {
            let record = ToldRecord {
                manager: between(line, "rmgr: ", " ").to_owned(),
                description: line.split_once("desc: ").unwrap().1.to_owned(),
                blocks: String::new(),
            };
            told.push((between(line, "lsn: ", ",").parse().unwrap(), record));
        } else if let Some((_, record)) = told.last_mut() {
            record.blocks.push_str(line);
        }
    }
    told.into_iter().collect()
}

fn walinspect(cluster: &mut Cluster, begin: Lsn, end: Lsn) -> BTreeMap<Lsn, ToldRecord> {
    cluster.start();
    cluster.psql("CREATE EXTENSION pg_walinspect");
    let rows = cluster.psql(&format!(
        "SELECT concat_ws('|', start_lsn, resource_manager, record_type, \
         CASE WHEN resource_manager IN ('Storage', 'Database') THEN description END, '|' || block_ref) \
         FROM pg_get_wal_records_info('{begin}', '{end}')"
    ));
    let rows = rows.lines().filter(|row| !row.is_empty());
    rows.map(|row| {
        let (told, blocks) = row.split_once("||").unwrap_or((row, ""));
        let mut words = told.splitn(3, '|');
        let lsn = words.next().unwrap().parse().unwrap();
        let record = ToldRecord {
            manager: words.next().unwrap().to_owned(),
            description: words.next().unwrap().replace('|', " "),
            blocks: blocks.to_owned(),
        };
        (lsn, record)
    })
    .collect()
}

impl ToldRecord {
    fn changes(&self) -> Changes {
        let mut changes = Changes::default();
        for block in self.blocks.split("blkref").filter(|it| it.contains("blk ")) {
            let mut numbers = between(block, "rel ", " ").split('/');
            let mut number = || numbers.next().unwrap().parse().unwrap();
            let fork = RelationFork {
                tablespace: number(),
                database: number(),
                relfilenode: number(),
                fork: match block.split_once(" fork ").map(|(_, rest)| rest) {
                    None => Fork::Main,
                    Some(fork) => match fork.split(' ').next().unwrap() {
                        "main" => Fork::Main,
                        "fsm" => Fork::FreeSpace,
                        "vm" => Fork::Visibility,
                        "init" => Fork::Init,
                        other => panic!("{other}: {block}"),
                    },
                },
            };
            let digits = between(block, "blk ", " ").trim_end_matches([',', ';']);
            changes.add_block(fork, digits.parse().unwrap());
        }
        let words: Vec<&str> = self.description.split_whitespace().collect();
        match (self.manager.as_str(), &words[..]) {
            ("Storage", ["CREATE", path, ..]) => {
                changes.add_limit(fork_at(&path.parse().unwrap()).unwrap().0, 0);
            }
            ("Storage", ["TRUNCATE", path, "to", blocks, "blocks", "flags", flags]) => {
                let fork = fork_at(&path.parse().unwrap()).unwrap().0;
                if flags.parse::<u32>().unwrap() & 1 != 0 {
                    changes.add_limit(fork, blocks.parse().unwrap());
                }
            }
            // The tablespace, then the database.
            (
                "Database",
                ["CREATE" | "CREATE_FILE_COPY", "copy", "dir", _, "to", place]
                | ["CREATE_WAL_LOG", "create", "dir", place],
            ) => {
                let (tablespace, database) = place.split_once('/').unwrap();
                changes.add_database(tablespace.parse().unwrap(), database.parse().unwrap());
            }
            ("Database", ["DROP", ..]) => {}
            ("Storage" | "Database", _) => panic!("{self:?}"),
            _ => {}
        }
        changes
    }

    fn kind(&self) -> &str {
        let kind = self.description.split(' ').next().unwrap();
        match self.manager.as_str() {
            "Database" if kind == "CREATE" => "CREATE_FILE_COPY",
            "Storage" | "Database" => kind,
            _ if self.blocks.contains("blk ") => "blocks",
            _ => "nothing",
        }
    }
}

fn compare(ours: &BTreeMap<Lsn, Changes>, theirs: &BTreeMap<Lsn, ToldRecord>, major: u8) {
    let mut kinds = BTreeMap::new();
    for (lsn, record) in theirs {
        let noted = ours
            .get(lsn)
            .unwrap_or_else(|| panic!("{lsn} {record:?} is not noted"));
        // Behind one that a crash cut off: what that would have changed is noted too.
        if !record.description.starts_with("OVERWRITE_CONTRECORD") {
            assert_eq!(*noted, record.changes(), "{lsn} {record:?}");
        }
        *kinds.entry(record.kind()).or_insert(0_u32) += 1;
    }
    println!("{} records agree: {kinds:?}", theirs.len());
    assert_eq!(ours.len(), theirs.len());
    let all = [
        "blocks",
        "CREATE",
        "TRUNCATE",
        "CREATE_FILE_COPY",
        "CREATE_WAL_LOG",
    ];
    let all = match major {
        FIRST_STRATEGY.. => &all[..],
        _ => &all[..4],
    };
    for kind in all {
        assert!(kinds.contains_key(kind), "no {kind}");
    }
}
