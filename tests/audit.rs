//! `audit_log`: who did what to an archive or its rules, as real receivers, servers and commands tell it.
//! Never looks at the log where the file is meant. Invariant: every line of every file is JSON with who, when and how
//! it ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::loopfs::TmpFs;
use crate::support::{Cluster, Host, Output, Site, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// Beside the ini file.
fn audit_of(site: &Site) -> PathBuf {
    site.standby_ini().with_file_name("audit.log")
}

/// A site with the settings and the file.
fn audited(builder: crate::support::site::Builder) -> Site {
    builder.standby_set("audit_log", "audit.log").build()
}

/// All lines of a file.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.is_empty()).map(|line| {
        let read: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for member in ["time", "event", "outcome", "cluster", "who", "process"] {
            assert!(!read[member].is_null(), "{member}: {line}");
        }
        read
    });
    lines.collect()
}

/// The first line like this, once it is there.
#[track_caller]
fn line(path: &Path, event: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    wait_for(event, PATIENCE, || {
        let found = lines(path);
        found
            .into_iter()
            .find(|line| line["event"] == event && is_it(line))
    })
}

/// The place of the last such line.
#[track_caller]
fn place(lines: &[Value], is_it: impl Fn(&Value) -> bool) -> usize {
    let found = lines.iter().rposition(is_it);
    found.unwrap_or_else(|| panic!("{lines:#?}"))
}

fn is_command(line: &Value, command: &str, outcome: &str) -> bool {
    line["event"] == "command" && line["command"] == command && line["outcome"] == outcome
}

#[test]
fn fault_186_what_peers_do_and_are_refused_is_told_with_their_keys() {
    let _user = skip_unless!(crate::support::place::server_user());
    let site = audited(Site::builder());
    let (audit, key) = (audit_of(&site), site.master_fingerprint());
    let bound = line(&audit, "bound", |_| true);
    assert_eq!(
        (&bound["who"]["name"], &bound["who"]["key"]),
        (&"master".into(), &key.clone().into())
    );
    assert_eq!(
        (&bound["cluster"], &bound["outcome"]),
        (&"standby".into(), &"done".into())
    );
    let granted = line(&audit, "command", |line| {
        is_command(line, "authorize", "done")
    });
    assert!(
        granted["who"]["uid"].is_u64() && granted["who"]["user"].is_string(),
        "{granted}"
    );
    assert!(granted["typed"].to_string().contains(&key), "{granted}");

    // Another file of a stored name, and one far ahead.
    let name = site.segment_name(1);
    site.write_segment(1);
    site.archive(&name).succeed();
    site.write_wal(&name, site.segment(1, "another"));
    site.archive(&name)
        .fail_last(3, "already holds a different file");
    let refused = line(&audit, "rewrite_refused", |_| true);
    assert_eq!(
        (&refused["file"], &refused["who"]["name"]),
        (&name.into(), &"master".into())
    );
    let far = site.segment_name(5_000);
    site.write_wal(&far, site.segment(5_000, "far"));
    site.archive(&far).succeed();
    assert_eq!(line(&audit, "set_apart", |_| true)["file"], far.as_str());

    // A right that is missing, and a key that nobody knows.
    site.standby_command(&["authorize", &key, "master", "--rights", "read"])
        .succeed();
    line(&audit, "reloaded", |line| line["who"]["kind"] == "receiver");
    wait_for("the refusal", PATIENCE, || {
        (site.archive(&site.segment_name(1)).code == Some(4)).then_some(())
    });
    let lacks = line(&audit, "refused", |line| {
        line["why"].to_string().contains("lacks the right")
    });
    assert_eq!(
        (&lacks["who"]["name"], &lacks["outcome"]),
        (&"master".into(), &"refused".into())
    );
    site.standby_command(&["revoke", "master"]).succeed();
    wait_for("the revocation", PATIENCE, || {
        site.archive(&site.segment_name(1));
        let found = lines(&audit);
        let is_it =
            |line: &&Value| line["who"]["key"] == key.as_str() && line["who"]["name"].is_null();
        found.iter().find(is_it).map(drop)
    });
    line(&audit, "command", |line| is_command(line, "revoke", "done"));
}

