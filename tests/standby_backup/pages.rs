//! The pages of a set from the standby, replayed, against those of a set from the master, replayed as far.
//! Never compares what PostgreSQL itself calls free to differ. Invariant: a difference is named by file and block.
//!
//! What is masked is what PostgreSQL's own consistency check masks (`src/backend/access/common/bufmask.c`, `heap_mask`,
//! `btree_mask`): the LSN and the checksum, hints, the hole between the line pointers and the tuples, and command ids.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::support::TempDir;
use crate::support::place::give_to_server;

const PAGE_BYTES: usize = 8192;

/// Tables come and go, grow, shrink and are vacuumed.
const CHURN: &str = "\
    \\set a random(1, 200000)
    BEGIN;
    UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :a;
    INSERT INTO grown SELECT repeat('y', 500) FROM generate_series(1, 50);
    DELETE FROM grown WHERE ctid IN (SELECT ctid FROM grown LIMIT 20);
    COMMIT;
    DROP TABLE IF EXISTS churn_:client_id;
    CREATE TABLE churn_:client_id AS SELECT repeat('x', 500) AS t, g FROM generate_series(1, 200) g;
    CREATE INDEX ON churn_:client_id (g);
    CREATE UNLOGGED TABLE unlogged_:client_id (n int PRIMARY KEY);
    INSERT INTO unlogged_:client_id VALUES (1);
    VACUUM grown;
    DROP TABLE churn_:client_id;
    DROP TABLE unlogged_:client_id;
    ";

#[test]
fn fault_152_pages_of_a_standbys_set_equal_a_masters_set_replayed_as_far() {
    for major in majors() {
        for hot in [true, false] {
            compare_sets(major, hot);
        }
    }
}

fn compare_sets(major: u8, hot: bool) {
    let cluster = Cluster::builder()
        .major(major)
        .initdb_arg("--data-checksums")
        .conf("autovacuum_naptime", "1s");
    let pair = Pair::of(cluster, hot);
    for sql in [
        "CREATE TABLE grown (t text)",
        "CREATE UNLOGGED TABLE kept (n int PRIMARY KEY)",
    ] {
        pair.site.cluster().psql(sql);
    }
    pair.catch_up();
    let home = TempDir::new();
    give_to_server(home.path());
    let script = home.write("churn.sql", CHURN);
    let mut pgbench = pair.site.cluster().command("pgbench");
    pgbench.args(["-n", "-c", "3", "-R", "40", "-T", "600", "-f"]);
    pgbench
        .arg(&script)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let load = Running(Some(pgbench.spawn().unwrap()));
    // Some of it reaches the standby before the copy, some meanwhile.
    pair.site.cluster().psql("SELECT pg_sleep(2)");
    pair.site.cluster().switch_wal();
    let backup = Running::start(&pair);
    let mut looks = 0;
    let mut backup_child = backup;
    while (backup_child.0.as_mut().unwrap().try_wait().unwrap()).is_none() {
        let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name ILIKE '%walmgr%'";
        assert_eq!(pair.site.cluster().psql(ours), "0");
        pair.site.cluster().switch_wal();
        looks += 1;
    }
    backup_child.end().succeed();
    println!("PostgreSQL {major}, hot {hot}: the master was looked at {looks} times");
    drop(load);
    wait_for("the end of the load", PATIENCE, || {
        let others = "SELECT count(*) FROM pg_stat_activity \
                      WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        (pair.site.cluster().psql(others) == "0").then_some(())
    });
    pair.site.master_command(&["backup"]).succeed();
    pair.site.cluster().psql("VACUUM");
    // A server that shuts down in recovery writes out its pages only where it has replayed a checkpoint.
    pair.site.cluster().psql("CHECKPOINT");
    let end = pair
        .site
        .cluster()
        .psql("SELECT pg_create_restore_point('here')");
    drain(&pair.site);
    let of_master = replayed(&pair, &home, "data.master", &end);
    let of_standby = replayed(&pair, &home, "data.master.0", &end);
    let (pages, differences) = compare(&of_master, &of_standby);
    println!("{pages} pages are equal");
    assert!(pages > 3_000, "{pages}");
    assert_eq!(differences, [""; 0], "PostgreSQL {major}, hot {hot}");
}

