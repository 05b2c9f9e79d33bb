//! The contract of `archive_command`, on the real binary against a real receiver.
//! Never trusts an exit code alone: each test also looks at what the archive holds.
//! Invariant: whatever fails, no file of the archive changes and none appears under a final name.

pub(crate) mod choose;
mod interrupted;
mod server;
mod sources;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::support::place::{give_to_server, server_user};
use crate::support::proxy::Fault;
use crate::support::strace::Strace;
use crate::support::{Site, wait_for};

/// What must not change when a file is acknowledged once more.
fn identity_of(path: &Path) -> (u64, i64, i64, u64) {
    let metadata = fs::metadata(path).unwrap();
    (
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.len(),
    )
}

/// Puts a file into the archive behind the receiver's back.
fn plant(site: &Site, name: &str, content: &[u8]) {
    let path = site.unpacked_path(name);
    fs::write(&path, content).unwrap();
    give_to_server(&path);
}

#[test]
fn fault_1_an_identical_file_is_acknowledged_again_and_left_as_it_is() {
    let _user = skip_unless!(server_user());
    for builder in [Site::builder(), Site::builder().plain()] {
        let mut site = builder.build();
        let name = site.segment_name(3);
        site.write_segment(3);
        site.archive(&name).succeed();
        let stored = identity_of(&site.stored_path(&name));
        site.archive(&name).succeed();
        site.restart_receiver();
        site.archive(&name).succeed();
        assert_eq!(identity_of(&site.stored_path(&name)), stored);
        assert_eq!(site.temporaries(), Vec::<String>::new());
    }
}

#[test]
fn fault_1_an_identical_file_is_synced_again_before_it_is_acknowledged() {
    let _user = skip_unless!(server_user());
    let strace = skip_unless!(Strace::available())
        .unprivileged()
        .trace("fsync,fdatasync,syncfs,sync_file_range");
    let mut site = Site::builder().plain().stopped().build();
    let mut traced = strace.wrap(&site.receiver_walmgr());
    site.receiver.start(&mut traced).unwrap();
    site.bind();
    let name = site.segment_name(3);
    site.write_segment(3);
    site.archive(&name).succeed();
    let syncs = || {
        let log = strace.log();
        let whole = log.iter().filter(|line| {
            (line.contains("fsync(") || line.contains("fdatasync(")) && line.ends_with("= 0")
        });
        whole.count()
    };
    let before = syncs();
    site.archive(&name).succeed();
    // The file and its folder.
    assert!(syncs() >= before + 2, "{:#?}", strace.log());
}

#[test]
fn fault_1_a_lost_acknowledgement_is_made_up_for_by_the_next_run() {
    let _user = skip_unless!(server_user());
    // So many of the last bytes reach into the acknowledgement and no further, whether or not the
    // close_notify of TLS (24 bytes) was recorded after it.
    for (builder, lost_bytes) in [(Site::builder(), 40), (Site::builder().plain(), 4)] {
        let site = builder.proxied().build();
        for number in [2, 3, 4] {
            site.write_segment(number);
        }
        // From the second on each greeting names the newest segment and is as long as the next.
        site.archive(&site.segment_name(2)).succeed();
        site.archive(&site.segment_name(3)).succeed();
        let clean = site.proxy().recordings().pop().unwrap();
        site.proxy()
            .set_faults([Fault::lose_last_bytes(&clean, lost_bytes)]);
        let name = site.segment_name(4);
        let line = site.archive(&name).fail(1).to_owned();
        assert!(line.contains("closed the connection; "), "{line}");
        wait_for("the file to be stored", Duration::from_secs(5), || {
            site.holds(&name).then_some(())
        });
        let path = site.stored_path(&name);
        let stored = identity_of(&path);
        site.proxy().set_faults([]);
        site.archive(&name).succeed();
        assert_eq!(identity_of(&path), stored);
        assert_eq!(site.archived(&name), site.segment(4, "walmgr"));
    }
}

#[test]
fn fault_2_another_file_of_the_same_name_is_refused_for_ever() {
    let _user = skip_unless!(server_user());
    let mut site = Site::start();
    let name = site.segment_name(5);
    site.write_segment(5);
    site.archive(&name).succeed();
    let stored = identity_of(&site.stored_path(&name));
    site.write_wal(&name, site.segment(5, "another history"));
    for round in 0..3 {
        let refused = site.archive(&name);
        let line = refused.fail(3);
        assert!(line.contains("already holds a different file as"), "{line}");
        assert!(
            line.contains("; two masters archive to one archive"),
            "{line}"
        );
        if round == 1 {
            site.restart_receiver();
        }
    }
    let alarms = site.receiver.log().matches("CONFLICT").count();
    assert_eq!(alarms, 3, "{}", site.receiver.log());
    assert_eq!(identity_of(&site.stored_path(&name)), stored);
    assert_eq!(site.archived(&name), site.segment(5, "walmgr"));
    let differs = format!("{name}.differs");
    assert_eq!(site.archived_names(), [name, differs]);
    assert_eq!(site.temporaries(), Vec::<String>::new());
}

#[test]
fn fault_3_a_stored_file_that_is_no_wal_is_set_aside_for_the_good_one() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    let damages: [fn(&mut Vec<u8>); 5] = [
        |file| file.clear(),
        |file| file.fill(0),
        |file| file.truncate(file.len() / 2),
        |file| file[500_000..].fill(0),
        |file| file[500_000] ^= 1,
    ];
    for (number, damage) in (6..).zip(damages) {
        let name = site.segment_name(number);
        let good = site.segment(number, "walmgr");
        let mut planted = good.clone();
        damage(&mut planted);
        plant(&site, &name, &planted);
        site.write_segment(number);
        site.archive(&name).succeed();
        assert_eq!(site.archived(&name), good);
        let aside = format!("{name}.damaged");
        assert_eq!(site.archived(&aside), planted, "segment {number}");
        assert!(site.receiver.log().contains(&aside));
    }
    // A second damaged one of the same name has its own place.
    let name = site.segment_name(6);
    plant(&site, &name, b"");
    site.archive(&name).succeed();
    assert!(
        site.holds(&format!("{name}.damaged.1")),
        "{:?}",
        site.archived_names()
    );
}
