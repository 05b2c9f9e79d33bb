//! Every page that differs between two stops of a server has to be named by the changes of the WAL in between.
//! Never trusts a decoder: the pages themselves say what changed. Invariant: what is left out is what nobody takes from
//! an old copy: free space and visibility maps, the content of unlogged relations, and what PostgreSQL never logs.

mod told;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use walmgr::test_support::pg::relation::fork_at;
use walmgr::test_support::wal::changes::{Changes, Fork};
use walmgr::test_support::wal::scan::{ScanStep, Scanner};
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalSegmentSize};

use crate::support::dice::Dice;
use crate::support::pages::mask_spgist_cache;
use crate::support::versions::is_its_turn;
use crate::support::{Cluster, StopMode, soak};

const PAGE_BYTES: usize = 8192;
const BLOCKS_A_FILE: u32 = 131_072;
// Small ones, so that many records cross a boundary.
const SIZE: WalSegmentSize = WalSegmentSize::new(1 << 20).expect("a size PostgreSQL has");

#[test]
fn fault_200_every_page_that_changed_is_named_on_13() {
    named(13);
}

#[test]
fn fault_200_every_page_that_changed_is_named_on_14() {
    named(14);
}

#[test]
fn fault_200_every_page_that_changed_is_named_on_15() {
    named(15);
}

#[test]
fn fault_200_every_page_that_changed_is_named_on_16() {
    named(16);
}

#[test]
fn fault_200_every_page_that_changed_is_named_on_17() {
    named(17);
}

#[test]
fn fault_200_every_page_that_changed_is_named_on_18() {
    named(18);
}

fn named(major: u8) {
    // The formats that differ are 13's, 15's and what came with 17.
    if !is_its_turn(major) && ![13, 17].contains(&major) {
        println!("SKIP PostgreSQL {major} with ALL_VERSIONS=1 only");
        return;
    }
    if let Err(reason) = Cluster::available(major) {
        crate::support::report_skip(&reason);
        return;
    }
    let mut dice = Dice::thrown(&format!("changed pages on {major}"));
    let mut cluster = Cluster::builder()
        .major(major)
        .wal_segment_size_mb(1)
        .initdb_arg("--data-checksums")
        .conf("wal_keep_size", "20GB")
        .conf("max_prepared_transactions", "5")
        .conf("autovacuum", "off")
        .start();
    let mut work = Workload::new(major, cluster.home());
    work.prepare(&cluster);
    let compressions = cluster.wal_compressions();
    for round in 0..if soak() { 30 } else { 2 } {
        let compression = *dice.choose(&compressions);
        cluster.compress_wal(compression);
        for _ in 0..12 {
            work.step(&mut cluster, &mut dice);
        }
        cluster.stop(StopMode::Fast);
        let old = cluster.home().join("old");
        copy(cluster.data(), &old);
        let from = redo(&cluster);
        cluster.start();
        for _ in 0..30 {
            work.step(&mut cluster, &mut dice);
        }
        cluster.stop(StopMode::Fast);
        let changes = changes(&cluster.data().join("pg_wal"), from, redo(&cluster));
        println!("round {round}: wal_compression = {compression}");
        compare(&old, cluster.data(), &changes, round);
        fs::remove_dir_all(&old).unwrap();
        cluster.start();
    }
}

/// Statements of every kind, by chance.
struct Workload {
    major: u8,
    space: PathBuf,
    made: u32,
}

const TABLES: [&str; 4] = ["t0", "t1", "t2", "t3"];
const DATABASES: [&str; 2] = ["d0", "d1"];

impl Workload {
    fn new(major: u8, home: &Path) -> Workload {
        let space = home.join("space");
        Workload {
            major,
            space,
            made: 0,
        }
    }

    fn prepare(&self, cluster: &Cluster) {
        fs::create_dir(&self.space).unwrap();
        let owner = cluster.data().metadata().unwrap();
        let (uid, gid) = (
            std::os::unix::fs::MetadataExt::uid(&owner),
            std::os::unix::fs::MetadataExt::gid(&owner),
        );
        std::os::unix::fs::chown(&self.space, Some(uid), Some(gid)).unwrap();
        cluster.psql(&format!(
            "CREATE TABLESPACE space LOCATION '{}'",
            self.space.display()
        ));
        cluster.psql("CREATE SEQUENCE s");
        for table in TABLES {
            cluster.psql(&Self::table(table));
            cluster.psql(&Self::rows(table, 4_000));
        }
    }

