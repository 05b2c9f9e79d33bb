//! The push flow from the receiver's side: one file, on a blocking thread of its own.
//! Never talks to the socket. Invariant: what it wrote of a file that was not sealed is removed
//! when it ends, however it ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::sync::mpsc;
use walmgr_protocol::compress::Unpacker;
use walmgr_protocol::limits::BLOCKS_IN_FLIGHT;
use walmgr_protocol::message::{Data, Digest, Error, ErrorCode, Have, Offer};
use walmgr_protocol::session::push::{Held, Sealed};

use crate::receiver::server::Daemon;
use crate::receiver::{UPLOADS_MAX, refusal};
use crate::store::partial::Finishing;
use crate::store::{self, Durable, Incoming, StoreError};

/// What the connection asks of an upload.
pub enum Job {
    /// Unpack and append this block.
    Write(Data),
    /// Check, and make durable.
    Seal(Digest),
}

/// Which upload speaks: its channel, and how many there were on the channel with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The channel.
    pub channel: u16,
    /// Counted from 1.
    pub upload: u64,
}

/// What an upload tells its connection.
pub enum Report {
    /// The answer to the offer.
    LookedUp(Held<Durable>),
    /// The answer to [`Job::Seal`].
    Sealed(Sealed<Durable>),
    /// It gave up; the jobs that follow are dropped.
    Failed(Error),
}

/// The connection's end of an upload under way.
pub struct Upload {
    jobs: mpsc::Sender<Job>,
}

impl Upload {
    /// Looks an offer up and, unless that settles it, waits for its blocks.
    ///
    /// Dropping the returned value throws away what was not sealed.
    pub fn start(
        daemon: Arc<Daemon>,
        slot: Slot,
        offer: Offer,
        reports: mpsc::Sender<(Slot, Report)>,
    ) -> Upload {
        // The one that is being written has left the channel.
        let (jobs, inbox) = mpsc::channel(BLOCKS_IN_FLIGHT - 1);
        let Some(place) = daemon.begin_upload() else {
            let busy = Error::channel(
                ErrorCode::Busy,
                format!("all {UPLOADS_MAX} uploads the receiver takes at once are under way"),
                "it will be tried again",
            );
            tokio::spawn(async move { reports.send((slot, Report::Failed(busy))).await });
            return Upload { jobs };
        };
        tokio::task::spawn_blocking(move || {
            let report = |report| reports.blocking_send((slot, report)).is_ok();
            let last =
                contained(|| attempt(&daemon, &offer, inbox, &report)).unwrap_or_else(|fault| {
                    // Here, because the connection that would hear of it may be gone.
                    if !daemon.check_health() {
                        tracing::warn!("{} was not stored: {}", offer.name, fault.message);
                    }
                    Some(Report::Failed(fault))
                });
            if let Some(last) = last {
                report(last);
            }
            drop(place);
        });
        Upload { jobs }
    }

    /// Hands over a job, waiting while the disk is behind. An upload that failed takes none; its
    /// report is on the way.
    pub async fn give(&self, job: Job) {
        let _ = self.jobs.send(job).await;
    }
}

/// Makes a panic a failure like any other: without a report the connection, and the client behind
/// it, would wait for an answer until their deadlines.
fn contained(
    work: impl FnOnce() -> Result<Option<Report>, Error>,
) -> Result<Option<Report>, Error> {
    // What was on its way is a temporary, which the unwinding has removed.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::channel(
            ErrorCode::Internal,
            "the receiver failed on this upload",
            "look at its log on the standby",
        ))
    })
}

