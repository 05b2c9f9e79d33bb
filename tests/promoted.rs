//! Restored servers that are opened: who archives into the archive that they came from, and who never does.
//! Never types a setting into a restored server. Invariant: the living master's archive has no file of a trial.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::replay;
use crate::restore::{PATIENCE, Scene, names_in};
use crate::support::place::{as_server, give_to_server, walmgr, walmgr_binary};
use crate::support::{Cluster, Site, StopMode, run, wait_for};

const MAJORS: [u8; 2] = [15, 18];

fn majors() -> impl Iterator<Item = u8> {
    MAJORS
        .into_iter()
        .filter(|major| match Cluster::available(*major) {
            Ok(()) => true,
            Err(reason) => {
                crate::support::report_skip(&reason);
                false
            }
        })
}

/// A master that archives and has made a backup, and something behind it.
fn scene(major: u8) -> Scene {
    let scene = Scene::new(major);
    scene.site.master_command(&["backup"]).succeed();
    scene.work("20");
    scene.content();
    scene
}

fn of_timeline_2(site: &Site) -> Vec<String> {
    let mut names = site.archived_names();
    names.retain(|name| name.starts_with("00000002"));
    names
}

/// Writes and ends a segment, which has to arrive.
pub fn archives_its_timeline(site: &Site, server: &Cluster) {
    server.psql("CREATE TABLE of_the_new_timeline AS SELECT generate_series(1, 100) AS n");
    let name = server.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    assert!(name.starts_with("00000002"), "{name}");
    server.switch_wal();
    // A file lies there before it is judged, and is acknowledged after that.
    let marks = server.data().join("pg_wal/archive_status");
    wait_for("a segment of the new timeline", PATIENCE, || {
        let is_archived = |name: &str| marks.join(format!("{name}.done")).exists();
        (is_archived(&name) && is_archived("00000002.history")).then_some(())
    });
    assert!(site.holds(&name) && site.holds("00000002.history"));
    // The standby follows it: with what is there a server comes up to the last record.
    let verified = site.standby_command(&["verify"]);
    assert!(verified.stdout.contains("all is well"), "{verified:?}");
    let ready = names_in(&marks);
    let ready: Vec<&String> = ready
        .iter()
        .filter(|name| name.ends_with(".ready"))
        .collect();
    assert!(ready.len() <= 1, "{ready:?}");
}

fn promote(server: &Cluster) {
    let mut command = server.command("pg_ctl");
    command.arg("-D").arg(server.data()).args(["-w", "promote"]);
    run(&mut command).unwrap();
}

#[test]
fn fault_184_the_master_archives_again_after_its_restore_and_promotion() {
    for major in majors() {
        let mut scene = scene(major);
        let data = scene.site.data().to_path_buf();
        scene.site.cluster_mut().stop(StopMode::Fast);
        let lost = data.with_extension("lost");
        fs::rename(&data, &lost).unwrap();
        let data_text = data.display().to_string();
        let said = scene
            .site
            .master_command(&["restore", "data.master", &data_text]);
        let said = said.succeed();
        assert!(
            said.contains("Once it has opened it archives to "),
            "{said}"
        );
        let automatic = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
        assert!(!automatic.contains("archive_"), "{automatic}");

        let server = scene.site.cluster_mut();
        server.start();
        assert_eq!(server.psql("SHOW archive_mode"), "on");
        // While it replays, nothing of it arrives.
        assert_eq!(
            server.psql("SELECT archived_count + failed_count FROM pg_stat_archiver"),
            "0"
        );
        promote(scene.site.cluster());
        archives_its_timeline(&scene.site, scene.site.cluster());
        let status = scene.site.master_command(&["status"]);
        assert!(!status.stdout.contains("archiving_off"), "{status:?}");
        scene.site.master_command(&["backup"]).succeed();
        fs::remove_dir_all(lost).unwrap();
    }
}

