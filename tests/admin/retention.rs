//! `keep`, `unkeep` and `expire`: what is said goes, nothing else does, and a kill takes no set from the list half.
//! Never looks at exit codes alone. Invariant: a set that is listed is whole, and has its WAL.

use std::collections::BTreeSet;

use super::rotation::{THREE, content, pairs, put_sets, scene, scene_of};
use super::*;
use crate::restore::Scene;
use crate::support::backup_set::set_path;
use crate::support::loopfs::{FileSystem, LoopFs};
use crate::support::old_data::assert_same;
use crate::support::power::PowerCuts;
use crate::support::{assert_hits, soak};

/// How many kills `./test.sh` makes of each call.
const KILLS: u32 = 4;

/// The three sets, each with a label of its own.
fn put_three(scene: &Scene, spare: &Path) {
    put_sets(&scene.site, spare, &THREE);
    for (name, marker) in THREE {
        let label = set_path(&scene.site, name).join("backup_label");
        let text = fs::read_to_string(&label).unwrap();
        fs::write(&label, text.replace("FullBackup", &format!("set {marker}"))).unwrap();
    }
}

fn markers(scene: &Scene) -> Vec<String> {
    let found = content(&scene.site).into_iter();
    found.map(|(_, marker)| marker).collect()
}

/// A segment older than anything that a set needs.
fn put_old(scene: &Scene) -> std::path::PathBuf {
    let old = scene.site.completed_wals().join("000000010000000000000001");
    if !old.exists() {
        fs::write(&old, "WAL").unwrap();
        crate::support::place::give_to_server(&old);
    }
    old
}

