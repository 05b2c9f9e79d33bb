//! The table of clusters, and what a retry reads for it.
//! Never starts a receiver. Invariant: what nobody asked for changes nothing.

use super::*;
use crate::patience::Patience;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, HostConfig, WantedInForce, load};
use crate::receiver::cluster::census::StoreCensus;
use crate::store::testing::{new_archive, real};

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
    let first = reading::read(host, 10, &WantedInForce::new(), &Patience::default()).unwrap();
    let text = "[walmgr]\nclusters = clusters.d\ntls = off\nmax_connections = 7\n";
    std::fs::write(root.path().join("host.ini"), text).unwrap();
    let process = Arc::clone(&first.process);
    let retried = reading::read_folder(
        first.host,
        process,
        10,
        &WantedInForce::new(),
        &Patience::default(),
    )
    .unwrap();
    assert!(Arc::ptr_eq(&retried.process, &first.process));
    assert!(Arc::ptr_eq(
        &retried.good["a"].settings.server,
        &first.process
    ));
    assert_ne!(retried.host.max_connections, 7);
}

/// What a peer hears that any list has.
fn told(clusters: &Clusters) -> Result<Option<ErrorCode>, Unknown> {
    let candidates = clusters.candidates(&clusters.process(), None)?;
    Ok(candidates.choose(None).err().map(|refusal| refusal.code))
}

#[test]
fn fault_146_a_cluster_that_is_about_to_be_opened_is_never_passed_over() {
    let (root, host) = host();
    let read = reading::read(host, 10, &WantedInForce::new(), &Patience::default()).unwrap();
    let (clusters, file) = (Clusters::new(read.process), &read.good["a"]);
    let (path, settings) = (&file.config.path, &file.settings);
    assert!(told(&clusters).is_err());
    let instead = BrokenCluster::being_opened(path, Some(Arc::clone(settings)));
    clusters.remove("a", Some(instead));
    assert_eq!(told(&clusters).ok(), Some(Some(ErrorCode::Busy)));
    // Its file is wrong by now, so that it names no list.
    let broken = |sentence| BrokenCluster::new(path, sentence, ErrorCode::DiskFailed, None);
    assert!(clusters.note_broken("a", broken("one")));
    assert!(!clusters.note_broken("a", broken("one")));
    assert!(clusters.note_broken("a", broken("two")));
    assert_eq!(told(&clusters).ok(), Some(Some(ErrorCode::DiskFailed)));
    clusters.remove("a", None);
    assert!(told(&clusters).is_err());
    // A file that wants another's place, and one beyond the bound, have lists that were read.
    let copy = std::fs::read(path).unwrap();
    std::fs::write(root.path().join("clusters.d/b.ini"), copy).unwrap();
    let read = reading::read(read.host, 0, &WantedInForce::new(), &Patience::default()).unwrap();
    assert_eq!(read.broken.len(), 2);
    assert!(read.broken.values().all(|broken| broken.settings.is_some()));
}

#[tokio::test]
async fn fault_147_a_peer_that_is_slow_with_its_hello_keeps_no_cluster_open() {
    let (root, host) = host();
    let archive = root.path().join("a");
    std::fs::create_dir(&archive).unwrap();
    new_archive(&archive);
    let read = reading::read(host, 10, &WantedInForce::new(), &Patience::default()).unwrap();
    let (clusters, file) = (Clusters::new(read.process), &read.good["a"]);
    let open = || {
        let (settings, disk) = (Arc::clone(&file.settings), real());
        let census = Arc::new(StoreCensus::default());
        let (stopping, span) = (CancellationToken::new(), tracing::Span::none());
        Cluster::open(
            ("a", &file.config),
            settings,
            &disk,
            &census,
            stopping,
            span,
        )
    };
    let hosted = Arc::new(HostedCluster {
        path: file.config.path.clone(),
        cluster: Arc::new(open().unwrap()),
        tasks: TaskTracker::new(),
    });
    clusters.serve("a", hosted);
    let slow = clusters.candidates(&clusters.process(), None).ok().unwrap();
    assert_eq!(slow.choose(None).ok().unwrap().1.name, None);
    clusters.remove("a", None);
    assert!(open().is_ok(), "somebody has the lock");
    let refusal = slow.choose(None).err().unwrap();
    assert_eq!(refusal.code, ErrorCode::Busy, "{refusal:?}");
}
