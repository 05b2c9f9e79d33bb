//! `backup` on the standby: a base backup of the server that replays, copied on this host; the master does nothing.
//! Never writes into the data directory, and never calls a set good that was not sealed. Invariant: however it ends,
//! the server's backup mode, the lease and the hold on replay end with it.
//!
//! [`online`] is the server's part where it answers queries, [`offline`] what stands for it where it does not,
//! [`standstill`] whether replay stands then, and [`copy`] brings the files into the set.

mod copy;
mod offline;
mod online;
mod standstill;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use indicatif::HumanBytes;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use walmgr_protocol::names::Lsn;

use crate::audit::{AuditEvent, AuditOutcome};
use crate::config::StandbyConfig;
use crate::error::{CommandError, Kind, Result};
use crate::options::{BackupArgs, Options};
use crate::output::progress::{BackupProgress, Counters, per_second, rate_limit_text};
use crate::output::{self, Waiting};
use crate::pg::backup_label::BackupLabel;
use crate::pg::base_backup::configs::{self, ConfigPlaces};
use crate::pg::base_backup::contents::Contents;
use crate::pg::base_backup::listing;
use crate::pg::control::ControlFile;
use crate::pg::data_directory::{DataDirectory, Postmaster};
use crate::pg::layout;
use crate::pg::left_out::PassedOver;
use crate::pg::manifest;
use crate::pg::sql_backup::FinishedBackup;
use crate::shell;
use crate::standby::{audited, sets};
use crate::store::sets::{ClearedAway, ExpectedFile, IncomingSet, Keeping, Parts, SealedSet};
use crate::store::{ArchiveReader, DurableWal, RealDisk, StoreError, WalProof};
use crate::wal::segment::Verify;

use self::copy::{CopiedFiles, SetCopy};
use self::offline::OfflineBackup;
use self::online::OnlineBackup;

/// What `backup_label` calls a backup, as the master's is called.
const LABEL: &str = "FullBackup";

/// What belongs to a standby, or to a restore of it, and not to a set.
const OMITTED: [&str; 6] = [
    layout::STANDBY_SIGNAL,
    layout::RECOVERY_SIGNAL,
    "promote",
    layout::CONTROL_COPIED,
    layout::CONTROL_MOVED,
    layout::CONTROL_RESTORING,
];

/// A quiet master finishes a segment when `archive_timeout` says so, or somebody does.
const WAL_PATIENCE: Duration = Duration::from_secs(3_600);

/// Pause between two looks into the archive.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The record of a checkpoint, 114 bytes in every version, as it is aligned.
const CHECKPOINT_RECORD_BYTES: u64 = 120;

/// Threads beside the one that copies: the session, and a look into the archive.
const THREADS: usize = 2;

/// Makes a base backup of the standby; one that lacks something fails in the end unless that is allowed.
pub(crate) fn run(config: &StandbyConfig, options: &Options, arguments: &BackupArgs) -> Result<()> {
    let source = Source::look(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .map_err(|error| CommandError::retry("start the event loop").because(error))?;
    if options.not_really {
        return runtime.block_on(source.rehearse());
    }
    let begun = Instant::now();
    let sets = sets::open(config)?;
    let lease = sets
        .lease(&owner(config))
        .map_err(|error| sets::failed("make a backup", &error))?;
    let lease = Arc::new(lease);
    let set = sets
        .begin(&lease)
        .map_err(|error| sets::failed("begin a backup set", &error))?;
    let cancelled = CancellationToken::new();
    let copied = runtime.block_on(async {
        let stopped = stopped()?;
        let typed = (options, arguments.allow_left_out);
        let work = source.make(&set, typed, &cancelled);
        tokio::pin!(work, stopped);
        tokio::select! {
            made = &mut work => made,
            signal = &mut stopped => {
                cancelled.cancel();
                // What copies looks at that, and nobody may remove the set below it.
                let _ = work.await;
                let text = format!("stopped by {signal} before the backup was complete");
                Err(CommandError::retry(text))
            }
        }
    });
    // A reader that is stuck in a dead disk must not hold the exit back.
    runtime.shutdown_background();
    let copied = copied?;
    let sealed = copied.seal(set)?;
    tracing::debug!("{} is sealed", sealed.name());
    let event = AuditEvent::SetSealed {
        set: &sealed.name().to_string(),
        first_segment: &copied.wal.first().to_string(),
        stop: &copied.finished.stop_lsn.to_string(),
    };
    audited::tell(config, AuditOutcome::Done, &event);
    let keeping = Keeping::of(config);
    let mut archive = |set: &Path| match &config.archive_command {
        Some(command) => shell::archive_set(command, config.slave_bin.as_deref(), set),
        None => Ok(()),
    };
    let slave_data = config.slave_data.as_deref();
    let cleared = sets.clear_away(&lease, keeping, slave_data, &mut archive);
    copied.report(config, &sealed, &cleared, begun.elapsed())
}

/// Who makes it, for those who find the lease taken.
fn owner(config: &StandbyConfig) -> String {
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let since = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S %Z");
    let process = std::process::id();
    format!(
        "{} on the standby {host}, process {process}, since {since}",
        config.job_name
    )
}

/// Ends with the name of a signal that asks to end.
fn stopped() -> Result<impl Future<Output = &'static str>> {
    let watched = |kind: SignalKind| {
        signal(kind).map_err(|error| CommandError::retry("watch for signals").because(error))
    };
    let (mut terminate, mut interrupt) = (
        watched(SignalKind::terminate())?,
        watched(SignalKind::interrupt())?,
    );
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

/// The server that a backup is made of, and the archive that has its WAL.
struct Source<'a> {
    config: &'a StandbyConfig,
    data: DataDirectory,
    control: ControlFile,
    server: Option<Postmaster>,
    archive: Arc<ArchiveReader>,
}

