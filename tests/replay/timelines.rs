//! Failovers without a syncdaemon, and what a stolen key makes of timelines.
//! Never forges what only the standby's own host writes. Invariant: whatever was stored, the next
//! boot brings every acknowledged row, and the master goes on.

use walmgr_protocol::message::WireVerify;
use walmgr_protocol::names::{SegmentName, TimelineId, WalFileName};

use super::shipped::{count, segment_before, shipping_version};
use super::*;
use crate::partial::flushed;
use crate::support::hostile::{self, Key};
use crate::support::imitation::segment_of;
use crate::support::peer::Peer;

/// The oldest of the tested servers, and the newest.
fn majors() -> Vec<u8> {
    let mut majors = Cluster::available_majors();
    let newest = majors.last().copied();
    majors.retain(|major| *major == 15 || Some(*major) == newest);
    majors
}

/// What somebody with a stolen key stores.
struct Forgery {
    name: String,
    content: Vec<u8>,
}

impl Forgery {
    fn history(name: &str, text: &str) -> Forgery {
        Forgery {
            name: name.to_owned(),
            content: text.as_bytes().to_vec(),
        }
    }

    /// A valid segment this far ahead of where the master writes.
    fn segment(site: &Site, timeline: u32, ahead: u64) -> Forgery {
        let cluster = site.facts().cluster;
        let (written, _) = segment_before(flushed(site));
        let number = written.number(cluster.segment_size).unwrap() + ahead;
        let timeline = TimelineId::new(timeline).unwrap();
        let name = SegmentName::from_number(timeline, number, cluster.segment_size);
        Forgery {
            name: name.to_string(),
            content: segment_of(&cluster, timeline, number, "forged"),
        }
    }

    fn store(&self, peer: &mut Peer) {
        let name: WalFileName = self.name.parse().unwrap();
        hostile::store(peer, name, &self.content, WireVerify::Off).unwrap();
    }
}

fn every_forgery(site: &Site) -> Vec<Forgery> {
    vec![
        Forgery::history("7FFFFFF0.history", "1\t0/3000028\tx\n"),
        Forgery::history("00000002.history", "1\t0/1000028\tx\n"),
        Forgery::segment(site, 1, 5_000),
        Forgery::segment(site, 9, 5_000),
        // As far ahead as one can say: it would stop the stream before anything has led there.
        Forgery::history("00000003.history", "1\tFF/28\tx\n"),
    ]
}

/// A boot brings all rows after these were stored; says which timeline it opened.
fn survives(major: u8, forge: impl Fn(&Site) -> Vec<Forgery>) -> String {
    let (mut site, mut standby) = shipping_version(major, true);
    site.cluster().psql("CREATE TABLE t (n int)");
    finish(&site);
    site.cluster().psql("INSERT INTO t VALUES (1)");
    site.master_command(&["sync"]).succeed();
    let thief = Key::authorized(&site, "thief", "push");
    let forged = forge(&site);
    let mut peer = thief.connect(&site);
    for forgery in &forged {
        forgery.store(&mut peer);
        let noted = format!("{} of thief", forgery.name);
        site.receiver.wait_for_log(&noted);
    }
    let status = site.standby_command(&["status"]);
    let told = format!("{}{}", status.stdout, status.stderr);
    assert!(
        told.contains("set apart") && told.contains("of thief"),
        "{told}"
    );
    // The stream goes on, a new one too, and so does archiving.
    site.cluster().psql("INSERT INTO t VALUES (2)");
    site.master_command(&["sync"]).succeed();
    let last = finish(&site);
    assert!(last.starts_with("00000001") || forged.iter().any(|one| one.name == last));
    site.cluster().psql("INSERT INTO t VALUES (3)");
    site.master_command(&["sync"]).succeed();
    // No standby ends for it, at its start or later.
    standby.restart();
    site.cluster_mut().kill9();
    site.standby_command(&["boot"]).succeed();
    assert_eq!(count(&standby), 3);
    standby.psql("SELECT pg_walfile_name(pg_current_wal_lsn())")[..8].to_owned()
}

#[test]
fn fault_110_a_forged_history_far_above_is_followed_by_nobody() {
    skip_unless!(Cluster::available(15));
    let timeline = survives(15, |site| every_forgery(site).drain(..1).collect());
    assert_eq!(timeline, "00000002");
}

#[test]
fn fault_110_a_forged_switch_point_before_acknowledged_wal_loses_no_row() {
    skip_unless!(Cluster::available(15));
    let timeline = survives(15, |site| every_forgery(site).drain(1..2).collect());
    // The number is taken.
    assert_eq!(timeline, "00000003");
}

