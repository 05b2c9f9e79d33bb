//! The daemon: takes the archive, listens, lets connections in within their bounds, reloads, ends.
//! Never accepts a connection before recovery is complete. Invariant: strangers in their
//! handshake take no slot from peers that are known.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout_at;
use walmgr_protocol::hello::Role;
use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};
use walmgr_protocol::session::partial::ProofOfRecords;

use crate::config::{self, StandbyConfig};
use crate::daemon::{self, Control, Notice, Notices, PidFile, Pulse, Readiness};
use crate::error::{CommandError, Kind, Result};
use crate::options::Options;
use crate::output;
use crate::receiver::admission::{Admission, Arrival};
use crate::receiver::backup::Backups;
use crate::receiver::cluster::writer_lock::WriterLock;
use crate::receiver::masters::Masters;
use crate::receiver::refusal_log::RefusalLog;
use crate::receiver::settings::{Protection, Settings};
use crate::receiver::shares::Shares;
use crate::receiver::{
    ACCEPT_BACKOFF, ACCEPT_QUEUE, DRAIN_DEADLINE, FETCHES_MAX, FETCHES_PER_PEER_MAX,
    HANDSHAKE_DEADLINE, STREAMS_MAX, STREAMS_PER_PEER_MAX, THREADS_DEADLINE, THREADS_MAX,
    UPLOAD_BYTES_PER_PEER_MAX, UPLOADS_MAX, UPLOADS_PER_PEER_MAX, admission, connection,
    introduction, rounds,
};
use crate::store::{Archive, Disk, DurableRecords, Health, Places, RealDisk, StoreError};

/// Time for a silent socket that gives way to be closed.
const GIVING_WAY: Duration = Duration::from_millis(5);

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
    pub writer: Arc<WriterLock>,
    /// The masters that are connected.
    pub masters: Masters,
    /// Who may come in.
    pub admission: Arc<Admission>,
    /// Threads of uploads.
    pub uploads: Arc<Shares>,
    /// Threads of fetches.
    pub fetches: Arc<Shares>,
    /// Threads of streams of records.
    pub streams: Arc<Shares>,
    /// Set once, when the daemon is to end.
    pub stopping: watch::Sender<bool>,
    newest: Mutex<Option<SegmentName>>,
    partial_end: Mutex<Option<(SegmentName, Lsn)>>,
    refusals: Mutex<RefusalLog>,
}

impl Daemon {
    /// Connections open, handshakes not counted.
    pub fn connections_open(&self) -> usize {
        self.admission.connections()
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
        if let WalFileName::Segment(segment) = name
            && !self.archive.is_noted(name)
        {
            let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
            *newest = (*newest).max(Some(segment));
        }
    }