#[test]
fn fault_186_a_flood_of_refusals_has_few_lines_and_a_count() {
    let _user = skip_unless!(crate::support::place::server_user());
    let site = audited(Site::builder().plain());
    for _ in 0..200 {
        let mut stranger = std::net::TcpStream::connect(site.address()).unwrap();
        std::io::Write::write_all(&mut stranger, b"GET / HTTP/1.0\r\n\r\n").unwrap();
    }
    let audit = audit_of(&site);
    let said = wait_for("a count", PATIENCE, || {
        std::thread::sleep(Duration::from_secs(1));
        let mut stranger = std::net::TcpStream::connect(site.address()).unwrap();
        std::io::Write::write_all(&mut stranger, b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let refused = lines(&audit)
            .into_iter()
            .filter(|line| line["event"] == "refused");
        let more: Vec<u64> = refused.map(|line| line["more"].as_u64().unwrap()).collect();
        (more.iter().sum::<u64>() >= 199).then_some(more)
    });
    assert!(said.len() < 60, "{said:?}");
}

#[test]
fn fault_186_sets_and_wal_are_told_of_before_they_go_and_commands_twice() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let builder = Site::builder()
        .cluster(cluster)
        .standby_set("keep_backups", "1")
        .standby_set("keep_minimum_age", "0");
    let mut site = audited(builder);
    site.master_command(&["setup"]).succeed();
    for _ in 0..2 {
        site.cluster().switch_wal();
        site.master_command(&["backup"]).succeed();
    }
    let audit = audit_of(&site);
    line(&audit, "cleared_away", |_| true);
    let told = lines(&audit);
    let is = |event: &'static str| move |line: &Value| line["event"] == event;
    let (sealed, removed) = (
        place(&told, is("set_sealed")),
        place(&told, is("set_removed")),
    );
    let (purged, cleared) = (
        place(&told, is("wal_purged")),
        place(&told, is("cleared_away")),
    );
    assert!(
        sealed < removed && removed < purged && purged < cleared,
        "{told:#?}"
    );
    assert_eq!(
        (&told[removed]["set"], &told[removed]["outcome"]),
        (&"data.master.0".into(), &"begun".into())
    );
    assert_eq!(
        (&told[cleared]["sets"], &told[cleared]["outcome"]),
        (&1.into(), &"done".into())
    );
    assert!(told[purged]["files"].as_u64().unwrap() > 0);
    for at in [sealed, removed, purged, cleared] {
        assert_eq!(told[at]["who"]["name"], "master", "{}", told[at]);
    }

    for words in [
        &["xlock"][..],
        &["xrelease"],
        &["xpurgewals"],
        &["verify"],
        &["-n", "xrotate"],
    ] {
        site.standby_command(words).succeed();
    }
    let data = site.home().join("restored").display().to_string();
    site.standby_command(&["restore", "data.master", &data])
        .succeed();
    let mut restored = Cluster::on_directory(site.cluster().major(), Path::new(&data));
    restored.start();
    site.standby_set("slave_data", &data);
    site.standby_command(&["boot"]).succeed();
    let told = lines(&audit);
    for command in ["xlock", "xrelease", "xpurgewals", "restore", "boot"] {
        let begun = place(&told, |line| is_command(line, command, "begun"));
        let done = place(&told, |line| is_command(line, command, "done"));
        assert!(
            begun < done && told[begun]["process"] == told[done]["process"],
            "{command}"
        );
        assert!(told[done]["who"]["uid"].is_u64());
    }
    let frozen = place(&told, is("frozen"));
    assert_eq!(told[frozen]["timeline"], 1);
    assert!(frozen < place(&told, |line| is_command(line, "boot", "done")));
    site.standby_command(&["restore", "no.such.set", &data]);
    let told = lines(&audit);
    let failed = place(&told, |line| is_command(line, "restore", "failed"));
    assert!(told[failed]["why"].is_string());
    place(&told, |line| is_command(line, "verify", "done"));
    let of = |command: &str| {
        told.iter()
            .filter(|line| line["command"] == command)
            .count()
    };
    assert_eq!((of("xrotate"), of("verify"), of("listbackups")), (0, 1, 0));
}

