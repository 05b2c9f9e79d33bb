//! What a tired DBA sees: each failure's exit code, its one line on stderr, and the receiver's
//! line about the same. Never needs a server.
//! Invariant: a line names the thing that is wrong and ends in what to do about it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use walmgr::test_support::transport::connect::ReceiverTarget;

use crate::support::imitation::write_data_directory;
use crate::support::loopfs::TmpFs;
use crate::support::place::{give_to_server, server_user};
use crate::support::{Output, Site};

/// The line of a command that failed with this code; it has to end in a hint.
#[track_caller]
fn told(ended: &Output, code: i32, parts: &[&str]) {
    let line = ended.fail(code);
    assert!(line.contains("; "), "no hint: {line}");
    let runbook = match code {
        3 => " (walmgr help differs)",
        4 => " (walmgr help key-refused)",
        5 => " (walmgr help wrong-cluster)",
        6 => " (walmgr help disk-full)",
        _ => "",
    };
    assert!(line.trim_end().ends_with(runbook), "no runbook: {line}");
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in: {line}");
    }
}

#[track_caller]
fn logged(site: &Site, parts: &[&str]) {
    let log = site.receiver.log();
    let said = |line: &str| parts.iter().all(|part| line.contains(part));
    assert!(log.lines().any(said), "no line with {parts:?} in\n{log}");
}

#[test]
fn a_key_the_receiver_does_not_know_is_4_and_both_sides_name_it() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    let name = site.segment_name(1);
    site.write_segment(1);
    let key = site.master_fingerprint();
    site.standby_command(&["revoke", "master"]).succeed();
    site.receiver.wait_for_log("settings and keys reloaded");
    let unknown = format!("key {key} is not in the receiver's authorized_keys");
    let authorize = format!("; on the standby run `walmgr STANDBY.ini authorize {key} NAME`");
    told(&site.archive(&name), 4, &[&unknown, &authorize]);
    logged(&site, &["refused", &unknown, "127.0.0.1"]);
    assert!(!site.holds(&name));
    // The line does what it promises.
    site.standby_command(&["authorize", &key, "master"])
        .succeed();
    crate::support::wait_for(
        "the key to be known",
        std::time::Duration::from_secs(5),
        || (site.archive(&name).code == Some(0)).then_some(()),
    );
}

#[test]
fn a_receiver_with_another_key_than_pinned_is_4_and_both_sides_say_so() {
    let _user = skip_unless!(server_user());
    let mut site = Site::start();
    let (right, wrong) = (site.standby_fingerprint(), site.master_fingerprint());
    site.master_set("slave_fingerprint", &wrong);
    let name = site.segment_name(1);
    site.write_segment(1);
    let both = [right.as_str(), wrong.as_str(), "holds another key"];
    told(&site.archive(&name), 4, &both);
    let told_setup = site.master_command(&["setup"]);
    assert_eq!(told_setup.code, Some(1), "{}", told_setup.stderr);
    logged(&site, &["refused", "127.0.0.1", "certificate"]);
    assert!(!site.holds(&name));
}

#[test]
fn a_key_without_the_right_to_push_is_4() {
    let _user = skip_unless!(server_user());
    let mut site = Site::start();
    let name = site.segment_name(1);
    site.write_segment(1);
    let key = site.master_fingerprint();
    site.standby_command(&["revoke", "master"]).succeed();
    site.standby_command(&["authorize", &key, "reader", "--rights", "read"])
        .succeed();
    site.restart_receiver();
    told(&site.archive(&name), 4, &["push"]);
    logged(&site, &["refused reader", &key, "`push`"]);
    assert!(!site.holds(&name));
}

#[test]
fn a_foreign_cluster_is_5_and_both_sides_name_both() {
    let _user = skip_unless!(server_user());
    let mut site = Site::start();
    let other = site.home().join("other");
    let own = site.facts().cluster;
    let name = site.segment_name(1);
    let strangers = [
        (43, own.postgres_major, 1),
        (own.system_id.0, 16, 1),
        (own.system_id.0, own.postgres_major, 2),
    ];
    for (system_id, postgres_major, segment_mib) in strangers {
        let mut facts = own;
        facts.system_id.0 = system_id;
        facts.postgres_major = postgres_major;
        facts.segment_size =
            walmgr_protocol::names::WalSegmentSize::new(segment_mib << 20).unwrap();
        write_data_directory(&other, &facts, 1);
        site.master_set("master_data", &other.display().to_string());
        let path = site.write_segment(1);
        fs::copy(&path, other.join("pg_wal").join(&name)).unwrap();
        let path = other.join("pg_wal").join(&name);
        fs::write(&path, site.segment(1, "walmgr")).unwrap();
        give_to_server(&path);
        let (bound, ours) = (own.to_string(), facts.to_string());
        told(&site.xarchive(&path, &name), 5, &[&bound, &ours]);
        if system_id == 43 {
            // Those that follow within seconds are counted, not logged one by one.
            logged(&site, &["refused", &bound, &ours]);
        }
    }
    assert!(!site.holds(&name));
}

