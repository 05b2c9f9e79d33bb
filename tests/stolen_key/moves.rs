//! What the holder of a stolen key does, one move at a time, as values that can be printed and pasted.
//! Never keeps a rule but that each message is a valid one. Invariant: whatever is refused, the next
//! move is made; no move waits for longer than its socket does.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use walmgr_protocol::message::backup::{Backup, Join, PartName, Token};
use walmgr_protocol::message::fetch::{Fetch, GetFile, GetPages, GetSet, ListBackups, WantedPages};
use walmgr_protocol::message::{ListRequest, Message, MessageKind, WireVerify};
use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName, WalSegmentSize};

use crate::support::Site;
use crate::support::dice::Dice;
use crate::support::hostile::{ForgedSet, Key, ask, hello_of, next, send_part, ship, store};
use crate::support::imitation::segment_of;
use crate::support::peer::{Line, Peer, offer_of};

/// How long a move waits for an answer.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// A name in the archive, seen from where the genuine master is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Name {
    /// So many segments ahead of the one in progress, on this timeline.
    Segment(u32, i64),
    History(u32),
    /// The `.backup` of a segment.
    Backup(i64),
    /// A `.partial` one.
    Partial(i64),
}

/// What is in a forged file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Forge {
    /// Valid WAL of the cluster that nobody wrote.
    Wal(u8),
    /// The genuine WAL of another segment.
    Genuine(i64),
    /// Genuine WAL with a flipped bit.
    Flipped(i64, u32),
    Noise(u32),
    Zeros(u32),
    /// A history that says that its timeline left this one so many segments ahead.
    History(u32, i64),
}

/// One move, over one of four connections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Move {
    Store(u8, Name, Forge, u8),
    /// Offers a file and sends less than all of it.
    Abandon(u8, Name, Forge),
    /// Ships so many thousandths of a forged segment, its end moved by so many bytes.
    Ship(u8, Name, Forge, u32, i64, bool),
    /// A whole set that begins so many segments ahead, with so many files.
    Set(u8, i64, u8),
    BeginBackup(u8, u8),
    /// Joins the backup that was begun last and leaves.
    JoinBackup(u8),
    /// A part of so many bytes.
    Part(u8, u8, u32),
    FinishBackup(u8, i64),
    List(u8),
    Status(u8),
    Backups(u8),
    GetFile(u8, Name),
    /// Asks for a set and reads nothing.
    GetSet(u8),
    /// Asks for a page of a file that is no set's.
    GetPages(u8),
    Setup(u8),
    /// A frame of this kind with so many bytes of no meaning.
    Raw(u8, u8, u16, u16),
    /// So many connections that say nothing.
    Crowd(u8),
    HangUp(u8),
}

const TIMELINES: [u32; 5] = [1, 1, 2, 3, 0x7FFF_FFF0];
const AHEAD: [i64; 12] = [-40, -3, -2, -1, 0, 1, 2, 3, 50, 1_030, 5_000, 1 << 20];

fn any_name(dice: &mut Dice) -> Name {
    let (timeline, ahead) = (*dice.choose(&TIMELINES), *dice.choose(&AHEAD));
    match dice.below(10) {
        0..6 => Name::Segment(timeline, ahead),
        6..8 => Name::History(*dice.choose(&[2, 3, 9, 0x7FFF_FFF0])),
        8 => Name::Backup(ahead),
        _ => Name::Partial(ahead),
    }
}

fn any_forge(dice: &mut Dice, name: Name) -> Forge {
    let bytes = u32::try_from(dice.below(200_000)).unwrap();
    if matches!(name, Name::History(_)) && !dice.once_in(5) {
        return Forge::History(*dice.choose(&TIMELINES), *dice.choose(&AHEAD));
    }
    match dice.below(8) {
        0..4 => Forge::Wal(dice.below(3).to_le_bytes()[0]),
        4 => Forge::Genuine(-1 - i64::try_from(dice.below(3)).unwrap()),
        5 => Forge::Flipped(-1 - i64::try_from(dice.below(3)).unwrap(), bytes * 40),
        6 => Forge::Noise(bytes),
        _ => Forge::Zeros(bytes),
    }
}

