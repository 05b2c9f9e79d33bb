//! Sets whose settings and leftovers are about another life of the server, on both sides' `restore`.
//! Never a text alone: what came with the set would keep the server from starting, following or committing.
//! Invariant: what is switched off is named, and the restored server opens and commits.

use std::fs;
use std::path::Path;

use crate::load::drain;
use crate::restore::{CONTENT, PATIENCE, Scene};
use crate::support::backup_set::make_set;
use crate::support::place::give_to_server;
use crate::support::{Cluster, Output, report_skip, wait_for};

/// What an old life of a server leaves in `postgresql.auto.conf`.
const TRAVELLING: [(&str, &str); 17] = [
    ("primary_conninfo", "host=192.0.2.1 user=nobody"),
    ("primary_slot_name", "of_another"),
    ("restore_command", "cp /nowhere/%f %p"),
    ("archive_cleanup_command", "exit 77"),
    ("recovery_end_command", "exit 77"),
    ("archive_command", "exit 77"),
    ("recovery_min_apply_delay", "2h"),
    ("recovery_target_lsn", "0/1000000"),
    ("recovery_target_inclusive", "off"),
    ("recovery_target_action", "shutdown"),
    ("recovery_target_timeline", "7"),
    ("synchronous_standby_names", "FIRST 1 (gone)"),
    ("cluster_name", "the_master"),
    ("zero_damaged_pages", "on"),
    ("ignore_checksum_failure", "on"),
    ("ignore_invalid_pages", "on"),
    ("archive_mode", "always"),
];

/// Those that a restore replaces, and so does not name.
const REPLACED: [&str; 5] = [
    "primary_conninfo",
    "restore_command",
    "recovery_target_lsn",
    "recovery_target_timeline",
    "archive_mode",
];

fn spoil(set: &Path, major: u8) {
    let auto = set.join("postgresql.auto.conf");
    let mut text = fs::read_to_string(&auto).unwrap();
    for (name, value) in TRAVELLING {
        text.push_str(&format!("{name} = '{value}'\n"));
    }
    text.push_str(match major {
        15 => "promote_trigger_file = '/tmp'\narchive_library = 'no_such_library'\n",
        _ => "synchronized_standby_slots = 'gone'\nsync_replication_slots = on\n",
    });
    fs::write(&auto, text).unwrap();
    for name in [
        "standby.signal",
        "recovery.signal",
        "promote",
        "recovery.conf",
        "logrotate",
    ] {
        fs::write(set.join(name), "").unwrap();
    }
    let slot = set.join("pg_replslot/of_a_client_that_is_gone");
    fs::create_dir_all(&slot).unwrap();
    give_to_server(set);
}

fn names_all(output: &Output, major: u8) {
    let more: &[&str] = match major {
        15 => &["promote_trigger_file", "archive_library"],
        _ => &["synchronized_standby_slots", "sync_replication_slots"],
    };
    let named = TRAVELLING.iter().map(|(name, _)| name);
    for name in named.chain(more).filter(|name| !REPLACED.contains(name)) {
        let said = format!("{name} = ");
        assert!(output.stderr.contains(&said), "{name}: {}", output.stderr);
    }
}

fn is_clean(data: &Path) {
    for name in ["recovery.signal", "promote", "recovery.conf", "logrotate"] {
        assert!(!data.join(name).exists(), "{name}");
    }
    let slots = fs::read_dir(data.join("pg_replslot")).unwrap().count();
    assert_eq!(slots, 0, "a slot keeps WAL for ever");
}

/// It commits, without anybody who confirms it.
fn commits(server: &Cluster) {
    server.psql("CREATE TABLE committed AS SELECT 1 AS n");
    assert_eq!(server.psql("SHOW synchronous_standby_names"), "");
    assert_eq!(server.psql("SHOW cluster_name"), "");
}

fn both_sides(major: u8) {
    let scene = Scene::new(major);
    let set = make_set(&scene.site, "data.master");
    spoil(&set, major);
    scene.work("20");
    let content = scene.site.cluster().psql(CONTENT);
    drain(&scene.site);

    let again = scene.site.home().join("again");
    let words = ["restore", "data.master", again.to_str().unwrap()];
    let output = scene.site.master_command(&words);
    output.succeed();
    names_all(&output, major);
    is_clean(&again);
    let mut server = Cluster::on_directory(major, &again);
    server.start();
    wait_for("the master's rows", PATIENCE, || {
        (server.try_psql(CONTENT).ok()? == content).then_some(())
    });
    server.psql("SELECT pg_promote()");
    commits(&server);

    let output = scene.restore(&["data.master"]);
    output.succeed();
    names_all(&output, major);
    is_clean(&scene.data());
    scene.wait_until_standby_has(&content);
    scene.boot();
    commits(&scene.standby);
}

#[test]
fn fault_128_what_is_about_another_life_of_the_server_is_named_and_off() {
    for major in crate::support::USUAL {
        match Cluster::available(major) {
            Ok(_) => both_sides(major),
            Err(why) => report_skip(&why),
        }
    }
}

#[test]
fn fault_128_what_this_host_says_itself_stays() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    let set = make_set(&scene.site, "data.master");
    let own = scene.site.home().create_dir("own");
    let conf = fs::read_to_string(set.join("postgresql.conf")).unwrap();
    let text = format!("{conf}\ncluster_name = 'ours'\nsynchronous_standby_names = ''\n");
    scene.site.home().write("own/postgresql.conf", &text);
    let auto = set.join("postgresql.auto.conf");
    let travelling = "cluster_name = 'ours'\nsynchronous_standby_names = 'theirs'\n";
    fs::write(&auto, travelling).unwrap();
    give_to_server(&auto);
    scene
        .site
        .standby_set("slave_config_dir", own.to_str().unwrap());
    scene.site.standby_set("slave_start_cmd", "");
    let output = scene.restore(&["data.master"]);
    output.succeed();
    let kept = fs::read_to_string(scene.data().join("postgresql.auto.conf")).unwrap();
    assert!(kept.contains("\ncluster_name = 'ours'\n") || kept.starts_with("cluster_name"));
    assert!(!output.stderr.contains("cluster_name"), "{}", output.stderr);
    assert!(
        kept.contains("#walmgr restore: synchronous_standby_names"),
        "{kept}"
    );
    // Whoever trusts a set gets what it says.
    let output = scene.restore(&["data.master", "--trust-settings"]);
    output.succeed();
    let kept = fs::read_to_string(scene.data().join("postgresql.auto.conf")).unwrap();
    assert!(
        kept.contains("\nsynchronous_standby_names = 'theirs'\n"),
        "{kept}"
    );
}
