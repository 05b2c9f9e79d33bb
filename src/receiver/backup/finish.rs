//! The end of a backup: its WAL is waited for, the set is sealed, old sets and old WAL go.
//! Never removes anything before the new set is listed. Invariant: what fails behind the seal is a
//! warning, because the set is good.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use walmgr_protocol::limits::BACKUP_WARNINGS_MAX;
use walmgr_protocol::message::backup::{Finish, Part, PartName, Sealed};
use walmgr_protocol::message::{Error, ErrorCode};
use walmgr_protocol::names::{BackupName, RelativePath, SegmentName, TimelineId};

use super::running::Running;
use crate::config::StandbyConfig;
use crate::files;
use crate::pg::backup_label::BackupLabel;
use crate::pg::data_directory::DataDirectory;
use crate::pg::manifest;
use crate::receiver::server::Daemon;
use crate::receiver::settings::Rotation;
use crate::receiver::{WAL_WAIT_MAX, refusal};
use crate::store::sets::{BackupSets, ExpectedFile, Lease, Parts, SealedSet};
use crate::store::{DurableWal, WalProof};
use crate::wal::segment::Verify;

/// Pause between two looks whether the WAL has come.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Mode of a configuration file that was not there before: they may hold passwords.
const CONFIG_MODE: u32 = 0o600;

/// Folders beside the sets that the end of a backup touches.
pub struct Places {
    full_backup: Option<PathBuf>,
    config_backup: Option<PathBuf>,
    slave_data: Option<PathBuf>,
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
    fn check(&self) -> Result<(), Error> {
        let is_whole = |(part, content): &(Part, Vec<u8>)| {
            content.len() as u64 == part.size && crc32fast::hash(content) == part.crc32
        };
        match self.0.iter().find(|received| !is_whole(received)) {
            None => Ok(()),
            Some((part, _)) => {
                let text = format!("{:?} is not what was announced", part.name);
                Err(Error::channel(ErrorCode::Mismatch, text, ""))
            }
        }
    }

    fn find(&self, name: &PartName) -> Option<&[u8]> {
        let found = self.0.iter().rev().find(|(part, _)| part.name == *name);
        found.map(|(_, content)| content.as_slice())
    }

    fn need(&self, name: &PartName) -> Result<&[u8], Error> {
        self.find(name).ok_or_else(|| {
            let text = format!("the backup came without its {name:?}");
            Error::channel(ErrorCode::Mismatch, text, "")
        })
    }