    /// Logs a refusal, but not every one of a flood.
    pub fn refused(&self, address: IpAddr, reason: &str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        match refusals.note(address, Instant::now()) {
            None => {}
            Some(0) => tracing::warn!("refused {reason}"),
            Some(more) => tracing::warn!("refused {reason} ({more} more since)"),
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
        .max_blocking_threads(THREADS_MAX)
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
    archive.set_ahead_max(settings.ahead_max);
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
        writer: Arc::default(),
        partial_end: Mutex::new(partial_end),
        masters: Masters::default(),
        admission: Admission::new(admission::raise_descriptors()),
        stopping: watch::Sender::new(false),
        newest: Mutex::new(newest),
        refusals: Mutex::default(),
        uploads: Shares::of_bytes(UPLOADS_MAX, UPLOADS_PER_PEER_MAX, UPLOAD_BYTES_PER_PEER_MAX),
        fetches: Shares::new(FETCHES_MAX, FETCHES_PER_PEER_MAX),
        streams: Shares::new(STREAMS_MAX, STREAMS_PER_PEER_MAX),
    });
    let walking = Arc::clone(&daemon);
    runtime.spawn_blocking(move || {
        let stops = || *walking.stopping.borrow();
        if let Err(error) = walking.archive.note_older_obstacles(&stops) {
            tracing::warn!("what replay may not get past in older WAL is not noted: {error}");
        }
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
    let rounds = tokio::spawn(rounds::run(Arc::clone(daemon)));
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
    for task in accepting.into_iter().chain([rounds]) {
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
    for damage in &recovery.damaged_partials {
        tracing::error!("ALARM: {damage}; nothing of it is cleared");
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
                let pause = match daemon.admission.make_room() {
                    true => GIVING_WAY,
                    false => ACCEPT_BACKOFF,
                };
                tokio::time::sleep(pause).await;
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

/// Waits for the first words of a stranger, and then greets it.
fn admit(daemon: &Arc<Daemon>, stream: TcpStream, address: SocketAddr) {
    let until = tokio::time::Instant::now() + HANDSHAKE_DEADLINE;
    let (arrival, mut gives_way) = daemon.admission.arrive(address.ip());
    let daemon = Arc::clone(daemon);
    tokio::spawn(async move {
        let settings = daemon.settings.borrow().clone();
        let secured = matches!(settings.protection, Protection::Tls { .. });
        let spoken = timeout_at(until, introduction::first_words(&stream, secured));
        let refusal = tokio::select! {
            spoken = spoken => match spoken {
                Ok(Ok(())) if arrival.speak() => None,
                Ok(Ok(())) => Some("too many handshakes at once".to_owned()),
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no introduction within {HANDSHAKE_DEADLINE:?}")),
            },
            _ = &mut gives_way => Some("it said nothing, and others came".to_owned()),
        };
        let stranger = SpeakingStranger {
            stream,
            address,
            arrival,
            gives_way,
            until,
        };
        match refusal {
            Some(why) => daemon.refused(address.ip(), &format!("{address}: {why}")),
            // A task of its own: one that waits for silence has no room for a connection.
            None => drop(tokio::spawn(welcome(daemon, settings, stranger))),
        }
    });
}

/// A peer that speaks, and of which nothing is known.
struct SpeakingStranger {
    stream: TcpStream,
    address: SocketAddr,
    arrival: Arrival,
    gives_way: oneshot::Receiver<()>,
    until: tokio::time::Instant,
}

async fn welcome(daemon: Arc<Daemon>, settings: Arc<Settings>, stranger: SpeakingStranger) {
    let SpeakingStranger {
        stream,
        address,
        arrival,
        gives_way,
        until,
    } = stranger;
    let refused = |why: &str| daemon.refused(address.ip(), &format!("{address}: {why}"));
    // Answers are small and waited for.
    if let Err(error) = stream.set_nodelay(true) {
        return refused(&error.to_string());
    }
    let greeting = introduction::greet(&daemon, &settings, stream, address);
    let greeted = tokio::select! {
        greeted = timeout_at(until, greeting) => greeted,
        _ = gives_way => return refused("too many handshakes at once"),
    };
    let (peer, wire) = match greeted {
        Ok(Some(greeted)) => greeted,
        Ok(None) => return,
        Err(_) => return refused(&format!("no introduction within {HANDSHAKE_DEADLINE:?}")),
    };
    arrival.is_known();
    let most = settings.connections_max;
    let (key, may_push) = (peer.key(), peer.rights.push);
    let slot = daemon.admission.connect(&key, may_push, most).await;
    match slot {
        Ok(slot) => {
            drop(arrival);
            let is_master = peer.role == Role::Master;
            let _listed = is_master.then(|| daemon.masters.note(peer.to_string()));
            connection::serve(Arc::clone(&daemon), peer, wire, slot).await;
        }
        Err(why) => turn_away(&daemon, &why, wire, address).await,
    }
}

async fn turn_away(
    daemon: &Daemon,
    text: &str,
    mut wire: crate::transport::wire::Wire,
    address: SocketAddr,
) {
    use walmgr_protocol::message::{Error, ErrorCode, Message};
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
        let bound = listen_on(&address.host, address.port).await;
        listeners.push(bound.map_err(|error| {
            CommandError::retry(format!("listen on {address}"))
                .because(error)
                .hint("check `listen` in the ini file, and that nothing else uses the port")
        })?);
    }
    Ok(listeners)
}

/// As the library does it, with a longer queue.
async fn listen_on(host: &str, port: u16) -> std::io::Result<TcpListener> {
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        match socket
            .bind(address)
            .and_then(|()| socket.listen(ACCEPT_QUEUE))
        {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
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
            daemon.archive.set_ahead_max(settings.ahead_max);
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
    let noted = archive.noted()?;
    let names = names
        .into_iter()
        .filter(|entry| !noted.contains(&entry.name));
    Ok(names
        .filter_map(|entry| match entry.name {
            WalFileName::Segment(segment) => Some(segment),
            _ => None,
        })
        .max())
}
