//! Backup sets cut after every operation, by a kill and by a power cut, and with syncs taken out.
//! Never needs root: the power cut is a model. Invariant tested: every sealed set is there once,
//! whole and in its order; nothing else is listed; the next backup needs no hand.

use std::path::Path;
use std::sync::Arc;

use super::testing::{
    back_up, back_up_incrementally, keep, lease, leftovers, prepare, real_sets, sets, versions,
    wal_proof, whole_version,
};
use walmgr_protocol::names::BackupName;

use super::error::SetError;
use super::{BackupSets, PinnedWal, SetPin};
use crate::store::testing::{FaultyDisk, PowerCutDisk, scratch_folder};
use crate::store::{Disk, DurableWal};

/// What a run may count on when it was cut.
#[derive(Debug, Default)]
struct Run {
    /// Versions that have to be there, newest first.
    required: Vec<u8>,
    /// Versions that may be there, newest first; the required ones are among them.
    possible: Vec<u8>,
}

type Scenario = dyn Fn(&Path, &DurableWal, &Arc<dyn Disk>) -> Run;

/// Two sets, versions 2 and 1.
fn prepare_two_sets(root: &Path) -> DurableWal {
    prepare(root);
    let wal = wal_proof(root);
    let sets = real_sets(root);
    let lease = lease(&sets).unwrap();
    for version in 1..=2 {
        back_up(&sets, &lease, version, &wal).unwrap();
    }
    wal
}

fn run(required: &[u8], possible: &[u8]) -> Run {
    Run {
        required: required.to_vec(),
        possible: possible.to_vec(),
    }
}

/// A third set arrives and is sealed.
fn third_backup(root: &Path, wal: &DurableWal, disk: &Arc<dyn Disk>) -> Run {
    third(sets(root, disk).and_then(|sets| {
        let lease = lease(&sets)?;
        back_up(&sets, &lease, 3, wal)
    }))
}

/// A third set that is built on the second arrives and is sealed.
fn third_backup_on_the_second(root: &Path, wal: &DurableWal, disk: &Arc<dyn Disk>) -> Run {
    third(sets(root, disk).and_then(|sets| {
        let lease = lease(&sets)?;
        back_up_incrementally(&sets, &lease, 3, wal)
    }))
}

fn third(sealed: Result<BackupName, SetError>) -> Run {
    match sealed {
        Ok(_) => run(&[3, 2, 1], &[3, 2, 1]),
        Err(_) => run(&[2, 1], &[3, 2, 1]),
    }
}

/// The older of the two sets expires.
fn expiry(root: &Path, _wal: &DurableWal, disk: &Arc<dyn Disk>) -> Run {
    let expired = sets(root, disk).and_then(|sets| {
        let lease = lease(&sets)?;
        sets.expire(&lease, keep(1), &mut |_| Ok(()))
    });
    match expired {
        Ok(_) => run(&[2], &[2]),
        Err(_) => run(&[2], &[2, 1]),
    }
}

/// The older of two sets is pinned, and then would expire: once pinned, it is there after every cut and the next expiry.
#[test]
fn fault_214_a_pinned_set_survives_a_power_cut_at_any_step() {
    let pin = SetPin {
        by: String::new(),
        since_ms: 0,
        note: String::new(),
        wal: PinnedWal::All,
    };
    let (mut cuts, mut after) = (0, 0);
    loop {
        let folder = scratch_folder();
        prepare_two_sets(folder.path());
        let power = PowerCutDisk::new(folder.path());
        let disk = FaultyDisk::over(power.clone());
        disk.freeze_after(after);
        let frozen: Arc<dyn Disk> = disk.clone();
        let expire = |sets: &BackupSets| {
            let lease = lease(sets)?;
            sets.expire(&lease, keep(1), &mut |_| Ok(()))
        };
        let is_pinned = sets(folder.path(), &frozen).and_then(|sets| {
            let oldest = sets.newest().numbered(0).unwrap();
            sets.pin(&oldest, &pin)?;
            // Whatever becomes of this.
            let _ = expire(&sets);
            Ok(())
        });
        let is_frozen = disk.is_frozen();
        for outcome in power.outcomes() {
            cuts += 1;
            let after_cut = scratch_folder();
            power.cut(outcome, after_cut.path());
            expire(&real_sets(after_cut.path())).unwrap();
            let there: Vec<u8> = (versions(after_cut.path()).unwrap().into_iter())
                .map(|(_, version)| version)
                .collect();
            let expected: &[u8] = if is_pinned.is_ok() { &[2, 1] } else { &there };
            assert_eq!(there, expected, "cut after {after}, {outcome:?}");
            assert_eq!(there[0], 2);
        }
        if !is_frozen {
            break;
        }
        after += 1;
    }
    assert!(cuts > 100, "{cuts}");
}

/// Cuts the power after `after` operations, and inspects each state in which the disk may then be. Returns `false` if
/// the run came to its end.
fn cut_once(
    scenario: &Scenario,
    after: usize,
    swallowed_sync: Option<usize>,
    violations: &mut Vec<String>,
    counts: &mut (usize, usize),
) -> bool {
    let folder = scratch_folder();
    let wal = prepare_two_sets(folder.path());
    let power = PowerCutDisk::new(folder.path());
    if let Some(number) = swallowed_sync {
        power.swallow_sync(number);
    }
    let disk = FaultyDisk::over(power.clone());
    disk.freeze_after(after);
    let frozen: Arc<dyn Disk> = disk.clone();
    let run = scenario(folder.path(), &wal, &frozen);
    let is_frozen = disk.is_frozen();
    for outcome in power.outcomes() {
        counts.0 += 1;
        let after_cut = scratch_folder();
        power.cut(outcome, after_cut.path());
        if let Err(what) = inspect(after_cut.path(), &run) {
            violations.push(format!("cut after {after}, {outcome:?}: {what}"));
        }
    }
    counts.1 = power.syncs();
    is_frozen
}

