//! The archive cut after every single operation, and the same with one sync taken out.
//! Never needs root: the power cut is a model. Invariant tested: what was acknowledged is there
//! and the same, and nothing torn has a final name.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use walmgr_protocol::message::partial::Open;
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName};
use walmgr_protocol::session::partial::ProofOfRecords;

use super::compress::Compressor;
use super::partial::acknowledged::write_under_another_boot;
use super::testing::{
    BINDING, FaultyDisk, Op, PowerCutDisk, Sample, history_file, new_archive, places, push,
    scratch_folder, segment,
};
use super::{
    Archive, ArchiveFolders, Damage, Disk, FileSealed, Freeze, PartialWals, RealDisk, StoreError,
    StoredUnderName,
};
use crate::config::StoreCompression;
use crate::wal::segment::Verify;
use crate::wal::writer::WalWriter;

/// What a run did before it was cut.
#[derive(Debug, Default)]
struct Run {
    acknowledged: Vec<Sample>,
    offered: Vec<Sample>,
    is_set_up: bool,
    is_bound: bool,
    /// Bytes of the first file offered that were acknowledged record by record.
    held_bytes: usize,
    /// What was frozen of it, and said to be.
    frozen: Option<Freeze>,
    /// Somebody else wrote under a final name, without our care.
    has_copied_files: bool,
}

/// How a run is disturbed.
#[derive(Debug, Clone, Copy)]
struct Cut {
    after: usize,
    swallowed_sync: Option<usize>,
}

/// What every run ends with: the cuts it went through, the syncs it made, what it violated.
struct Verdict {
    cuts: usize,
    syncs: usize,
    violations: Vec<String>,
}

type Scenario = dyn Fn(&Path, Arc<dyn Disk>) -> Run;

/// Runs the scenario again and again, stops it one operation later each time, and looks at every
/// state that a power cut at that moment could leave.
fn cut_everywhere(
    prepare: &dyn Fn(&Path),
    scenario: &Scenario,
    swallowed_sync: Option<usize>,
) -> Verdict {
    let mut verdict = Verdict {
        cuts: 0,
        syncs: 0,
        violations: Vec::new(),
    };
    for after in 0.. {
        let cut = Cut {
            after,
            swallowed_sync,
        };
        if !cut_once(prepare, scenario, cut, &mut verdict) {
            return verdict;
        }
    }
    unreachable!("some run is never frozen");
}

fn cut_once(prepare: &dyn Fn(&Path), scenario: &Scenario, cut: Cut, verdict: &mut Verdict) -> bool {
    let folder = scratch_folder();
    prepare(folder.path());
    let power = PowerCutDisk::new(folder.path());
    if let Some(number) = cut.swallowed_sync {
        power.swallow_sync(number);
    }
    let disk = FaultyDisk::over(power.clone());
    disk.freeze_after(cut.after);
    let run = scenario(folder.path(), disk.clone());
    for outcome in power.outcomes() {
        verdict.cuts += 1;
        let after = scratch_folder();
        power.cut(outcome, after.path());
        if run.is_set_up {
            // The model cannot boot the kernel anew.
            write_under_another_boot(&places(after.path()).partial_wals);
        }
        if let Err(what) = inspect(after.path(), &run) {
            verdict
                .violations
                .push(format!("{cut:?} {outcome:?}: {what}"));
        }
    }
    verdict.syncs = power.syncs();
    disk.is_frozen()
}

