//! The table of the clusters that this process serves, and the way from a peer to its cluster.
//! Never talks to a peer. Invariant: whoever gets a cluster from here is on that cluster's own list; to be on the list
//! of another gives nothing.
//!
//! A peer is looked for in all lists before a byte of its hello is read, so that a stranger costs no more than a
//! handshake; [`choice`] then decides by the hello. [`folder`] opens and closes the clusters of a host's folder, and
//! [`reading`] reads their files.

pub(crate) mod choice;
pub(crate) mod folder;
pub(crate) mod reading;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use tokio_util::task::TaskTracker;
use walmgr_protocol::hello::Refusal;
use walmgr_protocol::message::{ClusterIdentity, ErrorCode};

use crate::audit::{Actor, AuditEvent, AuditLog, AuditOutcome};
use crate::daemon::UnservedClusters;
use crate::error::CommandError;
use crate::receiver::cluster::Cluster;
use crate::receiver::cluster::settings::{ClusterSettings, KnownPeer};
use crate::receiver::clusters::choice::{Candidate, CandidateState, NotChosen, choose};
use crate::receiver::process_settings::{ProcessSettings, ProvenPeer, Unknown};
use crate::receiver::refusal;
use crate::transport::tls::PeerCertificate;

/// Most files that a refusal names: it is a sentence.
const NAMED_MAX: usize = 5;

/// Most of a broken file's sentence in the summary; the log has all of it.
const SUMMARY_CHARS_MAX: usize = 300;

/// All clusters of the process.
pub(crate) struct Clusters {
    server: RwLock<Arc<ProcessSettings>>,
    table: RwLock<ClusterTable>,
    /// Where it is told who did what that belongs to no cluster.
    pub audit: Arc<AuditLog>,
}

/// Each cluster by the name of its file without `.ini`.
#[derive(Default)]
struct ClusterTable {
    served: BTreeMap<String, Arc<HostedCluster>>,
    broken: BTreeMap<String, BrokenCluster>,
}

/// A cluster that peers are led to.
pub(crate) struct HostedCluster {
    /// Its file.
    pub path: PathBuf,
    /// What is kept for it.
    pub cluster: Arc<Cluster>,
    /// The tasks of its connections, handshakes not counted.
    pub tasks: TaskTracker,
}

/// A file whose settings are not in force.
#[derive(Clone)]
pub(crate) struct BrokenCluster {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub sentence: String,
    /// What a peer is told that it lists.
    pub code: ErrorCode,
    /// Its settings, if those could be read: then those who are on its list are told what is wrong.
    pub settings: Option<Arc<ClusterSettings>>,
    /// Whether nothing is known to be wrong with it.
    is_on_its_way: bool,
}

impl Clusters {
    /// A table of none, for a process with these settings.
    pub(crate) fn new(server: Arc<ProcessSettings>) -> Self {
        let audit = AuditLog::new(&server.cluster, server.audit_log.as_deref());
        Clusters {
            audit: Arc::new(audit.noting_losses_at(&server.audit_losses)),
            server: RwLock::new(server),
            table: RwLock::default(),
        }
    }

