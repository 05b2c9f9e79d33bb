//! Both ends of a backup's connections in one thread, over a link that is cut at any byte.
//! Claim: wherever it is cut, a stream that comes back brings exactly the files that were to be
//! sent, and sends no confirmed file twice; a set is sealed once, and only with all its parts.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use walmgr_protocol::codec::{Decoder, Encoder};
use walmgr_protocol::compress::{Packer, Unpacker};
use walmgr_protocol::error::ProtocolError;
use walmgr_protocol::frame::{Direction, Nonce};
use walmgr_protocol::hello::{Welcome, coders};
use walmgr_protocol::message::backup::{
    Backup, BackupBegin, BackupHeld, BackupSealed, FileDigest, FileDone, Finish, Granted, Join,
    PartName, Token,
};
use walmgr_protocol::message::parent::{FileNeed, ParentAnswer};
use walmgr_protocol::message::{Error, ErrorCode, Message};
use walmgr_protocol::names::{Lsn, RelativePath, TimelineId};
use walmgr_protocol::session::backup::{
    BackupReceiver, BackupReceiverAction, BackupRequest, Control, ControlEvent, ProofOfSeal,
    Stream, StreamEvent, acknowledge,
};

const BLOCK: usize = 700;
const TOKEN: Token = Token([3; 16]);

struct Proof;

impl ProofOfSeal for Proof {
    fn name(&self) -> String {
        "data.master".into()
    }
}

/// What the receiver has, across connections.
#[derive(Default, Clone)]
struct Set {
    files: BTreeMap<String, Kept>,
    parts: Vec<(PartName, Vec<u8>)>,
    sealed: usize,
}

#[derive(Default, Clone, PartialEq, Debug)]
struct Kept {
    content: Vec<u8>,
    len: usize,
}

impl Kept {
    fn held(&self) -> BackupHeld {
        let crc32c = crc32fast::hash(&self.content);
        let len = self.len as u64;
        match self.content.len() == self.len {
            true => BackupHeld::All(FileDigest { len, crc32c }),
            false => BackupHeld::Beginning {
                bytes: self.content.len() as u64,
                crc32c,
                len,
            },
        }
    }
}

/// One connection's receiving end. Its streams are no tar: an entry is the length of a path, the
/// path, an offset and a length of two bytes each, and the bytes.
struct Receiving {
    session: BackupReceiver,
    decoder: Decoder,
    encoder: Encoder,
    inbox: BytesMut,
    unpacker: Unpacker,
    stream: Vec<u8>,
}

impl Receiving {
    /// Takes bytes from the link; returns bytes to send back, or why it hangs up.
    fn take(&mut self, bytes: &[u8], set: &mut Set) -> Result<BytesMut, ProtocolError> {
        self.inbox.extend_from_slice(bytes);
        let mut out = BytesMut::new();
        while let Some(frame) = self.decoder.decode(&mut self.inbox)? {
            let mut action = self.session.received(frame.message)?;
            while let Some(todo) = action.take() {
                action = self.perform(todo, set, &mut out)?;
            }
        }
        Ok(out)
    }

