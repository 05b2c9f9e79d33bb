//! What is known of each setting: names, sides, shapes, defaults, and the nearest known name.
//! Never parses a value. Invariant: a name has one row for all sides, or at most one row a side;
//! every row can be found under its `slave_` and its `standby_` spelling.

pub(crate) use super::table::KEYS;
use super::table::{FRAMEWORK, FRAMEWORK_SUFFIX};

use std::time::Duration;

/// Whose file a setting belongs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The ini file where PostgreSQL writes.
    Master,
    /// The ini file where WAL is kept and replayed.
    Standby,
    /// The ini file of a receiver that serves the clusters of a folder.
    Host,
    /// Any, with the same meaning.
    Both,
}

impl Side {
    /// `master`, `standby` or `host`.
    pub const fn word(self) -> &'static str {
        match self {
            Side::Master => "master",
            Side::Standby => "standby",
            Side::Host => "host",
            Side::Both => "master and standby",
        }
    }

    /// Whether a row for `self` holds in a file of `side`.
    pub const fn holds_in(self, side: Side) -> bool {
        matches!(
            (self, side),
            (Side::Both, _)
                | (Side::Master, Side::Master)
                | (Side::Standby, Side::Standby)
                | (Side::Host, Side::Host)
        )
    }
}

/// What a value has to look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Any text, such as a conninfo.
    Text,
    /// Any text on one line.
    Name,
    /// A shell command.
    Command,
    /// A file or directory; relative to the ini file's directory, `~` expands.
    Path,
    /// As [`Shape::Path`], but never a name alone or with a colon, which would be a host.
    BasePath,
    /// 1/0, true/false, yes/no, on/off.
    Boolean,
    /// A whole number within these bounds.
    Integer(u64, u64),
    /// A time within these bounds.
    Duration(Duration, Duration),
    /// A number of bytes within these bounds.
    Size(u64, u64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// The standby's address as the master writes it.
    SlaveAddress,
    /// Addresses to listen on.
    Listen(u16),
    /// `SHA256:` and 43 characters of base64.
    Fingerprint,
}

/// What is used where the file says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Default {
    /// The setting stays unset.
    Unset,
    /// This text, as if it had been written.
    Text(&'static str),
    /// Something derived from other settings, in these words.
    Derived(&'static str),
}

/// What this version does with a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It has its meaning.
    Used,
    /// It is accepted so that old files load, and means nothing any more.
    Ignored,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    /// The name, in the manual's spelling.
    pub name: &'static str,
    /// Whose file it belongs in.
    pub side: Side,
    /// What its value has to look like.
    pub shape: Shape,
    /// What is used without it.
    pub default: Default,
    /// Whether a file of its side must set it.
    pub required: bool,
    /// A value for the sample file and for hints.
    pub example: &'static str,
    /// Its meaning, in one line.
    pub help: &'static str,
    /// Whether the old manual does not know it.
    pub is_new: bool,
    /// What this version does with it.
    pub effect: Effect,
    /// Whether a number above the bound counts as the bound.
    pub clamps: bool,
}

impl Key {
    /// A row that is optional, unset by default, from the manual, and used.
    pub(super) const fn new(
        name: &'static str,
        side: Side,
        shape: Shape,
        example: &'static str,
        help: &'static str,
    ) -> Key {
        Key {
            name,
            side,
            shape,
            default: Default::Unset,
            required: false,
            example,
            help,
            is_new: false,
            effect: Effect::Used,
            clamps: false,
        }
    }

    /// A number above the bound is no mistake.
    pub(super) const fn clamped(mut self) -> Key {
        self.clamps = true;
        self
    }

    /// The default is its example.
    pub(super) const fn defaults(mut self) -> Key {
        self.default = Default::Text(self.example);
        self
    }

    /// The default is derived.
    pub(super) const fn derived(mut self, words: &'static str) -> Key {
        self.default = Default::Derived(words);
        self
    }

    /// A file of its side must set it.
    pub(super) const fn required(mut self) -> Key {
        self.required = true;
        self
    }

    /// The old manual does not know it.
    pub(super) const fn added(mut self) -> Key {
        self.is_new = true;
        self
    }