/// Checks the directory as the cut left it, then what recovery makes of it, twice.
fn inspect(root: &Path, run: &Run) -> Result<(), String> {
    let places = places(root);
    if !run.has_copied_files {
        nothing_is_torn(&places.completed_wals, run)?;
    }
    if run.is_bound {
        for folder in [&places.completed_wals, &places.partial_wals] {
            let marker = std::fs::read_to_string(folder.join(".walmgr-archive"));
            let marker = marker.map_err(|error| error.to_string())?;
            if !marker.contains(&BINDING.system_id.to_string()) {
                return Err(format!("the binding is gone from {}", folder.display()));
            }
        }
    }
    if !run.is_set_up {
        Archive::create(&places, Arc::new(RealDisk)).map_err(|error| error.to_string())?;
    }
    for round in 0..2 {
        let archive =
            Archive::open(&places, Arc::new(RealDisk)).map_err(|error| error.to_string())?;
        if round == 1 && archive.recovery().temporaries_removed > 0 {
            return Err("the first recovery left temporaries".to_owned());
        }
        let report = archive.recovery();
        // What somebody copied in and a power cut tore is reported, and was never acknowledged.
        let is_sound = report.set_aside.is_empty() && report.damaged.is_empty();
        if !run.has_copied_files && !is_sound {
            return Err(format!("damaged: {report:?}"));
        }
        let ahead = |damage: &&Damage| damage.acknowledged().is_some();
        if let Some(damage) = report.damaged_partials.iter().find(ahead) {
            return Err(format!("noted before it was durable: {damage}"));
        }
        archive.bind(&BINDING).map_err(|error| error.to_string())?;
        everything_acknowledged_is_there(&archive, run)?;
    }
    what_was_acknowledged_of_a_segment_is_there(&places, run)?;
    what_was_frozen_is_served(&places, run)?;
    let archive = Archive::open(&places, Arc::new(RealDisk)).map_err(|error| error.to_string())?;
    for sample in &run.offered {
        match push(&archive, sample) {
            Ok(FileSealed::Stored(_)) => {}
            other => return Err(format!("{} offered again: {other:?}", sample.name)),
        }
    }
    Ok(())
}

fn nothing_is_torn(completed_wals: &Path, run: &Run) -> Result<(), String> {
    let Ok(entries) = std::fs::read_dir(completed_wals) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry.map_err(|error| error.to_string())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(name) = name.strip_suffix(".zst").unwrap_or(&name).parse() else {
            continue;
        };
        let bytes = raw_bytes(&entry.path()).map_err(|error| error.to_string())?;
        let mut known = run.offered.iter().chain(&run.acknowledged);
        if !known.any(|sample| sample.name == name && sample.bytes == bytes) {
            return Err(format!("{name} is torn"));
        }
    }
    Ok(())
}

/// What a file holds, in whichever form its name says.
fn raw_bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    let stored = std::fs::read(path)?;
    match path.extension().is_some_and(|end| end == "zst") {
        true => zstd::stream::decode_all(&stored[..]),
        false => Ok(stored),
    }
}

fn everything_acknowledged_is_there(archive: &Archive, run: &Run) -> Result<(), String> {
    for sample in &run.acknowledged {
        match archive.lookup(&sample.name, sample.len(), sample.crc32(), Verify::Records) {
            Ok(StoredUnderName::Identical(_)) => {}
            other => return Err(format!("{} was acknowledged: {other:?}", sample.name)),
        }
    }
    Ok(())
}

fn what_was_acknowledged_of_a_segment_is_there(
    places: &ArchiveFolders,
    run: &Run,
) -> Result<(), String> {
    let Some(sample) = run.offered.first().filter(|_| run.held_bytes > 0) else {
        return Ok(());
    };
    let name = sample.name.to_string();
    let found = std::fs::read(places.partial_wals.join(&name))
        .or_else(|_| raw_bytes(&places.completed_wals.join(&name)))
        .or_else(|_| raw_bytes(&places.completed_wals.join(format!("{name}.zst"))))
        .map_err(|error| format!("{name} is gone: {error}"))?;
    match found.get(..run.held_bytes) == sample.bytes.get(..run.held_bytes) {
        true => Ok(()),
        false => Err(format!("{name} lost records that were acknowledged")),
    }
}

fn what_was_frozen_is_served(places: &ArchiveFolders, run: &Run) -> Result<(), String> {
    let Some(frozen) = &run.frozen else {
        return Ok(());
    };
    let said = |error: StoreError| error.to_string();
    let partials = PartialWals::open(&places.partial_wals, Arc::new(RealDisk)).map_err(said)?;
    if partials.frozen().map_err(said)?.as_ref() != Some(frozen) {
        return Err("the freeze is gone".to_owned());
    }
    let mut copies = frozen.segments.iter().flatten();
    copies.try_for_each(|copy| partials.read_copy(copy, |_| true).map_err(said))
}

