//! Standbys that are booted with what was shipped record by record.
//! Never archives the last segment before the master dies. Invariant: whatever the standby
//! acknowledged is in the database that opens, and its old master is told so from then on.

mod load;
mod overtaken;

use rustix::process::Signal;

use walmgr_protocol::names::{Lsn, SegmentName, WalSegmentSize};

use super::*;
use crate::partial::daemon::Syncdaemon;
use crate::partial::flushed;
use crate::support::strace::Strace;

/// A master that archives and ships, and its standby.
fn shipping(hot: bool) -> (Site, Cluster) {
    shipping_version(15, hot)
}

pub(super) fn shipping_version(major: u8, hot: bool) -> (Site, Cluster) {
    let mut site = bare_master(major);
    site.master_set("use_xlog_functions", "1");
    site.master_set("loop_delay", "0.05");
    let standby = standby_of(&mut site, hot);
    (site, standby)
}

/// The segment that holds the byte before an LSN.
pub(super) fn segment_before(lsn: Lsn) -> (SegmentName, usize) {
    let size = WalSegmentSize::new(1 << 20).unwrap();
    let timeline = walmgr_protocol::names::TimelineId::new(1).unwrap();
    let last = Lsn(lsn.0 - 1);
    let behind = usize::try_from(last.0 % size.bytes()).unwrap() + 1;
    (SegmentName::containing(timeline, last, size), behind)
}

fn frozen_marker(site: &Site) -> PathBuf {
    site.partial_wals().join("FROZEN")
}

fn is_refused_as_frozen(site: &Site) {
    let refused = site.master_command(&["sync"]);
    refused.fail_last(1, "timeline 1 is frozen: the standby was booted");
    refused.fail_last(1, "stop this server");
}

fn open_again(standby: &Cluster) {
    wait_for("the database to open", PATIENCE, || {
        let answer = standby.try_psql("SELECT pg_is_in_recovery()").ok()?;
        (answer == "f").then_some(())
    });
}

pub(super) fn count(server: &Cluster) -> u32 {
    server.psql("SELECT count(*) FROM t").parse().unwrap()
}

#[test]
fn fault_76_a_boot_brings_what_was_shipped_the_same_bytes_each_time() {
    for major in Cluster::available_majors() {
        let (mut site, standby) = shipping_version(major, major % 2 == 0);
        site.cluster().psql("CREATE TABLE t (n int)");
        finish(&site);
        site.cluster().psql("INSERT INTO t VALUES (1)");
        site.master_command(&["sync"]).succeed();
        site.cluster_mut().kill9();
        site.receiver.kill9();
        // The master's last word, read before its next start goes on writing there.
        let (name, _) = segment_before(site_end(&site));
        let (name, ours) = (
            name.to_string(),
            site.data().join("pg_wal").join(name.to_string()),
        );
        let ours = fs::read(ours).unwrap();
        let shipped = fs::read(site.partial_wals().join(&name)).unwrap();
        let records = shipped.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        assert!(records > 100 && shipped[..records] == ours[..records]);

        let output = site.standby_command(&["boot", "--no-wait"]);
        output.succeed();
        open_again(&standby);
        assert_eq!(count(&standby), 1);
        let served: Vec<Vec<u8>> = (0..2).map(|_| xrestored(&site, &standby, &name)).collect();
        assert!(served[0] == served[1] && served[0] == shipped);
        // The old master comes back, and so does the receiver.
        site.start_receiver();
        site.cluster_mut().start();
        is_refused_as_frozen(&site);
        site.restart_receiver();
        is_refused_as_frozen(&site);
        assert_eq!(fs::read(site.partial_wals().join(&name)).unwrap(), shipped);
    }
}

/// Where the standby's last partial segment ends.
fn site_end(site: &Site) -> Lsn {
    let names = fs::read_dir(site.partial_wals()).unwrap().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let newest = names.filter(|name| name.len() == 24).max().unwrap();
    let segment: SegmentName = newest.parse().unwrap();
    let size = WalSegmentSize::new(1 << 20).unwrap();
    Lsn(segment.start(size).unwrap().0 + 1)
}

/// What `xrestore` gives to the server itself.
fn xrestored(site: &Site, standby: &Cluster, name: &str) -> Vec<u8> {
    let path = site.home().join("served");
    let mut command = site.standby_walmgr(&["xrestore", name]);
    command.arg(&path).current_dir(standby.data());
    run(&mut command).unwrap();
    fs::read(path).unwrap()
}

/// Makes a standby's `restore_command` go through `$1`, a shell script with the command behind it.
pub(super) fn restore_through(site: &Site, standby: &Cluster, script: &str) {
    let path = site.home().write("through.sh", script);
    let command = restore_command(site);
    standby.psql(&format!(
        "ALTER SYSTEM SET restore_command = 'sh {} {command}'",
        path.display()
    ));
    standby.reload();
}

