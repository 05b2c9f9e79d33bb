//! The package's units: that they are as hard as they say, that the daemons work under them, and that nothing of the
//! server beside them is lost. Never starts a unit: systemd does not run where the tests do.
//! Invariant: the filter that is imitated is the one that the unit's own lines name.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::partial::daemon::Syncdaemon;
use crate::support::documents::project;
use crate::support::place::{TempDir, give_to_server, server_user};
use crate::support::strace::Strace;
use crate::support::{Cluster, Site, have, wait_for};

/// A unit's file name and text.
fn services() -> Vec<(String, String)> {
    let folder = project().join("packaging/systemd");
    let entries = std::fs::read_dir(folder).unwrap();
    let paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    let services = paths
        .iter()
        .filter(|path| path.extension().is_some_and(|end| end == "service"));
    let services: Vec<_> = services
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    assert!(services.len() >= 5);
    services
}

fn unit(name: &str) -> String {
    let mut services = services().into_iter();
    services.find(|(unit, _)| unit == name).unwrap().1
}

#[test]
fn fault_181_a_unit_leaves_the_server_beside_it_alone_and_sees_it() {
    for (name, text) in services() {
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        // The first removes the server's shared memory; the others hide its processes, or the host's boot.
        for setting in [
            "RemoveIPC",
            "PrivateUsers",
            "ProtectProc",
            "ProcSubset",
            "PrivateIPC",
        ] {
            let found = lines.iter().find(|line| line.starts_with(setting));
            assert_eq!(found, None, "{name}");
        }
        // Nothing starts before it is configured, and nothing has more rights than PostgreSQL.
        for line in [
            "AssertPathExists=/etc/walmgr/%i.ini",
            "User=postgres",
            "NoNewPrivileges=yes",
            "UMask=0077",
        ] {
            assert!(lines.contains(&line), "{name} lacks {line}");
        }
    }
}

#[test]
fn the_units_of_the_daemons_have_an_exposure_level_of_1_5_at_most() {
    skip_unless!(
        have("systemd-analyze")
            .then_some(())
            .ok_or("systemd-analyze is absent")
    );
    for name in ["walmgr-receiver@.service", "walmgr-syncdaemon@.service"] {
        let mut analyze = Command::new("systemd-analyze");
        analyze.args(["security", "--offline=yes", "--no-pager", "--threshold=15"]);
        let output = analyze
            .arg(project().join("packaging/systemd").join(name))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("Overall exposure level"), "{output:?}");
        assert!(
            output.status.success(),
            "{}",
            said.lines().last().unwrap_or_default()
        );
    }
}

/// The system calls of a group, as systemd knows it.
fn calls_of(group: &str) -> BTreeSet<String> {
    let mut analyze = Command::new("systemd-analyze");
    let output = analyze
        .args(["--no-pager", "syscall-filter", group])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words = text
        .lines()
        .map(|line| line.split('#').next().unwrap().trim());
    let mut calls = BTreeSet::new();
    for word in words.filter(|word| !word.is_empty() && *word != group) {
        match word.starts_with('@') {
            true => calls.extend(calls_of(word)),
            false => {
                calls.insert(word.to_owned());
            }
        }
    }
    calls
}

/// The calls that a unit's filter refuses.
fn refused_by(text: &str) -> BTreeSet<String> {
    let mut allowed = calls_of("@default");
    let filters = text
        .lines()
        .filter_map(|line| line.strip_prefix("SystemCallFilter="));
    for filter in filters {
        let refuses = filter.starts_with('~');
        for group in filter.trim_start_matches('~').split(' ') {
            let calls = calls_of(group);
            assert!(!calls.is_empty(), "{group}");
            match refuses {
                true => allowed.retain(|call| !calls.contains(call)),
                false => allowed.extend(calls),
            }
        }
    }
    assert!(
        allowed.contains("fsync") && !allowed.contains("chown"),
        "{allowed:?}"
    );
    let known = calls_of("@known");
    assert!(known.len() > 300);
    known.difference(&allowed).cloned().collect()
}

