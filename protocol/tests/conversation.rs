//! Both ends of a connection in one thread, over a link that cuts, flips and repeats bytes.
//! Claim: whatever the link does, the archive holds either nothing or exactly what was offered,
//! and whoever retries over a good link ends with it stored.

#![allow(clippy::unwrap_used)]

use bytes::{Bytes, BytesMut};
use walmgr_protocol::codec::{Decoder, Encoder};
use walmgr_protocol::compress::{Packer, Unpacker};
use walmgr_protocol::error::ProtocolError;
use walmgr_protocol::frame::{DATA_HEADROOM_BYTES, Direction, Nonce};
use walmgr_protocol::hello::{Welcome, coders};
use walmgr_protocol::message::{Digest, ErrorCode, Have, Message, Offer, WireVerify};
use walmgr_protocol::names::WalFileName;
use walmgr_protocol::session::push::{
    ProofOfDurability, PushHeld, PushOutcome, PushReceiver, PushReceiverAction, PushSealed,
    PushSender, PushSenderAction,
};

const NAME: &str = "000000010000000000000001";
const BLOCK: usize = 1000;

struct Proof(WalFileName, Digest);

impl ProofOfDurability for Proof {
    fn name(&self) -> WalFileName {
        self.0
    }

    fn digest(&self) -> Digest {
        self.1
    }
}

/// What the receiver's disk holds across connections.
#[derive(Default, Clone)]
struct Archive {
    stored: Option<Vec<u8>>,
    prefix: Vec<u8>,
}

/// What the link does to the bytes of one direction, counted from its first.
#[derive(Clone, Copy, Debug)]
enum Harm {
    None,
    CutAt(usize),
    FlipBit(usize),
    Repeat { from: usize, to: usize },
}

impl Harm {
    fn apply(self, sent: &[u8], total_before: usize) -> (Vec<u8>, bool) {
        match self {
            Harm::CutAt(at) if total_before + sent.len() > at => {
                (sent[..at.saturating_sub(total_before)].to_vec(), true)
            }
            Harm::FlipBit(bit)
                if (total_before..total_before + sent.len()).contains(&(bit / 8)) =>
            {
                let mut bytes = sent.to_vec();
                bytes[bit / 8 - total_before] ^= 1 << (bit % 8);
                (bytes, false)
            }
            Harm::Repeat { from, to }
                if total_before <= from && to <= total_before + sent.len() =>
            {
                let mut bytes = sent[..to - total_before].to_vec();
                bytes.extend_from_slice(&sent[from - total_before..]);
                (bytes, false)
            }
            _ => (sent.to_vec(), false),
        }
    }
}

struct Receiving {
    session: PushReceiver,
    decoder: Decoder,
    encoder: Encoder,
    inbox: BytesMut,
    unpacker: Unpacker,
    offer: Option<Offer>,
    writing: Vec<u8>,
}

impl Receiving {
    /// Takes bytes from the link; returns bytes to send back, or why it hangs up.
    fn take(&mut self, bytes: &[u8], archive: &mut Archive) -> Result<BytesMut, ProtocolError> {
        self.inbox.extend_from_slice(bytes);
        let mut out = BytesMut::new();
        while let Some(frame) = self.decoder.decode(&mut self.inbox)? {
            let mut action = self.session.received(frame.message)?;
            while let Some(todo) = action.take() {
                action = self.perform(todo, frame.channel, archive, &mut out)?;
            }
        }
        Ok(out)
    }

    fn perform(
        &mut self,
        action: PushReceiverAction,
        channel: u16,
        archive: &mut Archive,
        out: &mut BytesMut,
    ) -> Result<Option<PushReceiverAction>, ProtocolError> {
        match action {
            PushReceiverAction::LookUp(offer) => {
                self.offer = Some(offer);
                let held = self.held(archive, &offer);
                return Ok(Some(self.session.looked_up(&held).unwrap()));
            }
            PushReceiverAction::Send(message) => self.encoder.encode(channel, &message, out),
            PushReceiverAction::Begin(_, answer) => {
                self.writing.clone_from(&archive.prefix);
                self.encoder.encode(channel, &answer, out);
            }
            PushReceiverAction::Write(data) => {
                let raw = self
                    .unpacker
                    .unpack(&data.bytes, data.raw_bytes, data.zstd)?;
                self.writing.truncate(usize::try_from(data.offset).unwrap());
                self.writing.extend_from_slice(raw);
            }
            PushReceiverAction::Seal(digest) => {
                let found = crc32fast::hash(&self.writing);
                if found != digest.crc32 {
                    let text = "the bytes differ".to_owned();
                    return Ok(Some(self.session.failed(
                        ErrorCode::Mismatch,
                        text,
                        String::new(),
                    )));
                }
                let name = self.offer.unwrap().name;
                archive.stored = Some(self.writing.clone());
                let sealed = PushSealed::Durable(Proof(name, digest));
                return Ok(Some(self.session.sealed(&sealed).unwrap()));
            }
            PushReceiverAction::Discard => self.writing.clear(),
        }
        Ok(None)
    }