/// A move with random parameters.
pub fn any(dice: &mut Dice) -> Move {
    let who = dice.below(4).to_le_bytes()[0];
    let small = dice.below(5).to_le_bytes()[0];
    match dice.below(30) {
        0..8 => {
            let name = any_name(dice);
            Move::Store(
                who,
                name,
                any_forge(dice, name),
                dice.below(3).to_le_bytes()[0],
            )
        }
        8 | 9 => {
            let name = any_name(dice);
            Move::Abandon(who, name, any_forge(dice, name))
        }
        10..14 => {
            let name = Name::Segment(*dice.choose(&TIMELINES), *dice.choose(&AHEAD));
            let part = u32::try_from(dice.below(1_000)).unwrap();
            let end = *dice.choose(&[0, 0, 0, -8, 8, 8_192, -100_000]);
            Move::Ship(who, name, any_forge(dice, name), part, end, dice.once_in(3))
        }
        14..17 => Move::Set(small, *dice.choose(&AHEAD), small),
        17 => Move::BeginBackup(who, small),
        18 => Move::JoinBackup(who),
        19 | 20 => Move::Part(who, small, u32::try_from(dice.below(3 << 20)).unwrap()),
        21 => Move::FinishBackup(who, *dice.choose(&AHEAD)),
        22 => Move::List(who),
        23 => Move::Status(who),
        24 => Move::Backups(who),
        25 => Move::GetFile(who, any_name(dice)),
        26 => *dice.choose(&[Move::GetSet(who), Move::GetPages(who)]),
        27 => *dice.choose(&[Move::Setup(who), Move::HangUp(who)]),
        28 => {
            let any = dice.below(256).to_le_bytes()[0];
            let (known, channel) = (*dice.choose(MessageKind::ALL) as u8, dice.below(6));
            let kind = if dice.once_in(4) { any } else { known };
            let (channel, bytes) = (u16::try_from(channel).unwrap(), dice.below(300));
            Move::Raw(who, kind, channel, u16::try_from(bytes).unwrap())
        }
        _ => Move::Crowd(small * 3),
    }
}

/// The attacker: up to four connections with one key, and a crowd of others.
pub struct Attacker<'a> {
    site: &'a Site,
    key: &'a Key,
    peers: [Option<Peer>; 4],
    crowd: Vec<TcpStream>,
    token: Option<Token>,
    /// The segment that the master writes.
    current: SegmentName,
    size: WalSegmentSize,
    refusals: Vec<String>,
}

