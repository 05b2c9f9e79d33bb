//! What the workers of a connection say, and the one way that it takes.
//! Never decides what comes of it. Invariant: every report names the worker that speaks, and the channel it works
//! for.

use walmgr_protocol::compress::Block;
use walmgr_protocol::message::Error;
use walmgr_protocol::message::fetch::NotFound;
use walmgr_protocol::message::partial::{At, Begun};
use walmgr_protocol::message::trial::Measured;
use walmgr_protocol::session::push::{PushHeld, PushSealed};

use crate::receiver::cluster::running::BackupReport;
use crate::receiver::worker::{FromWorker, WorkerReport};
use crate::store::{Durable, DurableRecords};

/// A report on its way to the flow that its worker works for.
pub(crate) enum FlowReport {
    /// Of an upload.
    Push(FromWorker<UploadReport>),
    /// Of the stream of records.
    Partial(FromWorker<RecordReport>),
    /// Of a connection's part in a backup.
    Backup(FromWorker<BackupReport>),
    /// Of a fetch.
    Fetch(FromWorker<FetchReport>),
    /// Of a trial.
    Trial(FromWorker<TrialReport>),
}

/// What an upload tells its connection.
pub(crate) enum UploadReport {
    /// The answer to the offer.
    LookedUp(PushHeld<Durable>),
    /// The file was checked and is durable, or another file has its name.
    Sealed(PushSealed<Durable>),
    /// It gave up; the jobs that follow are dropped.
    Failed(Error),
}

impl WorkerReport for UploadReport {
    fn failed(error: Error) -> Self {
        UploadReport::Failed(error)
    }
}

/// What the stream of records tells its connection.
pub(crate) enum RecordReport {
    /// It was granted.
    Begun(Begun),
    /// A segment is open.
    Opened(At),
    /// Everything appended so far is durable.
    Durable(DurableRecords),
    /// It failed; jobs up to the next `Begin` or `Open` are dropped.
    Failed(Error),
    /// It failed, and its thread has ended.
    Over(Error),
}

impl WorkerReport for RecordReport {
    fn failed(error: Error) -> Self {
        RecordReport::Over(error)
    }
}

/// What a fetch tells its connection.
pub(crate) enum FetchReport {
    /// It is there, and its blocks follow.
    Found,
    /// It is not there.
    NotFound(NotFound),
    /// The next block.
    Block(Block),
    /// That was all of it, and this is its CRC-32.
    Ended(u32),
    /// It cannot be read, or not to its end.
    Failed(Error),
}

impl WorkerReport for FetchReport {
    fn failed(error: Error) -> Self {
        FetchReport::Failed(error)
    }
}

/// What a trial tells its connection.
pub(crate) enum TrialReport {
    /// There is room.
    Begun,
    /// All of it arrived.
    Measured(Measured),
    /// It gave up; the jobs that follow are dropped.
    Failed(Error),
}

impl WorkerReport for TrialReport {
    fn failed(error: Error) -> Self {
        TrialReport::Failed(error)
    }
}
