//! `xlock` and `xrelease`: who is kept out, what the lock outlives, and what ends it.
//! Never sets a clock. Invariant: a lock that `xlock` reported is there until `xrelease`.

use std::fs::File;

use super::*;
use crate::support::loopfs::TmpFs;
use crate::support::place::{give_to_server, server_user};

#[test]
fn fault_164_a_lock_by_hand_outlives_restarts_until_xrelease() {
    skip_unless!(Cluster::available(15));
    let mut site = archiving(Site::builder());
    let data = site.home().join("standby-data");
    site.standby_set("slave_data", &data.display().to_string());
    site.master_command(&["backup"]).succeed();
    let lock = site.completed_wals().join("BACKUPLOCK");
    site.standby_command(&["xlock", "-n"]).succeed();
    assert!(!lock.exists());
    site.standby_command(&["xlock"]).succeed();
    let refused = |site: &Site| {
        let held = ["by hand, since", "xrelease"];
        says(&site.master_command(&["backup"]), 1, &held);
        for words in [
            &["xlock"][..],
            &["xlock", "-n"],
            &["xrotate"],
            &["xrotate", "-n"],
            &["xpurgewals"],
            &["restore"],
        ] {
            says(&site.standby_command(words), 1, &held);
        }
        assert_eq!(beside(site), ["data.master"]);
        assert!(lock.exists() && !data.exists());
    };
    refused(&site);
    site.receiver.kill9();
    site.start_receiver();
    refused(&site);
    let status = site.standby_command(&["status"]);
    assert_eq!(status.code, Some(0), "{}", status.stdout);
    assert!(status.stdout.contains("locked: "), "{}", status.stdout);
    let json = site.standby_command(&["status", "--json"]).succeed();
    assert!(json.contains("\"sets_locked_by\":\""), "{json}");
    // Archiving and whoever only reads go on.
    site.cluster().switch_wal();
    crate::load::drain(&site);
    site.standby_command(&["listbackups"]).succeed();
    let place = site.home().join("copied");
    let words = ["restore", "data.master", place.to_str().unwrap()];
    site.standby_command(&words).succeed();
    site.standby_command(&["xrelease", "-n"]).succeed();
    assert!(lock.exists());
    site.standby_command(&["xrelease"]).succeed();
    assert!(!lock.exists());
    says(
        &site.standby_command(&["xrelease"]),
        0,
        &["not locked by hand"],
    );
    site.master_command(&["backup"]).succeed();
    // Without a receiver it is the same.
    site.receiver.stop();
    site.standby_command(&["xlock"]).succeed();
    says(&site.standby_command(&["xrotate"]), 1, &["by hand, since"]);
    site.standby_command(&["xrelease"]).succeed();
    site.standby_command(&["xrotate"]).succeed();
    assert_eq!(
        beside(&site),
        ["copied.restored", "data.master.0", "data.master.1"][1..]
    );
}

#[test]
fn fault_164_a_lock_that_a_process_holds_is_not_released() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    let path = site.completed_wals().join("BACKUPLOCK");
    fs::write(&path, "db1, since a moment ago\n").unwrap();
    give_to_server(&path);
    let held = File::open(&path).unwrap();
    held.try_lock().unwrap();
    says(
        &site.standby_command(&["xrelease"]),
        1,
        &["db1, since a moment ago"],
    );
    says(
        &site.standby_command(&["xlock"]),
        1,
        &["db1, since a moment ago"],
    );
    assert!(path.exists());
    drop(held);
    // What a dead process left is nobody's.
    site.standby_command(&["xlock"]).succeed();
    site.standby_command(&["xrelease"]).succeed();
    assert!(!path.exists());
}

#[test]
fn fault_164_another_users_lock_is_released_by_force_only() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    let path = site.completed_wals().join("BACKUPLOCK");
    let note = "daemon by hand, since 2026-01-31 17:45:00 UTC\nwalmgr xlock 1 1769877900000\n";
    fs::write(&path, note).unwrap();
    give_to_server(&path);
    let refused = site.standby_command(&["xrelease"]);
    says(&refused, 1, &["daemon by hand", "xrelease --force"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), note);
    let status = site.standby_command(&["status"]);
    assert!(status.stdout.contains("xrelease"), "{}", status.stdout);
    site.standby_command(&["xrelease", "--force"]).succeed();
    assert!(!path.exists());
}

#[test]
fn fault_164_a_killed_xlock_or_xrelease_leaves_a_lock_or_none() {
    skip_unless!(Strace::available());
    let _user = skip_unless!(server_user());
    let mut site = Site::start();
    site.receiver.stop();
    let path = site.completed_wals().join("BACKUPLOCK");
    for call in CHANGES {
        for count in 1..CALLS_MAX {
            let killed = killed_at(&site, &["xlock"], call, count);
            assert!(killed || path.exists(), "{call} {count}");
            let killed_too = killed_at(&site, &["xrelease"], call, count);
            assert!(killed_too || !path.exists(), "{call} {count}");
            site.standby_command(&["xrelease"]).succeed();
            assert!(!path.exists(), "{call} {count}");
            if !killed && !killed_too {
                break;
            }
        }
    }
    site.standby_command(&["xlock"]).succeed();
}

#[test]
fn fault_164_on_a_full_disk_xlock_fails_and_leaves_no_lock() {
    let _user = skip_unless!(server_user());
    let disk = skip_unless!(TmpFs::create(1_024, 1_000));
    let archive = disk.path().join("archive");
    fs::create_dir(&archive).unwrap();
    give_to_server(&archive);
    let mut site = Site::builder().archive(&archive).build();
    site.receiver.stop();
    let filler = disk.path().join("filler");
    let _ = fs::write(&filler, vec![1_u8; 2 << 20]);
    says(&site.standby_command(&["xlock"]), 1, &["BACKUPLOCK"]);
    assert!(!site.completed_wals().join("BACKUPLOCK").exists());
    fs::remove_file(&filler).unwrap();
    site.standby_command(&["xlock"]).succeed();
}
