//! Samples of a fetch's messages, for golden bytes and corpora.
//! Never decodes anything. Invariant: every choice a message has is made once.

use crate::message::fetch::{
    Backups, Fetch, GetFile, GetPages, GetSet, ListBackups, ListedSet, MadeOn, NotFound,
    SetDescription, SetDetails, SetLabel, Tablespace, WantedPages,
};
use crate::message::reach::{
    EndCause, RecoveryEnd, SetQuestion, TargetBound, TargetRange, TargetVerdict, WantedTarget,
    WantedTimeline,
};
use crate::message::{Digest, Message};
use crate::names::{Lsn, TimelineId};

/// One message of every kind of a fetch, with every choice made once.
pub(super) fn sample_messages() -> Vec<Message> {
    let mut messages = vec![
        Fetch::ListBackups(ListBackups {
            after: "data.master.3".into(),
            limit: 64,
        }),
        Fetch::GetSet(set(1 << 33)),
        Fetch::End(Digest {
            size: 16 << 20,
            crc32: 0xCAFE_F00D,
        }),
        Fetch::NotFound(NotFound::NothingLater),
        Fetch::NotFound(NotFound::OnlyDamaged(
            "000000010000000000000001.damaged".into(),
        )),
        Fetch::NotFound(NotFound::NoSuchSet),
    ];
    messages.extend(questions().map(Fetch::DescribeSet));
    messages.push(Fetch::GetOutline(set(512)));
    messages.extend(pages().into_iter().flatten().map(Fetch::GetPages));
    messages.extend(file(3).map(Fetch::GetFile));
    messages.extend(file(0).map(|file| Fetch::NotFound(NotFound::Gap(file.name))));
    messages.extend(label().map(|label| {
        let known = SetDetails {
            size_bytes: Some(3 << 30),
            own_bytes: Some(1 << 30),
            duration_s: Some(75),
            stop: Some(Lsn(0x2_9200_0100)),
            made_on: Some(MadeOn::Standby),
        };
        let newest = ListedSet {
            name: "data.master".into(),
            label: Ok(label),
            details: known,
        };
        let unreadable = ListedSet {
            name: "data.master.0".into(),
            label: Err("it has no LABEL".into()),
            details: known,
        };
        Fetch::Backups(Backups {
            sets: vec![newest, unreadable],
            more: true,
        })
    }));
    messages.push(Fetch::Backups(Backups {
        sets: [Some(MadeOn::Master), None]
            .map(|made_on| ListedSet {
                name: "data.master.1".into(),
                label: Err(String::new()),
                details: SetDetails {
                    made_on,
                    ..SetDetails::default()
                },
            })
            .to_vec(),
        more: false,
    }));
    for (recovery_end, verdict) in judged() {
        messages.extend(label().map(|label| {
            Fetch::Set(SetDescription {
                name: "data.master".into(),
                label,
                stream_bytes: 3 << 30,
                bytes: 2 << 30,
                recovery_end,
                demands: [150, 8, 10, 0, 64],
                verdict,
                tablespaces: vec![Tablespace {
                    oid: 16_384,
                    bytes: 1 << 30,
                    path: b"/srv/fast".to_vec(),
                }],
            })
        }));
    }
    messages.into_iter().map(Message::Fetch).collect()
}

/// Each kind of target, and each timeline.
fn questions() -> impl Iterator<Item = SetQuestion> {
    let at = Lsn(0x2_9A00_0028);
    let (up_to, before) = (TargetBound::Inclusive, TargetBound::Exclusive);
    let asked = [
        (WantedTimeline::Newest, None),
        (WantedTimeline::Own, Some(WantedTarget::Time(-1, up_to))),
        (WantedTimeline::Newest, Some(WantedTarget::Lsn(at, up_to))),
        (
            WantedTimeline::Newest,
            Some(WantedTarget::Xid(4_711, before)),
        ),
        (WantedTimeline::Newest, Some(WantedTarget::Consistent)),
        (
            TimelineId::new(2).map_or(WantedTimeline::Own, WantedTimeline::Number),
            Some(WantedTarget::Name("before_migration".into())),
        ),
    ];
    asked.into_iter().map(|(timeline, target)| SetQuestion {
        name: "data.master".into(),
        timeline,
        target,
    })
}

/// Each end of a recovery, and each verdict.
fn judged() -> Vec<(Option<RecoveryEnd>, TargetVerdict)> {
    let (first, last) = (Lsn(0x2_9200_0100), Lsn(0x2_9A00_0028));
    let end = |cause| Some(RecoveryEnd { lsn: last, cause });
    let ranges = [
        TargetRange::Nothing,
        TargetRange::Lsns(first, last),
        TargetRange::Times(1_316_617_217_000_000, 1_316_617_218_000_000),
        TargetRange::Xids(700, 4_711),
        TargetRange::Names(vec!["one".into(), "two".into()], 17),
    ];
    let mut judged = vec![
        (None, TargetVerdict::Fits),
        (
            end(EndCause::Minimal),
            TargetVerdict::Untold("there are prepared transactions".into()),
        ),
        (
            end(EndCause::Reset),
            TargetVerdict::NoWay("the archive has no history of timeline 7".into()),
        ),
    ];
    let out = ranges.map(|range| {
        (
            end(EndCause::Manager(130)),
            TargetVerdict::OutOfReach(range, None),
        )
    });
    judged.extend(out);
    judged.push((
        None,
        TargetVerdict::OutOfReach(TargetRange::Nothing, Some("data.master.1".into())),
    ));
    judged
}

fn file(compression: u8) -> Option<GetFile> {
    let name = "000000010000000200000092".parse().ok()?;
    Some(GetFile { name, compression })
}

fn set(offset: u64) -> GetSet {
    GetSet {
        start: Lsn(0x2_9200_0028),
        timestamp: "2011-09-21 17:00:17 CEST".into(),
        offset,
        compression: 1,
    }
}

/// Pages of which some are there, and a file of which none are.
fn pages() -> Option<[GetPages; 2]> {
    let set = set(0);
    let known = WantedPages {
        path: "base/5/16384".parse().ok()?,
        offset: 128 << 20,
        len: 24_000,
        digests: vec![0xCAFE_F00D_0000_0001, 0],
    };
    let unknown = WantedPages {
        path: "tmpspc/16385/PG_15_202209061/5/16386".parse().ok()?,
        offset: 0,
        len: 1 << 30,
        digests: Vec::new(),
    };
    Some(
        [vec![known.clone()], vec![known, unknown]].map(|files| GetPages {
            start: set.start,
            timestamp: set.timestamp.clone(),
            compression: set.compression,
            files,
        }),
    )
}

fn label() -> Option<SetLabel> {
    Some(SetLabel {
        timestamp: "2011-09-21 17:00:17 CEST".into(),
        label: "FullBackup".into(),
        first_segment: "000000010000000200000092".parse().ok()?,
        start: Lsn(0x2_9200_0028),
    })
}
