//! The daemon: takes the archive, or those of a folder, listens, lets connections in within their bounds, reloads, ends.
//! Never accepts a connection before recovery is complete. Invariant: strangers in their
//! handshake take no slot from peers that are known.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use walmgr_protocol::hello::Role;

use crate::config::address::ListenAddress;
use crate::config::{HostConfig, StandbyConfig, WantedInForce};
use crate::daemon::{self, DaemonControl, Notice, Notices, PidFile, Pulse, Readiness};
use crate::error::{CommandError, Kind, Result};
use crate::options::Options;
use crate::output;
use crate::patience::{PATIENCE, Patience};
use crate::receiver::admission::{self, Admission, Arrival};
use crate::receiver::cluster::census::StoreCensus;
use crate::receiver::cluster::settings::ClusterSettings;
use crate::receiver::cluster::{Cluster, keeper, opening};
use crate::receiver::clusters::folder::{ClusterFolder, FolderEvent};
use crate::receiver::clusters::reading::{self, HostRead};
use crate::receiver::clusters::{Clusters, HostedCluster};
use crate::receiver::connections::{Connections, SlotClaim};
use crate::receiver::monitored::{MonitoredReceiver, StandbyLook};
use crate::receiver::process_settings::{ProcessSettings, Protection};
use crate::receiver::refusal_log::Refusals;
use crate::receiver::refusal_reason::RefusalReason;
use crate::receiver::reload::{process_of, reload};
use crate::receiver::{
    ACCEPT_BACKOFF, ACCEPT_QUEUE, DESCRIPTORS_PER_CLUSTER, DRAIN_DEADLINE, HANDSHAKE_DEADLINE,
    THREADS_DEADLINE, connection, introduction, threads_max, wait_named, worker,
};
use crate::store::{Archive, ArchiveFolders, Disk, RealDisk};

/// Time for a silent socket that gives way to be closed.
const GIVING_WAY: Duration = Duration::from_millis(5);

/// What the log calls the task that waits for the first words of a stranger, should it panic.
const ARRIVAL: &str = "arrival of a connection";

/// What the log calls the task that greets a stranger, should it panic.
const HANDSHAKE: &str = "handshake";

/// Pause behind a panic, which may come again at once.
const PANIC_PAUSE: Duration = Duration::from_secs(1);

/// What all connections share.
struct Daemon {
    clusters: Arc<Clusters>,
    /// The stores of all clusters.
    census: Arc<StoreCensus>,
    admission: Arc<Admission>,
    connections: Arc<Connections>,
    refusals: Arc<Refusals>,
    /// How monitoring looks at a cluster.
    look: StandbyLook,
    /// Cancelled once, when nothing more is to be begun for any cluster.
    stopping: CancellationToken,
    /// The tasks of connections, handshakes not counted.
    tasks: TaskTracker,
}

/// Whose clusters the process serves.
enum ServedFiles<'a> {
    /// The one whose file is the process's too.
    Alone {
        config: &'a StandbyConfig,
        /// Where metrics are served, as the file was read last.
        metrics_listen: Vec<ListenAddress>,
        cluster: Arc<Cluster>,
    },
    /// Those of a host's folder.
    Folder(Box<ClusterFolder>),
}

