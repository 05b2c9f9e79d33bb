//! A client with a stolen key: it completes TLS, introduces itself, and then says anything.
//! Never keeps the protocol's order unless a test asks for it, and never panics because it was
//! refused. Invariant: every wait for the receiver ends.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use walmgr::test_support::pg::backup_label::BackupLabel;
use walmgr::test_support::pg::manifest::{Checksum, FileEntry, ManifestWriter, WalRange};
use walmgr::test_support::tar::writer::{END, padding, put_directory, put_file};
use walmgr::test_support::transport::identity::{Fingerprint, Identity};
use walmgr::test_support::transport::tls::{self, PeerTrust};
use walmgr_protocol::hello::{Hello, Refusal};
use walmgr_protocol::limits::BLOCK_BYTES_DEFAULT;
use walmgr_protocol::message::backup::{
    Backup, BackupBegin, BackupSealed, Finish, Join, Part, PartName, Token,
};
use walmgr_protocol::message::{Error, Message, WireVerify, partial};
use walmgr_protocol::names::{Lsn, RelativePath, SegmentName, TimelineId, WalFileName};

use super::Site;
use super::peer::{self, Line, Peer, commit, data};
use super::place::TempDir;

/// A key that a standby lets in, in the hands of somebody who wants it no good.
pub struct Key {
    config: Arc<ClientConfig>,
    fingerprint: Fingerprint,
    name: String,
    _home: TempDir,
}

impl Key {
    /// A new key, known to the site's standby under this name with these rights.
    pub fn authorized(site: &Site, name: &str, rights: &str) -> Key {
        let key = Key::unknown(site, name);
        let fingerprint = key.fingerprint.to_string();
        let words = ["authorize", &fingerprint, name, "--rights", rights];
        let reloads = || site.receiver.log().matches("keys reloaded").count();
        let before = reloads();
        site.standby_command(&words).succeed();
        super::wait_for("the new key", peer::PATIENCE, || {
            (reloads() > before).then_some(())
        });
        key
    }

    /// A new key that the standby does not know; its certificate has this common name.
    pub fn unknown(site: &Site, name: &str) -> Key {
        let home = TempDir::new();
        let identity = Identity::create(&home.join("key"), &home.join("crt"), name).unwrap();
        Key::of(site, &identity, name, home)
    }

    /// A new key for a cluster of a host whose receiver has this fingerprint.
    pub fn at_host(receiver: Fingerprint, name: &str) -> Key {
        let home = TempDir::new();
        let identity = Identity::create(&home.join("key"), &home.join("crt"), name).unwrap();
        Key::trusting(receiver, &identity, name, home)
    }

    /// A new key with the certificate that `sign` puts beside this ini file.
    pub fn signed(site: &Site, ini: &Path, name: &str, sign: impl FnOnce()) -> Key {
        let (key, certificate) = (ini.with_extension("key"), ini.with_extension("crt"));
        for old in [&key, &certificate] {
            // There is none at first.
            let _ = std::fs::remove_file(old);
        }
        Identity::create(&key, &certificate, name).unwrap();
        sign();
        let identity = Identity::load(&key, &certificate).unwrap();
        Key::of(site, &identity, name, TempDir::new())
    }

    /// The key of the site's master, stolen.
    pub fn stolen(site: &Site) -> Key {
        let home = TempDir::new();
        let tls = site.master_config().tls;
        for (from, to) in [(&tls.key, "key"), (&tls.certificate, "crt")] {
            std::fs::copy(from, home.join(to)).unwrap();
        }
        let identity = Identity::load(&home.join("key"), &home.join("crt")).unwrap();
        Key::of(site, &identity, "master", home)
    }

    fn of(site: &Site, identity: &Identity, name: &str, home: TempDir) -> Key {
        let receiver = site.standby_fingerprint().parse().unwrap();
        Key::trusting(receiver, identity, name, home)
    }

    fn trusting(receiver: Fingerprint, identity: &Identity, name: &str, home: TempDir) -> Key {
        Key {
            config: tls::client_config(identity, &PeerTrust::Pinned(receiver)).unwrap(),
            fingerprint: fingerprint_of(identity),
            name: name.to_owned(),
            _home: home,
        }
    }

