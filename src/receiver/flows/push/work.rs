//! An upload: one file, on a worker of its own.
//! Never talks to the socket. Invariant: what it wrote of a file that was not sealed is removed
//! when it ends, however it ends.

use std::time::Instant;

use tokio::sync::mpsc;
use walmgr_protocol::compress::{UnpackedBlock, Unpacker};
use walmgr_protocol::limits::BLOCKS_IN_FLIGHT;
use walmgr_protocol::message::{Data, Digest, Error, ErrorCode, Have, Offer};
use walmgr_protocol::names::WalFileName;
use walmgr_protocol::session::push::{PushHeld, PushSealed};

use crate::audit::{AuditEvent, AuditOutcome};
use crate::receiver::cluster::ServedCluster;
use crate::receiver::peer::{AuditedPeer, PeerKey};
use crate::receiver::refusal;
use crate::receiver::reports::UploadReport;
use crate::receiver::shares::SharedPlaces;
use crate::receiver::worker::{AwaitedWork, FromWorker, Worker};
use crate::store::partial::Finishing;
use crate::store::{self, Archive, Incoming, StoreError, StoredUnderName};
use crate::wal::segment::Verify;

/// What the connection asks of an upload.
pub(crate) enum UploadJob {
    /// Unpack and append this block.
    Write(Data),
    /// Check, and make durable.
    Seal(Digest),
}

/// Looks an offer up and, unless that settles it, waits for its blocks.
///
/// Dropping the returned value throws away what was not sealed.
pub(crate) fn start(
    served: ServedCluster,
    key: &PeerKey,
    (offer, by, peer, may_fail_over): (Offer, String, AuditedPeer, bool),
    say: impl Fn(FromWorker<UploadReport>) -> bool + Send + Sync + 'static,
) -> Worker<UploadJob, UploadReport> {
    let place = match served.cluster.uploads.take_for(key, offer.size) {
        Ok(place) => place,
        Err(none) => return Worker::refused(SharedPlaces::Uploads.all_taken(none), say),
    };
    // The job that is being done has left the queue.
    let workforce = served.store.workforce.clone();
    Worker::start(
        &workforce,
        AwaitedWork::Upload,
        BLOCKS_IN_FLIGHT - 1,
        say,
        move |inbox, say| {
            let ended = attempt(&served, (&offer, &by, may_fail_over), inbox, &**say);
            drop(place);
            audit(&served, &offer, &peer, &ended);
            let last = ended.inspect_err(|fault| {
                // Here, because the connection that would hear of it may be gone.
                if !served.store.check_health() {
                    tracing::warn!("{} was not stored: {}", offer.name, fault.message);
                }
            })?;
            if let Some(last) = last {
                say(last);
            }
            Ok(())
        },
    )
}

/// Returns the last report, or `None` when the connection let go of the upload.
fn attempt(
    served: &ServedCluster,
    (offer, by, may_fail_over): (&Offer, &str, bool),
    mut jobs: mpsc::Receiver<UploadJob>,
    report: &dyn Fn(UploadReport) -> bool,
) -> Result<Option<UploadReport>, Error> {
    let (begun, meter) = (Instant::now(), &served.cluster.meter);
    let of = |error: StoreError| refusal::of(&error);
    let verify = verify(served, offer);
    let archive = &served.store.archive;
    match look_up(archive, offer, verify).map_err(of)? {
        None => return Ok(Some(UploadReport::LookedUp(PushHeld::Unknown))),
        Some(StoredUnderName::Identical(proof)) => {
            tracing::debug!("{} is stored already", offer.name);
            settle_partial(served, offer);
            declare(served, offer, by, may_fail_over).map_err(of)?;
            return Ok(Some(UploadReport::LookedUp(PushHeld::Same(proof))));
        }
        Some(StoredUnderName::Different { len, crc32 }) => {
            // Another one is taken, and kept beside; the alarm comes when it is whole.
            let gives_way = matches!(offer.name, WalFileName::Partial(_));
            if let Some(offered) = offer.crc32
                && !gives_way
                && !archive.is_unproven(offer.name).map_err(of)?
                && (archive.keeps_differing(offer.name, offer.size, offered)).map_err(of)?
            {
                alarm(offer, offered, (len, crc32));
                let stored = Digest { size: len, crc32 };
                return Ok(Some(UploadReport::LookedUp(PushHeld::Other(stored))));
            }
        }
        Some(StoredUnderName::Absent) => {}
    }
    let source = OfferedFile {
        offer,
        by,
        verify,
        may_fail_over,
    };
    let mut target = UploadTarget::choose(served, &source).map_err(of)?;
    if !report(UploadReport::LookedUp(PushHeld::Prefix(target.prefix()))) {
        return Ok(None);
    }
    let mut unpacker = Unpacker::default();
    loop {
        match jobs.blocking_recv() {
            None => return Ok(None),
            Some(UploadJob::Write(data)) => {
                let block = unpacker
                    .unpack_block(&data.bytes, data.raw_bytes, data.zstd)
                    .map_err(|error| Error::channel(ErrorCode::Malformed, error.to_string(), ""))?;
                meter.received(block.raw().len(), data.bytes.len());
                if data.offset == 0 {
                    target.restart(served, &source).map_err(of)?;
                }
                target.write(&block).map_err(of)?;
            }
            Some(UploadJob::Seal(digest)) => {
                let sealed = seal(served, target, offer, digest).map_err(of)?;
                settle_partial(served, offer);
                if let UploadReport::Sealed(PushSealed::Durable(_)) = sealed {
                    meter.stored(begun.elapsed());
                    meter.wal_is_durable();
                    declare(served, offer, by, may_fail_over).map_err(of)?;
                }
                return Ok(Some(sealed));
            }
        }
    }
}

