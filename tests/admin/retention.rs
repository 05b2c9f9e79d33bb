//! `keep`, `unkeep` and `expire`: what is said goes, nothing else does, and a kill takes no set from the list half.
//! Never looks at exit codes alone. Invariant: a set that is listed is whole, and has its WAL.

use super::rotation::{THREE, content, pairs, put_sets, scene};
use super::*;
use crate::restore::Scene;
use crate::support::backup_set::set_path;

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

#[test]
fn fault_212_expire_does_what_it_says_with_n() {
    skip_unless!(Cluster::available(15));
    let (mut scene, spare) = scene();
    put_three(&scene, &spare);
    // Older than anything that a set needs.
    let old = scene.site.completed_wals().join("000000010000000000000001");
    if !old.exists() {
        fs::write(&old, "WAL").unwrap();
        crate::support::place::give_to_server(&old);
    }
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
    scene.site.receiver.stop();
    let most = match std::env::var_os("WALMGR_SOAK") {
        Some(_) => 60,
        None => KILLS,
    };
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
    ] {
        for count in 1..most {
            put_three(&scene, &spare);
            let whole = files("data.master");
            let killed = killed_at(&scene.site, &["expire"], call, count);
            kills += u32::from(killed);
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
    assert!(kills >= 6 && (most == KILLS || kills >= 100), "{kills}");
}
