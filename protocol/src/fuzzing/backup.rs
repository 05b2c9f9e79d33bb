//! Samples of a backup's messages, for golden bytes and corpora.
//! Never decodes anything. Invariant: every choice a message has is made once.

use crate::limits::BACKUP_STREAMS_MAX;
use crate::message::Message;
use crate::message::backup::{
    Backup, BackupBegin, BackupHeld, BackupSealed, FileDigest, FileDone, Finish, Granted, Join,
    Part, PartName, SetAcknowledgement, Token,
};
use crate::message::parent::{
    BlockRange, FileLen, FileNeed, ParentAnswer, ParentRequest, ParentSet,
};
use crate::names::{Lsn, RelativePath, TimelineId};

/// One message of every kind of a backup, with every choice made once.
pub(super) fn sample_messages() -> Vec<Message> {
    let digest = FileDigest {
        len: 8192,
        crc32c: 0xCAFE_F00D,
    };
    let beginning = BackupHeld::Beginning {
        bytes: 262_144,
        crc32c: 1,
        len: 1 << 30,
    };
    let mut messages = vec![
        Backup::Granted(granted()),
        Backup::Resume(Token([7; 16])),
        Backup::Join(Join {
            token: Token([7; 16]),
            stream: 3,
        }),
        Backup::Held(vec![
            BackupHeld::Nothing,
            beginning,
            BackupHeld::All(digest),
            BackupHeld::Directory,
        ]),
        Backup::StreamEnd(1 << 33),
        Backup::StreamTaken(1 << 33),
        Backup::Sealed(SetAcknowledgement(sealed())),
    ];
    messages.extend(begin().map(Backup::Begin));
    messages.extend(finish().map(Backup::Finish));
    let paths: Vec<RelativePath> = ["base/1/1259", "global/1262"]
        .into_iter()
        .filter_map(path)
        .collect();
    messages.extend(paths.first().map(|path| {
        let path = path.clone();
        Backup::FilesDone(vec![FileDone { path, digest }])
    }));
    messages.extend(paths.first().map(|path| {
        let (path, len) = (path.clone(), 3 << 13);
        Backup::NeededRequest(vec![FileLen { path, len }])
    }));
    messages.push(Backup::HeldRequest(paths));
    messages.extend(parent_request().map(Backup::ParentRequest));
    let why = "there is no older set".to_owned();
    messages.push(Backup::Parent(ParentAnswer::Full(why)));
    messages.push(Backup::Parent(ParentAnswer::Parent(parent_set())));
    let range = |first| BlockRange { first, count: 2 };
    messages.push(Backup::Needed(vec![
        FileNeed::Whole,
        FileNeed::Blocks(vec![range(3), range(7)]),
    ]));
    let names = [PartName::Label, PartName::TablespaceMap, PartName::Manifest];
    let config = path("postgresql.conf").map(PartName::Config);
    messages.extend(names.into_iter().chain(config).map(|name| {
        let (size, crc32) = (227, 2);
        Backup::Part(Part { name, size, crc32 })
    }));
    messages.into_iter().map(Message::Backup).collect()
}

fn begin() -> Option<BackupBegin> {
    Some(BackupBegin {
        who: "master on db1, process 4711".into(),
        origin: "db1 2049 131 boot".into(),
        label: "FullBackup".into(),
        timeline: TimelineId::new(1)?,
    })
}

fn parent_request() -> Option<ParentRequest> {
    Some(ParentRequest {
        start: Lsn(0x0300_0028),
        timeline: TimelineId::new(1)?,
        data_checksums: true,
        block_bytes: 8192,
        segment_blocks: 1 << 17,
        wal_wait_s: 60,
    })
}

fn parent_set() -> ParentSet {
    ParentSet {
        name: "data.master".into(),
        start: Lsn(0x0100_0028),
        since_full: 3,
    }
}

fn granted() -> Granted {
    Granted {
        token: Token([7; 16]),
        lease_s: 60,
        streams_max: BACKUP_STREAMS_MAX,
    }
}

fn finish() -> Option<Finish> {
    Some(Finish {
        start: Lsn(0x0300_0028),
        stop: Lsn(0x0300_0100),
        timeline: TimelineId::new(1)?,
        wal_wait_s: 300,
    })
}

pub(super) fn sealed() -> BackupSealed {
    BackupSealed {
        name: "data.master".into(),
        path: "/srv/walshipping/data.master".into(),
        stored_bytes: 40_000_000,
        expired: 1,
        purged: 42,
        warnings: vec!["data.master.3 is being read and was kept".into()],
    }
}

fn path(text: &str) -> Option<RelativePath> {
    RelativePath::new(text.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::BACKUP_PATHS_MAX;
    use bytes::BytesMut;

    #[test]
    fn fault_91_a_list_beyond_its_bound_is_refused_and_never_sent() {
        let paths = vec![path("a").unwrap(); usize::from(BACKUP_PATHS_MAX) + 1];
        let message = Message::Backup(Backup::HeldRequest(paths));
        let mut payload = BytesMut::new();
        message.encode(&mut payload);
        let kind = message.kind() as u8;
        let Ok(Message::Backup(Backup::HeldRequest(read))) =
            Message::decode(kind, 0, payload.clone().freeze())
        else {
            panic!("what was cut off at the bound is read")
        };
        assert_eq!(read.len(), usize::from(BACKUP_PATHS_MAX));
        payload[..2].copy_from_slice(&(BACKUP_PATHS_MAX + 1).to_le_bytes());
        payload.extend_from_slice(b"\x01\0a");
        assert!(Message::decode(kind, 0, payload.freeze()).is_err());
    }
}
