//! The recipe of `docs/tasks/patroni.md` with a real Patroni, etcd and PostgreSQL 15: switchovers, kills, a member made
//! of the archive. Never helps the archive with a command of a person's. Invariant: after each event every segment that
//! a member had to archive has arrived, and the archive leads to its end without a hole.
//!
//! `WALMGR_SOAK=1` makes twenty switchovers instead of three, and more kills; the figures are printed.

mod members;

use std::time::{Duration, Instant};

use crate::support::wait_for;
use members::{Load, Members, PATIENCE, Tools};

/// Has the load's segments finish, and waits until every member has archived what it had to; says who leads.
fn drain(cluster: &Members) -> usize {
    // On a machine that stood still the lead goes on to another member at any moment.
    let leader = wait_for("a segment of the leader in the archive", PATIENCE, || {
        let leader = cluster.settled();
        let ask = |sql| cluster.members[leader].try_psql(sql).ok();
        ask("SELECT pg_create_restore_point('drain')")?;
        let segment = ask("SELECT pg_walfile_name(pg_switch_wal())")?;
        let asked = Instant::now();
        while !cluster.archived().contains(&segment) {
            let leads = ask("SELECT NOT pg_is_in_recovery()").is_some_and(|leads| leads == "t");
            if !leads || asked.elapsed() > PATIENCE {
                println!("{segment} is not in the archive, its leader leads: {leads}");
                return None;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Some(leader)
    });
    for member in &cluster.members {
        let waiting = member.ready();
        wait_for(&format!("{waiting:?} of {}", member.name), PATIENCE, || {
            let now = member.ready();
            (!waiting.iter().any(|name| now.contains(name))).then_some(())
        });
    }
    leader
}

/// What has to hold after each event.
fn check(cluster: &Members, what: &str) -> usize {
    let begun = Instant::now();
    let leader = drain(cluster);
    let verified = cluster.standby(&["verify"]);
    // What a leader that died had more than the new one is kept, and named; nothing else may be.
    let found = verified.stdout.lines();
    let found =
        found.filter(|line| line.starts_with("warning: ") || line.starts_with("critical: "));
    let mut unexpected =
        found.filter(|line| !line.contains(": it is set apart and not used: timeline "));
    assert_eq!(unexpected.next(), None, "{what}: {verified:?}");
    assert!(
        verified.stdout.contains("can be restored to any time"),
        "{what}: {verified:?}"
    );
    assert!(!cluster.receiver.log().contains("CONFLICT"), "{what}");
    // Whoever stays behind on an old timeline would archive and replay what nobody follows.
    let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
    let timeline = cluster.members[leader].psql(timeline);
    println!(
        "{what}: {} leads timeline {timeline}, all archived after {:.1} s",
        cluster.members[leader].name,
        begun.elapsed().as_secs_f64()
    );
    leader
}

fn switch_over(cluster: &Members, leader: usize) -> usize {
    let target = (leader + 1) % cluster.members.len();
    let [from, to] = [leader, target].map(|index| cluster.members[index].name.clone());
    // Patroni refuses while a member is not ready for it.
    wait_for("a switchover", PATIENCE, || {
        let words = [
            "switchover",
            "main",
            "--leader",
            &from,
            "--candidate",
            &to,
            "--force",
        ];
        let done = cluster.patronictl(&words);
        if !done
            .as_ref()
            .is_ok_and(|said| said.contains("Successfully"))
        {
            println!("not yet: {done:?}");
            std::thread::sleep(Duration::from_secs(1));
            return None;
        }
        Some(())
    });
    check(cluster, &format!("switchover from {from} to {to}"))
}

/// A replica whose directory is lost comes back from the archive, over all timelines since the set was made.
fn rebuild(cluster: &mut Members, leader: usize) {
    let index = (leader + 1) % cluster.members.len();
    cluster.stop_member(index);
    std::fs::remove_dir_all(cluster.members[index].data()).unwrap();
    cluster.start_member(index);
    check(cluster, "a member made of the archive");
    let member = &cluster.members[index];
    let log = member.log();
    assert!(
        log.contains("replica has been created using walmgr"),
        "{log}"
    );
    assert_eq!(member.psql("SHOW archive_mode"), "always");
    assert!(
        member
            .psql("SHOW archive_command")
            .ends_with(" xarchive %p %f")
    );
}

/// The leader's postmaster, its Patroni, or both get `kill -9`.
fn kill_leader(cluster: &mut Members, leader: usize, (patroni, postgres): (bool, bool)) -> usize {
    if patroni {
        cluster.members[leader].kill_patroni();
    }
    if postgres {
        cluster.members[leader].kill_postgres();
    }
    if patroni {
        // Its server may go on for a while beside the new leader, as after any death of a Patroni.
        wait_for("another leader", PATIENCE, || {
            cluster.leads_beside(leader).then_some(())
        });
        cluster.start_member(leader);
    }
    let name = cluster.members[leader].name.clone();
    check(
        cluster,
        &format!("kill -9 at {name}, Patroni: {patroni}, PostgreSQL: {postgres}"),
    )
}

/// A leader that goes on without its Patroni, beside the next one, comes back by `pg_rewind`, though its WAL from before
/// they parted is in the archive alone.
fn rewind(cluster: &mut Members, leader: usize) -> usize {
    cluster.members[leader].kill_patroni();
    wait_for("another leader", PATIENCE, || {
        cluster.leads_beside(leader).then_some(())
    });
    let old = &cluster.members[leader];
    for _ in 0..2 {
        old.psql(
            "CREATE TABLE IF NOT EXISTS of_the_old_leader AS SELECT generate_series(1, 1000) AS n",
        );
        old.psql("SELECT pg_switch_wal()");
        old.psql("CHECKPOINT");
    }
    wait_for("what is ready", PATIENCE, || {
        old.ready().is_empty().then_some(())
    });
    // As it does itself in time.
    let removed = old.remove_checkpointed_wal();
    println!("{} lacks {removed} segments from now on", old.name);
    assert!(removed > 0);
    let said_before = old.log().len();
    cluster.start_member(leader);
    let leader_now = check(cluster, "the old leader's way back");
    let old = &cluster.members[leader];
    let log = old.log();
    // Patroni may say once more that it runs after it says how it ended.
    let (_, ended) = (log[said_before..].rsplit_once("pg_rewind exit code=")).unwrap_or_default();
    assert!(ended.starts_with("0\n"), "{log}");
    assert_eq!(old.psql("SELECT to_regclass('of_the_old_leader')"), "");
    leader_now
}

#[test]
fn fault_185_switchovers_and_kills_under_patroni_need_no_person() {
    let _user = skip_unless!(crate::support::place::server_user());
    let tools = skip_unless!(Tools::find());
    let mut cluster = Members::start(tools, 3);
    // So that a failover takes seconds; what the recipe says is read from etcd anyway.
    let faster = [
        "edit-config",
        "main",
        "--force",
        "-q",
        "-s",
        "ttl=20",
        "-s",
        "loop_wait=2",
    ];
    cluster.patronictl(&faster).unwrap();
    let load = Load::start(&cluster);
    cluster.start_member(1);
    cluster.start_member(2);
    let mut leader = check(&cluster, "three members");
    for index in [1, 2] {
        let log = cluster.members[index].log();
        assert!(
            log.contains("replica has been created using walmgr"),
            "{log}"
        );
    }
    let switchovers = crate::support::rounds(3, 20);
    for number in 1..=switchovers {
        leader = switch_over(&cluster, leader);
        match number % 5 {
            1 => leader = rewind(&mut cluster, leader),
            2 => rebuild(&mut cluster, leader),
            3 => {
                leader = kill_leader(&mut cluster, leader, (true, true));
                if crate::support::soak() {
                    leader = kill_leader(&mut cluster, leader, (false, true));
                    leader = kill_leader(&mut cluster, leader, (true, false));
                }
            }
            _ => {}
        }
    }
    drop(load);
    let leader = check(&cluster, "the end");
    for member in &cluster.members {
        // What came last may be on its way.
        let sql = "SELECT last_failed_wal FROM pg_stat_archiver WHERE last_failed_time > last_archived_time";
        wait_for(
            &format!("the archiver of {}", member.name),
            PATIENCE,
            || {
                let is_fine = member.try_psql(sql).is_ok_and(|wal| wal.is_empty());
                (is_fine && member.ready().is_empty()).then_some(())
            },
        );
    }
    // Everything since the set, over all timelines, in a server that sees nothing else.
    let drilled = cluster.standby(&["drill"]);
    assert_eq!(drilled.code, Some(0), "{drilled:?}");
    cluster.members[leader].walmgr(&["backup"]).succeed();
    println!("{}", cluster.standby(&["status"]).stdout);
}
