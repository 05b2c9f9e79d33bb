//! docs/start/ten-minutes.md: what each command prints is what is typed next.
//! Never types anything else. Invariant: it ends with a segment in the archive.

use std::fs;
use std::process::Command;

use crate::support::place::{give_to_server, server_user};
use crate::support::receiver::Receiver;
use crate::support::{Cluster, Output, TempDir, free_port, wait_for, walmgr};

use super::{PATIENCE, finished_segment};

fn walmgr_at(home: &TempDir, line: &str) -> Command {
    let mut command = walmgr();
    command
        .env("HOME", home.path())
        .current_dir(home.path())
        .args(line.split_whitespace());
    command
}

/// The line of what was printed that says this word, without the program's name.
fn line_with<'a>(printed: &'a str, word: &str) -> &'a str {
    let line = printed
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("walmgr ") && line.contains(word));
    line.unwrap_or_else(|| panic!("no line with {word} in {printed}"))
        .trim_start_matches("walmgr ")
}

#[test]
fn what_init_prints_leads_to_a_running_archive() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let (standby, master) = (TempDir::new(), TempDir::new());
    let printed = Output::of(&mut walmgr_at(&standby, "standby.ini init")).succeed();
    let ini = standby.join("standby.ini");
    let text = fs::read_to_string(&ini).unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    fs::write(&ini, format!("{text}\nlisten = {address}\n")).unwrap();
    give_to_server(&ini);
    let fingerprint = line_with(&printed, "master.ini init");
    let fingerprint = fingerprint.split_whitespace().last().unwrap();
    assert!(fingerprint.starts_with("SHA256:"));
    // What `setup` prints is what `init` printed, with the port of the file as it is now.
    let printed = Output::of(&mut walmgr_at(&standby, "standby.ini setup")).succeed();
    let start = line_with(&printed, " receiver -d");
    assert_eq!(start, format!("{} receiver -d", ini.display()));
    let mut receiver = Receiver::new(standby.join("receiver.log"));
    receiver
        .start(&mut walmgr_at(&standby, start.trim_end_matches(" -d")))
        .unwrap();
    let printed = Output::of(&mut walmgr_at(&standby, "standby.ini setup")).succeed();
    assert!(!printed.contains("receiver"), "{printed}");
    let init_master = line_with(&printed, "master.ini init");
    assert!(
        init_master.contains(&address) && init_master.ends_with(fingerprint),
        "{init_master}"
    );

    let data = cluster.data().display().to_string();
    let init_master = format!("{init_master} --pgdata {data}");
    let printed = Output::of(&mut walmgr_at(&master, &init_master)).succeed();
    let authorize =
        line_with(&printed, "authorize").replace("STANDBY.ini", &ini.display().to_string());
    let setup = line_with(&printed, " setup");
    let printed = Output::of(&mut walmgr_at(&standby, &authorize)).succeed();
    assert_eq!(line_with(&printed, " setup"), "master.ini setup --restart");
    receiver.wait_for_log("settings and keys reloaded");
    let next = Output::of(&mut walmgr_at(&master, setup)).succeed();
    let name = finished_segment(&cluster);
    let archive = standby.join("walshipping/logs.complete");
    let is_stored = || crate::support::stored::path(&archive, &name).exists();
    wait_for("the segment", PATIENCE, || is_stored().then_some(()));

    // What is done is not asked for again.
    let again = Output::of(&mut walmgr_at(&standby, &authorize)).succeed();
    assert_eq!(again, "");
    let mut typed = 0;
    for word in [" backup", " syncdaemon -d"] {
        let done = Output::of(&mut walmgr_at(&master, line_with(&next, word)));
        done.succeed();
        typed += 1;
        let next = Output::of(&mut walmgr_at(&master, setup)).succeed();
        assert_eq!(next.matches("walmgr ").count(), 3 - typed, "{next}");
        assert!(!next.contains(word), "{next}");
        assert_eq!(
            done.stderr.contains("no syncdaemon ships the segment"),
            typed == 1,
            "{done:?}"
        );
    }
    let stop = line_with(&next, " syncdaemon").replace(" -d", " -s");
    Output::of(&mut walmgr_at(&master, &stop)).succeed();

    // What is there stays there.
    for (home, line) in [(&standby, "standby.ini init"), (&master, &init_master)] {
        let again = Output::of(&mut walmgr_at(home, line));
        assert!(again.fail(2).contains("; choose another name"), "{again:?}");
    }
}

#[test]
fn init_finds_no_cluster_where_there_is_none() {
    let _user = skip_unless!(server_user());
    let home = TempDir::new();
    let line = format!(
        "master.ini init --slave standby.example --pgdata {}",
        home.path().display()
    );
    let refused = Output::of(&mut walmgr_at(&home, &line));
    assert!(refused.fail(2).contains("no PG_VERSION"), "{refused:?}");
    let line = format!("master.ini init --pgdata {}", home.path().display());
    Output::of(&mut walmgr_at(&home, &line)).fail(2);
    assert!(!home.join("master.ini").exists() && !home.join("master.key").exists());
}
