//! WAL that is whole and cannot be replayed: a record ends the way, or asks for more than the standby has.
//! Never damaged WAL. Invariant: such a record is known on arrival, by whichever way it came, and
//! nothing is touched for a recovery that cannot get past it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::load::drain;

use crate::support::backup_set::{make_set, set_path};
use crate::support::place::give_to_server;
use crate::support::{Cluster, Site, StopMode, wait_for};

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
pub(super) fn write_minimally(site: &mut Site) {
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
fn fault_127_obstacles_are_noted_of_streamed_records_and_old_archives() {
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

#[test]
fn fault_127_restore_beyond_an_obstacle_is_refused_before_any_change() {
    for major in crate::support::USUAL {
        skip_unless!(Cluster::available(major));
        let mut site = master(major);
        make_set(&site, "data.master");
        let before = site
            .cluster()
            .psql("SELECT pg_create_restore_point('before')");
        write_minimally(&mut site);
        site.cluster()
            .psql("SELECT pg_create_restore_point('behind')");
        drain(&site);
        let refused = site.standby_command(&["restore"]);
        let line = refused.fail(1);
        assert!(
            line.contains("wal_level = minimal") && line.contains("new backup"),
            "{line}"
        );
        let behind = site.standby_command(&["restore", "--target-name", "behind"]);
        let line = behind.fail(1);
        assert!(
            line.contains("out of reach") && line.contains("wal_level = minimal"),
            "{line}"
        );
        assert!(
            !site.home().join("standby-data").exists() && set_path(&site, "data.master").is_dir()
        );
        let listed = site.standby_command(&["listbackups"]).succeed();
        assert!(listed.contains("(recoverable up to "), "{listed}");
        let listed = site.master_command(&["listbackups"]).succeed();
        assert!(listed.contains("(recoverable up to "), "{listed}");
        for status in [
            site.standby_command(&["status"]),
            site.master_command(&["status"]),
        ] {
            assert!(
                status.stdout.contains("can be recovered only up to"),
                "{}",
                status.stdout
            );
        }
        the_master_refuses_as_well(&site, major);
        // What lies before it is in reach as ever.
        let copy = site.home().join("copy");
        let words = [
            "restore",
            "data.master",
            copy.to_str().unwrap(),
            "--target-name",
            "before",
        ];
        site.standby_command(&words).succeed();
        let mut server = Cluster::on_directory(major, &copy);
        server.start();
        assert_eq!(
            server
                .psql("SELECT pg_last_wal_replay_lsn() >= '0/0'")
                .trim(),
            "t",
            "{before}"
        );
        server.stop(StopMode::Fast);
        // A set from behind it is as good as any.
        fs::remove_dir_all(&copy).unwrap();
        make_set(&site, "data.master.0");
        site.standby_command(&["restore", "data.master.0", copy.to_str().unwrap()])
            .succeed();
        let mut server = Cluster::on_directory(major, &copy);
        server.start();
        assert_eq!(server.psql("SELECT count(*) FROM bulk").trim(), "1");
    }
}

fn the_master_refuses_as_well(site: &Site, major: u8) {
    let place = site.home().join("on-the-master");
    let restore = |target: &[&str]| {
        let words = ["restore", "data.master", place.to_str().unwrap()];
        site.master_command(&[&words[..], target].concat())
    };
    for (target, part) in [
        (&[][..], "new backup"),
        (&["--target-lsn", "FF/0"], "out of reach"),
    ] {
        let refused = restore(target);
        let line = refused.fail(1);
        assert!(
            line.contains("wal_level = minimal") && line.contains(part),
            "{line}"
        );
        assert!(!place.exists());
    }
    restore(&["--target-name", "before"]).succeed();
    let mut server = Cluster::on_directory(major, &place);
    server.start();
    server.stop(StopMode::Fast);
}

#[test]
fn fault_127_a_standby_is_not_booted_at_the_end_of_the_way() {
    skip_unless!(Cluster::available(15));
    let mut site = master(15);
    make_set(&site, "data.master");
    site.standby_command(&["restore", "data.master"]).succeed();
    let mut standby = Cluster::on_directory(15, &site.home().join("standby-data"));
    standby.start();
    site.standby_command(&["pause"]).succeed();
    write_minimally(&mut site);
    drain(&site);
    let boot = site.standby_command(&["boot"]);
    let line = boot.fail(1);
    assert!(
        line.contains("wal_level = minimal") && line.contains("nothing was changed"),
        "{line}"
    );
    assert!(!site.partial_wals().join("FROZEN").exists());
    let status = site.standby_command(&["status", "--json"]);
    assert!(
        status.stdout.contains("\"unreplayable\""),
        "{}",
        status.stdout
    );
}

#[test]
fn fault_127_restore_raises_settings_raised_since_the_backup() {
    for major in crate::support::USUAL {
        skip_unless!(Cluster::available(major));
        let mut site = master(major);
        make_set(&site, "data.master");
        restart_with(
            &mut site,
            &["max_connections = 150", "max_worker_processes = 12"],
        );
        site.cluster().psql("CREATE TABLE behind AS SELECT 1");
        drain(&site);
        let on_the_master = site.home().join("on-the-master");
        let there = on_the_master.to_str().unwrap();
        site.master_command(&["restore", "data.master", there])
            .succeed();
        site.standby_command(&["restore", "data.master"]).succeed();
        for data in [on_the_master, site.home().join("standby-data")] {
            let written = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
            let has = |line: &str| written.lines().any(|it| it.replace(' ', "") == line);
            assert!(
                has("max_connections=150") && has("max_worker_processes=12"),
                "{written}"
            );
            assert!(!written.contains("max_wal_senders"), "{written}");
            let mut standby = Cluster::on_directory(major, &data);
            standby.start();
            wait_for("the table", PATIENCE, || {
                standby.try_psql("TABLE behind").ok()
            });
            standby.stop(StopMode::Fast);
        }
    }
}

/// Has the master archive a record of a resource manager that no server here has: a message whose resource
/// manager is another, with the checksum that this one has then.
fn write_as_an_extension_does(site: &Site) {
    let master = site.cluster();
    master.psql("ALTER SYSTEM SET archive_command = ''");
    master.reload();
    wait_for("the archiver to stand", PATIENCE, || {
        (master.psql("SHOW archive_command").trim().is_empty()).then_some(())
    });
    let name = "SELECT pg_walfile_name(pg_current_wal_insert_lsn())";
    let name = master.psql(name).trim().to_owned();
    master.psql("SELECT pg_logical_emit_message(false, 'walmgr', 'of an extension')");
    master.switch_wal();
    let path = master.data().join("pg_wal").join(&name);
    let mut wal = fs::read(&path).unwrap();
    let text = b"of an extension";
    let text = wal.windows(text.len()).position(|it| it == text).unwrap();
    // Header, then length and id of the main data; the record lies on one page.
    let begins = (0..200).map(|back| text - back).find(|at| {
        let header = &wal[*at..];
        let len = u32::from_le_bytes(*header.first_chunk().unwrap()) as usize;
        header[17] == 21 && (40..200).contains(&len) && at % 8 == 0 && *at + len == text + 15
    });
    let at = begins.expect("the record on one page");
    wal[at + 17] = 130;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&wal[at + 24..text + 15]), &wal[at..at + 20]);
    wal[at + 20..at + 24].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, wal).unwrap();
    master.psql("ALTER SYSTEM RESET archive_command");
    master.reload();
    drain(site);
}