/// Every violation, and how many syncs the whole run makes.
fn cut_everywhere(scenario: &Scenario, swallowed_sync: Option<usize>) -> (Vec<String>, usize) {
    let (mut violations, mut counts) = (Vec::new(), (0, 0));
    // A sync that is missing shows at more than one operation behind it.
    let stride = if swallowed_sync.is_some() { 3 } else { 1 };
    for after in (0..).step_by(stride) {
        if !cut_once(
            scenario,
            after,
            swallowed_sync,
            &mut violations,
            &mut counts,
        ) {
            break;
        }
        // One loss is enough to know that a sync is needed.
        if swallowed_sync.is_some() && !violations.is_empty() {
            break;
        }
    }
    assert!(swallowed_sync.is_some() || counts.0 > 100, "{counts:?}");
    (violations, counts.1)
}

fn inspect(root: &Path, run: &Run) -> Result<(), String> {
    check_listed(root, run)?;
    let sets = real_sets(root);
    let lease = lease(&sets).map_err(|error| error.to_string())?;
    for round in 0..2 {
        let report = sets.recover(&lease).map_err(|error| error.to_string())?;
        if round == 1 && (report.removed > 0 || report.finished_rotation) {
            return Err(format!("the first recovery left something: {report:?}"));
        }
        let listed = check_listed(root, run)?;
        let missing = run
            .required
            .iter()
            .find(|version| !listed.contains(version));
        if let Some(version) = missing {
            return Err(format!("version {version} is gone, {listed:?} are there"));
        }
        match leftovers(root) {
            left if left.is_empty() => {}
            left => return Err(format!("recovery left {left:?}")),
        }
    }
    // The newest has the name without a number.
    whole_version(&root.join("data.master")).map(drop)
}

/// The versions that are listed, newest first: each whole, each once, in order.
fn check_listed(root: &Path, run: &Run) -> Result<Vec<u8>, String> {
    let listed: Vec<u8> = versions(root)?
        .into_iter()
        .map(|(_, version)| version)
        .collect();
    let is_ordered = listed.windows(2).all(|pair| pair[0] > pair[1]);
    let is_known = listed.iter().all(|version| run.possible.contains(version));
    match is_ordered && is_known {
        true => Ok(listed),
        false => Err(format!("{listed:?} are listed")),
    }
}

#[test]
fn fault_69_backup_and_rotation_survive_a_power_cut_at_any_step() {
    let (violations, _) = cut_everywhere(&third_backup, None);
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn fault_209_an_incremental_backup_survives_a_power_cut_at_any_step() {
    let (violations, _) = cut_everywhere(&third_backup_on_the_second, None);
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn fault_69_an_expiry_survives_a_power_cut_after_every_operation() {
    let (violations, _) = cut_everywhere(&expiry, None);
    assert!(violations.is_empty(), "{violations:#?}");
}

fn needed_syncs(scenario: &Scenario) -> Vec<usize> {
    let (mut violations, mut counts) = (Vec::new(), (0, 0));
    let uncut = 1 << 20;
    cut_once(scenario, uncut, None, &mut violations, &mut counts);
    (0..counts.1)
        .filter(|number| !cut_everywhere(scenario, Some(*number)).0.is_empty())
        .collect()
}

#[test]
fn the_cuts_notice_each_sync_missing_from_a_backup() {
    // 1 is syncfs, then manifest, label, the set's directory and the intent; 9 is the label's last
    // name. In this model the changes of one directory arrive in their order, as on ext4 and XFS,
    // so each rename beside the sets is covered by the sync behind the next one.
    assert_eq!(needed_syncs(&third_backup), [1, 2, 3, 4, 5, 9]);
}

#[test]
fn the_cuts_notice_each_sync_missing_from_an_expiry() {
    // The directory above, before the first file of the set is removed.
    assert_eq!(needed_syncs(&expiry), [1]);
}

/// FAULTS 69: kills alone, one in the rotation and one in each attempt to finish it.
#[test]
fn fault_69_a_rotation_killed_again_and_again_ends_with_the_same_sets() {
    for first_kill in 0.. {
        let folder = scratch_folder();
        let wal = prepare_two_sets(folder.path());
        let disk = FaultyDisk::over(Arc::new(crate::store::RealDisk));
        disk.freeze_after(first_kill);
        let frozen: Arc<dyn Disk> = disk.clone();
        let run = third_backup(folder.path(), &wal, &frozen);
        // Each start gets one operation further than the one before it.
        let is_sealed = folder.path().join(".data.master.intent").exists();
        for operations in 0..if is_sealed { usize::MAX } else { 0 } {
            let disk = FaultyDisk::over(Arc::new(crate::store::RealDisk));
            disk.freeze_after(operations);
            let frozen: Arc<dyn Disk> = disk.clone();
            let recovered = sets(folder.path(), &frozen)
                .and_then(|sets| sets.recover(&*lease(&sets)?).map(drop));
            check_listed(folder.path(), &run).unwrap();
            if recovered.is_ok() {
                break;
            }
        }
        inspect(folder.path(), &run).unwrap();
        let listed = check_listed(folder.path(), &run).unwrap();
        assert!(
            !is_sealed || listed == [3, 2, 1],
            "{first_kill}: {listed:?}"
        );
        if !disk.is_frozen() {
            assert!(first_kill > 60, "{first_kill}");
            return;
        }
    }
}