/// A master that died with records only shipped, and its standby, which asks for them in vain.
fn asking_in_vain(script: &str) -> (Site, Cluster) {
    let (mut site, standby) = shipping(true);
    restore_through(&site, &standby, script);
    site.cluster().psql("CREATE TABLE t (n int)");
    let last = finish(&site);
    wait_until_restored(&standby, &last);
    site.cluster().psql("INSERT INTO t VALUES (1)");
    site.master_command(&["sync"]).succeed();
    site.cluster_mut().kill9();
    (site, standby)
}

/// Boots while the script waits, and lets it go on half a second after STOP was written.
fn boot_while_it_waits(site: &Site, standby: &Cluster) {
    let (hold, held) = (site.home().join("hold"), site.home().join("held"));
    fs::write(&hold, "").unwrap();
    wait_for("an answer that is late", PATIENCE, || {
        held.exists().then_some(())
    });
    std::thread::scope(|scope| {
        let boot = scope.spawn(|| site.standby_command(&["boot"]));
        wait_for("STOP", PATIENCE, || site.holds("STOP").then_some(()));
        std::thread::sleep(Duration::from_millis(500));
        fs::remove_file(&hold).unwrap();
        boot.join().unwrap().succeed();
    });
    assert_eq!(count(standby), 1);
}

#[test]
fn fault_76_what_was_said_before_the_boot_does_not_end_recovery_after_it() {
    skip_unless!(Cluster::available(15));
    // `xrestore` has ended, and PostgreSQL does not know yet.
    let (site, standby) = asking_in_vain(
        "home=${0%/*}; \"$@\"; code=$?\n\
         case $4 in *.history) exit $code;; esac\n\
         if [ $code = 1 ] && [ -e $home/hold ]; then\n\
         touch $home/held; while [ -e $home/hold ]; do sleep 0.05; done; fi\n\
         exit $code\n",
    );
    boot_while_it_waits(&site, &standby);
}

#[test]
fn fault_76_paused_replay_is_resumed_and_asks_before_it_opens() {
    skip_unless!(Cluster::available(15));
    let (mut site, standby) = shipping(true);
    site.cluster().psql("CREATE TABLE t (n int)");
    let last = finish(&site);
    wait_until_restored(&standby, &last);
    standby.psql("SELECT pg_wal_replay_pause()");
    wait_for("the pause", PATIENCE, || {
        let state = standby.psql("SELECT pg_get_wal_replay_pause_state()");
        (state == "paused").then_some(())
    });
    site.cluster().psql("INSERT INTO t VALUES (1)");
    site.master_command(&["sync"]).succeed();
    site.cluster_mut().kill9();
    let booted = site.standby_command(&["boot"]);
    booted.succeed();
    assert_eq!(count(&standby), 1, "{}", booted.stderr);
}

#[test]
fn fault_76_an_answer_that_the_boot_overtakes_is_looked_up_again() {
    skip_unless!(Cluster::available(15));
    skip_unless!(Strace::available());
    // `xrestore` has looked, and not said so yet: the boot sees nothing of it.
    let (site, standby) = asking_in_vain(
        "home=${0%/*}\n\
         case $4 in *.history) exec \"$@\";; esac\n\
         [ -e $home/hold ] || exec \"$@\"\n\
         (sleep 1; touch $home/held) &\n\
         walmgr=$1; name=$4; shift\n\
         exec strace -f -qq -o /dev/null -P ./pg_stat_tmp/walmgr.absent.$name \
         -e trace=openat -e inject=openat:delay_enter=4000000 \
         $walmgr --set restore_wait=1ms \"$@\"\n",
    );
    boot_while_it_waits(&site, &standby);
}

#[test]
fn fault_77_a_delta_in_flight_is_refused_while_the_receiver_hangs() {
    skip_unless!(Cluster::available(15));
    let (site, standby) = shipping(false);
    site.cluster().psql("CREATE TABLE t (n int)");
    site.master_command(&["sync"]).succeed();
    let mut daemon = Syncdaemon::start(&site);
    daemon.wait_for_log("is shipped to");
    site.receiver.signal(Signal::STOP);
    site.cluster().psql("INSERT INTO t VALUES (1)");
    // It is sent by now, and lies before a receiver that does not move.
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    site.standby_command(&["boot"]).succeed();
    println!(
        "booted beside a receiver that hangs in {:.1?}",
        begun.elapsed()
    );
    site.receiver.signal(Signal::CONT);
    daemon.wait_for_log("timeline 1 is frozen: the standby was booted");
    site.cluster().psql("INSERT INTO t VALUES (2)");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(count(&standby), 0, "nothing of it was acknowledged");
    standby.psql("INSERT INTO t VALUES (3)");
    assert_eq!(standby.psql("TABLE t"), "3");
    let status = site.standby_command(&["status", "--json"]).stdout;
    let warned = r#""code":"frozen","level":"warning""#;
    let shown = r#""frozen_timeline":1"#;
    assert!(
        status.contains(warned) && status.contains(shown),
        "{status}"
    );
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), Some(0));
    // The records of after the freeze are nowhere.
    let (name, behind) = segment_before(flushed(&site));
    let held = fs::read(site.partial_wals().join(name.to_string()));
    assert!(held.map_or(true, |held| {
        held[behind - 8..behind].iter().all(|byte| *byte == 0)
    }));
}

