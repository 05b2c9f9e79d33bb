//! The files of a folder of clusters: added, removed, broken, mended while the receiver runs.
//! Never looks inside the receiver. Invariant tested: a reload changes the clusters whose files changed, and names
//! each file that it cannot use.

use super::{archives, host_of, started};
use crate::metrics::{free_address, get};
use crate::support::peer::PATIENCE;
use crate::support::place::server_user;
use crate::support::{Host, Site, wait_for};

/// The line of the log that names a file.
fn named<'a>(said: &'a str, name: &str) -> Option<&'a str> {
    let file = format!("{name}.ini");
    said.lines().find(|line| line.contains(&file))
}

#[test]
fn fault_147_files_come_and_go_while_the_others_are_served() {
    let _user = skip_unless!(server_user());
    let (host, sites) = host_of(&["a", "b"]);
    let [a, b] = &sites[..] else { unreachable!() };
    for site in [a, b] {
        archives(site, 1);
    }
    // One comes.
    let c = host.add("c", Site::builder().system_id(7_700_000_000_000_000_009));
    archives(&c, 1);
    // One goes: its master is not known any more, and its lock is let go.
    let text = std::fs::read_to_string(host.cluster_ini("b")).unwrap();
    std::fs::remove_file(host.cluster_ini("b")).unwrap();
    host.reload();
    b.write_segment(2);
    b.archive(&b.segment_name(2)).fail(4);
    for site in [a, &c] {
        archives(site, 2);
    }
    // It comes back with all it had.
    host.write_cluster("b", &text);
    host.reload();
    archives(b, 2);
    assert_eq!(b.archived_names(), [b.segment_name(1), b.segment_name(2)]);
}

#[test]
fn fault_147_a_file_that_is_broken_later_leaves_its_cluster_as_it_was() {
    let _user = skip_unless!(server_user());
    let (mut host, sites) = host_of(&["a", "b"]);
    let [a, b] = &sites[..] else { unreachable!() };
    let text = std::fs::read_to_string(host.cluster_ini("b")).unwrap();
    host.write_cluster("b", "[walmgr]\ncompleted_wal = /x\n");
    let said = host.reload();
    let line = named(&said, "b").unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains("completed_wal"), "{line}");
    for site in [a, b] {
        archives(site, 1);
    }
    // A start has no old settings.
    host.restart();
    archives(a, 2);
    b.write_segment(2);
    assert_ne!(b.archive(&b.segment_name(2)).code, Some(0));
    let log = host.receiver.log();
    assert!(log.contains("serves 1 of 2 clusters"), "{log}");
    host.write_cluster("b", &text);
    host.reload();
    archives(b, 2);
}

#[test]
fn fault_147_metrics_tell_of_a_cluster_with_its_old_settings() {
    let _user = skip_unless!(server_user());
    let address = free_address();
    let host = Host::builder().set("metrics_listen", &address.to_string());
    let (host, sites) = started(host.build(), &["a", "b"]);
    for site in &sites {
        archives(site, 1);
    }
    let findings = |cluster: &str| -> Vec<f64> {
        let page = get(address, "/metrics").content;
        let labels = [
            format!("cluster=\"{cluster}\""),
            "code=\"receiver\"".to_owned(),
            "level=\"warning\"".to_owned(),
        ];
        let is_asked = |line: &&str| {
            line.starts_with("walmgr_finding{") && labels.iter().all(|label| line.contains(label))
        };
        let found = page.lines().filter(is_asked);
        let value = |line: &str| line.rsplit_once(' ')?.1.parse().ok();
        found.filter_map(value).collect()
    };
    let wait_for_looks = || {
        wait_for("both clusters to be looked at", PATIENCE, || {
            (findings("a") == [0.0] && findings("b") == [0.0]).then_some(())
        });
    };
    wait_for_looks();
    let text = std::fs::read_to_string(host.cluster_ini("b")).unwrap();
    host.write_cluster("b", "[walmgr]\ncompleted_wal = /x\n");
    host.reload();
    assert_eq!((findings("a"), findings("b")), (vec![0.0], vec![1.0]));
    // It is served all the same.
    archives(&sites[1], 2);
    let health = get(address, "/healthz");
    assert!(
        health.head.starts_with("HTTP/1.1 200 "),
        "{}",
        health.content
    );
    host.write_cluster("b", &text);
    host.reload();
    wait_for_looks();
}

#[test]
fn fault_147_two_files_with_one_folder_are_not_both_served() {
    let _user = skip_unless!(server_user());
    let (host, sites) = host_of(&["a"]);
    let [a] = &sites[..] else { unreachable!() };
    let text = std::fs::read_to_string(host.cluster_ini("a")).unwrap();
    host.write_cluster("copy", &text);
    let said = host.reload();
    let line = named(&said, "copy").unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains("a.ini"), "{line}");
    // Whoever was served goes on.
    archives(a, 1);
    std::fs::remove_file(host.cluster_ini("copy")).unwrap();
    host.reload();
    archives(a, 2);
}

#[test]
fn fault_147_no_cluster_gets_what_another_has_in_force() {
    let _user = skip_unless!(server_user());
    let (host, sites) = host_of(&["m", "z"]);
    let [m, z] = &sites[..] else { unreachable!() };
    let text_of = |name: &str| std::fs::read_to_string(host.cluster_ini(name)).unwrap();
    let (of_m, of_z) = (text_of("m"), text_of("z"));
    let x = host
        .home()
        .create_dir("sets")
        .join("x")
        .display()
        .to_string();
    let with_sets = |text: &str, sets: &str| format!("{text}full_backup = {sets}\n");
    host.write_cluster("m", &with_sets(&of_m, &x));
    let incoming = format!("{x}.incoming");
    host.reload();
    // As if a backup ran: whoever opens these sets removes it.
    host.home().create_dir("sets/x.incoming");
    host.home().write("sets/x.incoming/file", "of m");
    host.write_cluster("m", "[walmgr]\ncompleted_wal = /x\n");
    host.write_cluster("z", &with_sets(&of_z, &x));
    let said = host.reload();
    let line = named(&said, "z").unwrap_or_else(|| panic!("{said}"));
    assert!(
        line.contains("full_backup") && line.contains("m.ini"),
        "{line}"
    );
    assert!(std::fs::exists(format!("{incoming}/file")).unwrap());
    // A copy that sorts before does not push its original out.
    host.write_cluster("0", &with_sets(&of_m, &x));
    host.write_cluster("m", &with_sets(&of_m, &x));
    host.write_cluster("z", &of_z);
    let said = host.reload();
    assert!(
        said.contains("serves 2 of 3 clusters; broken: 0.ini"),
        "{said}"
    );
    std::fs::remove_file(host.cluster_ini("0")).unwrap();
    // One reload hands the place on.
    host.write_cluster("m", &with_sets(&of_m, &format!("{x}-new")));
    host.write_cluster("z", &with_sets(&of_z, &x));
    let said = host.reload();
    assert!(said.contains("serves 2 of 2 clusters"), "{said}");
    for site in [m, z] {
        archives(site, 1);
    }
}

#[test]
fn fault_147_a_host_without_clusters_waits_for_the_first() {
    let _user = skip_unless!(server_user());
    let mut host = Host::builder().build();
    host.start();
    let log = host.receiver.log();
    assert!(log.contains("serves 0 of 0 clusters"), "{log}");
    let site = host.add("first", Site::builder());
    archives(&site, 1);
    wait_for("the line to carry the name", PATIENCE, || {
        let log = host.receiver.log();
        log.contains("first: ").then_some(())
    });
}
