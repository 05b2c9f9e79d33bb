//! Drills: a set is restored beside everything else, checked, and gone again.
//! Never cleans up after a drill itself. Invariant: a drill changes nothing but its own directory, its record and its
//! lock, and what a killed one leaves the next one removes.

mod faults;
mod kills;
mod settings;
mod tablespaces;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Cluster, Output, Site, wait_for};

const PATIENCE: Duration = Duration::from_secs(120);

/// A master that archives and has a backup set that `backup` made.
struct Drilled {
    site: Site,
}

impl Drilled {
    fn new(major: u8) -> Drilled {
        Drilled::of(Cluster::builder().major(major), |_| {})
    }

    /// With more settings, and with something done before the backup.
    fn of(builder: crate::support::cluster::Builder, before: impl FnOnce(&Site)) -> Drilled {
        Drilled::placed(builder, None, before)
    }

    fn placed(
        builder: crate::support::cluster::Builder,
        archive: Option<&Path>,
        before: impl FnOnce(&Site),
    ) -> Drilled {
        let cluster = builder
            .conf("archive_mode", "on")
            .conf("wal_level", "replica")
            .conf("autovacuum", "off")
            .conf("track_commit_timestamp", "on")
            .start();
        let bin = cluster.bin().display().to_string();
        let mut builder = Site::builder()
            .cluster(cluster)
            .master_set("use_xlog_functions", "1")
            .standby_set("slave_bin", &bin);
        if let Some(archive) = archive {
            builder = builder.archive(archive);
        }
        let site = builder.build();
        site.master_command(&["setup"]).succeed();
        site.cluster().pgbench(&["-i", "-q", "-s", "1"]);
        before(&site);
        site.master_command(&["backup"]).succeed();
        Drilled { site }
    }

    fn drill(&self, words: &[&str]) -> Output {
        let output = self.site.standby_command(&[&["drill"], words].concat());
        println!("{}{}", output.stdout, output.stderr);
        output
    }

    /// The result for programs of a drill that has to succeed.
    fn result(&self) -> Value {
        serde_json::from_str(&self.drill(&["--json"]).succeed()).unwrap()
    }

    fn status(&self) -> Value {
        let output = self.site.standby_command(&["status", "--json"]);
        serde_json::from_str(&output.stdout).unwrap()
    }

    /// Ships everything until nothing is written any more; up to where, and the time of the last commit.
    fn ship(&self) -> (String, String) {
        let cluster = self.site.cluster();
        let flushed = || cluster.psql("SELECT pg_current_wal_flush_lsn()");
        let commit = || {
            cluster.psql(
                "SELECT to_char(timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00' \
                 FROM pg_last_committed_xact()",
            )
        };
        wait_for("a quiet master", PATIENCE, || {
            let before = (flushed(), commit());
            self.site.master_command(&["sync"]).succeed();
            ((flushed(), commit()) == before).then_some(before)
        })
    }

    /// The directory of a drill.
    fn scratch(&self) -> PathBuf {
        let ini = self.site.standby_ini().file_stem().unwrap();
        let above = self.site.completed_wals();
        let name = format!("{}.drill", ini.to_str().unwrap());
        above.with_file_name(name)
    }

    /// Nothing of a drill is left, but its record and its lock.
    fn assert_clear(&self) {
        assert!(fs::symlink_metadata(self.scratch()).is_err());
        assert_eq!(processes_in(&self.scratch()), Vec::<String>::new());
        let servers = self.site.completed_wals().join(".servers");
        let noted = fs::read_dir(servers).into_iter().flatten().flatten();
        let noted: Vec<String> = noted
            .map(|entry| fs::read_to_string(entry.path()).unwrap())
            .filter(|path| path.starts_with(self.scratch().to_str().unwrap()))
            .collect();
        assert_eq!(noted, Vec::<String>::new());
    }

    /// What the archive's directories hold, but for what a receiver and a drill write on.
    fn archive_content(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for folder in [self.site.completed_wals(), self.site.partial_wals()] {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                let name = entry.file_name().into_string().unwrap();
                let passing = ["DRILL", ".drill-lock", ".rounds", ".rounds.sets"];
                if entry.path().is_file() && !passing.contains(&&*name) {
                    found.insert(entry.path(), fs::read(entry.path()).unwrap());
                }
            }
        }
        found
    }
}

/// Command lines of the processes that work below a directory.
fn processes_in(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let works_in = fs::read_link(entry.path().join("cwd"));
        if works_in.is_ok_and(|path| path.starts_with(directory)) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    found
}

fn with_segment_in_progress(major: u8) {
    skip_unless!(Cluster::available(major));
    let mut drilled = Drilled::new(major);
    let cluster = drilled.site.cluster();
    cluster.pgbench(&["-n", "-t", "200"]);
    cluster.switch_wal();
    cluster.pgbench(&["-n", "-t", "50"]);
    let (flushed, commit) = drilled.ship();
    let before = drilled.archive_content();
    drilled.site.standby_set(
        "drill_sql",
        "SELECT count(*) = 100000 FROM pgbench_accounts",
    );
    let result = drilled.result();
    assert_eq!(result["lsn"], flushed.as_str());
    assert_eq!(result["commit_time"], commit.as_str());
    assert_eq!(result["set"], "data.master");
    assert!(result["failure"].is_null(), "{result}");
    for part in [
        "rto_seconds",
        "copy_seconds",
        "replay_seconds",
        "check_seconds",
    ] {
        assert!(result[part].as_f64().unwrap() > 0.0, "{part}: {result}");
    }
    drilled.assert_clear();
    assert_eq!(drilled.archive_content(), before);
    let status = drilled.status();
    assert_eq!(status["standby"]["drill"]["lsn"], flushed.as_str());
    let page = drilled.site.standby_command(&["status"]).stdout;
    assert!(page.contains("  drill      data.master "), "{page}");
    // The set is listed as before, and restores again.
    let text = drilled.drill(&["data.master"]).succeed();
    assert!(text.starts_with(&format!(
        "data.master restores: it was replayed to {flushed} of timeline 1"
    )));
    assert!(text.contains("\n  RTO        "), "{text}");
}

#[test]
fn fault_158_a_drill_reaches_the_flushed_record_and_its_commit_15() {
    with_segment_in_progress(15);
}

#[test]
fn fault_158_a_drill_reaches_the_flushed_record_and_its_commit_18() {
    with_segment_in_progress(18);
}

#[test]
fn fault_158_a_drill_that_is_not_to_be_one_changes_nothing() {
    let drilled = Drilled::new(15);
    let before = drilled.archive_content();
    let said = drilled.drill(&["-n"]).succeed();
    assert!(said.contains("restore data.master ("), "{said}");
    drilled.assert_clear();
    assert_eq!(drilled.archive_content(), before);
    assert!(drilled.status()["standby"]["drill"].is_null());
}
