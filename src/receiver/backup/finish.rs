//! The end of a backup: what came is examined, its WAL is waited for, the set is sealed.
//! Never seals what does not fit into the archive. Invariant: what fails behind the seal is a
//! warning, because the set is good.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use walmgr_protocol::limits::{BACKUP_WARNINGS_MAX, CONFIG_FILES_MAX};
use walmgr_protocol::message::backup::{Finish, Part, PartName, Sealed};
use walmgr_protocol::message::{Error, ErrorCode};
use walmgr_protocol::names::{RelativePath, SegmentName};

use super::running::Running;
use super::{after, configs, fits};
use crate::config::StandbyConfig;
use crate::pg::manifest;
use crate::receiver::server::Daemon;
use crate::receiver::{WAL_WAIT_MAX, refusal};
use crate::store::sets::{ExpectedFile, Parts, SealedSet};
use crate::store::{DurableWal, StoreError, WalProof};
use crate::wal::segment::Verify;

/// Pause between two looks whether the WAL has come.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Folders beside the sets that the end of a backup touches.
pub struct Places {
    full_backup: Option<PathBuf>,
    config_backup: Option<PathBuf>,
    pub(super) slave_data: Option<PathBuf>,
}

impl Places {
    /// The folders that a standby's settings name.
    pub fn of(config: &StandbyConfig) -> Places {
        Places {
            full_backup: config.full_backup.clone(),
            config_backup: config.config_backup.clone(),
            slave_data: config.slave_data.clone(),
        }
    }
}

/// The parts of a set as they arrived, with what was announced of each.
#[derive(Default)]
pub struct Received(pub Vec<(Part, Vec<u8>)>);

impl Received {
    /// Begins a part, whose bytes follow. Each is bounded by what was announced, kinds do not repeat,
    /// and a manifest is no longer than that of the files that have arrived.
    pub fn begin(&mut self, part: Part, running: &Running) -> Result<(), Error> {
        if self.0.iter().any(|(known, _)| known.name == part.name) {
            let text = format!("{:?} comes twice", part.name);
            return Err(Error::channel(ErrorCode::Misbehaved, text, ""));
        }
        let too_large = |text: String| Err(Error::channel(ErrorCode::TooLarge, text, ""));
        if part.name == PartName::Manifest {
            let most = running.manifest_bytes_max()?;
            if part.size > most {
                return too_large(format!(
                    "the backup_manifest has {} bytes, where that of the files that arrived has {most} \
                     at most",
                    part.size
                ));
            }
        }
        let is_config = |name: &PartName| matches!(name, PartName::Config(_));
        let configs = self.0.iter().filter(|(part, _)| is_config(&part.name));
        if is_config(&part.name) && configs.count() >= CONFIG_FILES_MAX {
            return too_large(format!("more than {CONFIG_FILES_MAX} configuration files"));
        }
        // Exactly what was announced: a buffer that grows by doubling takes twice as much.
        let announced = usize::try_from(part.size).unwrap_or(0);
        self.0.push((part, Vec::with_capacity(announced)));
        Ok(())
    }

    /// Takes the next bytes of the part that was begun last; `false` when there is none.
    pub fn append(&mut self, raw: &[u8]) -> bool {
        match self.0.last_mut() {
            Some((_, content)) => {
                content.extend_from_slice(raw);
                true
            }
            None => false,
        }
    }

    fn check(&self) -> Result<(), Error> {
        let is_whole = |(part, content): &(Part, Vec<u8>)| {
            content.len() as u64 == part.size && crc32fast::hash(content) == part.crc32
        };
        if let Some((part, _)) = self.0.iter().find(|received| !is_whole(received)) {
            let text = format!("{:?} is not what was announced", part.name);
            return Err(Error::channel(ErrorCode::Mismatch, text, ""));
        }
        Ok(())
    }

    /// The part of this name, if it came.
    pub fn find(&self, name: &PartName) -> Option<&[u8]> {
        let found = self.0.iter().find(|(part, _)| part.name == *name);
        found.map(|(_, content)| content.as_slice())
    }

    /// The part of this name, without which there is no backup.
    pub fn need(&self, name: &PartName) -> Result<&[u8], Error> {
        self.find(name).ok_or_else(|| {
            let text = format!("the backup came without its {name:?}");
            Error::channel(ErrorCode::Mismatch, text, "")
        })
    }

