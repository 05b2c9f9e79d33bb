//! `restore --delta`: an old directory that is nearly what the set is, changed at random, killed, cut and filled.
//! Never trusts what walmgr says: files are compared with those of the set. Invariant: the set stays as it was, the old
//! directory does unless `--in-place` was typed, and PostgreSQL starts from nothing that is not whole.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use super::kills::{CALLS, Wreck, copy};
use super::*;
use crate::support::dice::Dice;
use crate::support::loopfs::{FileSystem, LoopFs, give_back};
use crate::support::old_data::{
    CONTENT_OF, assert_manifest, assert_same, change, files_below, flip,
};
use crate::support::place::as_server;
use crate::support::power::PowerCuts;
use crate::support::strace::Strace;
use crate::support::{assert_hits, run, soak};

const BESIDE: [&str; 3] = ["restore", "--delta", "data.master"];
const IN_PLACE: [&str; 4] = ["restore", "--delta", "--in-place", "data.master"];

/// A set with a manifest, and an old directory that is nearly the same.
fn prepared(scene: Scene, dice: &mut Dice) -> Wreck {
    let mut scene = scene;
    let space = scene.site.home().create_dir("space");
    let cluster = scene.site.cluster();
    cluster.psql(&format!(
        "CREATE TABLESPACE s LOCATION '{}'",
        space.display()
    ));
    cluster.psql("CREATE TABLE in_space TABLESPACE s AS SELECT generate_series(1, 20000) AS n");
    scene.site.master_command(&["backup"]).succeed();
    scene.site.standby_set("slave_start_cmd", "");
    let wal = scene.data().with_file_name("wal");
    (scene.site).standby_set("slave_pg_xlog", wal.to_str().unwrap());
    let set = set_path(&scene.site, "data.master");
    let [spare, old] = ["spare", "old"].map(|name| scene.site.home().join(name));
    copy(&set, &spare);
    copy(&set, &old);
    change(&old, dice);
    Wreck { scene, spare, old }
}

/// What is in place has the set's content, and nothing else beside it.
fn assert_restored(wreck: &Wreck, context: &str) {
    wreck.assert_complete(context);
    for name in CONTENT_OF {
        let (data, spare) = (wreck.scene.data().join(name), wreck.spare.join(name));
        assert_same(&data, &spare, context);
    }
    let shared = files_below(&wreck.scene.data(), &CONTENT_OF).into_iter();
    let shared: Vec<PathBuf> = shared
        .filter(|path| path.metadata().unwrap().nlink() > 1)
        .collect();
    assert!(shared.is_empty(), "{context}: {shared:?}");
    assert_manifest(&wreck.scene.data(), context);
    assert_set(wreck, context);
}

/// The set is as it was made.
fn assert_set(wreck: &Wreck, context: &str) {
    let set = set_path(&wreck.scene.site, "data.master");
    assert_same(&set, &wreck.spare, context);
}

fn assert_old(wreck: &Wreck, place: &Path, context: &str) {
    for name in [&CONTENT_OF[..], &["backup_label", "PG_VERSION"]].concat() {
        assert_same(&place.join(name), &wreck.old.join(name), context);
    }
}

/// Whatever PostgreSQL would start from is whole.
fn judge(wreck: &Wreck, words: &[&str], context: &str) {
    let data = wreck.scene.data();
    assert_set(wreck, context);
    let is_startable = data.join("global/pg_control").exists();
    match (data.join("of-the-old").exists(), words == BESIDE) {
        (true, _) if is_startable => assert_old(wreck, &data, context),
        (false, _) if is_startable => assert_restored(wreck, context),
        (true, true) => panic!("{context}: the old directory does not start any more"),
        _ => {}
    }
    let aside = data.with_extension("1");
    if words == BESIDE && aside.exists() {
        assert_old(wreck, &aside, context);
    }
}

/// Which calls are tried, and at which counts, the small ones first.
fn points() -> Vec<(&'static str, u32)> {
    if !soak() {
        return vec![
            ("/rename.*", 2),
            ("/rename.*", 30),
            ("pwrite64", 3),
            ("syncfs", 1),
        ];
    }
    let counts: Vec<u32> = (1..=40).chain((41..1_500).step_by(37)).collect();
    let calls = [&CALLS[..], &["pwrite64"]].concat();
    let points = calls
        .iter()
        .flat_map(|call| counts.iter().map(|count| (*call, *count)));
    points.collect()
}