    fn perform(
        &mut self,
        action: BackupReceiverAction,
        set: &mut Set,
        out: &mut BytesMut,
    ) -> Result<Option<BackupReceiverAction>, ProtocolError> {
        match action {
            BackupReceiverAction::Admit(BackupRequest::Resume(_)) if set.sealed > 0 => {
                return Ok(self.session.sealed(acknowledge(&Proof, sealed())).unwrap());
            }
            BackupReceiverAction::Admit(request) => {
                if matches!(request, BackupRequest::Begin(_) | BackupRequest::Resume(_)) {
                    set.parts.clear();
                }
                return Ok(self.session.admitted(granted()).unwrap());
            }
            BackupReceiverAction::LookUp(paths) => {
                let held = |path: &RelativePath| {
                    (set.files.get(&path.to_string())).map_or(BackupHeld::Nothing, Kept::held)
                };
                return Ok(self
                    .session
                    .looked_up(paths.iter().map(held).collect())
                    .unwrap());
            }
            BackupReceiverAction::ChooseParent(_) => {
                let none = ParentAnswer::Full("there is none".into());
                return Ok(self.session.parent_chosen(none).unwrap());
            }
            BackupReceiverAction::Compare(files) => {
                let whole = vec![FileNeed::Whole; files.len()];
                return Ok(self.session.compared(whole).unwrap());
            }
            BackupReceiverAction::Write(data) => {
                let raw = (self.unpacker).unpack(&data.bytes, data.raw_bytes, data.zstd)?;
                self.stream.extend_from_slice(raw);
                let done = unpack(&mut self.stream, set);
                if !done.is_empty() {
                    let done = Message::Backup(Backup::FilesDone(done));
                    self.encoder.encode(1, &done, out);
                }
            }
            BackupReceiverAction::EndStream(_) => return Ok(self.session.stream_taken().unwrap()),
            BackupReceiverAction::BeginPart(part) => set.parts.push((part.name, Vec::new())),
            BackupReceiverAction::WritePart(data) => {
                let raw = (self.unpacker).unpack(&data.bytes, data.raw_bytes, data.zstd)?;
                set.parts.last_mut().unwrap().1.extend_from_slice(raw);
            }
            BackupReceiverAction::Finish(_) => {
                set.sealed += 1;
                return Ok(self.session.sealed(acknowledge(&Proof, sealed())).unwrap());
            }
            BackupReceiverAction::Abort(_) => set.files.clear(),
            BackupReceiverAction::Send(message) => self.encoder.encode(1, &message, out),
        }
        Ok(None)
    }
}

/// Takes what is whole of the stream, and the beginning of what is not, as far as it came.
fn unpack(stream: &mut Vec<u8>, set: &mut Set) -> Vec<FileDone> {
    let mut done = Vec::new();
    while let Some(path_len) = stream.first().map(|len| usize::from(*len)) {
        let Some(head) = stream.get(1..path_len + 5) else {
            break;
        };
        let name = std::str::from_utf8(&head[..path_len]).unwrap().to_owned();
        let number = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
        let (offset, len) = (number(path_len), number(path_len + 2));
        let there = stream.len() - (path_len + 5);
        let kept = set.files.entry(name.clone()).or_default();
        kept.len = len;
        kept.content.truncate(offset);
        assert_eq!(kept.content.len(), offset, "a hole in {name}");
        let rest = len - offset;
        let taken = there.min(rest);
        let content = &stream[path_len + 5..path_len + 5 + taken];
        kept.content.extend_from_slice(content);
        if taken < rest {
            break;
        }
        stream.drain(..path_len + 5 + taken);
        let BackupHeld::All(digest) = kept.held() else {
            panic!("{name} is whole")
        };
        let path = name.parse().unwrap();
        done.push(FileDone { path, digest });
    }
    done
}

fn sources() -> BTreeMap<String, Vec<u8>> {
    let bytes = |seed: u32, len: u32| (0..len).flat_map(move |n| (n * n / seed).to_le_bytes());
    let files = [
        ("base/1/large", bytes(7, 900).collect()),
        ("base/1/small", b"a few bytes".to_vec()),
        ("base/1/empty", Vec::new()),
        ("global/pg_control", bytes(3, 200).collect()),
    ];
    files
        .map(|(path, content)| (path.to_owned(), content))
        .into()
}

fn granted() -> Granted {
    Granted {
        token: TOKEN,
        lease_s: 60,
        streams_max: 4,
    }
}

fn sealed() -> BackupSealed {
    BackupSealed {
        name: String::new(),
        path: "/srv/data.master".into(),
        stored_bytes: 0,
        expired: 0,
        purged: 0,
        warnings: Vec::new(),
    }
}

/// A link that is cut behind so many bytes of each direction.
struct Link<'a> {
    receiving: Receiving,
    encoder: Encoder,
    decoder: Decoder,
    inbox: BytesMut,
    set: &'a mut Set,
    there: usize,
    back: usize,
    sent: usize,
}

