//! Hundreds of clusters that have nothing to do: what they cost, and what one broken file among them costs.
//! Never has a server or a standby's process: a key and a hello bind an archive. Invariant tested: a cluster costs
//! memory for itself only, and a file that is broken costs nobody but itself.
//!
//! The bounds are asserted by `./test.sh --soak`; the ordinary run prints what it measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use walmgr::test_support::store::{Archive, ArchiveFolders, RealDisk};
use walmgr_protocol::hello::Hello;
use walmgr_protocol::message::{ClusterIdentity, Message, SetupDone};
use walmgr_protocol::names::{SystemId, WalSegmentSize};

use crate::support::hostile::{Key, ask};
use crate::support::peer::hello;
use crate::support::place::{give_to_server, server_user};
use crate::support::{Host, soak, wait_for};

const CLUSTERS: u64 = 300;
const PATIENCE: Duration = Duration::from_secs(60);
const START_MAX: Duration = Duration::from_secs(5);
const CLUSTER_KIB_MAX: u64 = 1 << 10;

/// A cluster of which there is an archive, a key and an identity, and nothing else.
struct Idle {
    name: String,
    key: Key,
    system_id: SystemId,
}

impl Idle {
    fn create(host: &Host, receiver: &str, number: u64) -> Idle {
        let name = format!("db{number:03}");
        let key = Key::at_host(receiver.parse().unwrap(), &name);
        let archive = host.home().join(format!("archive/{name}"));
        std::fs::create_dir(&archive).unwrap();
        // What its `setup` does, without a process.
        let folders = ArchiveFolders {
            completed_wals: archive.join("logs.complete"),
            partial_wals: archive.join("logs.partial"),
        };
        Archive::create(&folders, Arc::new(RealDisk)).unwrap();
        let keys = host.clusters().join(format!("{name}.keys"));
        std::fs::write(&keys, format!("{} {name}\n", key.fingerprint())).unwrap();
        let text = format!(
            "[walmgr]\nwalmgr_data = {0}\ncompleted_wals = {0}/logs.complete\n\
             partial_wals = {0}/logs.partial\nauthorized_keys = {1}\n",
            archive.display(),
            keys.display()
        );
        std::fs::write(host.cluster_ini(&name), text).unwrap();
        let system_id = SystemId(7_800_000_000_000_000_000 + number);
        Idle {
            name,
            key,
            system_id,
        }
    }

    fn hello(&self) -> Hello {
        hello(Some(ClusterIdentity {
            system_id: self.system_id,
            postgres_major: 17,
            segment_size: WalSegmentSize::DEFAULT,
        }))
    }

    /// Asks for its archive to be its own; whether it was not before, or the refusal.
    fn set_up(&self, host: &Host) -> Result<SetupDone, String> {
        let peer = self.key.introduce(host.address(), &self.hello());
        let mut peer = peer.unwrap().map_err(|refusal| refusal.message)?;
        match ask(&mut peer, 0, &Message::Setup) {
            Ok(Message::SetupDone(done)) => Ok(done),
            other => Err(format!("{other:?}")),
        }
    }
}

#[test]
fn fault_148_three_hundred_idle_clusters_start_soon_and_cost_little() {
    let _user = skip_unless!(server_user());
    let mut host = Host::builder().build();
    host.home().create_dir("archive");
    let receiver = host.fingerprint();
    let all: Vec<Idle> = (0..CLUSTERS)
        .map(|number| Idle::create(&host, &receiver, number))
        .collect();
    give_to_server(host.home().path());
    host.start();
    for idle in &all {
        assert!(idle.set_up(&host).unwrap().newly_bound, "{}", idle.name);
    }
    host.receiver.stop();
    let said_before = host.receiver.log().len();
    let begun = Instant::now();
    host.start();
    let all_served = format!("serves {CLUSTERS} of {CLUSTERS} clusters");
    wait_for("all clusters to be served", PATIENCE, || {
        let log = host.receiver.log();
        log[said_before..].contains(&all_served).then_some(())
    });
    let started = begun.elapsed();
    let rss_kib = host.receiver.memory_kib();
    println!(
        "{CLUSTERS} idle clusters: started within {started:.1?}, {rss_kib} KiB, {} a cluster",
        rss_kib / CLUSTERS
    );
    if soak() {
        assert!(started <= START_MAX, "{started:?}");
    }
    assert!(rss_kib <= CLUSTERS * CLUSTER_KIB_MAX, "{rss_kib} KiB");
    // Each is led to its own.
    for idle in all.iter().step_by(37) {
        assert!(!idle.set_up(&host).unwrap().newly_bound, "{}", idle.name);
    }
    one_broken_file_costs_one_cluster(&mut host, &all);
    let rss_kib = host.receiver.memory_kib();
    assert!(rss_kib <= CLUSTERS * CLUSTER_KIB_MAX, "{rss_kib} KiB");
}

fn one_broken_file_costs_one_cluster(host: &mut Host, all: &[Idle]) {
    let broken = &all[123];
    let keys = host.clusters().join(format!("{}.keys", broken.name));
    let text = std::fs::read_to_string(host.cluster_ini(&broken.name)).unwrap();
    // What is taken off and comes back broken has no old settings to go on with.
    std::fs::remove_file(host.cluster_ini(&broken.name)).unwrap();
    host.reload();
    assert!(keys.exists());
    host.write_cluster(&broken.name, "[walmgr]\nwalmgr_data = \n");
    let begun = Instant::now();
    let said = host.reload();
    println!("reloaded within {:.1?}", begun.elapsed());
    let file = format!("{}.ini", broken.name);
    let lines = said.lines().filter(|line| line.contains(&file));
    assert!(lines.count() >= 1, "{said}");
    let served = format!("{} of {CLUSTERS} clusters", CLUSTERS - 1);
    assert!(said.contains(&served), "{said}");
    broken.set_up(host).unwrap_err();
    for idle in all.iter().filter(|idle| idle.name != broken.name) {
        assert!(!idle.set_up(host).unwrap().newly_bound, "{}", idle.name);
    }
    host.write_cluster(&broken.name, &text);
    host.reload();
    assert!(!broken.set_up(host).unwrap().newly_bound);
}
