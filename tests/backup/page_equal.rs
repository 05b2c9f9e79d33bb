//! An incremental set and a full one, replayed to the same place: the same pages, whatever happened in between.
//! Never compares what PostgreSQL's own check of replay leaves out (`bufmask.c`). Invariant: every workload can be had again
//! by its seed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{archiving, verify};
use crate::replay::signal_file;
use crate::support::dice::Dice;
use crate::support::pages::mask_spgist_cache;
use crate::support::{Cluster, Site, StopMode, TempDir, rounds, run, wait_for};

const PAGE: usize = 8192;

/// What may happen to the tables, the databases and the server between two backups.
const ACTS: &[&str] = &[
    "INSERT INTO $t SELECT n, n % 50, md5(n::text), point(n, $r), ARRAY[n % 9] FROM generate_series(1, $r) n",
    "UPDATE $t SET k = k + 1 WHERE id % 17 = $r % 17",
    "UPDATE $t SET body = repeat(md5(id::text), 300) WHERE id % 97 = $r % 97",
    "DELETE FROM $t WHERE id % 7 = $r % 7",
    "VACUUM $t",
    "VACUUM (FREEZE, ANALYZE) $t",
    "VACUUM FULL $t",
    "DELETE FROM $t WHERE ctid > '(5,0)'; VACUUM $t",
    "TRUNCATE $t; INSERT INTO $t SELECT n FROM generate_series(1, $r) n",
    "BEGIN; TRUNCATE $t; INSERT INTO $t SELECT 1; ROLLBACK",
    "COPY $t (id) FROM PROGRAM 'seq 1 $r'",
    "DROP TABLE IF EXISTS extra; CREATE TABLE extra AS SELECT * FROM $t",
    "CREATE INDEX ON $t (k, id)",
    "REINDEX TABLE $t",
    "REINDEX TABLE CONCURRENTLY $t",
    "CLUSTER $t USING $t_id",
    "ALTER TABLE $t SET TABLESPACE other",
    "ALTER TABLE $t SET TABLESPACE pg_default",
    "ALTER INDEX $t_id SET TABLESPACE other",
    "ALTER TABLE $t SET UNLOGGED; INSERT INTO $t SELECT $r",
    "ALTER TABLE $t SET LOGGED",
    "ALTER TABLE $t ADD COLUMN IF NOT EXISTS more$m float DEFAULT random()",
    "SELECT nextval('counted') FROM generate_series(1, $r)",
    "BEGIN; UPDATE $t SET k = $r WHERE id < 50; PREPARE TRANSACTION 'p$r'",
    "DO $$ BEGIN FOR i IN 1..100 LOOP BEGIN INSERT INTO $t VALUES (i); \
        IF i % 3 = 0 THEN RAISE 'no'; END IF; EXCEPTION WHEN raise_exception THEN END; END LOOP; END $$",
    "BEGIN; INSERT INTO $t SELECT n FROM generate_series(1, 5000) n; ROLLBACK",
    "CREATE UNLOGGED TABLE IF NOT EXISTS fleeting AS SELECT * FROM $t; CREATE INDEX ON fleeting (id)",
    "DROP MATERIALIZED VIEW IF EXISTS seen; CREATE MATERIALIZED VIEW seen AS SELECT k, count(*) FROM $t GROUP BY k",
    "SELECT count(*) FROM $t",
    "CHECKPOINT",
    "DROP DATABASE IF EXISTS copied; CREATE DATABASE copied TEMPLATE model",
    "DROP DATABASE IF EXISTS logged; CREATE DATABASE logged TEMPLATE model STRATEGY = wal_log",
    "DROP DATABASE IF EXISTS filed; CREATE DATABASE filed TEMPLATE model STRATEGY = file_copy",
    "ALTER DATABASE logged SET TABLESPACE other",
    "CREATE TABLE IF NOT EXISTS short (n int); DROP TABLE short; CREATE TABLE short AS SELECT 1 AS n",
    "restart",
    "crash",
    FAILOVER,
];
/// The server goes on as a standby that is promoted: what was made before is of the timeline before.
const FAILOVER: &str = "failover";

const TABLES: usize = 4;

#[test]
fn fault_204_an_incremental_set_has_the_pages_of_a_full_one_on_13() {
    skip_unless!(Cluster::available(13));
    hold_equal(13);
}