/// A set's data directory once its server has replayed up to this LSN and shut down; its pages by file.
fn replayed(pair: &Pair, home: &TempDir, set: &str, end: &str) -> BTreeMap<String, Vec<u8>> {
    let data = home.join(set);
    let mut copy = pair.site.cluster().command("cp");
    run(copy.arg("-a").arg(pair.set(set)).arg(&data)).unwrap();
    crate::support::stored::unpack_all(&pair.site.completed_wals());
    let wal = pair.site.completed_wals().display().to_string();
    let settings = format!(
        "restore_command = 'cp {wal}/%f %p'\narchive_mode = off\nrecovery_target_lsn = '{end}'\n\
         recovery_target_action = shutdown\nautovacuum = off\nhot_standby = off\n"
    );
    fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
    fs::write(data.join("recovery.signal"), "").unwrap();
    give_to_server(&data.join("recovery.signal"));
    let mut server = Cluster::on_directory(pair.site.cluster().major(), &data);
    server.spawn();
    wait_for("the target", PATIENCE, || {
        let has_ended = server.log().contains("database system is shut down");
        has_ended.then_some(())
    });
    let log = server.log();
    assert!(
        log.contains("recovery stopping after WAL location")
            || log.contains("recovery stopping before"),
        "{log}"
    );
    let mut files = BTreeMap::new();
    collect(&data, Path::new("base"), &mut files);
    collect(&data, Path::new("global"), &mut files);
    files
}

/// Every file of main, `_vm` and `_init` forks.
fn collect(data: &Path, below: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(data.join(below)).unwrap().flatten() {
        let path = below.join(entry.file_name());
        if entry.path().is_dir() {
            collect(data, &path, files);
            continue;
        }
        let name = entry.file_name().into_string().unwrap();
        let (relation, fork) = name.split_once('_').unwrap_or((&name, ""));
        let number = relation.split('.').next().unwrap();
        let is_relation = number.bytes().all(|byte| byte.is_ascii_digit());
        let fork = fork.split('.').next().unwrap();
        if is_relation && matches!(fork, "" | "vm" | "init") {
            let content = fs::read(entry.path()).unwrap();
            files.insert(path.display().to_string(), content);
        }
    }
}

/// How many pages were compared, and which differ.
fn compare(
    one: &BTreeMap<String, Vec<u8>>,
    other: &BTreeMap<String, Vec<u8>>,
) -> (usize, Vec<String>) {
    let names: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    // What an unlogged relation holds is nobody's, but for its `_init` fork.
    let is_unlogged = |name: &str| {
        let file = name.rsplit_once('/').unwrap().1;
        let number: String = file.chars().take_while(char::is_ascii_digit).collect();
        let init = name.replace(file, &format!("{number}_init"));
        !file.contains("_init") && (one.contains_key(&init) || other.contains_key(&init))
    };
    let (mut pages, mut differences) = (0, Vec::new());
    for name in names.into_iter().filter(|name| !is_unlogged(name)) {
        let empty = Vec::new();
        let contents = [one, other].map(|files| files.get(name).unwrap_or(&empty));
        let count = contents.map(|content| content.len().div_ceil(PAGE_BYTES));
        for block in 0..count[0].max(count[1]) {
            let masked = contents.map(|content| masked(content, block, name));
            pages += 1;
            if masked[0] != masked[1] {
                let at = (0..PAGE_BYTES).find(|at| masked[0][*at] != masked[1][*at]);
                differences.push(format!("{name} block {block} at byte {}", at.unwrap()));
            }
        }
    }
    (pages, differences)
}

