//! The threat model's table of what a stolen key can and cannot do, line by line.
//! Never asks what the rights are called. Invariant tested: what the table says a key can do is done,
//! what it says it cannot do is refused in words and changes nothing.

use walmgr_protocol::message::backup::{Backup, BackupBegin};
use walmgr_protocol::message::fetch::{Fetch, GetFile, ListBackups};
use walmgr_protocol::message::partial::{Partial, PartialBegin};
use walmgr_protocol::message::{ErrorCode, ListRequest, Message, WireVerify};
use walmgr_protocol::names::{SegmentName, TimelineId, WalFileName};

use crate::support::Site;
use crate::support::hostile::{Answered, Key, Refused, ask, store};
use crate::support::place::server_user;

/// What a key may be used for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Use {
    Push,
    Ship,
    Backup,
    Fetch,
    ListSets,
    Status,
    ListNames,
}

const USES: [Use; 7] = [
    Use::Push,
    Use::Ship,
    Use::Backup,
    Use::Fetch,
    Use::ListSets,
    Use::Status,
    Use::ListNames,
];

fn segment(site: &Site, number: u64) -> SegmentName {
    site.segment_name(number).parse().unwrap()
}

fn tried(site: &Site, key: &Key, what: Use) -> Answered<()> {
    let mut peer = key.connect(site);
    let name = WalFileName::Segment(segment(site, 9));
    match what {
        Use::Push => {
            let content = site.segment(9, "walmgr");
            store(&mut peer, name, &content, WireVerify::Off)
        }
        Use::Ship => {
            let timeline = TimelineId::FIRST;
            let begin = Partial::Begin(PartialBegin { timeline });
            ask(&mut peer, 1, &Message::Partial(begin)).map(|_| ())
        }
        Use::Backup => {
            let begin = BackupBegin {
                who: "nobody".to_owned(),
                origin: key.name().to_owned(),
                label: "x".to_owned(),
                timeline: TimelineId::FIRST,
            };
            ask(&mut peer, 1, &Message::Backup(Backup::Begin(begin))).map(|_| ())
        }
        Use::Fetch => {
            let name = WalFileName::Segment(segment(site, 7));
            let get = Fetch::GetFile(GetFile {
                name,
                compression: 0,
            });
            ask(&mut peer, 1, &Message::Fetch(get)).map(|_| ())
        }
        Use::ListSets => {
            let list = ListBackups {
                after: String::new(),
                limit: 9,
            };
            ask(&mut peer, 0, &Message::Fetch(Fetch::ListBackups(list))).map(|_| ())
        }
        Use::Status => ask(&mut peer, 0, &Message::OverviewRequest).map(|_| ()),
        Use::ListNames => {
            let list = ListRequest {
                after: None,
                limit: 9,
            };
            ask(&mut peer, 0, &Message::ListRequest(list)).map(|_| ())
        }
    }
}

#[test]
fn a_stolen_key_does_what_the_readme_says_and_nothing_else() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    for number in [7, 8] {
        site.write_segment(number);
        site.archive(&site.segment_name(number)).succeed();
    }
    let allowed: [(&str, &[Use]); 3] = [
        ("push", &[Use::Push, Use::Ship, Use::Status, Use::ListNames]),
        ("backup", &[Use::Backup, Use::Status, Use::ListNames]),
        (
            "read",
            &[Use::Fetch, Use::ListSets, Use::Status, Use::ListNames],
        ),
    ];
    for (rights, uses) in allowed {
        let key = Key::authorized(&site, &format!("thief-{rights}"), rights);
        for what in USES {
            let answered = tried(&site, &key, what);
            match (uses.contains(&what), &answered) {
                (true, Ok(())) => {}
                (false, Err(Refused::InWords(error))) if error.code == ErrorCode::RightMissing => {}
                (expected, found) => panic!("{rights}, {what:?}: {expected}, {found:?}"),
            }
        }
    }
}

#[test]
fn a_stolen_key_with_every_right_replaces_nothing_that_was_acknowledged() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    site.write_segment(7);
    let name = site.segment_name(7);
    site.archive(&name).succeed();
    let key = Key::stolen(&site);
    let genuine = site.archived(&name);
    for (content, verify) in [
        (site.segment(7, "forged"), WireVerify::Records),
        (site.segment(7, "forged"), WireVerify::Off),
        (vec![0; genuine.len()], WireVerify::Off),
    ] {
        let mut peer = key.connect(&site);
        let stored = store(&mut peer, name.parse().unwrap(), &content, verify);
        assert!(stored.is_err());
        assert_eq!(site.archived(&name), genuine);
    }
    // Less is not checked because the thief asks for it.
    let mut peer = key.connect(&site);
    let noise = vec![b'w'; 1 << 20];
    let next = WalFileName::Segment(segment(&site, 8));
    assert!(store(&mut peer, next, &noise, WireVerify::Off).is_err());
    assert!(!site.holds(&site.segment_name(8)));
}
