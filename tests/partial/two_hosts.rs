//! Two hosts with one key that ship different WAL of one cluster, as a copy of a master does that was started.
//! Never has both at once: the place is one's. Invariant tested: whatever either of them was told to be durable is
//! in some file, as it was then, however often the other takes over.

use std::time::{Duration, Instant};

use walmgr::test_support::wal::writer::WalWriter;
use walmgr_protocol::message::partial::{Partial, PartialBegin};
use walmgr_protocol::message::{ErrorCode, Message, WireVerify};
use walmgr_protocol::names::{Lsn, SegmentName};

use crate::support::Site;
use crate::support::hostile::{Key, Refused, ask, ship_on, store};
use crate::support::peer::Peer;
use crate::support::place::server_user;

const PATIENCE: Duration = Duration::from_secs(60);

/// As many copies as `partial_wals` holds before somebody has to look.
const COPIES_MAX: usize = 16;

/// What one of the two wrote, and where each of its records ends.
struct Fork {
    bytes: Vec<u8>,
    ends: Vec<Lsn>,
    start: Lsn,
}

impl Fork {
    /// Two records that both hosts have, and then its own.
    fn of(site: &Site, segment: SegmentName, fill: u8) -> Fork {
        let cluster = site.facts().cluster;
        let size = cluster.segment_size;
        let major = u8::try_from(cluster.postgres_major).unwrap();
        let mut writer = WalWriter::new(segment, size, cluster.system_id, major);
        let record = |number: usize| vec![if number < 2 { 1 } else { fill }; 2_000];
        let ends = (0..60).map(|number| writer.record(10, 0, &record(number)).end);
        let ends = ends.collect();
        writer.switch();
        writer.zeros_to_segment_end();
        Fork {
            bytes: writer.bytes().to_vec(),
            ends,
            start: segment.start(size).unwrap(),
        }
    }

    fn up_to(&self, end: Lsn) -> &[u8] {
        let bytes = usize::try_from(end.0 - self.start.0).unwrap();
        &self.bytes[..bytes]
    }
}

/// Takes the stream, once whoever had it is gone.
fn take(site: &Site, key: &Key) -> Peer {
    let begin = Message::Partial(Partial::Begin(PartialBegin {
        timeline: site.facts().timeline,
    }));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut peer = key.connect(site);
        match ask(&mut peer, 1, &begin) {
            Ok(_) => return peer,
            Err(refused) if Instant::now() > deadline => panic!("{}", refused.words()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Whether some file, in progress or not, begins with this.
fn is_held(site: &Site, bytes: &[u8]) -> bool {
    let folders = [site.partial_wals(), site.completed_wals()];
    let entries = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let mut contents = entries
        .flatten()
        .map(|entry| crate::support::stored::read(&entry.path()).unwrap_or_default());
    contents.any(|content| content.starts_with(bytes))
}

#[test]
fn fault_114_two_hosts_with_one_key_lose_no_acknowledged_byte() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    let segment: SegmentName = site.segment_name(3).parse().unwrap();
    let forks = [2, 3].map(|fill| Fork::of(&site, segment, fill));
    // The same key; each host has it.
    let keys = [Key::stolen(&site), Key::stolen(&site)];
    let mut acknowledged: Vec<Vec<u8>> = Vec::new();
    let mut refusals = 0;
    for turn in 0..COPIES_MAX + 4 {
        let (fork, key) = (&forks[turn % 2], &keys[turn % 2]);
        let mut peer = take(&site, key);
        let end = fork.ends[turn + 4];
        match ship_on(&mut peer, segment, fork.up_to(end), end, turn > 0) {
            Ok(durable) => {
                assert_eq!(durable, end, "{turn}");
                acknowledged.push(fork.up_to(durable).to_vec());
            }
            // Nothing is written over any more, and somebody has to look.
            Err(Refused::InWords(error)) => {
                assert!(turn >= COPIES_MAX, "{turn}: {}", error.message);
                assert!(
                    error.message.contains("look at them and move them away"),
                    "{}",
                    error.message
                );
                refusals += 1;
            }
            Err(other) => panic!("{turn}: {}", other.words()),
        }
        // While this one is there, the other one is told so.
        let begin = Message::Partial(Partial::Begin(PartialBegin {
            timeline: site.facts().timeline,
        }));
        let mut second = keys[(turn + 1) % 2].connect(&site);
        match ask(&mut second, 1, &begin) {
            Err(Refused::InWords(error)) => assert_eq!(error.code, ErrorCode::WriterActive),
            other => panic!("{turn}: {:?}", other.map(drop).map_err(|it| it.words())),
        }
        for bytes in &acknowledged {
            assert!(is_held(&site, bytes), "turn {turn}, {} bytes", bytes.len());
        }
    }
    assert!(refusals > 0 && acknowledged.len() > COPIES_MAX);
    // One of them archives it whole; the other's file is refused and kept beside.
    let name = segment.to_string().parse().unwrap();
    store(
        &mut keys[0].connect(&site),
        name,
        &forks[0].bytes,
        WireVerify::Records,
    )
    .unwrap();
    acknowledged.push(forks[0].bytes.clone());
    let refused = store(
        &mut keys[1].connect(&site),
        name,
        &forks[1].bytes,
        WireVerify::Records,
    );
    assert!(refused.is_err());
    for bytes in &acknowledged {
        assert!(
            is_held(&site, bytes),
            "behind the archiving, {} bytes",
            bytes.len()
        );
    }
}
