//! A cluster's key at another cluster of the same receiver: no message of it is heard there.
//! Never uses more than one's own key. Invariant tested: whatever cluster a hello names and whatever follows, the
//! folder of a cluster whose lists do not have the key stays as it is, and nothing of it is told.

use walmgr_protocol::hello::Hello;
use walmgr_protocol::message::backup::{Backup, BackupBegin};
use walmgr_protocol::message::fetch::{Fetch, GetFile};
use walmgr_protocol::message::{ErrorCode, ListRequest, Message, WireVerify};
use walmgr_protocol::names::WalFileName;

use super::{archives, host_of};
use crate::identity::every_message::{any_order, is_refused, orders, state_of};
use crate::support::Site;
use crate::support::dice::Dice;
use crate::support::hostile::{Key, ask, hello_of, store};
use crate::support::place::server_user;

#[test]
fn fault_146_no_message_of_another_clusters_key_is_heard() {
    let _user = skip_unless!(server_user());
    let (host, sites) = host_of(&["a", "b"]);
    let [a, b] = &sites[..] else { unreachable!() };
    archives(a, 1);
    archives(b, 1);
    let (key_a, key_b) = (Key::stolen(a), Key::stolen(b));
    for (key, of, at) in [(&key_a, a, b), (&key_b, b, a)] {
        let own = state_of(of.archive_folder());
        // The same for a cluster that is not served here, so that nobody learns which are.
        let codes = [ErrorCode::ForeignCluster];
        let who = "another cluster's key";
        is_refused(&host.receiver, at, who, key, &hello_of(at), &codes);
        let mut elsewhere = hello_of(at);
        elsewhere.cluster.as_mut().unwrap().system_id.0 ^= 1;
        let refused = key.introduce(at.address(), &elsewhere).unwrap();
        assert_eq!(refused.err().unwrap().code, codes[0]);
        assert_eq!(state_of(of.archive_folder()), own);
    }
    let unknown = Key::unknown(a, "master");
    for site in [a, b] {
        let codes = [ErrorCode::NotAuthorized];
        is_refused(
            &host.receiver,
            site,
            "an unknown key",
            &unknown,
            &hello_of(site),
            &codes,
        );
    }
    archives(a, 2);
    archives(b, 2);
}

#[test]
fn fault_146_a_key_at_home_reaches_nothing_of_another_cluster() {
    let _user = skip_unless!(server_user());
    let (mut host, sites) = host_of(&["a", "b"]);
    let [a, b] = &sites[..] else { unreachable!() };
    archives(a, 1);
    for number in [1, 2, 3] {
        archives(b, number);
    }
    let key = Key::stolen(a);
    let before = state_of(b.archive_folder());
    // As a master of its own cluster, and as a tool that names none.
    let anonymous = Hello {
        cluster: None,
        ..hello_of(a)
    };
    let mut dice = Dice::thrown("a key at home");
    for hello in [hello_of(a), anonymous] {
        asks_for_what_is_not_its_own(a, b, &key, &hello);
        for _ in 0..orders() {
            let mut peer = key.introduce(a.address(), &hello).unwrap().unwrap();
            for (channel, message) in any_order(&mut dice) {
                peer.send(channel, &message);
            }
            // Some it may do at home, most is out of order; what it says must be about its own cluster.
            peer.stream().shutdown(std::net::Shutdown::Write).unwrap();
            while let Ok(Some(frame)) = peer.listen() {
                is_not_about(b, &frame.message);
            }
        }
        assert_eq!(state_of(b.archive_folder()), before);
    }
    assert!(host.receiver.is_running());
    assert!(!host.receiver.log().contains("panic"));
    archives(a, 2);
    archives(b, 4);
}

fn asks_for_what_is_not_its_own(a: &Site, b: &Site, key: &Key, hello: &Hello) {
    let connect = || key.introduce(a.address(), hello).unwrap().unwrap();
    let only_there: WalFileName = b.segment_name(3).parse().unwrap();
    let get = Fetch::GetFile(GetFile {
        name: only_there,
        compression: 0,
    });
    let answer = ask(&mut connect(), 1, &Message::Fetch(get)).unwrap();
    assert!(
        matches!(answer, Message::Fetch(Fetch::NotFound(_))),
        "{answer:?}"
    );
    let list = ListRequest {
        after: None,
        limit: 100,
    };
    for question in [
        Message::OverviewRequest,
        Message::ListRequest(list),
        Message::Setup,
    ] {
        match ask(&mut connect(), 0, &question) {
            Ok(answer) => is_not_about(b, &answer),
            Err(refused) => assert!(hello.cluster.is_none(), "{refused:?}"),
        }
    }
    // The other's WAL is foreign in its own archive.
    let content = b.segment(3, "walmgr");
    let stored = store(&mut connect(), only_there, &content, WireVerify::Off);
    assert!(stored.is_err());
    assert!(!a.holds(&b.segment_name(3)));
    let begin = BackupBegin {
        who: "a".to_owned(),
        origin: "there".to_owned(),
        label: "x".to_owned(),
        timeline: hello.timeline,
    };
    let mut peer = connect();
    let begun = ask(&mut peer, 1, &Message::Backup(Backup::Begin(begin)));
    let folders = std::fs::read_dir(b.archive_folder()).unwrap().flatten();
    let incoming =
        folders.filter(|entry| entry.path().extension().is_some_and(|x| x == "incoming"));
    assert_eq!(incoming.count(), 0, "{begun:?}");
    drop(peer);
}

/// What is said has nothing of this cluster in it.
fn is_not_about(other: &Site, message: &Message) {
    let (facts, folder) = (other.facts(), other.archive_folder().display().to_string());
    let said = format!("{message:?}");
    let id = facts.cluster.system_id.0.to_string();
    assert!(!said.contains(&id) && !said.contains(&folder), "{said}");
    if let Message::List(list) = message {
        let theirs: WalFileName = other.segment_name(3).parse().unwrap();
        assert!(
            list.entries.iter().all(|(name, _)| *name != theirs),
            "{said}"
        );
    }
}
