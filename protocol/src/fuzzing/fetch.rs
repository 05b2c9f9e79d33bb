//! Samples of a fetch's messages, for golden bytes and corpora.
//! Never decodes anything. Invariant: every choice a message has is made once.

use crate::message::fetch::{
    Backups, Fetch, GetFile, GetSet, ListBackups, ListedSet, NotFound, SetDescription, SetLabel,
    Tablespace,
};
use crate::message::{Digest, Message};
use crate::names::Lsn;

/// One message of every kind of a fetch, with every choice made once.
pub(super) fn sample_messages() -> Vec<Message> {
    let mut messages = vec![
        Fetch::ListBackups(ListBackups {
            after: "data.master.3".into(),
            limit: 64,
        }),
        Fetch::DescribeSet("data.master".into()),
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
    messages.extend(file(3).map(Fetch::GetFile));
    messages.extend(file(0).map(|file| Fetch::NotFound(NotFound::Gap(file.name))));
    messages.extend(label().map(|label| {
        let newest = ListedSet {
            name: "data.master".into(),
            label: Ok(label),
        };
        let unreadable = ListedSet {
            name: "data.master.0".into(),
            label: Err("it has no LABEL".into()),
        };
        Fetch::Backups(Backups {
            sets: vec![newest, unreadable],
            more: true,
        })
    }));
    for recovery_end in [None, Some(Lsn(0x2_9A00_0028))] {
        messages.extend(label().map(|label| {
            Fetch::Set(SetDescription {
                name: "data.master".into(),
                label,
                stream_bytes: 3 << 30,
                bytes: 2 << 30,
                recovery_end,
                demands: [150, 8, 10, 0, 64],
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

fn label() -> Option<SetLabel> {
    Some(SetLabel {
        timestamp: "2011-09-21 17:00:17 CEST".into(),
        label: "FullBackup".into(),
        first_segment: "000000010000000200000092".parse().ok()?,
        start: Lsn(0x2_9200_0028),
    })
}
