//! Power cuts below `choose --take`, at each of its steps: two files of one name change places.
//! Never goes by what `choose` says but by its exit code. Invariant tested: both files are there whenever the
//! power goes, and what ended with 0 stays.

use std::process::Stdio;

use super::{Before, EACH, Standby};
use crate::archive::choose::contest;
use crate::support::loopfs::FileSystem;
use crate::support::strace::Strace;

/// The calls that change the disk or tell the caller.
const CALLS: [&str; 4] = ["/^rename", "/^unlink", "fsync", "write"];

/// Which of the two is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    Forged,
    Genuine,
}

struct Contest {
    standby: Standby,
    name: String,
    forged: Vec<u8>,
    genuine: Vec<u8>,
}

impl Contest {
    /// Lets `choose` come to the call of this count and takes the power away there; whether it came to its end.
    fn cut_at(&mut self, call: &str, count: u32, before: Before) -> bool {
        let strace = Strace::available().unwrap().unprivileged();
        // Dead before the call is made: nothing happens between that and the cut.
        let strace = strace.inject(&format!("{call}:signal=KILL:when={count}"));
        let site = &self.standby.site;
        let words = ["choose", &self.copy_of(&self.genuine), "--take"];
        let mut choose = strace.wrap(&site.standby_walmgr(&words));
        choose
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let is_done = choose.status().unwrap().success();
        if before == Before::UnrelatedSync {
            self.standby.disk.sync_unrelated_file();
        }
        self.standby.disk.power_cut();
        self.standby.cuts += 1;
        self.standby.disk.remount();
        is_done
    }

    /// A file beside the stored one with this content, by its name.
    #[track_caller]
    fn copy_of(&self, content: &[u8]) -> String {
        let site = &self.standby.site;
        let beside = format!("{}.", self.name);
        let mut copies = site
            .archived_names()
            .into_iter()
            .filter(|name| name.starts_with(&beside) && site.archived(name) == content);
        copies.next().expect("one of the two is lost, or torn")
    }

    #[track_caller]
    fn served(&self) -> Served {
        let stored = self.standby.site.archived(&self.name);
        if stored == self.forged {
            self.copy_of(&self.genuine);
            return Served::Forged;
        }
        assert!(stored == self.genuine, "what is stored is torn");
        self.copy_of(&self.forged);
        Served::Genuine
    }

    /// As it was before.
    fn put_back(&mut self) {
        if self.served() == Served::Genuine {
            let words = ["choose", &self.copy_of(&self.forged), "--take"];
            self.standby.site.standby_command(&words).succeed();
            assert_eq!(self.served(), Served::Forged);
        }
        self.standby.disk.sync_unrelated_file();
    }
}

fn at_each_step_of_a_choice(kind: FileSystem) {
    skip_unless!(Strace::available());
    let mut standby = skip_unless!(Standby::on(kind));
    let (name, forged, genuine) = contest(&standby.site);
    standby.kill();
    standby.disk.sync_unrelated_file();
    let mut contest = Contest {
        standby,
        name,
        forged,
        genuine,
    };
    let mut ended = 0;
    for call in CALLS {
        for count in 1..20 {
            let done = EACH.map(|before| {
                let is_done = contest.cut_at(call, count, before);
                let served = contest.served();
                assert!(
                    !is_done || served == Served::Genuine,
                    "{kind:?}: done before {call} {count}, {before:?}, and undone by the cut"
                );
                contest.put_back();
                is_done
            });
            if done == [true; 2] {
                ended += 1;
                break;
            }
        }
    }
    assert_eq!(ended, CALLS.len(), "it makes more calls than were cut");
    let choice = ["choose", &contest.copy_of(&contest.genuine), "--take"];
    contest.standby.site.standby_command(&choice).succeed();
    contest.standby.site.start_receiver();
    contest.standby.site.archive(&contest.name).succeed();
    assert_eq!(contest.served(), Served::Genuine);
    contest.standby.report("while a person chooses", kind);
}

#[test]
fn fault_113_a_power_cut_during_choose_loses_neither_file_on_ext4() {
    at_each_step_of_a_choice(FileSystem::Ext4);
}

#[test]
fn fault_113_a_power_cut_during_choose_loses_neither_file_on_xfs() {
    at_each_step_of_a_choice(FileSystem::Xfs);
}