#[test]
fn fault_184_a_trial_beside_the_living_master_leaves_the_archive_alone() {
    for major in majors() {
        let scene = scene(major);
        let (site, trial) = (&scene.site, scene.site.home().join("trial"));
        let lsn = site.cluster().psql("SELECT pg_current_wal_lsn()");
        site.cluster().psql("CREATE TABLE too_much (n int)");
        let content = scene.content();
        let words = ["restore", "data.master", trial.to_str().unwrap()];
        let target = ["--target-lsn", &lsn, "--target-action", "promote"];
        let said = site
            .master_command(&[&words[..], &target].concat())
            .succeed();
        assert!(said.contains("Archiving is off."), "{said}");
        let mut server = Cluster::on_directory(major, &trial);
        server.start();
        wait_for("the trial to open", PATIENCE, || {
            (server.psql("SELECT pg_is_in_recovery()") == "f").then_some(())
        });
        assert_eq!(server.psql("SHOW archive_mode"), "off");
        server.psql("CREATE TABLE trial (n int)");
        server.switch_wal();

        // As a copy is that another tool made: it has the master's own command.
        server.stop(StopMode::Fast);
        let ini = site.master_ini().display();
        server.append_conf(&format!(
            "archive_command = '{} {ini} xarchive %p %f'",
            walmgr_binary().display()
        ));
        let automatic = trial.join("postgresql.auto.conf");
        let text = fs::read_to_string(&automatic).unwrap();
        fs::write(
            &automatic,
            text.replace("archive_mode = off", "archive_mode = on"),
        )
        .unwrap();
        give_to_server(&automatic);
        server.start();
        server.psql("CREATE TABLE copy (n int)");
        server.switch_wal();
        let sql = "SELECT failed_count > 0 FROM pg_stat_archiver";
        wait_for("a refusal", PATIENCE, || {
            (server.psql(sql) == "t").then_some(())
        });
        let log = server.log();
        assert!(log.contains("which is for the server in"), "{log}");
        assert_eq!(of_timeline_2(site), [""; 0]);
        server.stop(StopMode::Immediate);

        assert_eq!(scene.content(), content);
        let status = site.standby_command(&["status"]);
        assert_eq!(status.code, Some(0), "{status:?}");
    }
}

/// A master's ini file for the standby's server, with a key that the receiver knows.
pub fn write_promoted_ini(scene: &Scene, data: &Path) -> std::path::PathBuf {
    let site = &scene.site;
    let folder = site.home().create_dir("promoted");
    let settings = format!(
        "[walmgr]\nmaster_data = {}\nmaster_db = {}\nslave = {}\nslave_fingerprint = {}\n",
        data.display(),
        scene.standby.conninfo(),
        site.address(),
        site.standby_fingerprint()
    );
    let ini = site.home().write("promoted/promoted.ini", settings);
    let mut identity = walmgr();
    identity.arg(&ini).arg("identity").current_dir(&folder);
    let said = run(as_server(&mut identity)).unwrap();
    let fingerprint = said
        .split_whitespace()
        .find(|word| word.starts_with("SHA256:"));
    let words = ["authorize", fingerprint.unwrap(), "promoted"];
    site.standby_command(&words).succeed();
    site.receiver.wait_for_log("settings and keys reloaded");
    ini
}

#[test]
fn fault_184_a_booted_standby_archives_by_its_promoted_ini() {
    for major in majors() {
        let mut scene = scene(major);
        let data = scene.data();
        let elsewhere = scene.site.home().join("elsewhere");
        let ini = write_promoted_ini(&scene, &elsewhere);
        scene
            .site
            .standby_set("promoted_ini", ini.to_str().unwrap());
        let refused = scene.site.standby_command(&["restore", "data.master"]);
        refused.fail_last(2, "set master_data in that file to the same directory");
        assert!(!data.exists());

        let text = fs::read_to_string(&ini).unwrap();
        let text = text.replace(elsewhere.to_str().unwrap(), data.to_str().unwrap());
        fs::write(&ini, text).unwrap();
        let beside = scene.site.home().join("beside");
        scene
            .restore(&["data.master", beside.to_str().unwrap()])
            .succeed();
        let automatic = fs::read_to_string(beside.join("postgresql.auto.conf")).unwrap();
        assert!(automatic.contains("archive_mode = off"), "{automatic}");

        scene.restore(&["data.master"]).succeed();
        assert_eq!(scene.standby.psql("SHOW archive_mode"), "on");
        scene.work("10");
        let content = scene.content();
        scene.site.cluster_mut().stop(StopMode::Immediate);
        scene.boot();
        scene.wait_until_standby_has(&content);
        archives_its_timeline(&scene.site, &scene.standby);
        std::thread::sleep(Duration::from_millis(200));
        let failed = scene
            .standby
            .psql("SELECT last_failed_wal FROM pg_stat_archiver");
        assert_eq!(failed, "");
    }
}