    fn held(&self, archive: &Archive, offer: &Offer) -> PushHeld<Proof> {
        let digest = |bytes: &[u8]| Digest {
            size: bytes.len() as u64,
            crc32: crc32fast::hash(bytes),
        };
        match &archive.stored {
            Some(_) if offer.crc32.is_none() => PushHeld::Unknown,
            Some(stored)
                if (stored.len() as u64, Some(crc32fast::hash(stored)))
                    == (offer.size, offer.crc32) =>
            {
                PushHeld::Same(Proof(offer.name, digest(stored)))
            }
            Some(stored) => PushHeld::Other(digest(stored)),
            None => PushHeld::Prefix(Have {
                prefix_bytes: archive.prefix.len() as u64,
                prefix_crc32: crc32fast::hash(&archive.prefix),
            }),
        }
    }
}

/// One connection from offer to end; `None` when the link or either end gave it up.
fn connection(
    source: &[u8],
    level: u8,
    archive: &mut Archive,
    harm: (Harm, Harm),
) -> (Option<PushOutcome>, usize) {
    let crc32 = Some(crc32fast::hash(source));
    connection_with(crc32, (source, level), archive, harm)
}

/// The same with another checksum in the offer, or with none.
fn connection_with(
    crc32: Option<u32>,
    (source, level): (&[u8], u8),
    archive: &mut Archive,
    (there, back): (Harm, Harm),
) -> (Option<PushOutcome>, usize) {
    let nonce: Nonce = [5; 16];
    let welcome = Welcome::with_our_limits([6; 16], None, String::new());
    let (mut encoder, mut decoder) = coders(Direction::FromClient, &nonce, &welcome);
    let (receiver_encoder, receiver_decoder) = coders(Direction::FromReceiver, &nonce, &welcome);
    let mut receiving = Receiving {
        session: PushReceiver::default(),
        decoder: receiver_decoder,
        encoder: receiver_encoder,
        inbox: BytesMut::new(),
        unpacker: Unpacker::default(),
        offer: None,
        writing: Vec::new(),
    };
    let (mut sent, mut answered, mut inbox) = (0, 0, BytesMut::new());
    let (mut sender, mut action) = PushSender::start(Offer {
        name: NAME.parse().unwrap(),
        size: source.len() as u64,
        crc32,
        verify: WireVerify::Off,
    });
    loop {
        let mut out = BytesMut::new();
        let mut next = None;
        match action {
            PushSenderAction::Send(message) => encoder.encode(1, &message, &mut out),
            PushSenderAction::TakeChecksum => {
                let taken = sender.checksum_taken(crc32fast::hash(source));
                next = Some(taken.unwrap());
            }
            PushSenderAction::HashPrefix(bytes) => {
                let bytes = usize::try_from(bytes).unwrap();
                let crc32 = crc32fast::hash(&source[..bytes]);
                next = Some(sender.prefix_hashed(crc32).unwrap());
            }
            PushSenderAction::SendFrom(offset) => {
                let ended = send_blocks(source, offset, level, &mut sender, &mut encoder, &mut out);
                next = Some(ended);
            }
            PushSenderAction::Finish(outcome) => return (Some(outcome), sent),
        }
        let (arrived, cut) = there.apply(&out, sent);
        sent += out.len();
        let Ok(reply) = receiving.take(&arrived, archive) else {
            return (None, sent);
        };
        let (reply_arrived, reply_cut) = back.apply(&reply, answered);
        answered += reply.len();
        inbox.extend_from_slice(&reply_arrived);
        action = match next {
            Some(next) => next,
            None => match decoder.decode(&mut inbox) {
                Ok(Some(frame)) => match sender.received(frame.message) {
                    Ok(next) => next,
                    Err(_) => return (None, sent),
                },
                Ok(None) | Err(_) => return (None, sent),
            },
        };
        if cut || reply_cut {
            return (None, sent);
        }
    }
}