/// What is stored under the offered name; `None` if something is, and the offer has no checksum to compare it with.
fn look_up(
    archive: &Archive,
    offer: &Offer,
    verify: Verify,
) -> Result<Option<StoredUnderName>, StoreError> {
    match offer.crc32 {
        Some(crc32) => (archive.lookup(&offer.name, offer.size, crc32, verify)).map(Some),
        None if archive.is_held(&offer.name)? => Ok(None),
        None => Ok(Some(StoredUnderName::Absent)),
    }
}

/// Tells of a file that was offered in vain, of one that readers pass over, and of a timeline that begins.
fn audit(
    served: &ServedCluster,
    offer: &Offer,
    by: &AuditedPeer,
    ended: &Result<Option<UploadReport>, Error>,
) {
    let ServedCluster { cluster, store } = served;
    let file = offer.name.to_string();
    let refused = |why: &str| cluster.rewrites.refused(&cluster.audit, by, &file, why);
    match ended {
        Ok(Some(
            UploadReport::LookedUp(PushHeld::Other(_)) | UploadReport::Sealed(PushSealed::Other(_)),
        )) => refused("another file of this name is stored"),
        Ok(Some(UploadReport::Sealed(PushSealed::Durable(_))))
            if store.archive.is_noted(offer.name) =>
        {
            let event = AuditEvent::SetApart { file: &file };
            (cluster.audit).record(&by.who, &AuditOutcome::Done, &event);
        }
        Ok(Some(UploadReport::Sealed(PushSealed::Durable(_))))
            if matches!(offer.name, WalFileName::History(_)) =>
        {
            let event = AuditEvent::TimelineBrought { file: &file };
            (cluster.audit).record(&by.who, &AuditOutcome::Done, &event);
        }
        Err(error) if is_rewrite(error.code) => refused(&error.message),
        _ => {}
    }
}

/// Whether a failure means that something else is there.
const fn is_rewrite(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Diverged | ErrorCode::ForeignFile | ErrorCode::ForeignCluster
    )
}

/// What was stored is stored, whether its beginning can be cleared away or not; the next start tries again.
fn settle_partial(served: &ServedCluster, offer: &Offer) {
    match (served.store.archive.settle_partial(offer.name), offer.name) {
        (Ok(true), WalFileName::Segment(segment)) => served.cluster.writer.doubt(segment),
        (Ok(_), _) => {}
        (Err(error), _) => tracing::warn!("cannot remove the partial {}: {error}", offer.name),
    }
}

/// Before its sender hears that it is stored, so that one who does not hear it offers the history again.
fn declare(
    served: &ServedCluster,
    offer: &Offer,
    by: &str,
    may_fail_over: bool,
) -> Result<(), StoreError> {
    match offer.name {
        WalFileName::History(timeline) if may_fail_over => {
            served.store.archive.declare_failover(timeline, by)
        }
        _ => Ok(()),
    }
}

/// What is offered, by whom, and how closely it is looked at.
struct OfferedFile<'a> {
    offer: &'a Offer,
    by: &'a str,
    verify: Verify,
    may_fail_over: bool,
}

