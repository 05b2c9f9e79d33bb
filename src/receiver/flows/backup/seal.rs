//! The end of a backup: what came is examined, its WAL is waited for, the set is sealed.
//! Never seals what does not fit into the archive. Invariant: what fails behind the seal is a
//! warning, because the set is good.

use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use walmgr_protocol::limits::BACKUP_WARNINGS_MAX;
use walmgr_protocol::message::backup::{BackupSealed, Finish, PartName};
use walmgr_protocol::message::{Error, ErrorCode};
use walmgr_protocol::names::SegmentName;

use super::received::Received;
use super::{after, configs, fits};
use crate::audit::{AuditEvent, AuditOutcome};
use crate::pg::manifest;
use crate::receiver::cluster::ServedCluster;
use crate::receiver::cluster::running::{PartNumber, Running, unknown};
use crate::receiver::peer::AuditedPeer;
use crate::receiver::{WAL_WAIT_MAX, refusal};
use crate::store::sets::{ExpectedFile, Parts, SealedSet};
use crate::store::{DurableWal, StoreError, WalProof};
use crate::wal::segment::Verify;

/// Pause between two looks whether somebody has copied the WAL in by hand; that which is pushed says so.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Seals the set, as the connection with this part asks, and then rotates and purges.
pub(crate) fn seal(
    (served, by): (&ServedCluster, &AuditedPeer),
    running: &Running,
    part: PartNumber,
    parts: &Received,
    asked: &Finish,
) -> Result<(SealedSet, BackupSealed), Error> {
    let ServedCluster { cluster, store } = served;
    running.begin_waiting(part)?;
    parts.check()?;
    configs::check(parts)?;
    let label = parts.need(&PartName::Label)?;
    let manifest = parts.need(&PartName::Manifest)?;
    let binding = store.archive.binding();
    let binding = binding.ok_or_else(|| refusal::of(&StoreError::NotBound))?;
    let first = fits::check(&binding, running, parts, asked)?;
    let wal = wait_for_wal(served, running, first, asked)?;
    let mut facts = BackupSealed {
        name: String::new(),
        path: String::new(),
        stored_bytes: 0,
        expired: 0,
        purged: 0,
        warnings: Vec::new(),
    };
    let config_backup = cluster.backup_folders.config_backup.as_deref();
    let staged = configs::stage(config_backup, parts, &mut facts.warnings)?;
    let set = running.begin_sealing()?;
    facts.stored_bytes = set.stored_bytes();
    let sealed = set.seal(Parts {
        backup_label: label,
        tablespace_map: parts.find(&PartName::TablespaceMap),
        manifest,
        files: &mut expected_files(manifest),
        wal: &wal,
    });
    let full_backup = cluster.full_backup.as_deref();
    facts.path = full_backup.map_or_else(String::new, |path| path.display().to_string());
    if let Ok(sealed) = &sealed {
        // Before it is over: a client that comes back looks here next.
        store.backups.note_sealed(running.token(), sealed, &facts);
    }
    running.end_sealing();
    let sealed = sealed.map_err(|error| refusal::of_set(&error))?;
    tracing::info!(
        "{} is sealed: the backup of {}",
        sealed.name(),
        running.holder()
    );
    let event = AuditEvent::SetSealed {
        set: &sealed.name().to_string(),
        first_segment: &first.to_string(),
        stop: &asked.stop.to_string(),
    };
    (cluster.audit).record(&by.who, &AuditOutcome::Done, &event);
    // Whoever lists the sets next sees it; the others follow in a while.
    if let Some(sets) = store.backups.to_read()
        && let Err(error) = sets.measure_newest()
    {
        tracing::warn!("cannot measure what {} takes: {error}", sealed.name());
    }
    if let Some(staged) = staged {
        staged.swap_in(&mut facts.warnings);
    }
    if let Err(error) = store.archive.begin_run(first) {
        tracing::warn!("cannot tell whether {first} was set apart: {error}");
    }
    after::clear_away((served, by), &mut facts);
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
    served: &ServedCluster,
    running: &Running,
    first: SegmentName,
    asked: &Finish,
) -> Result<DurableWal, Error> {
    let patience = Duration::from_secs(u64::from(asked.wal_wait_s)).min(WAL_WAIT_MAX);
    let until = Instant::now() + patience;
    let ServedCluster { cluster, store } = served;
    loop {
        let stored = store.stored();
        let proof = (served.store.archive).prove_wal(first, asked.stop, Verify::Records);
        match proof.map_err(|error| refusal::of(&error))? {
            WalProof::Durable(wal) => return Ok(wal),
            WalProof::Missing(segment) if Instant::now() >= until => {
                let text = format!(
                    "{segment}, which the backup needs, was not archived within {patience:?}"
                );
                return Err(Error::channel(
                    ErrorCode::TimedOut,
                    text,
                    "see in PostgreSQL's log why archiving does not proceed",
                ));
            }
            WalProof::Missing(_) => {}
        }
        if running.is_over() {
            return Err(unknown());
        }
        if store.retired.is_cancelled() {
            return Err(store.refusal());
        }
        if cluster.stopping.is_cancelled() {
            let text = "the receiver is stopping";
            return Err(Error::channel(
                ErrorCode::ShuttingDown,
                text,
                "start the backup again",
            ));
        }
        let pause = LOOK_AGAIN.min(until.saturating_duration_since(Instant::now()));
        Handle::current().block_on(async {
            tokio::select! {
                // First: a runtime that ends has no clock any more.
                biased;
                () = cluster.stopping.cancelled() => {}
                () = store.retired.cancelled() => {}
                () = running.over().cancelled() => {}
                () = stored => {}
                () = tokio::time::sleep(pause) => {}
            }
        });
    }
}
