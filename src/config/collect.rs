//! The keys of a file and of `--set`: known or referred to, each with one value, and whose file it is.
//! Never looks at a value but for the names it refers to. Invariant: what is returned is under
//! canonical names, the spelling of the writer kept for messages.

use std::collections::{HashMap, HashSet};

use super::fault::{Fault, SettingPlace, shown};
use super::ini::{self, Entry, Section};
use super::interpolate::{self, Raw};
use super::keys::{self, Side};

/// Sections that Skytools before version 3 read on one side only.
const SIDED_SECTIONS: [(&str, Side); 2] =
    [("wal-master", Side::Master), ("wal-slave", Side::Standby)];

/// Keys under their canonical names; a variable of the writer's own keeps its name.
pub(super) type Keys = HashMap<String, Raw>;

/// The keys of a file and of `--set`, and notes about the file's with their places.
pub(super) struct Collected {
    /// Those of the file.
    pub of_file: Keys,
    /// Those of the command line.
    pub of_command_line: Keys,
    /// Things worth saying that stop nobody.
    pub notes: Vec<(SettingPlace, String)>,
}

/// Collects and checks all keys.
pub(super) fn collect(
    section: &Section,
    overrides: &[(String, String)],
) -> Result<Collected, Fault> {
    let referred = Referred::new(section, overrides);
    let line = |(line, says): &(u32, String)| (SettingPlace::Line(*line), says.clone());
    let mut notes: Vec<(SettingPlace, String)> = section.notes.iter().map(line).collect();
    let mut of_file = from_entries(&section.defaults, &referred, &mut notes)?;
    // As a whole after the defaults: what they say twice is none of the section's business.
    of_file.extend(from_entries(&section.entries, &referred, &mut notes)?);
    Ok(Collected {
        of_file,
        of_command_line: from_command_line(overrides, &referred)?,
        notes,
    })
}

/// For each name that some value refers to, the key whose value that is; `None` if several are.
struct Referred(HashMap<String, Option<String>>);

impl Referred {
    fn new(section: &Section, overrides: &[(String, String)]) -> Self {
        let mut referred = Referred(HashMap::new());
        let sources = [&section.defaults, &section.entries, &section.unread];
        for entry in sources.into_iter().flatten() {
            for line in &entry.lines {
                referred.add(&entry.key, &line.text);
            }
        }
        for (key, text) in overrides {
            referred.add(&ini::blank_trimmed(key).to_ascii_lowercase(), text);
        }
        referred
    }

    fn add(&mut self, key: &str, text: &str) {
        let names: HashSet<String> = interpolate::references(text).into_iter().collect();
        for name in names {
            self.0
                .entry(name)
                .and_modify(|by| {
                    if by.as_deref() != Some(key) {
                        *by = None;
                    }
                })
                .or_insert_with(|| Some(key.to_owned()));
        }
    }

    /// Whether another key's value refers to this one.
    fn by_another(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|by| by.as_deref() != Some(key))
    }
}

fn from_entries(
    entries: &[Entry],
    referred: &Referred,
    notes: &mut Vec<(SettingPlace, String)>,
) -> Result<Keys, Fault> {
    let mut found = Keys::new();
    for entry in entries {
        let place = SettingPlace::Line(entry.line);
        let name = known(&entry.key, place, referred)?;
        for line in &entry.lines[1..] {
            check_swallowed(&entry.key, &line.text, line.line)?;
        }
        let raw = Raw {
            spelled: entry.key.clone(),
            text: entry.value(),
            place,
        };
        if let Some(first) = found
            .get(&name)
            .filter(|first| first.spelled == raw.spelled)
        {
            let where_first = first.place.in_words();
            let says = format!(
                "{} is set twice, first on {where_first}: this line counts",
                raw.spelled
            );
            notes.push((place, says));
            found.remove(&name);
        }
        add(&mut found, name, raw)?;
    }
    Ok(found)
}

fn from_command_line(overrides: &[(String, String)], referred: &Referred) -> Result<Keys, Fault> {
    let mut found = Keys::new();
    for (key, text) in overrides {
        let spelled = ini::blank_trimmed(key).to_ascii_lowercase();
        let name = known(&spelled, SettingPlace::Set, referred)?;
        if let Some(character) = ini::forbidden_character(text) {
            let says = format!(
                "expected text, found the control character U+{:04X}",
                character as u32
            );
            return Err(Fault::of_key(SettingPlace::Set, &spelled, says).hint("type it again"));
        }
        let raw = Raw {
            spelled,
            text: ini::blank_trimmed(text).to_owned(),
            place: SettingPlace::Set,
        };
        add(&mut found, name, raw)?;
    }
    Ok(found)
}