#[test]
fn fault_78_gap_before_the_partial_segment_is_refused_with_the_loss() {
    skip_unless!(Cluster::available(15));
    let (mut site, standby) = shipping(false);
    site.cluster().psql("CREATE TABLE t (n int)");
    finish(&site);
    site.cluster()
        .psql("ALTER SYSTEM SET archive_command = '/bin/false'");
    site.cluster().reload();
    for row in 1..=4 {
        let insert = format!("INSERT INTO t SELECT {row} FROM generate_series(1, 3000)");
        site.cluster().psql(&insert);
        site.cluster().switch_wal();
        site.master_command(&["sync"]).succeed();
    }
    site.cluster().psql("INSERT INTO t VALUES (5)");
    site.master_command(&["sync"]).succeed();
    let end = flushed(&site);
    site.cluster_mut().kill9();
    let (last, _) = segment_before(end);
    let size = WalSegmentSize::new(1 << 20).unwrap();
    let number = last.number(size).unwrap() - 2;
    let missing = SegmentName::from_number(last.timeline(), number, size);
    let path = site.partial_wals().join(missing.to_string());
    let aside = site.home().join("aside");
    fs::rename(&path, &aside).unwrap();
    let lost = format!(
        "{missing} is missing: the WAL from {} to {end} would be lost",
        missing.start(size).unwrap()
    );
    for words in [&["boot"][..], &["boot", "-n"]] {
        let refused = site.standby_command(words);
        let line = refused.fail(1);
        assert!(line.contains(&lost) && line.contains("--force"), "{line}");
        assert!(!site.holds("STOP") && !frozen_marker(&site).exists());
    }
    // Only its beginning is there.
    let mut partly = fs::read(&aside).unwrap();
    partly[90_000..].fill(0);
    fs::write(&path, partly).unwrap();
    crate::support::place::give_to_server(&path);
    let refused = site.standby_command(&["boot"]);
    let line = refused.fail(1);
    assert!(
        line.contains(&format!("{missing} is present only up to")),
        "{line}"
    );

    let forced = site.standby_command(&["boot", "--force"]);
    forced.fail_last(1, &format!("was acknowledged up to {end}"));
    assert!(forced.stderr.contains("would be lost"), "{}", forced.stderr);
    let rows = standby.psql("SELECT max(n) FROM t");
    assert!(["2", "3"].contains(&rows.as_str()), "{rows}");
}

