//! `bench`: what it prints, and that nothing of what it sends stays.
//! Never judges a speed. Invariant tested: a trial leaves the archive as it was, whatever becomes of it.

use std::process::Stdio;
use std::time::Duration;

use walmgr_protocol::limits::TRIAL_BYTES_MAX;
use walmgr_protocol::message::trial::{Trial, TrialBegin};
use walmgr_protocol::message::{ErrorCode, Message};

use crate::support::hostile::{Key, Refused, ask};
use crate::support::loopfs::{FileSystem, LoopFs, give_back, take_all};
use crate::support::{Site, wait_for};

/// A site whose pg_wal has something to send.
fn site() -> Site {
    let site = Site::start();
    site.write_segment(1);
    site
}

fn begin(size: u64, synced: bool) -> Message {
    Message::Trial(Trial::Begin(TrialBegin { size, synced }))
}

#[test]
fn bench_prints_a_table_and_what_to_set_and_stores_nothing() {
    let site = site();
    let before = site.archived_names();
    let table = (site.master_command(&["bench", "--seconds", "1", "--synced"])).succeed();
    let lines: Vec<&str> = table.lines().filter(|line| line.contains('%')).collect();
    // What is set, two more sizes, three levels, three numbers of connections, and the synced one.
    assert_eq!(lines.len(), 10, "{table}");
    assert!(lines.iter().all(|line| line.contains("kB")), "{table}");
    assert!(lines[9].contains("synced in"), "{table}");
    let is_advised = table.contains("Use these settings:") || table.contains("is as good as");
    assert!(is_advised, "{table}");
    assert_eq!(site.archived_names(), before);
    assert!(site.temporaries().is_empty());
}

#[test]
fn bench_that_has_nothing_to_send_says_so() {
    let site = Site::start();
    let said = site.master_command(&["bench"]);
    said.fail_last(
        1,
        "holds no WAL that could be sent; name a file: --file FILE",
    );
    let empty = site.write_wal("empty", "");
    let empty = empty.to_str().unwrap();
    (site.master_command(&["bench", "--file", empty])).fail_last(2, "there is nothing to send");
    (site.master_command(&["bench", "--file", "/nowhere"])).fail_last(1, "/nowhere");
    site.write_segment(1);
    let said = (site.master_command(&["-n", "bench"])).succeed();
    assert!(!said.contains("MiB/s"), "{said}");
}

#[test]
fn fault_265_a_killed_bench_leaves_nothing_and_archiving_goes_on() {
    let site = site();
    let mut bench = site.master_walmgr(&["bench", "--seconds", "60", "--synced"]);
    let bench = bench.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut bench = bench.unwrap();
    std::thread::sleep(Duration::from_secs(1));
    site.archive(&site.segment_name(1)).succeed();
    bench.kill().unwrap();
    bench.wait().unwrap();
    let names = site.archived_names();
    assert_eq!(names, [site.segment_name(1)]);
}

#[test]
fn fault_265_a_trial_that_is_given_up_leaves_no_temporary() {
    let site = site();
    let key = Key::authorized(&site, "db2", "push");
    let mut peer = key.connect(&site);
    let begun = ask(&mut peer, 1, &begin(1 << 20, true));
    assert!(
        matches!(begun, Ok(Message::Trial(Trial::Begun))),
        "{begun:?}"
    );
    assert_eq!(site.temporaries().len(), 1);
    drop(peer);
    let is_gone = || site.temporaries().is_empty().then_some(());
    wait_for("the temporary to go", Duration::from_secs(60), is_gone);
}

#[test]
fn fault_265_a_trial_needs_the_right_to_push_and_is_bounded() {
    let site = site();
    let reader = Key::authorized(&site, "reader", "read");
    let refused = ask(&mut reader.connect(&site), 1, &begin(1 << 20, false));
    let code = |answer| match answer {
        Err(Refused::InWords(error)) => Some(error.code),
        _ => None,
    };
    assert_eq!(code(refused), Some(ErrorCode::RightMissing));
    let pusher = Key::authorized(&site, "pusher", "push");
    let mut peer = pusher.connect(&site);
    let refused = ask(&mut peer, 1, &begin(TRIAL_BYTES_MAX + 1, false));
    assert_eq!(code(refused), Some(ErrorCode::TooLarge));
    // The connection is as good as before.
    let begun = ask(&mut peer, 1, &begin(1, false));
    assert!(
        matches!(begun, Ok(Message::Trial(Trial::Begun))),
        "{begun:?}"
    );
}

#[test]
fn fault_265_a_synced_trial_takes_no_room_that_a_boot_needs() {
    let disk = skip_unless!(LoopFs::create(FileSystem::Ext4, 192));
    let site = Site::builder().archive(disk.path()).build();
    site.write_segment(1);
    take_all(disk.path());
    let said = site.master_command(&["bench", "--seconds", "1", "--synced"]);
    said.fail_last(1, "MiB are kept free for a boot");
    give_back(disk.path());
    assert!(site.temporaries().is_empty());
    site.archive(&site.segment_name(1)).succeed();
}
