//! `restore SET DST` on the master: a real backup, brought back, replayed over the wire, compared.
//! Never starts a server on what was not reported as complete. Invariant: a destination holds a whole
//! data directory, nothing, or what PostgreSQL does not start from.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::names_in;
use crate::load::drain;
use crate::support::proxy::{Direction, Fault};
use crate::support::{Cluster, Output, Site, run, wait_for};

pub const PATIENCE: Duration = Duration::from_secs(90);

pub const CONTENT: &str = "SELECT (SELECT md5(string_agg(a::text, ',' ORDER BY aid)) FROM pgbench_accounts a), \
     (SELECT md5(string_agg(h::text, ',' ORDER BY h::text)) FROM pgbench_history h)";

/// A master with pgbench's tables, which archives and has made a backup.
struct Scene {
    site: Site,
}

impl Scene {
    fn new() -> Scene {
        Scene::of(Site::builder())
    }

    fn of(builder: crate::support::site::Builder) -> Scene {
        let cluster = Cluster::builder().conf("archive_mode", "on").start();
        let site = builder.cluster(cluster).build();
        site.master_command(&["setup"]).succeed();
        site.cluster().pgbench(&["-i", "-q", "-s", "2"]);
        site.master_command(&["backup"]).succeed();
        site.cluster().pgbench(&["-n", "-t", "50"]);
        Scene { site }
    }

    fn destination(&self) -> PathBuf {
        self.site.home().join("restored")
    }

    fn restore(&self, more: &[&str]) -> Output {
        let destination = self.destination().display().to_string();
        let words = [&["restore", "data.master", &destination], more].concat();
        self.site.master_command(&words)
    }

    /// What the master has now, all of it archived.
    fn content(&self) -> String {
        let content = self.site.cluster().psql(CONTENT);
        drain(&self.site);
        content
    }

    fn start(&self) -> Cluster {
        let mut server = Cluster::on_directory(self.site.cluster().major(), &self.destination());
        server.start();
        server
    }

    #[track_caller]
    fn has(&self, server: &Cluster, content: &str) {
        wait_for("the master's data", PATIENCE, || {
            let found = server.try_psql(CONTENT).ok()?;
            (found == content).then_some(())
        });
    }
}

fn control_of(data: &Path) -> PathBuf {
    data.join("global/pg_control")
}

#[test]
fn a_set_comes_back_replays_over_the_wire_and_opens_when_it_is_told_to() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::of(Site::builder().master_set("compression", "1"));
    let restored = scene.restore(&[]).succeed();
    assert!(restored.contains("promote"), "{restored}");
    let data = scene.destination();
    assert!(!data.join("walmgr.restoring").exists());
    let mut verify = scene.site.cluster().command("pg_verifybackup");
    verify.args(["-n", "-i", "standby.signal"]);
    run(verify.arg(&data)).unwrap();
    let content = scene.content();
    let server = scene.start();
    scene.has(&server, &content);
    assert_eq!(server.psql("SELECT pg_is_in_recovery()"), "t");
    server.psql("SELECT pg_promote()");
    assert_eq!(server.psql(CONTENT), content);
    assert_eq!(server.psql("SHOW archive_mode"), "off");
    // The set is still there, and once more is not possible.
    let listed = scene.site.master_command(&["listbackups"]).succeed();
    assert!(listed.contains("data.master "), "{listed}");
    scene.restore(&[]).fail_last(2, "not empty");
}

#[test]
fn a_target_ends_the_recovery_and_opens_the_server() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::new();
    let content = scene.site.cluster().psql(CONTENT);
    scene
        .site
        .cluster()
        .psql("SELECT pg_create_restore_point('here')");
    scene.site.cluster().pgbench(&["-n", "-t", "50"]);
    let later = scene.content();
    assert_ne!(content, later);
    let words = ["--target-name", "here", "--target-action", "promote"];
    scene.restore(&words).succeed();
    let server = scene.start();
    wait_for("the end of recovery", PATIENCE, || {
        let is_open = server.try_psql("SELECT pg_is_in_recovery()").ok()? == "f";
        is_open.then_some(())
    });
    assert_eq!(server.psql(CONTENT), content);
}

