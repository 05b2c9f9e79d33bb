//! The fuzz bodies of a fetch, and samples of its messages.
//! Never holds more than the input asks for, which is small.

use bytes::Bytes;

use crate::message::fetch::{
    Backups, Fetch, GetFile, GetSet, ListBackups, ListedSet, NotFound, SetDescription, SetLabel,
    Tablespace,
};
use crate::message::{Data, Digest, Error, ErrorCode, Message};
use crate::names::Lsn;
use crate::session::fetch::{Fetcher, FetcherAction, Outcome, Provider, ProviderAction, Request};

/// Both ends of a fetch under arbitrary messages: blocks are appended in order and without holes,
/// only the stated bytes are ever whole, and the receiver sends nothing that was not asked for.
pub fn fetch_session(input: &[u8]) {
    fetcher(input);
    provider(input);
}

fn fetcher(input: &[u8]) {
    let Some(GetFile { name, compression }) = file(0) else {
        return;
    };
    let (mut fetcher, _) = Fetcher::start(Request::File(GetFile { name, compression }));
    let (mut size, mut is_over) = (0_u64, false);
    for operation in input.chunks(4) {
        let Some(message) = operation_message(operation) else {
            continue;
        };
        let stated = match &message {
            Message::Fetch(Fetch::End(digest)) => Some(*digest),
            _ => None,
        };
        let Ok(action) = fetcher.received(message) else {
            continue;
        };
        assert!(!is_over, "something was taken behind the end");
        match action {
            FetcherAction::Append(data) => {
                assert_eq!(data.offset, size, "a hole or an overlap");
                size += u64::from(data.raw_bytes);
            }
            FetcherAction::Check => {
                let found = Digest { size, crc32: 0 };
                let whole = fetcher.checked(found);
                let expected = FetcherAction::Finish(Outcome::Whole);
                assert_eq!(whole == Some(expected), stated == Some(found));
                is_over = true;
            }
            FetcherAction::Finish(outcome) => {
                assert_ne!(outcome, Outcome::Whole);
                is_over = true;
            }
        }
    }
}

fn provider(input: &[u8]) {
    let mut provider = Provider::default();
    for operation in input.chunks(4) {
        let Some(message) = operation_message(operation) else {
            continue;
        };
        let was_idle = provider.is_idle();
        match provider.received(message) {
            Ok(Some(ProviderAction::Find(request))) => {
                assert!(was_idle);
                let begin = match request {
                    Request::Set(set) => set.offset,
                    Request::File(_) => 0,
                };
                assert_eq!(provider.found(), Some(ProviderAction::SendFrom(begin)));
                let blocks = operation.len() as u64;
                for _ in 0..blocks {
                    provider.block_sent(7);
                }
                // An odd one stays open, for what may come in the middle of it.
                if operation[0] % 2 == 0 {
                    let end = Fetch::End(Digest {
                        size: 7 * blocks,
                        crc32: 1,
                    });
                    let end = ProviderAction::Send(Message::Fetch(end));
                    assert_eq!(provider.ended(1), Some(end));
                }
            }
            Ok(Some(ProviderAction::Stop)) => assert!(!was_idle && provider.is_idle()),
            Ok(Some(ProviderAction::SendFrom(_) | ProviderAction::Send(_))) => {
                unreachable!("only an answer of the driver sends")
            }
            Ok(None) | Err(_) => assert_eq!(provider.is_idle(), was_idle),
        }
    }
}

/// A message of a fetch with small numbers, so that fuzzing reaches the states behind it.
fn operation_message(operation: &[u8]) -> Option<Message> {
    let [kind, a, b, c] = operation else {
        return None;
    };
    let size = u64::from(*a);
    let fetch = match kind % 8 {
        0 => Fetch::GetFile(file(*a % 20)?),
        1 => Fetch::GetSet(set(size)),
        2 => Fetch::End(Digest {
            size,
            crc32: u32::from(*b % 2),
        }),
        3 => Fetch::NotFound(NotFound::NothingLater),
        4 => {
            let error = Error::channel(ErrorCode::Abandoned, "", "");
            return Some(Message::Error(error));
        }
        _ => {
            return Some(Message::Data(Data {
                offset: size,
                raw_bytes: u32::from(*b % 8),
                zstd: false,
                bytes: Bytes::from(vec![*c; usize::from(*b % 8)]),
            }));
        }
    };
    Some(Message::Fetch(fetch))
}

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
    messages.extend(label().map(|label| {
        Fetch::Set(SetDescription {
            name: "data.master".into(),
            label,
            stream_bytes: 3 << 30,
            bytes: 2 << 30,
            tablespaces: vec![Tablespace {
                oid: 16_384,
                bytes: 1 << 30,
                path: b"/srv/fast".to_vec(),
            }],
        })
    }));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::LISTED_BACKUPS_MAX;
    use bytes::BytesMut;
    use proptest::prelude::*;

    #[test]
    fn samples_pass_the_body() {
        fetch_session(&[5, 0, 3, 9, 6, 3, 2, 9, 2, 5, 0, 0, 7, 5, 1, 1]);
        fetch_session(&[0, 0, 0, 0, 1, 5, 0, 0, 4, 0, 0, 0, 1, 5, 0, 0, 5, 0, 1, 0]);
        fetch_session(&[3, 0, 0, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn fault_91_a_list_of_backups_beyond_its_bound_is_refused_and_never_sent() {
        let set = ListedSet {
            name: "s".into(),
            label: Err(String::new()),
        };
        let sets = vec![set; usize::from(LISTED_BACKUPS_MAX) + 1];
        let message = Message::Fetch(Fetch::Backups(Backups { sets, more: false }));
        let mut payload = BytesMut::new();
        message.encode(&mut payload);
        let kind = message.kind() as u8;
        let Ok(Message::Fetch(Fetch::Backups(read))) =
            Message::decode(kind, 0, payload.clone().freeze())
        else {
            panic!("what was cut off at the bound is read")
        };
        assert_eq!(read.sets.len(), usize::from(LISTED_BACKUPS_MAX));
        assert!(read.more, "what was cut off is to be asked for");
        payload[..2].copy_from_slice(&(LISTED_BACKUPS_MAX + 1).to_le_bytes());
        payload.extend_from_slice(b"\x01\0s\0\0\0");
        assert!(Message::decode(kind, 0, payload.freeze()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_pass_the_body(input in proptest::collection::vec(any::<u8>(), 0..400)) {
            fetch_session(&input);
        }
    }
}
