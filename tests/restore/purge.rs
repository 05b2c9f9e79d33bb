//! WAL that is purged beside sets and servers that need some of it.
//! Never goes by a file's age.

use super::*;

fn segments(site: &Site) -> Vec<String> {
    let mut names = site.archived_names();
    names.retain(|name| name.len() == 24);
    names
}

fn first_of(scene: &Scene, set: &str) -> String {
    let json = scene.site.standby_command(&["listbackups", "--json"]);
    let sets: serde_json::Value = serde_json::from_str(&json.succeed()).unwrap();
    let sets = sets.as_array().unwrap();
    let found = sets.iter().find(|found| found["set"] == set).unwrap();
    found["first_wal"].as_str().unwrap().to_owned()
}

#[test]
fn fault_82_wal_that_a_listed_set_or_the_standby_needs_is_not_purged() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    let purge = |scene: &Scene| scene.site.standby_command(&["xpurgewals"]).succeed();
    // Nothing says what is needed.
    let all = segments(&scene.site);
    purge(&scene);
    // The archiver may have brought one more.
    assert!(segments(&scene.site).starts_with(&all));
    make_set(&scene.site, "data.master");
    let first = first_of(&scene, "data.master");
    scene.site.standby_command(&["xpurgewals", "-n"]).succeed();
    assert_eq!(segments(&scene.site)[0], all[0]);
    purge(&scene);
    assert_eq!(segments(&scene.site)[0], first);

    // The set is moved, so it is listed no more; the server needs what it did, and a restore that
    // was interrupted would.
    let data = scene.data();
    scene.site.standby_set("slave_start_cmd", "");
    scene.restore(&[]).succeed();
    purge(&scene);
    assert_eq!(segments(&scene.site)[0], first);
    let staging = data.with_extension("restoring");
    fs::rename(
        data.join("global/pg_control"),
        data.join("global/pg_control.moved"),
    )
    .unwrap();
    fs::rename(&data, &staging).unwrap();
    scene.work("200");
    make_set(&scene.site, "data.master");
    purge(&scene);
    assert_eq!(segments(&scene.site)[0], first);

    // Where the server stands counts, not where it began.
    let scene = scene.with_commands();
    scene.restore(&[]).succeed();
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    scene.site.cluster().psql("CHECKPOINT");
    drain(&scene.site);
    let reached = segments(&scene.site).pop().unwrap();
    wait_for("the restartpoint", PATIENCE, || {
        scene.standby.psql("CHECKPOINT");
        let redo = "SELECT redo_wal_file FROM pg_control_checkpoint()";
        (scene.standby.psql(redo) >= reached).then_some(())
    });
    purge(&scene);
    let second = first_of(&scene, "data.master");
    assert!(second > first);
    assert_eq!(segments(&scene.site)[0], second);
    scene.boot();
}
