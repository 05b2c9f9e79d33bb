//! The partial flow from the master's side: whole records from `pg_wal` to the receiver, in order.
//! Never sends a record that it has not verified, nor one behind the bound of the caller.
//! Invariant: bytes follow only what both sides were seen to have in common.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use walmgr_protocol::compress::Packer;
use walmgr_protocol::limits::BLOCKS_IN_FLIGHT;
use walmgr_protocol::message::partial::{Append, At, Begun, Open, PartialBegin};
use walmgr_protocol::message::{Error, ErrorCode, Message, Overview};
use walmgr_protocol::names::{Lsn, SegmentName};
use walmgr_protocol::session::Misuse;
use walmgr_protocol::session::partial::{PartialAnswer, PartialSender};

use crate::config::MasterConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::master::cluster::ClusterFacts;
use crate::master::histories;
use crate::master::push::Blocks;
use crate::master::rpo::RpoWatch;
use crate::master::tail::{Records, TailEnd, WalFiles};
use crate::transport::connect::{ReceiverTarget, refused};
use crate::transport::wire::{Wire, WireFault};
use crate::wal::scan::Scanner;

/// The channel of the stream; the history file of the timeline goes over the first.
const CHANNEL: u16 = 2;

/// How often the stream is begun anew because a segment was archived under it.
const BEGINNINGS_MAX: u32 = 5;

/// How far the master's WAL reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MasterReach {
    /// Nothing behind this may leave the master.
    pub bound: Lsn,
    /// About where its WAL ends, to know which segment is the current one.
    pub near: Lsn,
    /// Up to where the server says that its disk has it: what is no record before that is damage.
    pub flushed: Option<Lsn>,
}

/// How far beyond the flushed WAL a pass may ship written WAL while commits wait, in bytes: commits are told only when
/// a pass ends. The segment's end is a bound, too: what a power cut takes from the master then lies in the segment that
/// the standby compares first.
const AHEAD_OF_FLUSH_BYTES: u64 = 1 << 20;

impl MasterReach {
    /// What the server says that it has flushed, and nothing behind it.
    pub(crate) const fn flushed(end: Lsn) -> MasterReach {
        MasterReach {
            bound: end,
            near: end,
            flushed: Some(end),
        }
    }

    /// With what is written behind that: it goes to the standby's disk while the master's takes it.
    pub(crate) fn written_behind(flushed: Lsn, files: &WalFiles) -> MasterReach {
        let segment = files.start(files.containing(flushed));
        let segment_end = segment.0.saturating_add(files.segment_bytes());
        MasterReach {
            bound: Lsn(flushed
                .0
                .saturating_add(AHEAD_OF_FLUSH_BYTES)
                .min(segment_end)),
            ..MasterReach::flushed(flushed)
        }
    }
}

/// One connection over which records are shipped.
pub(crate) struct Shipper {
    slave: String,
    wire: Wire,
    session: PartialSender,
    files: WalFiles,
    records: Records,
    open: Option<ShippedSegment>,
    /// The scanner as it left the segment before the named one.
    carried: Option<(SegmentName, Scanner)>,
    sent: Lsn,
    /// Where this connection's first segment begins.
    from: Lsn,
    answer_within: Duration,
    block_bytes: u64,
    packer: Packer,
    /// What is missing before the first segment of this connection.
    gap: Option<String>,
    note: Option<String>,
    /// The newest segment that the standby had of the timeline when the stream began.
    newest_held: Option<SegmentName>,
    /// Whom to tell what the standby holds.
    rpo: Option<Arc<RpoWatch>>,
    /// Up to where the receiver had acknowledged all when a pass ended last.
    acknowledged: Lsn,
    /// What has to be asked before it is known that nothing is missing in front of this connection's WAL.
    unproven: Option<Unproven>,
}

/// A beginning of the stream behind WAL that this connection has not shipped.
struct Unproven {
    /// What the receiver says of its archive counts from then on.
    since: Instant,
    /// Where WAL is held again behind a gap; what the receiver calls whole has to reach so far.
    behind_gap: Option<Lsn>,
}

/// The segment that is being appended to.
struct ShippedSegment {
    segment: SegmentName,
    start: Lsn,
    scanner: Scanner,
}

