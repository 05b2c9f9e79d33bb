//! What ends a backup of a standby: kills, signals, a second one, a promotion, missing full pages, a full disk.
//! Never leaves anything to remove by hand. Invariant: whatever ended one, the next one works, and replay goes on.

use super::*;
use crate::support::loopfs::{FileSystem, LoopFs, TmpFs, give_back, take_all};
use crate::support::soak;

/// Nothing is left of one that was ended, and the next one works.
#[track_caller]
fn assert_next_works(pair: &Pair) {
    let sets = pair.listed().len();
    pair.backup().succeed();
    assert_eq!(pair.listed().len(), sets + 1);
    assert_eq!(pair.beside(), pair.listed());
    pair.verify("data.master");
    for gone in ["BACKUPLOCK", "PAUSE.backup"] {
        assert!(!pair.site.holds(gone), "{gone}");
    }
    // Replay goes on.
    pair.catch_up();
}

#[test]
fn fault_153_killed_it_leaves_nothing_listed_and_replay_goes_on() {
    skip_unless!(Cluster::available(15));
    for hot in [true, false] {
        let pair = Pair::new(15, hot);
        for signal in [Signal::KILL, Signal::TERM, Signal::INT] {
            let running = Running::halted(&pair);
            assert_eq!(pair.site.holds("PAUSE.backup"), !hot);
            running.signal(signal);
            running.signal(Signal::CONT);
            let output = running.end();
            if signal != Signal::KILL {
                assert_eq!(output.code, Some(1), "{}", output.stderr);
                assert!(
                    output.stderr.contains("stopped by SIG"),
                    "{}",
                    output.stderr
                );
                assert_eq!(pair.beside(), pair.listed(), "{signal:?}");
            }
            // Before anybody types anything.
            pair.catch_up();
            assert_next_works(&pair);
        }
        let rounds = if soak() { 20 } else { 2 };
        for round in 0..rounds {
            let running = Running::start(&pair);
            std::thread::sleep(Duration::from_millis(37 * (round + 1)));
            running.signal(Signal::KILL);
            running.end();
            let sets = pair.listed();
            sets.iter().for_each(|set| pair.verify(set));
            assert_next_works(&pair);
        }
    }
}

#[test]
fn fault_153_one_backup_at_a_time_whichever_side_makes_it() {
    skip_unless!(Cluster::available(15));
    let pair = Pair::new(15, true);
    let running = Running::halted(&pair);
    for refused in [pair.backup(), pair.site.master_command(&["backup"])] {
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("on the standby"),
            "{}",
            refused.stderr
        );
    }
    let refused = pair.site.standby_command(&["-n", "backup"]);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    running.signal(Signal::CONT);
    running.end().succeed();
    assert_eq!(pair.listed(), ["data.master"]);
    // The other way round.
    let mut of_master = pair.site.master_walmgr(&["backup"]);
    of_master.stdout(Stdio::null()).stderr(Stdio::null());
    let mut of_master = of_master.spawn().unwrap();
    wait_for("the master's backup", PATIENCE, || {
        pair.set("data.master.incoming").exists().then_some(())
    });
    let stopped = kill_process(Pid::from_child(&of_master), Signal::STOP);
    let refused = pair.backup();
    stopped.unwrap();
    let _ = kill_process(Pid::from_child(&of_master), Signal::CONT);
    if pair.listed().len() == 1 {
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    }
    assert!(of_master.wait().unwrap().success());
    assert_next_works(&pair);
}

#[test]
fn fault_153_a_promotion_in_the_middle_ends_it_with_words() {
    skip_unless!(Cluster::available(15));
    for hot in [true, false] {
        let pair = Pair::new(15, hot);
        let running = Running::halted(&pair);
        match hot {
            true => {
                let mut promote = pair.standby.command("pg_ctl");
                promote.args(["promote", "-w", "-t", "60", "-D"]);
                run(promote.arg(pair.standby.data())).unwrap();
            }
            // The hold does not hold up a boot.
            false => drop(pair.site.standby_command(&["boot"]).succeed()),
        }
        running.signal(Signal::CONT);
        let output = running.end();
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        assert!(
            output.stderr.contains("was promoted during the backup"),
            "{}",
            output.stderr
        );
        assert_eq!(pair.beside(), [""; 0]);
        // Nor is there anything to back up any more.
        let refused = pair.backup();
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("is no standby"),
            "{}",
            refused.stderr
        );
    }
}

#[test]
fn fault_153_wal_without_full_pages_ends_it_with_words() {
    for major in majors() {
        for hot in [true, false] {
            let mut pair = Pair::new(major, hot);
            let set = |pair: &Pair, value: &str| {
                let sql = format!("ALTER SYSTEM SET full_page_writes = {value}");
                pair.site.cluster().psql(&sql);
                pair.site.cluster().reload();
                wait_for("the setting", PATIENCE, || {
                    (pair.site.cluster().psql("SHOW full_page_writes") == value).then_some(())
                });
            };
            set(&pair, "off");
            // More pages than there are buffers: some are written out, and so count.
            let work = "UPDATE pgbench_accounts SET abalance = abalance + 1";
            pair.site.cluster().psql(work);
            if !hot {
                // Its control file is of a checkpoint before all that.
                set(&pair, "on");
            }
            pair.catch_up();
            let refused = pair.backup();
            assert_eq!(refused.code, Some(1), "{}", refused.stderr);
            assert!(
                refused.stderr.contains("full_page_writes = on"),
                "PostgreSQL {major}, hot {hot}: {}",
                refused.stderr
            );
            assert_eq!(pair.beside(), [""; 0]);
            set(&pair, "on");
            // A restartpoint of a checkpoint behind it makes it good.
            wait_for("a restartpoint", PATIENCE, || {
                pair.catch_up();
                if !hot {
                    pair.standby.restart();
                }
                (pair.backup().code == Some(0)).then_some(())
            });
            assert_next_works(&pair);
        }
    }
}