#[test]
fn fault_127_records_of_an_unknown_resource_manager_are_refused() {
    for major in crate::support::USUAL {
        skip_unless!(Cluster::available(major));
        let site = master(major);
        make_set(&site, "data.master");
        site.cluster()
            .psql("SELECT pg_create_restore_point('before')");
        write_as_an_extension_does(&site);
        assert!(has_note(&site, " manager 130"), "{:?}", notes(&site));
        let refused = site.standby_command(&["restore"]);
        let line = refused.fail(1);
        assert!(
            line.contains("resource manager 130") && line.contains("shared_preload_libraries"),
            "{line}"
        );
        let place = site.home().join("on-the-master");
        let words = ["restore", "data.master", place.to_str().unwrap()];
        let refused = site.master_command(&words);
        let line = refused.fail(1);
        assert!(
            line.contains("resource manager 130") && line.contains("make a new backup"),
            "{line}"
        );
        // A record of another resource manager counts as well where a target lies behind it.
        let behind = [&words[..], &["--target-lsn", "FF/0"]].concat();
        let refused = site.master_command(&behind);
        assert!(
            refused.fail(1).contains("resource manager 130"),
            "{}",
            refused.stderr
        );
        assert!(!place.exists() && !site.home().join("standby-data").exists());
        for listed in [
            site.standby_command(&["listbackups"]).succeed(),
            site.master_command(&["listbackups"]).succeed(),
        ] {
            assert!(
                listed.contains("library of resource manager 130"),
                "{listed}"
            );
        }
        // What lies before is in reach; and PostgreSQL does what is said of it.
        let words = [
            "restore",
            "data.master",
            place.to_str().unwrap(),
            "--target-name",
            "before",
        ];
        site.standby_command(&words).succeed();
        let conf = set_path(&site, "data.master").join("postgresql.auto.conf");
        let mut text = fs::read_to_string(&conf).unwrap();
        text.push_str("shared_preload_libraries = 'pg_stat_statements'\n");
        fs::write(&conf, text).unwrap();
        site.standby_command(&["restore", "data.master"]).succeed();
        let mut standby = Cluster::on_directory(major, &site.home().join("standby-data"));
        standby.append_conf("shared_preload_libraries = ''");
        let auto = standby.data().join("postgresql.auto.conf");
        let text = fs::read_to_string(&auto).unwrap();
        let kept = text.lines().filter(|line| !line.contains("preload"));
        fs::write(
            &auto,
            kept.map(|line| format!("{line}\n")).collect::<String>(),
        )
        .unwrap();
        let status = site.standby_command(&["status"]);
        assert!(
            status.stdout.contains("resource manager 130"),
            "{}",
            status.stdout
        );
        standby.spawn();
        wait_for("the server to end", PATIENCE, || {
            standby
                .log()
                .contains("resource manager with ID 130 not registered")
                .then_some(())
        });
    }
}