fn send_blocks(
    source: &[u8],
    offset: u64,
    level: u8,
    sender: &mut PushSender,
    encoder: &mut Encoder,
    out: &mut BytesMut,
) -> PushSenderAction {
    let mut packer = Packer::new(level);
    let mut at = offset;
    for chunk in source[usize::try_from(offset).unwrap()..].chunks(BLOCK) {
        let fill = |buffer: &mut Vec<u8>| {
            assert_eq!(buffer.len(), DATA_HEADROOM_BYTES);
            buffer.extend_from_slice(chunk);
            Ok::<(), ()>(())
        };
        let mut block = packer.pack(Vec::new(), at, fill).unwrap();
        sender.block_sent(block.raw_bytes).unwrap();
        at += u64::from(block.raw_bytes);
        out.extend_from_slice(encoder.encode_block(1, &mut block));
    }
    sender.source_ended(crc32fast::hash(source)).unwrap()
}

fn source() -> Vec<u8> {
    (0..5_300_u32)
        .flat_map(|n| (n * n / 7).to_le_bytes())
        .take(5_300)
        .collect()
}

fn stored_once(archive: &Archive, source: &[u8]) {
    assert!(
        archive
            .stored
            .as_ref()
            .is_none_or(|stored| stored == source),
        "a wrong file is stored"
    );
}

fn retry_succeeds(archive: &mut Archive, source: &[u8]) {
    let (outcome, _) = connection(source, 0, archive, (Harm::None, Harm::None));
    assert_eq!(outcome, Some(PushOutcome::Stored));
    assert_eq!(archive.stored.as_deref(), Some(source));
}

#[test]
fn a_good_link_stores_the_file_packed_or_not() {
    for level in [0, 1, 9] {
        let mut archive = Archive::default();
        let good = (Harm::None, Harm::None);
        let (outcome, sent) = connection(&source(), level, &mut archive, good);
        assert_eq!(outcome, Some(PushOutcome::Stored));
        assert_eq!(archive.stored, Some(source()));
        let (again, sent_again) = connection(&source(), level, &mut archive, good);
        assert_eq!(again, Some(PushOutcome::Stored));
        assert!(
            sent_again < 100 && sent > 1000,
            "an identical file is not sent again"
        );
    }
}

#[test]
fn a_checksum_is_asked_for_only_where_the_name_is_held() {
    let good = (Harm::None, Harm::None);
    for whole in [source(), Vec::new()] {
        let mut archive = Archive::default();
        let (outcome, sent) = connection_with(None, (&whole, 0), &mut archive, good);
        assert_eq!(outcome, Some(PushOutcome::Stored));
        assert_eq!(archive.stored.as_ref(), Some(&whole));
        let (again, sent_again) = connection_with(None, (&whole, 0), &mut archive, good);
        assert_eq!(again, Some(PushOutcome::Stored));
        assert!(sent_again < 150, "{sent_again} of {sent} bytes");
    }
    let mut archive = Archive {
        stored: Some(b"first".to_vec()),
        prefix: Vec::new(),
    };
    let (outcome, sent) = connection_with(None, (&source(), 0), &mut archive, good);
    assert!(matches!(
        outcome,
        Some(PushOutcome::Conflict(Digest { size: 5, .. }))
    ));
    assert!(sent < 150, "{sent} bytes");
    assert_eq!(archive.stored, Some(b"first".to_vec()));
    let whole = source();
    for held in [1, BLOCK, whole.len()] {
        let mut archive = Archive {
            stored: None,
            prefix: whole[..held].to_vec(),
        };
        let (outcome, _) = connection_with(None, (&whole, 1), &mut archive, good);
        assert_eq!(outcome, Some(PushOutcome::Stored), "with {held} bytes held");
        assert_eq!(archive.stored.as_ref(), Some(&whole));
    }
}

#[test]
fn fault_21_without_a_checksum_offered_a_cut_session_leaves_nothing_wrong() {
    let whole = source();
    let good = (Harm::None, Harm::None);
    let (_, total) = connection_with(None, (&whole, 0), &mut Archive::default(), good);
    for at in 0..total {
        let mut archive = Archive::default();
        let harm = (Harm::CutAt(at), Harm::None);
        let (outcome, _) = connection_with(None, (&whole, 0), &mut archive, harm);
        assert_eq!(outcome, None, "cut at {at}");
        stored_once(&archive, &whole);
        retry_succeeds(&mut archive, &whole);
    }
}

#[test]
fn an_empty_file_is_stored_too() {
    let mut archive = Archive::default();
    let (outcome, _) = connection(&[], 0, &mut archive, (Harm::None, Harm::None));
    assert_eq!(outcome, Some(PushOutcome::Stored));
    assert_eq!(archive.stored, Some(Vec::new()));
}