/// Kills the command at points of each call, and has the same command finish.
fn kill_everywhere(words: &[&str]) {
    let mut dice = Dice::thrown("a delta that is killed");
    let wreck = prepared(Scene::new(15), &mut dice);
    let (mut kills, mut ended) = (0, "");
    for (call, count) in points() {
        // It makes fewer of them.
        if call == ended {
            continue;
        }
        wreck.begin();
        let context = format!("{words:?} {call} {count}");
        if !wreck.killed_at(words, call, count) {
            wreck.assert_ended(&context);
            assert_restored(&wreck, &context);
            ended = call;
            continue;
        }
        kills += 1;
        judge(&wreck, words, &context);
        // Every other one is killed again on its way.
        if kills % 2 == 0 {
            wreck.killed_at(words, call, count / 2 + 1);
            judge(&wreck, words, &context);
        }
        wreck.finish(words, &context);
        assert_restored(&wreck, &context);
        assert!(wreck.scene.data().with_extension("1").exists(), "{context}");
    }
    println!("{words:?}: {kills} kills");
    assert_hits(kills, 3);
}

#[test]
fn fault_215_a_delta_beside_the_old_directory_is_killed_at_any_step() {
    skip_unless!(Strace::available());
    skip_unless!(Cluster::available(15));
    kill_everywhere(&BESIDE);
}

#[test]
fn fault_215_a_delta_in_place_is_killed_at_any_step_and_typed_again() {
    skip_unless!(Strace::available());
    skip_unless!(Cluster::available(15));
    kill_everywhere(&IN_PLACE);
}

#[test]
fn fault_215_what_a_killed_copy_left_never_gets_into_the_old_directory() {
    skip_unless!(Strace::available());
    skip_unless!(Cluster::available(15));
    let mut dice = Dice::thrown("in place behind a copy");
    let wreck = prepared(Scene::new(15), &mut dice);
    for count in [1, 40] {
        wreck.begin();
        let context = format!("in place behind a copy, {count}");
        assert!(wreck.killed_at(&BESIDE, "pwrite64", 60), "{context}");
        assert!(wreck.killed_at(&IN_PLACE, "/rename.*", count), "{context}");
        judge(&wreck, &IN_PLACE, &context);
        wreck.finish(&IN_PLACE, &context);
        assert_restored(&wreck, &context);
    }
}

fn cut_everywhere(kind: FileSystem, words: &[&str]) {
    skip_unless!(Strace::available());
    skip_unless!(Cluster::available(15));
    let mut power = PowerCuts::on(skip_unless!(LoopFs::create(kind, 1000)));
    let mut dice = Dice::thrown("a delta whose power is cut");
    let scene = Scene::placed(Cluster::builder(), Some(power.disk()));
    let mut wreck = prepared(scene, &mut dice);
    wreck.scene.site.receiver.stop();
    let (mut hits, mut ended) = (0, "");
    for (call, count) in points() {
        if call == ended {
            continue;
        }
        wreck.begin();
        match power.cut_behind(|| wreck.killed_at(words, call, count)) {
            true => hits += 1,
            false => ended = call,
        }
        let context = format!("{kind:?} {words:?} {call} {count}");
        judge(&wreck, words, &context);
        wreck.finish(words, &context);
        assert_restored(&wreck, &context);
    }
    println!("{kind:?} {words:?}: {hits} of {} power cuts", power.cuts());
    assert_hits(hits, 3);
}

#[test]
fn fault_215_a_power_cut_in_a_delta_in_place_leaves_nothing_half() {
    cut_everywhere(FileSystem::Ext4, &IN_PLACE);
}

#[test]
fn fault_215_a_power_cut_in_a_delta_beside_leaves_nothing_half() {
    cut_everywhere(FileSystem::Xfs, &BESIDE);
}

/// What was said, of bytes taken over and brought.
fn has_taken(output: &Output) -> bool {
    output
        .stderr
        .contains("were taken over from the old directory")
}

