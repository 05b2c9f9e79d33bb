//! The flip campaign: one bit of anything that a standby keeps, and what it then hands on.
//! Never looks at how damage is found. Invariant tested: nothing wrong is handed on with 0, no end
//! moves without a word, nothing panics.
//!
//! `WALMGR_SOAK=1` flips ten thousand bits instead of two hundred; `WALMGR_SEED` repeats a run.

mod program;
mod rules;
mod template;

use std::sync::Mutex;
use std::time::Instant;

use rules::{Expected, broken};
use template::{Kind, Lab, Target, Template};

use crate::support::dice::Dice;
use crate::support::{Cluster, soak};

/// How often a kind is chosen, of all together.
const WEIGHTS: [(Kind, u64); 9] = [
    (Kind::Segment, 30),
    (Kind::History, 10),
    (Kind::BackupHistory, 4),
    (Kind::Own, 10),
    (Kind::Partial, 20),
    (Kind::Frozen, 10),
    (Kind::SetWord, 10),
    (Kind::SetData, 5),
    (Kind::Config, 2),
];

fn throw<'a>(template: &'a Template, dice: &mut Dice) -> (&'a Target, u64) {
    let sum: u64 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    loop {
        let mut left = dice.below(sum);
        let kind = WEIGHTS.iter().find(|(_, weight)| {
            let is_it = left < *weight;
            left = left.saturating_sub(*weight);
            is_it
        });
        let Some(targets) = kind.and_then(|(kind, _)| template.targets.get(kind)) else {
            continue;
        };
        let target = dice.choose(targets);
        let byte = match target.structure.is_empty() || dice.once_in(2) {
            true => dice.below(target.len),
            // A header has 24 bytes.
            false => *dice.choose(&target.structure) + dice.below(24),
        };
        return (target, byte.min(target.len - 1) * 8 + dice.below(8));
    }
}

/// Flips so many bits in labs of its own, one after the other; what was wrong.
fn campaign(template: &Template, mut dice: Dice, flips: u64, wrong: &Mutex<Vec<String>>) {
    let lab = Lab::of(template);
    let expected = Expected::of(template, &lab);
    for _ in 0..flips {
        let (target, bit) = throw(template, &mut dice);
        lab.flip(&target.path, bit);
        if let Err(why) = broken(&lab, &expected, target) {
            let path = target.path.display();
            wrong
                .lock()
                .unwrap()
                .push(format!("{path}, bit {bit}: {why}"));
        }
        lab.mend(&target.path);
    }
}

#[test]
fn no_flipped_bit_is_handed_on_and_no_end_moves_in_silence() {
    skip_unless!(Cluster::available(15));
    let mut dice = Dice::thrown("flips");
    let begun = Instant::now();
    let template = Template::make();
    let (flips, programs, boots) = if soak() {
        (10_000, 300, 40)
    } else {
        (200, 12, 3)
    };
    println!(
        "one site with {} rows in {:.1?}",
        template.rows,
        begun.elapsed()
    );
    let (begun, wrong) = (Instant::now(), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (dice, wrong, template) = (dice.split(), &wrong, &template);
            scope.spawn(move || campaign(template, dice, flips / 2, wrong));
        }
    });
    println!(
        "{flips} flips asked file by file in {:.1?}",
        begun.elapsed()
    );
    let begun = Instant::now();
    for _ in 0..programs {
        let (target, bit) = throw(&template, &mut dice);
        let asked = program::ask(&template, target, bit);
        wrong.lock().unwrap().extend(asked.err());
    }
    for _ in 0..boots {
        let (target, bit) = throw(&template, &mut dice);
        let asked = program::boot(&template, target, bit);
        wrong.lock().unwrap().extend(asked.err());
    }
    println!(
        "{programs} programs and {boots} boots in {:.1?}",
        begun.elapsed()
    );
    let wrong = wrong.into_inner().unwrap();
    let shown = wrong
        .iter()
        .take(20)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        wrong.is_empty(),
        "{} flips were not noticed:\n{shown}",
        wrong.len()
    );
}