/// A record is shipped, and the stream then frozen.
fn ship_and_freeze(root: &Path, disk: Arc<dyn Disk>) -> Run {
    let mut run = Run {
        is_set_up: true,
        ..Run::default()
    };
    let mut writer = WalWriter::new(segment_3(), BINDING.segment_size, BINDING.system_id, 15);
    let end = writer.record(10, 0, &[7; 9_000]).end.0 % BINDING.segment_size.bytes();
    let sample = Sample {
        name: WalFileName::Segment(segment_3()),
        bytes: writer.bytes().to_vec(),
    };
    let end = usize::try_from(end).unwrap();
    let shipped = Archive::open(&places(root), disk.clone())
        .is_ok_and(|archive| ship(&archive, &sample, end).is_ok());
    if shipped && let Ok(partials) = PartialWals::open(&places(root).partial_wals, disk) {
        let frozen = partials.freeze(
            segment_3().timeline(),
            "41 1700",
            false,
            |_| Ok(true),
            &|_| Ok(None),
        );
        run.frozen = frozen.ok();
    }
    run
}

/// Three records shipped one by one, a restart, and the rest by a push that finishes in place.
fn ship_and_finish(root: &Path, disk: Arc<dyn Disk>) -> Run {
    let mut writer = WalWriter::new(segment_3(), BINDING.segment_size, BINDING.system_id, 15);
    let mut ends = Vec::new();
    for body in [100, 9_000, 300] {
        let end = writer.record(10, 0, &vec![7; body]).end;
        ends.push(usize::try_from(end.0 % BINDING.segment_size.bytes()).unwrap());
    }
    writer.switch();
    let sample = Sample {
        name: WalFileName::Segment(segment_3()),
        bytes: writer.bytes().to_vec(),
    };
    let mut run = Run {
        offered: vec![sample.clone()],
        is_set_up: true,
        ..Run::default()
    };
    for end in ends {
        let Ok(archive) = Archive::open(&places(root), disk.clone()) else {
            return run;
        };
        if ship(&archive, &sample, end).is_err() {
            return run;
        }
        run.held_bytes = end;
    }
    if let Ok(archive) = Archive::open(&places(root), disk)
        && let Ok(Some(mut held)) = archive.held_prefix(sample.name, Verify::Records)
    {
        let prefix = usize::try_from(held.prefix().0).unwrap();
        let is_written =
            prefix as u64 == sample.len() || held.write(&sample.bytes[prefix..]).is_ok();
        if is_written && let Ok(FileSealed::Stored(_)) = held.seal(sample.len(), sample.crc32()) {
            run.acknowledged.push(sample);
        }
    }
    run
}

fn segment_3() -> SegmentName {
    let timeline = TimelineId::new(1).unwrap();
    SegmentName::from_number(timeline, 3, BINDING.segment_size)
}

fn ship(archive: &Archive, sample: &Sample, end: usize) -> Result<(), StoreError> {
    let segment = segment_3();
    let (mut stream, _) = archive.partial_stream(segment.timeline())?;
    let ours = &sample.bytes[..end];
    let at = stream.open(&Open {
        segment,
        bytes: end as u64,
        crc32: crc32fast::hash(ours),
    })?;
    let from = usize::try_from(at.held_bytes).unwrap();
    assert_eq!(at.common_crc32, crc32fast::hash(&ours[..from]));
    let lsn = Lsn(segment.start(BINDING.segment_size).unwrap().0 + end as u64);
    stream.append(at.held_bytes, lsn, &ours[from..])?;
    assert_eq!(stream.sync()?.end(), lsn);
    Ok(())
}

fn prepare_bound(root: &Path) {
    new_archive(root);
}

fn opened_in(
    form: StoreCompression,
    root: &Path,
    disk: Arc<dyn Disk>,
) -> Result<Archive, StoreError> {
    let archive = Archive::open(&places(root), disk)?;
    archive.set_compression(form);
    Ok(archive)
}

fn push_all(samples: Vec<Sample>) -> impl Fn(&Path, Arc<dyn Disk>) -> Run {
    push_all_in(StoreCompression::None, samples)
}

