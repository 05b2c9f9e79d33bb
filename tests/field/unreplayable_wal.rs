//! WAL that is whole and cannot be replayed: a record ends the way, or asks for more than the standby has.
//! Never damaged WAL. Invariant: such a record is known on arrival, by whichever way it came, and
//! nothing is touched for a recovery that cannot get past it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::load::drain;

use crate::support::place::give_to_server;
use crate::support::{Cluster, Site, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// A master that archives.
fn master(major: u8) -> Site {
    let cluster = Cluster::builder()
        .major(major)
        .conf("archive_mode", "on")
        .conf("wal_level", "replica")
        .start();
    let mut site = Site::with_cluster(cluster);
    site.master_command(&["setup"]).succeed();
    let data = site.home().join("standby-data");
    site.standby_set("slave_data", &data.display().to_string());
    site
}

/// Restarts the master with these settings.
fn restart_with(site: &mut Site, settings: &[&str]) {
    for line in settings {
        site.cluster_mut().append_conf(line);
    }
    site.cluster_mut().restart();
}

/// Writes WAL that does not tell everything, and what tells everything again behind it.
fn write_minimally(site: &mut Site) {
    let minimal = [
        "archive_mode = off",
        "wal_level = minimal",
        "max_wal_senders = 0",
    ];
    restart_with(site, &minimal);
    site.cluster().psql("CREATE TABLE bulk AS SELECT 1");
    let replica = [
        "archive_mode = on",
        "wal_level = replica",
        "max_wal_senders = 10",
    ];
    restart_with(site, &replica);
}

/// All notes, without their first and last lines.
fn notes(site: &Site) -> Vec<String> {
    let folder = site.completed_wals().join(".obstacles");
    let mut names: Vec<PathBuf> = match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    };
    names.sort();
    let texts = names.iter().map(|path| fs::read_to_string(path).unwrap());
    let lines: Vec<String> = texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let is_noted = |line: &&String| !line.starts_with("obstacles of") && !line.starts_with("check");
    lines.iter().filter(is_noted).cloned().collect()
}

fn has_note(site: &Site, end: &str) -> bool {
    notes(site).iter().any(|line| line.ends_with(end))
}

#[test]
fn fault_127_obstacles_are_noted_on_arrival_with_every_version() {
    for major in Cluster::available_majors() {
        let mut site = master(major);
        let space = site.home().create_dir("a space");
        give_to_server(&space);
        let sql = format!("CREATE TABLESPACE aside LOCATION '{}'", space.display());
        site.cluster().psql(&sql);
        let lower = "max_prepared_transactions = 3";
        restart_with(
            &mut site,
            &[
                "max_connections = 150",
                "max_locks_per_transaction = 70",
                lower,
            ],
        );
        write_minimally(&mut site);
        drain(&site);
        let notes = notes(&site);
        let spaced = format!(" {}", space.display());
        assert!(
            notes
                .iter()
                .any(|line| line.contains(" tablespace ") && line.ends_with(&spaced))
        );
        assert!(
            has_note(&site, " settings 150 8 10 3 70"),
            "{major}: {notes:?}"
        );
        assert!(has_note(&site, " minimal"), "{major}: {notes:?}");
    }
}

#[test]
fn fault_127_they_are_noted_of_records_that_were_streamed_and_of_older_archives() {
    skip_unless!(Cluster::available(15));
    let mut site = master(15);
    site.master_set("use_xlog_functions", "1");
    restart_with(&mut site, &["max_connections = 150"]);
    site.master_command(&["sync"]).succeed();
    // The receiver has seen all of the segment before it is finished.
    site.cluster().switch_wal();
    site.master_command(&["sync"]).succeed();
    drain(&site);
    let noted = notes(&site);
    assert!(has_note(&site, " settings 150 8 10 0 64"), "{noted:?}");
    // An archive from before there were notes.
    fs::remove_dir_all(site.completed_wals().join(".obstacles")).unwrap();
    site.restart_receiver();
    wait_for("the older WAL to be walked", PATIENCE, || {
        let walked = site.completed_wals().join(".obstacles/walked");
        walked.exists().then_some(())
    });
    assert_eq!(notes(&site), noted);
}
