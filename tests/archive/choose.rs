//! Two valid files of one name: which one is served, which one is kept, and who decides.
//! Never takes a file without `--take`. Invariant: neither of the two is ever lost.

use std::fs;
use std::process::Stdio;

use crate::support::Site;
use crate::support::hostile::{self, Key};
use crate::support::place::server_user;
use crate::support::strace::Strace;

use walmgr_protocol::message::WireVerify;

/// A forged segment is stored under the name that the master then offers.
fn contested() -> (Site, String, Vec<u8>, Vec<u8>) {
    let site = Site::start();
    let (name, forged, genuine) = contest(&site);
    (site, name, forged, genuine)
}

/// The same at this site; the name, what is stored, and what is kept beside it.
pub(crate) fn contest(site: &Site) -> (String, Vec<u8>, Vec<u8>) {
    let name = site.segment_name(3);
    let forged = site.segment(3, "forged");
    let thief = Key::authorized(site, "thief", "push");
    let mut peer = thief.connect(site);
    hostile::store(
        &mut peer,
        name.parse().unwrap(),
        &forged,
        WireVerify::Records,
    )
    .unwrap();
    site.write_segment(3);
    let genuine = site.segment(3, "walmgr");
    for _ in 0..2 {
        site.archive(&name)
            .fail_last(3, "already holds a different file");
    }
    (name, forged, genuine)
}

#[test]
fn fault_113_differing_file_offered_last_is_kept_and_the_stored_served() {
    let _user = skip_unless!(server_user());
    let (site, name, forged, genuine) = contested();
    let differs = format!("{name}.differs");
    assert_eq!(site.archived(&name), forged);
    assert_eq!(site.archived(&differs), genuine);
    // Whoever offers more fills no disk, and a master offers its file again.
    let third = site.segment(3, "a third one");
    for offered in [&third, &genuine] {
        site.write_wal(&name, offered.clone());
        site.archive(&name)
            .fail_last(3, "already holds a different file");
        assert!(site.archived(&differs) == *offered);
    }
    let status = site.standby_command(&["status", "--json"]).stdout;
    assert!(status.contains(r#""code":"differs""#), "{status}");
}

#[test]
fn fault_113_a_person_chooses_which_of_two_files_is_served() {
    let _user = skip_unless!(server_user());
    let (mut site, name, forged, genuine) = contested();
    let differs = format!("{name}.differs");
    let said = site.standby_command(&["choose", &name]).succeed();
    let parts = [
        "the two files differ from byte",
        "brought by thief (",
        "offered by master",
        "--take",
    ];
    for part in parts {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    site.standby_command(&["-n", "choose", &name, "--take"])
        .succeed();
    // A receiver might be acknowledging the one that goes.
    let refused = site.standby_command(&["choose", &name, "--take"]);
    assert_ne!(refused.code, Some(0));
    assert!(
        refused.stderr.contains("stop the receiver first"),
        "{}",
        refused.stderr
    );
    assert_eq!(site.archived(&name), forged);
    site.receiver.kill9();
    site.standby_command(&["choose", &name, "--take"]).succeed();
    // What was stored was acknowledged: no later offer writes over it.
    let displaced = format!("{name}.displaced");
    assert_eq!(
        (site.archived(&name), site.archived(&displaced)),
        (genuine.clone(), forged.clone())
    );
    let said = site.standby_command(&["choose", &name]).succeed();
    assert!(said.contains("brought by thief ("), "{said}");
    site.start_receiver();
    site.archive(&name).succeed();
    let third = site.segment(3, "a third one");
    site.write_wal(&name, third.clone());
    site.archive(&name)
        .fail_last(3, "already holds a different file");
    assert_eq!(site.archived(&displaced), forged);
    assert_eq!(site.archived(&differs), third);
    let status = site.standby_command(&["status", "--json"]).stdout;
    assert!(status.contains(r#""differing_files":1"#), "{status}");
    // And back: of several, the one that is typed.
    site.receiver.kill9();
    let refused = site.standby_command(&["choose", &name, "--take"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    for line in [&differs, &displaced] {
        let line = format!("choose {line} --take");
        assert!(refused.stderr.contains(&line), "{}", refused.stderr);
    }
    site.standby_command(&["choose", &displaced, "--take"])
        .succeed();
    assert_eq!(site.archived(&name), forged);
    assert_eq!(site.archived(&displaced), genuine);
    assert_eq!(site.archived(&differs), third);
    let refused = site.standby_command(&["choose", &format!("{name}.displaced.7"), "--take"]);
    assert!(refused.fail(1).contains("there is no"));
    let other = site.segment_name(9);
    let refused = site.standby_command(&["choose", &other]);
    assert!(refused.fail(1).contains("nothing to choose"));
}

#[test]
fn fault_110_a_person_may_have_readers_follow_what_was_set_apart() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    for number in 3..6 {
        site.write_segment(number);
        site.archive(&site.segment_name(number)).succeed();
    }
    // A failover elsewhere to a server that lacked what was acknowledged here.
    site.write_wal("00000002.history", "1\t0/480000\tasynchronous\n");
    site.archive("00000002.history").succeed();
    let note = site
        .completed_wals()
        .join(".apart/00000002.history.history");
    assert!(fs::read_to_string(&note).unwrap().starts_with("master"));
    let said = site
        .standby_command(&["choose", "00000002.history"])
        .succeed();
    assert!(
        said.contains("but WAL of that one was acknowledged up to"),
        "{said}"
    );
    site.standby_command(&["choose", "00000002.history", "--take"])
        .succeed();
    assert!(!note.exists());
}

#[test]
fn fault_113_a_choice_that_is_killed_at_any_step_loses_neither_file() {
    let _user = skip_unless!(server_user());
    skip_unless!(Strace::available());
    let (mut site, name, forged, genuine) = contested();
    let differs = format!("{name}.differs");
    let displaced = format!("{name}.displaced");
    site.receiver.kill9();
    let mut kills = 0;
    for call in ["/^rename", "/^unlink", "fsync", "write"] {
        for count in 1..20 {
            let strace = Strace::available().unwrap().unprivileged();
            let strace = strace.inject(&format!("{call}:signal=KILL:when={count}"));
            let mut choose = strace.wrap(&site.standby_walmgr(&["choose", &name, "--take"]));
            choose
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let killed = !choose.status().unwrap().success();
            // Whoever has the name now, each of them is in some file.
            let kept = |content: &Vec<u8>| {
                let names = [&name, &differs, &displaced];
                let found = names.map(|name| fs::read(site.unpacked_path(name)).ok());
                found.iter().flatten().any(|found| found == content)
            };
            let stored = site.archived(&name);
            let is_either = stored == forged || stored == genuine;
            assert!(kept(&forged) && kept(&genuine), "{call} {count}");
            assert!(is_either, "{call} {count}");
            if !killed {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills >= 4, "{kills}");
    if site.archived(&name) != genuine {
        site.standby_command(&["choose", &name, "--take"]).succeed();
    }
    site.start_receiver();
    site.archive(&name).succeed();
    assert_eq!(site.archived(&displaced), forged);
    // However often it was killed, there is one copy of it.
    let second = format!("{displaced}.1");
    assert!(!site.stored_path(second).exists());
}