/// Returns the last report, or `None` when the connection let go of the upload.
fn attempt(
    daemon: &Daemon,
    offer: &Offer,
    mut jobs: mpsc::Receiver<Job>,
    report: &dyn Fn(Report) -> bool,
) -> Result<Option<Report>, Error> {
    let of = |error: StoreError| refusal::of(&error);
    match daemon
        .archive
        .lookup(&offer.name, offer.size, offer.crc32, verify(offer))
        .map_err(of)?
    {
        store::Held::Identical(proof) => {
            tracing::debug!("{} is stored already", offer.name);
            daemon.archive.settle_partial(offer.name).map_err(of)?;
            return Ok(Some(Report::LookedUp(Held::Same(proof))));
        }
        store::Held::Different { len, crc32 } => {
            tracing::error!(
                "CONFLICT: {} was offered with {} bytes and CRC-32 {:08X}, but is stored with \
                 {len} bytes and CRC-32 {crc32:08X}; the stored file was kept",
                offer.name,
                offer.size,
                offer.crc32
            );
            let stored = Digest { size: len, crc32 };
            return Ok(Some(Report::LookedUp(Held::Other(stored))));
        }
        store::Held::Absent => {}
    }
    let mut target = Target::choose(daemon, offer).map_err(of)?;
    if !report(Report::LookedUp(Held::Prefix(target.prefix()))) {
        return Ok(None);
    }
    let mut unpacker = Unpacker::default();
    loop {
        match jobs.blocking_recv() {
            None => return Ok(None),
            Some(Job::Write(data)) => {
                let raw = unpacker
                    .unpack(&data.bytes, data.raw_bytes, data.zstd)
                    .map_err(|error| Error::channel(ErrorCode::Malformed, error.to_string(), ""))?;
                if data.offset == 0 {
                    target.restart(daemon, offer).map_err(of)?;
                }
                target.write(raw).map_err(of)?;
            }
            Some(Job::Seal(digest)) => {
                let sealed = seal(daemon, target, offer, digest).map_err(of)?;
                if let Err(error) = daemon.archive.settle_partial(offer.name) {
                    // What was stored is stored; the next start clears away what is left.
                    tracing::warn!("the partial {} stays: {error}", offer.name);
                }
                return Ok(Some(sealed));
            }
        }
    }
}

/// Where an upload goes.
enum Target {
    /// Into a file of its own.
    Fresh(Incoming),
    /// Behind what was shipped of it record by record.
    InPlace(Finishing),
}

impl Target {
    fn choose(daemon: &Daemon, offer: &Offer) -> Result<Target, StoreError> {
        let archive = &daemon.archive;
        match archive.held_prefix(offer.name, verify(offer)) {
            Ok(Some(held)) => return Ok(Target::InPlace(held)),
            Ok(None) => {}
            // The whole file is offered: nothing depends on the part that was shipped before.
            Err(error) => {
                tracing::warn!("what was shipped of {} is of no use: {error}", offer.name)
            }
        }
        let fresh = archive.begin(offer.name, offer.size, verify(offer))?;
        Ok(Target::Fresh(fresh))
    }

    fn prefix(&self) -> Have {
        let (prefix_bytes, prefix_crc32) = match self {
            Target::Fresh(_) => (0, 0),
            Target::InPlace(held) => held.prefix(),
        };
        Have {
            prefix_bytes,
            prefix_crc32,
        }
    }

    /// The sender found that what is held is not its file's beginning.
    fn restart(&mut self, daemon: &Daemon, offer: &Offer) -> Result<(), StoreError> {
        if let Target::InPlace(held) = self {
            let (bytes, _) = held.prefix();
            tracing::warn!(
                "{} differs from the {bytes} bytes that were shipped of it record by record; it \
                 is taken anew",
                offer.name
            );
            // Where something else was shipped and acknowledged, only records that hold win.
            let verify = crate::wal::segment::Verify::Records;
            *self = Target::Fresh(daemon.archive.begin(offer.name, offer.size, verify)?);
        }
        Ok(())
    }

    fn write(&mut self, raw: &[u8]) -> Result<(), StoreError> {
        match self {
            Target::Fresh(incoming) => incoming.write(raw),
            Target::InPlace(held) => held.write(raw),
        }
    }

    fn seal(self, digest: Digest) -> Result<store::Sealed, StoreError> {
        match self {
            Target::Fresh(incoming) => incoming.seal(digest.size, digest.crc32),
            Target::InPlace(held) => held.seal(digest.size, digest.crc32),
        }
    }
}

fn seal(
    daemon: &Daemon,
    target: Target,
    offer: &Offer,
    digest: Digest,
) -> Result<Report, StoreError> {
    Ok(Report::Sealed(match target.seal(digest)? {
        store::Sealed::Stored(proof) => {
            tracing::info!("{} stored, {} bytes", offer.name, digest.size);
            daemon.note_stored(offer.name);
            Sealed::Durable(proof)
        }
        store::Sealed::Conflict { len, crc32 } => {
            tracing::error!(
                "CONFLICT: another {} was stored while this one was on its way; it was kept",
                offer.name
            );
            Sealed::Other(Digest { size: len, crc32 })
        }
    }))
}

fn verify(offer: &Offer) -> crate::wal::segment::Verify {
    use crate::wal::segment::Verify;
    match offer.verify {
        walmgr_protocol::message::Verify::Off => Verify::Off,
        walmgr_protocol::message::Verify::Headers => Verify::Headers,
        walmgr_protocol::message::Verify::Records => Verify::Records,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_that_panics_is_reported_as_an_internal_failure() {
        let fault = contained(|| panic!("a bug")).err().expect("no answer");
        assert_eq!(fault.code, ErrorCode::Internal);
        assert!(matches!(contained(|| Ok(None)), Ok(None)));
    }
}
