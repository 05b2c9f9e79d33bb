//! Standbys that Skytools configured: `archive_cleanup_command` runs pg_archivecleanup on the archive itself.
//! Never lets it run to see what happens: what is removed is needed by sets. Invariant: no acknowledged segment
//! goes but by walmgr's own rules.

use std::fs;
use std::path::Path;

use crate::restore::Scene;
use crate::support::backup_set::make_set;
use crate::support::place::give_to_server;
use crate::support::{Cluster, StopMode, report_skip, wait_for};

use crate::restore::PATIENCE;

fn append(scene: &Scene, name: &str, line: &str) {
    append_to(&scene.data().join(name), line);
}

fn append_to(path: &Path, line: &str) {
    let text = fs::read_to_string(path).unwrap() + line + "\n";
    fs::write(path, text).unwrap();
    give_to_server(path);
}

/// Finished segments, by name.
fn segments(scene: &Scene) -> Vec<String> {
    let names = scene.site.archived_names().into_iter();
    names.filter(|name| name.len() == 24).collect()
}

fn neutralised(major: u8) {
    let mut scene = Scene::new(major);
    let program = scene.standby.bin().join("pg_archivecleanup");
    // The same directory by another name, as Skytools' own %(walmgr_data)s often was.
    let link = scene.site.home().join("by-a-link");
    std::os::unix::fs::symlink(scene.site.completed_wals(), &link).unwrap();
    let command = format!("{} {} %r", program.display(), link.display());
    let line = format!("archive_cleanup_command = '{command}'");
    make_set(&scene.site, "data.master.0");
    scene.restore(&["data.master.0"]).succeed();
    scene.standby.stop(StopMode::Fast);

    // The server as it was left by the old restore; it is found running, stopped, and by `setup`.
    append(&scene, "postgresql.auto.conf", &line);
    let status = || scene.site.standby_command(&["status", "--json"]).stdout;
    assert!(status().contains("\"archive_cleanup\""), "{}", status());
    let said = scene.site.standby_command(&["setup"]).stderr;
    assert!(
        said.contains("which removes WAL from the archive"),
        "{said}"
    );
    assert!(said.contains("postgresql.auto.conf, line "), "{said}");

    // This host's own file has it, so a restore takes it for wanted.
    append(&scene, "postgresql.conf", &line);
    scene.work("50");
    let set = make_set(&scene.site, "data.master");
    append_to(&set.join("postgresql.conf"), &line);
    let before = segments(&scene);
    let restored = scene.restore(&["data.master"]);
    restored.succeed();
    assert!(
        restored
            .stderr
            .contains("would remove WAL from the archive"),
        "{}",
        restored.stderr
    );
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    assert_eq!(scene.standby.psql("SHOW archive_cleanup_command"), "");
    // A restartpoint is when it would run.
    scene.site.cluster().psql("CHECKPOINT");
    scene.work("50");
    let content = scene.content();
    scene.wait_until_standby_has(&content);
    scene.standby.psql("CHECKPOINT");
    let after = segments(&scene);
    for name in before {
        assert!(after.contains(&name), "{name} was removed");
    }
    assert!(!status().contains("\"archive_cleanup\""), "{}", status());

    // In force in the server, whatever its files say by now.
    scene.standby.psql(&format!(
        "ALTER SYSTEM SET archive_cleanup_command = '{}/none {} %r'",
        program.display(),
        scene.site.completed_wals().display()
    ));
    scene.standby.psql("SELECT pg_reload_conf()");
    wait_for("the reload", PATIENCE, || {
        (!scene
            .standby
            .psql("SHOW archive_cleanup_command")
            .is_empty())
        .then_some(())
    });
    scene
        .standby
        .psql("ALTER SYSTEM SET archive_cleanup_command = ''");
    let output = scene.site.standby_command(&["status"]);
    assert!(
        output.stdout.contains("in force, from "),
        "{}",
        output.stdout
    );
    assert_eq!(output.code, Some(2));
}

#[test]
fn fault_167_nothing_but_walmgr_removes_archived_wal() {
    for major in [15, 18] {
        match Cluster::available(major) {
            Ok(_) => neutralised(major),
            Err(why) => report_skip(&why),
        }
    }
}

#[test]
fn fault_167_one_that_cleans_elsewhere_stays() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    make_set(&scene.site, "data.master.0");
    scene.restore(&["data.master.0"]).succeed();
    scene.standby.stop(StopMode::Fast);
    let line = "archive_cleanup_command = 'pg_archivecleanup /srv/other %r'";
    append(&scene, "postgresql.conf", line);
    let set = make_set(&scene.site, "data.master");
    append_to(&set.join("postgresql.conf"), line);
    let restored = scene.restore(&["data.master"]);
    restored.succeed();
    assert!(
        !restored.stderr.contains("archive_cleanup"),
        "{}",
        restored.stderr
    );
    let shown = scene.standby.psql("SHOW archive_cleanup_command");
    assert_eq!(shown, "pg_archivecleanup /srv/other %r");
    let status = scene.site.standby_command(&["status", "--json"]).stdout;
    assert!(!status.contains("\"archive_cleanup\""), "{status}");
}
