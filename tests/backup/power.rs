//! Backups that are built on an older set, while the standby's power is cut.
//! Never waits for a good moment. Invariant tested: each set that is listed behind the cut is whole, the older one with it, and
//! a backup that has ended well is there.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::incremental::{changed_site_on, sealed};
use super::{newest, verify};
use crate::support::dice::Dice;
use crate::support::loopfs::{FileSystem, LoopFs};
use crate::support::{Cluster, Output, Site, rounds};

fn cut_everywhere(kind: FileSystem) {
    skip_unless!(Cluster::available(15));
    let mut disk = skip_unless!(LoopFs::create(kind, 1500));
    let mut site = changed_site_on(&disk);
    site.standby_set("keep_backups", "2");
    site.standby_set("keep_minimum_age", "0");
    let begun = Instant::now();
    let said = site.master_command(&["backup"]).succeed();
    assert!(said.contains("incremental, built on data.master"), "{said}");
    let whole_ms = u64::try_from(begun.elapsed().as_millis()).unwrap();
    let mut dice = Dice::thrown("power cuts below an incremental backup");
    let (mut ended_well, mut incremental) = (0, 0);
    // A hundred on both file systems together; what ended before the cut counts for nothing.
    let wanted = rounds(3, 50);
    let (mut hits, mut cuts) = (0, 0);
    while hits < wanted {
        cuts += 1;
        assert!(cuts < 4 * wanted + 10, "{hits} hits in {cuts} cuts");
        let change = format!("UPDATE pgbench_accounts SET abalance = {cuts} WHERE aid < 6000");
        site.cluster().psql(&change);
        let mut backup = site.master_walmgr(&["backup"]);
        let backup = backup.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut backup = backup.stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(dice.below(whole_ms * 6 / 5)));
        if dice.once_in(2) {
            disk.sync_unrelated_file();
        }
        hits += u64::from(backup.try_wait().unwrap().is_none());
        disk.power_cut();
        site.receiver.kill9();
        disk.remount();
        verify_all(&site);
        site.start_receiver();
        // It ends by itself, or goes on with the receiver that is there again.
        let said = Output::from(backup.wait_with_output().unwrap());
        verify_all(&site);
        if said.code == Some(0) {
            ended_well += 1;
            incremental += u32::from(said.stdout.contains("incremental, built on"));
            let start = site.listed_sets()[0]["start_lsn"]
                .as_str()
                .unwrap()
                .to_owned();
            assert!(
                said.stdout.contains(&format!("WAL from {start} to ")),
                "cut {cuts}: {said:?}"
            );
        }
    }
    println!(
        "{kind:?}: {cuts} power cuts, {hits} below a backup, {ended_well} backups ended well, {incremental} of them incremental"
    );
    site.master_command(&["backup"]).succeed();
    verify(&site, &newest(&site));
}

fn verify_all(site: &Site) {
    let sets = sealed(site);
    assert!(!sets.is_empty());
    for set in sets {
        verify(site, &site.archive_folder().join(&set));
    }
}

#[test]
fn fault_209_power_cuts_below_an_incremental_backup_keep_all_sets_on_xfs() {
    cut_everywhere(FileSystem::Xfs);
}

#[test]
fn fault_209_power_cuts_below_an_incremental_backup_keep_all_sets_on_ext4() {
    cut_everywhere(FileSystem::Ext4);
}