impl<'a> Link<'a> {
    fn new(set: &'a mut Set, there: usize, back: usize) -> Self {
        let nonce: Nonce = [5; 16];
        let welcome = Welcome::with_our_limits([6; 16], None, String::new());
        let (encoder, decoder) = coders(Direction::FromClient, &nonce, &welcome);
        let (their_encoder, their_decoder) = coders(Direction::FromReceiver, &nonce, &welcome);
        Link {
            receiving: Receiving {
                session: BackupReceiver::default(),
                decoder: their_decoder,
                encoder: their_encoder,
                inbox: BytesMut::new(),
                unpacker: Unpacker::default(),
                stream: Vec::new(),
            },
            encoder,
            decoder,
            inbox: BytesMut::new(),
            set,
            there,
            back,
            sent: 0,
        }
    }

    /// Delivers bytes and takes in the answer; `None` when the link breaks.
    fn deliver(&mut self, bytes: &[u8]) -> Option<()> {
        self.sent += bytes.len();
        let arrived = bytes.len().min(self.there);
        self.there -= arrived;
        let reply = self.receiving.take(&bytes[..arrived], self.set).ok()?;
        let back = reply.len().min(self.back);
        self.back -= back;
        self.inbox.extend_from_slice(&reply[..back]);
        (arrived == bytes.len() && back == reply.len()).then_some(())
    }

    fn send(&mut self, message: &Message) -> Option<()> {
        let mut out = BytesMut::new();
        self.encoder.encode(1, message, &mut out);
        self.deliver(&out)
    }

    fn send_block(&mut self, offset: u64, raw: &[u8]) -> Option<()> {
        let mut block = (Packer::new(1))
            .pack(Vec::new(), offset, |buffer| {
                buffer.extend_from_slice(raw);
                Ok::<(), ()>(())
            })
            .unwrap();
        let bytes = self.encoder.encode_block(1, &mut block).to_vec();
        self.deliver(&bytes)
    }

    fn receive(&mut self) -> Option<Message> {
        Some(self.decoder.decode(&mut self.inbox).ok()??.message)
    }
}

/// One stream's connection: asks about what is on its way, and sends the rest.
fn carry(link: &mut Link<'_>, confirmed: &mut Vec<String>, again: bool) -> Option<()> {
    let (mut session, join) = Stream::join(Join {
        token: TOKEN,
        stream: 0,
    });
    link.send(&join)?;
    assert_eq!(session.received(link.receive()?), Ok(StreamEvent::Granted));
    let sources = sources();
    let mut offsets: BTreeMap<&String, Option<usize>> =
        sources.keys().map(|path| (path, Some(0))).collect();
    if again {
        let paths: Vec<RelativePath> = sources.keys().map(|path| path.parse().unwrap()).collect();
        let question = session.ask(paths).unwrap();
        link.send(&question)?;
        let Ok(StreamEvent::Held(held)) = session.received(link.receive()?) else {
            panic!("no answer to the question");
        };
        for ((path, content), held) in sources.iter().zip(held) {
            let crc = |bytes: usize| crc32fast::hash(&content[..bytes]);
            let offset = match held {
                BackupHeld::Nothing | BackupHeld::Directory => Some(0),
                BackupHeld::All(digest) => {
                    assert_eq!(digest.crc32c, crc(content.len()));
                    None
                }
                BackupHeld::Beginning { bytes, crc32c, .. } => {
                    let bytes = usize::try_from(bytes).unwrap();
                    assert_eq!(crc32c, crc(bytes), "{path}");
                    Some(bytes)
                }
            };
            offsets.insert(path, offset);
        }
    }
    let mut stream = Vec::new();
    for (path, offset) in offsets {
        let Some(offset) = offset else { continue };
        assert!(!confirmed.contains(path), "{path} is sent again");
        let content = &sources[path];
        stream.push(u8::try_from(path.len()).unwrap());
        stream.extend_from_slice(path.as_bytes());
        for number in [offset, content.len()] {
            stream.extend_from_slice(&u16::try_from(number).unwrap().to_le_bytes());
        }
        stream.extend_from_slice(&content[offset..]);
    }
    for raw in stream.chunks(BLOCK) {
        link.send_block(session.next_offset(), raw)?;
        let raw_bytes = u32::try_from(raw.len()).unwrap();
        session.block_sent(raw_bytes).unwrap();
        while let Some(message) = link.receive() {
            let Ok(StreamEvent::FilesDone(files)) = session.received(message) else {
                panic!("only confirmations are due");
            };
            confirmed.extend(files.iter().map(|file| file.path.to_string()));
        }
    }
    link.send(&session.end().unwrap())?;
    let taken = session.received(link.receive()?);
    assert_eq!(taken, Ok(StreamEvent::Taken));
    Some(())
}

