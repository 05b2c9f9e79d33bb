//! A restore under which the power goes, at each of its calls that change something.
//! Never judges by names: what PostgreSQL would start from is compared byte by byte. Invariant: a
//! cut also comes right after a sync of an unrelated file, which commits names before their content.

use super::kills::{CALLS, Wreck};
use super::*;
use crate::support::loopfs::{FileSystem, LoopFs};
use crate::support::power::PowerCuts;
use crate::support::run;
use crate::support::soak;
use crate::support::strace::Strace;

/// The calls after which something is durable, or has another name.
const TURNS: [&str; 2] = ["/rename.*", "syncfs"];

/// Whatever PostgreSQL would start from has the content of the set.
fn judge(wreck: &Wreck, context: &str) {
    let data = wreck.scene.data();
    if !data.join("global/pg_control").exists() {
        return;
    }
    for name in ["base", "global", "pg_xact", "pg_multixact"] {
        let mut diff = std::process::Command::new("diff");
        diff.arg("-r").arg(data.join(name));
        let same = run(diff.arg(wreck.spare.join(name)));
        same.unwrap_or_else(|differs| panic!("{context}: {differs}"));
    }
    if !data.join("of-the-old").exists() {
        wreck.assert_complete(context);
    }
}

fn cut_everywhere(kind: FileSystem, words: &[&str]) {
    skip_unless!(Strace::available());
    skip_unless!(Cluster::available(15));
    let mut power = PowerCuts::on(skip_unless!(LoopFs::create(kind, 600)));
    let builder = Cluster::builder();
    let mut wreck = Wreck::of(Scene::placed(builder, Some(power.disk())));
    wreck.scene.site.receiver.stop();
    let calls = if soak() { &CALLS[..] } else { &TURNS };
    let step = if soak() { 1 } else { 3 };
    for call in calls {
        for count in (1..).step_by(step) {
            wreck.begin();
            let killed = power.cut_behind(|| wreck.killed_at(words, call, count));
            let context = format!("{kind:?} {words:?} {call} {count}");
            judge(&wreck, &context);
            wreck.finish(words, &context);
            if !killed {
                break;
            }
        }
    }
    println!("{kind:?} {words:?}: {} power cuts", power.cuts());
    assert!(power.cuts() > 4, "{}", power.cuts());
}

#[test]
fn fault_81_a_power_cut_at_any_step_of_a_move_leaves_nothing_half_on_ext4() {
    cut_everywhere(FileSystem::Ext4, &["restore"]);
}

#[test]
fn fault_81_a_power_cut_at_any_step_of_a_copy_leaves_nothing_half_on_xfs() {
    cut_everywhere(FileSystem::Xfs, &["restore", "data.master"]);
}
