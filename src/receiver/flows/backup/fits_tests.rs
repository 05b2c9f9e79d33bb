//! Sets that are made up, one thing wrong at a time.
//! Never needs a server. Invariant tested: each wrong thing alone is refused.

use walmgr_protocol::names::{Lsn, SystemId, WalSegmentSize};

use super::*;
use crate::pg::manifest::{Checksum, FileEntry, ManifestWriter, WalRange};

const LABEL: &[u8] = b"START WAL LOCATION: 0/300028 (file 000000010000000000000003)\n\
    CHECKPOINT LOCATION: 0/300060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
    START TIME: 2026-01-02 03:04:05 UTC\nLABEL: FullBackup\nSTART TIMELINE: 1\n";

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn asked(start: u64, timeline_number: u32) -> Finish {
    Finish {
        start: Lsn(start),
        stop: Lsn(0x30_0100),
        timeline: timeline(timeline_number),
        wal_wait_s: 1,
    }
}

fn binding() -> Binding {
    Binding {
        system_id: SystemId(7),
        segment_size: WalSegmentSize::new(1 << 20).unwrap(),
        postgres_major: 17,
    }
}

#[test]
fn fault_71_a_backup_across_a_promotion_is_refused() {
    let first = timeline(1);
    let label = check_label(first, LABEL, &asked(0x30_0028, 1)).unwrap();
    assert_eq!(label.first_segment.to_string(), "000000010000000000000003");
    let refused = |began, label: &[u8], asked: Finish| {
        let began = timeline(began);
        check_label(began, label, &asked).unwrap_err().message
    };
    let promoted = refused(1, LABEL, asked(0x30_0028, 2));
    assert!(promoted.contains("the server was promoted"), "{promoted}");
    let other = refused(2, LABEL, asked(0x30_0028, 2));
    assert!(other.contains("begins at 0/300028"), "{other}");
    assert!(refused(1, LABEL, asked(0x40_0028, 1)).contains("not at 0/400028"));
    assert!(refused(1, b"LABEL: x", asked(0x30_0028, 1)).contains("is not one"));
}

#[test]
fn fault_111_a_label_has_its_start_checkpoint_and_end_in_order() {
    let label = BackupLabel::parse(LABEL).unwrap();
    let fits = |label: &BackupLabel, asked: &Finish| check_start(&binding(), label, asked).is_ok();
    assert!(fits(&label, &asked(0x30_0028, 1)));
    let early = Finish {
        stop: Lsn(0x30_0060),
        ..asked(0x30_0028, 1)
    };
    assert!(!fits(&label, &early));
    let elsewhere = BackupLabel {
        start: Lsn(0x40_0028),
        checkpoint: Lsn(0x40_0060),
        ..label.clone()
    };
    assert!(
        !fits(&elsewhere, &asked(0x40_0028, 1)),
        "in another segment"
    );
    let before = BackupLabel {
        checkpoint: Lsn(0x30_0000),
        ..label
    };
    assert!(!fits(&before, &asked(0x30_0028, 1)));
}

/// A manifest of these files.
fn manifest(system_id: u64, files: &[(&str, Option<Checksum>)], end: u64) -> Vec<u8> {
    let mut writer = ManifestWriter::new(Vec::new(), 17, SystemId(system_id)).unwrap();
    for (name, checksum) in files {
        let entry = FileEntry {
            path: name.parse().unwrap(),
            size: 3,
            last_modified: 0,
            checksum: checksum.clone(),
        };
        writer.add(&entry).unwrap();
    }
    let range = WalRange {
        timeline: timeline(1),
        start: Lsn(0x30_0028),
        end: Lsn(end),
    };
    writer.finish(&[range]).unwrap()
}

#[test]
fn fault_111_a_manifest_lists_a_whole_cluster_and_nothing_else() {
    let crc = Some(Checksum::Crc32c(1));
    let whole: Vec<(&str, Option<Checksum>)> =
        NEEDED.iter().map(|name| (*name, crc.clone())).collect();
    let check = |manifest: &[u8], has_map| {
        check_manifest(&binding(), manifest, &asked(0x30_0028, 1), has_map)
    };
    check(&manifest(7, &whole, 0x30_0100), false).unwrap();
    assert!(
        check(&manifest(8, &whole, 0x30_0100), false).is_err(),
        "foreign"
    );
    assert!(
        check(&manifest(7, &whole, 0x30_0200), false).is_err(),
        "another end"
    );
    assert!(
        check(&manifest(7, &whole, 0x30_0100), true).is_err(),
        "no map"
    );
    assert!(check(b"{}", false).is_err());
    for missing in 0..whole.len() {
        let mut some = whole.clone();
        some.remove(missing);
        assert!(
            check(&manifest(7, &some, 0x30_0100), false).is_err(),
            "{missing}"
        );
    }
    for unwanted in [
        "standby.signal",
        "global/pg_control.copied",
        "global/pg_control.moved",
        "pg_wal/000000010000000000000003",
        "pg_stat_tmp/walmgr.absent.x",
    ] {
        let more = [&whole[..], &[(unwanted, crc.clone())]].concat();
        assert!(
            check(&manifest(7, &more, 0x30_0100), false).is_err(),
            "{unwanted}"
        );
    }
    let unchecked = [&whole[..], &[("base/1/2", None)]].concat();
    assert!(check(&manifest(7, &unchecked, 0x30_0100), false).is_err());
}
