//! `backup`: a base backup of the running server, over as many streams as `backup_jobs` says.
//! Never writes into the data directory, and never calls a set good that the receiver did not seal.
//! Invariant: however it ends, the server's backup mode and the standby's lease end with it.
//!
//! [`control`] keeps the lease and has the set sealed, [`needs`] asks what the standby holds, [`stream`] sends files,
//! [`source`] makes tar streams of them by a [`patch_plan`] where not all is needed, [`work_queue`] knows what is waiting, on its way and there. What belongs to a backup, and how it
//! is read, is [`base_backup`](crate::pg::base_backup)'s.

pub(crate) mod control;
pub(crate) mod needs;
pub(crate) mod origin;
pub(crate) mod patch_plan;
pub(crate) mod source;
pub(crate) mod stream;
pub(crate) mod work_queue;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use indicatif::HumanBytes;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;
use walmgr_protocol::limits::BLOCK_BYTES_MAX;
use walmgr_protocol::message::backup::{BackupBegin, BackupSealed, Finish, PartName};
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId};

use crate::config::{BackupCheckpoint, MasterConfig};
use crate::error::{CommandError, Kind, Result};
use crate::master::archiver::{self, Archives};
use crate::master::ask::Asking;
use crate::master::backup::control::{BackupControl, ReceiverLink};
use crate::master::backup::needs::{BackupKind, Needs};
use crate::master::backup::origin::BackupOrigin;
use crate::master::backup::stream::BackupStream;
use crate::master::backup::work_queue::WorkQueue;
use crate::master::cluster::ClusterFacts;
use crate::master::next_step;
use crate::master::push::Blocks;
use crate::options::{BackupArgs, Options};
use crate::output;
use crate::output::progress::{BackupProgress, Counters, per_second, rate_limit_text, ratio};
use crate::pg::backup_label::BackupLabel;
use crate::pg::backup_note::BackupNote;
use crate::pg::base_backup::configs::{self, BroughtConfig};
use crate::pg::base_backup::contents::Contents;
use crate::pg::base_backup::{Item, listing};
use crate::pg::control::ControlFile;
use crate::pg::data_directory::DataDirectory;
use crate::pg::grants::Task;
use crate::pg::left_out::PassedOver;
use crate::pg::sql::{Limits, Session};
use crate::pg::sql_backup::{FinishedBackup, RunningBackup};
use crate::rate_limit::RateLimit;

/// What `backup_label` calls a backup, as it always did.
const LABEL: &str = "FullBackup";

/// Why a backup is full that somebody wants so.
const INSISTED: &str = "--full says so";

/// A checkpoint that is spread takes `checkpoint_timeout`, which is a day at most.
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(86_400);

/// How long a signal waits for the answer to a lease that was asked for.
const BEGIN_DEADLINE: Duration = Duration::from_secs(2);

/// Threads that run connections: TLS and checksums are work, and a backup may use two cores for it.
const CONNECTION_THREADS: usize = 2;

/// PostgreSQL's pause before it tries again to archive a segment (`PGARCH_AUTOWAKE_INTERVAL`).
const ARCHIVER_PAUSE: Duration = Duration::from_secs(60);

/// Attempts of the archiver that the end of a backup waits for.
const ARCHIVER_ATTEMPTS: u32 = 3;

/// How long a rehearsal waits for finished segments, in seconds: as long as a person waits at a screen.
const REHEARSAL_WAIT_S: u32 = 10;

