//! A restore by difference over the wire that is killed, has its power cut, or meets a full disk at any step.
//! Never helps it in between. Invariant: beside, the old directory is whole until the new one is; in place, PostgreSQL starts
//! from nothing half made; and the same line finishes.

use std::process::Stdio;

use super::difference::{BESIDE, IN_PLACE, OldScene};
use crate::support::dice::Dice;
use crate::support::loopfs::{FileSystem, LoopFs};
use crate::support::power::PowerCuts;
use crate::support::strace::Strace;
use crate::support::{Site, assert_hits, soak};

/// Calls that change something.
const CALLS: [&str; 9] = [
    "/rename.*",
    "pwrite64",
    "write",
    "ftruncate",
    "mkdirat",
    "/unlink.*",
    "syncfs",
    "fsync",
    "symlink",
];

/// Which calls are tried, and at which counts.
fn points() -> Vec<(&'static str, u32)> {
    if !soak() {
        return vec![
            ("pwrite64", 3),
            // Killed again on its way: what was prepared before is not the old directory's.
            ("pwrite64", 1),
            ("syncfs", 1),
            ("/rename.*", 2),
            ("/rename.*", 120),
        ];
    }
    let counts: Vec<u32> = (1..=40).chain((41..900).step_by(37)).collect();
    let points = CALLS
        .iter()
        .flat_map(|call| counts.iter().map(|count| (*call, *count)));
    points.collect()
}

impl OldScene {
    /// Kills the command at this call; `false` when it has fewer and so has ended by itself.
    fn killed_at(&self, words: &[&str], call: &str, count: u32) -> bool {
        let strace = Strace::available().unwrap().unprivileged();
        let strace = strace.inject(&format!("{call}:signal=KILL:when={count}"));
        let command = self.site.master_walmgr(&self.words(words));
        let output = strace.wrap(&command).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        let killed = !output.status.success();
        assert!(!killed || !text.contains("walmgr: restore"), "{text}");
        killed
    }

    /// Whatever PostgreSQL would start from is whole.
    fn judge(&self, words: &[&str], context: &str) {
        let is_old = self.data.join("of-the-old").exists();
        match (self.is_startable(), is_old) {
            (true, true) => self.assert_old(&self.data, context),
            (true, false) => self.assert_in_place(context),
            (false, true) if words == BESIDE => {
                panic!("{context}: the old directory does not start any more")
            }
            (false, _) => {}
        }
        let aside = self.aside();
        if words == BESIDE && aside.exists() {
            self.assert_old(&aside, context);
        }
    }

    fn finish(&self, words: &[&str], context: &str) {
        let again = self.restore(words);
        assert_eq!(again.code, Some(0), "{context}: {}", again.stderr);
        self.assert_restored(context);
    }
}

fn kill_everywhere(words: &[&str]) {
    skip_unless!(Strace::available());
    let _user = skip_unless!(crate::support::place::server_user());
    let mut dice = Dice::thrown("a difference that is killed");
    let site = OldScene::site(Site::builder());
    let data = site.home().join("restored");
    let scene = OldScene::new(site, &data, &mut dice);
    let (mut kills, mut ended) = (0, "");
    for (call, count) in points() {
        // It makes fewer of them.
        if call == ended {
            continue;
        }
        scene.begin();
        let context = format!("{words:?} {call} {count}");
        if !scene.killed_at(words, call, count) {
            scene.assert_restored(&context);
            ended = call;
            continue;
        }
        kills += 1;
        scene.judge(words, &context);
        // Every other one is killed again on its way.
        if kills % 2 == 0 {
            scene.killed_at(words, call, count / 2 + 1);
            scene.judge(words, &context);
        }
        scene.finish(words, &context);
    }
    println!("{words:?}: {kills} kills");
    assert_hits(kills, 3);
}

#[test]
fn fault_229_a_difference_beside_is_killed_at_any_step_on_the_master() {
    kill_everywhere(&BESIDE);
}

#[test]
fn fault_229_a_difference_in_place_is_killed_and_typed_again() {
    kill_everywhere(&IN_PLACE);
}

fn cut_everywhere(kind: FileSystem, words: &[&str]) {
    skip_unless!(Strace::available());
    let _user = skip_unless!(crate::support::place::server_user());
    let mut power = PowerCuts::on(skip_unless!(LoopFs::create(kind, 1000)));
    let mut dice = Dice::thrown("a difference whose power is cut");
    let site = OldScene::site(Site::builder());
    let scene = OldScene::new(site, &power.disk().join("restored"), &mut dice);
    let (mut hits, mut ended) = (0, "");
    for (call, count) in points() {
        if call == ended {
            continue;
        }
        scene.begin();
        match power.cut_behind(|| scene.killed_at(words, call, count)) {
            true => hits += 1,
            false => ended = call,
        }
        let context = format!("{kind:?} {words:?} {call} {count}");
        scene.judge(words, &context);
        scene.finish(words, &context);
    }
    println!("{kind:?} {words:?}: {hits} of {} power cuts", power.cuts());
    assert_hits(hits, 3);
}

#[test]
fn fault_229_a_power_cut_in_a_difference_in_place_leaves_nothing_half() {
    cut_everywhere(FileSystem::Ext4, &IN_PLACE);
}

#[test]
fn fault_229_a_power_cut_in_a_difference_beside_leaves_nothing_half() {
    cut_everywhere(FileSystem::Xfs, &BESIDE);
}

#[test]
fn fault_230_a_disk_that_fills_up_on_the_way_leaves_the_old_directory() {
    skip_unless!(Strace::available());
    let _user = skip_unless!(crate::support::place::server_user());
    let mut dice = Dice::thrown("a difference that fills the disk");
    let site = OldScene::site(Site::builder());
    let data = site.home().join("restored");
    let scene = OldScene::new(site, &data, &mut dice);
    for words in [&BESIDE[..], &IN_PLACE] {
        // Threads write side by side: whichever meets the end of the room first says so.
        for (call, count) in [1, 10, 25, 40]
            .map(|count| ("pwrite64", count))
            .into_iter()
            .chain([("mkdirat", 3)])
        {
            scene.begin();
            let strace = Strace::available().unwrap().unprivileged();
            let strace = strace.inject(&format!("{call}:error=ENOSPC:when={count}+"));
            let command = scene.site.master_walmgr(&scene.words(words));
            let output = strace.wrap(&command).stdin(Stdio::null()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{call} {count}: {said}");
            for part in ["No space left on device", "is as it was"] {
                assert!(said.contains(part), "{call} {count}: {said}");
            }
            let context = format!("{words:?} {call} {count}");
            scene.assert_old(&scene.data, &context);
            assert!(
                !scene.data.with_extension("restoring").exists(),
                "{context}"
            );
        }
        scene.finish(words, "with room again");
    }
}