impl<'a> Attacker<'a> {
    pub fn new(site: &'a Site, key: &'a Key, current: SegmentName) -> Attacker<'a> {
        Attacker {
            site,
            key,
            peers: [const { None }; 4],
            crowd: Vec::new(),
            token: None,
            current,
            size: site.facts().cluster.segment_size,
            refusals: Vec::new(),
        }
    }

    /// What it was told.
    pub fn refusals(&self) -> &[String] {
        &self.refusals
    }

    fn segment(&self, timeline: u32, ahead: i64) -> SegmentName {
        let number = self
            .current
            .number(self.size)
            .unwrap()
            .saturating_add_signed(ahead);
        SegmentName::from_number(TimelineId::new(timeline).unwrap(), number.max(1), self.size)
    }

    fn name(&self, name: Name) -> WalFileName {
        let text = match name {
            Name::Segment(timeline, ahead) => self.segment(timeline, ahead).to_string(),
            Name::History(timeline) => format!("{timeline:08X}.history"),
            Name::Backup(ahead) => format!("{}.00000028.backup", self.segment(1, ahead)),
            Name::Partial(ahead) => format!("{}.partial", self.segment(1, ahead)),
        };
        text.parse().unwrap()
    }

    fn content(&self, name: WalFileName, forge: Forge) -> Vec<u8> {
        let genuine = |ahead: i64| {
            let path = self
                .site
                .data()
                .join("pg_wal")
                .join(self.segment(1, ahead).to_string());
            std::fs::read(path).unwrap_or_default()
        };
        match forge {
            Forge::Wal(salt) => {
                let segment = match name {
                    WalFileName::Segment(segment) => segment,
                    _ => self.current,
                };
                let number = segment.number(self.size).unwrap();
                let cluster = self.site.facts().cluster;
                segment_of(&cluster, segment.timeline(), number, &salt.to_string())
            }
            Forge::Genuine(ahead) => genuine(ahead),
            Forge::Flipped(ahead, bit) => {
                let (mut content, bit) = (genuine(ahead), bit as usize);
                if let Some(byte) = content.get_mut(bit / 8) {
                    *byte ^= 1 << (bit % 8);
                }
                content
            }
            Forge::Noise(bytes) => Dice::of(u64::from(bytes)).bytes(bytes as usize),
            Forge::Zeros(bytes) => vec![0; bytes as usize],
            Forge::History(parent, ahead) => {
                let lsn = self.segment(1, ahead).start(self.size).unwrap();
                format!("{parent}\t{lsn}\tforged\n").into_bytes()
            }
        }
    }

    /// The connection of this number; a new one if there is none.
    fn peer(&mut self, who: u8) -> Option<&mut Peer> {
        let slot = &mut self.peers[usize::from(who)];
        if slot.is_none() {
            let line = impatient(self.key, self.site).ok()?;
            *slot = Peer::introduce(line, &hello_of(self.site)).ok()?.ok();
        }
        slot.as_mut()
    }

    /// Makes a move; what it was told goes on a list.
    pub fn make(&mut self, step: Move) {
        if let Err(refused) = self.try_make(step) {
            self.refusals.push(refused);
        }
    }

    fn try_make(&mut self, step: Move) -> Result<(), String> {
        let words = |refused: crate::support::hostile::Refused| refused.words();
        match step {
            Move::Store(who, name, forge, verify) => {
                let name = self.name(name);
                let content = self.content(name, forge);
                let verify = [WireVerify::Off, WireVerify::Headers, WireVerify::Records]
                    [usize::from(verify)];
                let peer = self.peer(who).ok_or("not let in")?;
                let stored = store(peer, name, &content, verify).map_err(words);
                if stored.is_err() {
                    self.peers[usize::from(who)] = None;
                }
                stored
            }
            Move::Abandon(who, name, forge) => {
                let name = self.name(name);
                let content = self.content(name, forge);
                let peer = self.peer(who).ok_or("not let in")?;
                peer.send(2, &Message::Offer(offer_of(name, &content)));
                peer.send(
                    2,
                    &crate::support::peer::data(0, &content[..content.len().min(9_000)]),
                );
                Ok(())
            }
            Move::Ship(who, name, forge, part, end, rewrite) => {
                let WalFileName::Segment(segment) = self.name(name) else {
                    return Ok(());
                };
                let mut content = self.content(WalFileName::Segment(segment), forge);
                content.truncate(content.len() / 1_000 * part as usize);
                let start = segment.start(self.size).unwrap();
                let end = Lsn((start.0 + content.len() as u64).saturating_add_signed(end));
                let peer = self.peer(who).ok_or("not let in")?;
                let shipped = ship(peer, segment, segment.timeline(), &content, end, rewrite);
                if shipped.is_err() {
                    self.peers[usize::from(who)] = None;
                }
                shipped.map(|_| ()).map_err(words)
            }
            Move::Set(origin, ahead, files) => {
                let segment = self.segment(1, ahead);
                let mut set = match files {
                    0 => ForgedSet::at(self.site, segment, files_of(0)),
                    _ => ForgedSet::likely(self.site, segment, files_of(files).split_off(1)),
                };
                set.origin = format!("origin {origin}");
                if files > 2 {
                    set.configs = vec![("environment".to_owned(), b"LD_PRELOAD=x\n".to_vec())];
                }
                set.send(self.site, self.key).map(|_| ()).map_err(words)
            }
            other => self.ask(other),
        }
    }

    fn ask(&mut self, step: Move) -> Result<(), String> {
        let site = self.site;
        let set = |ahead| ForgedSet::at(site, self.segment(1, ahead), files_of(1));
        let (who, message) = match step {
            Move::Crowd(count) => {
                let dialled = (0..count).filter_map(|_| TcpStream::connect(site.address()).ok());
                self.crowd.extend(dialled);
                return Ok(());
            }
            Move::HangUp(who) => {
                self.peers[usize::from(who)] = None;
                return Ok(());
            }
            Move::BeginBackup(who, origin) => {
                let mut set = set(-2);
                set.origin = format!("origin {origin}");
                let peer = self.peer(who).ok_or("not let in")?;
                self.token = Some(set.begin(peer).map_err(|refused| refused.words())?);
                return Ok(());
            }
            Move::FinishBackup(who, ahead) => {
                let set = set(ahead);
                let peer = self.peer(who).ok_or("not let in")?;
                return set
                    .seal(site, peer)
                    .map(|_| ())
                    .map_err(|refused| refused.words());
            }
            Move::Part(who, which, bytes) => {
                let name = match which {
                    0 => PartName::Label,
                    1 => PartName::TablespaceMap,
                    _ => PartName::Manifest,
                };
                let peer = self.peer(who).ok_or("not let in")?;
                send_part(peer, name, &vec![b' '; bytes as usize]);
                return Ok(());
            }
            Move::Raw(who, kind, channel, bytes) => {
                let payload = Dice::of(u64::from(bytes)).bytes(usize::from(bytes));
                let peer = self.peer(who).ok_or("not let in")?;
                let frame = peer.raw_frame(kind, 0, channel, &payload);
                peer.send_bytes(&frame);
                return Ok(());
            }
            Move::JoinBackup(who) => {
                let token = self.token.unwrap_or(Token([7; 16]));
                let join = Join {
                    token,
                    stream: u16::from(who),
                };
                (who, Message::Backup(Backup::Join(join)))
            }
            Move::List(who) => (
                who,
                Message::ListRequest(ListRequest {
                    after: None,
                    limit: 9,
                }),
            ),
            Move::Status(who) => (who, Message::OverviewRequest),
            Move::Backups(who) => {
                let list = ListBackups {
                    after: String::new(),
                    limit: 9,
                };
                (who, Message::Fetch(Fetch::ListBackups(list)))
            }
            Move::GetFile(who, name) => {
                let (name, compression) = (self.name(name), 1);
                (
                    who,
                    Message::Fetch(Fetch::GetFile(GetFile { name, compression })),
                )
            }
            Move::GetSet(who) => {
                let set = GetSet {
                    start: self.segment(1, -2).start(self.size).unwrap(),
                    timestamp: String::new(),
                    offset: 0,
                    compression: 0,
                };
                (who, Message::Fetch(Fetch::GetSet(set)))
            }
            Move::GetPages(who) => {
                let wanted = WantedPages {
                    path: "base/1/1".parse().unwrap(),
                    offset: 0,
                    len: u64::MAX,
                    digests: vec![0; 9],
                };
                let pages = GetPages {
                    start: self.segment(1, -2).start(self.size).unwrap(),
                    timestamp: String::new(),
                    compression: 0,
                    files: vec![wanted],
                };
                (who, Message::Fetch(Fetch::GetPages(pages)))
            }
            _ => (0, Message::Setup),
        };
        let channel = match &message {
            Message::Backup(_) => 1,
            Message::Fetch(Fetch::GetFile(_) | Fetch::GetSet(_) | Fetch::GetPages(_)) => 1,
            _ => 0,
        };
        let peer = self.peer(who).ok_or("not let in")?;
        let asked = ask(peer, channel, &message).and_then(|_| match channel {
            0 => Ok(()),
            _ => next(peer).map(|_| ()),
        });
        if asked.is_err() {
            self.peers[usize::from(who)] = None;
        }
        asked.map_err(|refused| refused.words())
    }
}

fn files_of(count: u8) -> Vec<(String, Vec<u8>)> {
    let file = |number: u8| match number {
        0 => ("PG_VERSION".to_owned(), b"15\n".to_vec()),
        1 => (
            "postgresql.auto.conf".to_owned(),
            b"restore_command = 'touch /tmp/owned'\n".to_vec(),
        ),
        number => (format!("base/1/{number}"), vec![number; 10_000]),
    };
    (0..=count).map(file).collect()
}

fn impatient(key: &Key, site: &Site) -> io::Result<Line> {
    let mut line = key.line(site.address())?;
    line.socket().set_read_timeout(Some(PATIENCE))?;
    line.socket().set_write_timeout(Some(PATIENCE))?;
    Ok(line)
}