/// Makes a base backup; one that lacks something fails in the end unless that is allowed.
pub(crate) fn run(config: &MasterConfig, options: &Options, arguments: &BackupArgs) -> Result<()> {
    let facts = ClusterFacts::read(config)?;
    let runtime = runtime(config)?;
    if options.not_really {
        return runtime.block_on(rehearse(config, facts, arguments.full));
    }
    let made = runtime.block_on(async {
        let mut terminate = watched(SignalKind::terminate())?;
        let mut interrupt = watched(SignalKind::interrupt())?;
        let stopped = async {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        Box::pin(back_up(config, facts, (options, arguments), stopped)).await
    });
    // A reader that is stuck in a dead disk must not hold the exit back.
    runtime.shutdown_background();
    made
}

fn runtime(config: &MasterConfig) -> Result<tokio::runtime::Runtime> {
    // A reader for each stream, and some for names of hosts.
    let readers = usize::try_from(config.backup_jobs).unwrap_or(1);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONNECTION_THREADS)
        .max_blocking_threads(readers + 4)
        .enable_all()
        .build()
        .map_err(|error| CommandError::retry("start the event loop").because(error))
}

fn watched(kind: SignalKind) -> Result<tokio::signal::unix::Signal> {
    signal(kind).map_err(|error| CommandError::retry("watch for signals").because(error))
}

/// Says what a real run would do, after asking whoever it would ask.
async fn rehearse(config: &MasterConfig, facts: ClusterFacts, full: bool) -> Result<()> {
    let session = connect(config).await?;
    check_server(&session).await?;
    check_archiving(config, &facts, &session).await?;
    let position = session.wal_position().await?;
    let (contents, configs) = list(config, &session).await?;
    session.close().await;
    let way = ReceiverLink::new(config, facts)?;
    let would = match full {
        true => {
            let wire = way.connect().await;
            wire.map_err(control::LinkError::into_error)?.close().await;
            format!("everything: {INSISTED}")
        }
        false => {
            // The segment in progress goes on; those before it are archived, or just being so.
            let size = facts.cluster.segment_size.bytes();
            let start = Lsn(position.flushed.0 / size * size);
            let control = DataDirectory::open(&config.master_data)?.control()?;
            let question = needs::question(&control, (position.timeline, start), REHEARSAL_WAIT_S);
            let mut asking = BackupControl::rehearse(&way, question).await?;
            asking.tell(&contents.items).await?
        }
    };
    output::not_really(&format!(
        "back up {} files with {} of {} to {}, in {} streams{}; read and send {would}",
        contents.items.len(),
        HumanBytes(contents.total_bytes),
        config.master_data.display(),
        config.slave,
        config.backup_jobs,
        rate_limit_text(config.backup_rate)
    ))?;
    for (name, path, _) in &configs {
        output::not_really(&format!("send {} as {name}", path.display()))?;
    }
    Ok(())
}

async fn connect(config: &MasterConfig) -> Result<Session> {
    Session::connect_for(&config.master_db, Limits::default(), Task::Backup)
        .await
        .map_err(|error| match error.kind() {
            Kind::Retry => error.hint("check master_db in the ini file, and that PostgreSQL runs"),
            // What is refused says itself what to do.
            _ => error,
        })
}

/// What makes a backup senseless is found before anything begins.
async fn check_server(session: &Session) -> Result<TimelineId> {
    if session.is_in_recovery().await? {
        return Err(
            CommandError::config("the server is a standby: back up its master")
                .hint("check master_db in the ini file"),
        );
    }
    let mode = session.show("archive_mode").await?;
    if !matches!(mode.as_str(), "on" | "always") {
        return Err(CommandError::config(format!(
            "archive_mode is {mode}, so no backup can be completed"
        ))
        .hint("run `walmgr MASTER.ini setup` first"));
    }
    Ok(session.wal_position().await?.timeline)
}

/// A backup whose WAL goes elsewhere would wait for it in vain.
async fn check_archiving(
    config: &MasterConfig,
    facts: &ClusterFacts,
    session: &Session,
) -> Result<()> {
    let archives = Archives::ask(config, session).await?;
    let arrives = async |segment| {
        let Ok(mut asking) = Asking::connect(config, facts).await else {
            return false;
        };
        let held = asking.holds(segment, facts.cluster.segment_size).await;
        asking.close().await;
        held.unwrap_or(false)
    };
    archives.refuse_elsewhere(session, arrives).await
}