impl OfferedFile<'_> {
    fn fresh(&self, served: &ServedCluster) -> Result<Incoming, StoreError> {
        let Offer { name, size, .. } = *self.offer;
        let begun = served.store.archive.begin(name, size, self.verify)?;
        Ok(begun.brought_by(self.by).may_fail_over(self.may_fail_over))
    }
}

/// Where an upload goes.
enum UploadTarget {
    /// Into a file of its own.
    Fresh(Incoming),
    /// Behind what was shipped of it record by record.
    InPlace(Finishing),
}

impl UploadTarget {
    fn choose(
        served: &ServedCluster,
        source: &OfferedFile<'_>,
    ) -> Result<UploadTarget, StoreError> {
        let (archive, offer) = (&served.store.archive, source.offer);
        match archive.held_prefix(offer.name, source.verify) {
            Ok(Some(held)) => return Ok(UploadTarget::InPlace(held.brought_by(source.by))),
            Ok(None) => {}
            // The whole file is offered: nothing depends on the part that was shipped before.
            Err(error) => {
                tracing::warn!(
                    "the shipped records of {} cannot be used: {error}",
                    offer.name
                )
            }
        }
        source.fresh(served).map(UploadTarget::Fresh)
    }

    fn prefix(&self) -> Have {
        let (prefix_bytes, prefix_crc32) = match self {
            UploadTarget::Fresh(_) => (0, 0),
            UploadTarget::InPlace(held) => held.prefix(),
        };
        Have {
            prefix_bytes,
            prefix_crc32,
        }
    }

    /// The sender found that what is held is not its file's beginning.
    fn restart(
        &mut self,
        served: &ServedCluster,
        source: &OfferedFile<'_>,
    ) -> Result<(), StoreError> {
        if let UploadTarget::InPlace(held) = self {
            let (bytes, _) = held.prefix();
            tracing::warn!(
                "{} differs from its {bytes} shipped bytes; the whole file is received",
                source.offer.name
            );
            // Where something else was shipped and acknowledged, only records that hold win.
            let strict = OfferedFile {
                verify: Verify::Records,
                ..*source
            };
            *self = UploadTarget::Fresh(strict.fresh(served)?);
        }
        Ok(())
    }

    fn write(&mut self, block: &UnpackedBlock<'_>) -> Result<(), StoreError> {
        match self {
            UploadTarget::Fresh(incoming) => incoming.write_block(block),
            UploadTarget::InPlace(held) => held.write_block(block),
        }
    }

    fn seal(self, digest: Digest) -> Result<store::FileSealed, StoreError> {
        match self {
            UploadTarget::Fresh(incoming) => incoming.seal(digest.size, digest.crc32),
            UploadTarget::InPlace(held) => held.seal(digest.size, digest.crc32),
        }
    }
}

fn seal(
    served: &ServedCluster,
    target: UploadTarget,
    offer: &Offer,
    digest: Digest,
) -> Result<UploadReport, StoreError> {
    Ok(UploadReport::Sealed(match target.seal(digest)? {
        store::FileSealed::Stored(proof) => {
            tracing::info!("{} stored, {} bytes", offer.name, digest.size);
            served.store.note_stored(offer.name);
            PushSealed::Durable(proof)
        }
        store::FileSealed::Conflict { len, crc32 } => {
            alarm(offer, digest.crc32, (len, crc32));
            PushSealed::Other(Digest { size: len, crc32 })
        }
    }))
}

fn alarm(offer: &Offer, offered: u32, (len, crc32): (u64, u32)) {
    tracing::error!(
        "CONFLICT: {} was offered with {} bytes and CRC-32 {offered:08X}, but is stored with {len} bytes and \
         CRC-32 {crc32:08X}; the stored file was kept",
        offer.name,
        offer.size
    );
}

/// What the master asks for, but no less than the standby's settings demand.
fn verify(served: &ServedCluster, offer: &Offer) -> Verify {
    use walmgr_protocol::message::WireVerify as Asked;
    let least = served.cluster.settings.borrow().verify_min;
    match (offer.verify, least) {
        (Asked::Records, _) | (_, Verify::Records) => Verify::Records,
        (Asked::Headers, _) | (_, Verify::Headers) => Verify::Headers,
        (Asked::Off, Verify::Off) => Verify::Off,
    }
}
