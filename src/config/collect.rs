//! The keys of a file and of `--set`: known, written once, and all of one side.
//! Never looks at a value. Invariant: what is returned is under canonical names, the spelling of
//! the writer kept for messages.

use std::collections::HashMap;

use super::fault::{Fault, Place, shown};
use super::ini::{self, Section};
use super::interpolate::Raw;
use super::keys::{self, Side};

/// The keys of a file under their canonical names.
pub fn from_file(section: &Section) -> Result<HashMap<String, Raw>, Fault> {
    let mut found: HashMap<String, Raw> = HashMap::new();
    for entry in &section.entries {
        let place = Place::Line(entry.line);
        let name = known(&entry.key, place)?;
        for line in &entry.lines[1..] {
            check_swallowed(&entry.key, &line.text, line.line)?;
        }
        let raw = Raw {
            spelled: entry.key.clone(),
            text: entry.value(),
            place,
        };
        add(&mut found, name, raw)?;
    }
    Ok(found)
}

/// The keys of `--set` under their canonical names.
pub fn from_command_line(overrides: &[(String, String)]) -> Result<HashMap<String, Raw>, Fault> {
    let mut found = HashMap::new();
    for (key, text) in overrides {
        let spelled = ini::blank_trimmed(key).to_ascii_lowercase();
        let name = known(&spelled, Place::Set)?;
        if let Some(character) = ini::forbidden_character(text) {
            let says = format!(
                "expected text, found the control character U+{:04X}",
                character as u32
            );
            return Err(Fault::of_key(Place::Set, &spelled, says).hint("type it again"));
        }
        let raw = Raw {
            spelled,
            text: ini::blank_trimmed(text).to_owned(),
            place: Place::Set,
        };
        add(&mut found, name, raw)?;
    }
    Ok(found)
}

/// Whose file it is, and the key that shows it.
pub fn decide_side(
    section: &Section,
    from_file: &HashMap<String, Raw>,
    from_command_line: &HashMap<String, Raw>,
) -> Result<(Side, String), Fault> {
    const FOLDERS: [&str; 5] = [
        "completed_wals",
        "partial_wals",
        "walmgr_data",
        "full_backup",
        "config_backup",
    ];
    for source in [from_file, from_command_line] {
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
                Side::Master | Side::Both => ("master_data", masters),
            };
            let witness = names.iter().find(|name| **name == anchor).or(names.first());
            let witness = witness.and_then(|name| source.get(*name));
            return Ok((side, witness.map(describe).unwrap_or_default()));
        }
    }
    // The folders are the standby's own, so a file that names only them is the standby's.
    if let Some(folder) = FOLDERS.iter().find_map(|name| from_file.get(*name)) {
        return Ok((Side::Standby, describe(folder)));
    }
    Err(Fault::new(
        Place::Line(section.line),
        "expected a master's or a standby's settings, found none that only one of them has",
    )
    .hint("set `master_data` in the master's file, `completed_wals` in the standby's"))
}

fn describe(raw: &Raw) -> String {
    format!("{} on {}", raw.spelled, raw.place.in_words())
}

fn add(found: &mut HashMap<String, Raw>, name: &str, raw: Raw) -> Result<(), Fault> {
    let Some(first) = found.get(name) else {
        found.insert(name.to_owned(), raw);
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

fn known(key: &str, place: Place) -> Result<&'static str, Fault> {
    keys::canonical(key).ok_or_else(|| {
        let near = keys::suggestions(key);
        let hint = if near.is_empty() {
            "walmgr --ini prints every setting".to_owned()
        } else {
            format!("did you mean {}?", near.join(" or "))
        };
        let says = "expected a known setting, found an unknown one";
        Fault::of_key(place, &shown(key), says).hint(hint)
    })
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
    Err(Fault::of_key(Place::Line(line), &name, says).hint(hint))
}