    /// Every configuration file.
    pub fn configs(&self) -> impl Iterator<Item = (&RelativePath, &[u8])> {
        self.0
            .iter()
            .filter_map(|(part, content)| match &part.name {
                PartName::Config(path) => Some((path, content.as_slice())),
                _ => None,
            })
    }
}

/// Seals the set, and then rotates and purges.
pub fn finish(
    daemon: &Daemon,
    running: &Running,
    parts: &Received,
    asked: &Finish,
) -> Result<(SealedSet, Sealed), Error> {
    running.begin_waiting()?;
    parts.check()?;
    configs::check(parts)?;
    let label = parts.need(&PartName::Label)?;
    let manifest = parts.need(&PartName::Manifest)?;
    let binding = daemon.archive.binding();
    let binding = binding.ok_or_else(|| refusal::of(&StoreError::NotBound))?;
    let first = fits::check(&binding, running, parts, asked)?;
    let wal = wait_for_wal(daemon, running, first, asked)?;
    let mut facts = Sealed {
        name: String::new(),
        path: String::new(),
        expired: 0,
        purged: 0,
        warnings: Vec::new(),
    };
    let config_backup = daemon.backups.places.config_backup.as_deref();
    let staged = configs::stage(config_backup, parts, &mut facts.warnings)?;
    let set = running.begin_sealing()?;
    let sealed = set.seal(Parts {
        backup_label: label,
        tablespace_map: parts.find(&PartName::TablespaceMap),
        manifest,
        files: &mut expected_files(manifest),
        wal: &wal,
    });
    let full_backup = daemon.backups.places.full_backup.as_deref();
    facts.path = full_backup.map_or_else(String::new, |path| path.display().to_string());
    if let Ok(sealed) = &sealed {
        // Before it is over: a client that comes back looks here next.
        daemon.backups.note_sealed(running.token(), sealed, &facts);
    }
    running.end_sealing();
    let sealed = sealed.map_err(|error| refusal::of_set(&error))?;
    tracing::info!(
        "{} is sealed: the backup of {}",
        sealed.name(),
        running.holder()
    );
    if let Some(staged) = staged {
        staged.swap_in(&mut facts.warnings);
    }
    if let Err(error) = daemon.archive.begin_run(first) {
        tracing::warn!("whether {first} was set apart is not known: {error}");
    }
    after::clear_away(daemon, &mut facts);
    for warning in &facts.warnings {
        tracing::warn!("{warning}");
    }
    facts.warnings.truncate(usize::from(BACKUP_WARNINGS_MAX));
    Ok((sealed, facts))
}

fn expected_files(manifest: &[u8]) -> impl Iterator<Item = ExpectedFile> {
    let files = manifest::Reader::new(manifest)
        .into_iter()
        .flatten()
        .flatten();
    files.map(|file| ExpectedFile {
        len: file.size,
        crc32c: file.crc32c(),
        path: file.path,
    })
}

/// Waits until the archive holds everything that a recovery of the set reads.
fn wait_for_wal(
    daemon: &Daemon,
    running: &Running,
    first: SegmentName,
    asked: &Finish,
) -> Result<DurableWal, Error> {
    let patience = Duration::from_secs(u64::from(asked.wal_wait_s)).min(WAL_WAIT_MAX);
    let until = Instant::now() + patience;
    loop {
        let proof = daemon.archive.prove_wal(first, asked.stop, Verify::Records);
        match proof.map_err(|error| refusal::of(&error))? {
            WalProof::Durable(wal) => return Ok(wal),
            WalProof::Missing(segment) if Instant::now() >= until => {
                let text = format!(
                    "{segment}, which the backup needs, was not archived within {patience:?}"
                );
                return Err(Error::channel(
                    ErrorCode::TimedOut,
                    text,
                    "look in PostgreSQL's log why archiving does not get on",
                ));
            }
            WalProof::Missing(_) => {}
        }
        if running.is_over() {
            return Err(super::unknown());
        }
        if *daemon.stopping.borrow() {
            let text = "the receiver is stopping";
            return Err(Error::channel(
                ErrorCode::ShuttingDown,
                text,
                "start the backup again",
            ));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}