#[test]
fn fault_216_what_differs_is_found_and_the_server_reaches_the_end() {
    let disk = skip_unless!(LoopFs::create(FileSystem::Xfs, 1000));
    for major in Cluster::available_majors() {
        let mut dice = Dice::thrown("an old directory that is changed");
        let place = disk.path().join(major.to_string());
        fs::create_dir(&place).unwrap();
        give_to_server(&place);
        let scene = Scene::placed(Cluster::builder().major(major), Some(&place));
        scene.site.master_command(&["backup"]).succeed();
        scene.restore(&["data.master"]).succeed();
        for words in [&["--delta"][..], &["--delta", "--in-place"]] {
            scene.work("300");
            let content = scene.content();
            scene.wait_until_standby_has(&content);
            // A server that runs is copied beside; in place it is stopped, and its files are damaged besides.
            if words.len() > 1 {
                let data = scene.data();
                let pg_ctl = scene.standby.bin().join("pg_ctl");
                let mut stop = Command::new(pg_ctl);
                stop.arg("-D").arg(&data).args(["-m", "fast", "-w", "stop"]);
                run(as_server(&mut stop)).unwrap();
                let files = files_below(&data, &["base"]);
                for _ in 0..30 {
                    flip(&files[dice.index(files.len())], &mut dice);
                }
            }
            let output = scene.restore(words);
            assert!(has_taken(&output), "{}", output.stderr);
            output.succeed();
            assert_eq!(scene.listed(), ["data.master"], "the set is not moved");
            scene.wait_until_standby_has(&content);
        }
    }
}

#[test]
fn fault_217_what_a_delta_cannot_go_by_is_refused_and_nothing_is_changed() {
    skip_unless!(Cluster::available(15));
    let mut dice = Dice::thrown("refusals");
    let wreck = prepared(Scene::new(15), &mut dice);
    let data = wreck.scene.data();
    let refused = |words: &[&str], code: i32, part: &str| {
        let output = wreck.scene.site.standby_command(words);
        assert_eq!(output.code, Some(code), "{words:?}: {}", output.stderr);
        assert!(output.stderr.contains(part), "{}", output.stderr);
        assert_old(&wreck, &data, part);
        assert_set(&wreck, part);
    };
    wreck.begin();
    let elsewhere = wreck.scene.site.home().join("elsewhere");
    let elsewhere = elsewhere.to_str().unwrap();
    refused(
        &["restore", "--delta", "data.master", elsewhere],
        2,
        "does not go with another directory",
    );
    refused(&["restore", "--in-place"], 2, "--delta");

    // A file of the set that is damaged, and needed: before anything of the old directory is touched.
    let set = set_path(&wreck.scene.site, "data.master");
    let version = set.join("base/1/PG_VERSION");
    fs::write(&version, "51\n").unwrap();
    fs::write(data.join("base/1/PG_VERSION"), "16\n").unwrap();
    let output = wreck.scene.site.standby_command(&IN_PLACE);
    assert!(
        output.stderr.contains("nothing was changed"),
        "{}",
        output.stderr
    );
    assert!(data.join("global/pg_control").exists());
    fs::copy(wreck.spare.join("base/1/PG_VERSION"), &version).unwrap();

    // Another cluster's directory.
    wreck.begin();
    let control = data.join("global/pg_control");
    let mut bytes = fs::read(&control).unwrap();
    let is_checksum =
        |at: &usize| crc32c::crc32c(&bytes[..*at]).to_le_bytes() == bytes[*at..at + 4];
    let crc_at = (8..bytes.len() - 4).find(is_checksum).unwrap();
    bytes[0] ^= 1;
    let crc32c = crc32c::crc32c(&bytes[..crc_at]).to_le_bytes();
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc32c);
    fs::write(&control, &bytes).unwrap();
    for words in [&BESIDE[..], &IN_PLACE] {
        let output = wreck.scene.site.standby_command(words);
        assert_eq!(output.code, Some(2), "{}", output.stderr);
        assert!(
            output.stderr.contains("of another cluster"),
            "{}",
            output.stderr
        );
        assert_eq!(fs::read(&control).unwrap(), bytes);
    }
}

#[test]
fn fault_218_a_delta_without_room_beside_names_in_place_which_then_fits() {
    skip_unless!(Cluster::available(15));
    let disk = skip_unless!(LoopFs::create(FileSystem::Ext4, 1000));
    let mut dice = Dice::thrown("a disk that is full");
    let scene = Scene::placed(Cluster::builder(), Some(disk.path()));
    let mut wreck = prepared(scene, &mut dice);
    wreck.scene.site.receiver.stop();
    wreck.begin();
    let before: BTreeSet<String> = names_in(disk.path()).into_iter().collect();
    let filler = disk.path().join("filler");
    let leave_free = |bytes: u64| {
        let _ = fs::remove_file(&filler);
        let mut df = Command::new("df");
        let free = run(df.args(["--output=avail", "-B1"]).arg(disk.path())).unwrap();
        let free: u64 = free.lines().last().unwrap().trim().parse().unwrap();
        let mut fill = Command::new("fallocate");
        let fill = fill.arg("-l").arg((free - bytes).to_string());
        run(fill.arg(&filler)).unwrap();
    };
    leave_free(1 << 20);
    let output = wreck.scene.site.standby_command(&BESIDE);
    let (needed, _) = output.stderr.split_once(" MiB needed").unwrap();
    let (whole, _) = needed.rsplit(' ').next().unwrap().split_once('.').unwrap();
    let needed: u64 = whole.parse().unwrap();
    // Room for what differs, and for what PostgreSQL needs, but not for another directory.
    leave_free((needed - 2) << 20);
    let output = wreck.scene.site.standby_command(&BESIDE);
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    for part in [
        "needed",
        "free",
        "--in-place",
        "gone from the first byte on",
    ] {
        assert!(output.stderr.contains(part), "{}", output.stderr);
    }
    assert_old(&wreck, &wreck.scene.data(), "refused");
    wreck.finish(&IN_PLACE, "in place");
    give_back(disk.path());
    assert_restored(&wreck, "in place");
    let now: BTreeSet<String> = names_in(disk.path()).into_iter().collect();
    let new: Vec<&String> = now.difference(&before).collect();
    println!("new: {new:?}");
}