#[test]
fn fault_186_a_rotated_file_is_left_at_sighup_and_no_line_is_lost() {
    let _user = skip_unless!(crate::support::place::server_user());
    let site = audited(Site::builder());
    let (audit, key) = (audit_of(&site), site.master_fingerprint());
    let rotated = audit.with_extension("log.1");
    let before = lines(&audit).len();
    std::thread::scope(|scope| {
        for number in 0..3 {
            let (site, key) = (&site, &key);
            scope.spawn(move || {
                for _ in 0..4 {
                    let words = [
                        "authorize",
                        key,
                        "master",
                        "--rights",
                        ["push", "read", "backup"][number],
                    ];
                    site.standby_command(&words).succeed();
                }
            });
        }
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            fs::rename(&audit, &rotated).unwrap();
            site.receiver.signal(Signal::HUP);
        });
    });
    line(&audit, "reloaded", |_| true);
    let told = [lines(&rotated), lines(&audit)].concat();
    assert!(told.len() > before);
    for outcome in ["begun", "done"] {
        let of = told
            .iter()
            .filter(|line| is_command(line, "authorize", outcome));
        assert_eq!(of.count(), 13, "{outcome}");
    }
    let written = lines(&rotated).len();
    let again = lines(&audit).len();
    site.receiver.signal(Signal::HUP);
    wait_for("the reload", PATIENCE, || {
        (lines(&audit).len() > again).then_some(())
    });
    assert_eq!(lines(&rotated).len(), written);
}

#[test]
fn fault_186_a_rotated_file_is_left_while_the_settings_are_wrong() {
    let _user = skip_unless!(crate::support::place::server_user());
    let mut site = audited(Site::builder());
    let (audit, name) = (audit_of(&site), site.segment_name(1));
    site.write_segment(1);
    site.archive(&name).succeed();
    site.standby_set("keep_backups", "many");
    fs::rename(&audit, audit.with_extension("log.1")).unwrap();
    site.receiver.signal(Signal::HUP);
    site.receiver.wait_for_log("reload failed");
    site.write_wal(&name, site.segment(1, "another"));
    site.archive(&name).fail(3);
    line(&audit, "rewrite_refused", |_| true);
}

#[test]
fn fault_187_archiving_goes_on_without_room_for_the_audit_log() {
    let _user = skip_unless!(crate::support::place::server_user());
    let disk = skip_unless!(TmpFs::create(64, 0));
    let (ballast, audit) = (disk.path().join("ballast"), disk.path().join("audit.log"));
    let full = || drop(fs::write(&ballast, vec![0; 1 << 20]));
    full();
    let site = Site::builder()
        .standby_set("audit_log", &audit.display().to_string())
        .build();
    for number in 1..4 {
        site.write_segment(number);
        site.archive(&site.segment_name(number)).succeed();
    }
    let name = site.segment_name(1);
    site.write_wal(&name, site.segment(1, "another"));
    site.archive(&name)
        .fail_last(3, "already holds a different file");
    site.receiver
        .wait_for_log("lines of the audit log are lost, and everything else goes on");
    // What is not in the file is in the log.
    site.receiver.wait_for_log("\"event\":\"rewrite_refused\"");
    let said = site.standby_command(&["xlock"]);
    said.succeed();
    assert!(
        said.stderr.contains("lines of the audit log are lost"),
        "{}",
        said.stderr
    );
    fs::remove_file(&ballast).unwrap();
    site.receiver.signal(Signal::HUP);
    let lost = line(&audit, "lines_lost", |_| true);
    assert!(lost["lost"].as_u64().unwrap() >= 2, "{lost}");
    line(&audit, "reloaded", |_| true);
    assert_eq!(lines(&audit)[0]["event"], "lines_lost");
}

