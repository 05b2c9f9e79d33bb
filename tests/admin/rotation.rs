//! `xrotate`: the names move, the oldest goes, and every command lives without a newest set.
//! Never looks at exit codes alone. Invariant: each set that was not given up is there under exactly one name, in order.

use super::*;
use crate::restore::Scene;
use crate::support::backup_set::{make_set, set_path};

/// Which set each name leads to, by a file that was put there.
pub(super) fn content(site: &Site) -> Vec<(String, String)> {
    let marker = |name: &String| fs::read_to_string(set_path(site, name).join("marker")).unwrap();
    let names = beside(site)
        .into_iter()
        .filter(|name| name.starts_with("data.master"));
    names.map(|name| (name.clone(), marker(&name))).collect()
}

pub(super) fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, marker): &(&str, &str)| ((*name).to_owned(), (*marker).to_owned());
    expected.iter().map(owned).collect()
}

/// The set under these names, the first one newest.
pub(super) fn put_sets(site: &Site, spare: &Path, sets: &[(&str, &str)]) {
    for (name, _) in content(site) {
        fs::remove_dir_all(set_path(site, &name)).unwrap();
    }
    for (name, marker) in sets {
        copy(spare, &set_path(site, name));
        fs::write(set_path(site, name).join("marker"), marker).unwrap();
    }
}

/// Three sets, and the one they are copies of.
pub(super) fn scene() -> (Scene, std::path::PathBuf) {
    scene_of(Scene::new(15))
}

pub(super) fn scene_of(scene: Scene) -> (Scene, std::path::PathBuf) {
    let spare = scene.site.archive_folder().with_file_name("spare");
    fs::rename(make_set(&scene.site, "data.master"), &spare).unwrap();
    put_sets(&scene.site, &spare, &THREE);
    (scene, spare)
}

pub(super) const THREE: [(&str, &str); 3] = [
    ("data.master", "c"),
    ("data.master.0", "b"),
    ("data.master.1", "a"),
];

#[test]
fn fault_165_every_command_works_without_a_newest_set() {
    skip_unless!(Cluster::available(15));
    let (mut scene, _spare) = scene();
    let said = scene.site.home().join("said");
    fs::write(&said, "").unwrap();
    crate::support::place::give_to_server(&said);
    let command = format!(
        "echo $BACKUPDIR $(cat $BACKUPDIR/marker) >> {}",
        said.display()
    );
    scene.site.standby_set("archive_command", &command);
    scene.site.standby_set("keep_backups", "3");
    let site = &scene.site;
    let told = site.standby_command(&["xrotate", "-n"]);
    for part in [
        "data.master.1",
        "rename data.master.0 to data.master.1",
        "rename data.master to",
    ] {
        assert!(told.stdout.contains(part), "{part}: {}", told.stdout);
    }
    assert_eq!(content(site), pairs(&THREE));
    site.standby_command(&["xrotate"]).succeed();
    let two = pairs(&[("data.master.0", "c"), ("data.master.1", "b")]);
    assert_eq!(content(site), two);
    let removed = set_path(site, "data.master.1").display().to_string();
    assert_eq!(fs::read_to_string(&said).unwrap(), format!("{removed} a\n"));
    // Again: the name is free already.
    says(&site.standby_command(&["xrotate"]), 0, &["is free"]);
    assert_eq!(content(site), two);
    // All others, without a newest set.
    assert_eq!(scene.listed(), ["data.master.0", "data.master.1"]);
    let page = site.standby_command(&["status"]);
    assert!(
        page.stdout.contains("the newest is data.master.0"),
        "{}",
        page.stdout
    );
    site.standby_command(&["xpurgewals"]).succeed();
    site.master_command(&["listbackups"]).succeed();
    scene.site.standby_set("keep_backups", "0");
    scene.restore(&[]).succeed();
    assert_eq!(scene.listed(), ["data.master.1"]);
    let now = scene.content();
    scene.wait_until_standby_has(&now);
    scene.site.restart_receiver();
    scene.site.master_command(&["backup"]).succeed();
    assert_eq!(scene.listed(), ["data.master", "data.master.1"]);
    scene.boot();
}

#[test]
fn fault_165_xrotate_keeps_the_last_set_that_restores() {
    skip_unless!(Cluster::available(15));
    let (mut scene, spare) = scene();
    let after = |scene: &Scene, keep: &str| {
        put_sets(&scene.site, &spare, &THREE);
        let set = format!("keep_backups={keep}");
        scene
            .site
            .standby_command(&["--set", &set, "xrotate"])
            .succeed();
        content(&scene.site)
    };
    let last = pairs(&[("data.master.0", "c")]);
    assert_eq!(after(&scene, "1"), last);
    assert_eq!(after(&scene, "2"), last);
    let all = [
        ("data.master.0", "c"),
        ("data.master.1", "b"),
        ("data.master.2", "a"),
    ];
    assert_eq!(after(&scene, "0"), pairs(&all));
    assert_eq!(after(&scene, "9"), pairs(&all));
    scene.site.standby_set("keep_backups", "1");
    scene
        .site
        .standby_set("archive_command", "echo no tape >&2; false");
    put_sets(&scene.site, &spare, &THREE);
    let refused = scene.site.standby_command(&["xrotate"]);
    says(
        &refused,
        1,
        &["no tape", "data.master.1", "archive_command"],
    );
    assert_eq!(content(&scene.site), pairs(&THREE));
    // Where the newest set is damaged, the one that restores stays.
    scene.site.standby_set("archive_command", "");
    fs::write(
        set_path(&scene.site, "data.master").join("backup_label"),
        "",
    )
    .unwrap();
    let _ = scene.site.standby_command(&["xrotate"]);
    let left: Vec<String> = content(&scene.site)
        .into_iter()
        .map(|(_, marker)| marker)
        .collect();
    assert!(
        left.contains(&"b".to_owned()) && left.contains(&"c".to_owned()),
        "{left:?}"
    );
}

#[test]
fn fault_165_a_killed_xrotate_loses_no_set_and_the_next_one_finishes() {
    skip_unless!(Cluster::available(15));
    skip_unless!(Strace::available());
    let (mut scene, spare) = scene();
    crate::restore::kills::make_small(&spare);
    scene.site.standby_set("keep_backups", "3");
    scene.site.receiver.stop();
    let done = pairs(&[("data.master.0", "c"), ("data.master.1", "b")]);
    for call in ["/rename.*", "/unlink.*", "fsync", "/p?write.*"] {
        for count in 1..CALLS_MAX {
            put_sets(&scene.site, &spare, &THREE);
            let killed = killed_at(&scene.site, &["xrotate"], call, count);
            let found = content(&scene.site).into_iter().map(|(_, marker)| marker);
            let mut found: Vec<String> = found.filter(|marker| marker != "a").collect();
            found.sort();
            assert_eq!(found, ["b", "c"], "{call} {count}");
            scene.site.standby_command(&["xrotate"]).succeed();
            assert_eq!(content(&scene.site), done, "{call} {count}");
            assert!(
                !scene
                    .site
                    .archive_folder()
                    .join(".data.master.intent")
                    .exists()
            );
            if !killed {
                break;
            }
            // Removing the oldest set is many calls of one kind.
            if call == "/unlink.*" && count > 12 {
                break;
            }
        }
    }
}
