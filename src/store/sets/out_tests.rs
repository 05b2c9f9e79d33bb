//! Sets that are copied, moved away and put back, alone and while others rotate and expire.
//! Never starts a server. Invariant: a copy is one whole version, whatever goes on meanwhile.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::testing::{
    back_up, keep, lease, leftovers, prepare, real_sets, versions, wal_proof, whole_version,
};
use super::{BackupSets, Copying, HeldSet, SetError};
use crate::store::testing::scratch_folder;

fn newest(sets: &BackupSets) -> Result<HeldSet, SetError> {
    sets.hold(sets.newest())
}

fn copy(held: &HeldSet, to: &Path) -> Result<u64, SetError> {
    let mut copied_bytes = 0;
    held.copy(Copying {
        to,
        control_name: "pg_control.copied",
        tablespaces: &BTreeMap::new(),
        shares: false,
        taken: None,
        progress: &mut |bytes| {
            copied_bytes += bytes;
            true
        },
    })?;
    Ok(copied_bytes)
}

/// The version of a copy, once it got what a copy lacks.
fn version_of_copy(copy: &Path) -> Result<u8, String> {
    let control = copy.join("global/pg_control");
    assert!(!control.exists(), "PostgreSQL could start from it");
    std::fs::rename(copy.join("global/pg_control.copied"), &control).unwrap();
    std::fs::create_dir(copy.join("pg_tblspc")).ok();
    let link = copy.join("pg_tblspc/16385");
    std::os::unix::fs::symlink("../tmpspc/16385", link).unwrap();
    whole_version(copy)
}

#[test]
fn a_copy_is_whole_but_for_the_name_of_its_control_file_and_the_set_stays() {
    let folder = scratch_folder();
    let root = folder.path();
    prepare(root);
    let sets = real_sets(root);
    back_up(&sets, &lease(&sets).unwrap(), 7, &wal_proof(root)).unwrap();
    let held = newest(&sets).unwrap();
    let size = held.size().unwrap();
    let spaces = size.tablespaces.iter();
    let spaces: Vec<(&[u8], u64)> = spaces
        .map(|(oid, bytes)| (oid.as_bytes(), *bytes))
        .collect();
    assert_eq!(spaces, [(&b"16385"[..], 513)]);
    let to = root.join("copy");
    assert_eq!(copy(&held, &to).unwrap(), size.bytes + 513);
    assert_eq!(version_of_copy(&to), Ok(7));
    copy(&held, &to).unwrap_err();
    assert_eq!(versions(root).unwrap(), [("data.master".to_owned(), 7)]);
}

