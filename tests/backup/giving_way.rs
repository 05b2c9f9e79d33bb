//! Backups that keep others out: how long, and who gets in.
//! Never waits for half an hour: a library in front of the receiver's clock moves it on. Invariant: a message
//! now and then renews no claim.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use walmgr::test_support::receiver::BACKUP_IDLE_MAX;
use walmgr_protocol::message::Message;
use walmgr_protocol::message::backup::{Backup, Join};

use super::{newest, site, verify};
use crate::load::drain;
use crate::support::hostile::{ForgedSet, Key, ask};
use crate::support::peer::{Peer, data};
use crate::support::place::give_to_server;
use crate::support::{Cluster, Site, have, run};

/// Adds the seconds in a file to what the clock says that deadlines go by.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    long said = syscall(SYS_clock_gettime, clock, now);
    char text[24] = {0};
    int file = clock == CLOCK_MONOTONIC ? open(getenv("CLOCK_AHEAD_FILE"), O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        if (read(file, text, sizeof text - 1) > 0) now->tv_sec += atol(text);
        close(file);
    }
    return (int)said;
}
"#;

/// Longer apart than this, and a peer counts as gone.
const STEP_S: u64 = 20;

/// A receiver's clock that a test moves on.
struct Clock {
    file: PathBuf,
}

impl Clock {
    /// Starts the receiver anew behind it.
    fn before(site: &mut Site) -> Clock {
        let source = site.home().write("ahead.c", SHIM);
        let library = site.home().join("ahead.so");
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-o"]).arg(&library);
        run(compile.arg(&source)).unwrap();
        let clock = Clock {
            file: site.home().join("ahead"),
        };
        clock.set(0);
        give_to_server(&library);
        site.receiver.stop();
        let mut command = site.receiver_walmgr();
        command.env("LD_PRELOAD", &library);
        command.env("CLOCK_AHEAD_FILE", &clock.file);
        site.receiver.start(&mut command).unwrap();
        clock
    }

    fn set(&self, seconds: u64) {
        let next = self.file.with_extension("next");
        fs::write(&next, seconds.to_string()).unwrap();
        give_to_server(&next);
        // At once: a clock never stands empty, and never goes back.
        fs::rename(next, &self.file).unwrap();
    }
}

/// The receiver has heard of this peer, and the peer of it.
fn is_heard(peer: &mut Peer) {
    peer.send(0, &Message::Ping);
    loop {
        let frame = peer.receive().expect("an answer, not the end");
        match frame.message {
            Message::Ping => peer.send(frame.channel, &Message::Pong),
            Message::Pong => return,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn fault_116_a_backup_that_drips_gives_way_to_a_genuine_one() {
    skip_unless!(Cluster::available(15));
    if !have("cc") {
        skip!("cc is not installed");
    }
    let mut site = site();
    drain(&site);
    let clock = Clock::before(&mut site);
    let thief = Key::authorized(&site, "thief", "backup");
    let segment = site.segment_name(1).parse().unwrap();
    let set = ForgedSet::at(&site, segment, vec![("base".to_owned(), vec![0; 1 << 20])]);
    let mut control = thief.connect(&site);
    let token = set.begin(&mut control).unwrap();
    let mut files = thief.connect(&site);
    let join = Message::Backup(Backup::Join(Join { token, stream: 0 }));
    ask(&mut files, 1, &join).unwrap();
    let refused = site.master_command(&["backup"]);
    assert_ne!(refused.code, Some(0));
    let said = &refused.stderr;
    assert!(said.contains("a backup is running: nobody"), "{said}");

    let stream = set.stream();
    for (step, drop) in (1..=BACKUP_IDLE_MAX.as_secs() / STEP_S + 1).zip(stream.chunks(7)) {
        files.send(1, &data((step - 1) * 7, drop));
        is_heard(&mut files);
        is_heard(&mut control);
        clock.set(step * STEP_S);
    }
    is_heard(&mut files);
    is_heard(&mut control);
    site.master_command(&["backup"]).succeed();
    site.receiver
        .wait_for_log("it received nothing for too long, and another backup begins");
    verify(&site, &newest(&site));
}