#[test]
fn fault_186_a_link_in_the_place_of_the_file_refuses_the_start() {
    let _user = skip_unless!(crate::support::place::server_user());
    let mut site = audited(Site::builder());
    site.receiver.stop();
    let (audit, victim) = (audit_of(&site), site.home().join("victim"));
    fs::write(&victim, "precious").unwrap();
    fs::remove_file(&audit).unwrap();
    std::os::unix::fs::symlink(&victim, &audit).unwrap();
    let refused = site.standby_command(&["receiver"]);
    refused.fail_last(2, "audit.log is a symlink");
    // A command is too urgent to be refused, and says so.
    let said = site.standby_command(&["xlock"]);
    said.succeed();
    assert!(said.stderr.contains("is a symlink"), "{}", said.stderr);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn fault_186_clusters_of_a_host_tell_their_own_file_or_that_of_the_host() {
    let _user = skip_unless!(crate::support::place::server_user());
    let mut host = Host::builder().set("audit_log", "host.audit").build();
    let of_host = host.ini().with_file_name("host.audit");
    host.start();
    let own = host.home().join("db1.audit");
    let with = |id| Site::builder().system_id(id);
    let own_text = own.display().to_string();
    let first = host.add("db1", with(7001).standby_set("audit_log", &own_text));
    // Its file has another name than its job, and it is called as its metrics call it.
    let second = host.add("db2", with(7002).standby_set("job_name", "orders"));
    assert_eq!(line(&own, "bound", |_| true)["cluster"], "db1");
    assert_eq!(line(&of_host, "bound", |_| true)["cluster"], "db2");
    second.standby_command(&["revoke", "master"]).succeed();
    line(&of_host, "command", |line| {
        line["cluster"] == "db2" && is_command(line, "revoke", "done")
    });
    // Nobody's key belongs to no cluster.
    second.write_segment(1);
    let key = second.master_fingerprint();
    let is_it = |line: &Value| {
        line["event"] == "refused" && line["who"]["key"] == key.as_str() && line["cluster"] == ""
    };
    wait_for("the refusal", PATIENCE, || {
        // Whoever is greeted before the key is gone is still refused by the cluster.
        let offered = second.archive(&second.segment_name(1));
        (offered.code == Some(4) && lines(&of_host).iter().any(is_it)).then_some(())
    });
    assert!(lines(&own).iter().all(|line| line["cluster"] == "db1"));
    first.write_segment(1);
    first.archive(&first.segment_name(1)).succeed();
}

#[test]
fn fault_248_lost_lines_of_a_hosts_own_log_are_a_finding_of_its_clusters() {
    let _user = skip_unless!(crate::support::place::server_user());
    let disk = skip_unless!(TmpFs::create(64, 0));
    let (ballast, audit) = (disk.path().join("ballast"), disk.path().join("audit.log"));
    let path = audit.display().to_string();
    let mut host = Host::builder().set("audit_log", &path).build();
    host.start();
    let own = host.home().join("db1.audit").display().to_string();
    let builder = Site::builder().system_id(7001);
    let site = host.add("db1", builder.standby_set("audit_log", &own));
    let finding = || {
        let page = site.standby_command(&["status", "--json"]).stdout;
        let page: Value = serde_json::from_str(&page).unwrap();
        let findings = page["findings"].as_array().unwrap().iter();
        let mut of_audit = findings.filter(|found| found["code"] == "audit_log");
        of_audit.next().map(|found| found["text"].to_string())
    };
    assert_eq!(finding(), None);
    fs::write(&ballast, vec![0; 1 << 20]).unwrap_err();
    // Nobody's key belongs to no cluster.
    site.standby_command(&["revoke", "master"]).succeed();
    site.write_segment(1);
    let name = site.segment_name(1);
    wait_for("the loss", PATIENCE, || {
        site.archive(&name);
        finding().filter(|said| said.contains("has lost") && said.contains(&path))
    });
    // Whoever is killed lets nobody forget it.
    host.receiver.kill9();
    fs::remove_file(&ballast).unwrap();
    let said = finding().unwrap();
    assert!(
        said.contains("does not say so before its next line"),
        "{said}"
    );
    host.start();
    wait_for("the number in the file", PATIENCE, || {
        site.archive(&name);
        lines(&audit)
            .iter()
            .any(|line| line["event"] == "lines_lost")
            .then_some(())
    });
    wait_for("the end of the finding", PATIENCE, || {
        finding().is_none().then_some(())
    });
}

#[test]
fn fault_231_lost_lines_are_a_finding_until_the_file_tells_of_them() {
    let _user = skip_unless!(crate::support::place::server_user());
    let disk = skip_unless!(TmpFs::create(64, 0));
    let (ballast, audit) = (disk.path().join("ballast"), disk.path().join("audit.log"));
    let mut site = Site::builder()
        .standby_set("audit_log", &audit.display().to_string())
        .build();
    line(&audit, "bound", |_| true);
    let finding = |site: &Site| {
        let page = site.standby_command(&["status", "--json"]).stdout;
        let page: Value = serde_json::from_str(&page).unwrap();
        let findings = page["findings"].as_array().unwrap().iter();
        let mut of_audit = findings.filter(|found| found["code"] == "audit_log");
        of_audit.next().map(|found| found["text"].to_string())
    };
    assert_eq!(finding(&site), None);
    // Its last page has no room either; empty lines mean nothing.
    let len = usize::try_from(audit.metadata().unwrap().len()).unwrap();
    let mut file = fs::File::options().append(true).open(&audit).unwrap();
    std::io::Write::write_all(&mut file, &vec![b'\n'; 4096 - len % 4096]).unwrap();
    fs::write(&ballast, vec![0; 1 << 20]).unwrap_err();
    // Nothing is lost yet.
    let said = finding(&site).unwrap();
    assert!(said.contains("would lose its next line"), "{said}");
    // A command that ended long ago, and a receiver that is killed.
    site.standby_command(&["xlock"]).succeed();
    let name = site.segment_name(1);
    site.write_segment(1);
    site.archive(&name).succeed();
    site.write_wal(&name, site.segment(1, "another"));
    site.archive(&name).fail(3);
    wait_for("three lines", PATIENCE, || {
        finding(&site).filter(|said| said.contains("has lost 3 lines since"))
    });
    site.receiver.kill9();
    fs::remove_file(&ballast).unwrap();
    let said = finding(&site).unwrap();
    assert!(
        said.contains("does not say so before its next line"),
        "{said}"
    );
    let textfile = site.home().join("walmgr.prom");
    let words = ["status", "--metrics", &textfile.display().to_string()];
    site.standby_command(&words);
    let page = fs::read_to_string(&textfile).unwrap();
    let metric = "walmgr_finding{cluster=\"standby\",code=\"audit_log\",level=\"warning\"} 1";
    assert!(page.contains(metric), "{page}");
    let verified = site.standby_command(&["verify", "--json"]);
    let verified: Value = serde_json::from_str(&verified.stdout).unwrap();
    let codes = verified["findings"].as_array().unwrap().iter();
    let codes: Vec<&Value> = codes.map(|found| &found["code"]).collect();
    assert!(codes.contains(&&"audit_log".into()), "{codes:?}");
    // Its end was the next line.
    assert_eq!(line(&audit, "lines_lost", |_| true)["lost"], 3);
    assert_eq!(finding(&site), None);
    // A folder that is not there loses lines too.
    let nowhere = site.home().join("nowhere/audit.log");
    site.standby_set("audit_log", &nowhere.display().to_string());
    let said = finding(&site).unwrap();
    assert!(said.contains("nowhere"), "{said}");
}

#[test]
fn fault_231_who_fetches_sets_and_wal_is_told() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let site = audited(Site::builder().cluster(cluster));
    site.master_command(&["setup"]).succeed();
    let archived = site
        .cluster()
        .psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    site.cluster().switch_wal();
    site.master_command(&["backup"]).succeed();
    let audit = audit_of(&site);
    let destination = site.home().join("fetched").display().to_string();
    site.master_command(&["restore", "data.master", &destination])
        .succeed();
    let of = |outcome: &'static str| move |line: &Value| line["outcome"] == outcome;
    let begun = line(&audit, "set_fetched", of("begun"));
    let done = line(&audit, "set_fetched", of("done"));
    for told in [&begun, &done] {
        assert_eq!(
            (&told["who"]["name"], &told["set"], &told["offset_bytes"]),
            (&"master".into(), &"data.master".into(), &0.into())
        );
    }
    assert_eq!(begun["sent_bytes"], 0);
    let bytes = crate::backup::rate::bytes_below(Path::new(&destination));
    let sent_bytes = done["sent_bytes"].as_u64().unwrap();
    assert!(sent_bytes > bytes / 2, "{sent_bytes} of {bytes}");
    let fetched = site.home().join("segment").display().to_string();
    let fetch = |name: &str| site.master_command(&["xrestore", name, &fetched]);
    for _ in 0..3 {
        fetch(&archived).succeed();
    }
    let told = line(&audit, "wal_fetched", |line| line["file"] == archived);
    assert_eq!(
        (&told["who"]["key"], &told["more"], &told["outcome"]),
        (&site.master_fingerprint().into(), &0.into(), &"done".into())
    );
    // What is not there is nobody's.
    fetch("0000000100000000000000F0");
    wait_for("the others' count", PATIENCE, || {
        std::thread::sleep(Duration::from_secs(1));
        fetch(&archived).succeed();
        let told = lines(&audit).into_iter();
        let mut counts = told.filter(|line| line["event"] == "wal_fetched");
        counts.find(|line| line["more"].as_u64() >= Some(2))
    });
}

#[test]
fn fault_231_init_of_a_hosted_cluster_is_told() {
    let _user = skip_unless!(crate::support::place::server_user());
    let mut host = Host::builder().set("audit_log", "host.audit").build();
    let of_host = host.ini().with_file_name("host.audit");
    host.start();
    let init = || {
        let mut command = crate::support::place::walmgr();
        Output::of(command.arg(host.cluster_ini("db1")).arg("init"))
    };
    init().succeed();
    let told = line(&of_host, "command", |line| is_command(line, "init", "done"));
    assert_eq!(told["cluster"], "db1");
    assert!(told["who"]["uid"].is_u64(), "{told}");
    init().fail(2);
    let told = line(&of_host, "command", |line| {
        is_command(line, "init", "failed")
    });
    assert!(told["why"].to_string().contains("exists already"), "{told}");
}
