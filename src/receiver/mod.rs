//! The receiver daemon on the standby: it listens, authenticates peers, and stores their files in the archive.
//! Never acknowledges without the store's proof. Invariant: whatever a peer sends, the
//! daemon stays up and the archive stays whole.
//!
//! A file imports only files below it in this list:
//!
//! | file | what |
//! |---|---|
//! | [`server`] | accepts, drains, ends |
//! | [`reload`] | reads the settings again |
//! | [`monitored`] | what monitoring sees |
//! | [`connection`] | the loop of one connection; passes each frame to its flow |
//! | [`flows`] | push, partial, backup, fetch, trial and control; none sees another |
//! | [`link`] | what a flow may use of its connection |
//! | [`asking`] | the answer to a question about a set, awaited while the connection is served |
//! | [`introduction`] | TLS, hello, and the identity of the peer |
//! | [`clusters`] | the cluster of a peer |
//! | [`reports`] | reports of the flows' workers |
//! | [`cluster`] | the state of a cluster |
//! | [`process_settings`] | settings of the process that a reload may change |
//! | [`admission`], [`connections`] | the slots of strangers and of known peers |
//! | [`shares`], [`worker`] | threads, and each peer's share of them |
//! | [`peer`], [`refusal`], [`refusal_log`], [`refusal_reason`] | the peer, and the messages of a refusal |

pub(crate) mod admission;
pub(crate) mod asking;
pub(crate) mod cluster;
pub(crate) mod clusters;
pub(crate) mod connection;
pub(crate) mod connections;
pub(crate) mod flows;
pub(crate) mod introduction;
pub(crate) mod link;
pub(crate) mod monitored;
pub(crate) mod peer;
pub(crate) mod process_settings;
pub(crate) mod refusal;
pub(crate) mod refusal_log;
pub(crate) mod refusal_reason;
pub(crate) mod reload;
pub(crate) mod reports;
pub(crate) mod server;
pub(crate) mod shares;
pub(crate) mod worker;

pub(crate) use server::{run, run_host};

use std::time::Duration;

use walmgr_protocol::limits::BACKUP_STREAMS_MAX;

/// TCP, TLS and hello together; a peer that needs longer is not known yet and not waited for.
pub(crate) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// A frame that began must be complete after this: 17 KiB/s for the largest, so that a slow but
/// honest link passes and a peer that drips bytes does not.
pub(crate) const FRAME_DEADLINE: Duration = Duration::from_secs(60);

/// Silence after which a peer counts as gone.
pub const IDLE_DEADLINE: Duration = Duration::from_secs(30);

/// Time for uploads under way when the daemon is asked to stop.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(20);

/// Time for what is under way to fail in its own words once a sync of its store has failed: everything does at its
/// next step, but for what waits for its peer.
pub(crate) const RETIRING_DEADLINE: Duration = Duration::from_secs(2);

/// First pause between tries to open a store again that has retired. The pauses double up to [`REOPEN_PAUSE_MAX`].
pub(crate) const REOPEN_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause between tries to open a store again. With the opening it stays below the ten seconds within which a
/// cluster goes on after its disk came back. A disk that stays broken costs one look in eight seconds.
pub(crate) const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(8);

/// How often the log says that such a try has failed.
pub(crate) const REOPEN_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Time for threads that the drain left at work; what they wrote is a temporary, or whole.
pub(crate) const THREADS_DEADLINE: Duration = Duration::from_secs(2);

/// How long a backup outlives the connection that controls it: enough for a link to come back, or
/// for somebody to plug a cable in again.
pub(crate) const BACKUP_LEASE: Duration = Duration::from_secs(BACKUP_LEASE_S as u64);
/// [`BACKUP_LEASE`] in seconds, as the wire has it.
pub(crate) const BACKUP_LEASE_S: u32 = 60;

/// Longest a sealed backup's client may make the receiver wait for WAL that is not archived yet.
pub(crate) const WAL_WAIT_MAX: Duration = Duration::from_secs(3_600);

/// Sockets that may be silent at once. Each holds a descriptor and some kilobytes of the kernel's:
/// at 2,000 new ones a second each has two seconds to speak, which is enough on any link.
pub(crate) const SILENT_MAX: usize = 4096;

/// Handshakes at once. Each has buffers of some 100 KiB, and a genuine one takes a few round trips;
/// a hundred honest clients that come together fit.
pub(crate) const HANDSHAKES_MAX: usize = 192;

/// How long an address that authenticated is preferred to strangers.
pub(crate) const KNOWN_FOR: Duration = Duration::from_secs(3_600);
/// How many such addresses are remembered.
pub(crate) const KNOWN_ADDRESSES_MAX: usize = 1024;

/// How long a known peer waits for a connection slot before it is told that there is none: a backup's
/// streams come all at once, and a moment later count as the backup's.
pub(crate) const CONNECTION_PATIENCE: Duration = Duration::from_secs(2);

/// Descriptors that the receiver would like to open: four times [`SILENT_MAX`], of which silence
/// gets a quarter; a connection, an upload and a stream of a backup need some each.
pub(crate) const DESCRIPTORS_WANTED: usize = 4 * SILENT_MAX;

/// Descriptors of a cluster that nobody uses: its folders, the locks in them, its pidfile, and some to look into sets.
pub(crate) const DESCRIPTORS_PER_CLUSTER: usize = 8;

