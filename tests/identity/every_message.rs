//! Every message there is, in random orders, from peers that the cluster they name does not know.
//! Never says a word that decodes to nothing: each is one that a real program could say. Invariant tested: whoever is
//! on no list of the cluster is refused whatever comes behind the hello, and not a file changes.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::BytesMut;
use walmgr_protocol::fuzzing::sample_messages;
use walmgr_protocol::hello::{Hello, HelloAnswer, Refusal};
use walmgr_protocol::message::{ErrorCode, Flow, Message, MessageKind};
use walmgr_protocol::names::SystemId;

use super::{authorize_names, sign, unchanged, with_authority};
use crate::support::cluster::is_alive;
use crate::support::dice::Dice;
use crate::support::hostile::{Key, hello_of};
use crate::support::peer::{frame_of, hello_bytes, read_arrived};
use crate::support::place::{TempDir, below_but_index, server_user};
use crate::support::receiver::Receiver;
use crate::support::{Site, soak};

/// How often every message is said.
pub fn orders() -> usize {
    if soak() { 500 } else { 40 }
}

/// Every message once, in any order, most of them on a channel where they belong.
pub fn any_order(dice: &mut Dice) -> Vec<(u16, Message)> {
    let mut left = sample_messages();
    let kinds = MessageKind::ALL.iter();
    for kind in kinds {
        assert!(left.iter().any(|sample| sample.kind() == *kind), "{kind:?}");
    }
    let mut order = Vec::new();
    while !left.is_empty() {
        let message = left.swap_remove(dice.index(left.len()));
        let belongs = u16::from(message.kind().flow() != Flow::Control);
        let channel = match dice.once_in(5) {
            true => u16::try_from(dice.below(4)).unwrap(),
            false => belongs,
        };
        order.push((channel, message));
    }
    order
}

/// What is in a folder: lengths, times, and which file it is.
pub fn state_of(folder: &Path) -> BTreeMap<PathBuf, (u64, SystemTime, u64)> {
    let found = below_but_index(folder).into_iter();
    found
        .map(|(path, metadata)| {
            let modified = metadata.modified().unwrap();
            (path, (metadata.len(), modified, metadata.ino()))
        })
        .collect()
}

/// Introduces itself and says all of this without waiting for an answer; the one that comes.
fn says_all_at_once(
    key: &Key,
    site: &Site,
    hello: &Hello,
    order: &[(u16, Message)],
) -> HelloAnswer {
    let mut line = key.line(site.address()).unwrap();
    let mut bytes = hello_bytes(hello, 1, 1);
    for (channel, message) in order {
        bytes.extend(frame_of(0, *channel, message));
    }
    // It may have been hung up on before all of it was sent.
    let _ = line.write_all(&bytes).and_then(|()| line.flush());
    let mut inbox = BytesMut::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = read_arrived(&mut line, &mut buffer) {
        inbox.extend_from_slice(&buffer[..count]);
    }
    let answer = HelloAnswer::decode(&mut inbox).unwrap().expect("an answer");
    assert!(inbox.is_empty(), "nothing is said behind {answer:?}");
    answer
}

/// Says everything in many orders, to a receiver that shall refuse all of it with one of these codes.
pub fn is_refused(
    receiver: &Receiver,
    site: &Site,
    who: &str,
    key: &Key,
    hello: &Hello,
    codes: &[ErrorCode],
) {
    let mut dice = Dice::thrown(who);
    let (before, pid) = (state_of(site.archive_folder()), receiver.pid());
    let judge = |refusal: &Refusal| {
        assert!(codes.contains(&refusal.code), "{who}: {refusal:?}");
        assert!(!refusal.message.is_empty(), "{who}");
    };
    for _ in 0..orders() {
        let order = any_order(&mut dice);
        match says_all_at_once(key, site, hello, &order) {
            HelloAnswer::Refused(refusal) => judge(&refusal),
            HelloAnswer::Welcome(..) => panic!("{who} is welcomed"),
        }
        match key.introduce(site.address(), hello) {
            Ok(Err(refusal)) => judge(&refusal),
            Ok(Ok(_)) => panic!("{who} is welcomed"),
            Err(error) => panic!("{who}: {error}"),
        }
    }
    assert_eq!(state_of(site.archive_folder()), before, "{who}");
    assert!(is_alive(pid) && receiver.pid() == pid, "{who}");
    let log = receiver.log();
    assert!(!log.contains("panic"), "{who}: {log}");
}

/// The hello of the same program, of another cluster.
fn hello_of_another(site: &Site) -> Hello {
    let mut hello = hello_of(site);
    if let Some(cluster) = &mut hello.cluster {
        cluster.system_id = SystemId(cluster.system_id.0 ^ 1);
    }
    hello
}

fn with_one_file(site: &Site) {
    site.write_segment(1);
    site.archive(&site.segment_name(1)).succeed();
}

fn still_archives(site: &Site) {
    site.write_segment(2);
    site.archive(&site.segment_name(2)).succeed();
}

#[test]
fn fault_117_no_message_of_an_unlisted_certificate_is_heard() {
    let _user = skip_unless!(server_user());
    let (mut site, ours) = with_authority();
    with_one_file(&site);
    let home = TempDir::new();
    let ini = home.join("thief.ini");
    for name in ["www.example", "master.example.evil", "MASTER"] {
        let key = Key::signed(&site, &ini, name, || sign(&ini, &ours, name, unchanged));
        let anonymous = Hello {
            cluster: None,
            ..hello_of(&site)
        };
        for hello in [hello_of(&site), hello_of_another(&site), anonymous] {
            is_refused(
                &site.receiver,
                &site,
                name,
                &key,
                &hello,
                &[ErrorCode::NotAuthorized],
            );
        }
    }
    // With the list gone nobody is in it.
    authorize_names(&site, "");
    site.restart_receiver();
    let key = Key::signed(&site, &ini, "master.example", || {
        sign(&ini, &ours, "master.example", unchanged);
    });
    let hello = hello_of(&site);
    is_refused(
        &site.receiver,
        &site,
        "an empty list",
        &key,
        &hello,
        &[ErrorCode::NotAuthorized],
    );
    authorize_names(&site, "master.example\n");
    site.restart_receiver();
    still_archives(&site);
}

#[test]
fn fault_86_no_message_of_an_unknown_key_or_another_cluster_is_heard() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    with_one_file(&site);
    let unknown = Key::unknown(&site, "master");
    for hello in [hello_of(&site), hello_of_another(&site)] {
        is_refused(
            &site.receiver,
            &site,
            "an unknown key",
            &unknown,
            &hello,
            &[ErrorCode::NotAuthorized],
        );
    }
    let master = Key::stolen(&site);
    let hello = hello_of_another(&site);
    is_refused(
        &site.receiver,
        &site,
        "another cluster",
        &master,
        &hello,
        &[ErrorCode::ForeignCluster],
    );
    still_archives(&site);
}