/// What one look at an answer led to.
enum ReceiverSaid {
    Compare(At),
    Begun(Begun),
    Other,
}

/// Why a pass did not come to its end.
enum Broken {
    /// The stream was refused, and has to begin again.
    Refused(Error),
    /// The connection is of no use any more.
    Failed(CommandError),
}

impl From<CommandError> for Broken {
    fn from(error: CommandError) -> Self {
        Broken::Failed(error)
    }
}

impl From<Misuse> for Broken {
    fn from(misuse: Misuse) -> Self {
        Broken::Failed(misuse.into())
    }
}

impl From<WireFault> for Broken {
    fn from(fault: WireFault) -> Self {
        Broken::Failed(fault.into())
    }
}

impl Shipper {
    /// Connects and takes the stream of this timeline.
    pub(crate) async fn connect(
        config: &MasterConfig,
        facts: &ClusterFacts,
        files: WalFiles,
        reach: MasterReach,
    ) -> Result<Shipper> {
        let slave = config.slave.to_string();
        let mut connection = ReceiverTarget::from_config(config)?
            .connect(facts.cluster, files.timeline())
            .await?;
        let blocks = Blocks {
            block_bytes: config.block_size.min(connection.welcome.block_bytes_max),
            compression: config.network_level(),
        };
        let (folder, timeline) = (files.folder(), files.timeline());
        let wire = &mut connection.wire;
        if !histories::push_chain(wire, folder, timeline, blocks, &slave).await? {
            return Err(CommandError::retry(format!(
                "{} has no history of timeline {timeline}",
                folder.display()
            )));
        }
        let first = files.containing(reach.near);
        let (session, _) = PartialSender::begin(PartialBegin {
            timeline: files.timeline(),
        });
        let mut shipper = Shipper {
            slave,
            wire: connection.wire,
            session,
            records: Records::from(&files, first),
            sent: files.start(first),
            from: Lsn(u64::MAX),
            files,
            open: None,
            carried: None,
            answer_within: config.push_timeout,
            block_bytes: u64::from(blocks.block_bytes),
            packer: Packer::new(config.network_level()),
            gap: None,
            note: None,
            newest_held: None,
            rpo: None,
            acknowledged: Lsn(0),
            unproven: None,
        };
        match shipper.begin(reach).await {
            Ok(()) => {
                shipper.note_later_segments(first);
                Ok(shipper)
            }
            Err(broken) => Err(shipper.failure(broken)),
        }
    }

    /// Tells from now on what the standby holds.
    pub(super) fn telling(mut self, rpo: Arc<RpoWatch>) -> Shipper {
        self.rpo = Some(rpo);
        self
    }

    /// The standby holds every whole record up to there.
    fn tell(&self, held: Lsn) {
        if let Some(rpo) = &self.rpo {
            rpo.holds(self.files.timeline(), held, self.gap.is_some());
        }
    }

    /// The files it ships.
    pub(crate) const fn files(&self) -> &WalFiles {
        &self.files
    }

    /// Where the WAL begins that this connection has seen to. The connection knows nothing of earlier WAL.
    pub(crate) const fn from(&self) -> Lsn {
        self.from
    }

    /// Up to where the standby holds every record, as far as this connection has seen to it.
    pub(crate) const fn durable(&self) -> Lsn {
        self.sent
    }

    /// Whether nobody has said yet that the standby lacks nothing of the WAL before what is shipped here.
    pub(super) const fn is_unproven(&self) -> bool {
        self.unproven.is_some()
    }

    /// What the receiver answered to a question that was asked then: where its newest set's WAL is there without a
    /// gap, what this connection has shipped and ships continues it.
    pub(super) fn overview(&mut self, overview: &Overview, asked: Instant) {
        let Some(unproven) = &self.unproven else {
            return;
        };
        let held = overview.held.filter(|_| overview.missing.is_none());
        let (Some((timeline, held)), true) = (held, asked >= unproven.since) else {
            return;
        };
        let is_reached = unproven.behind_gap.is_none_or(|start| held >= start);
        if timeline == self.files.timeline() && is_reached {
            self.unproven = None;
        }
    }

    /// Something that a person should know and that stops nobody.
    pub(crate) fn note(&self) -> Option<&str> {
        self.note.as_deref().or(self.gap.as_deref())
    }

