//! The daemon: takes the archive, listens, lets connections in within their bounds, reloads, ends.
//! Never accepts a connection before recovery is complete. Invariant: strangers in their
//! handshake take no slot from peers that are known.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};
use walmgr_protocol::session::partial::ProofOfRecords;

use crate::config::{self, StandbyConfig};
use crate::daemon::{self, Control, Notice, Notices, PidFile, Pulse, Readiness};
use crate::error::{CommandError, Kind, Result};
use crate::options::Options;
use crate::output;
use crate::receiver::backup::Backups;
use crate::receiver::masters::Masters;
use crate::receiver::partial::Seat;
use crate::receiver::settings::{Protection, Settings};
use crate::receiver::{
    ACCEPT_BACKOFF, BACKUP_THREADS_MAX, DRAIN_DEADLINE, HANDSHAKE_DEADLINE, HANDSHAKES_MAX,
    HANDSHAKES_PER_ADDRESS_MAX, REQUESTS_MAX, THREADS_DEADLINE, UPLOADS_MAX, connection,
    introduction,
};
use crate::store::{Archive, Disk, DurableRecords, Health, Places, RealDisk, StoreError};

/// A refusal from one address is logged at most this often; the rest is counted.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Addresses whose refusals are remembered; beyond it they share one entry.
const REFUSAL_ADDRESSES_MAX: usize = 64;

/// What all connections share.
pub struct Daemon {
    /// Where files go.
    pub archive: Archive,
    /// Where base backups go.
    pub backups: Backups,
    /// Where its folders are.
    pub places: Places,
    /// Its folder, for people.
    pub completed_wals: PathBuf,
    /// Where the newest backup set is, if the settings say so.
    pub full_backup: Option<PathBuf>,
    /// The clock that deadlines count from.
    pub started: Instant,
    /// The configuration in force.
    pub settings: watch::Sender<Arc<Settings>>,
    /// Who ships records.
    pub partial_writer: Seat,
    /// The masters that are connected.
    pub masters: Masters,
    /// Set once, when the daemon is to end.
    pub stopping: watch::Sender<bool>,
    newest: Mutex<Option<SegmentName>>,
    partial_end: Mutex<Option<(SegmentName, Lsn)>>,
    open: AtomicUsize,
    handshakes: Mutex<Vec<Waiting>>,
    handshakes_begun: AtomicU64,
    refusals: Mutex<HashMap<IpAddr, (Instant, u64)>>,
    uploads: Arc<Semaphore>,
}

