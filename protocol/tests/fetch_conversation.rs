//! Both ends of a fetch in one thread, over a link that cuts and flips bytes.
//! Claim: whatever the link does, what was fetched is either known to be unfinished or exactly what is
//! stored, and a stream that is asked for again where it was cut becomes whole.

#![allow(clippy::unwrap_used, clippy::panic)]

use bytes::BytesMut;
use proptest::prelude::*;
use walmgr_protocol::codec::{Decoder, Encoder};
use walmgr_protocol::compress::{Packer, Unpacker};
use walmgr_protocol::frame::{Direction, Nonce};
use walmgr_protocol::hello::{Welcome, coders};
use walmgr_protocol::message::fetch::{GetFile, GetPages, GetSet, NotFound, WantedPages};
use walmgr_protocol::message::{Digest, Error, ErrorCode};
use walmgr_protocol::names::Lsn;
use walmgr_protocol::session::fetch::{
    FetchOutcome, FetchRequest, Fetcher, FetcherAction, Provider, ProviderAction,
};

const BLOCK: usize = 1000;

/// What the link does to the bytes from the receiver.
#[derive(Clone, Copy, Debug)]
enum Harm {
    None,
    CutAt(usize),
    FlipBit(usize),
}

impl Harm {
    fn apply(self, sent: &[u8]) -> Vec<u8> {
        let mut bytes = sent.to_vec();
        match self {
            Harm::CutAt(at) => bytes.truncate(at),
            Harm::FlipBit(bit) if bit / 8 < bytes.len() => bytes[bit / 8] ^= 1 << (bit % 8),
            Harm::None | Harm::FlipBit(_) => {}
        }
        bytes
    }
}