fn assert_whole(set: &Set) {
    for (path, content) in sources() {
        assert_eq!(set.files[&path].content, content, "{path}");
    }
}

#[test]
fn fault_67_a_stream_cut_at_every_byte_goes_on_where_it_was() {
    let mut set = Set::default();
    let mut link = Link::new(&mut set, usize::MAX, usize::MAX);
    carry(&mut link, &mut Vec::new(), false).unwrap();
    let total = link.sent;
    assert_whole(&set);
    for at in 0..total {
        let (mut set, mut confirmed) = (Set::default(), Vec::new());
        let mut link = Link::new(&mut set, at, usize::MAX);
        assert!(carry(&mut link, &mut confirmed, false).is_none(), "{at}");
        let mut link = Link::new(&mut set, usize::MAX, usize::MAX);
        carry(&mut link, &mut confirmed, true).unwrap();
        // Questions and greetings, and what the cut block held.
        assert!(
            at + link.sent < total + 2 * BLOCK + 400,
            "{at}: {}",
            link.sent
        );
        assert_whole(&set);
    }
    for at in 0..200 {
        let (mut set, mut confirmed) = (Set::default(), Vec::new());
        let mut link = Link::new(&mut set, usize::MAX, at);
        if carry(&mut link, &mut confirmed, false).is_none() {
            let mut link = Link::new(&mut set, usize::MAX, usize::MAX);
            carry(&mut link, &mut confirmed, true).unwrap();
        }
        assert_whole(&set);
    }
}

/// One control connection from its greeting to the seal.
fn control(link: &mut Link<'_>, resumes: bool) -> Option<ControlEvent> {
    let begin = BackupBegin {
        who: "the test".into(),
        origin: "here".into(),
        label: "FullBackup".into(),
        timeline: TimelineId::new(1).unwrap(),
    };
    let (mut session, message) = match resumes {
        false => Control::begin(begin),
        true => Control::resume(TOKEN),
    };
    link.send(&message)?;
    match session.received(link.receive()?).unwrap() {
        ControlEvent::Granted(_) => {}
        event => return Some(event),
    }
    for (name, content) in parts() {
        let (size, crc32) = (content.len() as u64, crc32fast::hash(&content));
        link.send(&session.part(name, size, crc32).unwrap())?;
        let mut offset = 0;
        for raw in content.chunks(BLOCK) {
            link.send_block(offset, raw)?;
            offset += raw.len() as u64;
        }
    }
    let finish = session.finish(finish()).unwrap();
    link.send(&finish)?;
    Some(session.received(link.receive()?).unwrap())
}

fn parts() -> Vec<(PartName, Vec<u8>)> {
    vec![
        (PartName::Label, b"START WAL LOCATION".to_vec()),
        (PartName::Manifest, sources()["base/1/large"].clone()),
    ]
}

fn finish() -> Finish {
    Finish {
        start: Lsn(1),
        stop: Lsn(2),
        timeline: TimelineId::new(1).unwrap(),
        wal_wait_s: 1,
    }
}