#[test]
fn tablespaces_go_where_they_are_sent_or_stay_below() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::new();
    let master = scene.site.cluster();
    let [one, two] = ["one", "two"].map(|name| {
        let path = scene.site.home().create_dir(&format!("space-{name}"));
        master.psql(&format!(
            "CREATE TABLESPACE {name} LOCATION '{}'",
            path.display()
        ));
        master.psql(&format!(
            "CREATE TABLE t_{name} TABLESPACE {name} AS SELECT generate_series(1, 999) n"
        ));
        path
    });
    scene.site.master_command(&["backup"]).succeed();
    let new = scene.site.home().join("mapped");
    let mapping = format!("{}={}", one.display(), new.display());
    let wrong = format!("{}={}", new.display(), new.display());
    scene
        .restore(&["--tablespace-mapping", &wrong])
        .fail_last(2, "its tablespaces were at");
    scene.restore(&["--tablespace-mapping", &mapping]).succeed();
    let links = scene.destination().join("pg_tblspc");
    let targets: Vec<PathBuf> = names_in(&links)
        .iter()
        .map(|name| fs::read_link(links.join(name)).unwrap())
        .collect();
    assert!(
        targets.contains(&new.canonicalize().unwrap()),
        "{targets:?}"
    );
    assert!(
        targets
            .iter()
            .any(|path| path.starts_with(scene.destination().join("tmpspc")))
    );
    assert!(!targets.contains(&two));
    let server = scene.start();
    for name in ["one", "two"] {
        assert_eq!(
            server.psql(&format!("SELECT count(*) FROM t_{name}")),
            "999"
        );
    }
}

#[test]
fn a_link_that_is_cut_again_and_again_costs_nothing_twice() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::of(Site::builder().proxied().master_set("push_timeout", "60"));
    let begun = scene.site.proxy().recordings().len();
    let cut = Fault::Cut { at_byte: 6 << 20 };
    scene.site.proxy().set_faults([(Direction::ToClient, cut)]);
    scene.restore(&[]).succeed();
    scene.site.proxy().set_faults([]);
    let connections = &scene.site.proxy().recordings()[begun..];
    assert!(connections.len() > 4, "{}", connections.len());
    let arrived: usize = connections.iter().map(|it| it.to_client.len()).sum();
    let set = scene.site.completed_wals().with_file_name("data.master");
    let size = run(std::process::Command::new("du").arg("-sb").arg(set)).unwrap();
    let size: usize = size.split('\t').next().unwrap().parse().unwrap();
    println!(
        "{arrived} bytes over {} connections for a set of {size}",
        connections.len()
    );
    assert!(arrived < size * 5 / 4, "{arrived} for {size}");
    let content = scene.content();
    let server = scene.start();
    scene.has(&server, &content);
}

#[test]
fn fault_80_a_place_that_holds_anything_is_refused_untouched() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::new();
    let data = scene.destination();
    fs::create_dir(&data).unwrap();
    fs::write(data.join("precious"), "x").unwrap();
    crate::support::place::give_to_server(&data);
    scene.restore(&[]).fail_last(2, "not empty");
    assert_eq!(names_in(&data), ["precious"]);
    let master = scene.site.data().display().to_string();
    let inside = format!("{master}/base/new");
    for destination in [&master, &inside] {
        let words = ["restore", "data.master", destination];
        scene
            .site
            .master_command(&words)
            .fail_last(2, "data directory");
    }
    let nowhere = scene.site.home().join("no/such").display().to_string();
    let words = ["restore", "data.master", &nowhere];
    scene
        .site
        .master_command(&words)
        .fail_last(2, "cannot create");
    for set in ["data.master.7", "../data.master", ""] {
        let free = scene.site.home().join("free").display().to_string();
        let words = ["restore", set, &free];
        scene
            .site
            .master_command(&words)
            .fail_last(2, "no backup set");
        assert!(!Path::new(&free).exists());
    }
    scene
        .site
        .master_command(&["restore"])
        .fail_last(2, "SET DST");
    let rehearsed = scene.site.home().join("rehearsed");
    let shown = rehearsed.display().to_string();
    let words = ["-n", "restore", "data.master", &shown];
    scene.site.master_command(&words).succeed();
    assert!(!rehearsed.exists());
}