    /// Ships every whole record up to the bound and returns when all of them are durable.
    pub(crate) async fn pass(&mut self, reach: MasterReach) -> Result<()> {
        let mut broken = self.try_pass(reach).await;
        for _ in 0..BEGINNINGS_MAX {
            match broken {
                Err(Broken::Refused(ref refusal)) if refusal.code == ErrorCode::Finished => {
                    tracing::debug!("{}", refusal.message);
                    broken = match self.begin(reach).await {
                        Ok(()) => self.try_pass(reach).await,
                        Err(broken) => Err(broken),
                    };
                }
                other => return other.map_err(|broken| self.failure(broken)),
            }
        }
        broken.map_err(|broken| self.failure(broken))
    }

    /// Lets time pass without letting the receiver think that this side is gone.
    pub(crate) async fn rest(&mut self, pause: Duration) -> Result<()> {
        let until = tokio::time::Instant::now() + pause;
        loop {
            let Ok(frame) = tokio::time::timeout_at(until, self.wire.next()).await else {
                return Ok(());
            };
            match frame?.message {
                Message::Error(error) => return Err(self.failure(Broken::Refused(error))),
                other => {
                    let answer = self.session.received(other).map_err(WireFault::from)?;
                    if let PartialAnswer::Refused(error) = answer {
                        return Err(self.failure(Broken::Refused(error)));
                    }
                }
            }
        }
    }

    /// Ends the connection in good order.
    pub(crate) async fn close(self) {
        self.wire.goodbye().await;
    }

    async fn begin(&mut self, reach: MasterReach) -> Result<(), Broken> {
        let timeline = self.files.timeline();
        let (session, message) = PartialSender::begin(PartialBegin { timeline });
        self.session = session;
        self.open = None;
        self.carried = None;
        self.gap = None;
        self.note = None;
        self.wire.send(CHANNEL, &message).await?;
        let begun = loop {
            if let ReceiverSaid::Begun(begun) = self.hear().await? {
                break begun;
            }
        };
        let first = self.choose_first(&begun, reach);
        self.newest_held = begun.newest_finished.max(begun.newest_partial);
        self.records = Records::from(&self.files, first);
        self.sent = self.files.start(first);
        // What was proven stays so where the stream goes on within what was acknowledged.
        if self.from == Lsn(u64::MAX) || self.unproven.is_some() || self.sent > self.acknowledged {
            self.unproven = Some(Unproven {
                since: Instant::now(),
                behind_gap: self.gap.is_some().then_some(self.sent),
            });
        }
        self.from = self.from.min(self.sent);
        Ok(())
    }

    /// Says so when the standby has segments that this master's WAL, which was just looked at, does
    /// not reach.
    fn note_later_segments(&mut self, current: SegmentName) {
        if let Some(newest) = self.newest_held.filter(|newest| *newest > current) {
            self.note = Some(format!(
                "{} holds {newest}, but this master's WAL ends in {current}: the master lost the \
                tail of its WAL, or is an old copy",
                self.slave
            ));
        }
    }

    /// The first segment that is not known to be whole on the standby.
    fn choose_first(&mut self, begun: &Begun, reach: MasterReach) -> SegmentName {
        let files = &self.files;
        let current = files.containing(reach.near);
        let wanted = match (begun.newest_finished, begun.oldest_partial) {
            (Some(finished), _) => files.next(finished),
            (None, partial) => partial,
        };
        let Some(wanted) = wanted else {
            // The standby has nothing of this timeline: what the server keeps for the archiver.
            let mut first = current;
            while let Some(before) = files.previous(first) {
                if !(files.exists(before) && files.waits_for_archiver(before)) {
                    break;
                }
                first = before;
            }
            return first;
        };
        if wanted > current {
            // Either the current segment was just begun, or this master is behind the archive.
            return current;
        }
        let mut first = wanted;
        while first < current && !files.exists(first) {
            match files.next(first) {
                Some(next) => first = next,
                None => break,
            }
        }
        if first > wanted {
            self.gap = Some(format!(
                "{wanted} is neither on the standby nor in pg_wal: until it is archived, there is \
                a gap before {first}"
            ));
        }
        first
    }