    fn table(table: &str) -> String {
        format!("CREATE TABLE {table} (id int, n int DEFAULT 0, v text, a int[], p point)")
    }

    fn rows(table: &str, count: u64) -> String {
        format!(
            "INSERT INTO {table} (id, v, a, p) SELECT i, repeat(md5(i::text), 1 + i % 4), ARRAY[i % 50, i % 7], \
             point(i, i % 99) FROM generate_series(1, {count}) i"
        )
    }

    /// One statement, or a crash. What the server refuses in its state is refused.
    fn step(&mut self, cluster: &mut Cluster, dice: &mut Dice) {
        let table = *dice.choose(&TABLES);
        let database = *dice.choose(&DATABASES);
        let (some, many) = (dice.below(90) + 2, dice.below(3_000) + 1);
        self.made += 1;
        let made = self.made;
        let statements: Vec<String> = match dice.below(32) {
            0..=4 => vec![Self::rows(table, many)],
            5..=8 => vec![format!(
                "UPDATE {table} SET n = n + 1 WHERE id % {some} = 0"
            )],
            9 => vec![format!("DELETE FROM {table} WHERE id % {some} = 1")],
            10 => vec![
                format!("DELETE FROM {table} WHERE id > {many}"),
                format!("VACUUM {table}"),
            ],
            11 => vec![format!("VACUUM (FREEZE) {table}")],
            12 => vec![format!("VACUUM FULL {table}")],
            13 => vec![format!("TRUNCATE {table}"), Self::rows(table, some)],
            14 => vec![
                format!("DROP TABLE {table}"),
                Self::table(table),
                Self::rows(table, many),
            ],
            15 | 16 => vec![self.index(table, dice)],
            17 => vec![format!("REINDEX TABLE CONCURRENTLY {table}")],
            18 => vec![
                format!("CREATE INDEX c{made} ON {table} (id)"),
                format!("CLUSTER {table} USING c{made}"),
            ],
            19 | 20 => vec![self.database(database, dice)],
            21 => vec![format!("DROP DATABASE IF EXISTS {database}")],
            22 => vec![
                format!("ALTER TABLE {table} SET UNLOGGED"),
                Self::rows(table, some),
            ],
            23 => vec![format!("ALTER TABLE {table} SET LOGGED")],
            24 => {
                let space = *dice.choose(&["space", "pg_default"]);
                vec![format!("ALTER TABLE {table} SET TABLESPACE {space}")]
            }
            25 => vec![format!(
                "SELECT nextval('s') FROM generate_series(1, {some})"
            )],
            26 => vec![
                format!(
                    "BEGIN; UPDATE {table} SET v = repeat(md5(n::text), 400) WHERE id < {some}; PREPARE TRANSACTION 'p{made}'"
                ),
                "CHECKPOINT".to_owned(),
                format!(
                    "{} PREPARED 'p{made}'",
                    dice.choose(&["COMMIT", "ROLLBACK"])
                ),
            ],
            27 => vec![format!(
                "DO $$ BEGIN FOR i IN 1..{some} LOOP BEGIN INSERT INTO {table} (id) VALUES (i); \
                 IF i % 3 = 0 THEN RAISE 'no'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$"
            )],
            28 => vec![format!("SELECT count(*) FROM {table}")],
            29 => vec!["CHECKPOINT".to_owned()],
            30 => vec![format!("ALTER DATABASE {database} SET TABLESPACE space")],
            _ => {
                cluster.kill9();
                cluster.start();
                return;
            }
        };
        for statement in statements {
            let _ = cluster.try_psql(&statement);
        }
    }

    fn index(&self, table: &str, dice: &mut Dice) -> String {
        let kinds = [
            "(id)",
            "(v text_pattern_ops)",
            "USING hash (id)",
            "USING gin (a)",
            "USING gist (p)",
            "USING brin (id)",
            "USING spgist (p)",
        ];
        format!(
            "CREATE INDEX i{} ON {table} {}",
            self.made,
            dice.choose(&kinds)
        )
    }