    /// It means nothing any more.
    pub(super) const fn ignored(mut self) -> Key {
        self.effect = Effect::Ignored;
        self
    }

    /// The `standby` spelling of a `slave` name.
    pub(crate) fn alias(&self) -> Option<String> {
        self.name
            .strip_prefix("slave")
            .map(|rest| format!("standby{rest}"))
    }

    /// What the default is, in words.
    pub(crate) const fn default_in_words(&self) -> &'static str {
        match self.default {
            Default::Unset if self.required => "must be set",
            Default::Unset => "",
            Default::Text(text) | Default::Derived(text) => text,
        }
    }
}

/// The table's spelling of a name in lower case, if the name is known.
pub(crate) fn canonical(name: &str) -> Option<&'static str> {
    let name = match name.strip_prefix("standby") {
        Some(rest) => format!("slave{rest}"),
        None => name.to_owned(),
    };
    KEYS.iter().find(|key| key.name == name).map(|key| key.name)
}

/// The row of a known name in a file of this side; `None` if it belongs to the other side.
pub(crate) fn row(name: &str, side: Side) -> Option<&'static Key> {
    KEYS.iter()
        .find(|key| key.name == name && key.side.holds_in(side))
}

/// The rows of one side's file, in the table's order.
pub(crate) fn rows(side: Side) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.side.holds_in(side))
}

/// Which of master and standby a known name belongs to, if it is only one of them.
pub(crate) fn only_side(name: &str) -> Option<Side> {
    match (row(name, Side::Master), row(name, Side::Standby)) {
        (Some(_), None) => Some(Side::Master),
        (None, Some(_)) => Some(Side::Standby),
        _ => None,
    }
}

/// Whether Skytools' framework knew this name in lower case, and walmgr does not.
pub(crate) fn is_of_framework(name: &str) -> bool {
    FRAMEWORK.contains(&name) || name.ends_with(FRAMEWORK_SUFFIX)
}

/// Longest unknown name that is compared with the known ones.
const COMPARED_CHARS_MAX: usize = 64;

/// The known names nearest to an unknown one, in either spelling; none if nothing is near.
pub(crate) fn suggestions(unknown: &str) -> Vec<String> {
    let known = |key: &Key| std::iter::once(key.name.to_owned()).chain(key.alias());
    nearest(unknown, KEYS.iter().flat_map(known))
}

/// The names of `known` that are nearest to an unknown one; none if nothing is near.
pub(crate) fn nearest(unknown: &str, known: impl Iterator<Item = String>) -> Vec<String> {
    let letters: Vec<char> = unknown.chars().take(COMPARED_CHARS_MAX + 1).collect();
    if letters.len() > COMPARED_CHARS_MAX {
        return Vec::new();
    }
    let mut best = (letters.len() / 3).clamp(1, 3);
    let mut nearest: Vec<String> = Vec::new();
    for name in known {
        if name.len().abs_diff(letters.len()) > best {
            continue;
        }
        let distance = edit_distance(&letters, &name.chars().collect::<Vec<char>>());
        if distance < best {
            nearest.clear();
            best = distance;
        }
        if distance == best && !nearest.contains(&name) {
            nearest.push(name);
        }
    }
    nearest
}

