//! The stolen-key campaign: random sequences of messages from a key with each subset of the rights,
//! against a live archive beside a genuine master.
//! Never asks the receiver whether all is well. Invariant tested: every set and every byte that was
//! acknowledged before stays restorable, memory stays in its bound, and the master archives on.
//!
//! `WALMGR_SOAK=1` makes five thousand sequences instead of a hundred; `WALMGR_SEED` repeats a run.
//! A sequence that fails is printed as a list of moves, to be pasted into a test of its own.

mod advance;
mod failover;
mod moves;
mod scene;
mod table;

use std::time::Instant;

use moves::Move;
use scene::Scene;

use crate::support::dice::Dice;
use crate::support::{Cluster, soak};

/// Every subset that is one.
const RIGHTS: [&str; 7] = [
    "push",
    "backup",
    "read",
    "push,backup",
    "push,read",
    "backup,read",
    "push,backup,read",
];

#[test]
fn no_sequence_of_messages_costs_an_acknowledged_byte_or_the_service() {
    skip_unless!(Cluster::available(15));
    let sequences = if soak() { 5_000 } else { 100 };
    let mut dice = Dice::thrown("stolen key");
    let mut scene = Scene::new();
    let begun = Instant::now();
    for number in 0..sequences {
        let rights = *dice.choose(&RIGHTS);
        let count = 3 + dice.index(10);
        let sequence: Vec<Move> = (0..count).map(|_| moves::any(&mut dice)).collect();
        if let Err(why) = scene.attack(rights, &sequence) {
            panic!("sequence {number} with {rights:?}:\n{sequence:?}\n{why}");
        }
    }
    println!(
        "{sequences} sequences in {:.1?}; {}",
        begun.elapsed(),
        scene.figures()
    );
    scene.everything_is_restorable();
}