    fn database(&self, database: &str, dice: &mut Dice) -> String {
        let strategy = match self.major {
            15.. => *dice.choose(&["STRATEGY = file_copy", "STRATEGY = wal_log"]),
            _ => "",
        };
        format!("CREATE DATABASE {database} {strategy}")
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .arg("-rL")
        .args([from, to])
        .status()
        .unwrap();
    assert!(copied.success());
}

/// Where the last checkpoint of a stopped server begins.
fn redo(cluster: &Cluster) -> Lsn {
    let mut controldata = cluster.command("pg_controldata");
    let printed = controldata.arg("-D").arg(cluster.data()).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    let line = printed
        .lines()
        .find(|line| line.contains("REDO location"))
        .unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// What the WAL from here to its end changes.
fn changes(pg_wal: &Path, from: Lsn, end: Lsn) -> Changes {
    let mut valid = from;
    let first = from.0 / SIZE.bytes();
    let mut scanner = Scanner::new(Lsn(first * SIZE.bytes()), SIZE).noting_changes();
    let mut last = ScanStep::NeedMore;
    for number in first.. {
        let name = SegmentName::from_number(TimelineId::FIRST, number, SIZE);
        let Ok(bytes) = fs::read(pg_wal.join(name.to_string())) else {
            break;
        };
        let mut rest = &bytes[..];
        last = loop {
            match scanner.advance(&mut rest) {
                ScanStep::Record(record) => valid = record.lsn,
                step => break step,
            }
        };
    }
    println!("walked from {from} to {valid}, checkpoint, {last:?}");
    assert!(valid >= end, "{valid} {end} {last:?}");
    scanner.take_changes().unwrap().0
}

fn compare(old: &Path, new: &Path, changes: &Changes, round: u32) {
    assert_eq!(changes.everything(), None);
    let mut files = BTreeMap::new();
    for place in ["base", "global", "pg_tblspc"] {
        list(new, Path::new(place), &mut files);
    }
    let (mut changed, mut named, mut all) = (0, 0, 0);
    for (path, file) in &files {
        let Some((fork, part)) = fork_at(&path.parse().unwrap()) else {
            continue;
        };
        let init = match path.rsplit_once('.') {
            Some((path, _)) => format!("{path}_init"),
            None => format!("{path}_init"),
        };
        let is_unlogged = fork.fork == Fork::Main && files.contains_key(&init);
        if is_unlogged || !matches!(fork.fork, Fork::Main | Fork::Init) {
            continue;
        }
        let now = fs::read(file).unwrap();
        let before = fs::read(old.join(path)).unwrap_or_default();
        let blocks = |bytes: &[u8]| u32::try_from(bytes.len() / PAGE_BYTES).unwrap();
        let needed = changes.of(fork);
        let ranges = needed.in_file(part * BLOCKS_A_FILE, blocks(&before), blocks(&now));
        for (block, page) in (0_u32..).zip(now.chunks(PAGE_BYTES)) {
            let is_named = ranges.iter().any(|range| range.contains(&block));
            let at = usize::try_from(block).unwrap() * PAGE_BYTES;
            let old = before.get(at..at + PAGE_BYTES);
            let is_same = old.is_some_and(|old| is_same(old, page));
            assert!(
                is_same || is_named,
                "block {block} of {path} changed and is not named: {needed:?}\n{}",
                differences(old, page)
            );
            all += 1;
            changed += u32::from(!is_same);
            named += u32::from(is_named);
        }
    }
    println!("round {round}: {changed} of {all} pages changed, {named} were named");
    assert!(changed > 0 && changed <= named);
}

/// Whether no WAL is needed to make the new page of the old one.
fn is_same(old: &[u8], new: &[u8]) -> bool {
    let [old, new] = [old, new].map(|page| {
        let mut page = page.to_vec();
        mask_spgist_cache(&mut page);
        page
    });
    old == new
}

/// Which bytes differ, and what tells the page's kind: its header, and its last bytes.
fn differences(old: Option<&[u8]>, new: &[u8]) -> String {
    let kind = |page: &[u8]| format!("{:02X?} … {:02X?}", &page[..32], &page[PAGE_BYTES - 16..]);
    let Some(old) = old else {
        return format!("added: {}", kind(new));
    };
    let at: Vec<usize> = (0..PAGE_BYTES).filter(|at| old[*at] != new[*at]).collect();
    format!("old: {}\nnew: {}\nbytes {at:?}", kind(old), kind(new))
}

/// The files below a folder, by their path in the data directory.
fn list(data: &Path, folder: &Path, files: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(data.join(folder)).unwrap() {
        let path = folder.join(entry.unwrap().file_name());
        if data.join(&path).is_dir() {
            list(data, &path, files);
        } else {
            files.insert(path.to_str().unwrap().to_owned(), data.join(&path));
        }
    }
}