    /// The settings of the process.
    pub(crate) fn process(&self) -> Arc<ProcessSettings> {
        let server = self.server.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&server)
    }

    /// Puts other settings of the process in force, for those who come from here on.
    pub(crate) fn set_process(&self, settings: Arc<ProcessSettings>) {
        self.audit.set(settings.audit_log.clone());
        *self.server.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// Leads peers to this cluster from here on.
    pub(crate) fn serve(&self, name: &str, served: Arc<HostedCluster>) {
        let mut table = self.table_to_change();
        table.broken.remove(name);
        table.served.insert(name.to_owned(), served);
    }

    /// Notes a file whose settings are not in force; a cluster that was served goes on with its old ones. Says
    /// whether something else is wrong with it than before.
    pub(crate) fn note_broken(&self, name: &str, mut broken: BrokenCluster) -> bool {
        let mut table = self.table_to_change();
        let before = table.broken.remove(name);
        let is_new = before
            .as_ref()
            .is_none_or(|before| before.sentence != broken.sentence);
        // Those on the list that was read last are told, rather than led to another cluster.
        let before = before.and_then(|before| before.settings);
        broken.settings = broken.settings.or(before);
        table.broken.insert(name.to_owned(), broken);
        is_new
    }

    /// Those who are on this list hear that they are to come again.
    pub(crate) fn is_being_opened(&self, name: &str, path: &Path, settings: Arc<ClusterSettings>) {
        let mut table = self.table_to_change();
        table
            .broken
            .entry(name.to_owned())
            .or_insert_with(|| BrokenCluster::being_opened(path, Some(settings)));
    }

    /// The settings of this file are in force.
    pub(crate) fn is_mended(&self, name: &str) {
        self.table_to_change().broken.remove(name);
    }

    /// Forgets the broken files of these names.
    pub(crate) fn forget_broken(&self, of: impl Fn(&str) -> bool) {
        self.table_to_change().broken.retain(|name, _| !of(name));
    }

    /// Whether the settings of this file are not in force.
    pub(crate) fn is_broken(&self, name: &str) -> bool {
        self.table().broken.contains_key(name)
    }

    /// Whether any file is broken.
    pub(crate) fn has_broken(&self) -> bool {
        !self.table().broken.is_empty()
    }

    /// Why which are not served, or not as their files say.
    pub(crate) fn unserved(&self) -> UnservedClusters {
        let table = self.table();
        let broken = table.broken.iter();
        let wrong = broken.filter(|(_, broken)| !broken.is_on_its_way);
        wrong
            .map(|(name, broken)| (name.clone(), broken.sentence.clone()))
            .collect()
    }

    /// The names of the clusters that have a file and are not served.
    pub(crate) fn not_served(&self) -> Vec<String> {
        let table = self.table();
        let broken = table.broken.keys();
        let unserved = broken.filter(|name| !table.served.contains_key(*name));
        unserved.cloned().collect()
    }

    /// Whether a cluster is served with its old settings, since its file is broken.
    pub(crate) fn has_old_settings(&self, name: &str) -> bool {
        let table = self.table();
        let is_wrong = |broken: &BrokenCluster| !broken.is_on_its_way;
        table.served.contains_key(name) && table.broken.get(name).is_some_and(is_wrong)
    }

    /// How many clusters are served, and how many there are.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let table = self.table();
        let unserved = table
            .broken
            .keys()
            .filter(|name| !table.served.contains_key(*name));
        (table.served.len(), table.served.len() + unserved.count())
    }

    /// How the table stands, in one line for whoever runs the process.
    pub(crate) fn summary(&self) -> String {
        let (served, all) = self.counts();
        let table = self.table();
        let few = table.broken.values().take(NAMED_MAX).map(|broken| {
            let sentence: String = broken.sentence.chars().take(SUMMARY_CHARS_MAX).collect();
            format!("{}: {sentence}", file_name(&broken.path))
        });
        let few: Vec<String> = few.collect();
        let more = table.broken.len() - few.len();
        let broken = match (few.is_empty(), more) {
            (true, _) => String::new(),
            (false, 0) => format!("; broken: {}", few.join("; ")),
            (false, more) => format!("; broken: {}; and {more} more", few.join("; ")),
        };
        format!("serves {served} of {all} clusters{broken}")
    }

    /// Stops leading peers to this cluster. Peers on the list of `instead` are told what is wrong.
    pub(crate) fn remove(&self, name: &str, instead: Option<BrokenCluster>) {
        let mut table = self.table_to_change();
        table.broken.remove(name);
        table.served.remove(name);
        (table.broken).extend(instead.map(|instead| (name.to_owned(), instead)));
    }

    /// Tells that a reload came to nothing.
    pub(crate) fn tell_reload_failed(&self, error: &CommandError) {
        let why = error.to_string();
        let outcome = AuditOutcome::Failed(&why);
        (self.audit).record(&Actor::Receiver, &outcome, &AuditEvent::Reloaded {});
    }

    /// Opens all audit logs again: logrotate has no other file than before.
    pub(crate) fn reopen_audit_logs(&self) {
        self.audit.reopen();
        for (_, hosted) in self.served() {
            hosted.cluster.audit.reopen();
        }
    }

    /// All that are served, by name.
    pub(crate) fn served(&self) -> Vec<(String, Arc<HostedCluster>)> {
        let table = self.table();
        let served = table.served.iter();
        served
            .map(|(name, served)| (name.clone(), Arc::clone(served)))
            .collect()
    }

    /// The clusters that may be meant by a peer with this certificate; an error if no list has it.
    pub(crate) fn candidates(
        &self,
        server: &Arc<ProcessSettings>,
        certificate: Option<&PeerCertificate>,
    ) -> Result<Candidates, Unknown> {
        let proven = server.proven(certificate)?;
        let lists = |settings: &ClusterSettings| match Arc::ptr_eq(&settings.server, server) {
            true => settings.lists(&proven),
            // A file that could not be read again has a list that goes with what proved it.
            false => settings.know(certificate).ok(),
        };
        let table = self.table();
        let served = table.served.values().map(|served| {
            let known = lists(&served.cluster.settings.borrow());
            let path = served.path.clone();
            (
                CandidateCluster::Served(Arc::downgrade(served), path),
                known,
            )
        });
        let unserved = (table.broken.iter()).filter(|(name, _)| !table.served.contains_key(*name));
        let unserved = unserved.filter_map(|(_, broken)| {
            let known = lists(broken.settings.as_deref()?);
            Some((CandidateCluster::Broken(broken.clone()), known))
        });
        let all: Vec<_> = served.chain(unserved).collect();
        match all.iter().any(|(_, known)| known.is_some()) {
            true => Ok(Candidates { proven, all }),
            false => Err(proven.is_unknown()),
        }
    }

    fn table(&self) -> RwLockReadGuard<'_, ClusterTable> {
        // Each change is one call, so a panic elsewhere cannot have left half of one.
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_to_change(&self) -> RwLockWriteGuard<'_, ClusterTable> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The clusters that a peer may mean, before its hello is read. A peer that is slow with it keeps none of them open.
pub(crate) struct Candidates {
    proven: ProvenPeer,
    all: Vec<(CandidateCluster, Option<KnownPeer>)>,
}

