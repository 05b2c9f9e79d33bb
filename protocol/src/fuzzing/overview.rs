//! Samples of the overview, for golden bytes and corpora.
//! Never decodes anything. Invariant: each optional field is once present and once absent.

use crate::message::overview::{Overview, SetReach, SetStanding};
use crate::message::{ClusterIdentity, Message};
use crate::names::{Lsn, SystemId, TimelineId, WalSegmentSize};

/// A request, an overview of an empty archive, and one of a full one.
pub(super) fn sample_messages() -> Vec<Message> {
    vec![
        Message::OverviewRequest,
        Message::Overview(Box::default()),
        Message::Overview(Box::new(full())),
    ]
}

fn full() -> Overview {
    let timeline = TimelineId::FIRST;
    let reach = SetReach {
        timestamp: "2011-09-21 17:00:17 CEST".into(),
        age_ms: 3_600_000,
        timeline,
        start: Lsn(0x2_9000_0028),
        reaches: Lsn(0x2_9A00_2000),
    };
    Overview {
        cluster: Some(ClusterIdentity {
            system_id: SystemId(7_123_456_789_012_345_678),
            postgres_major: 15,
            segment_size: WalSegmentSize::DEFAULT,
        }),
        newest_segment: "000000010000000200000099".parse().ok(),
        newest_age_ms: 61_000,
        partial_segment: "00000001000000020000009A".parse().ok(),
        partial_end: Lsn(0x2_9A00_2000),
        held: Some((timeline, Lsn(0x2_9A00_2000))),
        missing: "000000010000000200000098".parse().ok(),
        damaged_count: 1,
        damaged: "000000010000000200000098.damaged".into(),
        apart_count: 1,
        apart: "7FFFFFF0.history of alpha: there is no history of 2".into(),
        differing_count: 1,
        differing: "000000010000000200000097 of alpha".into(),
        received_age_ms: -20,
        free_bytes: 1 << 40,
        trouble: "read-only file system".into(),
        shipped_by: "alpha (192.0.2.1:4711)".into(),
        masters: vec!["alpha (192.0.2.1:4711)".into()],
        masters_count: 1,
        connections: 3,
        completed_wals: "/srv/walshipping/logs.complete".into(),
        sets: vec![
            SetStanding {
                name: "data.master".into(),
                reach: Ok(reach),
            },
            SetStanding {
                name: "data.master.0".into(),
                reach: Err("it has no LABEL".into()),
            },
        ],
        sets_count: 2,
        clock_ms: 1_316_617_217_000,
    }
}