/// `receiver`, or what `-d`, `-r`, `-s` and `-k` make of it, with the file of one cluster.
pub(crate) fn run(
    config: &StandbyConfig,
    options: &Options,
    readiness: Readiness,
    look: StandbyLook,
) -> Result<()> {
    let pidfile = config.receiver_pidfile();
    if let Some(control) = DaemonControl::asked_by(options) {
        return control_running(&pidfile, control, options);
    }
    let process = process_of(config)?;
    let settings = ClusterSettings::load(config, &process)?;
    if options.not_really {
        Archive::check(&ArchiveFolders::of(config), Arc::new(RealDisk))
            .map_err(|error| opening(&error))?;
        return output::not_really(&format!(
            "listen on {} and store into {}",
            config.listen_text(),
            config.completed_wals.display()
        ));
    }
    let runtime = event_loop(threads_max(1))?;
    // Before the pidfile names this process: whoever reads it there may send a signal.
    let notices = runtime.block_on(async { Notices::listen() })?;
    let _lock = PidFile::acquire(&pidfile)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let daemon = Daemon::new(process, admission::raise_descriptors(), look);
    let cluster = Arc::new(Cluster::open(
        (&config.job_name, config),
        settings,
        &disk,
        &daemon.census,
        daemon.stopping.clone(),
        tracing::Span::none(),
    )?);
    daemon.census.is_complete();
    let hosted = HostedCluster {
        path: config.path.clone(),
        cluster: Arc::clone(&cluster),
        tasks: TaskTracker::new(),
    };
    daemon.clusters.serve(&config.job_name, Arc::new(hosted));
    let mut serving = ServedFiles::Alone {
        config,
        metrics_listen: config.metrics_listen.clone(),
        cluster,
    };
    let serve = serve(
        &config.listen,
        options,
        &daemon,
        &mut serving,
        notices,
        readiness,
    );
    let ended = runtime.block_on(serve);
    // Uploads that the deadline cut off are on threads of their own, and nobody was told of them.
    runtime.shutdown_timeout(THREADS_DEADLINE);
    ended
}

/// `receiver`, or what `-d`, `-r`, `-s` and `-k` make of it, with the file of a host.
pub(crate) fn run_host(
    host: &HostConfig,
    options: &Options,
    readiness: Readiness,
    look: StandbyLook,
) -> Result<()> {
    let pidfile = host.receiver_pidfile();
    if let Some(control) = DaemonControl::asked_by(options) {
        return control_running(&pidfile, control, options);
    }
    let descriptors_max = admission::raise_descriptors();
    let clusters_max = descriptors_max / 2 / DESCRIPTORS_PER_CLUSTER;
    let patience = wait_named("WALMGR_READING_PATIENCE_MS", PATIENCE);
    let patience = Patience::of(patience);
    let nothing = WantedInForce::new();
    let read = reading::read(host.clone(), clusters_max, &nothing, &patience)?;
    if options.not_really {
        return check_folder(&read);
    }
    let runtime = event_loop(threads_max(clusters_max))?;
    // Before the pidfile names this process: whoever reads it there may send a signal.
    let notices = runtime.block_on(async { Notices::listen() })?;
    let _lock = PidFile::acquire(&pidfile)?;
    let daemon = Daemon::new(Arc::clone(&read.process), descriptors_max, look);
    let ended = runtime.block_on(async {
        let table = (&daemon.clusters, &daemon.census, &daemon.stopping);
        let of_process = (clusters_max, patience);
        let mut folder = ClusterFolder::new(host, options, table, of_process);
        folder.start(read).await;
        let mut serving = ServedFiles::Folder(Box::new(folder));
        let listen = &host.listen;
        serve(listen, options, &daemon, &mut serving, notices, readiness).await
    });
    runtime.shutdown_timeout(THREADS_DEADLINE);
    ended
}

/// What a start would find, cluster by cluster.
fn check_folder(read: &HostRead) -> Result<()> {
    let mut broken: Vec<String> = (read.broken.values())
        .map(|file| file.sentence.clone())
        .collect();
    for (name, file) in &read.good {
        let folders = ArchiveFolders::of(&file.config);
        if let Err(error) = Archive::check(&folders, Arc::new(RealDisk)) {
            broken.push(format!("{name}: {}", opening(&error)));
        }
    }
    for sentence in &broken {
        tracing::error!("{sentence}");
    }
    let all = read.good.len() + read.broken.len();
    let served = all - broken.len();
    output::not_really(&format!(
        "listen on {} and serve {served} of {all} clusters",
        read.host.listen_text()
    ))?;
    match broken.is_empty() {
        true => Ok(()),
        false => Err(CommandError::config(format!(
            "{} of {all} clusters would not be served",
            broken.len()
        ))),
    }
}