#[test]
fn fault_126_a_link_for_data_within_a_set_is_refused_by_all_who_read_it() {
    let folder = scratch_folder();
    let root = folder.path();
    prepare(root);
    let sets = real_sets(root);
    back_up(&sets, &lease(&sets).unwrap(), 7, &wal_proof(root)).unwrap();
    let held = newest(&sets).unwrap();
    // Nobody needs the manifest to see it.
    std::fs::remove_file(held.path().join("backup_manifest")).unwrap();
    let aside = root.join("aside");
    let names = ["tmpspc/16385", "tmpspc", "base/1/1259", "base/1", "base"];
    for (round, name) in names.into_iter().enumerate() {
        let path = held.path().join(name);
        std::fs::rename(&path, &aside).unwrap();
        std::os::unix::fs::symlink(&aside, &path).unwrap();
        let refused = [
            held.size().map(drop),
            held.stream(0, &mut |_| true).map(drop),
            copy(&held, &root.join(round.to_string())).map(drop),
        ];
        for refused in refused {
            let said = refused.unwrap_err().to_string();
            assert!(said.contains(name) && said.contains("a link to"), "{said}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
    }
    // What a restore makes anew, or an administrator keeps there.
    for name in ["pg_wal", "log", "server.crt", "pg_hba.conf"] {
        let path = held.path().join(name);
        let _ = std::fs::remove_dir_all(&path);
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink("/nowhere", path).unwrap();
    }
    held.size().unwrap();
    copy(&held, &root.join("good")).unwrap();
}

#[test]
fn fault_68_a_copy_of_what_the_manifest_does_not_list_fails() {
    let folder = scratch_folder();
    let root = folder.path();
    prepare(root);
    let sets = real_sets(root);
    back_up(&sets, &lease(&sets).unwrap(), 7, &wal_proof(root)).unwrap();
    let held = newest(&sets).unwrap();
    let space = "tmpspc/16385/PG_15_202209061/5/16390";
    for (round, name) in ["base/1/1259", space, "backup_label", "backup_manifest"]
        .into_iter()
        .enumerate()
    {
        let path = held.path().join(name);
        let good = std::fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        let said = copy(&held, &root.join(round.to_string())).unwrap_err();
        assert!(said.to_string().contains(name), "{said}");
        std::fs::write(&path, good).unwrap();
    }
    std::fs::rename(held.path().join("base/1/empty"), root.join("empty")).unwrap();
    let said = copy(&held, &root.join("less")).unwrap_err();
    assert!(said.to_string().contains("base/1/empty"), "{said}");
    std::fs::rename(root.join("empty"), held.path().join("base/1/empty")).unwrap();
    std::fs::write(held.path().join("base/1/more"), "").unwrap();
    let said = copy(&held, &root.join("more")).unwrap_err();
    assert!(said.to_string().contains("base/1/more"), "{said}");
}

#[test]
fn a_tablespace_is_copied_to_where_it_is_mapped() {
    let folder = scratch_folder();
    let root = folder.path();
    prepare(root);
    let sets = real_sets(root);
    back_up(&sets, &lease(&sets).unwrap(), 7, &wal_proof(root)).unwrap();
    let space = root.join("space");
    std::fs::create_dir(&space).unwrap();
    let to = root.join("copy");
    let copying = Copying {
        to: &to,
        control_name: "x",
        tablespaces: &BTreeMap::from([("16385".into(), space.clone())]),
        shares: true,
        taken: None,
        progress: &mut |_| true,
    };
    newest(&sets).unwrap().copy(copying).unwrap();
    let file = space.join("PG_15_202209061/5/16390");
    assert_eq!(std::fs::read(file).unwrap(), [7; 513]);
    assert!(!to.join("tmpspc/16385").exists());
}

#[test]
fn a_set_that_is_moved_is_listed_no_more_until_it_is_put_back() {
    let folder = scratch_folder();
    let root = folder.path();
    prepare(root);
    let (sets, wal) = (real_sets(root), wal_proof(root));
    let lease = lease(&sets).unwrap();
    for version in [1, 2] {
        back_up(&sets, &lease, version, &wal).unwrap();
    }
    let to = root.join("away");
    assert!(
        sets.take(sets.newest())
            .unwrap()
            .move_to(&to)
            .unwrap()
            .is_none()
    );
    assert_eq!(versions(root).unwrap(), [("data.master.0".to_owned(), 1)]);
    assert_eq!(whole_version(&to), Ok(2));
    sets.put_back(&to, sets.newest()).unwrap();
    assert_eq!(versions(root).unwrap().len(), 2);
    // A name that is taken stays whose it is, on either side.
    std::fs::create_dir(&to).unwrap();
    let taken = sets.take(sets.newest()).unwrap();
    assert!(taken.move_to(&to).is_err());
    assert!(sets.put_back(&to, sets.newest()).is_err());
    let taken = sets.take(sets.newest()).unwrap();
    sets.discard(taken).unwrap();
    assert_eq!(versions(root).unwrap(), [("data.master.0".to_owned(), 1)]);
    assert_eq!(leftovers(root), [""; 0]);
}

#[test]
fn fault_84_copies_and_moves_beside_backups_and_expiries_are_whole() {
    const ROUNDS: u8 = 60;
    const PAUSE: Duration = Duration::from_millis(5);
    let folder = scratch_folder();
    let root = folder.path();
    prepare(root);
    let (sets, wal) = (real_sets(root), wal_proof(root));
    let (copies, moves) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done = AtomicUsize::new(0);
    let is_busy = |error: &SetError| {
        let expected = matches!(error, SetError::Busy { .. } | SetError::Absent { .. });
        assert!(expected, "{error}");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for version in 1..=ROUNDS {
                let made = lease(&sets).and_then(|lease| {
                    back_up(&sets, &lease, version, &wal)?;
                    sets.expire(&lease, keep(2), &mut |_| Ok(()))
                });
                if made.is_err() {
                    done.store(1, Ordering::SeqCst);
                }
                made.unwrap();
            }
            done.store(1, Ordering::SeqCst);
        });
        scope.spawn(|| {
            while done.load(Ordering::SeqCst) == 0 {
                let to = root.join(format!("copy-{}", copies.fetch_add(1, Ordering::SeqCst)));
                match newest(&sets).and_then(|held| copy(&held, &to)) {
                    Ok(_) => assert!(version_of_copy(&to).unwrap() <= ROUNDS),
                    Err(error) => is_busy(&error),
                }
                std::thread::sleep(PAUSE);
            }
        });
        scope.spawn(|| {
            while done.load(Ordering::SeqCst) == 0 {
                let to = root.join(format!("moved-{}", moves.load(Ordering::SeqCst)));
                match sets
                    .take(sets.newest())
                    .and_then(|taken| taken.move_to(&to))
                {
                    Ok(_) => {
                        moves.fetch_add(1, Ordering::SeqCst);
                        whole_version(&to).unwrap();
                        // Its name may be another's by now.
                        let _ = sets.put_back(&to, sets.newest());
                    }
                    Err(error) => is_busy(&error),
                }
                std::thread::sleep(PAUSE);
            }
        });
        scope.spawn(|| {
            while done.load(Ordering::SeqCst) == 0 {
                for set in sets.list().unwrap() {
                    set.label.unwrap();
                }
                std::thread::sleep(PAUSE);
            }
        });
    });
    let (copies, moves) = (copies.into_inner(), moves.into_inner());
    assert!(copies > 3 && moves > 3, "{copies} {moves}");
    versions(root).unwrap();
    assert_eq!(leftovers(root), [""; 0]);
}
