//! The fuzz body of a backup's session, and samples of its messages.
//! Never holds more than the input asks for, which is small.

use bytes::Bytes;

use crate::limits::BACKUP_STREAMS_MAX;
use crate::message::backup::{
    Backup, Begin, FileDigest, FileDone, Finish, Granted, Held, Join, Part, PartName, Sealed,
    SealedSet, Token,
};
use crate::message::{Data, Error, ErrorCode, Message};
use crate::names::{Lsn, RelativePath, TimelineId};
use crate::session::backup::{ProofOfSeal, Receiver, ReceiverAction, Request, acknowledge};

/// What the fuzzed receiver shows as proof: that it was asked to finish.
struct AskedTo(Finish);

impl ProofOfSeal for AskedTo {
    fn name(&self) -> String {
        self.0.stop.to_string()
    }
}

/// The receiver's end of a backup's connection under arbitrary messages: it never seals on a
/// stream's connection or with a part cut short, and a stream's blocks have no hole.
pub fn backup_session(input: &[u8]) {
    let mut receiver = Receiver::default();
    let mut controls = None;
    let (mut stream_bytes, mut part_bytes, mut part_size) = (0, 0, 0);
    for operation in input.chunks(4) {
        let Some(message) = operation_message(operation) else {
            continue;
        };
        let Ok(Some(action)) = receiver.received(message) else {
            continue;
        };
        match action {
            ReceiverAction::Admit(request) => {
                controls = Some(!matches!(request, Request::Join(_)));
                assert!(receiver.admitted(granted()).is_some());
            }
            ReceiverAction::LookUp(paths) => {
                assert_eq!(controls, Some(false));
                let held = vec![Held::Nothing; paths.len()];
                assert!(receiver.looked_up(held).is_some());
            }
            ReceiverAction::Write(data) => {
                assert_eq!(controls, Some(false));
                assert_eq!(data.offset, stream_bytes, "a hole or an overlap");
                stream_bytes += u64::from(data.raw_bytes);
            }
            ReceiverAction::EndStream(bytes) => {
                assert_eq!((controls, bytes), (Some(false), stream_bytes));
                assert!(receiver.stream_taken().is_some() && receiver.is_idle());
            }
            ReceiverAction::BeginPart(part) => {
                assert_eq!((controls, part_bytes), (Some(true), part_size));
                (part_bytes, part_size) = (0, part.size);
            }
            ReceiverAction::WritePart(data) => {
                assert_eq!(data.offset, part_bytes, "a hole or an overlap");
                part_bytes += u64::from(data.raw_bytes);
                assert!(part_bytes <= part_size);
            }
            ReceiverAction::Finish(finish) => {
                assert_eq!((controls, part_bytes), (Some(true), part_size));
                let sealed = acknowledge(&AskedTo(finish), sealed());
                assert!(receiver.sealed(sealed).is_some() && receiver.is_idle());
            }
            ReceiverAction::Abort(_) => assert!(receiver.is_idle()),
            ReceiverAction::Send(_) => {}
        }
    }
}

/// A message of the backup flow with small numbers, so that fuzzing reaches the states behind it.
fn operation_message(operation: &[u8]) -> Option<Message> {
    let [kind, a, b, c] = operation else {
        return None;
    };
    let token = Token([*a; 16]);
    let part = |name| {
        Backup::Part(Part {
            name,
            size: u64::from(*a),
            crc32: u32::from(*b),
        })
    };
    Some(Message::Backup(match kind % 12 {
        0 => Backup::Begin(begin()?),
        1 => Backup::Resume(token),
        2 => Backup::Join(Join {
            token,
            stream: u16::from(*b),
        }),
        3 => Backup::HeldRequest(vec![path("base/1/1259")?; usize::from(*a % 4)]),
        4 => Backup::StreamEnd(u64::from(*a)),
        5 => part(PartName::Manifest),
        6 => part(PartName::Label),
        7 => Backup::Finish(finish()?),
        8 => Backup::Granted(granted()),
        9 => {
            let error = Error::channel(ErrorCode::Abandoned, "", "");
            return Some(Message::Error(error));
        }
        _ => {
            return Some(Message::Data(Data {
                offset: u64::from(*a),
                raw_bytes: u32::from(*b % 8),
                zstd: false,
                bytes: Bytes::from(vec![*c; usize::from(*b % 8)]),
            }));
        }
    }))
}

/// One message of every kind of a backup, with every choice made once.
pub(super) fn sample_messages() -> Vec<Message> {
    let digest = FileDigest {
        len: 8192,
        crc32c: 0xCAFE_F00D,
    };
    let beginning = Held::Beginning {
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
            Held::Nothing,
            beginning,
            Held::All(digest),
            Held::Directory,
        ]),
        Backup::StreamEnd(1 << 33),
        Backup::StreamTaken(1 << 33),
        Backup::Sealed(SealedSet(sealed())),
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
    messages.push(Backup::HeldRequest(paths));
    let names = [PartName::Label, PartName::TablespaceMap, PartName::Manifest];
    let config = path("postgresql.conf").map(PartName::Config);
    messages.extend(names.into_iter().chain(config).map(|name| {
        let (size, crc32) = (227, 2);
        Backup::Part(Part { name, size, crc32 })
    }));
    messages.into_iter().map(Message::Backup).collect()
}

fn begin() -> Option<Begin> {
    Some(Begin {
        who: "master on db1, process 4711".into(),
        origin: "db1 2049 131 boot".into(),
        label: "FullBackup".into(),
        timeline: TimelineId::new(1)?,
    })
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

fn sealed() -> Sealed {
    Sealed {
        name: "data.master".into(),
        path: "/srv/walshipping/data.master".into(),
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
    use proptest::prelude::*;

    #[test]
    fn samples_pass_the_body() {
        backup_session(&[0, 0, 0, 0, 5, 3, 0, 0, 11, 0, 3, 9, 6, 0, 0, 0, 7, 0, 0, 0]);
        backup_session(&[2, 1, 1, 0, 3, 2, 0, 0, 11, 0, 5, 9, 11, 5, 2, 9, 4, 7, 0, 0]);
        backup_session(&[1, 1, 1, 0, 5, 9, 0, 0, 11, 0, 3, 9, 7, 0, 0, 0, 9, 0, 0, 0]);
    }

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

    proptest! {
        #[test]
        fn any_bytes_pass_the_body(input in proptest::collection::vec(any::<u8>(), 0..400)) {
            backup_session(&input);
        }
    }
}