/// How the backup is made.
enum Making {
    Online(OnlineBackup),
    Offline(OfflineBackup),
}

impl Source<'_> {
    /// What makes a backup senseless is found before anything begins.
    fn look(config: &StandbyConfig) -> Result<Source<'_>> {
        let path = config.slave_data.as_deref().ok_or_else(|| {
            CommandError::config("there is no setting `slave_data`")
                .hint("set it to the data directory of the standby's server")
        })?;
        let data = DataDirectory::open(path)?;
        let control = data.control()?;
        let archive = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk));
        let archive = archive.map_err(|error| {
            let hint = "the archive needs a master that ships to it: `setup` on both sides";
            store_failed("open the archive", &error).hint(hint)
        })?;
        let bound = archive.binding();
        let is_bound = (bound.system_id, bound.segment_size, bound.postgres_major)
            == (control.system_id, control.segment_size, data.major());
        if !is_bound {
            return Err(CommandError::config(format!(
                "{} is of the cluster {} of PostgreSQL {}, and the archive is for {bound}",
                path.display(),
                control.system_id,
                data.major(),
            ))
            .hint("check slave_data and completed_wals in the ini file"));
        }
        Ok(Source {
            server: data.running()?,
            config,
            data,
            control,
            archive: Arc::new(archive),
        })
    }

    /// The server, if it answers queries: `None` where it does not, or does not run.
    fn answering(&self) -> Option<&Postmaster> {
        self.server.as_ref().filter(|server| server.accepts)
    }

    /// Says what a real run would do, after asking whoever it would ask.
    async fn rehearse(&self) -> Result<()> {
        let mut notes = Vec::new();
        let (how, places) = match self.answering() {
            Some(server) => {
                let session = online::connect(&self.data, server).await?;
                let places = configs::places_of_server(&session, &mut notes).await;
                session.close().await;
                ("while it answers queries", places)
            }
            None => {
                offline::check(&self.data, &self.control)?;
                let places = OfflineBackup::config_places(self.config, &self.data);
                ("while its replay is held", places)
            }
        };
        let held_by = sets::open(self.config)?.lease_holder();
        if let Some(holder) =
            held_by.map_err(|error| sets::failed("look who makes a backup", &error))?
        {
            return Err(CommandError::retry(format!(
                "a backup is running: {holder}"
            )));
        }
        let configs = configs::take_along(self.data.path(), places, &mut notes)?;
        let contents = Contents::list(&self.data, &OMITTED, &configs)?;
        output::not_really(&format!(
            "copy {} files with {} of {} into a new set, {how}{}",
            contents.items.len(),
            HumanBytes(contents.total_bytes),
            self.data.path().display(),
            rate_limit_text(self.config.backup_rate),
        ))
    }

    /// Begins the backup: how it is made, where its WAL begins, and where the configuration files are.
    async fn begin(
        &self,
        notes: &mut Vec<String>,
        cancelled: &CancellationToken,
    ) -> Result<(Making, Lsn, ConfigPlaces)> {
        if let Some(server) = self.answering() {
            let session = online::connect(&self.data, server).await?;
            tracing::info!("waiting for a restartpoint of the standby");
            let online = tokio::select! {
                online = OnlineBackup::begin(session, LABEL) => online?,
                () = cancelled.cancelled() => return Err(copy::stopped()),
            };
            let places = online.config_places(notes).await;
            let start = online.start();
            return Ok((Making::Online(online), start, places));
        }
        tracing::info!("the standby answers no queries, so its replay is held while it is copied");
        let (config, data) = (self.config.clone(), self.data.clone());
        let (server, cancelled) = (self.server.clone(), cancelled.clone());
        let begun =
            blocking(move || OfflineBackup::begin(&config, &data, server.as_ref(), &cancelled));
        let offline = begun.await?;
        let places = OfflineBackup::config_places(self.config, &self.data);
        let start = offline.start();
        Ok((Making::Offline(offline), start, places))
    }

    /// Makes all of the set but its seal.
    async fn make(
        &self,
        set: &IncomingSet,
        typed: (&Options, bool),
        cancelled: &CancellationToken,
    ) -> Result<CopiedSet> {
        let (options, allows_left_out) = typed;
        let mut notes = Vec::new();
        let (making, start, places) = self.begin(&mut notes, cancelled).await?;
        let begun = Instant::now();
        let configs = configs::take_along(self.data.path(), places, &mut notes)?;
        let data = self.data.clone();
        let listed = blocking(move || Contents::list(&data, &OMITTED, &configs));
        let mut contents = listed.await?;
        notes.append(&mut contents.notes);
        let (left_out, tablespaces) = (contents.left_out, contents.tablespaces);
        let left_out_note = listing::note_of_left_out(&left_out, allows_left_out);
        let set_notes: Vec<_> = [left_out_note, contents.group_note]
            .into_iter()
            .flatten()
            .collect();
        let counters = Arc::new(Counters::default());
        let (total_bytes, items, last) = (contents.total_bytes, contents.items, contents.last);
        let copy = SetCopy::new(
            set,
            (contents.roots, self.control.clone(), start),
            (Arc::clone(&counters), cancelled.clone()),
            (total_bytes, self.config.backup_rate),
        )?;
        tracing::info!("copying {} from {start}", HumanBytes(total_bytes));
        let mut copying = tokio::task::spawn_blocking(move || copy.run(&items, &last, set_notes));
        let mut progress = BackupProgress::begin("copied", total_bytes, options);
        let copied = tokio::select! {
            copied = &mut copying => return_of(copied),
            ended = making.until_closed() => Err(ended),
            () = progress.show(&counters) => Err(CommandError::retry("show the progress")),
        };
        drop(progress);
        if copied.is_err() && !copying.is_finished() {
            // Nobody may remove the set while it is written.
            cancelled.cancel();
            let _ = copying.await;
        }
        let (files, last) = copied?;
        let copying_took = begun.elapsed();
        let is_offline = matches!(making, Making::Offline(_));
        let mut finished = match making {
            Making::Online(online) => online.end().await?,
            Making::Offline(offline) => offline.end(&self.data, &last, LABEL, &tablespaces)?,
        };
        let label = BackupLabel::parse(&finished.backup_label)
            .map_err(|error| CommandError::retry("read the backup_label").because(error))?;
        // A recovery reads that record in any case, also where no page behind it was written out.
        let behind_checkpoint = Lsn(label.checkpoint.0.saturating_add(CHECKPOINT_RECORD_BYTES));
        finished.stop_lsn = finished.stop_lsn.max(behind_checkpoint);
        let wal = self.wal(&label, &finished, cancelled).await?;
        if is_offline {
            let (archive, stop) = (Arc::clone(&self.archive), finished.stop_lsn);
            let first = (label.first_segment, label.start);
            blocking(move || offline::check_full_pages(&archive, first, stop)).await?;
        }
        let cluster = (u16::from(self.data.major()), self.control.system_id);
        let manifest = listing::manifest(cluster, files.files.clone(), &finished, &label)?;
        Ok(CopiedSet {
            finished,
            label,
            manifest,
            wal,
            files,
            counters,
            copying_took,
            notes,
            left_out,
            allows_left_out,
        })
    }

    /// Waits until the archive holds everything that a recovery of the set reads.
    async fn wal(
        &self,
        label: &BackupLabel,
        finished: &FinishedBackup,
        cancelled: &CancellationToken,
    ) -> Result<DurableWal> {
        let (first, stop) = (label.first_segment, finished.stop_lsn);
        let (begun, mut waiting) = (Instant::now(), Waiting::begin());
        loop {
            let archive = Arc::clone(&self.archive);
            let proof = blocking(move || {
                let proof = archive.prove_wal(first, stop, Verify::Records);
                proof.map_err(|error| store_failed("read the WAL that the set needs", &error))
            });
            let missing = match proof.await? {
                WalProof::Durable(wal) => return Ok(wal),
                WalProof::Missing(missing) => missing,
            };
            if cancelled.is_cancelled() {
                return Err(copy::stopped());
            }
            if begun.elapsed() >= WAL_PATIENCE {
                let text = format!(
                    "{missing}, which the backup needs, was not archived within {WAL_PATIENCE:?}"
                );
                return Err(CommandError::retry(text).hint(
                    "nothing of this backup was kept; `status` on the master says why archiving does not proceed",
                ));
            }
            if waiting.is_due() {
                tracing::info!(
                    "waiting until {missing} is archived, which the set needs up to {stop}; on a quiet master SELECT \
                     pg_switch_wal() ends the segment"
                );
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

impl Making {
    /// Ends when the server gives the backup up.
    async fn until_closed(&self) -> CommandError {
        match self {
            Making::Online(online) => online.until_closed().await,
            Making::Offline(_) => std::future::pending().await,
        }
    }
}

/// A set that lacks nothing but its seal.
struct CopiedSet {
    finished: FinishedBackup,
    label: BackupLabel,
    manifest: Bytes,
    wal: DurableWal,
    files: CopiedFiles,
    counters: Arc<Counters>,
    copying_took: Duration,
    notes: Vec<String>,
    left_out: Vec<PassedOver>,
    allows_left_out: bool,
}

impl CopiedSet {
    fn seal(&self, set: IncomingSet) -> Result<SealedSet> {
        let expected = manifest::Reader::new(&self.manifest)
            .into_iter()
            .flatten()
            .flatten();
        let mut expected = expected.map(|file| ExpectedFile {
            len: file.size,
            crc32c: file.crc32c(),
            path: file.path,
        });
        let sealed = set.seal(Parts {
            backup_label: &self.finished.backup_label,
            tablespace_map: self.finished.tablespace_map.as_deref(),
            manifest: &self.manifest,
            files: &mut expected,
            wal: &self.wal,
        });
        sealed.map_err(|error| sets::failed("seal the new set", &error))
    }

    /// The closing summary, and what is wrong with the backup although it is complete.
    fn report(
        self,
        config: &StandbyConfig,
        sealed: &SealedSet,
        cleared: &ClearedAway,
        elapsed: Duration,
    ) -> Result<()> {
        let (name, elapsed_s) = (sealed.name(), elapsed.as_secs_f32());
        let read_bytes = Counters::of(&self.counters.read_bytes);
        let (first, last) = (self.wal.first(), self.wal.last());
        output::print(&format!(
            "{} files with {} in {elapsed_s:.1} s, {}/s{}; {} share the blocks of the data directory",
            Counters::of(&self.counters.files),
            HumanBytes(read_bytes),
            HumanBytes(per_second(read_bytes, self.copying_took)),
            rate_limit_text(config.backup_rate),
            HumanBytes(self.files.shared_bytes),
        ))?;
        output::print(&format!(
            "WAL from {} to {}, segments {first} to {last}",
            self.label.start, self.finished.stop_lsn
        ))?;
        let path = config
            .full_backup
            .as_deref()
            .unwrap_or(Path::new(""))
            .display();
        output::print(&output::escaped(&format!("{name} is sealed: {path}")))?;
        let ClearedAway {
            expired,
            purged,
            warnings,
        } = cleared;
        if *expired > 0 || *purged > 0 {
            output::print(&format!(
                "{expired} old sets and {purged} WAL files were removed"
            ))?;
        }
        tracing::debug!(
            "{} files vanished before they were read",
            self.files.vanished
        );
        for note in self.notes.iter().chain(warnings) {
            tracing::warn!("{note}");
        }
        for bad in &self.files.bad_blocks {
            let (path, block) = (&bad.path, bad.block);
            tracing::error!("{name} has a damaged page, as the standby does: {path} block {block}");
        }
        for lost in &self.left_out {
            match self.allows_left_out {
                true => tracing::warn!("not in the backup: {lost}"),
                false => tracing::error!("not in the backup: {lost}"),
            }
        }
        let damaged = self.files.bad_blocks.len();
        if damaged > 0 {
            return Err(CommandError::retry(format!(
                "{name} is complete and has {damaged} damaged pages, as the standby does"
            ))
            .hint(
                "restore the standby from a good set, or repair the relation; older good backup sets stay until there \
                 is a newer good one",
            ));
        }
        match self.left_out.len() {
            0 => Ok(()),
            _ if self.allows_left_out => Ok(()),
            count => Err(CommandError::retry(format!(
                "{name} is sealed and lacks {count} entries of the data directory"
            ))
            .hint(
                "repair or remove them on the standby, or accept a backup without them: walmgr STANDBY.ini backup \
                 --allow-left-out",
            )),
        }
    }
}

/// A timeline that ends within a backup leaves a copy of two histories.
fn other_timeline() -> CommandError {
    CommandError::retry("the standby began to follow another timeline during the backup, or has replayed no checkpoint of it")
        .hint("nothing of this backup was kept; start it again when the new master has made a checkpoint")
}

fn store_failed(doing: &str, error: &StoreError) -> CommandError {
    let kind = match error.kind() {
        Kind::ReceiverDisk => Kind::Retry,
        kind => kind,
    };
    CommandError::new(kind, doing).because(error)
}

/// Does what waits for a disk on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    return_of(tokio::task::spawn_blocking(work).await)
}

fn return_of<T>(done: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    done.map_err(|error| CommandError::retry("wait for a disk").because(error))?
}