    fn configs(&self) -> impl Iterator<Item = (&RelativePath, &[u8])> {
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
    let label = parts.need(&PartName::Label)?;
    let manifest = parts.need(&PartName::Manifest)?;
    let first = check_label(running.timeline(), label, asked)?;
    check_manifest(manifest)?;
    let wal = wait_for_wal(daemon, running, first, asked)?;
    let mut facts = Sealed {
        name: String::new(),
        path: String::new(),
        expired: 0,
        purged: 0,
        warnings: Vec::new(),
    };
    keep_configs(&daemon.backups.places, parts, &mut facts.warnings)?;
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
    clear_away(daemon, &mut facts);
    for warning in &facts.warnings {
        tracing::warn!("{warning}");
    }
    facts.warnings.truncate(usize::from(BACKUP_WARNINGS_MAX));
    Ok((sealed, facts))
}

/// The first segment that the set needs, if its label says what the client says.
fn check_label(began: TimelineId, label: &[u8], asked: &Finish) -> Result<SegmentName, Error> {
    let refuse = |text: String| Err(Error::channel(ErrorCode::Mismatch, text, ""));
    if asked.timeline != began {
        return refuse(format!(
            "the backup began on timeline {} and ended on timeline {}: the server was promoted \
             meanwhile",
            began.number(),
            asked.timeline.number()
        ));
    }
    let label = match BackupLabel::parse(label) {
        Ok(label) => label,
        Err(error) => return refuse(format!("its backup_label is not one: {error}")),
    };
    if label.start != asked.start || label.first_segment.timeline() != asked.timeline {
        return refuse(format!(
            "its backup_label begins at {} in {}, not at {} on timeline {}",
            label.start,
            label.first_segment,
            asked.start,
            asked.timeline.number()
        ));
    }
    Ok(label.first_segment)
}

/// Reads all of it once, so that a second reading can count on it.
fn check_manifest(manifest: &[u8]) -> Result<(), Error> {
    let refuse = |error: String| {
        let text = format!("the backup_manifest is not one: {error}");
        Error::channel(ErrorCode::Mismatch, text, "")
    };
    let mut reader = manifest::Reader::new(manifest).map_err(|error| refuse(error.to_string()))?;
    match reader.find_map(Result::err) {
        Some(error) => Err(refuse(error.to_string())),
        None => Ok(()),
    }
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

/// Replaces the copies of the master's configuration files.
fn keep_configs(
    places: &Places,
    parts: &Received,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    let mut configs = parts.configs().peekable();
    if configs.peek().is_none() {
        return Ok(());
    }
    let Some(folder) = &places.config_backup else {
        warnings.push(
            "the master's configuration files lie outside its data directory and are in no \
             backup: set `config_backup` on the standby"
                .to_owned(),
        );
        return Ok(());
    };
    let failed = |path: &Path, error: std::io::Error| {
        let text = format!("write {}: {error}", path.display());
        Error::channel(
            ErrorCode::DiskFailed,
            text,
            "look at `config_backup` on the standby",
        )
    };
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    for (name, content) in configs {
        // A name of one component cannot lead out of the folder.
        if name.parent().is_some() {
            let text = format!("{name} is not the name of a configuration file");
            return Err(Error::channel(ErrorCode::Misbehaved, text, ""));
        }
        let path = folder.join(std::ffi::OsStr::new(&name.to_string()));
        files::replace(&path, content, CONFIG_MODE).map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

/// What `keep_backups` and the sets that are left make superfluous. A failure here is a warning.
fn clear_away(daemon: &Daemon, facts: &mut Sealed) {
    let rotation = daemon.settings.borrow().rotation.clone();
    let Ok(sets) = daemon.backups.sets() else {
        return;
    };
    if rotation.keep_backups == 0 {
        // All of them, and nobody knows which sets were moved elsewhere and need which WAL.
        return;
    }
    let lease = match sets.lease("the rotation behind a backup") {
        Ok(lease) => lease,
        Err(error) => {
            return facts
                .warnings
                .push(format!("no old set is removed: {error}"));
        }
    };
    expire(sets, &lease, &rotation, facts);
    purge(sets, &lease, &daemon.backups.places, facts);
}

fn expire(sets: &BackupSets, lease: &Lease, rotation: &Rotation, facts: &mut Sealed) {
    let mut archive = |set: &Path| match &rotation.archive_command {
        Some(command) => archive_set(command, set),
        None => Ok(()),
    };
    match sets.expire(lease, rotation.keep_backups, &mut archive) {
        Ok(expiry) => {
            facts.expired = u32::try_from(expiry.removed.len()).unwrap_or(u32::MAX);
            let in_use = |name: &BackupName| format!("{name} is being read and was kept");
            facts.warnings.extend(expiry.in_use.iter().map(in_use));
            facts.warnings.extend(expiry.refused.map(|(name, why)| {
                format!("{name} was kept, because archive_command failed: {why}")
            }));
        }
        Err(error) => {
            let text = format!("old sets were not removed: {error}");
            facts.warnings.push(text);
        }
    }
}

/// Runs `archive_command` with `$BACKUPDIR`.
fn archive_set(command: &str, set: &Path) -> Result<(), String> {
    tracing::info!("archive_command runs for {}", set.display());
    let output = Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .env("BACKUPDIR", set)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("start it: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.trim_end().lines().last().unwrap_or_default();
    Err(format!("{}: {last}", output.status))
}

fn purge(sets: &BackupSets, lease: &Lease, places: &Places, facts: &mut Sealed) {
    let purged = match needed_by_the_standby(places) {
        Ok(needed) => sets
            .purge_wal(lease, &needed)
            .map_err(|error| error.to_string()),
        Err(why) => Err(why),
    };
    match purged {
        Ok(purged) => facts.purged = u32::try_from(purged.files).unwrap_or(u32::MAX),
        Err(why) => facts
            .warnings
            .push(format!("old WAL was not removed: {why}")),
    }
}

/// The first segments that the standby's own server may still read: from its last restartpoint,
/// or from the beginning of the set that was restored there and has not been started.
fn needed_by_the_standby(places: &Places) -> Result<Vec<SegmentName>, String> {
    let Some(slave_data) = places.slave_data.as_deref().filter(|path| path.exists()) else {
        return Ok(Vec::new());
    };
    let unknown = |error: String| {
        let path = slave_data.display();
        format!("nobody can say which of it the server in {path} needs: {error}")
    };
    let mut needed = Vec::new();
    match std::fs::read(slave_data.join("backup_label")) {
        Ok(label) => {
            let label = BackupLabel::parse(&label).map_err(|error| unknown(error.to_string()))?;
            needed.push(label.first_segment);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(unknown(error.to_string())),
    }
    if slave_data.join("PG_VERSION").exists() {
        let control = DataDirectory::open(slave_data).and_then(|data| data.control());
        let control = control.map_err(|error| unknown(error.to_string()))?;
        let segment = SegmentName::containing(control.timeline, control.redo, control.segment_size);
        needed.push(segment);
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use walmgr_protocol::names::Lsn;

    const LABEL: &[u8] = b"START WAL LOCATION: 0/300028 (file 000000010000000000000003)\n\
        CHECKPOINT LOCATION: 0/300060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-01-02 03:04:05 UTC\nLABEL: FullBackup\nSTART TIMELINE: 1\n";

    fn asked(start: u64, timeline: u32) -> Finish {
        Finish {
            start: Lsn(start),
            stop: Lsn(0x30_0100),
            timeline: TimelineId::new(timeline).unwrap(),
            wal_wait_s: 1,
        }
    }

    #[test]
    fn fault_71_a_backup_across_a_promotion_is_refused() {
        let first = TimelineId::new(1).unwrap();
        let segment = check_label(first, LABEL, &asked(0x30_0028, 1)).unwrap();
        assert_eq!(segment.to_string(), "000000010000000000000003");
        let refused = |began, label: &[u8], asked: Finish| {
            let began = TimelineId::new(began).unwrap();
            check_label(began, label, &asked).unwrap_err().message
        };
        let promoted = refused(1, LABEL, asked(0x30_0028, 2));
        assert!(promoted.contains("the server was promoted"), "{promoted}");
        let other = refused(2, LABEL, asked(0x30_0028, 2));
        assert!(other.contains("begins at 0/300028"), "{other}");
        assert!(refused(1, LABEL, asked(0x40_0028, 1)).contains("not at 0/400028"));
        assert!(refused(1, b"LABEL: x", asked(0x30_0028, 1)).contains("is not one"));
    }

    #[test]
    fn what_the_standbys_own_server_needs_is_kept_or_nothing_goes() {
        let home = tempfile::TempDir::new().unwrap();
        let places = |data: &Path| Places {
            full_backup: None,
            config_backup: None,
            slave_data: Some(data.to_path_buf()),
        };
        let absent = places(&home.path().join("absent"));
        assert_eq!(needed_by_the_standby(&absent), Ok(Vec::new()));
        let here = places(home.path());
        std::fs::write(home.path().join("backup_label"), LABEL).unwrap();
        let needed = needed_by_the_standby(&here).unwrap();
        assert_eq!(needed, ["000000010000000000000003".parse().unwrap()]);
        std::fs::write(home.path().join("PG_VERSION"), "15\n").unwrap();
        assert!(
            needed_by_the_standby(&here).is_err(),
            "there is no pg_control"
        );
    }
}