fn push_all_in(
    form: StoreCompression,
    samples: Vec<Sample>,
) -> impl Fn(&Path, Arc<dyn Disk>) -> Run {
    move |root, disk| {
        let mut run = Run {
            offered: samples.clone(),
            is_set_up: true,
            ..Run::default()
        };
        let Ok(archive) = opened_in(form, root, disk) else {
            return run;
        };
        for sample in &samples {
            if let Ok(FileSealed::Stored(proof)) = push(&archive, sample) {
                assert_eq!((proof.len(), proof.crc32()), (sample.len(), sample.crc32()));
                run.acknowledged.push(sample.clone());
            }
        }
        run
    }
}

fn create_archive(root: &Path, disk: Arc<dyn Disk>) -> Run {
    Run {
        is_set_up: Archive::create(&places(root), disk).is_ok(),
        ..Run::default()
    }
}

fn bind_archive(root: &Path, disk: Arc<dyn Disk>) -> Run {
    let opened = Archive::open(&places(root), disk);
    Run {
        is_set_up: true,
        is_bound: opened.is_ok_and(|archive| archive.bind(&BINDING).is_ok()),
        ..Run::default()
    }
}

fn prepare_unbound(root: &Path) {
    Archive::create(&places(root), Arc::new(RealDisk)).unwrap();
}

/// A small file that is never set apart.
fn backup_history() -> Sample {
    Sample {
        name: "000000010000000000000003.00000028.backup".parse().unwrap(),
        bytes: b"START WAL LOCATION: 0/300028 (file 000000010000000000000003)\n".to_vec(),
    }
}

/// A kill between rename and directory sync, then a start that says it is ready.
fn restart_after_rename(root: &Path, disk: Arc<dyn Disk>) -> Run {
    let sample = backup_history();
    let mut run = Run {
        offered: vec![sample.clone()],
        is_set_up: true,
        ..Run::default()
    };
    let killed = FaultyDisk::over(disk.clone());
    // The directory sync fails and so does the removal: as if killed before both.
    killed.fail(Op::SyncDirectory, 2, usize::MAX, rustix::io::Errno::IO);
    killed.fail(Op::Remove, 0, usize::MAX, rustix::io::Errno::IO);
    if let Ok(archive) = Archive::open(&places(root), killed) {
        let _ = push(&archive, &sample);
    }
    // A recovering PostgreSQL may read whatever a ready archive lists.
    if let Ok(archive) = Archive::open(&places(root), disk)
        && archive
            .list(None, 10)
            .is_ok_and(|entries| !entries.is_empty())
    {
        run.acknowledged.push(sample);
    }
    run
}

/// A file that an administrator copied in and nobody synced is offered by the master.
fn confirm_copied_file(root: &Path, disk: Arc<dyn Disk>) -> Run {
    let sample = history_file(3, "copied by hand");
    let mut run = Run {
        is_set_up: true,
        has_copied_files: true,
        ..Run::default()
    };
    let places = places(root);
    let Ok(archive) = Archive::open(&places, disk.clone()) else {
        return run;
    };
    let copied = disk
        .open_directory(&places.completed_wals)
        .and_then(|directory| {
            let file = disk.create(directory.as_fd(), &sample.name.to_string())?;
            disk.write(file.as_fd(), &sample.bytes, 0)
        });
    if copied.is_ok()
        && let Ok(StoredUnderName::Identical(_)) =
            archive.lookup(&sample.name, sample.len(), sample.crc32(), Verify::Records)
    {
        run.acknowledged.push(sample);
    }
    run
}

/// A file that was acknowledged went by hand, and its checksum is left.
fn prepare_left_behind(root: &Path, first: &Sample) {
    let places = new_archive(root);
    let archive = Archive::open(&places, Arc::new(RealDisk)).unwrap();
    push(&archive, first).unwrap();
    std::fs::remove_file(places.completed_wals.join(first.name.to_string())).unwrap();
}