#[test]
fn fault_204_an_incremental_set_has_the_pages_of_a_full_one_on_15() {
    skip_unless!(Cluster::available(15));
    hold_equal(15);
}

#[test]
fn fault_204_an_incremental_set_has_the_pages_of_a_full_one_on_17() {
    skip_unless!(Cluster::available(17));
    hold_equal(17);
}

#[test]
fn fault_204_an_incremental_set_has_the_pages_of_a_full_one_on_18() {
    skip_unless!(Cluster::available(18));
    hold_equal(18);
}

/// Two sets behind each of a few workloads, of which one is built on an older set.
fn hold_equal(major: u8) {
    let mut dice = Dice::thrown("page_equal");
    let mut site = prepared(major, dice.once_in(2));
    let compressions = site.cluster().wal_compressions();
    let (mut round, mut lost) = (0, 0);
    while round < rounds(3, 75) {
        let compression = *dice.choose(&compressions);
        site.cluster().compress_wal(compression);
        // Once at least, and by chance besides.
        let sure = if round == 1 { &[FAILOVER][..] } else { ACTS };
        let done = match disturb(&mut site, &mut dice, sure) {
            Ok(done) => done,
            Err(why) => {
                println!("workload {round} anew, since PostgreSQL {major} is lost: {why}");
                lost += 1;
                assert!(lost <= 3, "PostgreSQL {major} is lost too often");
                site = prepared(major, dice.once_in(2));
                continue;
            }
        };
        let what = format!(
            "PostgreSQL {major}, wal_compression = {compression}, workload {round}: {done:#?}"
        );
        assert_equal(&site, &what);
        // The next one is built on an incremental set.
        if dice.once_in(2) {
            let [full, incremental] =
                ["data.master", "data.master.0"].map(|name| site.archive_folder().join(name));
            std::fs::remove_dir_all(&full).unwrap();
            std::fs::rename(incremental, full).unwrap();
        }
        round += 1;
    }
}

/// Tables with an index of every kind, in a cluster with or without checksums, of which there is a backup.
fn prepared(major: u8, checksums: bool) -> Site {
    let mut cluster = Cluster::builder().major(major);
    // 18 has checksums unless it is told otherwise.
    if checksums {
        cluster = cluster.initdb_arg("--data-checksums");
    } else if major >= 18 {
        cluster = cluster.initdb_arg("--no-data-checksums");
    }
    let cluster = cluster
        .conf("archive_mode", "on")
        .conf("autovacuum", "off")
        .conf("full_page_writes", "on")
        .conf("max_prepared_transactions", "20")
        .conf("lock_timeout", "1000");
    let builder = Site::builder().standby_set("full_every", "0");
    let site = archiving(builder.cluster(cluster.start()));
    let cluster = site.cluster();
    let mut make = cluster.command("mkdir");
    run(make.arg(cluster.home().join("other"))).unwrap();
    let place = cluster.home().join("other").display().to_string();
    cluster.psql(&format!("CREATE TABLESPACE other LOCATION '{place}'"));
    cluster.psql("CREATE SEQUENCE counted");
    for table in 0..TABLES {
        let t = format!("t{table}");
        cluster.psql(&format!(
            "CREATE TABLE {t} (id int, k int, body text, p point, tags int[]); \
             INSERT INTO {t} SELECT n, n % 50, md5(n::text), point(n, n % 7), ARRAY[n % 9, n % 5] \
             FROM generate_series(1, 3000) n; \
             CREATE INDEX {t}_id ON {t} (id); CREATE INDEX ON {t} USING hash (k); \
             CREATE INDEX ON {t} USING gin (tags); CREATE INDEX ON {t} USING gist (p); \
             CREATE INDEX ON {t} USING brin (id); CREATE INDEX ON {t} USING spgist (p)"
        ));
    }
    cluster.psql("CREATE DATABASE model");
    site.master_command(&["backup"]).succeed();
    site
}

