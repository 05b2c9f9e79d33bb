//! Boots of standbys whose segments in progress, or last finished ones, are damaged.
//! Never mends anything by hand. Invariant tested: `boot` calls nothing a success that lacks WAL
//! which was acknowledged.

use walmgr_protocol::names::{Lsn, SegmentName, WalSegmentSize};

use super::*;
use crate::partial::flushed;

/// A master that died with acknowledged records in progress, its standby, the last segment, and
/// where its records end.
fn shipped() -> (Site, Cluster, PathBuf, Lsn) {
    let mut site = bare_master(15);
    site.master_set("use_xlog_functions", "1");
    let standby = standby_of(&mut site, true);
    site.cluster().psql("CREATE TABLE t (n int)");
    finish(&site);
    for n in 1..=5 {
        let insert = format!("INSERT INTO t SELECT {n} FROM generate_series(1, 200)");
        site.cluster().psql(&insert);
    }
    site.master_command(&["sync"]).succeed();
    let end = flushed(&site);
    let size = WalSegmentSize::new(1 << 20).unwrap();
    let timeline = walmgr_protocol::names::TimelineId::new(1).unwrap();
    let segment = SegmentName::containing(timeline, Lsn(end.0 - 1), size);
    let path = site.partial_wals().join(segment.to_string());
    (site, standby, path, end)
}

/// Flips a bit in the middle of what was shipped of a segment.
fn flip(path: &Path, end: Lsn) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    let records = usize::try_from(end.0).unwrap() % bytes.len();
    bytes[records / 2] ^= 16;
    fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
fn fault_101_a_boot_is_refused_where_a_bit_flipped_and_never_a_success() {
    skip_unless!(Cluster::available(15));
    let (mut site, standby, path, end) = shipped();
    site.cluster_mut().kill9();
    let flipped = flip(&path, end);
    for words in [&["boot"][..], &["boot", "-n"]] {
        let refused = site.standby_command(words);
        let line = refused.fail(1);
        assert!(line.contains("is damaged: its records end at"), "{line}");
        assert!(line.contains(&format!("to {end} would be lost")), "{line}");
        assert!(!site.holds("STOP") && !site.partial_wals().join("FROZEN").exists());
    }
    let status = site.standby_command(&["status"]);
    assert!(
        status.stdout.contains("is damaged: its records end at"),
        "{}",
        status.stdout
    );
    assert_ne!(status.code, Some(0), "{}", status.stdout);
    site.restart_receiver();
    site.receiver.wait_for_log("ALARM: the partial");
    assert!(fs::read(&path).unwrap() == flipped, "nothing is cleared");

    let forced = site.standby_command(&["boot", "--force"]);
    forced.fail_last(1, "but lacks WAL that was acknowledged");
    forced.fail_last(1, &format!("was acknowledged up to {end}"));
    let rows: u32 = standby.psql("SELECT count(*) FROM t").parse().unwrap();
    assert!(rows < 1_000, "{rows} rows");
}

#[test]
fn fault_101_a_living_master_heals_a_flipped_bit_and_the_boot_succeeds() {
    skip_unless!(Cluster::available(15));
    let (mut site, standby, path, end) = shipped();
    let flipped = flip(&path, end);
    let copy = PathBuf::from(format!("{}.damaged", path.display()));
    site.master_command(&["sync"]).succeed();
    assert!(
        fs::read(&copy).unwrap() == flipped,
        "the damaged one is kept"
    );
    site.receiver.wait_for_log("ALARM: the damaged");
    site.cluster_mut().kill9();
    site.standby_command(&["boot"]).succeed();
    assert_eq!(standby.psql("SELECT count(*) FROM t"), "1000");
}

#[test]
fn fault_101_a_segment_in_progress_that_is_gone_is_missed_by_a_boot() {
    skip_unless!(Cluster::available(15));
    let (mut site, _standby, path, end) = shipped();
    site.cluster_mut().kill9();
    fs::remove_file(&path).unwrap();
    let refused = site.standby_command(&["boot"]);
    let line = refused.fail(1);
    assert!(line.contains(&format!("to {end} would be lost")), "{line}");
}