enum CandidateCluster {
    Served(Weak<HostedCluster>, PathBuf),
    Broken(BrokenCluster),
}

impl Candidates {
    /// The cluster that is meant, and what the peer is in it, now that the hello has said whose the peer is.
    pub(crate) fn choose(
        &self,
        theirs: Option<ClusterIdentity>,
    ) -> Result<(Arc<HostedCluster>, KnownPeer), Refusal> {
        let candidates: Vec<Candidate> = (self.all.iter())
            .map(|(one, known)| Candidate {
                state: one.state(),
                lists_peer: known.is_some(),
            })
            .collect();
        let chosen = choose(&candidates, theirs).map(|at| &self.all[at]);
        match chosen {
            Ok((CandidateCluster::Served(served, path), Some(known))) => match served.upgrade() {
                Some(served) => Ok((served, known.clone())),
                None => Err(BrokenCluster::being_opened(path, None).refusal()),
            },
            Ok(_) => Err(self.refusal(&NotChosen::Unlisted, theirs)),
            Err(why) => Err(self.refusal(&why, theirs)),
        }
    }

    fn refusal(&self, why: &NotChosen, theirs: Option<ClusterIdentity>) -> Refusal {
        match (why, theirs) {
            (NotChosen::Foreign(bound), Some(theirs)) => refusal::foreign_to_all(bound, theirs),
            (NotChosen::Several(places), theirs) => {
                let files: Vec<String> = places
                    .iter()
                    .map(|at| self.all[*at].0.file_name())
                    .collect();
                refusal::several_clusters(&shown(&files), theirs)
            }
            (NotChosen::Broken(at), _) => match &self.all[*at].0 {
                CandidateCluster::Broken(broken) => broken.refusal(),
                CandidateCluster::Served(_, path) => {
                    BrokenCluster::being_opened(path, None).refusal()
                }
            },
            (NotChosen::Unlisted | NotChosen::Foreign(_), _) => self.unlisted(),
        }
    }

    fn unlisted(&self) -> Refusal {
        refusal::not_authorized(self.proven.is_unknown())
    }
}

impl CandidateCluster {
    fn state(&self) -> CandidateState {
        match self {
            CandidateCluster::Served(served, _) => match served.upgrade() {
                Some(served) => match served.cluster.identity() {
                    Some(bound) => CandidateState::Bound(bound),
                    None => CandidateState::Unbound,
                },
                // It was closed since, most likely to be opened again.
                None => CandidateState::Broken,
            },
            CandidateCluster::Broken(_) => CandidateState::Broken,
        }
    }

    fn file_name(&self) -> String {
        let path = match self {
            CandidateCluster::Served(_, path) => path,
            CandidateCluster::Broken(broken) => &broken.path,
        };
        file_name(path)
    }
}

impl BrokenCluster {
    /// A broken file, whose sentence names it.
    pub(crate) fn new(
        path: &Path,
        sentence: &str,
        code: ErrorCode,
        settings: Option<Arc<ClusterSettings>>,
    ) -> Self {
        let shown = path.display().to_string();
        let sentence = match sentence.contains(&shown) {
            true => sentence.to_owned(),
            false => format!("{shown}: {sentence}"),
        };
        BrokenCluster {
            path: path.to_path_buf(),
            sentence,
            code,
            settings,
            is_on_its_way: false,
        }
    }

    /// A cluster that peers are to come back for.
    pub(crate) fn being_opened(path: &Path, settings: Option<Arc<ClusterSettings>>) -> Self {
        BrokenCluster {
            is_on_its_way: true,
            ..Self::new(path, "it is being opened", ErrorCode::Busy, settings)
        }
    }

    fn refusal(&self) -> Refusal {
        Refusal {
            code: self.code,
            message: format!("{} is not served: {}", file_name(&self.path), self.sentence),
            hint: "look at the receiver's log on the standby; it tries again every minute"
                .to_owned(),
        }
    }
}

/// The last part of a path, for people.
pub(crate) fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// Names in a sentence, the first few of them.
fn shown(files: &[String]) -> String {
    let few: Vec<&str> = files.iter().take(NAMED_MAX).map(String::as_str).collect();
    match (few.as_slice(), files.len().saturating_sub(NAMED_MAX)) {
        ([others @ .., last], 0) if !others.is_empty() => {
            format!("{} and {last}", others.join(", "))
        }
        (few, 0) => few.join(", "),
        (few, more) => format!("{} and {more} more", few.join(", ")),
    }
}

#[cfg(test)]
mod tests;