/// Does some of what may happen, somewhere amid it one of these acts; what PostgreSQL refuses does not happen.
///
/// # Errors
/// What PostgreSQL says that finds no way back from its own crash.
fn disturb(site: &mut Site, dice: &mut Dice, sure: &[&'static str]) -> Result<Vec<String>, String> {
    let mut done = Vec::new();
    let acts = 6 + dice.below(10);
    let sure_at = dice.below(acts);
    for at in 0..acts {
        let act = *dice.choose(if at == sure_at { sure } else { ACTS });
        match act {
            "restart" => site.cluster_mut().restart(),
            "crash" => {
                site.cluster_mut().kill9();
                come_back(site.cluster_mut())?;
            }
            FAILOVER => fail_over(site.cluster_mut(), dice)?,
            act => {
                let table = format!("t{}", dice.index(TABLES));
                let sql = act.replace("$$", "\u{1}").replace("$t", &table);
                let sql = sql.replace("$r", &(1 + dice.below(2_000)).to_string());
                let sql = sql
                    .replace("$m", &dice.below(3).to_string())
                    .replace('\u{1}', "$$");
                let whole = sql.contains("DO $$") || sql.contains("BEGIN;");
                let parts: Vec<&str> = match whole {
                    true => vec![&sql],
                    false => sql.split(';').collect(),
                };
                for part in parts {
                    if let Err(refused) = site.cluster().try_psql(part) {
                        done.push(format!("refused: {}", refused.lines().last().unwrap_or("")));
                    }
                }
                done.push(sql);
                continue;
            }
        }
        done.push(act.to_owned());
    }
    // What is prepared ends in the next round, or in no backup at all.
    let prepared = site.cluster().psql("SELECT gid FROM pg_prepared_xacts");
    for gid in prepared.lines() {
        if dice.once_in(2) {
            continue;
        }
        let end = *dice.choose(&["COMMIT", "ROLLBACK"]);
        let _ = site.cluster().try_psql(&format!("{end} PREPARED '{gid}'"));
    }
    Ok(done)
}

/// Stops the server, or kills it, and promotes it out of its own directory.
fn fail_over(server: &mut Cluster, dice: &mut Dice) -> Result<(), String> {
    let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
    let before: u32 = server.psql(timeline).parse().unwrap();
    match dice.once_in(2) {
        true => server.stop(StopMode::Fast),
        false => server.kill9(),
    }
    signal_file(server, "standby.signal");
    come_back(server)?;
    let mut promote = server.command("pg_ctl");
    promote.arg("-D").arg(server.data()).args(["-w", "promote"]);
    run(&mut promote).unwrap();
    server.psql("CHECKPOINT");
    assert_eq!(server.psql(timeline), (before + 1).to_string());
    Ok(())
}

/// Starts a server that was killed. A file of an unlogged relation that is there already when the end of its recovery
/// wants to make it anew is a fault of PostgreSQL, met on 13 and 18.
fn come_back(server: &mut Cluster) -> Result<(), String> {
    let before = server.log().len();
    let Err(ended) = server.try_start() else {
        return Ok(());
    };
    let said = server.log().split_off(before);
    let is_its_own = |line: &&str| {
        let of_relation = ["\"base/", "\"global/", "\"pg_tblspc/"];
        let told = line.split_once("FATAL:  could not create file ");
        told.is_some_and(|(_, file)| {
            of_relation.iter().any(|folder| file.starts_with(folder))
                && file.ends_with(": File exists")
        })
    };
    match said.lines().find(is_its_own) {
        Some(why) if !server.is_running() => Err(why.to_owned()),
        _ => panic!("{ended}"),
    }
}

/// Makes one set of each kind of what there is, replays both to one place, and compares them.
#[track_caller]
fn assert_equal(site: &Site, what: &str) {
    let said = site.master_command(&["backup"]).succeed();
    assert!(said.contains("incremental, built on"), "{what}: {said}");
    site.master_command(&["backup", "--full"]).succeed();
    let sets = ["data.master.0", "data.master"].map(|name| site.archive_folder().join(name));
    let cluster = site.cluster();
    // The pg_verifybackup that there is may be an older one, which reads no manifest of 17 on.
    if cluster.major() < 17 || cluster.bin().join("pg_verifybackup").exists() {
        verify(site, &sets[0]);
    }
    // A server that is shut down writes what it holds only behind a checkpoint that it replayed.
    cluster.psql("CHECKPOINT");
    cluster.psql("SELECT pg_create_restore_point('the same')");
    let last = cluster.psql("SELECT pg_walfile_name(pg_switch_wal())");
    wait_for(
        "the end of the WAL in the archive",
        Duration::from_secs(60),
        || site.holds(&last).then_some(()),
    );
    let homes = sets.map(|set| replayed(site, &set));
    let [incremental, full] = [0, 1].map(|at| pages_below(&homes[at].join("data")));
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&incremental), names(&full), "{what}");
    let mut differences = Vec::new();
    for (path, one) in &incremental {
        let other = &full[path];
        let blocks = one.len().max(other.len()).div_ceil(PAGE);
        for block in 0..blocks {
            let [one, other] = [one, other].map(|file| masked(path, file, block));
            let differs = one.iter().zip(&other).position(|(one, other)| one != other);
            if let Some(at) = differs {
                let from = at.saturating_sub(16);
                let [one, other] = [&one, &other].map(|page| &page[from..PAGE.min(at + 48)]);
                differences.push(format!(
                    "{} block {block} byte {at}, of {}:\n  from byte {from}: {one:02X?}\n  full: {other:02X?}",
                    path.display(),
                    relation_of(cluster, path)
                ));
            }
        }
    }
    assert!(differences.is_empty(), "{what}: {}", differences.join("\n"));
}