#[test]
fn a_damaged_segment_is_1_and_the_line_names_the_lsn() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    let name = site.segment_name(3);
    let mut segment = site.segment(3, "walmgr");
    segment[0x2345] ^= 0x10;
    site.write_wal(&name, &segment);
    told(
        &site.archive(&name),
        1,
        &[&name, "damaged at 0/302", "pg_waldump"],
    );
    logged(&site, &["was not stored", "damaged at 0/302"]);
    assert!(!site.holds(&name));
    assert_eq!(site.temporaries(), Vec::<String>::new());
}

#[test]
fn a_receiver_that_is_down_is_1_and_one_that_is_not_bound_or_busy_too() {
    let _user = skip_unless!(server_user());
    let mut site = Site::builder()
        .standby_set("max_connections", "1")
        .unbound()
        .build();
    let name = site.segment_name(1);
    site.write_segment(1);
    let setup = format!("walmgr {} setup", site.master_ini().display());
    told(&site.archive(&name), 1, &[&setup]);
    site.bind();
    site.receiver.stop();
    let address = site.address().to_string();
    told(
        &site.archive(&name),
        1,
        &[&address, "Connection refused", "STANDBY.ini receiver"],
    );
    site.start_receiver();
    let (mut config, facts) = (site.master_config(), site.facts());
    // A key has to belong to the user that uses it, and here that is the test's.
    config.tls.key = site.home().join("asking.key");
    let runtime = walmgr::test_support::master::runtime().unwrap();
    let holding = runtime.block_on(async {
        let target = ReceiverTarget::from_config(&config).unwrap();
        target.connect(facts.cluster, facts.timeline).await.unwrap()
    });
    told(
        &site.archive(&name),
        1,
        &["all 1 connections are in use", "max_connections"],
    );
    logged(&site, &["refused", "all 1 connections are in use"]);
    drop(holding);
    drop(runtime);
    crate::support::wait_for(
        "a free connection",
        std::time::Duration::from_secs(5),
        || (site.archive(&name).code == Some(0)).then_some(()),
    );
}

#[test]
fn a_full_disk_is_6_until_there_is_room() {
    let _user = skip_unless!(server_user());
    // Room for two segments of 1 MiB, and for the four that are kept free.
    let disk = skip_unless!(TmpFs::create(7_100, 100));
    give_to_server(disk.path());
    let site = Site::builder()
        .archive(&disk.path().join("archive"))
        .standby_set("store_compression", "none")
        .build();
    for number in [1, 2, 3] {
        site.write_segment(number);
    }
    let names = [1, 2, 3].map(|number| site.segment_name(number));
    site.archive(&names[0]).succeed();
    site.archive(&names[1]).succeed();
    for _ in 0..2 {
        let parts = [names[2].as_str(), "no space left on the standby's disk"];
        told(&site.archive(&names[2]), 6, &parts);
    }
    logged(&site, &["no space left", &names[2]]);
    assert_eq!(site.archived_names(), names[..2]);
    assert_eq!(site.temporaries(), Vec::<String>::new());
    fs::remove_file(site.stored_path(&names[0])).unwrap();
    site.archive(&names[2]).succeed();
}