/// Connections that the kernel holds ready while the daemon is busy: those of two seconds.
pub(crate) const ACCEPT_QUEUE: u32 = 4096;

/// Time between two blocks of an upload, or from the last to its commit: as long as a frame may
/// take. A peer that answers pings and sends nothing keeps no thread and no temporary for longer.
pub const BLOCK_DEADLINE: Duration = FRAME_DEADLINE;

/// Uploads at work at once, over all connections. Each has a thread, which waits for its blocks:
/// enough for all channels of as many connections as `max_connections` allows by default.
pub const UPLOADS_MAX: usize = 256;

/// Uploads of one peer at once. The rest is enough for the channels of sixteen connections.
pub const UPLOADS_PER_PEER_MAX: usize = 192;

/// Room that one peer's unsealed uploads may take together, in bytes: 64 segments of 16 MiB. Each upload has room set
/// aside for its whole file. A few uploads are admitted whatever their size, and a refused one is tried again.
pub(crate) const UPLOAD_BYTES_PER_PEER_MAX: u64 = 1 << 30;

/// Fetches at work at once, over all connections. Each has a thread, which waits for its master to take
/// blocks. A question about a set is one of them: it may read much WAL.
pub(crate) const FETCHES_MAX: usize = 64;
/// Fetches of one peer at once.
pub(crate) const FETCHES_PER_PEER_MAX: usize = 48;

/// Connections with a thread for a stream of records, over all and for one peer. One of them has the
/// stream, another may be on its way to take it over; the rest only ask for it.
pub(crate) const STREAMS_MAX: usize = 16;
/// Such connections of one peer: one that has the stream, and some that come back.
pub(crate) const STREAMS_PER_PEER_MAX: usize = 4;

/// A master that has shipped no records for this long loses the stream to another that asks. A master with
/// nothing to ship loses nothing by that: it takes the stream again when it has records.
pub(crate) const STREAM_IDLE_MAX: Duration = Duration::from_secs(60);

/// How long a peer gives way to every other that asks for the stream, once an archived segment has
/// contradicted the records that it shipped. A genuine master that lost its tail loses nothing by that: nobody
/// else asks.
pub(crate) const STREAM_DOUBTED_FOR: Duration = Duration::from_secs(3_600);

/// Silence of a backup after which it gives way to one of another origin: longer than the spread
/// checkpoint that it may begin with.
pub const BACKUP_IDLE_MAX: Duration = Duration::from_secs(1_800);

/// What has to come within [`BACKUP_IDLE_MAX`], or a backup counts as silent: 600 bytes a second, less than any link
/// that a backup is made over. Waiting for WAL brings nothing, and gives way as well.
pub(crate) const BACKUP_PROGRESS_BYTES_MIN: usize = 1 << 20;

/// Threads for what connections ask beside their uploads; they are kept for it, so that a receiver
/// full of uploads still answers. More requests than that wait their turn, which never waits for
/// a peer.
pub(crate) const REQUESTS_MAX: usize = 16;

/// Threads of connections that are part of a backup: one for each stream, as many again while all
/// of them come back, and some for whoever asks to begin another.
pub(crate) const BACKUP_THREADS_MAX: usize = 2 * BACKUP_STREAMS_MAX as usize + 8;
/// Such threads of one peer.
pub(crate) const BACKUP_THREADS_PER_PEER_MAX: usize = 2 * BACKUP_STREAMS_MAX as usize;

/// All clusters together may have this many times what one cluster may have. A host is sized for a few clusters that
/// are busy at once, not for all.
pub(crate) const ALL_CLUSTERS_TIMES: usize = 4;

/// Places of each kind, and connections, that a cluster gets however many the others have: enough to archive, to ship
/// records, to answer and to fetch one file.
pub(crate) const RESERVED: usize = 4;

/// Threads of a cluster that no peer asks for: it is read round after round, and opened again; and one takes the event
/// loop's place while the connection that ships its records waits for the disk.
const OWN_THREADS: usize = 2 + 1;

/// All threads of a process with so many clusters that may wait for a disk or a peer.
pub(crate) const fn threads_max(clusters: usize) -> usize {
    const KINDS: usize = 4;
    match clusters {
        0 | 1 => THREADS_MAX,
        _ => ALL_CLUSTERS_TIMES * THREADS_MAX + clusters * (KINDS * RESERVED + OWN_THREADS),
    }
}

/// Those of one cluster.
const THREADS_MAX: usize =
    UPLOADS_MAX + FETCHES_MAX + STREAMS_MAX + REQUESTS_MAX + BACKUP_THREADS_MAX + OWN_THREADS;

/// Pause after the system refused another connection for want of descriptors or memory.
pub(crate) const ACCEPT_BACKOFF: Duration = Duration::from_millis(200);

/// How long the receiver waits for something: `usual`, or in a debug build the milliseconds that a test puts in this
/// environment variable.
pub(crate) fn wait_named(variable: &str, usual: Duration) -> Duration {
    let named = std::env::var(variable)
        .ok()
        .filter(|_| cfg!(debug_assertions));
    let named = named.and_then(|text| text.parse().ok());
    named.map_or(usual, Duration::from_millis)
}

// Whoever types `--stop` waits until a full drain is over.
const _: () = assert!(
    DRAIN_DEADLINE.as_secs() + THREADS_DEADLINE.as_secs() < crate::daemon::END_TIMEOUT.as_secs()
);
