//! The table of clusters, and what a retry reads for it.
//! Never starts a receiver. Invariant: what nobody asked for changes nothing.

use super::*;
use crate::config::{Config, HostConfig, WantedInForce, load};

/// A host without TLS with a cluster `a`, and the folder it is in.
fn host() -> (tempfile::TempDir, HostConfig) {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    std::fs::create_dir(at("clusters.d")).unwrap();
    std::fs::write(
        at("host.ini"),
        "[walmgr]\nclusters = clusters.d\ntls = off\n",
    )
    .unwrap();
    let text = format!("[walmgr]\nwalmgr_data = {}\n", at("a").display());
    std::fs::write(at("clusters.d/a.ini"), text).unwrap();
    let Config::Host(host) = load(&at("host.ini"), &[]).unwrap() else {
        panic!("no host");
    };
    (root, *host)
}

#[test]
fn fault_147_a_retry_leaves_the_settings_of_the_host_as_they_are() {
    let (root, host) = host();
    let first = reading::read(host, 10, &WantedInForce::new()).unwrap();
    let text = "[walmgr]\nclusters = clusters.d\ntls = off\nmax_connections = 7\n";
    std::fs::write(root.path().join("host.ini"), text).unwrap();
    let process = Arc::clone(&first.process);
    let retried = reading::read_folder(first.host, process, 10, &WantedInForce::new()).unwrap();
    assert!(Arc::ptr_eq(&retried.process, &first.process));
    assert!(Arc::ptr_eq(
        &retried.good["a"].settings.server,
        &first.process
    ));
    assert_ne!(retried.host.max_connections, 7);
}