/// A page without what may differ; one that holds nothing is like one that is not there.
fn masked(content: &[u8], block: usize, name: &str) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    let from = (block * PAGE_BYTES).min(content.len());
    let to = (from + PAGE_BYTES).min(content.len());
    page[..to - from].copy_from_slice(&content[from..to]);
    let u16_at = |page: &[u8; PAGE_BYTES], at: usize| {
        usize::from(u16::from_ne_bytes([page[at], page[at + 1]]))
    };
    let (lower, upper, special) = (u16_at(&page, 12), u16_at(&page, 14), u16_at(&page, 16));
    let is_new = page.iter().all(|byte| *byte == 0);
    let is_map = name.contains("_vm");
    // It was made when the relation grew, and not used yet: no WAL says so.
    let is_unused = !is_map && lower == 24 && special == PAGE_BYTES;
    if is_new || is_unused {
        return [0; PAGE_BYTES];
    }
    // pd_lsn, pd_checksum, and pd_prune_xid.
    page[..10].fill(0);
    page[20..24].fill(0);
    // PD_HAS_FREE_LINES, PD_PAGE_FULL, PD_ALL_VISIBLE.
    page[10] &= !0b111;
    if is_map {
        return page;
    }
    if (24..=upper).contains(&lower) && upper <= special && special <= PAGE_BYTES {
        page[lower..upper].fill(0);
        match PAGE_BYTES - special {
            0 | 8 => mask_tuples(&mut page, lower),
            16 => mask_btree(&mut page, lower, special),
            _ => {}
        }
    }
    page
}

/// `heap_mask`; sequences are heaps of one tuple.
fn mask_tuples(page: &mut [u8; PAGE_BYTES], lower: usize) {
    for at in (24..lower).step_by(4) {
        let line = u32::from_ne_bytes(page[at..at + 4].try_into().unwrap());
        let (offset, flags, len) = (
            usize::try_from(line & 0x7FFF).unwrap(),
            line >> 15 & 3,
            usize::try_from(line >> 17).unwrap(),
        );
        if flags != 1 || len < 23 || offset + len > PAGE_BYTES {
            continue;
        }
        // t_cid
        page[offset + 8..offset + 12].fill(0);
        let infomask = u16::from_ne_bytes([page[offset + 20], page[offset + 21]]);
        let masked = match infomask & 0x0300 == 0x0300 {
            // Frozen: HEAP_XMAX_COMMITTED and HEAP_XMAX_INVALID are hints.
            true => infomask & !0x0C00,
            false => infomask & !0xFFF0,
        };
        page[offset + 20..offset + 22].copy_from_slice(&masked.to_ne_bytes());
        let end = (offset + len).next_multiple_of(8).min(PAGE_BYTES);
        page[offset + len..end].fill(0);
    }
}

/// `btree_mask`.
fn mask_btree(page: &mut [u8; PAGE_BYTES], lower: usize, special: usize) {
    const LEAF: u16 = 1 << 0;
    const DELETED: u16 = 1 << 2;
    const META: u16 = 1 << 3;
    const SPLIT_END: u16 = 1 << 5;
    const HAS_GARBAGE: u16 = 1 << 6;
    let flags = u16::from_ne_bytes([page[special + 12], page[special + 13]]);
    if flags & DELETED != 0 {
        page[24..special].fill(0);
    } else if flags & LEAF != 0 && flags & META == 0 {
        for at in (24..lower).step_by(4) {
            let line = u32::from_ne_bytes(page[at..at + 4].try_into().unwrap());
            page[at..at + 4].copy_from_slice(&(line & !(3 << 15)).to_ne_bytes());
        }
    }
    let flags = flags & !(SPLIT_END | HAS_GARBAGE);
    page[special + 12..special + 14].copy_from_slice(&flags.to_ne_bytes());
    // btpo_cycleid
    page[special + 14..special + 16].fill(0);
}

#[test]
fn fault_152_a_difference_that_matters_is_seen_through_the_masks() {
    let mut page = vec![0; PAGE_BYTES];
    for (at, value) in [(12, 28_u16), (14, 8000), (16, 8192)] {
        page[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }
    page[24..28].copy_from_slice(&(8000_u32 | 1 << 15 | 100 << 17).to_ne_bytes());
    let plain = masked(&page, 0, "base/5/1");
    for (at, bits, is_seen) in [
        (0, 0xFF, false),
        (8, 0xFF, false),
        (20, 0xFF, false),
        (30, 0xFF, false),
        (8008, 0xFF, false),
        // HEAP_XMAX_COMMITTED.
        (8021, 0x04, false),
        (8000, 0xFF, true),
        (8020, 0x01, true),
        (8023, 0xFF, true),
        (8099, 0xFF, true),
        (24, 0xFF, true),
    ] {
        let mut changed = page.clone();
        changed[at] ^= bits;
        assert_eq!(
            masked(&changed, 0, "base/5/1") != plain,
            is_seen,
            "byte {at}"
        );
    }
}