/// What belongs to the backup, and the configuration files that lie elsewhere.
async fn list(config: &MasterConfig, session: &Session) -> Result<(Contents, Vec<BroughtConfig>)> {
    let mut notes = Vec::new();
    let places = configs::places_of_server(session, &mut notes).await;
    let configs = configs::take_along(&config.master_data, places, &mut notes)?;
    let data = DataDirectory::open(&config.master_data)?;
    let listed = tokio::task::spawn_blocking(move || {
        Contents::list(&data, &[], &configs).map(|contents| (contents, configs))
    });
    let (mut contents, configs) = listed
        .await
        .map_err(|error| CommandError::retry("list the data directory").because(error))??;
    contents.notes.extend(notes);
    Ok((contents, configs))
}

/// Makes a backup; one that cannot be built on an older set after all is made anew as a full one.
async fn back_up(
    config: &MasterConfig,
    facts: ClusterFacts,
    (options, arguments): (&Options, &BackupArgs),
    stopped: impl Future<Output = &'static str>,
) -> Result<()> {
    let mut stopped = std::pin::pin!(stopped);
    let way = Arc::new(ReceiverLink::new(config, facts)?);
    let insists = arguments.full.then(|| INSISTED.to_owned());
    let attempt = Attempt {
        config,
        options,
        way: &way,
        allows_left_out: arguments.allow_left_out,
    };
    match Box::pin(attempt.run(insists, stopped.as_mut())).await {
        Err(_) if let Some(why) = way.unfit() => {
            tracing::warn!("{why}; a full backup begins");
            Box::pin(attempt.run(Some(why.to_owned()), stopped)).await
        }
        made => made,
    }
}

/// What all attempts at a backup have in common.
struct Attempt<'a> {
    config: &'a MasterConfig,
    options: &'a Options,
    way: &'a Arc<ReceiverLink>,
    allows_left_out: bool,
}

impl Attempt<'_> {
    async fn run(
        &self,
        full: Option<String>,
        mut stopped: Pin<&mut impl Future<Output = &'static str>>,
    ) -> Result<()> {
        let (config, way) = (self.config, self.way);
        let origin = BackupOrigin::claim(&config.master_data)?;
        let began = Instant::now();
        let mut beginning = Box::pin(async {
            let session = connect(config).await?;
            let timeline = check_server(&session).await?;
            check_archiving(config, &way.facts(), &session).await?;
            let begin = BackupBegin {
                who: origin.who(&config.job_name),
                origin: origin.text().to_owned(),
                label: LABEL.to_owned(),
                timeline,
            };
            let control = BackupControl::begin(way, begin).await?;
            Ok::<_, CommandError>((session, timeline, control))
        });
        let (session, timeline, mut control) = tokio::select! {
            begun = &mut beginning => begun?,
            signal = &mut stopped => {
                let error = stopped_by(signal);
                // The receiver may have granted the lease a moment ago; it must not outlive this.
                if let Ok(Ok((_, _, control))) = timeout(BEGIN_DEADLINE, beginning).await {
                    control.give_up(&error.to_string()).await;
                }
                return Err(error);
            }
        };
        let work = Work {
            config,
            options: self.options,
            way,
            timeline,
            allows_left_out: self.allows_left_out,
            full,
        };
        let made = tokio::select! {
            made = work.make(&mut control, session) => made,
            signal = &mut stopped => Err(stopped_by(signal)),
        };
        match made {
            Ok(made) => {
                made.report(config, began.elapsed())?;
                next_step::after_backup(config);
                Ok(())
            }
            Err(error) => {
                control.give_up(&error.to_string()).await;
                Err(error)
            }
        }
    }
}

fn stopped_by(signal: &str) -> CommandError {
    CommandError::retry(format!(
        "stopped by {signal} before the backup was complete"
    ))
}

/// One backup, once the lease is taken.
struct Work<'a> {
    config: &'a MasterConfig,
    options: &'a Options,
    way: &'a Arc<ReceiverLink>,
    timeline: TimelineId,
    allows_left_out: bool,
    /// Why everything is sent, if that is settled.
    full: Option<String>,
}