    async fn try_pass(&mut self, reach: MasterReach) -> Result<(), Broken> {
        loop {
            // A segment at a time, so that what is found is shipped while it is in memory.
            let size = self.files.segment_bytes();
            let enough = Lsn((self.sent.0 - self.sent.0 % size).saturating_add(size));
            let stop = self.records.look_ahead(reach.bound, enough).at(
                Kind::Retry,
                "read WAL in",
                self.files.folder(),
            )?;
            let end = self.records.end();
            if stop != TailEnd::Enough {
                self.ship(end).await?;
                self.judge(stop, reach.flushed);
                break;
            }
            // How far the last segment goes is not known yet.
            self.ship(Lsn(end.0 - end.0 % size)).await?;
        }
        while self.session.in_flight() > 0 {
            self.hear().await?;
        }
        self.tell(self.sent);
        self.acknowledged = self.sent;
        Ok(())
    }

    /// Says so when WAL that the server calls written cannot be read.
    fn judge(&mut self, stop: TailEnd, flushed: Option<Lsn>) {
        let Some(flushed) = flushed else { return };
        match stop {
            TailEnd::Invalid(lsn, why) if lsn < flushed => {
                self.note = Some(format!("the master's WAL is damaged at {lsn}: {why}"));
            }
            TailEnd::NoFile(segment) if self.files.start(segment) < flushed => {
                self.note = Some(format!("{segment} is not in pg_wal"));
            }
            _ => {}
        }
    }

    async fn ship(&mut self, end: Lsn) -> Result<(), Broken> {
        while self.sent < end {
            let segment = self.files.containing(self.sent);
            let start = self.files.start(segment);
            let segment_end = Lsn(start.0 + self.files.segment_bytes());
            let to = end.min(segment_end);
            let data_end = match to == segment_end {
                true => self.records.data_end(segment_end),
                false => to,
            };
            let is_open = (self.open.as_ref()).is_some_and(|open| open.segment == segment);
            if is_open || self.open_segment(segment, data_end).await? {
                self.append(data_end).await?;
            }
            self.sent = to;
            if self.session.in_flight() == 0 {
                let open = self.open.as_ref().filter(|_| data_end == to);
                self.tell(open.map_or(to, |open| open.scanner.valid_end()));
            }
            if to == segment_end {
                self.leave(segment, data_end);
            }
        }
        Ok(())
    }

    /// The open segment is complete; its scanner goes on in the next one.
    fn leave(&mut self, segment: SegmentName, data_end: Lsn) {
        self.records.forget(self.sent);
        let Some(open) = self.open.take() else { return };
        let whole = data_end == self.sent;
        self.carried = match self.files.next(segment) {
            // Behind a switch the look ahead has seen to the link already.
            Some(next) if whole => Some((next, open.scanner)),
            _ => None,
        };
    }

    /// Compares what both sides have of a segment. Returns whether something can be appended:
    /// not where the receiver holds all of it, or more of it than this master.
    async fn open_segment(&mut self, segment: SegmentName, data_end: Lsn) -> Result<bool, Broken> {
        let start = self.files.start(segment);
        let bytes = data_end.0 - start.0;
        let open = Open {
            segment,
            bytes,
            crc32: self.checksum(segment, bytes)?,
        };
        self.open = None;
        let message = self.session.open(open)?;
        self.wire.send(CHANNEL, &message).await?;
        let at = loop {
            if let ReceiverSaid::Compare(at) = self.hear().await? {
                break at;
            }
        };
        let same = self.checksum(segment, at.common_bytes)? == at.common_crc32;
        let rewrite = self.session.compared(same)?;
        let mut scanner = match self.carried.take() {
            Some((next, scanner)) if next == segment => scanner,
            _ => self.files.scanner(start),
        };
        if let Some(rewrite) = rewrite {
            tracing::warn!(
                "{segment} on {} differs from this master's; it is sent again",
                self.slave
            );
            self.wire.send(CHANNEL, &rewrite).await?;
        } else if at.held_bytes > at.common_bytes {
            let segment_end = Lsn(start.0 + self.files.segment_bytes());
            // All of a segment holds nothing more than this: behind a switch, or in the beginning
            // of a record whose end a crash took, for which nobody waits.
            if at.common_bytes == bytes && !self.records.reach_end_of(segment_end) {
                self.note = Some(format!(
                    "{} holds {segment} beyond {data_end}, where this master's WAL ends: the \
                    master lost the tail of its WAL, or is an old copy",
                    self.slave
                ));
            }
            return Ok(false);
        } else {
            let fed = self.files.read_through(segment, at.held_bytes, |piece| {
                let mut rest = piece;
                // Whatever it is, the receiver has the same.
                while matches!(
                    scanner.advance(&mut rest),
                    crate::wal::scan::ScanStep::Record(_)
                ) {}
            });
            fed.at(Kind::Retry, "read WAL in", self.files.folder())?;
        }
        self.tell(scanner.valid_end());
        self.open = Some(ShippedSegment {
            segment,
            start,
            scanner,
        });
        Ok(true)
    }

