//! Sets whose settings give orders, restored into real servers.
//! Never looks at a text alone: a command that ran leaves a marker. Invariant: it leaves none.

use super::*;

/// Appends to a file of a set.
fn append(path: &Path, text: &str) {
    let mut old = fs::read_to_string(path).unwrap_or_default();
    old.push_str(text);
    fs::write(path, old).unwrap();
    give_to_server(path);
}

/// Settings that leave a marker when the server obeys them.
fn orders(set: &Path, marker: &Path) {
    let marker = marker.display();
    append(
        &set.join("postgresql.auto.conf"),
        &format!(
            "Archive_Cleanup_Command 'touch {marker}.cleanup'\nrecovery_min_apply_delay = '1h'\n"
        ),
    );
    append(
        &set.join("postgresql.conf"),
        &format!("recovery_end_command='touch {marker}.end'\ninclude_dir 'more'\n"),
    );
    fs::create_dir(set.join("more")).unwrap();
    give_to_server(&set.join("more"));
    append(
        &set.join("more/a.conf"),
        &format!("external_pid_file = '{marker}.pid'\n"),
    );
    append(&set.join("pg_hba.conf"), "host all all 0.0.0.0/0 trust\n");
    fs::create_dir_all(set.join("pg_stat_tmp")).unwrap();
    append(&set.join("pg_stat_tmp/walmgr.absent.00000002.history"), "");
    append(&set.join("promote"), "");
}

fn markers(scene: &Scene) -> Vec<String> {
    let mut names = names_in(scene.site.home().path());
    names.retain(|name| name.starts_with("marker."));
    names
}

/// Restores, replays, restarts a checkpoint and boots.
fn live(scene: &Scene, words: &[&str]) -> Output {
    let output = scene.restore(words);
    output.succeed();
    scene.wait_until_standby_has(&scene.content());
    scene.site.cluster().psql("CHECKPOINT");
    drain(&scene.site);
    let before = "SELECT redo_lsn FROM pg_control_checkpoint()";
    let reached = scene.site.cluster().psql(before);
    wait_for("the restartpoint", PATIENCE, || {
        scene.standby.psql("CHECKPOINT");
        let is_there = format!("SELECT redo_lsn >= '{reached}' FROM pg_control_checkpoint()");
        (scene.standby.psql(&is_there) == "t").then_some(())
    });
    scene.boot();
    output
}

#[test]
fn fault_106_112_a_sets_settings_run_nothing_on_the_standby() {
    skip_unless!(Cluster::available(15));
    let scene = Scene::new(15);
    let marker = scene.site.home().join("marker");
    let set = make_set(&scene.site, "data.master");
    orders(&set, &marker);
    let output = live(&scene, &[]);
    assert_eq!(markers(&scene), [""; 0]);
    for name in [
        "archive_cleanup_command",
        "recovery_end_command",
        "recovery_min_apply_delay",
        "external_pid_file",
        "host all all 0.0.0.0/0 trust",
    ] {
        assert!(output.stderr.contains(name), "{name}: {}", output.stderr);
    }
    assert!(!scene.data().join("promote").exists());
}

#[test]
fn fault_106_trusted_settings_are_kept() {
    skip_unless!(Cluster::available(15));
    let scene = Scene::new(15);
    let marker = scene.site.home().join("marker");
    let set = make_set(&scene.site, "data.master");
    append(
        &set.join("postgresql.auto.conf"),
        &format!("recovery_end_command = 'touch {}.end'\n", marker.display()),
    );
    live(&scene, &["--trust-settings"]);
    assert_eq!(markers(&scene), ["marker.end"]);
}

#[test]
fn fault_112_config_backup_brings_no_orders_and_no_environment() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    let home = scene.site.home().path().to_path_buf();
    let (kept, own) = (home.join("kept"), home.join("own"));
    for folder in [&kept, &own] {
        fs::create_dir(folder).unwrap();
    }
    make_set(&scene.site, "data.master");
    fs::write(
        kept.join("postgresql.conf"),
        "recovery_end_command = '/evil'\nssl_passphrase_command = '/etc/own'\nport = 1\n",
    )
    .unwrap();
    fs::write(kept.join("environment"), "LD_PRELOAD = '/evil.so'\n").unwrap();
    fs::write(kept.join("start.conf"), "manual\n").unwrap();
    fs::write(kept.join("pg_hba.conf"), "host all all 0.0.0.0/0 trust\n").unwrap();
    fs::write(
        own.join("postgresql.conf"),
        "ssl_passphrase_command = '/etc/own'\nport = 2\n",
    )
    .unwrap();
    fs::write(own.join("pg_hba.conf"), "local all all peer\n").unwrap();
    scene
        .site
        .standby_set("config_backup", &kept.display().to_string());
    scene
        .site
        .standby_set("slave_config_dir", &own.display().to_string());
    scene.site.standby_set("slave_start_cmd", "");
    for folder in [&kept, &own] {
        for name in names_in(folder) {
            give_to_server(&folder.join(name));
        }
        give_to_server(folder);
    }
    let output = scene.restore(&[]);
    output.succeed();
    let conf = fs::read_to_string(own.join("postgresql.conf")).unwrap();
    assert!(conf.contains("\n#") || conf.starts_with('#'), "{conf}");
    assert!(
        conf.contains("#walmgr restore: recovery_end_command = '/evil'"),
        "{conf}"
    );
    assert!(
        conf.contains("\nssl_passphrase_command = '/etc/own'\nport = 2\n"),
        "{conf}"
    );
    assert!(!own.join("environment").exists() && !own.join("start.conf").exists());
    for said in ["recovery_end_command", "environment", "0.0.0.0/0 trust"] {
        assert!(output.stderr.contains(said), "{said}: {}", output.stderr);
    }
}

#[test]
fn fault_112_config_backup_includes_nothing_of_the_set_that_gives_orders() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    let kept = scene.site.home().path().join("kept");
    fs::create_dir(&kept).unwrap();
    let set = make_set(&scene.site, "data.master");
    // As on Debian: the data directory has no settings of its own.
    fs::rename(set.join("postgresql.conf"), kept.join("postgresql.conf")).unwrap();
    append(
        &kept.join("postgresql.conf"),
        "\nhba_file = '/etc/main/pg_hba.conf'\ninclude 'more'\n",
    );
    append(&set.join("more"), "recovery_end_command = '/evil'\n");
    give_to_server(&kept);
    scene
        .site
        .standby_set("config_backup", &kept.display().to_string());
    scene.site.standby_set("slave_start_cmd", "");
    scene.restore(&[]).succeed();
    let read = |name: &str| fs::read_to_string(scene.data().join(name)).unwrap();
    let hba = scene.data().join("pg_hba.conf");
    let end = format!("\nhba_file = '{}'\ninclude 'more'\n", hba.display());
    let conf = read("postgresql.conf");
    assert!(conf.ends_with(&end), "{conf}");
    assert_eq!(
        read("more"),
        "#walmgr restore: recovery_end_command = '/evil'\n"
    );
    let auto = read("postgresql.auto.conf");
    assert!(auto.contains("\nrestore_command = "), "{auto}");
}
