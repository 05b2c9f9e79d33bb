//! What a backup refuses, waits for, keeps and clears away.
//! Never only reads the exit code. Invariant: whatever is refused leaves the sets as they were.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use walmgr::test_support::store::LIST_NAME;

use super::{archiving, beside, newest, site, verify};
use crate::support::loopfs::{FileSystem, LoopFs};
use crate::support::{Cluster, Output, Site, TempDir, wait_for};

#[test]
fn fault_60_a_set_is_not_sealed_before_its_wal_is_in_the_archive() {
    skip_unless!(Cluster::available(15));
    let site = site();
    let command = site.cluster().psql("SHOW archive_command");
    let gate = site.home().join("gate");
    let gated = format!("test -e {} && {command}", gate.display()).replace('\'', "''");
    site.cluster()
        .psql(&format!("ALTER SYSTEM SET archive_command = '{gated}'"));
    site.cluster().reload();
    let mut backup = site.master_walmgr(&["backup"]);
    backup.stdin(Stdio::null()).stdout(Stdio::piped());
    let backup = backup.stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the last file", Duration::from_secs(60), || {
        let control = site
            .archive_folder()
            .join("data.master.incoming/global/pg_control");
        control.exists().then_some(())
    });
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(beside(&site), ["data.master.incoming"]);
    std::fs::write(&gate, "").unwrap();
    let output: Output = backup.wait_with_output().unwrap().into();
    output.succeed();
    verify(&site, &newest(&site));
}

#[test]
fn old_sets_are_shown_to_archive_command_and_go_with_their_wal() {
    skip_unless!(Cluster::available(15));
    let list = TempDir::new();
    let shown = list.join("shown");
    let command = format!(
        "test -f $BACKUPDIR/backup_label && echo $BACKUPDIR >> {}",
        shown.display()
    );
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let builder = Site::builder()
        .cluster(cluster)
        .standby_set("keep_backups", "2")
        .standby_set("keep_minimum_age", "0");
    let mut site = archiving(builder.standby_set("archive_command", &command));
    for _ in 0..2 {
        site.cluster().switch_wal();
        site.master_command(&["backup"]).succeed();
    }
    assert_eq!(beside(&site), ["data.master", "data.master.0"]);
    assert!(!shown.exists());
    let oldest = |site: &Site| site.archived_names().first().cloned().unwrap();
    let before = oldest(&site);
    let said = site.master_command(&["backup"]).succeed();
    assert!(said.contains("1 old sets and"), "{said}");
    assert_eq!(beside(&site), ["data.master", "data.master.0"]);
    let path = site.archive_folder().join("data.master.1");
    let expected = format!("{}\n", path.display());
    assert_eq!(std::fs::read_to_string(&shown).unwrap(), expected);
    assert!(oldest(&site) > before);
    // One that fails keeps everything, says so, and costs nobody a backup.
    site.standby_set("archive_command", "echo no tape >&2; exit 1");
    site.receiver.signal(rustix::process::Signal::HUP);
    site.receiver.wait_for_log("settings");
    let output = site.master_command(&["backup"]);
    output.succeed();
    assert!(output.stderr.contains("no tape"), "{}", output.stderr);
    assert_eq!(
        beside(&site),
        ["data.master", "data.master.0", "data.master.1"]
    );
    verify(&site, &newest(&site));
}

#[test]
fn configuration_files_beside_the_data_directory_are_kept() {
    skip_unless!(Cluster::available(15));
    let elsewhere = TempDir::new();
    let hba = elsewhere.write(
        "pg_hba.conf",
        "local all all trust\nhost all all 127.0.0.1/32 trust\n",
    );
    let cluster = Cluster::builder().conf("archive_mode", "on");
    let cluster = cluster.conf("hba_file", &hba.display().to_string()).start();
    let kept = elsewhere.create_dir("kept");
    let builder = Site::builder().cluster(cluster);
    let mut site = archiving(builder.standby_set("config_backup", &kept.display().to_string()));
    let listed = site.master_command(&["-n", "backup"]).succeed();
    assert!(
        listed.contains(&format!("would send {} as pg_hba.conf", hba.display())),
        "{listed}"
    );
    assert_eq!(beside(&site), [""; 0]);
    site.master_command(&["backup"]).succeed();
    let copy = std::fs::read(kept.join("pg_hba.conf")).unwrap();
    assert_eq!(copy, std::fs::read(&hba).unwrap());
    assert!(
        !kept.join("postgresql.conf").exists() && newest(&site).join("postgresql.conf").exists()
    );
    fault_107_a_changed_copy_is_named_and_not_restored(&mut site, &kept);
}

/// The copies are those of the newest backup.
fn fault_107_a_changed_copy_is_named_and_not_restored(site: &mut Site, kept: &Path) {
    let path = kept.join("pg_hba.conf");
    let mut spoilt = std::fs::read(&path).unwrap();
    spoilt[3] ^= 0x20;
    std::fs::write(&path, &spoilt).unwrap();
    let (data, own) = (site.home().join("replaying"), site.home().join("own"));
    site.standby_set("slave_data", &data.display().to_string());
    site.standby_set("slave_config_dir", &own.display().to_string());
    site.standby_set("slave_start_cmd", "");
    let refused = site.standby_command(&["restore", "data.master"]);
    refused.fail_last(1, "pg_hba.conf differs from its checksum in");
    assert!(!data.exists() && !own.exists());
    let status = site.standby_command(&["status"]);
    assert!(
        status.stdout.contains("differs from its checksum in"),
        "{}",
        status.stdout
    );
    site.master_command(&["backup"]).succeed();
    site.standby_command(&["restore", "data.master"]).succeed();
    assert!(own.join("pg_hba.conf").exists() && !own.join(LIST_NAME).exists());
}

#[test]
fn fault_70_a_disk_that_fills_costs_the_new_set_only() {
    skip_unless!(Cluster::available(15));
    let disk = skip_unless!(LoopFs::create(FileSystem::Ext4, 96));
    crate::support::place::give_to_server(disk.path());
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let folder = disk.path().join("archive");
    let mut site = archiving(Site::builder().cluster(cluster).archive(&folder));
    site.master_command(&["backup"]).succeed();
    site.cluster().psql(
        "CREATE TABLE filler AS SELECT repeat(md5(n::text), 50) FROM generate_series(1, 40000) n",
    );
    let full = site.master_command(&["backup"]);
    full.fail_last(1, "space");
    wait_for("the removal", Duration::from_secs(30), || {
        (beside(&site) == ["data.master"]).then_some(())
    });
    verify(&site, &newest(&site));
    assert!(site.receiver.is_running());
}

#[test]
fn fault_71_a_server_that_replays_is_no_master() {
    skip_unless!(Cluster::available(15));
    let mut site = site();
    let signal = site.data().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    crate::support::place::give_to_server(&signal);
    site.cluster_mut().restart();
    site.master_command(&["backup"])
        .fail_last(2, "the server is a standby");
    assert_eq!(beside(&site), [""; 0]);
}

#[test]
fn without_archiving_a_backup_is_not_begun() {
    skip_unless!(Cluster::available(15));
    let site = Site::builder().cluster(Cluster::builder().start()).build();
    site.master_command(&["backup"])
        .fail_last(2, "archive_mode is off");
    assert_eq!(beside(&site), [""; 0]);
}
