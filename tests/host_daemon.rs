//! A cluster's file reaches the receiver that serves it with others, and cannot end it.
//! Never ends a receiver but by its host. Invariant: what one cluster's file changes, the other does not notice.

use std::time::Duration;

use crate::support::place::server_user;
use crate::support::{Host, Site, wait_for};

/// How long a receiver may take over a reload.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_clusters_file_reaches_the_hosts_receiver_and_cannot_end_it() {
    let _user = skip_unless!(server_user());
    let mut host = Host::builder().build();
    let unserved = |system_id| Site::builder().system_id(system_id);
    let first = host.add("db1", unserved(7001));
    let second = host.add("db2", unserved(7002));
    host.start();
    first.bind();
    second.bind();
    for site in [&first, &second] {
        site.write_segment(1);
        site.archive(&site.segment_name(1)).succeed();
    }

    for word in ["--stop", "--kill"] {
        let ended = first.standby_command(&["receiver", word]);
        let says = ended.fail(2);
        assert!(says.contains("this receiver serves 2 clusters"), "{says}");
        assert!(
            says.contains(&format!("host.ini receiver {word}")),
            "{says}"
        );
    }
    let reloaded = first.standby_command(&["receiver", "--reload"]);
    reloaded.succeed();
    host.receiver
        .wait_for_log("settings and keys reloaded; serves 2 of 2 clusters");
    let all = host.command(&["status", "--all"]);
    let names: Vec<&str> = all.stdout.lines().map(|line| &line[..5]).collect();
    assert_eq!(names, ["db1: ", "db2: "], "{all:?}");

    let key = first.master_fingerprint();
    first.standby_command(&["revoke", "master"]).succeed();
    wait_until_archiving_ends_with(&first, 4);
    second.archive(&second.segment_name(1)).succeed();
    first
        .standby_command(&["authorize", &key, "again"])
        .succeed();
    wait_until_archiving_ends_with(&first, 0);
}

fn wait_until_archiving_ends_with(site: &Site, code: i32) {
    wait_for("the receiver to have read the list", LIMIT, || {
        let ended = site.archive(&site.segment_name(1));
        (ended.code == Some(code)).then_some(())
    });
}