/// Whose file it is, and the key that shows it.
pub(super) fn decide_side(
    section: &Section,
    collected: &Collected,
) -> Result<(Side, String), Fault> {
    const FOLDERS: [&str; 5] = [
        "completed_wals",
        "partial_wals",
        "walmgr_data",
        "full_backup",
        "config_backup",
    ];
    let sources = [&collected.of_command_line, &collected.of_file];
    let clusters = sources.into_iter().find_map(|keys| keys.get("clusters"));
    if let Some(clusters) = clusters.filter(|raw| !raw.text.is_empty()) {
        return Ok((Side::Host, describe(clusters)));
    }
    let known = |(name, _): &&(&str, Side)| *name == section.name;
    if let Some((name, side)) = SIDED_SECTIONS.iter().find(known) {
        return Ok((*side, format!("[{name}] on line {}", section.line)));
    }
    for source in [&collected.of_file, &collected.of_command_line] {
        let of_side = |side| {
            let mut names: Vec<&str> = source
                .keys()
                .map(String::as_str)
                .filter(|name| keys::only_side(name) == Some(side))
                .collect();
            names.sort_unstable();
            names
        };
        let (masters, standbys) = (of_side(Side::Master), of_side(Side::Standby));
        let anchored = |name: &str| source.contains_key(name);
        let side = match (anchored("master_data"), anchored("slave_data")) {
            (true, false) => Some(Side::Master),
            (false, true) => Some(Side::Standby),
            _ if masters.is_empty() && standbys.is_empty() => None,
            _ if masters.len() >= standbys.len() => Some(Side::Master),
            _ => Some(Side::Standby),
        };
        if let Some(side) = side {
            let (anchor, names) = match side {
                Side::Standby => ("slave_data", standbys),
                Side::Master | Side::Host | Side::Both => ("master_data", masters),
            };
            let witness = names.iter().find(|name| **name == anchor).or(names.first());
            let witness = witness.and_then(|name| source.get(*name));
            return Ok((side, witness.map(describe).unwrap_or_default()));
        }
    }
    // The folders are the standby's own, so a file that names only them is the standby's.
    if let Some(folder) = FOLDERS.iter().find_map(|name| collected.of_file.get(*name)) {
        return Ok((Side::Standby, describe(folder)));
    }
    Err(Fault::new(
        SettingPlace::Line(section.line),
        "expected a setting that only a master or only a standby has, found none",
    )
    .hint("set `master_data` in the master's file, `completed_wals` in the standby's"))
}

fn describe(raw: &Raw) -> String {
    format!("{} on {}", raw.spelled, raw.place.in_words())
}

fn add(found: &mut Keys, name: String, raw: Raw) -> Result<(), Fault> {
    let Some(first) = found.get(&name) else {
        found.insert(name, raw);
        return Ok(());
    };
    let where_first = first.place.in_words();
    let says = if first.spelled == raw.spelled {
        format!("expected each key once, found it a second time (first on {where_first})")
    } else {
        format!(
            "expected each key once, found it under two spellings ({} on {where_first})",
            first.spelled
        )
    };
    Err(Fault::of_key(raw.place, &raw.spelled, says).hint("remove one of the two"))
}

/// The canonical name of a key that is known, or that another one's value refers to.
fn known(key: &str, place: SettingPlace, referred: &Referred) -> Result<String, Fault> {
    if let Some(name) = keys::canonical(key) {
        return Ok(name.to_owned());
    }
    if keys::is_of_framework(key) || referred.by_another(key) {
        return Ok(key.to_owned());
    }
    let near = keys::suggestions(key);
    let instead = match place {
        SettingPlace::Set => "walmgr --ini prints every setting",
        SettingPlace::Line(_) | SettingPlace::File => {
            "nothing refers to this key, so the line can be deleted"
        }
    };
    let hint = match near.as_slice() {
        [] if place == SettingPlace::Set => instead.to_owned(),
        [] => format!("{instead}; walmgr --ini prints every setting"),
        near => format!("did you mean {}? If not, {instead}", near.join(" or ")),
    };
    let says = "expected a known setting, found an unknown one";
    Err(Fault::of_key(place, &shown(key), says).hint(hint))
}

/// A setting indented by accident would silently become part of the value above it.
fn check_swallowed(key: &str, text: &str, line: u32) -> Result<(), Fault> {
    let Some(at) = text.find(['=', ':']) else {
        return Ok(());
    };
    let name = ini::blank_trimmed(&text[..at]).to_ascii_lowercase();
    if keys::canonical(&name).is_none() {
        return Ok(());
    }
    let says = format!("expected a setting at the line's start, found it indented below {key}");
    let hint = format!("an indented line continues the value of {key}: remove the spaces");
    Err(Fault::of_key(SettingPlace::Line(line), &name, says).hint(hint))
}