/// What the receiver has.
#[derive(Clone, Copy)]
enum Stored<'a> {
    Whole(&'a [u8]),
    DamagedBehind(&'a [u8]),
    Nothing(&'a NotFound),
}

fn requests(offset: u64) -> [FetchRequest; 4] {
    let file = GetFile {
        name: "000000010000000000000001".parse().unwrap(),
        compression: 1,
    };
    let set = GetSet {
        start: Lsn(0x28),
        timestamp: "2026-01-01 00:00:00 UTC".into(),
        offset,
        compression: 0,
    };
    let wanted = WantedPages {
        path: "base/1/1".parse().unwrap(),
        offset: 8192,
        len: 20_000,
        digests: vec![1, 2],
    };
    let pages = GetPages {
        start: set.start,
        timestamp: set.timestamp.clone(),
        compression: 1,
        files: vec![wanted],
    };
    [
        FetchRequest::File(file),
        FetchRequest::Set(set.clone()),
        FetchRequest::Outline(set),
        FetchRequest::Pages(pages),
    ]
}

/// Everything that the receiver's end sends back for the bytes of a request.
fn provide(
    asked: &[u8],
    (mut encoder, mut decoder): (Encoder, Decoder),
    stored: Stored<'_>,
) -> BytesMut {
    let (mut inbox, mut out) = (BytesMut::from(asked), BytesMut::new());
    let mut provider = Provider::default();
    let Ok(Some(frame)) = decoder.decode(&mut inbox) else {
        return out;
    };
    let Ok(mut action) = provider.received(frame.message) else {
        return out;
    };
    while let Some(todo) = action.take() {
        action = match todo {
            ProviderAction::Find(_) => match stored {
                Stored::Nothing(why) => provider.not_found(why.clone()).unwrap(),
                _ => provider.found().unwrap(),
            },
            ProviderAction::SendFrom(offset) => {
                let (Stored::Whole(bytes) | Stored::DamagedBehind(bytes)) = stored else {
                    panic!("nothing is sent that is not there");
                };
                let bytes = &bytes[usize::try_from(offset).unwrap()..];
                send_blocks(bytes, offset, &mut provider, &mut encoder, &mut out);
                let ended = match stored {
                    Stored::Whole(_) => provider.ended(crc32fast::hash(bytes)),
                    _ => provider.failed(Error::channel(ErrorCode::DamagedFile, "damaged", "")),
                };
                ended.unwrap()
            }
            ProviderAction::Send(message) => {
                encoder.encode(frame.channel, &message, &mut out);
                None
            }
            ProviderAction::Stop => None,
        };
    }
    out
}

fn send_blocks(
    bytes: &[u8],
    mut offset: u64,
    provider: &mut Provider,
    encoder: &mut Encoder,
    out: &mut BytesMut,
) {
    let mut packer = Packer::new(1);
    for chunk in bytes.chunks(BLOCK) {
        let fill = |buffer: &mut Vec<u8>| {
            buffer.extend_from_slice(chunk);
            Ok::<(), ()>(())
        };
        let mut block = packer.pack(Vec::new(), offset, fill).unwrap();
        offset += u64::from(block.raw_bytes);
        provider.block_sent(block.raw_bytes).unwrap();
        out.extend_from_slice(encoder.encode_block(1, &mut block));
    }
}

/// One connection; what has arrived is appended, and `None` means that the link broke it.
fn fetch(
    request: FetchRequest,
    stored: Stored<'_>,
    harm: Harm,
    arrived: &mut Vec<u8>,
) -> Option<FetchOutcome> {
    let nonce: Nonce = [5; 16];
    let welcome = Welcome::with_our_limits([6; 16], None, String::new());
    let (mut encoder, mut decoder) = coders(Direction::FromClient, &nonce, &welcome);
    let (mut fetcher, message) = Fetcher::start(request);
    let mut asked = BytesMut::new();
    encoder.encode(1, &message, &mut asked);
    let receiver = coders(Direction::FromReceiver, &nonce, &welcome);
    let answer = harm.apply(&provide(&asked, receiver, stored));
    let mut inbox = BytesMut::from(&answer[..]);
    let (mut unpacker, begin) = (Unpacker::default(), arrived.len());
    while let Ok(Some(frame)) = decoder.decode(&mut inbox) {
        let mut action = fetcher.received(frame.message).ok();
        while let Some(todo) = action.take() {
            match todo {
                FetcherAction::Append(data) => {
                    let raw = unpacker.unpack(&data.bytes, data.raw_bytes, data.zstd);
                    arrived.extend_from_slice(raw.ok()?);
                }
                FetcherAction::Check => {
                    let checked = fetcher.checked(Digest {
                        size: (arrived.len() - begin) as u64,
                        crc32: crc32fast::hash(&arrived[begin..]),
                    });
                    action = Some(checked.unwrap());
                }
                FetcherAction::Finish(outcome) => return Some(outcome),
            }
        }
    }
    None
}

fn source() -> Vec<u8> {
    (0..1_400_u32)
        .flat_map(|n| (n * n / 7).to_le_bytes())
        .take(5_300)
        .collect()
}

#[test]
fn what_is_stored_arrives_and_what_is_not_is_named() {
    let source = source();
    for request in requests(0) {
        let mut arrived = Vec::new();
        let whole = fetch(request, Stored::Whole(&source), Harm::None, &mut arrived);
        assert_eq!((whole, &arrived), (Some(FetchOutcome::Whole), &source));
    }
    let [file, set, ..] = requests(0);
    let later = NotFound::Gap("000000010000000000000002".parse().unwrap());
    for why in [NotFound::NothingLater, later, NotFound::NoSuchSet] {
        for request in [file.clone(), set.clone()] {
            let found = fetch(request, Stored::Nothing(&why), Harm::None, &mut Vec::new());
            assert_eq!(found, Some(FetchOutcome::NotFound(why.clone())));
        }
    }
    let empty = fetch(file, Stored::Whole(&[]), Harm::None, &mut Vec::new());
    assert_eq!(empty, Some(FetchOutcome::Whole));
}

#[test]
fn fault_73_damage_that_shows_halfway_is_no_whole_file() {
    let source = source();
    let [file, ..] = requests(0);
    let mut arrived = Vec::new();
    let outcome = fetch(
        file,
        Stored::DamagedBehind(&source),
        Harm::None,
        &mut arrived,
    );
    let Some(FetchOutcome::Refused(error)) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(error.code, ErrorCode::DamagedFile);
}

#[test]
fn fault_22_a_link_that_cuts_or_flips_never_makes_a_wrong_file_whole() {
    let source = source();
    let [file, ..] = requests(0);
    let mut length = 0;
    for at in 0..8_000 {
        for harm in [Harm::CutAt(at), Harm::FlipBit(at * 7 + at % 8)] {
            let mut arrived = Vec::new();
            let outcome = fetch(file.clone(), Stored::Whole(&source), harm, &mut arrived);
            if outcome == Some(FetchOutcome::Whole) {
                assert_eq!(arrived, source, "{harm:?}");
                length = length.max(at);
            } else {
                assert_eq!(outcome, None, "{harm:?}");
                assert!(source.starts_with(&arrived), "{harm:?}");
            }
        }
    }
    assert!(length > 0, "none got through");
}

proptest! {
    #[test]
    fn a_stream_that_is_cut_goes_on_where_it_was(cuts in proptest::collection::vec(0..4_000_usize, 0..12)) {
        let source = source();
        let mut arrived = Vec::new();
        for cut in cuts {
            let [_, set, ..] = requests(arrived.len() as u64);
            let harm = Harm::CutAt(cut);
            if fetch(set, Stored::Whole(&source), harm, &mut arrived).is_some() {
                break;
            }
            prop_assert!(source.starts_with(&arrived));
        }
        let [_, set, ..] = requests(arrived.len() as u64);
        let whole = fetch(set, Stored::Whole(&source), Harm::None, &mut arrived);
        prop_assert_eq!(whole, Some(FetchOutcome::Whole));
        prop_assert_eq!(arrived, source);
    }
}