/// What a file of a relation holds, as the master's catalogs have it.
fn relation_of(cluster: &Cluster, path: &Path) -> String {
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let number = name(path).split(['.', '_']).next().unwrap().to_owned();
    let folder = name(path.parent().unwrap());
    let named = match folder.as_str() {
        "global" => Ok("postgres".to_owned()),
        oid => cluster.try_psql(&format!(
            "SELECT datname FROM pg_database WHERE oid = {oid}"
        )),
    };
    let sql = format!(
        "SELECT c.relname, c.relkind, a.amname FROM pg_class c LEFT JOIN pg_am a ON a.oid = c.relam \
         WHERE pg_relation_filenode(c.oid) = {number}"
    );
    let asked = |database: String| {
        run((cluster.command("psql")).args(["-X", "-A", "-t", "-d", &database, "-c", &sql]))
    };
    named.and_then(asked).unwrap_or_else(|error| error)
}

/// A copy of a set whose server replayed to the restore point and stopped there.
fn replayed(site: &Site, set: &Path) -> TempDir {
    let home = TempDir::new();
    let data = home.join("data");
    let cluster = site.cluster();
    run(cluster.command("cp").arg("-a").arg(set).arg(&data)).unwrap();
    let map = std::fs::read_to_string(data.join("tablespace_map")).unwrap();
    let own = |line: &str| {
        let oid = line.split(' ').next().unwrap();
        format!("{oid} {}\n", data.join("tmpspc").join(oid).display())
    };
    std::fs::write(
        data.join("tablespace_map"),
        map.lines().map(own).collect::<String>(),
    )
    .unwrap();
    let ini = site.standby_ini().display().to_string();
    let walmgr = env!("CARGO_BIN_EXE_walmgr");
    let settings = format!(
        "restore_command = '{walmgr} {ini} xrestore %f %p'\narchive_mode = off\nhot_standby = off\n\
         recovery_target_name = 'the same'\nrecovery_target_action = shutdown\n"
    );
    std::fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
    std::fs::write(data.join("recovery.signal"), "").unwrap();
    crate::support::place::give_to_server(&data.join("recovery.signal"));
    let mut server = Cluster::on_directory(cluster.major(), &data);
    server.spawn();
    server.wait_for_log(
        "recovery stopping at restore point",
        Duration::from_secs(120),
    );
    wait_for("the end of replay", Duration::from_secs(120), || {
        (!server.is_running()).then_some(())
    });
    let log = server.log();
    assert!(
        log.contains("recovery stopping at restore point \"the same\""),
        "{log}"
    );
    home
}

/// The files whose pages have to be equal, by their paths.
fn pages_below(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for top in ["base", "global", "tmpspc"] {
        take(data, &data.join(top), &mut files);
    }
    let unlogged: Vec<PathBuf> = files.keys().filter_map(|path| main_of_init(path)).collect();
    files.retain(|path, _| {
        let text = path.to_str().unwrap();
        !unlogged.iter().any(|main| text == main.to_str().unwrap())
    });
    files
}

fn main_of_init(path: &Path) -> Option<PathBuf> {
    path.to_str()?.strip_suffix("_init").map(PathBuf::from)
}

fn take(data: &Path, folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            take(data, &path, files);
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let number = name.split(['.', '_']).next().unwrap();
        let is_relation = number.parse::<u32>().is_ok() && !name.contains("_fsm");
        if is_relation {
            let content = std::fs::read(&path).unwrap();
            files.insert(path.strip_prefix(data).unwrap().to_path_buf(), content);
        }
    }
}