    /// The name it was made for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As `authorize` wants it.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// A line over which TLS is complete and nothing else was said.
    pub fn line(&self, address: SocketAddr) -> io::Result<Line> {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(peer::PATIENCE))?;
        stream.set_write_timeout(Some(peer::PATIENCE))?;
        Line::secured(stream, Arc::clone(&self.config))
    }

    /// The same from another address of the loopback network.
    pub fn line_from(&self, last: u8, address: SocketAddr) -> io::Result<Line> {
        Line::secured(peer::dial_from(last, address)?, Arc::clone(&self.config))
    }

    /// Introduces itself in these words.
    pub fn introduce(
        &self,
        address: SocketAddr,
        hello: &Hello,
    ) -> io::Result<Result<Peer, Refusal>> {
        Peer::introduce(self.line(address)?, hello)
    }

    /// A connection as a master of the site's cluster; panics when it is refused.
    pub fn connect(&self, site: &Site) -> Peer {
        let peer = self.introduce(site.address(), &hello_of(site)).unwrap();
        peer.unwrap_or_else(|refusal| panic!("refused: {refusal}"))
    }
}

/// The fingerprint of its key.
pub fn fingerprint_of(identity: &Identity) -> Fingerprint {
    let text = format!("{identity:?}");
    let text = text.trim_start_matches("Identity(").trim_end_matches(')');
    text.parse().unwrap()
}

/// The hello of a master of the site's cluster.
pub fn hello_of(site: &Site) -> Hello {
    let facts = site.facts();
    Hello {
        timeline: facts.timeline,
        ..peer::hello(Some(facts.cluster))
    }
}

/// How a question ended that a receiver may refuse in words or by hanging up.
pub type Answered<T> = Result<T, Refused>;

/// How it was refused.
#[derive(Debug, Clone)]
pub enum Refused {
    /// In words.
    InWords(Error),
    /// It hung up.
    HungUp,
    /// It says nothing.
    Silent,
    /// It answered something else.
    Otherwise(Box<Message>),
}

impl Refused {
    /// The words, if there were any.
    pub fn words(&self) -> String {
        match self {
            Refused::InWords(error) => error.message.clone(),
            Refused::HungUp => "hung up".to_owned(),
            Refused::Silent => "said nothing".to_owned(),
            Refused::Otherwise(message) => format!("answered {message:?}"),
        }
    }
}

/// The next message that is no ping, whatever its channel.
pub fn next(peer: &mut Peer) -> Answered<Message> {
    loop {
        let frame = peer.listen().map_err(|_| Refused::Silent)?;
        let frame = frame.ok_or(Refused::HungUp)?;
        match frame.message {
            Message::Ping => peer.send(frame.channel, &Message::Pong),
            Message::Error(error) => return Err(Refused::InWords(error)),
            message => return Ok(message),
        }
    }
}

/// Sends a message and returns the answer.
pub fn ask(peer: &mut Peer, channel: u16, message: &Message) -> Answered<Message> {
    peer.send(channel, message);
    next(peer)
}

/// Stores a file as a client that checks nothing by itself.
pub fn store(
    peer: &mut Peer,
    name: WalFileName,
    content: &[u8],
    verify: WireVerify,
) -> Answered<()> {
    let offer = walmgr_protocol::message::Offer {
        verify,
        ..peer::offer_of(name, content)
    };
    match ask(peer, 1, &Message::Offer(offer))? {
        Message::Stored(_) => return Ok(()),
        Message::Have(_) => {}
        other => return Err(Refused::Otherwise(Box::new(other))),
    }
    peer.upload(1, content);
    match next(peer)? {
        Message::Stored(_) => Ok(()),
        other => Err(Refused::Otherwise(Box::new(other))),
    }
}

/// Begins the partial stream, opens a segment of it and appends these bytes from its beginning on; with
/// `rewrite` it replaces what is held. The answer is up to where it is durable.
pub fn ship(
    peer: &mut Peer,
    segment: SegmentName,
    timeline: TimelineId,
    bytes: &[u8],
    end: Lsn,
    rewrite: bool,
) -> Answered<Lsn> {
    use partial::{Partial, PartialBegin};
    let begin = Message::Partial(Partial::Begin(PartialBegin { timeline }));
    ask(peer, 1, &begin)?;
    ship_on(peer, segment, bytes, end, rewrite)
}

/// The same over a connection that has the stream.
pub fn ship_on(
    peer: &mut Peer,
    segment: SegmentName,
    bytes: &[u8],
    end: Lsn,
    rewrite: bool,
) -> Answered<Lsn> {
    use partial::Partial;
    let say = |message| Message::Partial(message);
    let open = partial::Open {
        segment,
        bytes: bytes.len() as u64,
        crc32: crc32fast::hash(bytes),
    };
    peer.send(1, &say(Partial::Open(open)));
    let held = loop {
        match next(peer)? {
            Message::Partial(Partial::At(at)) => break at.held_bytes,
            // What was said of the segment before.
            Message::Partial(Partial::Durable(_)) => {}
            other => return Err(Refused::Otherwise(Box::new(other))),
        }
    };
    let from = match rewrite {
        true => {
            peer.send(1, &say(Partial::Rewrite));
            0
        }
        false => held,
    };
    let rest = bytes
        .get(usize::try_from(from).unwrap()..)
        .unwrap_or_default();
    for (index, block) in rest.chunks(BLOCK_BYTES_DEFAULT as usize).enumerate() {
        let append = partial::Append {
            offset: from + index as u64 * u64::from(BLOCK_BYTES_DEFAULT),
            end,
            raw_bytes: u32::try_from(block.len()).unwrap(),
            zstd: false,
            bytes: bytes::Bytes::copy_from_slice(block),
        };
        peer.send(1, &say(Partial::Append(append)));
    }
    match next(peer)? {
        Message::Partial(Partial::Durable(durable)) => Ok(durable.lsn()),
        other => Err(Refused::Otherwise(Box::new(other))),
    }
}

