//! What the model of an archive is made of.
//! Never concludes anything. Invariant: what it holds was said by an archive at one time.

use std::collections::{BTreeMap, BTreeSet};

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName, WalSegmentSize};

use crate::store::segment_runs::SegmentRuns;
use crate::wal::history::History;

/// Why a file has a note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ApartKind {
    /// A segment without anything before it that it could belong to.
    Ahead,
    /// A segment behind the end of its timeline.
    Behind,
    /// A segment of a timeline that does not count.
    Timeline,
    /// A history that does not count.
    History,
}

/// How far a segment in progress goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentProgress {
    /// The end of its last whole record.
    pub end: Lsn,
    /// Whether replay goes on in the next segment.
    pub is_whole: bool,
    /// Whether more of it was acknowledged than holds.
    pub is_damaged: bool,
}

/// What is known of an archive.
#[derive(Debug, Clone)]
pub struct LineageFacts {
    /// `wal_segment_size`.
    pub size: WalSegmentSize,
    /// Finished segments.
    pub segments: SegmentRuns,
    /// Segments of which only a damaged copy is there.
    pub damaged: BTreeSet<SegmentName>,
    /// Segments in progress; `None` for one that nobody has read, which counts as whole.
    pub partials: BTreeMap<SegmentName, Option<SegmentProgress>>,
    /// Histories that could be read.
    pub histories: BTreeMap<TimelineId, History>,
    /// Why the others could not.
    pub unreadable: BTreeMap<TimelineId, String>,
    /// What has a note.
    pub notes: BTreeMap<WalFileName, ApartKind>,
    /// Whose histories were joined by what keys brought, and not by this host or a person.
    pub claimed: BTreeSet<TimelineId>,
    /// Where a timeline is left although a record of it begins there, which it has no end of: up to where its segments
    /// go that hold nothing else behind that place ([`Lineage::learn_unended`]).
    pub unended: BTreeMap<(TimelineId, Lsn), Lsn>,
}

/// A history that would be needed cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the history of timeline {timeline} cannot be read: {why}")]
pub struct Unreadable {
    /// Whose.
    pub timeline: TimelineId,
    /// Why.
    pub why: String,
}

/// The model of an archive.
#[derive(Debug, Clone)]
pub struct Lineage {
    pub(super) facts: LineageFacts,
    /// The timelines that count.
    pub(super) counting: BTreeSet<TimelineId>,
    /// Every timeline that has a file of any kind.
    pub(super) taken: BTreeSet<TimelineId>,
}