#[test]
fn fault_67_a_control_connection_cut_at_every_byte_seals_once() {
    let mut set = Set::default();
    let mut link = Link::new(&mut set, usize::MAX, usize::MAX);
    let event = control(&mut link, false);
    assert!(matches!(event, Some(ControlEvent::Sealed(_))));
    let total = link.sent;
    let cuts = (0..total)
        .map(|at| (at, usize::MAX))
        .chain((0..60).map(|at| (usize::MAX, at)));
    for (there, back) in cuts {
        let mut set = Set::default();
        let mut link = Link::new(&mut set, there, back);
        let cut = control(&mut link, false);
        let event = match cut {
            Some(event) => event,
            None => control(&mut Link::new(&mut set, usize::MAX, usize::MAX), true).unwrap(),
        };
        let ControlEvent::Sealed(facts) = event else {
            panic!("{event:?}")
        };
        assert_eq!((facts.name.as_str(), set.sealed), ("data.master", 1));
        assert_eq!(set.parts, parts(), "cut at {there}, {back}");
    }
}

#[test]
fn what_has_no_place_is_refused() {
    let data = |offset: u64| {
        Message::Data(walmgr_protocol::message::Data {
            offset,
            raw_bytes: 3,
            zstd: false,
            bytes: Bytes::from_static(b"abc"),
        })
    };
    let backup = Message::Backup;
    let join = || {
        Backup::Join(Join {
            token: TOKEN,
            stream: 0,
        })
    };
    let part = |size| {
        let (name, crc32) = (PartName::Label, 0);
        Backup::Part(walmgr_protocol::message::backup::Part { name, size, crc32 })
    };
    let refused: Vec<Vec<Message>> = vec![
        vec![data(0)],
        vec![backup(Backup::Finish(finish()))],
        vec![backup(join()), backup(Backup::Finish(finish()))],
        vec![backup(join()), backup(part(3))],
        vec![backup(join()), data(3)],
        vec![backup(join()), data(0), data(0)],
        vec![backup(join()), data(0), backup(Backup::StreamEnd(2))],
        vec![backup(Backup::Resume(TOKEN)), data(0)],
        vec![backup(Backup::Resume(TOKEN)), backup(part(2)), data(0)],
        vec![
            backup(Backup::Resume(TOKEN)),
            backup(part(4)),
            data(0),
            backup(part(1)),
        ],
        vec![
            backup(Backup::Resume(TOKEN)),
            backup(part(4)),
            backup(Backup::Finish(finish())),
        ],
        vec![backup(Backup::Resume(TOKEN)), backup(join())],
    ];
    for messages in refused {
        let mut receiver = BackupReceiver::default();
        let last = messages.len() - 1;
        for (index, message) in messages.into_iter().enumerate() {
            let name = message.name();
            let answer = receiver.received(message);
            assert_eq!(answer.is_err(), index == last, "{name}: {answer:?}");
            if let Ok(Some(BackupReceiverAction::Admit(_))) = answer {
                receiver.admitted(granted()).unwrap();
            }
        }
    }
}

#[test]
fn a_backup_that_was_given_up_or_refused_takes_nothing_more() {
    let abandoned = || Message::Error(Error::channel(ErrorCode::Abandoned, "enough", ""));
    let mut receiver = BackupReceiver::default();
    receiver
        .received(Message::Backup(Backup::Resume(TOKEN)))
        .unwrap();
    receiver.admitted(granted()).unwrap();
    let action = receiver.received(abandoned()).unwrap();
    assert_eq!(action, Some(BackupReceiverAction::Abort("enough".into())));
    assert!(receiver.is_idle() && receiver.received(Message::Ping).is_err());
    let mut receiver = BackupReceiver::default();
    receiver
        .received(Message::Backup(Backup::Resume(TOKEN)))
        .unwrap();
    let refused = receiver.failed(Error::channel(ErrorCode::Busy, "another", ""));
    assert!(matches!(
        refused,
        BackupReceiverAction::Send(Message::Error(_))
    ));
    let finish = Message::Backup(Backup::Finish(finish()));
    assert_eq!(receiver.received(finish), Ok(None));
    assert_eq!(receiver.received(abandoned()), Ok(None));
}
