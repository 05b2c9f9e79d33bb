//! Tablespaces, of the set and made after it: a drill has all of them in its own directory.
//! Never looks into a drill's directory while it is there. Invariant: what lies where the master has its tablespaces is
//! the master's alone, before and after.

use super::*;
use crate::field::crossing_records::{BEFORE_BYTES, crosses, pad};
use crate::support::TempDir;

/// Every path below a directory, with what it is and when it was changed.
fn tree(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![directory.to_path_buf()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let metadata = entry.path().symlink_metadata().unwrap();
            if metadata.is_dir() {
                left.push(entry.path());
            }
            let what = format!(
                "{:?} {:?}",
                metadata.file_type(),
                metadata.modified().unwrap()
            );
            found.insert(entry.path(), what);
        }
    }
    found
}

#[test]
fn fault_159_tablespaces_of_the_set_stay_in_the_drills_directory() {
    let home = TempDir::new();
    let space = home.create_dir("space");
    let drilled = Drilled::of(Cluster::builder(), |site| {
        let sql = format!("CREATE TABLESPACE s LOCATION '{}'", space.display());
        site.cluster().psql(&sql);
        let sql = "CREATE TABLE in_space TABLESPACE s AS SELECT generate_series(1, 1000) AS n";
        site.cluster().psql(sql);
    });
    drilled
        .site
        .cluster()
        .psql("INSERT INTO in_space VALUES (0)");
    let (flushed, _) = drilled.ship();
    drilled.site.cluster().psql("CHECKPOINT");
    let before = tree(&space);
    let result = drilled.result();
    assert_eq!(result["lsn"], flushed.as_str());
    assert_eq!(result["notes"].as_array().unwrap().len(), 0, "{result}");
    drilled.assert_clear();
    assert_eq!(tree(&space), before);
}

/// Tablespaces are made behind the backup, most of them by a record that lies in two segments.
fn made_later_are_replayed_inside(major: u8) {
    skip_unless!(Cluster::available(major));
    let home = TempDir::new();
    let mut drilled = Drilled::new(major);
    let cluster = drilled.site.cluster();
    let long = "x".repeat(200);
    let mut spaces = Vec::new();
    for number in 0..6 {
        let space = home.create_dir(&format!("{number}-{long}"));
        let half_bytes = u64::try_from(space.as_os_str().len()).unwrap() / 2;
        pad(cluster, BEFORE_BYTES + half_bytes);
        let sql = format!("CREATE TABLESPACE s{number} LOCATION '{}'", space.display());
        cluster.psql(&sql);
        let sql = format!("CREATE TABLE t{number} TABLESPACE s{number} AS SELECT 1 AS n");
        cluster.psql(&sql);
        spaces.push(space);
    }
    cluster.psql("DROP TABLE t0");
    cluster.psql("CREATE DATABASE d TABLESPACE s1");
    cluster.psql("DROP TABLESPACE s0");
    cluster.psql("CHECKPOINT");
    let (flushed, _) = drilled.ship();
    let cross = spaces
        .iter()
        .filter(|space| crosses(&drilled.site, space.to_str().unwrap()));
    assert!(
        cross.count() > 0,
        "no record crosses a boundary: try other bounds"
    );
    let before = tree(home.path());
    let archive = drilled.archive_content();
    drilled.site.standby_set(
        "drill_sql",
        "SELECT (SELECT sum(n) FROM (SELECT n FROM t1 UNION ALL SELECT n FROM t2 UNION ALL SELECT n FROM t3 UNION ALL \
         SELECT n FROM t4 UNION ALL SELECT n FROM t5) s) = 5 AND (SELECT count(*) FROM pg_tablespace) = 7",
    );
    let result = drilled.result();
    assert!(result["failure"].is_null(), "{result}");
    assert_eq!(result["lsn"], flushed.as_str());
    let notes = result["notes"].to_string();
    for space in &spaces {
        assert!(notes.contains(space.to_str().unwrap()), "{notes}");
    }
    drilled.assert_clear();
    assert_eq!(tree(home.path()), before);
    assert_eq!(drilled.archive_content(), archive);
}

#[test]
fn fault_173_tablespaces_made_later_are_replayed_inside_13() {
    made_later_are_replayed_inside(13);
}

#[test]
fn fault_173_tablespaces_made_later_are_replayed_inside_15() {
    made_later_are_replayed_inside(15);
}

#[test]
fn fault_173_tablespaces_made_later_are_replayed_inside_18() {
    made_later_are_replayed_inside(18);
}

/// What the master made where somebody else has files, or where nothing is on this host.
#[test]
fn fault_173_what_lies_at_the_location_of_one_made_later_is_no_matter() {
    let home = TempDir::new();
    let (gone, foreign) = (home.create_dir("gone"), home.create_dir("foreign"));
    let drilled = Drilled::new(15);
    for (name, space) in [("g", &gone), ("f", &foreign)] {
        let sql = format!("CREATE TABLESPACE {name} LOCATION '{}'", space.display());
        drilled.site.cluster().psql(&sql);
    }
    drilled.site.cluster().psql("DROP TABLESPACE g");
    drilled.ship();
    fs::remove_dir(&gone).unwrap();
    fs::write(&gone, "a file").unwrap();
    let before = tree(home.path());
    let result = drilled.result();
    assert!(result["failure"].is_null(), "{result}");
    drilled.assert_clear();
    assert_eq!(tree(home.path()), before);
}