#[test]
fn fault_2_another_file_of_the_name_stays() {
    let mut archive = Archive {
        stored: Some(b"first".to_vec()),
        prefix: Vec::new(),
    };
    let (outcome, _) = connection(&source(), 0, &mut archive, (Harm::None, Harm::None));
    assert!(matches!(
        outcome,
        Some(PushOutcome::Conflict(Digest { size: 5, .. }))
    ));
    assert_eq!(archive.stored, Some(b"first".to_vec()));
}

#[test]
fn a_held_prefix_is_not_sent_again_and_a_wrong_one_is_replaced() {
    let whole = source();
    for held in [1, BLOCK, BLOCK + 1, whole.len() - 1, whole.len()] {
        let mut archive = Archive {
            stored: None,
            prefix: whole[..held].to_vec(),
        };
        let (outcome, sent) = connection(&whole, 0, &mut archive, (Harm::None, Harm::None));
        assert_eq!(outcome, Some(PushOutcome::Stored), "with {held} bytes held");
        assert_eq!(archive.stored.as_ref(), Some(&whole));
        assert!(
            sent < whole.len() - held + 400,
            "{sent} bytes for {held} held"
        );
        let mut wrong = whole[..held].to_vec();
        wrong[0] ^= 1;
        let mut archive = Archive {
            stored: None,
            prefix: wrong,
        };
        let (outcome, _) = connection(&whole, 0, &mut archive, (Harm::None, Harm::None));
        assert_eq!(
            outcome,
            Some(PushOutcome::Stored),
            "with {held} wrong bytes held"
        );
        assert_eq!(archive.stored.as_ref(), Some(&whole));
    }
}

#[test]
fn fault_21_a_session_cut_at_every_byte_leaves_nothing_wrong_and_retries() {
    let whole = source();
    let (_, total) = connection(&whole, 0, &mut Archive::default(), (Harm::None, Harm::None));
    for at in 0..total {
        let mut archive = Archive::default();
        let (outcome, _) = connection(&whole, 0, &mut archive, (Harm::CutAt(at), Harm::None));
        assert_eq!(outcome, None, "cut at {at}");
        stored_once(&archive, &whole);
        retry_succeeds(&mut archive, &whole);
    }
}

#[test]
fn fault_26_answers_cut_at_every_byte_never_count_as_stored() {
    let whole = source();
    for at in 0..64 {
        let mut archive = Archive::default();
        let (outcome, _) = connection(&whole, 0, &mut archive, (Harm::None, Harm::CutAt(at)));
        assert!(
            outcome.is_none() || archive.stored.as_ref() == Some(&whole),
            "cut at {at}"
        );
        stored_once(&archive, &whole);
        retry_succeeds(&mut archive, &whole);
    }
}

#[test]
fn fault_22_no_flipped_bit_reaches_the_archive_or_the_sender() {
    let whole = source();
    let (_, total) = connection(&whole, 0, &mut Archive::default(), (Harm::None, Harm::None));
    for bit in (0..total * 8).step_by(7) {
        let mut archive = Archive::default();
        let (outcome, _) = connection(&whole, 0, &mut archive, (Harm::FlipBit(bit), Harm::None));
        assert_eq!(outcome, None, "bit {bit}");
        stored_once(&archive, &whole);
    }
    for bit in 0..64 * 8 {
        let mut archive = Archive::default();
        let (outcome, _) = connection(&whole, 0, &mut archive, (Harm::None, Harm::FlipBit(bit)));
        let stored = archive.stored.as_ref() == Some(&whole);
        assert!(
            outcome.is_none() || (outcome == Some(PushOutcome::Stored) && stored),
            "bit {bit}"
        );
    }
}

#[test]
fn fault_27_repeated_bytes_are_refused() {
    let whole = source();
    let offer = 59;
    for len in [1, 20, 500, 1032, 2064] {
        let harm = Harm::Repeat {
            from: offer,
            to: offer + len,
        };
        let mut archive = Archive::default();
        let (outcome, _) = connection(&whole, 0, &mut archive, (harm, Harm::None));
        assert_eq!(outcome, None, "{len} bytes repeated");
        assert_eq!(archive.stored, None);
        retry_succeeds(&mut archive, &whole);
    }
}