/// Whether this is one of the pages that are all bits, and have a hole only by their headers: those of a visibility map,
/// and those of a BRIN index that say where a range of blocks has its summary.
fn is_whole(path: &Path, page: &[u8]) -> bool {
    const BRIN_REVMAP: [u8; 2] = 0xF092_u16.to_le_bytes();
    // Without the place of its special bytes these two may be anything.
    const SPECIAL: [u8; 2] = 8184_u16.to_le_bytes();
    path.to_str().unwrap().contains("_vm")
        || (page[PAGE - 2..] == BRIN_REVMAP && page[16..18] == SPECIAL)
}

/// A page without what two good copies may differ in; one behind the end is empty.
fn masked(path: &Path, file: &[u8], block: usize) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    let there = file.get(block * PAGE..).unwrap_or_default();
    let len = there.len().min(PAGE);
    page[..len].copy_from_slice(&there[..len]);
    if is_whole(path, &page) {
        page[..10].fill(0);
        return page;
    }
    let u16_at = |page: &[u8], at: usize| usize::from(u16::from_le_bytes([page[at], page[at + 1]]));
    let (lower, upper, special) = (u16_at(&page, 12), u16_at(&page, 14), u16_at(&page, 16));
    if lower < 24 || lower > upper || upper > special || special > PAGE {
        return page;
    }
    // LSN and checksum: a hint that is logged for its checksum's sake has both.
    page[..10].fill(0);
    // PD_HAS_FREE_LINES, PD_PAGE_FULL, PD_ALL_VISIBLE, and pd_prune_xid.
    page[10] &= !7;
    page[20..24].fill(0);
    page[lower..upper].fill(0);
    let is_heap = special == PAGE;
    for at in (24..lower).step_by(4) {
        let item = u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        let (offset, flags, len) = (item & 0x7FFF, item >> 15 & 3, item >> 17);
        let (offset, len) = (offset as usize, len as usize);
        if is_heap && flags == 1 && offset + len <= PAGE && len >= 23 {
            mask_tuple(&mut page[offset..offset + len]);
            page[offset + len..(offset + len).next_multiple_of(8).min(PAGE)].fill(0);
        }
        // An index entry that was found dead.
        if !is_heap && flags == 3 && len > 0 {
            let alive = item & !(3 << 15) | 1 << 15;
            page[at..at + 4].copy_from_slice(&alive.to_le_bytes());
        }
    }
    mask_special(&mut page, special);
    mask_spgist_cache(&mut page);
    page
}

#[test]
fn a_bit_of_a_visibility_map_and_a_place_of_a_summary_are_compared() {
    let mut empty = vec![0; PAGE];
    for (at, value) in [(12, 24_u16), (14, 8192), (16, 8192)] {
        empty[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    let differ = |path: &str, one: &[u8]| {
        let mut other = one.to_vec();
        other[300] ^= 1;
        masked(Path::new(path), one, 0) != masked(Path::new(path), &other, 0)
    };
    assert!(differ("base/5/16384_vm", &empty) && differ("base/5/16384_vm.1", &empty));
    assert!(!differ("base/5/16384", &empty));
    let mut revmap = empty;
    for (at, value) in [(14, 8184_u16), (16, 8184), (PAGE - 2, 0xF092)] {
        revmap[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    assert!(differ("base/5/16385", &revmap));
}

/// What is known of the transactions of a row, and its command.
fn mask_tuple(tuple: &mut [u8]) {
    let infomask = u16::from_le_bytes([tuple[20], tuple[21]]);
    let is_frozen = infomask & 0x0300 == 0x0300;
    let mask = if is_frozen { 0x0C00 } else { 0xFFF0 };
    tuple[20..22].copy_from_slice(&(infomask & !mask).to_le_bytes());
    tuple[8..12].fill(0);
}

/// Flags of index pages that are hints, and a cache; which index it is, the last bytes tell.
fn mask_special(page: &mut [u8], special: usize) {
    let id = u16::from_le_bytes([page[PAGE - 2], page[PAGE - 1]]);
    match (PAGE - special, id) {
        // Hash and GiST.
        (16, 0xFF80) => page[special + 12] &= !0x80,
        (16, 0xFF81) => {
            page[special..special + 8].fill(0);
            page[special + 12] &= !0x18;
        }
        // B-tree: garbage, and the cycle of a vacuum.
        (16, _) => {
            page[special + 12] &= !0x40;
            page[special + 14..special + 16].fill(0);
        }
        _ => {}
    }
}