#[test]
fn fault_81_killed_at_any_moment_it_leaves_nothing_that_starts() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::new();
    let data = scene.destination();
    let words = ["restore", "data.master", &data.display().to_string()];
    let mut finished = 0;
    for attempt in 0..12_u64 {
        let mut child = scene.site.master_walmgr(&words).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(120 + attempt * attempt * 9));
        child.kill().unwrap();
        child.wait().unwrap();
        if control_of(&data).exists() {
            // It had come to its end; what is there is whole.
            finished += 1;
            fs::remove_dir_all(&data).unwrap();
        } else if data.exists() {
            let mut server = Cluster::on_directory(scene.site.cluster().major(), &data);
            server.try_start().unwrap_err();
        }
    }
    println!("{finished} of 12 came to their end");
    scene.restore(&[]).succeed();
    let content = scene.content();
    let server = scene.start();
    scene.has(&server, &content);
}

#[test]
fn fault_68_a_set_that_is_not_its_manifests_is_refused_and_removed() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::new();
    let set = scene.site.completed_wals().with_file_name("data.master");
    let version = set.join("PG_VERSION");
    let good = fs::read(&version).unwrap();
    fs::write(&version, "99\n").unwrap();
    scene.restore(&[]).fail_last(1, "PG_VERSION");
    fs::write(&version, &good[..1]).unwrap();
    scene.restore(&[]).fail_last(1, "PG_VERSION");
    fs::remove_file(&version).unwrap();
    scene.restore(&[]).fail_last(1, "PG_VERSION");
    fs::write(&version, &good).unwrap();
    crate::support::place::give_to_server(&version);
    let extra = set.join("base/surplus");
    fs::write(&extra, "x").unwrap();
    crate::support::place::give_to_server(&extra);
    scene.restore(&[]).fail_last(1, "base/surplus");
    assert!(!scene.destination().exists());
    fs::remove_file(&extra).unwrap();
    scene.restore(&[]).succeed();
}

#[test]
fn a_set_is_not_removed_while_it_is_fetched() {
    let _user = skip_unless!(crate::support::place::server_user());
    let scene = Scene::of(
        Site::builder()
            .proxied()
            .standby_set("keep_backups", "1")
            .standby_set("keep_minimum_age", "0"),
    );
    let delay = Fault::Blackhole { at_byte: 3 << 20 };
    scene
        .site
        .proxy()
        .set_faults([(Direction::ToClient, delay)]);
    let data = scene.destination().display().to_string();
    let mut child = scene
        .site
        .master_walmgr(&["restore", "data.master", &data])
        .spawn()
        .unwrap();
    scene
        .site
        .receiver
        .wait_for_log("sending data.master from byte 0 on");
    // The backup goes its own way round the proxy.
    scene.site.proxy().set_faults([]);
    scene.site.master_command(&["backup"]).succeed();
    let kept = scene.site.completed_wals().with_file_name("data.master.0");
    assert!(kept.join("backup_label").exists(), "it was removed");
    scene.site.proxy().cut_all();
    // Under its new name it is found again.
    assert!(child.wait().unwrap().success());
    let content = scene.content();
    let server = scene.start();
    scene.has(&server, &content);
}