/// A backup that was made.
struct CompletedBackup {
    kind: BackupKind,
    total_bytes: u64,
    sealed: BackupSealed,
    load: Arc<WorkQueue>,
    sending: Duration,
    wal: Wal,
    notes: Vec<String>,
    left_out: Vec<PassedOver>,
    allows_left_out: bool,
}

/// The WAL that a backup needs.
struct Wal {
    start: Lsn,
    stop: Lsn,
    first: SegmentName,
    last: SegmentName,
}

impl Work<'_> {
    async fn make(
        &self,
        control: &mut BackupControl<'_>,
        mut session: Session,
    ) -> Result<CompletedBackup> {
        tracing::info!("waiting for a checkpoint of the server");
        session.set_statement_limit(CHECKPOINT_DEADLINE);
        let fast = self.config.backup_checkpoint == BackupCheckpoint::Fast;
        let running = control.during(session.backup_start(LABEL, fast)).await?;
        let cluster = DataDirectory::open(&self.config.master_data)?.control()?;
        let kind = self.choose(control, &running, &cluster).await?;
        let listed = list(self.config, running.session());
        let (contents, configs) = control.during(listed).await?;
        let needs = match kind {
            BackupKind::Full(_) => Needs::new(),
            BackupKind::On(_) => needs::ask(control, &contents.items).await?,
        };
        let total_bytes = needs::needed_bytes(&contents.items, &needs);
        let load = Arc::new(WorkQueue::new(
            contents.roots,
            running.start(),
            (cluster, needs),
            contents.items,
        ));
        let began = Instant::now();
        tracing::info!(
            "sending {} from {}",
            HumanBytes(total_bytes),
            running.start()
        );
        {
            let mut progress = BackupProgress::begin("sent", total_bytes, self.options);
            let left_out = listing::note_of_left_out(&contents.left_out, self.allows_left_out);
            let last = [Some(contents.last), left_out, contents.group_note];
            tokio::select! {
                sent = self.send(control, &load, (last, &kind)) => sent?,
                ended = until_closed(running.session()) => return Err(ended),
                () = progress.show(&load.counters) => {}
            }
        }
        load.all_is_settled()?;
        let sending = began.elapsed();
        let ending = self.end(running);
        let finished = control.during(ending).await?;
        let (sealed, wal) = self.seal(control, &load, finished, configs).await?;
        Ok(CompletedBackup {
            kind,
            total_bytes: contents.total_bytes,
            sealed,
            load,
            sending,
            wal,
            notes: contents.notes,
            left_out: contents.left_out,
            allows_left_out: self.allows_left_out,
        })
    }

    /// Decides whether everything is sent.
    async fn choose(
        &self,
        control: &mut BackupControl<'_>,
        running: &RunningBackup,
        cluster: &ControlFile,
    ) -> Result<BackupKind> {
        if let Some(why) = &self.full {
            return Ok(BackupKind::Full(why.clone()));
        }
        // What the standby compares is WAL up to the backup's beginning, which lies in the segment in progress. Who
        // may not end it waits until the records come by themselves.
        let switched = control.during(async { Ok(running.session().switch_wal().await) });
        let wal_wait_s = match switched.await? {
            Ok(_) => needs::WAL_WAIT_S,
            Err(error) => {
                tracing::debug!("the segment of the backup's beginning is not ended: {error}");
                needs::UNSWITCHED_WAL_WAIT_S
            }
        };
        let question = needs::question(cluster, (self.timeline, running.start()), wal_wait_s);
        Ok(needs::kind(control.parent(question).await?))
    }

    /// Ends the server's backup mode.
    async fn end(&self, running: RunningBackup) -> Result<FinishedBackup> {
        let position = running.session().wal_position().await?;
        if position.timeline != self.timeline {
            return Err(
                CommandError::retry("the server was promoted during the backup")
                    .hint("start the backup again"),
            );
        }
        running.stop().await
    }

    /// Sends what the server returned, and waits until the receiver has sealed the set.
    async fn seal(
        &self,
        control: &mut BackupControl<'_>,
        load: &WorkQueue,
        finished: FinishedBackup,
        configs: Vec<BroughtConfig>,
    ) -> Result<(BackupSealed, Wal)> {
        let label = BackupLabel::parse(&finished.backup_label).map_err(|error| {
            CommandError::retry("read PostgreSQL's backup_label").because(error)
        })?;
        let cluster = self.way.facts().cluster;
        let of = (cluster.postgres_major, cluster.system_id);
        let manifest = listing::manifest(of, load.arrived(), &finished, &label)?;
        let size = cluster.segment_size;
        let last_byte = Lsn(finished.stop_lsn.0.saturating_sub(1));
        let wal = Wal {
            start: label.start,
            stop: finished.stop_lsn,
            first: label.first_segment,
            last: SegmentName::containing(self.timeline, last_byte, size),
        };
        let mut parts = vec![
            (PartName::Label, Bytes::from(finished.backup_label)),
            (PartName::Manifest, manifest),
        ];
        let map = finished.tablespace_map.map(Bytes::from);
        parts.extend(map.map(|map| (PartName::TablespaceMap, map)));
        let configs = configs.into_iter();
        parts.extend(configs.map(|(name, _, content)| (PartName::Config(name), content)));
        let finish = Finish {
            start: wal.start,
            stop: wal.stop,
            timeline: self.timeline,
            wal_wait_s: self.wal_wait_s(),
        };
        let last = wal.last;
        tracing::info!(
            "all files have arrived; waiting until {last} is archived and the set is \
            sealed"
        );
        let sealed = tokio::select! {
            sealed = control.finish(&parts, finish) => sealed?,
            never = archiver::tell_while_waiting(self.config, last) => match never {},
        };
        Ok((sealed, wal))
    }

    /// Sends everything; `last` behind the rest, as the control file may not be older than that.
    async fn send(
        &self,
        control: &mut BackupControl<'_>,
        load: &Arc<WorkQueue>,
        (last, kind): ([Option<Item>; 3], &BackupKind),
    ) -> Result<()> {
        let jobs = u16::try_from(self.config.backup_jobs).unwrap_or(1);
        let jobs = jobs.clamp(1, control.granted().streams_max.saturating_sub(1).max(1));
        let limit = Arc::new(RateLimit::new(self.config.backup_rate));
        let mut streams = JoinSet::new();
        for number in 0..jobs {
            streams.spawn(self.stream(control, (load, &limit), number).run());
        }
        control.during(all(streams)).await?;
        let made = BackupNote {
            since_full: kind.since_full(),
            read_bytes: Counters::of(&load.counters.read_bytes),
            sent_bytes: Counters::of(&load.counters.sent_bytes),
        };
        let notes = [
            listing::note_of_pages(&load.bad_blocks()),
            listing::note_of_backup(&made),
        ];
        for item in last.into_iter().chain(notes).flatten() {
            load.put(item);
        }
        let stream = self.stream(control, (load, &limit), jobs);
        control.during(stream.run()).await
    }

    fn stream(
        &self,
        control: &BackupControl<'_>,
        (load, limit): (&Arc<WorkQueue>, &Arc<RateLimit>),
        number: u16,
    ) -> BackupStream {
        BackupStream {
            way: Arc::clone(self.way),
            load: Arc::clone(load),
            granted: control.granted(),
            number,
            blocks: Blocks {
                block_bytes: self.config.block_size.min(BLOCK_BYTES_MAX),
                compression: self.config.network_level(),
            },
            limit: Arc::clone(limit),
        }
    }

    fn wal_wait_s(&self) -> u32 {
        let attempts = (self.config.push_timeout + ARCHIVER_PAUSE) * ARCHIVER_ATTEMPTS;
        u32::try_from(attempts.as_secs()).unwrap_or(u32::MAX)
    }
}