/// The lines of an audit log.
fn told(audit: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(audit).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Whatever is gone is told of, and a command without an end is seen to have been cut.
#[track_caller]
fn judge_lines(scene: &Scene, told: &[serde_json::Value], killed: bool, context: &str) {
    let has = |event: &str, member: &str, value: &str| {
        let is_it = |line: &serde_json::Value| line["event"] == event && line[member] == value;
        told.iter().any(is_it)
    };
    for (_, marker) in &THREE[1..] {
        let is_there = markers(scene).iter().any(|there| there == marker);
        let name = THREE.iter().find(|(_, of)| of == marker).unwrap().0;
        assert!(
            is_there || has("set_removed", "set", name),
            "{context}: {name} {told:#?}"
        );
    }
    let old = scene.site.completed_wals().join("000000010000000000000001");
    assert!(
        old.exists() || has("wal_purged", "first", "000000010000000000000001"),
        "{context}: {told:#?}"
    );
    let ends = told.iter().filter(|line| line["outcome"] != "begun");
    let ends = ends.filter(|line| line["event"] == "command").count();
    // A kill may come behind its end.
    assert!(killed || ends == 1, "{context}: {told:#?}");
}

#[test]
fn fault_231_a_command_opens_its_log_once_however_much_it_tells() {
    skip_unless!(Cluster::available(15));
    let strace = skip_unless!(Strace::available());
    let (mut scene, spare) = scene();
    put_three(&scene, &spare);
    put_old(&scene);
    for (key, value) in [
        ("keep_backups", "1"),
        ("keep_minimum_age", "0"),
        ("audit_log", "audit.log"),
    ] {
        scene.site.standby_set(key, value);
    }
    let audit = scene.site.standby_ini().with_file_name("audit.log");
    scene.site.receiver.stop();
    let strace = strace.unprivileged().trace("openat");
    let command = scene.site.standby_walmgr(&["expire"]);
    let ended = strace.wrap(&command).stdin(Stdio::null()).output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    let opened = strace.log().into_iter();
    let opened = opened.filter(|call| call.contains("/audit.log\""));
    assert_eq!(opened.count(), 1);
    let told = told(&audit);
    assert_eq!(told.len(), 5, "{told:#?}");
}

#[test]
fn fault_212_expire_does_what_it_says_with_n() {
    skip_unless!(Cluster::available(15));
    let (mut scene, spare) = scene();
    put_three(&scene, &spare);
    let old = put_old(&scene);
    says(
        &scene.site.standby_command(&["expire"]),
        0,
        &["neither keep_backups nor keep_days"],
    );
    scene.site.standby_set("keep_backups", "1");
    let young = scene.site.standby_command(&["expire", "-n"]);
    young.succeed();
    assert!(
        young.stdout.contains("younger than keep_minimum_age"),
        "{}",
        young.stdout
    );
    assert!(!young.stdout.contains("would remove"), "{}", young.stdout);
    scene.site.standby_set("keep_minimum_age", "0");

    let keep = ["keep", "data.master.1", "--note", "before the upgrade"];
    scene
        .site
        .standby_command(&[&["-n"][..], &keep].concat())
        .succeed();
    scene.site.standby_command(&keep).succeed();
    let told = scene.site.standby_command(&["expire", "-n"]);
    told.succeed();
    let told: Vec<&str> = told
        .stdout
        .lines()
        .map(|line| line.strip_prefix("would ").unwrap())
        .collect();
    assert_eq!(markers(&scene), ["c", "b", "a"]);
    let done = scene.site.standby_command(&["expire"]);
    done.succeed();
    assert_eq!(done.stdout.lines().collect::<Vec<_>>(), told);
    assert_eq!(told[0], "keep data.master: keep_backups = 1");
    assert_eq!(told[1], "remove data.master.0: beyond keep_backups = 1");
    assert!(
        told[2].starts_with("keep data.master.1: pinned"),
        "{}",
        told[2]
    );
    assert_eq!(
        content(&scene.site),
        pairs(&[("data.master", "c"), ("data.master.1", "a")])
    );

    scene
        .site
        .standby_command(&["unkeep", "data.master.1"])
        .succeed();
    says(
        &scene.site.standby_command(&["unkeep", "data.master.1"]),
        0,
        &["is not pinned"],
    );
    says(
        &scene.site.standby_command(&["keep", "data.master.7"]),
        2,
        &["no backup set data.master.7"],
    );
    says(
        &scene.site.standby_command(&["keep", "elsewhere"]),
        2,
        &["no backup set"],
    );
    scene.site.standby_command(&["xlock"]).succeed();
    for words in [&["expire"][..], &["expire", "-n"]] {
        says(&scene.site.standby_command(words), 1, &["by hand, since"]);
    }
    scene.site.standby_command(&["xrelease"]).succeed();
    scene.site.standby_command(&["expire"]).succeed();
    assert_eq!(markers(&scene), ["c"]);
    assert!(!old.exists());
}

#[test]
fn fault_212_a_killed_expire_leaves_each_listed_set_whole() {
    skip_unless!(Cluster::available(15));
    skip_unless!(Strace::available());
    let (mut scene, spare) = scene();
    crate::restore::kills::make_small(&spare);
    scene.site.standby_set("keep_backups", "1");
    scene.site.standby_set("keep_minimum_age", "0");
    let audit = scene.site.standby_ini().with_file_name("audit.log");
    scene.site.standby_set("audit_log", "audit.log");
    scene.site.receiver.stop();
    let most = if soak() { 60 } else { KILLS };
    let files = |set: &str| {
        let listed = std::process::Command::new("find")
            .arg(set_path(&scene.site, set))
            .output();
        String::from_utf8(listed.unwrap().stdout)
            .unwrap()
            .lines()
            .count()
    };
    let mut kills = 0;
    for call in [
        "/rename.*",
        "/unlink.*",
        "fsync",
        "/p?write.*",
        "flock",
        "/rmdir.*",
        "getdents64",
    ] {
        for count in 1..most {
            put_three(&scene, &spare);
            put_old(&scene);
            let whole = files("data.master");
            let _ = fs::remove_file(&audit);
            let killed = killed_at(&scene.site, &["expire"], call, count);
            kills += u32::from(killed);
            judge_lines(&scene, &told(&audit), killed, &format!("{call} {count}"));
            // One that goes is not listed any more.
            let names = beside(&scene.site).into_iter();
            for name in names.filter(|name| !name.contains("expired")) {
                assert_eq!(files(&name), whole, "{call} {count} {name}");
            }
            let newest = set_path(&scene.site, "data.master").join("marker");
            assert_eq!(fs::read_to_string(newest).unwrap(), "c", "{call} {count}");
            scene.site.standby_command(&["expire"]).succeed();
            assert_eq!(
                content(&scene.site),
                pairs(&[("data.master", "c")]),
                "{call} {count}"
            );
            assert_eq!(beside(&scene.site).len(), 1, "{:?}", beside(&scene.site));
            if !killed {
                break;
            }
        }
    }
    println!("{kills} kills");
    assert_hits(kills, 6);
}

/// Segments of the archive, without what is kept beside them.
fn segments(scene: &Scene) -> BTreeSet<String> {
    let names = scene.site.archived_names().into_iter();
    names.filter(|name| name.len() == 24).collect()
}

/// Three sets of which the oldest is pinned: WAL lies before it, and between it and the next that stays.
fn put_holes(scene: &Scene, spare: &Path, wal: &[(std::path::PathBuf, Vec<u8>)]) {
    put_three(scene, spare);
    for (path, content) in wal {
        fs::write(path, content).unwrap();
        crate::support::place::give_to_server(path);
    }
    let keep = ["keep", "data.master.1", "--note", "before the upgrade"];
    scene.site.standby_command(&keep).succeed();
}

/// Whatever is listed is whole, the pinned set and the newest are there with their WAL.
fn judge_holes(scene: &Scene, spare: &Path, needed: &BTreeSet<String>, context: &str) {
    // One that goes is not listed any more.
    let names = beside(&scene.site).into_iter();
    let listed = names.filter(|name| name.starts_with("data.master") && !name.contains("expired"));
    let mut markers = BTreeSet::new();
    for set in listed.map(|name| set_path(&scene.site, &name)) {
        for part in ["base", "global", "pg_xact"] {
            assert_same(&set.join(part), &spare.join(part), context);
        }
        markers.insert(fs::read_to_string(set.join("marker")).unwrap());
    }
    for marker in ["c", "a"] {
        assert!(markers.contains(marker), "{context}: {markers:?}");
    }
    let there = segments(scene);
    assert!(
        there.is_superset(needed),
        "{context}: {there:?} of {needed:?}"
    );
}

/// Interrupts an expiry whose purge leaves a hole at points of each call, and has the next one finish.
fn interrupt_holes(power: &mut Option<PowerCuts>, kills: &[u32]) {
    let scene = match power {
        Some(power) => Scene::placed(Cluster::builder().major(15), Some(power.disk())),
        None => Scene::new(15),
    };
    let (mut scene, spare) = scene_of(scene);
    crate::restore::kills::make_small(&spare);
    scene.site.standby_set("keep_backups", "1");
    scene.site.standby_set("keep_minimum_age", "0");
    scene.site.receiver.stop();
    let all = |scene: &Scene| -> Vec<_> {
        let names = segments(scene).into_iter();
        let files = names.map(|name| scene.site.stored_path(name));
        files
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect()
    };
    let wal = all(&scene);
    // Once without a kill: what stays then has to stay whatever happens.
    put_holes(&scene, &spare, &wal);
    scene.site.standby_command(&["expire"]).succeed();
    let needed = segments(&scene);
    let kept = pairs(&[("data.master", "c"), ("data.master.1", "a")]);
    let mut hits = 0;
    for call in ["/rename.*", "/unlink.*", "fsync", "/p?write.*", "/rmdir.*"] {
        for count in kills {
            put_holes(&scene, &spare, &wal);
            let interrupted = || killed_at(&scene.site, &["expire"], call, *count);
            let killed = match power {
                Some(power) => power.cut_behind(interrupted),
                None => interrupted(),
            };
            let context = format!("{call} {count}");
            hits += u32::from(killed);
            judge_holes(&scene, &spare, &needed, &context);
            scene.site.standby_command(&["expire"]).succeed();
            judge_holes(&scene, &spare, &needed, &context);
            assert_eq!(content(&scene.site), kept, "{context}");
            assert_eq!(segments(&scene), needed, "{context}");
            if !killed {
                break;
            }
        }
    }
    println!("{hits} interruptions");
    assert_hits(hits, 5);
}

fn counts() -> Vec<u32> {
    match soak() {
        // Of most calls it makes only a few, and it removes some hundred names.
        true => (1..=9).chain((10..256).step_by(2)).collect(),
        false => vec![1, 4, 9],
    }
}

#[test]
fn fault_214_an_expiry_that_leaves_a_hole_is_killed_at_any_step() {
    skip_unless!(Cluster::available(15));
    skip_unless!(Strace::available());
    interrupt_holes(&mut None, &counts());
}

#[test]
fn fault_214_a_power_cut_in_an_expiry_that_leaves_a_hole() {
    skip_unless!(Cluster::available(15));
    skip_unless!(Strace::available());
    for kind in [FileSystem::Ext4, FileSystem::Xfs] {
        let disk = skip_unless!(LoopFs::create(kind, 600));
        interrupt_holes(&mut Some(PowerCuts::on(disk)), &counts());
    }
}