#[test]
fn fault_113_a_segment_far_ahead_ends_no_standby_and_no_archiving() {
    skip_unless!(Cluster::available(15));
    let timeline = survives(15, |site| every_forgery(site).drain(2..3).collect());
    assert_eq!(timeline, "00000002");
}

#[test]
fn fault_113_a_segment_of_an_unknown_timeline_ends_nothing() {
    skip_unless!(Cluster::available(15));
    let timeline = survives(15, |site| every_forgery(site).drain(3..4).collect());
    assert_eq!(timeline, "00000002");
}

#[test]
fn fault_110_every_forgery_at_once_loses_no_row() {
    skip_unless!(Cluster::available(15));
    let newest = majors().pop().unwrap();
    assert_eq!(survives(newest, every_forgery), "00000004");
}

#[test]
fn fault_113_what_the_client_asks_for_can_only_be_stricter() {
    skip_unless!(Cluster::available(15));
    let site = bare_master(15);
    site.cluster().psql("CREATE TABLE t (n int)");
    finish(&site);
    let thief = Key::authorized(&site, "thief", "push");
    let mut forged = Forgery::segment(&site, 1, 1);
    forged.content[40_000..].fill(0x5A);
    let name: WalFileName = forged.name.parse().unwrap();
    let mut peer = thief.connect(&site);
    let stored = hostile::store(&mut peer, name, &forged.content, WireVerify::Off);
    assert!(stored.is_err() && !site.holds(&forged.name));
    site.cluster().psql("INSERT INTO t VALUES (1)");
    finish(&site);
    site.cluster().psql("INSERT INTO t VALUES (2)");
    finish(&site);
    assert!(site.holds(&forged.name));
}