/// A backup set in the words of the protocol. Nothing in it needs to be true.
#[derive(Debug, Clone)]
pub struct ForgedSet {
    /// What only one living process can send.
    pub origin: String,
    /// Files by their paths.
    pub files: Vec<(String, Vec<u8>)>,
    /// `backup_label`.
    pub label: Vec<u8>,
    /// `backup_manifest`; `None` for one that fits the files.
    pub manifest: Option<Vec<u8>>,
    /// Configuration files beside the set.
    pub configs: Vec<(String, Vec<u8>)>,
    /// Where a recovery begins.
    pub start: Lsn,
    /// Where it is consistent.
    pub stop: Lsn,
    /// The timeline of both.
    pub timeline: TimelineId,
}

impl ForgedSet {
    /// A set that begins at the start of an archived segment and holds one file.
    pub fn at(site: &Site, segment: SegmentName, files: Vec<(String, Vec<u8>)>) -> ForgedSet {
        let size = site.facts().cluster.segment_size;
        let start = Lsn(segment.start(size).unwrap().0 + 0x28);
        let label = BackupLabel {
            start,
            first_segment: segment,
            checkpoint: Lsn(start.0 + 0x38),
            method: Some("streamed".to_owned()),
            from: Some("primary".to_owned()),
            start_time: "2026-01-02 03:04:05 UTC".to_owned(),
            label: "forged".to_owned(),
            timeline: Some(segment.timeline()),
            incremental_from: None,
        };
        ForgedSet {
            origin: "forged".to_owned(),
            files,
            label: label.to_bytes(),
            manifest: None,
            configs: Vec::new(),
            start,
            stop: Lsn(start.0 + 0x100),
            timeline: segment.timeline(),
        }
    }

    /// One that a receiver takes for a backup of the site's cluster: the files that each cluster has,
    /// as the master has them, and these.
    pub fn likely(site: &Site, segment: SegmentName, more: Vec<(String, Vec<u8>)>) -> ForgedSet {
        let own = [
            "PG_VERSION",
            "global/pg_control",
            "global/pg_filenode.map",
            "base/1/PG_VERSION",
            "base/1/pg_filenode.map",
        ];
        let read = |path: &str| std::fs::read(site.data().join(path)).unwrap_or_default();
        let own = own.map(|path| (path.to_owned(), read(path)));
        ForgedSet::at(site, segment, own.into_iter().chain(more).collect())
    }

    /// The manifest that fits the files, sent on its own or in another's place.
    pub fn fitting_manifest(&self, site: &Site) -> Vec<u8> {
        let cluster = site.facts().cluster;
        let major = u8::try_from(cluster.postgres_major).unwrap();
        let mut writer = ManifestWriter::new(Vec::new(), major, cluster.system_id).unwrap();
        let label = ("backup_label".to_owned(), self.label.clone());
        for (path, content) in self.files.iter().chain([&label]) {
            let entry = FileEntry {
                path: RelativePath::new(path.as_bytes()).unwrap(),
                size: content.len() as u64,
                last_modified: 0,
                checksum: Some(Checksum::Crc32c(crc32c::crc32c(content))),
            };
            writer.add(&entry).unwrap();
        }
        let range = WalRange {
            timeline: self.timeline,
            start: self.start,
            end: self.stop,
        };
        writer.finish(&[range]).unwrap()
    }

    /// Its files as one tar stream.
    pub fn stream(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut made = std::collections::BTreeSet::new();
        for (path, content) in &self.files {
            for (at, _) in path.match_indices('/') {
                if made.insert(&path[..at]) {
                    put_directory(&mut out, &path.as_bytes()[..at]);
                }
            }
            put_file(&mut out, path.as_bytes(), content.len() as u64, 0);
            out.extend_from_slice(content);
            out.resize(out.len() + padding(content.len() as u64), 0);
        }
        out.extend_from_slice(&END);
        out
    }