/// Ends when the server has ended the session, and the backup with it.
async fn until_closed(session: &Session) -> CommandError {
    session.until_closed().await;
    CommandError::retry("PostgreSQL ended the session of the backup")
        .hint("look at its log, and start the backup again")
}

/// Waits for all streams; the first that fails ends the others.
async fn all(mut streams: JoinSet<Result<()>>) -> Result<()> {
    while let Some(ended) = streams.join_next().await {
        ended.map_err(|error| CommandError::retry("send a stream").because(error))??;
    }
    Ok(())
}

impl CompletedBackup {
    /// The closing summary, and what is wrong with the backup although it is complete.
    fn report(self, config: &MasterConfig, elapsed: Duration) -> Result<()> {
        let counters = &self.load.counters;
        let read_bytes = Counters::of(&counters.read_bytes);
        let sent_bytes = Counters::of(&counters.sent_bytes);
        let elapsed_s = elapsed.as_secs_f32();
        let Wal {
            start,
            stop,
            first,
            last,
        } = self.wal;
        output::print(&format!(
            "{} files with {} in {elapsed_s:.1} s, {}/s{}; {} sent, ratio {:.2}",
            Counters::of(&counters.files),
            HumanBytes(read_bytes),
            HumanBytes(per_second(read_bytes, self.sending)),
            rate_limit_text(config.backup_rate),
            HumanBytes(sent_bytes),
            ratio(read_bytes, sent_bytes)
        ))?;
        output::print(&format!(
            "WAL from {start} to {stop}, segments {first} to {last}"
        ))?;
        let BackupSealed {
            name,
            path,
            stored_bytes,
            expired,
            purged,
            warnings,
        } = self.sealed;
        let total = HumanBytes(self.total_bytes);
        let (read, stored) = (HumanBytes(read_bytes), HumanBytes(stored_bytes));
        let kind = match &self.kind {
            BackupKind::Full(why) => format!("full, because {why}; {stored} stored"),
            BackupKind::On(parent) => format!(
                "incremental, built on {} with what changed since {}: {read} of {total} read, {stored} stored",
                parent.name, parent.start
            ),
        };
        output::print(&output::escaped(&kind))?;
        let sealed = output::escaped(&format!("{name} is sealed: {path} on {}", config.slave));
        output::print(&sealed)?;
        if expired > 0 || purged > 0 {
            output::print(&format!(
                "{expired} old sets and {purged} WAL files were removed"
            ))?;
        }
        let reconnections = Counters::of(&counters.reconnections);
        if reconnections > 0 {
            tracing::warn!("{reconnections} connections broke and were re-established");
        }
        let vanished = self.load.vanished.load(Ordering::Relaxed);
        tracing::debug!("{vanished} files vanished before they were read");
        for note in self.notes.iter().chain(&warnings) {
            tracing::warn!("{note}");
        }
        let bad_blocks = self.load.bad_blocks();
        for bad in &bad_blocks {
            tracing::error!(
                "{name} has a damaged page, as the master does: {} block {}",
                bad.path,
                bad.block
            );
        }
        let left_out = report_left_out(&name, &self.left_out, self.allows_left_out);
        match bad_blocks.len() {
            0 => left_out,
            count => Err(CommandError::retry(format!(
                "{name} is complete and has {count} damaged pages, as the master does"
            ))
            .hint(
                "repair or restore the relation; older good backup sets stay until there is a \
                newer good one",
            )),
        }
    }
}

/// Names what the set lacks, and fails unless that is allowed.
fn report_left_out(name: &str, left_out: &[PassedOver], is_allowed: bool) -> Result<()> {
    for lost in left_out {
        match is_allowed {
            true => tracing::warn!("not in the backup: {lost}"),
            false => tracing::error!("not in the backup: {lost}"),
        }
    }
    match left_out.len() {
        0 => Ok(()),
        _ if is_allowed => Ok(()),
        count => Err(CommandError::retry(format!(
            "{name} is sealed and lacks {count} entries of the data directory"
        ))
        .hint(
            "repair or remove them on the master, or accept a backup without them: walmgr \
            MASTER.ini backup --allow-left-out",
        )),
    }
}
