//! A host of many clusters: host.ini, the folder of the clusters' files, and one receiver for all of them.
//! Never touches a cluster of its own accord. Invariant: when a host is dropped, its receiver is gone, and what is in
//! its folder with it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::outcome::Output;
use super::place::{TempDir, give_to_server, walmgr};
use super::receiver::Receiver;
use super::site::{Builder, Ini};
use super::{Site, free_port, wait_for};

/// How long a receiver may take over a reload, in which it opens archives.
const RELOAD_LIMIT: Duration = Duration::from_secs(60);

/// What a host shall be like.
pub struct HostBuilder {
    settings: Ini,
    environment: Vec<(String, String)>,
}

impl HostBuilder {
    /// One more setting of host.ini.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.set(key, value);
        self
    }

    /// One more variable in the receiver's environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Writes host.ini beside an empty folder of clusters; the receiver does not run yet.
    pub fn build(self) -> Host {
        let home = TempDir::new();
        let folder = home.create_dir("host");
        let clusters = home.create_dir("host/clusters.d");
        let mut host = Host {
            receiver: Receiver::beside(folder.join("receiver.log"), folder.join("host.pid")),
            ini: folder.join("host.ini"),
            settings: Ini::default(),
            environment: self.environment,
            clusters,
            port: free_port(),
            home,
        };
        let clusters = host.clusters.display().to_string();
        let listen = host.address().to_string();
        for (key, value) in [
            ("clusters", clusters),
            ("listen", listen),
            ("tls", "on".to_owned()),
        ] {
            host.settings.set(key, &value);
        }
        host.settings.set_all(&self.settings);
        host.settings.write(&host.ini);
        // It has a key of its own, which every master of it knows.
        host.command(&["identity"]).succeed();
        host
    }
}

/// A host of many clusters.
pub struct Host {
    /// The daemon of all of them.
    pub receiver: Receiver,
    ini: PathBuf,
    settings: Ini,
    environment: Vec<(String, String)>,
    clusters: PathBuf,
    port: u16,
    home: TempDir,
}

/// What a cluster has to know of its host.
pub struct HostedAt {
    pub(super) cluster_ini: PathBuf,
    pub(super) address: SocketAddr,
    pub(super) fingerprint: String,
}

impl Host {
    /// Begins with TLS, a free port and no cluster.
    pub fn builder() -> HostBuilder {
        HostBuilder {
            settings: Ini::default(),
            environment: Vec::new(),
        }
    }

    /// The host's folder.
    pub fn home(&self) -> &TempDir {
        &self.home
    }

    /// host.ini.
    pub fn ini(&self) -> &Path {
        &self.ini
    }

    /// The receiver's pidfile.
    pub fn pidfile(&self) -> PathBuf {
        self.ini.with_extension("pid")
    }

    /// `clusters`.
    pub fn clusters(&self) -> &Path {
        &self.clusters
    }

    /// Where the receiver listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The fingerprint of the receiver's key.
    pub fn fingerprint(&self) -> String {
        self.command(&["identity"]).succeed()
    }

    /// Changes a setting of host.ini; a running receiver needs [`Host::reload`].
    pub fn set(&mut self, key: &str, value: &str) {
        self.settings.set(key, value);
        self.settings.write(&self.ini);
    }

    /// The file of the cluster of this name.
    pub fn cluster_ini(&self, name: &str) -> PathBuf {
        self.clusters.join(format!("{name}.ini"))
    }

    /// Writes any text as the file of a cluster.
    pub fn write_cluster(&self, name: &str, text: &str) {
        let path = self.cluster_ini(name);
        std::fs::write(&path, text).unwrap();
        give_to_server(&path);
    }

    /// walmgr with host.ini and these words, to be run as the server's user.
    pub fn walmgr(&self, words: &[&str]) -> Command {
        let mut command = walmgr();
        command.arg(&self.ini).args(words);
        command
    }

    /// What starts the receiver.
    pub fn receiver_walmgr(&self) -> Command {
        let mut command = self.walmgr(&["receiver"]);
        command.envs(self.environment.iter().cloned());
        command
    }

    /// Runs [`Host::walmgr`] to its end.
    pub fn command(&self, words: &[&str]) -> Output {
        Output::of(&mut self.walmgr(words))
    }

    /// Starts the receiver and waits until it listens; on another port if somebody took this one.
    pub fn start(&mut self) {
        for _ in 0..3 {
            match self.receiver.start(&mut self.receiver_walmgr()) {
                Ok(()) => return,
                Err(log) if log.contains("Address already in use") => {
                    self.port = free_port();
                    self.set("listen", &self.address().to_string());
                }
                Err(log) => panic!("the receiver does not start:\n{log}"),
            }
        }
        panic!("the receiver found no free port");
    }

    /// Stops the receiver in good order and starts it again.
    pub fn restart(&mut self) {
        self.receiver.stop();
        self.start();
    }

    /// SIGHUP, and waits until the receiver has said what came of it; returns what it said since.
    pub fn reload(&self) -> String {
        let before = self.receiver.log().len();
        self.receiver.signal(Signal::HUP);
        wait_for("the reload", RELOAD_LIMIT, || {
            let log = self.receiver.log();
            let said = log.get(before..).unwrap_or_default();
            let has_ended = said.contains("keys reloaded") || said.contains("reload failed");
            has_ended.then(|| said.to_owned())
        })
    }

    /// Builds a site whose standby is the cluster of this name here; its archive is bound if the receiver runs.
    pub fn add(&self, name: &str, site: Builder) -> Site {
        let site = site.hosted(HostedAt {
            cluster_ini: self.cluster_ini(name),
            address: self.address(),
            fingerprint: self.fingerprint(),
        });
        let site = site.build();
        if self.receiver.has_started() {
            self.reload();
            site.bind();
        }
        site
    }
}