#[test]
fn fault_113_a_standby_waits_at_a_gap_and_status_says_so() {
    skip_unless!(Cluster::available(15));
    let mut site = bare_master(15);
    let mut standby = standby_of(&mut site, true);
    site.cluster().psql("CREATE TABLE t (n int)");
    let last = finish(&site);
    wait_until_restored(&standby, &last);
    let thief = Key::authorized(&site, "thief", "push");
    Forgery::segment(&site, 1, 3).store(&mut thief.connect(&site));
    standby.restart();
    std::thread::sleep(Duration::from_secs(3));
    assert!(standby.is_running(), "{}", standby.log());
    let status = site.standby_command(&["status", "--json"]).stdout;
    assert!(status.contains(r#""code":"gap""#), "{status}");
    site.standby_command(&["boot"]).fail_last(1, "is missing");
    site.cluster().psql("INSERT INTO t VALUES (1)");
    let last = finish(&site);
    let _ = last;
    wait_for("the row", PATIENCE, || {
        (standby.try_psql("SELECT count(*) FROM t").ok()? == "1").then_some(())
    });
}

/// A master.ini for another server of the same cluster.
pub(crate) fn ini_of(site: &Site, server: &Cluster) -> PathBuf {
    let text = fs::read_to_string(site.master_ini()).unwrap();
    let ours = [
        "master_data",
        "master_config",
        "master_db",
        "master_restart_cmd",
        "tls_key",
        "tls_cert",
    ];
    let kept = text.lines().filter(|line| {
        let key = line.split('=').next().unwrap_or_default().trim();
        !ours.contains(&key)
    });
    let mut text: String = kept.map(|line| format!("{line}\n")).collect();
    let tls = site.master_config().tls;
    for (key, value) in [
        ("master_data", server.data().display().to_string()),
        (
            "master_config",
            server.data().join("postgresql.conf").display().to_string(),
        ),
        ("master_db", server.conninfo()),
        ("tls_key", tls.key.display().to_string()),
        ("tls_cert", tls.certificate.display().to_string()),
    ] {
        text.push_str(&format!("{key} = {value}\n"));
    }
    let folder = site.home().create_dir("second");
    let path = folder.join("master.ini");
    fs::write(&path, text).unwrap();
    give_to_server(&folder);
    path
}

/// walmgr with it, run to its end.
pub(crate) fn second_master(ini: &Path, words: &[&str]) -> crate::support::Output {
    let mut command = crate::support::walmgr();
    crate::support::Output::of(command.arg(ini).args(words))
}

/// Everything a server has written is archived.
pub(crate) fn switched(server: &Cluster, site: &Site) -> String {
    let name = server.psql("SELECT pg_walfile_name(pg_switch_wal())");
    wait_for(&name, PATIENCE, || site.holds(&name).then_some(()));
    name
}

#[test]
fn fault_105_the_next_boot_follows_the_timeline_and_opens_another() {
    for major in majors() {
        let mut site = bare_master(major);
        let mut promoted = standby_of(&mut site, true);
        let mut older = copy_of_master(&mut site, "older", &["hot_standby = on"]);
        signal_file(&older, "standby.signal");
        site.cluster().psql("CREATE TABLE t AS SELECT 1 AS n");
        let last = finish(&site);
        wait_until_restored(&promoted, &last);
        site.cluster_mut().kill9();
        site.standby_command(&["boot"]).succeed();
        // Before the new master has archived anything.
        assert!(site.holds("00000002.history"));

        // As `restore` leaves it.
        promoted.psql("ALTER SYSTEM SET archive_mode = off");
        let ini = ini_of(&site, &promoted);
        let said = second_master(&ini, &["setup"]);
        said.succeed();
        assert!(
            said.stderr.contains("restart PostgreSQL, so that"),
            "{}",
            said.stderr
        );
        promoted.restart();
        second_master(&ini, &["setup"]).succeed();
        promoted.psql("INSERT INTO t VALUES (2)");
        let theirs = switched(&promoted, &site);
        assert!(theirs.starts_with("00000002"), "{theirs}");

        // The old master only archives, and is fenced all the same.
        site.cluster_mut().start();
        site.cluster().psql("INSERT INTO t VALUES (3)");
        let stray = switched(site.cluster(), &site);
        let note = site
            .completed_wals()
            .join(".apart")
            .join(format!("{stray}.behind"));
        assert!(note.exists(), "{stray}");
        let status = site.standby_command(&["status"]);
        assert!(status.stdout.contains("set apart"), "{}", status.stdout);
        promoted.kill9();

        site.standby_set("slave_data", &older.data().display().to_string());
        older.start();
        wait_for("the rows", PATIENCE, || older.try_psql("TABLE t").ok());
        site.standby_command(&["boot"]).succeed();
        assert_eq!(
            older.psql("SELECT string_agg(n::text, ',' ORDER BY n) FROM t"),
            "1,2"
        );
        let written = older.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
        assert!(written.starts_with("00000003"), "{written}");
        assert!(site.holds("00000003.history"));
    }
}

#[test]
fn fault_105_a_history_that_is_missing_goes_before_the_first_segment() {
    skip_unless!(Cluster::available(15));
    let mut site = bare_master(15);
    let mut promoted = standby_of(&mut site, true);
    site.cluster().psql("CREATE TABLE t AS SELECT 1 AS n");
    let last = finish(&site);
    wait_until_restored(&promoted, &last);
    site.cluster_mut().kill9();
    // Nobody booted it, and archiving was off.
    promoted.psql("SELECT pg_promote()");
    let ini = ini_of(&site, &promoted);
    let segment = promoted.psql("SELECT pg_walfile_name(pg_switch_wal())");
    assert!(!site.holds("00000002.history"));
    let mut xarchive = crate::support::walmgr();
    xarchive
        .arg(&ini)
        .args(["xarchive", &format!("pg_wal/{segment}"), &segment]);
    crate::support::Output::of(xarchive.current_dir(promoted.data())).succeed();
    assert!(site.holds("00000002.history") && site.holds(&segment));
    // What the standby had once it may have lost, so it is asked again in time.
    fs::remove_file(site.completed_wals().join("00000002.history")).unwrap();
    let memory = ini.with_extension("timeline");
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(61);
    let memory = fs::File::options().write(true).open(memory).unwrap();
    memory.set_modified(long_ago).unwrap();
    promoted.psql("INSERT INTO t VALUES (2)");
    let next = promoted.psql("SELECT pg_walfile_name(pg_switch_wal())");
    let mut xarchive = crate::support::walmgr();
    xarchive
        .arg(&ini)
        .args(["xarchive", &format!("pg_wal/{next}"), &next]);
    crate::support::Output::of(xarchive.current_dir(promoted.data())).succeed();
    assert!(site.holds("00000002.history") && site.holds(&next));
    // Nothing is apart, and that no boot opened the timeline is not forgotten.
    let notes = fs::read_dir(site.completed_wals().join(".apart"));
    let left = notes.into_iter().flatten().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["00000002.history.claimed"]);
    promoted.stop(StopMode::Fast);
}