/// A backup went on while the timeline was left that counts now: the set has pages that no WAL of the new one tells of.
#[test]
fn fault_298_a_set_that_ended_behind_the_branch_serves_nobody_on_it() {
    for major in majors() {
        let mut scene = scene(major);
        scene.site.master_command(&["backup", "--full"]).succeed();
        let listed = scene.site.listed_sets();
        let start = listed[0]["start_lsn"].as_str().unwrap().to_owned();
        assert_ne!(listed[0]["stop_lsn"], listed[0]["start_lsn"]);
        let data = scene.site.data().to_path_buf();
        scene.site.cluster_mut().stop(StopMode::Fast);
        let lost = data.with_extension("lost");
        fs::rename(&data, &lost).unwrap();
        let words = ["restore", "data.master.0", data.to_str().unwrap()];
        let target = ["--target-lsn", &start, "--target-action", "promote"];
        let words = [&words[..], &target].concat();
        scene.site.master_command(&words).succeed();
        let server = scene.site.cluster_mut();
        server.start();
        wait_for("the server to open", PATIENCE, || {
            (server.psql("SELECT pg_is_in_recovery()") == "f").then_some(())
        });
        wait_for("its history", PATIENCE, || {
            let words = ["choose", "00000002.history", "--take"];
            (scene.site.standby_command(&words).code == Some(0)).then_some(())
        });
        let server = scene.site.cluster();
        server.psql("CREATE TABLE of_the_new_timeline AS SELECT generate_series(1, 100) AS n");
        let name = server.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
        server.switch_wal();
        let is_here = || scene.site.holds(&name).then_some(());
        wait_for("a segment of the new timeline", PATIENCE, is_here);
        let ended = "which timeline 2 had left before that";
        let refused = scene.site.standby_command(&["restore", "-n"]);
        assert!(refused.fail(1).contains(ended), "{refused:?}");
        // Both sides say the same, but why it is so only the standby.
        assert_eq!(scene.site.listed_sets().len(), 2);
        let listed = scene.site.standby_command(&["listbackups", "--json"]);
        let listed: serde_json::Value = serde_json::from_str(&listed.succeed()).unwrap();
        let why = listed[0]["off_line"].as_str().unwrap();
        assert!(why.ends_with(ended), "{listed}");
        assert!(listed[1]["off_line"].is_null(), "{listed}");
        for listed in [
            scene.site.standby_command(&["listbackups"]).succeed(),
            scene.site.master_command(&["listbackups"]).succeed(),
        ] {
            let marked = |line: &&str| line.contains("(of no use on timeline 2)");
            let marked: Vec<&str> = listed.lines().filter(marked).collect();
            assert!(
                marked.len() == 1 && marked[0].starts_with("data.master "),
                "{listed}"
            );
        }
        let old = ["restore", "-n", "--target-timeline", "1"];
        scene.site.standby_command(&old).succeed();
        let status = scene.site.standby_command(&["status"]).stdout;
        let told = "warning: data.master can be recovered only up to 0/";
        assert!(status.contains(told), "{status}");
        let words = ["-n", "restore", "data.master", data.to_str().unwrap()];
        let refused = scene.site.master_command(&words);
        assert!(refused.fail(1).contains(ended), "{refused:?}");
        scene.site.standby_set("keep_backups", "1");
        scene.site.standby_set("keep_minimum_age", "0");
        let told = scene.site.standby_command(&["expire", "-n"]).succeed();
        let stays = "would keep data.master.0: the last that restores to the end";
        assert!(told.contains(stays), "{told}");
        let verified = scene.site.standby_command(&["verify"]).stdout;
        assert!(
            verified.contains("  data.master: cannot be restored"),
            "{verified}"
        );
        let named = verified.lines().filter(|line| line.contains(ended));
        assert!(
            named.count() == 1 && !verified.contains("data.master.0: it cannot"),
            "{verified}"
        );
        let said = scene.site.master_command(&["backup"]).succeed();
        assert!(
            said.contains("incremental, built on data.master.0 "),
            "{said}"
        );
        scene.site.standby_command(&["restore", "-n"]).succeed();
        fs::remove_dir_all(lost).unwrap();
    }
}

/// The master has archived the beginning of a record, and dies before its end is archived: the standby has nothing of it.
#[test]
fn fault_303_a_master_that_died_amid_a_record_is_succeeded() {
    for major in majors() {
        let mut site = replay::bare_master(major);
        site.master_command(&["backup"]).succeed();
        let standby = replay::copy_of_master(&mut site, "successor", &["archive_mode = on"]);
        site.cluster().psql("CREATE TABLE kept AS SELECT 1 AS n");
        let before = site.archived_names().len();
        let message = "SELECT pg_logical_emit_message(false, 'walmgr', repeat('x', 3500000))";
        site.cluster().psql(message);
        // Where the record begins, and two that it fills; it ends in the one that is being written.
        wait_for("the beginning of the record", PATIENCE, || {
            (site.archived_names().len() >= before + 3).then_some(())
        });
        site.cluster_mut().kill9();
        let data = site.data().to_path_buf();
        let lost = data.with_extension("lost");
        fs::rename(&data, &lost).unwrap();
        fs::rename(standby.data(), &data).unwrap();
        replay::signal_file(site.cluster(), "standby.signal");
        let last = replay::newest_segment(&site);
        let server = site.cluster_mut();
        server.start();
        replay::wait_until_restored(server, &last);
        promote(server);
        assert_eq!(server.psql("SELECT n FROM kept"), "1");
        let left = server.psql("SELECT pg_walfile_name(redo_lsn) FROM pg_control_checkpoint()");
        assert!(
            left.starts_with("00000002") && left[8..] < last[8..],
            "{left} {last}"
        );
        archives_its_timeline(&site, site.cluster());
        let status = site.standby_command(&["status"]);
        assert_eq!(status.code, Some(0), "{status:?}");
        let said = site.master_command(&["backup"]).succeed();
        assert!(said.contains("incremental, built on"), "{said}");
        fs::remove_dir_all(lost).unwrap();
        drop(standby);
    }
}