#[test]
fn fault_153_a_disk_without_room_is_named_before_it_is_full() {
    skip_unless!(Cluster::available(15));
    let disk = skip_unless!(TmpFs::create(220 << 10, 0));
    for hot in [true, false] {
        let pair = Pair::with_archive(&disk.path().join(format!("archive-{hot}")), hot);
        let refused = pair.backup();
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        assert!(refused.stderr.contains("are free"), "{}", refused.stderr);
        assert_eq!(pair.beside(), [""; 0]);
        pair.catch_up();
    }
}

/// Where the archive lies on that disk too, so that the master cannot archive either.
#[test]
fn fault_153_a_disk_that_fills_up_in_the_copy_leaves_no_set_and_no_hold() {
    skip_unless!(Cluster::available(15));
    for hot in [true, false] {
        let disk = skip_unless!(LoopFs::create(FileSystem::Ext4, 800));
        let pair = Pair::with_archive(&disk.path().join("archive"), hot);
        let running = Running::halted(&pair);
        assert_eq!(pair.site.holds("PAUSE.backup"), !hot);
        // Held back from a cold one until the backup ends.
        drain(&pair.site);
        let last = crate::replay::newest_segment(&pair.site);
        take_all(disk.path());
        running.signal(Signal::CONT);
        let failed = running.end();
        assert_eq!(failed.code, Some(1), "{}", failed.stderr);
        assert!(
            failed.stderr.contains("No space left on device"),
            "{}",
            failed.stderr
        );
        assert_eq!((pair.listed(), pair.beside()), (vec![], vec![]));
        for gone in ["BACKUPLOCK", "PAUSE.backup"] {
            assert!(!pair.site.holds(gone), "{gone}");
        }
        crate::replay::wait_until_restored(&pair.standby, &last);
        give_back(disk.path());
        pair.catch_up();
        assert_next_works(&pair);
    }
}

#[test]
fn fault_154_status_says_whose_backup_holds_replay() {
    skip_unless!(Cluster::available(15));
    let pair = Pair::new(15, false);
    let status = || {
        let json = pair.site.standby_command(&["status", "--json"]).stdout;
        serde_json::from_str::<serde_json::Value>(&json).unwrap()["standby"]["replay"].clone()
    };
    assert!(status()["held_by_backup"].is_null());
    let running = Running::halted(&pair);
    drain(&pair.site);
    let process = format!("process {}", running.0.as_ref().unwrap().id());
    let replay = status();
    let holder = replay["held_by_backup"].as_str().unwrap();
    assert!(
        holder.contains("on the standby") && holder.contains(&process),
        "{holder}"
    );
    assert!(
        replay["reasons"][0].as_str().unwrap().contains(holder),
        "{replay}"
    );
    let page = pair.site.standby_command(&["status"]).stdout;
    let words = "held (PAUSE.backup) until a backup has copied the data directory: ";
    assert!(page.contains(words) && page.contains(&process), "{page}");
    running.signal(Signal::CONT);
    running.end().succeed();
    assert!(status()["held_by_backup"].is_null());
    pair.catch_up();
}

#[test]
fn fault_154_a_persons_pause_outlives_a_backup_that_holds_replay() {
    skip_unless!(Cluster::available(15));
    let pair = Pair::new(15, false);
    pair.site.standby_command(&["pause"]).succeed();
    pair.backup().succeed();
    assert!(pair.site.holds("PAUSE"));
    pair.site.standby_command(&["continue"]).succeed();
    // One that comes meanwhile.
    let running = Running::halted(&pair);
    pair.site.standby_command(&["pause"]).succeed();
    running.signal(Signal::KILL);
    running.end();
    drain(&pair.site);
    let last = crate::replay::newest_segment(&pair.site);
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(!crate::replay::has_restored(&pair.standby, &last));
    assert!(pair.site.holds("PAUSE"));
    pair.site.standby_command(&["continue"]).succeed();
    crate::replay::wait_until_restored(&pair.standby, &last);
    // What the killed one left goes with the next.
    pair.backup().succeed();
    // And the other way round: `continue` does not end what a backup holds.
    let running = Running::halted(&pair);
    let said = pair.site.standby_command(&["continue"]);
    assert!(
        said.stderr.contains("a backup holds replay"),
        "{}",
        said.stderr
    );
    assert!(pair.site.holds("PAUSE.backup"));
    running.signal(Signal::CONT);
    running.end().succeed();
    pair.catch_up();
    // Nothing that a killed one left counts, and a server that does not run is copied too.
    fs::write(pair.site.completed_wals().join("PAUSE.backup"), "left").unwrap();
    crate::support::place::give_to_server(&pair.site.completed_wals().join("PAUSE.backup"));
    pair.catch_up();
    let mut pair = pair;
    pair.standby.stop(crate::support::StopMode::Fast);
    pair.backup().succeed();
    pair.verify("data.master");
    pair.standby.start();
    assert_next_works(&pair);
}