/// A file became damaged, and the master offers it again: the damaged one is set aside.
fn prepare_damaged(root: &Path) {
    let places = new_archive(root);
    let archive = Archive::open(&places, Arc::new(RealDisk)).unwrap();
    let sample = history_file(2, "one");
    push(&archive, &sample).unwrap();
    let mut damaged = sample.bytes.clone();
    damaged[5] ^= 1;
    let name = sample.name.to_string();
    std::fs::write(places.completed_wals.join(name), damaged).unwrap();
}

fn replace_damaged(root: &Path, disk: Arc<dyn Disk>) -> Run {
    let mut run = push_all(vec![history_file(2, "one")])(root, disk);
    // The damaged one stands there until then, and is reported.
    run.has_copied_files = true;
    run
}

fn assert_survives(name: &str, prepare: &dyn Fn(&Path), scenario: &Scenario) -> usize {
    let verdict = cut_everywhere(prepare, scenario, None);
    assert!(verdict.cuts > 20, "{name}: only {} cuts", verdict.cuts);
    assert!(
        verdict.violations.is_empty(),
        "{name}: {:#?}",
        verdict.violations
    );
    verdict.syncs
}

#[test]
fn fault_12_13_14_15_16_a_file_survives_a_power_cut_after_every_operation() {
    let samples = vec![history_file(2, "one"), history_file(3, "two")];
    assert_survives("push", &prepare_bound, &push_all(samples));
}

#[test]
fn fault_17_a_segment_survives_a_power_cut_after_every_operation() {
    assert_survives("push", &prepare_bound, &push_all(vec![segment(3, 7)]));
}

#[test]
fn fault_42_43_acknowledged_records_survive_a_power_cut_at_any_step() {
    assert_survives("partial", &prepare_bound, &ship_and_finish);
}

#[test]
fn fault_198_a_packed_segment_survives_a_power_cut_at_any_step() {
    let form = StoreCompression::default();
    let pushed = push_all_in(form, vec![segment(3, 7)]);
    assert_survives("packed push", &prepare_bound, &pushed);
    // A plain one of before, offered again, and one behind it that is packed.
    let mixed = push_all_in(form, vec![segment(3, 7), segment(4, 7)]);
    let prepare = |root: &Path| {
        let places = new_archive(root);
        let archive = Archive::open(&places, Arc::new(RealDisk)).unwrap();
        push(&archive, &segment(3, 7)).unwrap();
    };
    assert_survives("mixed", &prepare, &mixed);
}

/// A plain segment of before is converted.
fn convert(root: &Path, disk: Arc<dyn Disk>) -> Run {
    let samples = vec![segment(3, 7)];
    let run = Run {
        acknowledged: samples.clone(),
        offered: samples.clone(),
        is_set_up: true,
        ..Run::default()
    };
    let opened = Compressor::open(&places(root).completed_wals, disk);
    if let Ok(Some(compressor)) = opened {
        for sample in samples {
            let _ = compressor.pack(sample.name, StoreCompression::default());
        }
    }
    run
}

fn prepare_plain(root: &Path) {
    let places = new_archive(root);
    let archive = Archive::open(&places, Arc::new(RealDisk)).unwrap();
    push(&archive, &segment(3, 7)).unwrap();
}

#[test]
fn fault_198_a_converted_segment_survives_a_power_cut_at_any_step() {
    assert_survives("convert", &prepare_plain, &convert);
}

/// A segment that was shipped whole.
fn shipped_whole() -> Sample {
    let mut writer = WalWriter::new(segment_3(), BINDING.segment_size, BINDING.system_id, 15);
    writer.record(10, 0, &vec![7; 9_000]);
    writer.switch();
    Sample {
        name: WalFileName::Segment(segment_3()),
        bytes: writer.bytes().to_vec(),
    }
}

/// Its seal packs it.
fn finish_packed(root: &Path, disk: Arc<dyn Disk>) -> Run {
    let sample = shipped_whole();
    let mut run = Run {
        offered: vec![sample.clone()],
        is_set_up: true,
        held_bytes: 9_000,
        ..Run::default()
    };
    if let Ok(archive) = opened_in(StoreCompression::default(), root, disk)
        && let Ok(Some(held)) = archive.held_prefix(sample.name, Verify::Records)
        && let Ok(FileSealed::Stored(_)) = held.seal(sample.len(), sample.crc32())
    {
        run.acknowledged.push(sample);
    }
    run
}

