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

/// A set that a restore has taken is neither listed nor in `slave_data`; a backup ends meanwhile.
#[test]
fn fault_104_backup_keeps_the_wal_of_a_slow_restore() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    scene.site.standby_set("keep_backups", "1");
    scene.site.standby_set("keep_minimum_age", "0");
    scene.site.restart_receiver();
    make_set(&scene.site, "data.master");
    scene.restore(&[]).succeed();
    make_set(&scene.site, "data.master");
    let needed = first_of(&scene, "data.master");
    // The server that runs needs less than the set that is to take its place.
    scene.work("200");
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    scene.site.cluster().psql("CHECKPOINT");
    drain(&scene.site);
    wait_for("the restartpoint", PATIENCE, || {
        scene.standby.psql("CHECKPOINT");
        let redo = "SELECT redo_wal_file FROM pg_control_checkpoint()";
        (scene.standby.psql(redo) > needed).then_some(())
    });
    let gate = scene.site.home().join("gate");
    fs::write(&gate, "").unwrap();
    let stop = format!(
        "while test -e {}; do sleep 0.1; done; {} -D {} -m fast -w stop",
        gate.display(),
        scene.standby.bin().join("pg_ctl").display(),
        scene.data().display()
    );
    scene.site.standby_set("slave_stop_cmd", &stop);
    let mut restore = scene.site.standby_walmgr(&["restore"]);
    let restore = restore
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let staging = scene.data().with_extension("restoring");
    wait_for("the set that is taken", PATIENCE, || {
        staging.join("backup_label").exists().then_some(())
    });
    scene.work("200");
    scene.site.master_command(&["backup"]).succeed();
    assert_eq!(segments(&scene.site)[0], needed);
    let purged = scene.site.standby_command(&["xpurgewals"]);
    purged.succeed();
    assert_eq!(segments(&scene.site)[0], needed);
    fs::remove_file(&gate).unwrap();
    let output: Output = restore.wait_with_output().unwrap().into();
    output.succeed();
    scene.wait_until_standby_has(&scene.content());
    scene.boot();
}

#[test]
fn fault_104_a_backup_keeps_the_wal_of_a_restore_that_was_interrupted() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    scene.site.standby_set("keep_backups", "1");
    scene.site.standby_set("keep_minimum_age", "0");
    scene.site.standby_set("slave_start_cmd", "");
    scene.site.restart_receiver();
    make_set(&scene.site, "data.master");
    let needed = first_of(&scene, "data.master");
    scene.restore(&[]).succeed();
    // Killed behind the preparation; `slave_data` was a symlink, which leads nowhere meanwhile.
    let (data, real) = (scene.data(), scene.site.home().join("real"));
    let hidden = data.join("global/pg_control.moved");
    fs::rename(data.join("global/pg_control"), hidden).unwrap();
    fs::rename(&data, real.with_extension("restoring")).unwrap();
    std::os::unix::fs::symlink(&real, &data).unwrap();
    for _ in 0..2 {
        scene.work("200");
        scene.site.master_command(&["backup"]).succeed();
        scene.site.standby_command(&["xpurgewals"]).succeed();
        assert_eq!(segments(&scene.site)[0], needed);
    }
    // What nobody can read keeps everything.
    fs::write(
        real.with_extension("restoring").join("backup_label"),
        "torn",
    )
    .unwrap();
    let output = scene.site.master_command(&["backup"]);
    output.succeed();
    assert!(
        output.stderr.contains("it is unknown which WAL"),
        "{}",
        output.stderr
    );
    assert_eq!(scene.site.standby_command(&["xpurgewals"]).code, Some(1));
    assert_eq!(segments(&scene.site)[0], needed);
}

/// The settings of a receiver are older than its ini, or a second ini leads to the same archive, or a restore
/// went elsewhere, or somebody typed `restore_command` by hand.
#[test]
fn fault_104_a_server_that_no_setting_names_keeps_its_wal() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    scene.site.standby_set("keep_backups", "1");
    scene.site.standby_set("keep_minimum_age", "0");
    scene.site.restart_receiver();
    make_set(&scene.site, "data.master");
    let needed = first_of(&scene, "data.master");
    let beside = scene.site.home().join("beside");
    let words = ["restore", "data.master", &beside.display().to_string()];
    scene.site.standby_command(&words).succeed();
    let two_backups = || {
        for _ in 0..2 {
            scene.work("200");
            scene.site.master_command(&["backup"]).succeed();
        }
        let purged = scene.site.standby_command(&["xpurgewals"]);
        purged.succeed();
        let holder = format!("which the server in {} needs", beside.display());
        assert!(purged.stderr.contains(&holder), "{}", purged.stderr);
        assert_eq!(segments(&scene.site)[0], needed);
    };
    two_backups();
    // Whoever asks for WAL is known from then on.
    let notes = scene.site.completed_wals().join(".servers");
    fs::remove_dir_all(&notes).unwrap();
    let mut server = Cluster::on_directory(15, &beside);
    server.start();
    assert!(notes.exists());
    two_backups();
    // A note that is not what was written stops a purge, and not the archive.
    drop(server);
    let note = fs::read_dir(&notes)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    fs::write(&note, "/elsewhere").unwrap();
    let refused = scene.site.standby_command(&["xpurgewals"]);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains(&note.display().to_string()),
        "{}",
        refused.stderr
    );
    assert_eq!(segments(&scene.site)[0], needed);
}
