//! The blocks of a trial, on a worker of its own: unpacked, checked, and dropped or synced to the archive's disk.
//! Never talks to the socket. Invariant: nothing of it stays.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use walmgr_protocol::compress::Unpacker;
use walmgr_protocol::limits::{BLOCKS_IN_FLIGHT, TRIAL_BYTES_MAX};
use walmgr_protocol::message::trial::{Measured, TrialBegin};
use walmgr_protocol::message::{Data, Digest, Error, ErrorCode};

use crate::receiver::cluster::ServedCluster;
use crate::receiver::peer::PeerKey;
use crate::receiver::refusal;
use crate::receiver::reports::TrialReport;
use crate::receiver::shares::SharedPlaces;
use crate::receiver::worker::{AwaitedWork, FromWorker, Worker};
use crate::store::StoreError;

/// What the connection asks of it.
pub(crate) enum TrialJob {
    /// Unpack this block, and drop it.
    Take(Data),
    /// That was all of it.
    Measure,
}

/// The connection's end of it.
pub(crate) type TrialWorker = Worker<TrialJob, TrialReport>;

/// Looks for room and waits for blocks. It takes the place of an upload, of which a peer has so many. Dropping the
/// returned value ends it.
pub(crate) fn start(
    served: ServedCluster,
    key: &PeerKey,
    begin: TrialBegin,
    say: impl Fn(FromWorker<TrialReport>) -> bool + Send + Sync + 'static,
) -> TrialWorker {
    let room = if begin.synced { begin.size } else { 0 };
    let place = match served.cluster.uploads.take_for(key, room) {
        Ok(place) => place,
        Err(none) => return Worker::refused(SharedPlaces::Uploads.all_taken(none), say),
    };
    let workforce = served.store.workforce.clone();
    let queue = BLOCKS_IN_FLIGHT - 1;
    Worker::start(
        &workforce,
        AwaitedWork::Trial,
        queue,
        say,
        move |jobs, say| {
            let _place = place;
            if let Some(measured) = work(&served, begin, jobs, &**say)? {
                say(TrialReport::Measured(measured));
            }
            Ok(())
        },
    )
}

/// Returns nothing when the connection let go of it.
fn work(
    served: &ServedCluster,
    begin: TrialBegin,
    mut jobs: mpsc::Receiver<TrialJob>,
    say: &dyn Fn(TrialReport) -> bool,
) -> Result<Option<Measured>, Error> {
    if begin.size > TRIAL_BYTES_MAX {
        let text = format!(
            "a trial of {} bytes was asked for, at most {TRIAL_BYTES_MAX} are measured",
            begin.size
        );
        return Err(Error::channel(ErrorCode::TooLarge, text, ""));
    }
    let of = |error: StoreError| refusal::of(&error);
    let archive = &served.store.archive;
    let mut file = match begin.synced {
        true => Some(archive.begin_trial(begin.size).map_err(of)?),
        false => None,
    };
    if !say(TrialReport::Begun) {
        return Ok(None);
    }
    let (mut unpacker, mut crc) = (Unpacker::default(), crc32fast::Hasher::new());
    let (mut size, mut worked) = (0, Duration::ZERO);
    loop {
        match jobs.blocking_recv() {
            None => return Ok(None),
            Some(TrialJob::Take(data)) => {
                let begun = Instant::now();
                let raw = unpacker
                    .unpack(&data.bytes, data.raw_bytes, data.zstd)
                    .map_err(|error| Error::channel(ErrorCode::Malformed, error.to_string(), ""))?;
                crc.update(raw);
                size += raw.len() as u64;
                if let Some(file) = &mut file {
                    file.write(raw).map_err(of)?;
                }
                worked += begun.elapsed();
            }
            Some(TrialJob::Measure) => {
                let begun = Instant::now();
                if let Some(file) = file.take() {
                    file.sync().map_err(of)?;
                }
                let crc32 = crc.clone().finalize();
                return Ok(Some(Measured {
                    digest: Digest { size, crc32 },
                    worked_us: micros(worked),
                    synced_us: micros(begun.elapsed()),
                }));
            }
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
