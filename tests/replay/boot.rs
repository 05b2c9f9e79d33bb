//! What `boot` refuses, what it says, and what it leaves.
//! Never accepts a boot that loses data without `--force`.

use std::fs;

use super::*;

fn remove_segment(site: &Site, name: &str) -> Vec<u8> {
    let path = site.unpacked_path(name);
    let content = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    content
}

/// The archived segments behind this one.
fn behind(site: &Site, before: &str) -> Vec<String> {
    let mut names = site.archived_names();
    names.retain(|name| name.len() == 24 && name.as_str() > before);
    names
}

#[test]
fn fault_78_a_gap_is_refused_with_the_range_that_would_be_lost() {
    skip_unless!(Cluster::available(15));
    let mut site = master(15);
    let standby = standby_of(&mut site, false);
    site.standby_command(&["pause"]).succeed();
    let before = newest_segment(&site);
    for round in 0..5 {
        site.cluster().psql(&format!("CREATE TABLE t{round} ()"));
        finish(&site);
    }
    let names = behind(&site, &before);
    let (missing, last) = (&names[2], &names[names.len() - 1]);
    let content = remove_segment(&site, missing);
    let lsn = |name: &str, behind: u64| {
        let segment: walmgr_protocol::names::SegmentName = name.parse().unwrap();
        let size = walmgr_protocol::names::WalSegmentSize::new(1 << 20).unwrap();
        walmgr_protocol::names::Lsn(segment.start(size).unwrap().0 + behind)
    };
    let lost = format!(
        "{missing} is missing: the WAL from {} to {} would be lost",
        lsn(missing, 0),
        lsn(last, 1 << 20)
    );
    for words in [&["boot"][..], &["boot", "-n"], &["boot", "--no-wait"]] {
        let refused = site.standby_command(words);
        let line = refused.fail(1);
        assert!(line.contains(&lost) && line.contains("--force"), "{line}");
        assert!(site.holds("PAUSE") && !site.holds("STOP"));
    }
    // What was set aside as damaged is named as such.
    let copy = format!("{missing}.damaged");
    fs::write(site.completed_wals().join(&copy), &content).unwrap();
    let refused = site.standby_command(&["boot"]);
    assert!(
        refused
            .fail(1)
            .contains(&format!("only as a damaged copy, {copy}"))
    );

    let forced = site.standby_command(&["boot", "--force"]);
    forced.fail_last(1, &format!("was acknowledged up to {}", lsn(last, 1 << 20)));
    let told = format!("up to {}", lsn(missing, 0));
    assert!(forced.stdout.contains(&told), "{}", forced.stdout);
    assert!(forced.stderr.contains("would be lost"), "{}", forced.stderr);
    let tables = standby.psql("SELECT count(*) FROM pg_class WHERE relname ~ '^t[0-4]$'");
    assert_eq!(tables, "2");
    assert!(!site.holds("STOP") && !site.holds("PAUSE"));
}

#[test]
fn fault_80_boot_touches_nothing_where_it_cannot_succeed() {
    skip_unless!(Cluster::available(15));
    let mut site = master(15);
    let told = |site: &Site, code: i32, part: &str| {
        for words in [&["boot"][..], &["boot", "-n"]] {
            let refused = site.standby_command(words);
            let line = refused.fail(code);
            assert!(line.contains(part), "{line}");
        }
        assert!(!site.holds("STOP"));
    };
    told(&site, 2, "boot needs the setting `slave_data`");
    let empty = site.home().create_dir("empty");
    site.standby_set("slave_data", &empty.display().to_string());
    told(&site, 2, "is not a PostgreSQL data directory");
    let primary = site.cluster().data().display().to_string();
    site.standby_set("slave_data", &primary);
    told(&site, 1, "is not in recovery: it is in production");
    let mut standby = standby_of(&mut site, false);
    standby.stop(StopMode::Fast);
    told(&site, 1, "no server runs in");
    standby.start();
    let said = site.standby_command(&["boot", "-n"]).succeed();
    assert!(
        said.starts_with("would freeze the incoming stream, write STOP"),
        "{said}"
    );
    assert!(!site.holds("STOP") && standby.data().join("standby.signal").exists());
}

#[test]
fn without_waiting_the_boot_goes_on_by_itself() {
    skip_unless!(Cluster::available(15));
    let mut site = master(15);
    let standby = standby_of(&mut site, true);
    pgbench(&site, "1");
    finish(&site);
    let content = site.cluster().psql(CONTENT);
    site.standby_command(&["pause"]).succeed();
    site.standby_command(&["boot", "--no-wait"]).succeed();
    wait_for("the database to open", PATIENCE, || {
        let answer = standby.try_psql("SELECT pg_is_in_recovery()").ok()?;
        (answer == "f").then_some(())
    });
    assert_eq!(standby.psql(CONTENT), content);
    // What STOP is left speaks of a server that needs it no longer.
    let stop = fs::read_to_string(site.completed_wals().join("STOP")).unwrap();
    assert!(
        stop.starts_with(&format!("{} ", standby.pid().unwrap())),
        "{stop}"
    );
}

#[test]
fn a_server_that_ends_while_it_is_booted_is_a_failure_and_stays_closed() {
    skip_unless!(Cluster::available(15));
    let mut site = master(15);
    let mut standby = standby_of(&mut site, false);
    site.standby_command(&["pause"]).succeed();
    site.cluster().psql("CREATE TABLE t ()");
    let last = finish(&site);
    let path = site.unpacked_path(&last);
    let good = fs::read(&path).unwrap();
    fs::write(&path, vec![0; good.len()]).unwrap();
    let ended = "the server ended before it had opened";
    site.standby_command(&["boot"]).fail_last(1, ended);
    assert!(!site.holds("STOP"));
    standby.stop(StopMode::Fast);
    fs::write(&path, good).unwrap();
    standby.start();
    wait_until_restored(&standby, &last);
    assert!(
        standby.data().join("standby.signal").exists(),
        "a stale promotion opened it"
    );
    site.standby_command(&["boot"]).succeed();
    standby.psql("TABLE t");
}

#[test]
fn standby_stalled_by_a_damaged_segment_boots_by_force() {
    skip_unless!(Cluster::available(15));
    let mut site = master(15);
    site.standby_set("on_corrupt", "stall");
    let standby = standby_of(&mut site, false);
    site.standby_command(&["pause"]).succeed();
    let before = newest_segment(&site);
    for round in 0..3 {
        site.cluster().psql(&format!("CREATE TABLE t{round} ()"));
        finish(&site);
    }
    let names = behind(&site, &before);
    let damaged = &names[names.len() - 2];
    let path = site.unpacked_path(damaged);
    let zeros = vec![0; fs::read(&path).unwrap().len()];
    fs::write(&path, zeros).unwrap();
    site.standby_command(&["continue"]).succeed();
    standby.wait_for_log("ALARM", PATIENCE);
    assert!(standby.is_running());
    let forced = site.standby_command(&["boot", "--force"]);
    forced.fail_last(1, "but lacks WAL that was acknowledged");
    standby.wait_for_log("takes this for the end of WAL", PATIENCE);
    let tables = standby.psql("SELECT relname FROM pg_class WHERE relname ~ '^t[0-2]$' ORDER BY 1");
    assert!(!tables.contains("t2"), "{tables}");
    assert!(!site.holds("STOP"));
}