#[test]
fn fault_88_a_recorded_session_says_nothing_to_another_connection() {
    let nonce: Nonce = [5; 16];
    let recorded = Welcome::with_our_limits([6; 16], None, String::new());
    let fresh = Welcome::with_our_limits([7; 16], None, String::new());
    let (mut encoder, _) = coders(Direction::FromClient, &nonce, &recorded);
    let (_, mut decoder) = coders(Direction::FromReceiver, &nonce, &fresh);
    let mut bytes = BytesMut::new();
    encoder.encode(0, &Message::Setup, &mut bytes);
    let error = decoder.decode(&mut bytes).unwrap_err();
    assert!(matches!(error, ProtocolError::Misbehaved(_)), "{error}");
}

#[test]
fn fault_29_acknowledgement_of_another_file_is_not_believed() {
    let nonce: Nonce = [5; 16];
    let earlier = Welcome::with_our_limits([1; 16], None, String::new());
    let this = Welcome::with_our_limits([2; 16], None, String::new());
    let digest = Digest {
        size: 3,
        crc32: crc32fast::hash(b"abc"),
    };
    let late = walmgr_protocol::session::push::acknowledge(&Proof(NAME.parse().unwrap(), digest));
    let (mut encoder, _) = coders(Direction::FromReceiver, &nonce, &earlier);
    let (_, mut decoder) = coders(Direction::FromClient, &nonce, &this);
    let mut bytes = BytesMut::new();
    encoder.encode(1, &late, &mut bytes);
    assert!(decoder.decode(&mut bytes).is_err());

    let (mut sender, _) = PushSender::start(Offer {
        name: NAME.parse().unwrap(),
        size: 4,
        crc32: Some(0),
        verify: WireVerify::Off,
    });
    assert!(
        sender.received(late).is_err(),
        "it speaks of other bytes than were offered"
    );
}

#[test]
fn fault_9_a_source_that_changes_while_it_is_read_is_not_committed() {
    let (mut sender, _) = PushSender::start(Offer {
        name: NAME.parse().unwrap(),
        size: 4,
        crc32: Some(crc32fast::hash(b"abcd")),
        verify: WireVerify::Off,
    });
    let none = Have {
        prefix_bytes: 0,
        prefix_crc32: 0,
    };
    assert_eq!(
        sender.received(Message::Have(none)).unwrap(),
        PushSenderAction::SendFrom(0)
    );
    sender.block_sent(4).unwrap();
    let end = sender.source_ended(crc32fast::hash(b"abcX")).unwrap();
    assert_eq!(end, PushSenderAction::Finish(PushOutcome::SourceChanged));
}

#[test]
fn fault_9_a_source_that_is_seen_to_change_is_not_committed() {
    let (mut sender, _) = PushSender::start(Offer {
        name: NAME.parse().unwrap(),
        size: 4,
        crc32: None,
        verify: WireVerify::Off,
    });
    let none = Have {
        prefix_bytes: 0,
        prefix_crc32: 0,
    };
    let begins = sender.received(Message::Have(none)).unwrap();
    assert_eq!(begins, PushSenderAction::SendFrom(0));
    sender.block_sent(3).unwrap();
    // Of another length than was offered.
    let end = sender.clone().source_ended(crc32fast::hash(b"abc"));
    assert_eq!(
        end.unwrap(),
        PushSenderAction::Finish(PushOutcome::SourceChanged)
    );
    sender.block_sent(1).unwrap();
    let end = sender.source_changed().unwrap();
    assert_eq!(end, PushSenderAction::Finish(PushOutcome::SourceChanged));
    assert!(sender.received(Message::Have(none)).is_err());
}

#[test]
fn blocks_out_of_order_or_beyond_the_offer_end_the_connection() {
    let offer = Offer {
        name: NAME.parse().unwrap(),
        size: 10,
        crc32: Some(0),
        verify: WireVerify::Off,
    };
    let block = |offset, raw_bytes| {
        Message::Data(walmgr_protocol::message::Data {
            offset,
            raw_bytes,
            zstd: false,
            bytes: Bytes::new(),
        })
    };
    for wrong in [
        block(5, 5),
        block(0, 11),
        Message::Commit(Digest { size: 10, crc32: 0 }),
    ] {
        let mut receiver = PushReceiver::default();
        receiver.received(Message::Offer(offer)).unwrap();
        let none = Have {
            prefix_bytes: 0,
            prefix_crc32: 0,
        };
        let begins = receiver
            .looked_up::<Proof>(&PushHeld::Prefix(none))
            .unwrap();
        assert!(matches!(begins, PushReceiverAction::Begin(..)));
        assert!(receiver.received(wrong).is_err());
    }
}
