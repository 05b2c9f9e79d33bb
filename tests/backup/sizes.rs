//! What the sets take on the disk, as the standby lists it while sets come and go.
//! Never believes a manifest about blocks: the file system shares them or does not. Invariant: what is a set's own is
//! what its removal would free.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use super::incremental::changed_site_on;
use crate::support::loopfs::{FileSystem, LoopFs};
use crate::support::{Cluster, Site, wait_for};

const PATIENCE: Duration = Duration::from_secs(90);

/// The size of each set and what is its own, the newest first.
fn sizes(site: &Site) -> Vec<(u64, Option<u64>)> {
    let listed = site.standby_command(&["listbackups", "--json"]).succeed();
    let sets: Value = serde_json::from_str(&listed).unwrap();
    let sets = sets.as_array().unwrap().iter();
    sets.map(|set| {
        (
            set["size_bytes"].as_u64().unwrap(),
            set["own_bytes"].as_u64(),
        )
    })
    .collect()
}

#[test]
fn fault_225_what_is_a_sets_own_follows_what_sets_share() {
    skip_unless!(Cluster::available(15));
    let disk = skip_unless!(LoopFs::create(FileSystem::Xfs, 1500));
    let site = changed_site_on(&disk);
    let [(size, Some(own))] = sizes(&site)[..] else {
        panic!("{:?}", sizes(&site));
    };
    assert!(own > size * 9 / 10, "{own} of {size}");
    let said = site.master_command(&["backup"]).succeed();
    assert!(said.contains("incremental, built on data.master"), "{said}");
    // At once of the newest, since who made it looks; of the other in a while.
    let newest = sizes(&site)[0];
    assert!(newest.1.unwrap() < newest.0 / 3, "{newest:?}");
    let shared = wait_for("the older set to share", PATIENCE, || {
        let older = sizes(&site)[1];
        (older.1.unwrap() < older.0 / 3).then_some(older)
    });
    println!("sharing: {newest:?} {shared:?}");
    let status: Value =
        serde_json::from_str(&site.standby_command(&["status", "--json"]).stdout).unwrap();
    let standby = &status["standby"];
    let (all, own) = (&standby["sets_size_bytes"], &standby["sets_own_bytes"]);
    assert_eq!(all.as_u64(), Some(newest.0 + shared.0));
    assert!(own.as_u64().unwrap() < newest.0, "{own}");
    let verbose = site.standby_command(&["-v", "listbackups"]).succeed();
    assert!(verbose.contains(" Own "), "{verbose}");
    // By hand, as an administrator may.
    fs::remove_dir_all(site.archive_folder().join("data.master.0")).unwrap();
    wait_for("the newest set to have its blocks alone", PATIENCE, || {
        let left = sizes(&site);
        (left.len() == 1 && left[0].1.unwrap() > left[0].0 * 9 / 10).then_some(())
    });
}

#[test]
fn fault_225_where_nothing_can_be_shared_all_of_a_set_is_its_own() {
    skip_unless!(Cluster::available(15));
    let disk = skip_unless!(LoopFs::create(FileSystem::Ext4, 900));
    let site = changed_site_on(&disk);
    let first = sizes(&site)[0];
    site.master_command(&["backup"]).succeed();
    let both = sizes(&site);
    assert_eq!(both[1].1, first.1);
    for (size, own) in both {
        assert!(own.unwrap() > size * 9 / 10, "{own:?} of {size}");
    }
}