#[test]
fn fault_96_a_wrong_setting_is_2_and_the_line_names_file_line_and_key() {
    let _user = skip_unless!(server_user());
    let mut site = Site::start();
    let name = site.segment_name(1);
    site.write_segment(1);
    let ini = site.master_ini().display().to_string();
    let good = fs::read_to_string(site.master_ini()).unwrap();
    let line = good.lines().count() + 1;
    let wrong = [
        ("slave_fingerprnt = x", "slave_fingerprint"),
        ("push_timeout = 0", "push_timeout"),
        ("push_timeout = soon", "push_timeout"),
        ("slave = elsewhere:0", "slave"),
    ];
    for (text, key) in wrong {
        fs::write(site.master_ini(), format!("{good}{text}\n")).unwrap();
        let own = text.split(' ').next().unwrap();
        let place = format!("{ini}:{line}");
        for command in [site.archive(&name), site.master_command(&["setup"])] {
            told(&command, 2, &[&place, own, key]);
        }
    }
    site.master_set("push_timeout", "10s");
    site.archive(&name).succeed();
    let overridden = ["xarchive", "x", &name, "--set", "nonsense=1"];
    told(&site.master_command(&overridden), 2, &["nonsense"]);
}

#[test]
fn a_key_that_is_missing_or_open_to_others_is_2() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    let name = site.segment_name(1);
    site.write_segment(1);
    let key = site.master_ini().with_extension("key");
    let shown = key.display().to_string();
    fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    told(&site.archive(&name), 2, &[&shown, "chmod 600"]);
    fs::remove_file(&key).unwrap();
    told(&site.archive(&name), 2, &[&shown]);
    assert!(!site.holds(&name));
    let missing = site.master_ini().with_file_name("absent.ini");
    let mut command = crate::support::walmgr();
    command.arg(&missing).args(["xarchive", "x", &name]);
    told(
        &Output::of(&mut command),
        2,
        &[&missing.display().to_string()],
    );
}

#[test]
fn the_other_commands_end_with_0_1_or_2() {
    let _user = skip_unless!(server_user());
    let mut site = Site::start();
    let key = site.master_fingerprint();
    let standby: [(&[&str], i32, &str); 9] = [
        (&["setup"], 0, ""),
        (&["identity"], 0, ""),
        (&["receiver"], 2, "already running"),
        (&["authorize", "nonsense", "x"], 2, "identity"),
        (&["authorize", &key, "again"], 2, "master"),
        (&["revoke", "nobody"], 1, "it has: master"),
        (&["xarchive", "x", "000000010000000000000001"], 2, "master"),
        (&["receiver", "-r"], 0, ""),
        (&["receiver", "-s"], 0, ""),
    ];
    for (words, code, part) in standby {
        let ended = site.standby_command(words);
        match code {
            0 => drop(ended.succeed()),
            _ => told(&ended, code, &[part]),
        }
    }
    site.receiver.wait();
    for words in [["receiver", "-r"], ["receiver", "-s"], ["receiver", "-k"]] {
        let ended = site.standby_command(&words);
        assert!(ended.fail(1).contains("not running"), "{ended:?}");
    }
    told(&site.master_command(&["receiver"]), 2, &["standby"]);
    told(&site.master_command(&["setup"]), 1, &["Connection refused"]);
    told(&site.master_command(&["stop", "-n", "x"]), 2, &[]);
}

#[test]
fn quiet_says_errors_only_and_verbose_says_what_was_done() {
    let _user = skip_unless!(server_user());
    let mut site = Site::start();
    let name = site.segment_name(1);
    site.write_segment(1);
    let path = format!("pg_wal/{name}");
    let archive = |site: &Site, option: &str| {
        let words = ["xarchive", &path, &name, option];
        Output::of(site.master_walmgr(&words).current_dir(site.data()))
    };
    for (option, durable) in [("-q", false), ("-v", false), ("-vv", true)] {
        let ended = archive(&site, option);
        ended.succeed();
        assert_eq!(ended.stdout, "");
        let said = ended.stderr.contains("is durable on");
        assert_eq!(said, durable, "{option}: {}", ended.stderr);
    }
    assert_eq!(archive(&site, "-q").stderr, "");
    site.receiver.stop();
    archive(&site, "-q").fail(1);
    let ended = archive(&site, "-vvv");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.lines().count() >= 1);
}

#[test]
fn a_setting_on_the_command_line_wins_over_the_file() {
    let _user = skip_unless!(server_user());
    let mut site = Site::start();
    let name = site.segment_name(1);
    site.write_segment(1);
    let right = site.address().to_string();
    site.route(([127, 0, 0, 1], 1).into());
    site.archive(&name).fail(1);
    let path = format!("pg_wal/{name}");
    let set = format!("slave={right},compression=1");
    let words = ["xarchive", &path, &name, "--set", &set];
    Output::of(site.master_walmgr(&words).current_dir(site.data())).succeed();
    assert_eq!(site.archived(&name), site.segment(1, "walmgr"));
}