#[test]
fn fault_218_a_disk_that_fills_up_on_the_way_loses_nothing() {
    skip_unless!(Strace::available());
    skip_unless!(Cluster::available(15));
    let mut dice = Dice::thrown("a disk that fills up");
    let wreck = prepared(Scene::new(15), &mut dice);
    for (words, count) in [
        (&BESIDE[..], 1),
        (&BESIDE, 40),
        (&IN_PLACE, 1),
        (&IN_PLACE, 9),
    ] {
        wreck.begin();
        let context = format!("{words:?} {count}");
        let strace = Strace::available().unwrap().unprivileged();
        let strace = strace.inject(&format!("pwrite64:error=ENOSPC:when={count}+"));
        let command = wreck.scene.site.standby_walmgr(words);
        let output = strace.wrap(&command).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{context}: {said}");
        assert!(
            said.contains("No space left on device"),
            "{context}: {said}"
        );
        let data = wreck.scene.data();
        if words == BESIDE {
            assert_old(&wreck, &data, &context);
        } else {
            // From the first byte on it is the new one, which does not start before it is whole; the line that makes it
            // so is shown.
            assert!(!data.join("global/pg_control").exists(), "{context}");
            let ini = wreck.scene.site.standby_ini().display();
            let line = format!("walmgr {ini} {}", words.join(" "));
            for part in ["no server starts there", "free room", line.as_str()] {
                assert!(said.contains(part), "{context}: {said}");
            }
        }
        assert_set(&wreck, &context);
        wreck.finish(words, &context);
        assert_restored(&wreck, &context);
    }
}

#[test]
fn fault_302_an_old_file_that_changes_while_it_is_cloned_is_not_believed() {
    skip_unless!(Strace::available());
    skip_unless!(Cluster::available(15));
    let disk = skip_unless!(LoopFs::create(FileSystem::Xfs, 1000));
    let mut dice = Dice::thrown("an old file that changes");
    let scene = Scene::placed(Cluster::builder(), Some(disk.path()));
    let wreck = prepared(scene, &mut dice);
    wreck.begin();
    let data = wreck.scene.data();
    let files = files_below(&wreck.spare, &["base"]);
    let longest = files
        .iter()
        .max_by_key(|path| path.metadata().unwrap().len());
    let name = longest.unwrap().strip_prefix(&wreck.spare).unwrap();
    let good = fs::read(wreck.spare.join(name)).unwrap();
    let mut bad = good.clone();
    bad[10_000] ^= 1;
    // Whatever became of it, it may be taken over.
    let old = data.join(name);
    let _ = fs::remove_file(&old);
    fs::write(&old, bad).unwrap();
    give_to_server(&old);
    // Its time is not that of what is written next.
    std::thread::sleep(Duration::from_millis(100));
    let clone = data.with_extension("restoring").join(name);
    let strace = Strace::available().unwrap().unprivileged();
    let strace = strace.only_on(&clone).inject("ioctl:delay_exit=5s");
    let mut command = strace.wrap(&wreck.scene.site.standby_walmgr(&BESIDE));
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let mut restore = command.spawn().unwrap();
    wait_for("the clone", Duration::from_secs(60), || {
        let found = clone.metadata();
        found
            .is_ok_and(|found| found.len() == good.len() as u64)
            .then_some(())
    });
    // What is read from here on is as listed, and the clone is not.
    fs::write(&old, &good).unwrap();
    assert!(restore.wait().unwrap().success());
    assert_restored(&wreck, "mended");
}
