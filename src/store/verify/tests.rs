//! `verify` over small archives and sets that are made up: what it finds, passes over, forgets and leaves alone.
//! Never needs a server. Invariant tested: whatever is changed, removed or added is named once, by its file.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Algorithm, SHA224, SHA256, SHA384, SHA512, digest as digest_of};
use walmgr_protocol::names::SystemId;

use super::*;
use crate::pg::fixtures::control_file;
use crate::pg::manifest::{Checksum, FileEntry, ManifestWriter, Reader};
use crate::pg::page::{self, PAGE_BYTES};
use crate::store::sets::SetsRound;
use crate::store::sets::testing::{back_up, lease, prepare, real_sets, sample_files, wal_proof};
use crate::store::testing::archive_of_names;
use crate::store::testing::places;
use crate::store::testing::{
    assert_stored, history_file, new_archive, open, real, scratch_folder, segment,
};

const MONTH: Duration = Duration::from_secs(30 * 86_400);

/// What a run says: level, code, file.
type Told = Vec<(bool, &'static str, String)>;

struct Run {
    root: tempfile::TempDir,
    set: Option<&'static str>,
    again_after: Duration,
    reads_all: bool,
}

impl Run {
    fn of(root: tempfile::TempDir) -> Run {
        Run {
            root,
            set: None,
            again_after: MONTH,
            reads_all: false,
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.root.path().join(name)
    }

    fn try_run(&self, each: &mut dyn FnMut(VerifyStep<'_>)) -> Result<VerifyReport, SetError> {
        let (places, disk) = (places(self.root.path()), real());
        let full_backup = self.path("data.master");
        let newest = BackupName::newest("data.master").unwrap();
        let set = self.set.map(|set| newest.parse_sibling(set).unwrap());
        let request = VerifyRequest {
            places: &places,
            full_backup: Some(&full_backup),
            disk: &disk,
            set: set.as_ref(),
            again_after: self.again_after,
            reads_all: self.reads_all,
        };
        verify(&request, each)
    }

    fn run(&self) -> (VerifyReport, Vec<VerifyFinding>) {
        let mut found = Vec::new();
        let report = self.try_run(&mut |step| {
            if let VerifyStep::Found(finding) = step {
                found.push(finding.clone());
            }
        });
        (report.unwrap(), found)
    }

    fn told(&self) -> Told {
        let (report, found) = self.run();
        let counted = report.critical_count + report.warning_count;
        assert_eq!(counted, found.len() as u64);
        let file = |finding: &VerifyFinding| match (&finding.set, &*finding.file) {
            (Some(set), "") => set.to_string(),
            (Some(set), file) => format!("{set}/{file}"),
            (None, file) => file.to_owned(),
        };
        found
            .iter()
            .map(|it| (it.is_critical, it.code, file(it)))
            .collect()
    }
}

/// Until files count as left alone.
fn settle() {
    std::thread::sleep(Duration::from_millis(2_100));
}

/// Two sets and the segments from the third, which they need, to the twelfth.
fn archive_with_sets() -> Run {
    let root = scratch_folder();
    prepare(root.path());
    let sets = real_sets(root.path());
    let wal = wal_proof(root.path());
    let lease = lease(&sets).unwrap();
    for version in [1, 2] {
        back_up(&sets, &lease, version, &wal).unwrap();
    }
    let archive = open(&places(root.path()));
    for number in 4..=12 {
        assert_stored(&archive, &segment(number, 1));
    }
    Run::of(root)
}

fn flip(path: &Path, byte: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[byte] ^= 4;
    fs::write(path, bytes).unwrap();
}

fn name(number: u64) -> String {
    segment(number, 1).name.to_string()
}

#[test]
fn fault_155_whatever_is_flipped_removed_or_added_is_named() {
    let run = archive_with_sets();
    assert_eq!(run.told(), []);
    let stored = |number| run.path("logs.complete").join(name(number));
    let mut expected: Told = Vec::new();
    flip(&stored(5), 700_000);
    expected.push((true, "damaged", name(5)));
    fs::remove_file(stored(8)).unwrap();
    fs::remove_file(stored(9)).unwrap();
    fs::write(
        run.path("logs.complete")
            .join(format!("{}.damaged", name(14))),
        "x",
    )
    .unwrap();
    expected.push((true, "damaged", format!("{}.damaged", name(14))));
    for (file, code) in [
        ("data.master/base/1/1259", "damaged"),
        ("data.master/backup_label", "damaged"),
        (
            "data.master.0/tmpspc/16385/PG_15_202209061/5/16390",
            "damaged",
        ),
        ("data.master.0/backup_manifest", "damaged"),
    ] {
        flip(&run.path(file), 40);
        expected.push((true, code, file.to_owned()));
    }
    fs::remove_file(run.path("data.master/base/1/empty")).unwrap();
    expected.push((true, "damaged", "data.master/base/1/empty".to_owned()));
    fs::write(run.path("data.master/base/1/more"), "x").unwrap();
    expected.push((false, "additional", "data.master/base/1/more".to_owned()));
    // A manifest that is not sound says nothing of the files.
    expected.retain(|(_, _, file)| !file.contains("16390"));
    // Of the newest set whose label can be read.
    expected.push((true, "gap", name(8)));
    let mut told = run.told();
    told.sort();
    expected.sort();
    assert_eq!(told, expected);
    let (report, found) = run.run();
    let gap = found.iter().find(|it| it.code == "gap").unwrap();
    assert!(
        gap.why.contains(&name(9)) && gap.why.contains("data.master"),
        "{}",
        gap.why
    );
    assert!(report.sets.iter().all(|set| !set.is_recoverable()));
}

#[test]
fn fault_156_a_second_run_reads_what_is_new_or_was_read_long_ago() {
    let mut run = archive_with_sets();
    let (report, _) = run.run();
    assert_eq!((report.segments, report.counts.files_skipped), (10, 0));
    let all: u64 = sample_files(1).values().map(|it| it.len() as u64).sum();
    assert!(report.counts.bytes_read > (10 << 20) + 2 * all);
    // So soon behind their making nothing is remembered.
    assert_eq!(run.run().0.counts.files_skipped, 0);
    settle();
    run.run();
    let (report, found) = run.run();
    assert_eq!(found, []);
    assert_eq!(report.segments, 10);
    // The manifests are read.
    assert!(report.counts.bytes_read < 8_192, "{:?}", report.counts);
    assert!(report.counts.bytes_skipped > (10 << 20) + 2 * all);

    let archive = open(&places(run.root.path()));
    assert_stored(&archive, &segment(13, 1));
    let (report, _) = run.run();
    assert_eq!(report.counts.bytes_read >> 20, 1);
    // One of the same bytes and another inode, and the one behind it, which was checked against the old one.
    let path = run.path("logs.complete").join(name(6));
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, &bytes).unwrap();
    assert_eq!(run.run().0.counts.bytes_read >> 20, 3, "6, 7 and 13");
    let set_file = run.path("data.master.0/base/1/1259");
    let file = fs::File::options().write(true).open(&set_file).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    settle();
    run.run();
    run.again_after = Duration::ZERO;
    assert_eq!(
        run.run().0.counts.files_skipped,
        0,
        "all was read too long ago"
    );
    run.again_after = MONTH;
    run.reads_all = true;
    assert_eq!(run.run().0.counts.files_skipped, 0);
    run.reads_all = false;
    assert!(run.run().0.counts.bytes_read < 8_192);
    // A note that is not what was written is none.
    for note in fs::read_dir(run.path("logs.complete/.verified")).unwrap() {
        let note = note.unwrap().path();
        if fs::metadata(&note).unwrap().len() > 20 {
            flip(&note, 15);
        }
    }
    assert_eq!(run.run().0.counts.files_skipped, 0);
    assert_eq!(run.told(), []);
    assert!(run.run().0.counts.bytes_read < 8_192);
}

#[test]
fn fault_155_what_verify_finds_is_in_the_lists_until_a_good_run() {
    let run = archive_with_sets();
    let survey = || {
        let places = places(run.root.path());
        let full_backup = run.path("data.master");
        crate::store::survey::survey(&places, Some(&full_backup), &real(), None).unwrap()
    };
    let (relation, stored) = (
        run.path("data.master/base/1/1259"),
        run.path("logs.complete").join(name(5)),
    );
    let refusal = || {
        let listed = real_sets(run.root.path()).list().unwrap();
        listed[0].condition.refusal().map(str::to_owned)
    };
    flip(&relation, 7);
    flip(&stored, 9_000);
    assert_eq!((refusal(), survey().damaged_count), (None, 0));
    run.run();
    assert!(refusal().unwrap().contains("base/1/1259"));
    assert!(survey().damaged.contains(&name(5)), "{}", survey().damaged);
    // Whatever is mended in place has no note, and neither has what a run found good.
    flip(&relation, 7);
    flip(&stored, 9_000);
    assert_eq!((refusal(), survey().damaged_count), (None, 0));
    assert_eq!(run.told(), []);
    let damaged = fs::read_to_string(run.path("logs.complete/.verified/damaged")).unwrap();
    assert!(!damaged.contains("damaged"), "{damaged}");
}

#[test]
fn a_set_is_verified_with_the_wal_that_it_needs() {
    let mut run = archive_with_sets();
    let archive = open(&places(run.root.path()));
    assert_stored(&archive, &segment(2, 1));
    assert_stored(&archive, &history_file(7, "elsewhere"));
    flip(&run.path("logs.complete").join(name(2)), 700_000);
    flip(&run.path("data.master/base/1/1259"), 7);
    run.set = Some("data.master.0");
    let (report, found) = run.run();
    assert_eq!(found, []);
    assert_eq!((report.segments, report.sets.len()), (10, 1));
    assert!(report.sets[0].is_recoverable());
    assert_eq!(report.sets[0].end, Lsn(13 << 20));
    run.set = Some("data.master");
    assert_eq!(
        run.told(),
        [(true, "damaged", "data.master/base/1/1259".to_owned())]
    );
    run.set = Some("data.master.7");
    let absent = run.try_run(&mut |_| {}).unwrap_err();
    assert!(matches!(absent, SetError::Absent { .. }), "{absent}");
}

#[test]
fn fault_157_a_second_verify_is_refused_and_one_without_room_reads_on() {
    let run = archive_with_sets();
    let folder = Folder::open(
        &places(run.root.path()).completed_wals,
        real(),
        Arc::new(Monitor::new()),
    );
    let held = VerifyMemory::open(&folder.unwrap(), MONTH, false).unwrap();
    let refused = run.try_run(&mut |_| {}).unwrap_err();
    let own = std::process::id().to_string();
    assert!(refused.to_string().contains(&own), "{refused}");
    drop(held);
    run.run();
    fs::remove_dir_all(run.path("logs.complete/.verified")).unwrap();
    fs::write(run.path("logs.complete/.verified"), "in the way").unwrap();
    let (report, found) = run.run();
    assert_eq!((found, report.segments), (vec![], 10));
    assert!(report.not_remembered.is_some());
}

#[test]
fn what_goes_away_while_it_is_read_is_no_finding() {
    let run = archive_with_sets();
    let root = run.root.path().to_path_buf();
    let mut found = Vec::new();
    let mut passed = 0;
    let report = run.try_run(&mut |step| match step {
        VerifyStep::Found(finding) => found.push(finding.clone()),
        VerifyStep::Passed(_) => {
            passed += 1;
            if passed == 3 {
                // As a rotation and a purge do.
                fs::rename(
                    root.join("data.master.0"),
                    root.join("data.master.expired.x"),
                )
                .unwrap();
                fs::rename(root.join("data.master"), root.join("data.master.0")).unwrap();
                for number in [3, 4] {
                    fs::remove_file(root.join("logs.complete").join(name(number))).unwrap();
                }
            }
            if passed == 12 {
                fs::remove_dir_all(root.join("data.master.0")).unwrap();
            }
        }
    });
    assert_eq!(found, []);
    assert!(report.unwrap().segments >= 8);
}

/// Lists the files of a set again, with other checksums or none.
fn list_again(set: &Path, checksum: impl Fn(&[u8]) -> Option<Checksum>) {
    let manifest = fs::read(set.join("backup_manifest")).unwrap();
    let listed = Reader::new(&manifest).unwrap();
    let mut writer = ManifestWriter::new(Vec::new(), 15, SystemId(1)).unwrap();
    for entry in listed.map(Result::unwrap) {
        let stored = entry.path.to_string().replace("pg_tblspc/", "tmpspc/");
        let content = fs::read(set.join(stored)).unwrap();
        let (size, checksum) = (content.len() as u64, checksum(&content));
        let entry = FileEntry {
            size,
            checksum,
            ..entry
        };
        writer.add(&entry).unwrap();
    }
    fs::write(set.join("backup_manifest"), writer.finish(&[]).unwrap()).unwrap();
}

/// What a round of the receiver finds in sets.
fn found_by_round(root: &Path) -> Vec<String> {
    let mut round = SetsRound::of(real_sets(root));
    while round.step().unwrap().is_some() {}
    let listed = real_sets(root).list().unwrap().into_iter();
    let refused = listed.filter_map(|set| set.condition.refusal().map(str::to_owned));
    refused.collect()
}

#[test]
fn fault_155_a_flip_is_found_whatever_checksums_the_manifest_has() {
    let run = archive_with_sets();
    let sha = |digest: &'static Algorithm| {
        move |content: &[u8]| Some(Checksum::Sha(digest_of(digest, content).as_ref().into()))
    };
    let (set, relation) = (run.path("data.master"), run.path("data.master/base/1/1259"));
    for digest in [&SHA224, &SHA256, &SHA384, &SHA512] {
        list_again(&set, sha(digest));
        assert_eq!(
            (run.told(), found_by_round(run.root.path())),
            (vec![], vec![])
        );
        flip(&relation, 5);
        let named = (true, "damaged", "data.master/base/1/1259".to_owned());
        assert_eq!(run.told(), [named]);
        fs::remove_dir_all(run.path("logs.complete/.verified")).unwrap();
        assert!(found_by_round(run.root.path())[0].contains("SHA-"));
        flip(&relation, 5);
    }
    // Without any, the pages have theirs.
    let mut pages = vec![7; 3 * PAGE_BYTES];
    for (block, page) in pages.chunks_mut(PAGE_BYTES).enumerate() {
        let page: &mut [u8; PAGE_BYTES] = page.try_into().unwrap();
        page[..8].fill(0);
        let sum = page::checksum(page, u32::try_from(block).unwrap());
        page[8..10].copy_from_slice(&sum.to_ne_bytes());
    }
    fs::write(&relation, pages).unwrap();
    fs::write(set.join("global/pg_control"), control_file(15)).unwrap();
    list_again(&set, |_| None);
    assert_eq!(
        (run.told(), found_by_round(run.root.path())),
        (vec![], vec![])
    );
    flip(&relation, PAGE_BYTES + 100);
    let (_, found) = run.run();
    assert_eq!(
        found[0].place.offset_bytes,
        Some(PAGE_BYTES as u64),
        "{found:?}"
    );
    fs::remove_dir_all(run.path("logs.complete/.verified")).unwrap();
    assert!(found_by_round(run.root.path())[0].contains("the checksum of a page"));
}

#[test]
fn a_file_with_the_name_of_a_set_hides_no_damage() {
    let run = archive_with_sets();
    fs::write(run.path("data.master.7"), "x").unwrap();
    flip(&run.path("data.master/base/1/1259"), 5);
    let mut told = run.told();
    told.sort();
    let named = |code, file: &str| (true, code, file.to_owned());
    let expected = [
        named("backup", "data.master.7"),
        named("damaged", "data.master/base/1/1259"),
    ];
    assert_eq!(told, expected);
    fs::remove_dir_all(run.path("logs.complete/.verified")).unwrap();
    assert!(
        found_by_round(run.root.path())
            .iter()
            .any(|why| why.contains("1259"))
    );
}

#[test]
fn holes_are_those_of_the_timelines_that_a_recovery_follows() {
    let of = |names: &[&str]| {
        let root = scratch_folder();
        let places = archive_of_names(root.path(), names);
        let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
        let from = (TimelineId::FIRST, Lsn(3 << 20));
        let wal = BackupWal::find(&reader, &[], from, &BTreeSet::new()).unwrap();
        let holes = wal.holes().into_iter();
        let holes: Vec<_> = holes
            .map(|(first, last)| (first.to_string(), last.to_string()))
            .collect();
        (holes, wal.end().0 >> 16)
    };
    let old = [
        "000000010000000000000003",
        "000000010000000000000004",
        "000000010000000000000005",
    ];
    let (new, far) = ("000000020000000000000005", "000000020000000000000009");
    let history = "00000002.history";
    let hole = |first: &str, last: &str| (first.to_owned(), last.to_owned());
    let all = [&old[..], &[history, new, "000000010000000000000008"]].concat();
    assert_eq!(
        of(&all),
        (vec![], 0x60),
        "what the old timeline wrote later is none of it"
    );
    let all = [&old[..], &[history, new, far]].concat();
    let last = "000000020000000000000008";
    assert_eq!(
        of(&all),
        (vec![hole("000000020000000000000006", last)], 0x60)
    );
    let all = [&old[..], &[history, far]].concat();
    let holes = vec![hole(new, new), hole("000000020000000000000006", last)];
    assert_eq!(
        of(&all),
        (holes, 0x58),
        "the switch is in the middle of a segment"
    );
    assert_eq!(of(&["000000010000000000000002"]).0, [hole(old[0], old[0])]);
}

#[test]
fn without_sets_a_hole_behind_the_first_segment_is_named() {
    let root = scratch_folder();
    let archive = open(&new_archive(root.path()));
    for number in [3, 4, 6] {
        assert_stored(&archive, &segment(number, 1));
    }
    let run = Run::of(root);
    assert_eq!(run.told(), [(true, "gap", name(5))]);
}