impl Daemon {
    /// Connections open, handshakes not counted.
    pub fn connections_open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// The highest finished segment stored.
    pub fn newest_segment(&self) -> Option<SegmentName> {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to where the last partial segment that was written to is durable.
    pub fn partial_end(&self) -> Option<(SegmentName, Lsn)> {
        *(self.partial_end.lock()).unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers records that became durable.
    pub fn note_records(&self, proof: &DurableRecords) {
        let mut end = (self.partial_end.lock()).unwrap_or_else(PoisonError::into_inner);
        *end = Some((proof.segment(), proof.end()));
    }

    /// What is known of the disk, in words; empty if it works.
    pub fn trouble(&self) -> String {
        match self.health() {
            Health::Good => String::new(),
            Health::Impaired { why } => why,
            Health::SyncFailed { why } => format!("a sync failed: {why}"),
        }
    }

    /// Remembers a file that became durable.
    pub fn note_stored(&self, name: WalFileName) {
        if let WalFileName::Segment(segment) = name {
            let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
            *newest = (*newest).max(Some(segment));
        }
    }

    /// Logs a refusal, but not every one of a flood.
    pub fn refused(&self, mut address: IpAddr, reason: &str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if refusals.len() >= REFUSAL_ADDRESSES_MAX && !refusals.contains_key(&address) {
            refusals.retain(|_, (last, _)| now.duration_since(*last) < REFUSAL_LOG_INTERVAL);
            if refusals.len() >= REFUSAL_ADDRESSES_MAX {
                address = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            }
        }
        match refusals.get_mut(&address) {
            Some((last, unsaid)) if now.duration_since(*last) < REFUSAL_LOG_INTERVAL => {
                *unsaid += 1
            }
            Some((last, unsaid)) => {
                let more = std::mem::take(unsaid);
                *last = now;
                let others = if more > 0 {
                    format!(" ({more} more since)")
                } else {
                    String::new()
                };
                tracing::warn!("refused {reason}{others}");
            }
            None => {
                refusals.insert(address, (now, 0));
                tracing::warn!("refused {reason}");
            }
        }
    }

    /// What is known of the disk below the archive and the backup sets, the worse of the two.
    fn health(&self) -> Health {
        match self.archive.health() {
            failed @ Health::SyncFailed { .. } => failed,
            health => match self.backups.health() {
                failed @ Health::SyncFailed { .. } => failed,
                _ => health,
            },
        }
    }

    /// Ends the daemon when the disk has lied about an fsync: what was written since cannot be
    /// trusted, and a fresh start reads everything again. Says whether it does; the daemon's last
    /// line then tells why, and whoever saw the failure need not.
    pub fn check_health(&self) -> bool {
        let failed = matches!(self.health(), Health::SyncFailed { .. });
        if failed {
            self.stopping.send_replace(true);
        }
        failed
    }

    /// Takes a place among the uploads, kept for as long as the upload has its thread; `None`
    /// when all are taken.
    pub fn begin_upload(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.uploads).try_acquire_owned().ok()
    }

    /// Takes a handshake slot. When there is none the oldest handshake of the most crowded
    /// address gives way: a real peer is through in milliseconds, and whoever keeps slots
    /// occupied loses his own. The receiver returned ends when this one has to give way.
    fn begin_handshake(self: &Arc<Self>, address: IpAddr) -> (Handshake, oneshot::Receiver<()>) {
        let (slot, evicted) = oneshot::channel();
        let id = self.handshakes_begun.fetch_add(1, Ordering::Relaxed);
        let mut waiting = self.waiting();
        let count = |of: IpAddr| waiting.iter().filter(|one| one.address == of).count();
        let crowded = if count(address) >= HANDSHAKES_PER_ADDRESS_MAX {
            Some(address)
        } else if waiting.len() >= HANDSHAKES_MAX {
            // Of equals the last is taken, and that is the oldest here.
            let addresses = waiting.iter().rev().map(|one| one.address);
            addresses.max_by_key(|of| count(*of))
        } else {
            None
        };
        let oldest = waiting.iter().position(|one| Some(one.address) == crowded);
        if let Some(oldest) = oldest {
            waiting.remove(oldest);
        }
        waiting.push(Waiting {
            id,
            address,
            _slot: slot,
        });
        drop(waiting);
        let daemon = Arc::clone(self);
        (Handshake { daemon, id }, evicted)
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.handshakes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_connection(self: &Arc<Self>, most: usize) -> Option<Open> {
        let open = |count: usize| (count < most).then_some(count + 1);
        let counted = self
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, open);
        counted.is_ok().then(|| Open {
            daemon: Arc::clone(self),
        })
    }
}

/// A peer in its handshake; they are kept in the order they came.
struct Waiting {
    id: u64,
    address: IpAddr,
    /// Dropped with this value, which the task that greets the peer notices.
    _slot: oneshot::Sender<()>,
}

/// A handshake slot, given back when dropped.
struct Handshake {
    daemon: Arc<Daemon>,
    id: u64,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.daemon.waiting().retain(|one| one.id != self.id);
    }
}