    /// Makes it, from the request to the seal.
    pub fn send(&self, site: &Site, key: &Key) -> Answered<BackupSealed> {
        let mut control = self.dial(site, key)?;
        let token = self.begin(&mut control)?;
        self.carry(site, key, token)?;
        self.seal(site, &mut control)
    }

    fn dial(&self, site: &Site, key: &Key) -> Answered<Peer> {
        match key.introduce(site.address(), &hello_of(site)) {
            Ok(Ok(peer)) => Ok(peer),
            Ok(Err(refusal)) => Err(Refused::InWords(Error::connection(
                refusal.code,
                refusal.message,
                refusal.hint,
            ))),
            Err(_) => Err(Refused::HungUp),
        }
    }

    /// Asks to begin a backup.
    pub fn begin(&self, control: &mut Peer) -> Answered<Token> {
        let begin = BackupBegin {
            who: "nobody".to_owned(),
            origin: self.origin.clone(),
            label: "forged".to_owned(),
            timeline: self.timeline,
        };
        match ask(control, 1, &Message::Backup(Backup::Begin(begin)))? {
            Message::Backup(Backup::Granted(granted)) => Ok(granted.token),
            other => Err(Refused::Otherwise(Box::new(other))),
        }
    }

    /// Carries the files over a connection of their own.
    pub fn carry(&self, site: &Site, key: &Key, token: Token) -> Answered<()> {
        let mut peer = self.dial(site, key)?;
        let join = Backup::Join(Join { token, stream: 0 });
        ask(&mut peer, 1, &Message::Backup(join))?;
        let stream = self.stream();
        send_blocks(&mut peer, &stream);
        let mut answer = ask(
            &mut peer,
            1,
            &Message::Backup(Backup::StreamEnd(stream.len() as u64)),
        )?;
        while matches!(answer, Message::Backup(Backup::FilesDone(_))) {
            answer = next(&mut peer)?;
        }
        match answer {
            Message::Backup(Backup::StreamTaken(_)) => Ok(()),
            other => Err(Refused::Otherwise(Box::new(other))),
        }
    }

    /// Sends the parts, and asks for the seal.
    pub fn seal(&self, site: &Site, control: &mut Peer) -> Answered<BackupSealed> {
        send_part(control, PartName::Label, &self.label);
        for (name, content) in &self.configs {
            let path = RelativePath::new(name.as_bytes()).unwrap();
            send_part(control, PartName::Config(path), content);
        }
        let manifest = self.manifest.clone();
        let manifest = manifest.unwrap_or_else(|| self.fitting_manifest(site));
        send_part(control, PartName::Manifest, &manifest);
        let finish = Finish {
            start: self.start,
            stop: self.stop,
            timeline: self.timeline,
            wal_wait_s: 0,
        };
        match ask(control, 1, &Message::Backup(Backup::Finish(finish)))? {
            Message::Backup(Backup::Sealed(sealed)) => Ok(sealed.facts().clone()),
            other => Err(Refused::Otherwise(Box::new(other))),
        }
    }
}

/// Sends a part and its blocks.
pub fn send_part(control: &mut Peer, name: PartName, content: &[u8]) {
    let part = Part {
        name,
        size: content.len() as u64,
        crc32: crc32fast::hash(content),
    };
    control.send(1, &Message::Backup(Backup::Part(part)));
    send_blocks(control, content);
}

fn send_blocks(peer: &mut Peer, content: &[u8]) {
    for (index, block) in content.chunks(BLOCK_BYTES_DEFAULT as usize).enumerate() {
        peer.send(
            1,
            &data(index as u64 * u64::from(BLOCK_BYTES_DEFAULT), block),
        );
    }
}

#[test]
fn a_stolen_key_says_anything_in_any_order() {
    let _user = skip_unless!(super::place::server_user());
    let site = Site::start();
    let key = Key::stolen(&site);
    let mut peer = key.connect(&site);
    let name: SegmentName = site.segment_name(7).parse().unwrap();
    let content = site.segment(7, "forged");
    store(
        &mut peer,
        WalFileName::Segment(name),
        &content,
        WireVerify::Records,
    )
    .unwrap();
    assert_eq!(site.archived(&name.to_string()), content);
    // A commit of nothing ends the connection; the key itself is as good as before.
    peer.send(1, &commit(&content));
    assert!(next(&mut peer).is_err());
    let stranger = Key::unknown(&site, "stranger");
    let refused = stranger.introduce(site.address(), &hello_of(&site));
    assert!(refused.is_ok_and(|answer| answer.is_err()));
    let set = ForgedSet::at(
        &site,
        name,
        vec![("PG_VERSION".to_owned(), b"15\n".to_vec())],
    );
    let sent = set.send(&site, &key);
    println!(
        "a set of one file: {:?}",
        sent.map_err(|refused| refused.words())
    );
}
