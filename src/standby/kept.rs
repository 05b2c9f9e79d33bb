//! What the rules of retention make of the sets, for those who show them.
//! Never changes anything. Invariant: what cannot be found out is not shown, and is no error here.

use crate::config::StandbyConfig;
use crate::output::backups::KeptLine;
use crate::standby::sets;
use crate::status::RetentionFacts;
use crate::store::sets::{Keeping, Retention};

/// For `status`.
pub(super) fn facts(config: &StandbyConfig) -> Option<RetentionFacts> {
    let retention = found(config)?;
    let names = retention.sets.iter().map(|set| set.name.to_string());
    let pinned = names.zip(&retention.pins);
    let pinned = pinned.filter_map(|(name, pin)| Some((name, pin.as_ref()?.note.clone())));
    let goes = retention.goes();
    Some(RetentionFacts {
        rules: Keeping::of(config).to_string(),
        pinned: pinned.collect(),
        goes: goes.map(|set| (set.name.to_string(), set.why())).collect(),
        next: next(&retention),
    })
}

/// What becomes of the sets, for a list of them.
#[derive(Default)]
pub(super) struct KeptSets {
    /// Of each, by its name.
    pub lines: Vec<(String, KeptLine)>,
    /// The one that goes next, and in how many days.
    pub next: Option<(String, u32)>,
}

/// For `listbackups`.
pub(super) fn lines(config: &StandbyConfig) -> KeptSets {
    let Some(retention) = found(config) else {
        return KeptSets::default();
    };
    let decided = retention.decided.iter().zip(&retention.pins);
    let lines = decided.map(|(set, pin)| {
        let line = KeptLine {
            goes: set.goes(),
            why: set.why(),
            has_way_forward: set.has_way_forward || set.goes(),
            pin: pin.as_ref().map(|pin| pin.note.clone()),
        };
        (set.name.to_string(), line)
    });
    KeptSets {
        lines: lines.collect(),
        next: next(&retention),
    }
}

fn found(config: &StandbyConfig) -> Option<Retention> {
    let sets = sets::open(config).ok()?;
    sets.retention(Keeping::of(config)).ok()
}

fn next(retention: &Retention) -> Option<(String, u32)> {
    let (name, days) = retention.next.as_ref()?;
    Some((name.to_string(), *days))
}