/// A tracer that answers as the filter of this unit would, and that logs what memory and which sockets are asked for.
fn imitating(name: &str) -> Result<Strace, String> {
    if !have("systemd-analyze") {
        return Err("systemd-analyze is absent".to_owned());
    }
    let text = unit(name);
    assert!(text.contains("\nSystemCallErrorNumber=EPERM\n"));
    // strace does not know the calls of other architectures.
    let refused: Vec<String> = refused_by(&text)
        .iter()
        .map(|call| format!("?{call}"))
        .collect();
    let strace = Strace::available()?.unprivileged();
    Ok(strace
        .inject(&format!("{}:error=EPERM", refused.join(",")))
        .trace("mmap,mprotect,pkey_mprotect,socket"))
}

/// Everything in a log that a unit would have refused.
fn assert_nothing_refused(strace: &Strace) {
    let families = ["AF_INET", "AF_INET6", "AF_UNIX"];
    for line in strace.log() {
        let allowed = match line
            .split_once(' ')
            .map_or("", |(_, call)| call.trim_start())
        {
            call if call.starts_with("mmap(") => !call.contains("PROT_WRITE|PROT_EXEC"),
            call if call.starts_with("mprotect(") => !call.contains("PROT_EXEC"),
            // glibc asks for it when it resolves a name, and goes on without.
            call if call.starts_with("socket(AF_NETLINK") => true,
            call if call.starts_with("socket(") => families
                .iter()
                .any(|family| call.contains(&format!("({family},"))),
            // The rest of a call that another thread interrupted.
            call if call.starts_with("<...") => !call.contains("INJECTED"),
            _ => !line.contains("INJECTED"),
        };
        assert!(allowed, "{line}");
    }
}

#[test]
fn fault_181_receiver_and_archive_command_work_under_the_units_filter() {
    skip_unless!(Cluster::available(15));
    let _user = skip_unless!(server_user());
    let strace = skip_unless!(imitating("walmgr-receiver@.service"));
    let copies = TempDir::new();
    give_to_server(copies.path());
    let command = format!(
        "cp -r \"$BACKUPDIR\" {}/ && sync -f {0}",
        copies.path().display()
    );
    let mut site = Site::builder()
        .cluster(Cluster::builder().conf("archive_mode", "on").start())
        .standby_set("keep_backups", "1")
        .standby_set("keep_minimum_age", "0")
        .standby_set("archive_command", &command)
        .stopped()
        .build();
    let mut traced = strace.wrap(&site.receiver_walmgr());
    site.receiver.start(&mut traced).unwrap();
    site.master_command(&["setup"]).succeed();
    for _ in 0..2 {
        site.cluster().switch_wal();
        site.master_command(&["backup"]).succeed();
    }
    site.master_command(&["sync"]).succeed();
    assert!(
        copies.join("data.master.0/backup_label").exists()
            || copies.join("data.master.1/backup_label").exists()
    );
    assert_nothing_refused(&strace);
}

#[test]
fn fault_181_the_syncdaemon_works_under_the_units_filter() {
    skip_unless!(Cluster::available(15));
    let _user = skip_unless!(server_user());
    let strace = skip_unless!(imitating("walmgr-syncdaemon@.service"));
    let site = Site::builder()
        .cluster(Cluster::builder().conf("archive_mode", "on").start())
        .master_set("loop_delay", "0.1")
        .build();
    site.master_command(&["setup"]).succeed();
    let mut daemon = Syncdaemon::start_as(
        &site,
        &mut strace.wrap(&site.master_walmgr(&["syncdaemon"])),
    );
    site.cluster().psql("CREATE TABLE written AS SELECT 1");
    wait_for(
        "records of the segment in progress",
        Duration::from_secs(60),
        || {
            let entries = std::fs::read_dir(site.partial_wals()).unwrap();
            entries
                .flatten()
                .any(|entry| entry.file_name().len() == 24)
                .then_some(())
        },
    );
    // The tracer's end would leave it running.
    site.master_command(&["syncdaemon", "--stop"]).succeed();
    assert_eq!(daemon.wait(), Some(0));
    assert_nothing_refused(&strace);
}