#[test]
fn fault_198_records_packed_at_sealing_survive_a_power_cut_at_any_step() {
    let prepare = |root: &Path| {
        let archive = Archive::open(&new_archive(root), Arc::new(RealDisk)).unwrap();
        let sample = shipped_whole();
        let last = sample.bytes.iter().rposition(|byte| *byte != 0).unwrap();
        // To the end of the switch, whose length is a multiple of 8.
        ship(&archive, &sample, (last + 8) & !7).unwrap();
    };
    assert_survives("packed in place", &prepare, &finish_packed);
}

#[test]
fn fault_76_a_freeze_survives_a_power_cut_after_every_operation() {
    assert_survives("freeze", &prepare_bound, &ship_and_freeze);
}

#[test]
fn set_up_survives_a_power_cut_after_every_operation() {
    assert_survives("create", &|_| {}, &create_archive);
}

#[test]
fn a_binding_survives_a_power_cut_after_every_operation() {
    assert_survives("bind", &prepare_unbound, &bind_archive);
}

#[test]
fn fault_15_18_recovery_survives_a_power_cut_after_every_operation() {
    assert_survives("recover", &prepare_bound, &restart_after_rename);
}

#[test]
fn fault_1_a_confirmed_file_survives_a_power_cut_after_every_operation() {
    assert_survives("confirm", &prepare_bound, &confirm_copied_file);
}

#[test]
fn fault_107_no_power_cut_leaves_an_older_checksum_beside_a_newer_file() {
    let second = push_all(vec![history_file(2, "two")]);
    let prepare = |root: &Path| prepare_left_behind(root, &history_file(2, "one"));
    assert_survives("left behind", &prepare, &second);
    assert_survives("set aside", &prepare_damaged, &replace_damaged);
}

#[test]
fn the_cuts_notice_each_sync_missing_where_a_checksum_was_left_behind() {
    let mut second = backup_history();
    second.bytes.extend_from_slice(b"LABEL: two\n");
    let prepare = |root: &Path| prepare_left_behind(root, &backup_history());
    // 0 to 2 are recovery's, which forgets who brought the file that is gone; then the file, the folder of
    // the checksums, and the directory.
    assert_eq!(needed_syncs(&prepare, &push_all(vec![second])), [3, 4, 5]);
}

/// Which syncs of a scenario lose something when they are taken out.
fn needed_syncs(prepare: &dyn Fn(&Path), scenario: &Scenario) -> Vec<usize> {
    let syncs = cut_everywhere(prepare, scenario, None).syncs;
    (0..syncs)
        .filter(|number| {
            !cut_everywhere(prepare, scenario, Some(*number))
                .violations
                .is_empty()
        })
        .collect()
}

#[test]
fn the_cuts_notice_each_sync_missing_from_a_push() {
    let samples = vec![backup_history()];
    // 0 and 1 are recovery's, which has nothing to do here; then the file and the directory.
    assert_eq!(needed_syncs(&prepare_bound, &push_all(samples)), [2, 3]);
}

#[test]
fn the_cuts_notice_each_sync_missing_from_a_binding() {
    // Marker and directory, of completed_wals and then of partial_wals.
    assert_eq!(needed_syncs(&prepare_unbound, &bind_archive), [2, 3, 4, 5]);
}

#[test]
fn the_cuts_notice_each_sync_missing_from_set_up() {
    // The directory above and the two markers. Each directory is synced again at the end for the
    // sake of an interrupted set-up, and the one above for each of the two, so that one of those
    // can be missing.
    assert_eq!(needed_syncs(&|_| {}, &create_archive), [3, 4, 6]);
}

#[test]
fn the_cuts_notice_each_sync_missing_from_recovery() {
    // The file's, before the process was killed, and the directory's at the start after that.
    assert_eq!(needed_syncs(&prepare_bound, &restart_after_rename), [2, 3]);
}

#[test]
fn the_cuts_notice_each_sync_missing_from_a_confirmation() {
    assert_eq!(needed_syncs(&prepare_bound, &confirm_copied_file), [2, 3]);
}