#[test]
fn fault_79_83_the_old_master_goes_on_and_its_timeline_is_kept_apart() {
    skip_unless!(Cluster::available(15));
    let mut site = bare_master(15);
    site.master_set("use_xlog_functions", "1");
    let mut follower = copy_of_master(&mut site, "follower", &["hot_standby = on"]);
    signal_file(&follower, "standby.signal");
    let data = site.home().join("replaying");
    let (walmgr, ini) = (walmgr_binary().display(), site.master_ini().display());
    let archive_command = format!(
        "archive_command = '{walmgr} --set master_data={} {ini} xarchive %p %f'",
        data.display()
    );
    let settings = ["archive_mode = on", archive_command.as_str()];
    let mut promoted = copy_of_master(&mut site, "replaying", &settings);
    signal_file(&promoted, "standby.signal");
    site.standby_set("slave_data", &data.display().to_string());
    promoted.start();
    site.cluster().psql("CREATE TABLE t AS SELECT 1 AS n");
    site.master_command(&["sync"]).succeed();
    let (name, _) = segment_before(flushed(&site));
    let name = name.to_string();
    let partial = fs::read(site.partial_wals().join(&name)).unwrap();
    site.standby_command(&["boot"]).succeed();

    // Both go on: the old master finishes the segment that the new one branched off in.
    site.cluster().psql("INSERT INTO t VALUES (2)");
    promoted.psql("INSERT INTO t VALUES (3)");
    site.cluster().switch_wal();
    let theirs = promoted.psql("SELECT pg_walfile_name(pg_switch_wal())");
    for name in [name.as_str(), &theirs, "00000002.history"] {
        wait_for(name, PATIENCE, || site.holds(name).then_some(()));
    }
    let ours = fs::read(site.data().join("pg_wal").join(&name)).unwrap();
    assert!(site.archived(&name) == ours && ours != partial);
    // What counts of the segment stays, beside what the old master made of it.
    let kept = fs::read(site.partial_wals().join(&name)).ok();
    assert!(kept == Some(partial), "{}", site.receiver.log());
    assert!(theirs.starts_with("00000002"), "{theirs}");
    is_refused_as_frozen(&site);
    // The new one ships too; what it holds leads a follower along its timeline.
    let shipping = [
        "--set",
        &format!(
            "master_data={},master_db={}",
            data.display(),
            promoted.conninfo()
        ),
    ];
    promoted.psql("INSERT INTO t VALUES (4)");
    let mut sync = site.master_walmgr(&["sync"]);
    run(sync.args(shipping)).unwrap();
    follower.start();
    wait_for("the promoted server's rows", PATIENCE, || {
        let rows = follower.try_psql("SELECT string_agg(n::text, ',') FROM t");
        (rows.ok()? == "1,3").then_some(())
    });
    let status = site.standby_command(&["status", "--json"]).stdout;
    assert!(status.contains(r#""frozen_timeline":1"#), "{status}");
    assert!(!status.contains(r#""code":"frozen""#), "{status}");
    // What the old master goes on to write has no place before or behind that.
    let mut last = String::new();
    for row in [5, 6] {
        let insert = format!("INSERT INTO t VALUES ({row})");
        site.cluster().psql(&insert);
        last = site
            .cluster()
            .psql("SELECT pg_walfile_name(pg_switch_wal())");
    }
    wait_for(&last, PATIENCE, || site.holds(&last).then_some(()));
    site.standby_set("slave_data", &follower.data().display().to_string());
    site.standby_command(&["boot", "-n"]).succeed();
}

#[test]
fn fault_76_streamed_records_and_shipped_ones_add_up() {
    skip_unless!(Cluster::available(15));
    // Streaming is ahead of what was shipped, and the other way round.
    for streamed_further in [true, false] {
        let mut site = bare_master(15);
        site.master_set("use_xlog_functions", "1");
        let primary = site.cluster().conninfo().replace('\'', "''");
        let settings = [
            "hot_standby = on",
            &format!("primary_conninfo = '{primary}'"),
        ];
        let mut standby = copy_of_master(&mut site, "replaying", &settings);
        signal_file(&standby, "standby.signal");
        site.standby_set("slave_data", &standby.data().display().to_string());
        standby.start();
        site.cluster().psql("CREATE TABLE t AS SELECT 1 AS n");
        wait_for("the table", PATIENCE, || standby.try_psql("TABLE t").ok());
        site.master_command(&["sync"]).succeed();
        if streamed_further {
            site.cluster()
                .psql("INSERT INTO t SELECT generate_series(2, 900)");
            wait_for("the rows", PATIENCE, || {
                (count(&standby) == 900).then_some(())
            });
        } else {
            let nowhere = "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'";
            standby.psql(nowhere);
            standby.reload();
            let streams = "SELECT count(*) FROM pg_stat_replication";
            wait_for("the cut", PATIENCE, || {
                (site.cluster().psql(streams) == "0").then_some(())
            });
            site.cluster()
                .psql("INSERT INTO t SELECT generate_series(2, 900)");
            site.master_command(&["sync"]).succeed();
            assert_eq!(count(&standby), 1);
        }
        site.cluster_mut().kill9();
        let said = site.standby_command(&["boot"]).succeed();
        println!("streamed further: {streamed_further}: {said}");
        assert_eq!(count(&standby), 900);
        standby.psql("INSERT INTO t VALUES (901)");
        standby.restart();
        assert_eq!(count(&standby), 901);
    }
}

#[test]
fn a_server_that_ends_while_it_is_booted_lets_the_stream_go_on() {
    skip_unless!(Cluster::available(15));
    let (site, mut standby) = shipping(false);
    site.standby_command(&["pause"]).succeed();
    site.cluster().psql("CREATE TABLE t AS SELECT 1 AS n");
    let last = finish(&site);
    let path = site.unpacked_path(&last);
    let good = fs::read(&path).unwrap();
    fs::write(&path, vec![0; good.len()]).unwrap();
    site.master_command(&["sync"]).succeed();
    let ended = "the server ended before it had opened";
    site.standby_command(&["boot"]).fail_last(1, ended);
    assert!(!frozen_marker(&site).exists() && !site.holds("STOP"));
    fs::write(&path, good).unwrap();
    site.cluster().psql("INSERT INTO t VALUES (2)");
    site.master_command(&["sync"]).succeed();
    standby.stop(StopMode::Fast);
    standby.start();
    site.standby_command(&["boot"]).succeed();
    assert_eq!(count(&standby), 2);
}