fn event_loop(threads_max: usize) -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(threads_max)
        .enable_all()
        .build()
        .map_err(|error| CommandError::retry("start the event loop").because(error))
}

impl Daemon {
    fn new(
        process: Arc<ProcessSettings>,
        descriptors_max: usize,
        look: StandbyLook,
    ) -> Arc<Daemon> {
        let census = StoreCensus::default();
        census.fetch_limit.set(process.fetch_rate);
        let clusters = Clusters::new(process);
        Arc::new(Daemon {
            refusals: Arc::new(Refusals::new(Arc::clone(&clusters.audit))),
            clusters: Arc::new(clusters),
            census: Arc::new(census),
            admission: Admission::new(descriptors_max),
            connections: Arc::default(),
            look,
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }
}

impl ServedFiles<'_> {
    fn report_start(&self, daemon: &Daemon, addresses: &str) {
        let version = env!("CARGO_PKG_VERSION");
        match self {
            ServedFiles::Alone { cluster, .. } => {
                tracing::info!("receiver {version} listens on {addresses}");
                if let Ok(store) = cluster.store() {
                    store.report_start();
                }
            }
            ServedFiles::Folder(_) => {
                let (served, all) = daemon.clusters.counts();
                tracing::info!(
                    "receiver {version} serves {served} of {all} clusters on {addresses}"
                );
            }
        }
        if matches!(daemon.clusters.process().protection, Protection::Plain) {
            tracing::warn!("tls = off: anybody who reaches {addresses} can read and write WAL");
        }
    }

    fn reload(&mut self, daemon: &Daemon, options: &Options) {
        match self {
            ServedFiles::Alone {
                config,
                metrics_listen,
                ..
            } => {
                if let Some(fresh) = reload(config, options, &daemon.clusters) {
                    *metrics_listen = fresh.metrics_listen;
                }
            }
            ServedFiles::Folder(folder) => folder.reload(),
        }
    }

    /// Where metrics are to be served.
    fn metrics_listen(&self) -> &[ListenAddress] {
        match self {
            ServedFiles::Alone { metrics_listen, .. } => metrics_listen,
            ServedFiles::Folder(folder) => folder.metrics_listen(),
        }
    }

    /// The next thing that a folder has to see to; never comes for one cluster alone.
    async fn next(&mut self) -> FolderEvent {
        match self {
            ServedFiles::Alone { .. } => std::future::pending().await,
            ServedFiles::Folder(folder) => folder.next().await,
        }
    }

    fn handle(&mut self, event: FolderEvent) {
        if let ServedFiles::Folder(folder) = self {
            folder.handle(event);
        }
    }
}

fn control_running(pidfile: &Path, control: DaemonControl, options: &Options) -> Result<()> {
    if options.not_really {
        let path = pidfile.display();
        return output::not_really(&format!("send {control:?} to the receiver of {path}"));
    }
    let pid = daemon::signal_running(pidfile, control, daemon::END_TIMEOUT)?;
    tracing::info!("sent {control} to the receiver, process {pid}");
    Ok(())
}

async fn serve(
    listen_on: &[ListenAddress],
    options: &Options,
    daemon: &Arc<Daemon>,
    serving: &mut ServedFiles<'_>,
    mut notices: Notices,
    readiness: Readiness,
) -> Result<()> {
    let listeners = listen(listen_on).await?;
    let monitored = MonitoredReceiver {
        clusters: Arc::clone(&daemon.clusters),
        connections: Arc::clone(&daemon.connections),
        refusals: Arc::clone(&daemon.refusals),
        stopping: daemon.stopping.clone(),
        overrides: options.overrides.clone(),
    };
    let mut metrics = monitored.serve(serving.metrics_listen(), daemon.look)?;
    serving.report_start(daemon, &addresses(&listeners));
    let mut aside: Vec<_> = listeners
        .into_iter()
        .map(|listener| tokio::spawn(go_on_accepting(Arc::clone(daemon), listener)))
        .collect();
    readiness.ready(&notices)?;
    if let ServedFiles::Alone { cluster, .. } = serving {
        aside.push(tokio::spawn(keeper::run(Arc::clone(cluster))));
    }
    let mut pulse = Pulse::start();
    loop {
        tokio::select! {
            notice = notices.next() => match notice {
                Notice::Reload => {
                    serving.reload(daemon, options);
                    metrics.listen_on(serving.metrics_listen());
                }
                Notice::Drain => break,
            },
            event = serving.next() => {
                serving.handle(event);
                metrics.follow(serving.metrics_listen());
            }
            () = daemon.census.none_left() => break,
            () = pulse.beat() => {}
        }
    }
    daemon::tell_stopping();
    // Comes before the port is closed: nothing takes on work any more when a peer sees the port closed.
    daemon.stopping.cancel();
    for task in aside {
        task.abort();
    }
    drain(daemon, &mut pulse).await;
    match daemon.census.ends_because() {
        Some(why) => {
            let ends = format!("the receiver ends because a sync failed: {why}");
            Err(CommandError::new(Kind::ReceiverDisk, ends)
                .hint("the service manager starts it again; if this repeats, replace the disk"))
        }
        None => {
            tracing::info!("receiver stopped");
            Ok(())
        }
    }
}

/// Accepts until it is aborted. A panic is logged and not the end: without this a receiver would run that nobody
/// reaches.
async fn go_on_accepting(daemon: Arc<Daemon>, listener: TcpListener) {
    while worker::contained_task("acceptance of connections", accept(&daemon, &listener))
        .await
        .is_err()
    {
        tokio::time::sleep(PANIC_PAUSE).await;
    }
}

async fn accept(daemon: &Arc<Daemon>, listener: &TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => admit(daemon, stream, address),
            Err(error) => {
                // Out of descriptors or memory: the connection stays in the kernel's queue.
                daemon.refusals.refused(
                    IpAddr::from([0, 0, 0, 0]),
                    RefusalReason::Internal,
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
async fn drain(daemon: &Daemon, pulse: &mut Pulse) {
    daemon.tasks.close();
    let ended = tokio::time::timeout(DRAIN_DEADLINE, daemon.tasks.wait());
    tokio::pin!(ended);
    loop {
        tokio::select! {
            _ = &mut ended => return,
            () = pulse.beat() => {}
        }
    }
}

/// Waits for the first words of a stranger, and then greets it.
fn admit(daemon: &Arc<Daemon>, stream: TcpStream, address: SocketAddr) {
    let until = tokio::time::Instant::now() + HANDSHAKE_DEADLINE;
    let (arrival, gives_way) = daemon.admission.arrive(address.ip());
    let daemon = Arc::clone(daemon);
    tokio::spawn(worker::contained_task(ARRIVAL, async move {
        let process = daemon.clusters.process();
        let secured = matches!(process.protection, Protection::Tls { .. });
        let spoken = timeout_at(until, introduction::first_words(&stream, secured));
        let refusal = tokio::select! {
            spoken = spoken => match spoken {
                Ok(Ok(())) if arrival.speak() => None,
                Ok(Ok(())) => Some((RefusalReason::Busy, "too many handshakes at once".to_owned())),
                Ok(Err(error)) => Some((RefusalReason::Handshake, error.to_string())),
                Err(_) => Some((RefusalReason::Silent, format!("no introduction within {HANDSHAKE_DEADLINE:?}"))),
            },
            () = gives_way.cancelled() => {
                Some((RefusalReason::Silent, "it sent nothing, and other peers connected".to_owned()))
            }
        };
        let stranger = SpeakingStranger {
            stream,
            address,
            arrival,
            gives_way,
            until,
        };
        match refusal {
            Some((reason, why)) => {
                let text = format!("{address}: {why}");
                daemon.refusals.refused(address.ip(), reason, &text);
            }
            // A task of its own: one that waits for silence has no room for a connection.
            None => drop(tokio::spawn(worker::contained_task(
                HANDSHAKE,
                welcome(daemon, process, stranger),
            ))),
        }
    }));
}

/// A peer that speaks, and of which nothing is known.
struct SpeakingStranger {
    stream: TcpStream,
    address: SocketAddr,
    arrival: Arrival,
    gives_way: CancellationToken,
    until: tokio::time::Instant,
}

async fn welcome(daemon: Arc<Daemon>, process: Arc<ProcessSettings>, stranger: SpeakingStranger) {
    let SpeakingStranger {
        stream,
        address,
        arrival,
        gives_way,
        until,
    } = stranger;
    let refused = |reason: RefusalReason, why: &str| {
        let text = format!("{address}: {why}");
        daemon.refusals.refused(address.ip(), reason, &text);
    };
    // Answers are small and waited for.
    if let Err(error) = stream.set_nodelay(true) {
        return refused(RefusalReason::Handshake, &error.to_string());
    }
    let greeting = introduction::greet(
        &daemon.clusters,
        &daemon.refusals,
        &process,
        stream,
        address,
    );
    let greeted = tokio::select! {
        greeted = timeout_at(until, greeting) => greeted,
        () = gives_way.cancelled() => return refused(RefusalReason::Busy, "too many handshakes at once"),
    };
    let (hosted, peer, wire) = match greeted {
        Ok(Some(greeted)) => greeted,
        Ok(None) => return,
        Err(_) => {
            let why = format!("no introduction within {HANDSHAKE_DEADLINE:?}");
            return refused(RefusalReason::Silent, &why);
        }
    };
    arrival.is_known();
    let claim = SlotClaim {
        cluster: hosted.cluster.number,
        key: peer.key(),
        may_push: peer.rights.push,
        cluster_max: hosted.cluster.settings.borrow().connections_max,
        all_max: process.connections_max,
    };
    let slot = daemon.connections.connect(&claim).await;
    match slot {
        Ok(slot) => {
            drop(arrival);
            let _counted = (daemon.tasks.token(), hosted.tasks.token());
            let is_master = peer.role == Role::Master;
            let _listed = is_master.then(|| hosted.cluster.masters.note(peer.to_string()));
            let (cluster, refusals) = (Arc::clone(&hosted.cluster), Arc::clone(&daemon.refusals));
            let span = cluster.span.clone();
            let served = connection::serve(cluster, refusals, peer, wire, slot);
            served.instrument(span).await;
        }
        Err(why) => turn_away(&daemon.refusals, &why, wire, address).await,
    }
}

async fn turn_away(
    refusals: &Refusals,
    text: &str,
    mut wire: crate::transport::wire::Wire,
    address: SocketAddr,
) {
    use walmgr_protocol::message::{Error, ErrorCode, Message};
    let told = format!("{address}: {text}");
    refusals.refused(address.ip(), RefusalReason::Busy, &told);
    let error = Error::connection(
        ErrorCode::Busy,
        text,
        "raise max_connections on the standby",
    );
    // It may be gone; nobody is owed an answer here.
    let _ = wire.send(0, &Message::Error(error)).await;
    wire.close().await;
}

async fn listen(addresses: &[ListenAddress]) -> Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        let bound = listen_on(&address.host, address.port).await;
        listeners.push(bound.map_err(|error| {
            CommandError::retry(format!("listen on {address}"))
                .because(error)
                .hint(
                    "check `listen` in the ini file, and check that no other process uses the \
                    port",
                )
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