/// Letters to insert, remove, replace or swap with their neighbour to get from one to the other.
fn edit_distance(from: &[char], to: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for (row, letter) in from.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, other) in to.iter().enumerate() {
            let replaced = last[column] + usize::from(letter != other);
            let mut least = replaced.min(last[column + 1] + 1).min(current[column] + 1);
            let swapped =
                row > 0 && column > 0 && *letter == to[column - 1] && from[row - 1] == *other;
            if swapped {
                least = least.min(before_last[column - 1] + 1);
            }
            current.push(least);
        }
        before_last = std::mem::replace(&mut last, current);
    }
    last[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_has_one_row_a_side() {
        for key in KEYS {
            for side in [Side::Master, Side::Standby, Side::Host] {
                let count = rows(side).filter(|other| other.name == key.name).count();
                assert!(
                    count <= 1,
                    "{} has {count} rows for the {}",
                    key.name,
                    side.word()
                );
            }
            assert!(!key.name.starts_with("standby"), "{}", key.name);
            assert!(
                !key.help.is_empty() && !key.help.contains('\n'),
                "{}",
                key.name
            );
        }
    }

    #[test]
    fn both_spellings_lead_to_one_name() {
        assert_eq!(canonical("standby_data"), Some("slave_data"));
        assert_eq!(canonical("slave_data"), Some("slave_data"));
        assert_eq!(canonical("standby"), Some("slave"));
        assert_eq!(canonical("standby_completed_wals"), None);
    }

    #[test]
    fn every_setting_of_the_manual_has_a_row() {
        let master = "job_name logfile use_skylog pidfile master_db master_data master_config \
            master_bin master_restart_cmd slave slave_config walmgr_data completed_wals \
            partial_wals full_backup config_backup loop_delay use_xlog_functions compression \
            keep_symlinks hot_standby command_interval periodic_command slave_fingerprint tls \
            tls_key tls_cert tls_ca connect_timeout push_timeout block_size backup_jobs \
            backup_checkpoint archive_batch archive_jobs restore_ahead verify_wal";
        let standby = "job_name logfile use_skylog slave_data slave_bin slave_config_dir \
            slave_stop_cmd slave_start_cmd slave slave_pg_xlog walmgr_data completed_wals \
            partial_wals full_backup config_backup keep_backups keep_minimum_age backup_datadir archive_command \
            primary_conninfo listen tls tls_key tls_cert tls_ca authorized_keys authorized_names max_connections \
            on_corrupt restore_ahead restore_wait log_format metrics_listen";
        for (names, side) in [(master, Side::Master), (standby, Side::Standby)] {
            for name in names.split_whitespace() {
                assert!(row(name, side).is_some(), "{name} for the {}", side.word());
            }
        }
    }

    #[test]
    fn names_without_a_neighbour_suggest_nothing() {
        assert!(suggestions("colour").is_empty());
        assert!(suggestions("").is_empty());
        assert!(suggestions(&"slave_data".repeat(1_000)).is_empty());
    }

    /// Every name with one letter removed, replaced, doubled or swapped.
    fn misspellings(name: &str, letter: char) -> Vec<String> {
        let letters: Vec<char> = name.chars().collect();
        let mut found = Vec::new();
        for at in 0..letters.len() {
            let mut removed = letters.clone();
            removed.remove(at);
            let mut replaced = letters.clone();
            replaced[at] = letter;
            let mut inserted = letters.clone();
            inserted.insert(at, letter);
            let mut swapped = letters.clone();
            swapped.swap(at, (at + 1).min(letters.len() - 1));
            found.extend([removed, replaced, inserted, swapped]);
        }
        found
            .into_iter()
            .map(String::from_iter)
            .filter(|wrong| canonical(wrong).is_none())
            .collect()
    }

    fn check_suggested(key: &Key, letter: char) {
        for name in std::iter::once(key.name.to_owned()).chain(key.alias()) {
            for wrong in misspellings(&name, letter) {
                let near = suggestions(&wrong);
                assert!(near.contains(&name), "{wrong}: {near:?}, not {name}");
                assert!(near.len() <= 3, "{wrong}: {near:?}");
            }
        }
    }

    #[test]
    fn fault_96_every_name_misspelled_by_one_letter_is_suggested() {
        for key in KEYS {
            check_suggested(key, 'x');
        }
    }

    proptest! {
        #[test]
        fn fault_96_any_letter_misspells_to_a_suggestion(at in 0..KEYS.len(), letter in "[a-z_]") {
            check_suggested(&KEYS[at], letter.chars().next().unwrap());
        }

        #[test]
        fn distance_is_symmetric_and_zero_only_for_equals(a in "[a-c]{0,6}", b in "[a-c]{0,6}") {
            let (x, y): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
            prop_assert_eq!(edit_distance(&x, &y), edit_distance(&y, &x));
            prop_assert_eq!(edit_distance(&x, &y) == 0, a == b);
        }
    }
}