/// A connection slot, given back when dropped.
struct Open {
    daemon: Arc<Daemon>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.daemon.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// `receiver`, or what `-d`, `-r`, `-s` and `-k` make of it.
pub fn run(config: &StandbyConfig, options: &Options, readiness: Readiness) -> Result<()> {
    let pidfile = config.receiver_pidfile();
    if let Some(control) = Control::asked_by(options) {
        return control_running(&pidfile, control, options);
    }
    let settings = Settings::load(config)?;
    if options.not_really {
        Archive::check(&Places::of(config), Arc::new(RealDisk)).map_err(|error| opening(&error))?;
        return output::not_really(&format!(
            "listen on {} and store into {}",
            config.listen_text(),
            config.completed_wals.display()
        ));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(UPLOADS_MAX + REQUESTS_MAX + BACKUP_THREADS_MAX)
        .enable_all()
        .build()
        .map_err(|error| CommandError::retry("start the event loop").because(error))?;
    // Before the pidfile names this process: whoever reads it there may send a signal.
    let notices = runtime.block_on(async { Notices::listen() })?;
    let _lock = PidFile::acquire(&pidfile)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let archive =
        Archive::open(&Places::of(config), Arc::clone(&disk)).map_err(|error| opening(&error))?;
    let backups = Backups::open(config, &disk);
    let newest = newest_segment(&archive).map_err(|error| opening(&error))?;
    let partial_end = archive.recovery().partials.iter().max().copied();
    let daemon = Arc::new(Daemon {
        archive,
        backups,
        places: Places::of(config),
        completed_wals: config.completed_wals.clone(),
        full_backup: config.full_backup.clone(),
        started: Instant::now(),
        settings: watch::Sender::new(settings),
        partial_writer: Seat::default(),
        partial_end: Mutex::new(partial_end),
        masters: Masters::default(),
        stopping: watch::Sender::new(false),
        newest: Mutex::new(newest),
        open: AtomicUsize::new(0),
        handshakes: Mutex::default(),
        handshakes_begun: AtomicU64::new(0),
        refusals: Mutex::default(),
        uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
    });
    let ended = runtime.block_on(serve(config, options, &daemon, notices, readiness));
    // Uploads that the deadline cut off are on threads of their own, and nobody was told of them.
    runtime.shutdown_timeout(THREADS_DEADLINE);
    ended
}

fn control_running(pidfile: &Path, control: Control, options: &Options) -> Result<()> {
    if options.not_really {
        let path = pidfile.display();
        return output::not_really(&format!("send {control:?} to the receiver of {path}"));
    }
    let pid = daemon::signal_running(pidfile, control, daemon::END_TIMEOUT)?;
    tracing::info!("sent {control} to the receiver, process {pid}");
    Ok(())
}

async fn serve(
    config: &StandbyConfig,
    options: &Options,
    daemon: &Arc<Daemon>,
    mut notices: Notices,
    readiness: Readiness,
) -> Result<()> {
    let listeners = listen(config).await?;
    let addresses = addresses(&listeners);
    report_start(daemon, &addresses);
    let accepting: Vec<_> = listeners
        .into_iter()
        .map(|listener| tokio::spawn(accept(Arc::clone(daemon), listener)))
        .collect();
    readiness.ready(&notices)?;
    let mut pulse = Pulse::start();
    let mut stopping = daemon.stopping.subscribe();
    loop {
        tokio::select! {
            notice = notices.next() => match notice {
                Notice::Reload => reload(config, options, daemon),
                Notice::Drain => break,
            },
            _ = stopping.wait_for(|stop| *stop) => break,
            () = pulse.beat() => {}
        }
    }
    daemon::tell_stopping();
    for task in accepting {
        task.abort();
    }
    drain(daemon, &mut pulse).await;
    match daemon.health() {
        Health::SyncFailed { why } => {
            let ends = format!("the receiver ends because a sync failed: {why}");
            Err(CommandError::new(Kind::ReceiverDisk, ends)
                .hint("the service manager starts it again; if this repeats, replace the disk"))
        }
        Health::Good | Health::Impaired { .. } => {
            tracing::info!("receiver stopped");
            Ok(())
        }
    }
}

fn report_start(daemon: &Daemon, addresses: &str) {
    tracing::info!(
        "receiver {} listens on {addresses}",
        env!("CARGO_PKG_VERSION")
    );
    match daemon.archive.binding() {
        Some(binding) => tracing::info!("the archive belongs to {binding}"),
        None => tracing::info!("the archive waits for `walmgr MASTER.ini setup`"),
    }
    let recovery = daemon.archive.recovery();
    if recovery.temporaries_removed > 0 {
        let count = recovery.temporaries_removed;
        tracing::info!("removed {count} unfinished files of the receiver before this one");
    }
    for (segment, end) in &recovery.partials {
        tracing::info!("{segment} is held up to {end}");
    }
    if matches!(daemon.settings.borrow().protection, Protection::Plain) {
        tracing::warn!("tls = off: whoever reaches {addresses} can read and write WAL");
    }
}

async fn accept(daemon: Arc<Daemon>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => admit(&daemon, stream, address),
            Err(error) => {
                // Out of descriptors or memory: the connection stays in the kernel's queue.
                daemon.refused(
                    IpAddr::from([0, 0, 0, 0]),
                    &format!("a connection: {error}"),
                );
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Lets uploads under way finish, within a bound. The service manager goes on watching meanwhile,
/// and would end a daemon that fell silent.
async fn drain(daemon: &Arc<Daemon>, pulse: &mut Pulse) {
    daemon.stopping.send_replace(true);
    let until = Instant::now() + DRAIN_DEADLINE;
    while daemon.connections_open() > 0 && Instant::now() < until {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
            () = pulse.beat() => {}
        }
    }
}

fn admit(daemon: &Arc<Daemon>, stream: TcpStream, address: SocketAddr) {
    let (handshake, evicted) = daemon.begin_handshake(address.ip());
    let daemon = Arc::clone(daemon);
    tokio::spawn(async move {
        let settings = daemon.settings.borrow().clone();
        let refused = |why: &str| daemon.refused(address.ip(), &format!("{address}: {why}"));
        // Answers are small and waited for.
        if let Err(error) = stream.set_nodelay(true) {
            return refused(&error.to_string());
        }
        let greeting = introduction::greet(&daemon, &settings, stream, address);
        let greeted = tokio::select! {
            greeted = tokio::time::timeout(HANDSHAKE_DEADLINE, greeting) => greeted,
            _ = evicted => return refused("too many handshakes at once"),
        };
        drop(handshake);
        match greeted {
            Ok(Some((peer, wire))) => match daemon.begin_connection(settings.connections_max) {
                Some(open) => {
                    let _noted = daemon.masters.note(&peer);
                    connection::serve(Arc::clone(&daemon), peer, wire).await;
                    drop(open);
                }
                None => turn_away(&daemon, &settings, wire, address).await,
            },
            Ok(None) => {}
            Err(_) => refused(&format!("no introduction within {HANDSHAKE_DEADLINE:?}")),
        }
    });
}

async fn turn_away(
    daemon: &Daemon,
    settings: &Settings,
    mut wire: crate::transport::wire::Wire,
    address: SocketAddr,
) {
    use walmgr_protocol::message::{Error, ErrorCode, Message};
    let most = settings.connections_max;
    let text = format!("all {most} connections are in use");
    daemon.refused(address.ip(), &format!("{address}: {text}"));
    let error = Error::connection(
        ErrorCode::Busy,
        text,
        "raise max_connections on the standby",
    );
    // It may be gone; nobody is owed an answer here.
    let _ = wire.send(0, &Message::Error(error)).await;
    wire.close().await;
}

async fn listen(config: &StandbyConfig) -> Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in &config.listen {
        let bound = TcpListener::bind((address.host.as_str(), address.port)).await;
        listeners.push(bound.map_err(|error| {
            CommandError::retry(format!("listen on {address}"))
                .because(error)
                .hint("check `listen` in the ini file, and that nothing else uses the port")
        })?);
    }
    Ok(listeners)
}

fn addresses(listeners: &[TcpListener]) -> String {
    let each = listeners
        .iter()
        .filter_map(|listener| Some(listener.local_addr().ok()?.to_string()));
    each.collect::<Vec<_>>().join(", ")
}

fn reload(config: &StandbyConfig, options: &Options, daemon: &Daemon) {
    daemon::tell_reloading();
    let loaded = config::load(&config.path, &options.overrides)
        .and_then(|fresh| fresh.into_standby("receiver"))
        .and_then(|fresh| unchanged(config, &fresh).map(|()| fresh))
        .and_then(|fresh| Settings::load(&fresh));
    match loaded {
        Ok(settings) => {
            daemon.settings.send_replace(settings);
            tracing::info!("settings and keys reloaded");
        }
        Err(error) => {
            tracing::error!("reload failed, the old settings stay in force: {error}");
        }
    }
    if let Err(error) = output::reopen_logfile() {
        tracing::warn!("{error}");
    }
    daemon::tell_ready();
}

/// What a running daemon cannot change is refused rather than ignored.
fn unchanged(old: &StandbyConfig, new: &StandbyConfig) -> Result<()> {
    let changed = [
        ("listen", old.listen != new.listen),
        ("completed_wals", old.completed_wals != new.completed_wals),
        ("partial_wals", old.partial_wals != new.partial_wals),
        ("full_backup", old.full_backup != new.full_backup),
        ("config_backup", old.config_backup != new.config_backup),
        ("pidfile", old.receiver_pidfile() != new.receiver_pidfile()),
        ("logfile", old.logfile != new.logfile),
        ("log_format", old.log_format != new.log_format),
    ];
    match changed.into_iter().find(|(_, changed)| *changed) {
        None => Ok(()),
        Some((key, _)) => Err(
            CommandError::config(format!("{key} cannot change by a reload"))
                .hint("restart the receiver"),
        ),
    }
}

fn opening(error: &StoreError) -> CommandError {
    let (kind, hint) = match error {
        StoreError::Locked { .. } => (Kind::AlreadyRunning, "stop it first, or leave it running"),
        StoreError::NotSetUp { .. } => (
            Kind::Config,
            "run `walmgr STANDBY.ini setup` first; if it was set up before, its file system is \
             not mounted",
        ),
        StoreError::NewerFormat { .. } => (Kind::Config, "upgrade walmgr on this host"),
        error => (error.kind(), ""),
    };
    CommandError::new(kind, format!("open the archive: {error}")).hint(hint)
}

/// The highest finished segment there is when the daemon starts.
fn newest_segment(archive: &Archive) -> Result<Option<SegmentName>, StoreError> {
    let names = archive.list(None, usize::MAX)?;
    Ok(names
        .into_iter()
        .filter_map(|entry| match entry.name {
            WalFileName::Segment(segment) => Some(segment),
            _ => None,
        })
        .max())
}