    fn checksum(&self, segment: SegmentName, bytes: u64) -> Result<u32> {
        let mut crc = crc32fast::Hasher::new();
        self.files
            .read_through(segment, bytes, |piece| crc.update(piece))
            .at(Kind::Retry, "read WAL in", self.files.folder())?;
        Ok(crc.finalize())
    }

    async fn append(&mut self, data_end: Lsn) -> Result<(), Broken> {
        loop {
            let Some(offset) = self.session.next_offset() else {
                return Err(CommandError::retry("the stream takes nothing").into());
            };
            while self.session.in_flight() >= BLOCKS_IN_FLIGHT {
                self.hear().await?;
            }
            let Some(open) = &mut self.open else {
                return Ok(());
            };
            let at = Lsn(open.start.0 + offset);
            if at >= data_end {
                return Ok(());
            }
            let most = (data_end.0 - at.0).min(self.block_bytes);
            let files = &self.files;
            let block = self
                .packer
                .pack(Vec::new(), offset, |buffer| {
                    let headroom = buffer.len();
                    files.read(at, most, buffer)?;
                    verify(&mut open.scanner, &buffer[headroom..], most)
                })
                .at(Kind::Retry, "read WAL in", files.folder())?;
            let append = Append {
                offset,
                end: open.scanner.valid_end(),
                raw_bytes: block.raw_bytes,
                zstd: block.zstd,
                bytes: Bytes::copy_from_slice(block.payload()),
            };
            let message = self.session.append(append)?;
            self.note = None;
            self.wire.send(CHANNEL, &message).await?;
        }
    }

    /// The next thing the receiver says about the stream.
    async fn hear(&mut self) -> Result<ReceiverSaid, Broken> {
        let frame = match self.wire.next_within(self.answer_within).await {
            Ok(frame) => frame,
            Err(WireFault::Silent) => {
                let (slave, within) = (&self.slave, self.answer_within);
                return Err(CommandError::retry(format!(
                    "{slave} did not answer within push_timeout = {within:?}"
                ))
                .hint("look at the receiver's log on the standby")
                .into());
            }
            Err(fault) => return Err(fault.into()),
        };
        match self
            .session
            .received(frame.message)
            .map_err(WireFault::from)?
        {
            PartialAnswer::Begun(begun) => Ok(ReceiverSaid::Begun(begun)),
            PartialAnswer::Compare(at) => Ok(ReceiverSaid::Compare(at)),
            PartialAnswer::Durable(end) => {
                self.tell(end);
                Ok(ReceiverSaid::Other)
            }
            PartialAnswer::Refused(error) => Err(Broken::Refused(error)),
        }
    }

    fn failure(&self, broken: Broken) -> CommandError {
        match broken {
            Broken::Failed(error) => error,
            Broken::Refused(error) => refused(&self.slave, "refused", error),
        }
    }
}

/// The bytes that are about to be sent are records, as they were when they were looked at first:
/// the server may have recycled the file in between.
fn verify(scanner: &mut Scanner, bytes: &[u8], expected: u64) -> std::io::Result<()> {
    use crate::wal::scan::ScanStep;
    let mut rest = bytes;
    loop {
        match scanner.advance(&mut rest) {
            ScanStep::Record(_) => {}
            ScanStep::NeedMore if bytes.len() as u64 == expected => return Ok(()),
            ScanStep::NeedMore => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            ScanStep::EndOfWal(lsn) | ScanStep::Invalid { lsn, .. } => {
                return Err(std::io::Error::other(format!(
                    "the WAL at {lsn} changed while it was read"
                )));
            }
        }
    }
}
