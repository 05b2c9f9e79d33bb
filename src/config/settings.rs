//! The settings of one file after every check that needs one key only.
//! Never decides what a setting is for. Invariant: every value held has the shape of its row in
//! [`super::keys`], and each key is held once, under its canonical name.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::address::{ListenAddress, SlaveAddress};
use super::collect::{self, Keys};
use super::fault::{Fault, SettingPlace, shown};
use super::ini::Section;
use super::interpolate::{Interpolator, Raw};
use super::keys::{self, Default, Key, Shape, Side};
use super::value::{self, Surroundings, Value};

/// One setting that the file or the command line gives a value.
#[derive(Debug, Clone)]
pub(super) struct GivenSetting {
    /// The checked value.
    pub value: Value,
    /// Where it was written.
    pub place: SettingPlace,
    /// The key as it was written there.
    pub spelled: String,
}

/// Every setting given.
#[derive(Debug, Clone)]
pub(super) struct GivenSettings {
    /// Whose file it is.
    pub side: Side,
    /// The ini file, absolute.
    pub file: PathBuf,
    /// Where paths start from.
    around: Surroundings,
    section_line: u32,
    given: BTreeMap<&'static str, GivenSetting>,
    /// Things worth saying that stop nobody.
    pub notes: Vec<String>,
    /// Values that count as others.
    pub warnings: Vec<String>,
}

impl GivenSettings {
    /// Checks every key of the section and of `overrides` (pairs from `--set`).
    pub(super) fn check(
        file: &Path,
        section: &Section,
        overrides: &[(String, String)],
        around: Surroundings,
    ) -> Result<GivenSettings, Fault> {
        let collected = collect::collect(section, overrides)?;
        let (side, witness) = collect::decide_side(section, &collected)?;
        let note =
            |(place, says): &(SettingPlace, String)| format!("{}: {says}", place.in_file(file));
        let mut settings = GivenSettings {
            side,
            file: file.to_path_buf(),
            around,
            section_line: section.line,
            given: BTreeMap::new(),
            notes: collected.notes.iter().map(note).collect(),
            warnings: Vec::new(),
        };
        let mut raw = collected.of_file;
        raw.extend(collected.of_command_line);
        settings.read_values(&raw, section, &witness)?;
        settings.check_required()?;
        Ok(settings)
    }

    fn read_values(&mut self, raw: &Keys, section: &Section, witness: &str) -> Result<(), Fault> {
        let mut interpolator = Interpolator::new(raw, self.builtin(section));
        let mut names: Vec<&String> = raw.keys().collect();
        // In the order of the file, so that the first mistake is the one that is reported.
        names.sort_by_key(|name| match raw[*name].place {
            SettingPlace::Line(number) => (number, name.as_str()),
            SettingPlace::Set | SettingPlace::File => (u32::MAX, name.as_str()),
        });
        let mut of_framework = Vec::new();
        let mut of_other_side = Vec::new();
        for name in names {
            let written = &raw[name];
            let Some(row) = keys::row(name, self.side) else {
                if keys::canonical(name).is_none() {
                    // Otherwise a variable of the writer's own: it counts where it is referred to.
                    if keys::is_of_framework(name) {
                        of_framework.push(written);
                    }
                } else if name == "clusters" {
                    // Only without a value: one makes the file a host's.
                } else if self.side == Side::Host {
                    return Err(not_of_host(written, name, witness));
                } else if written.place == SettingPlace::Set {
                    return Err(other_side(written, name, self.side, witness));
                } else {
                    of_other_side.push(written);
                }
                continue;
            };
            let text = interpolator.expand(name)?;
            if text.is_empty() && unset_by_empty(row) {
                continue;
            }
            let text = self.clamped(row, written, text);
            let value = value::parse(row.shape, &text, &self.around)
                .map_err(|expected| wrong_value(row, written, &text, expected))?;
            self.given.insert(
                row.name,
                GivenSetting {
                    value,
                    place: written.place,
                    spelled: written.spelled.clone(),
                },
            );
        }
        self.note_framework(&of_framework);
        let other = match self.side {
            Side::Standby => "master",
            Side::Master | Side::Host | Side::Both => "standby",
        };
        let why = format!(
            "a setting of the {other}, and this is a {}'s file because of {witness}",
            self.side.word()
        );
        self.note_ignored(&of_other_side, &why);
        Ok(())
    }

    /// The names that Skytools knew without their being set.
    fn builtin(&self, section: &Section) -> HashMap<&'static str, String> {
        let directory = self.file.parent().unwrap_or(Path::new("/"));
        let host = rustix::system::uname();
        HashMap::from([
            ("job_name", default_job_name(&self.file)),
            ("service_name", section.name.clone()),
            ("__name__", section.name.clone()),
            ("host_name", host.nodename().to_string_lossy().into_owned()),
            ("config_dir", directory.to_string_lossy().into_owned()),
            ("config_file", self.file.to_string_lossy().into_owned()),
        ])
    }

    fn note_ignored(&mut self, ignored: &[&Raw], why: &str) {
        for raw in ignored {
            let place = raw.place.in_file(&self.file);
            self.notes
                .push(format!("{place}: {} is ignored: {why}", raw.spelled));
        }
    }

    /// One note for all: production files have a dozen of them.
    fn note_framework(&mut self, ignored: &[&Raw]) {
        let Some(first) = ignored.first() else {
            return;
        };
        let names: Vec<&str> = ignored.iter().map(|raw| raw.spelled.as_str()).collect();
        let (are, they) = match names.len() {
            1 => ("is", "it"),
            _ => ("are", "they"),
        };
        let place = first.place.in_file(&self.file);
        let names = names.join(", ");
        self.notes.push(format!(
            "{place}: {names} {are} ignored: {they} belonged to Skytools"
        ));
    }

    /// The text, or the most that counts where a bigger number meant something once.
    fn clamped(&mut self, row: &Key, written: &Raw, text: Rc<str>) -> Rc<str> {
        let Shape::Integer(_, max) = row.shape else {
            return text;
        };
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // More digits than a number can have are more than the most, too.
        let is_beyond = is_number && text.parse().map_or(true, |number: u64| number > max);
        if !row.clamps || !is_beyond {
            return text;
        }
        let place = written.place.in_file(&self.file);
        let (spelled, found) = (&written.spelled, shown(&text));
        self.warnings.push(format!(
            "{place}: {spelled} = {found} is more than {max}, the most there is: {max} counts"
        ));
        max.to_string().into()
    }

    fn check_required(&self) -> Result<(), Fault> {
        for row in keys::rows(self.side) {
            if row.required && !self.given.contains_key(row.name) {
                return Err(self.missing(row.name, row.help));
            }
        }
        Ok(())
    }

    /// The error for a setting that has to be given.
    pub(super) fn missing(&self, name: &str, why: &str) -> Fault {
        let says = format!("expected a value, found none: {why}");
        let example = keys::row(name, self.side).map_or("...", |row| row.example);
        Fault::of_key(SettingPlace::Line(self.section_line), name, says)
            .hint(format!("add a line such as `{name} = {example}`"))
    }

    /// A setting, if it was given.
    pub(super) fn get(&self, name: &str) -> Option<&GivenSetting> {
        self.given.get(name)
    }

    /// Every setting given, with its row's name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, &GivenSetting)> {
        self.given.iter().map(|(name, setting)| (*name, setting))
    }

    /// Where paths start from.
    pub(super) fn around(&self) -> &Surroundings {
        &self.around
    }

    /// The value given, or the table's default.
    fn value(&self, name: &str) -> Result<Option<Value>, Fault> {
        if let Some(setting) = self.given.get(name) {
            return Ok(Some(setting.value.clone()));
        }
        match keys::row(name, self.side).map(|row| (row.shape, row.default)) {
            Some((shape, Default::Text(text))) => value::parse(shape, text, &self.around)
                .map(Some)
                .map_err(|expected| {
                    let says = format!("the default is not {}", expected.what);
                    Fault::of_key(SettingPlace::File, name, says)
                }),
            _ => Ok(None),
        }
    }

    /// The value of a setting that has a default or is required.
    fn certain(&self, name: &str) -> Result<Value, Fault> {
        self.value(name)?
            .ok_or_else(|| self.missing(name, "it has no default"))
    }
}

/// Readers by type, one a shape. A name asked for under the wrong type reads as missing.
impl GivenSettings {
    /// A text, if given or defaulted.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, Fault> {
        Ok(self.value(name)?.map(|value| value.to_string()))
    }

    /// A path, if given.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        match self.get(name).map(|setting| &setting.value) {
            Some(Value::Path(path)) => Some(path.clone()),
            _ => None,
        }
    }

    /// A boolean.
    pub(super) fn boolean(&self, name: &str) -> Result<bool, Fault> {
        match self.certain(name)? {
            Value::Boolean(value) => Ok(value),
            _ => Err(self.missing(name, "expected a boolean")),
        }
    }

    /// A whole number or a number of bytes that its row bounds within `T`.
    pub(super) fn number<T: TryFrom<u64>>(&self, name: &str) -> Result<T, Fault> {
        match self.certain(name)? {
            Value::Integer(number) | Value::Size(number) => {
                T::try_from(number).map_err(|_| self.missing(name, "expected a smaller number"))
            }
            _ => Err(self.missing(name, "expected a number")),
        }
    }

    /// A number that need not be set.
    pub(super) fn optional_number<T: TryFrom<u64>>(&self, name: &str) -> Result<Option<T>, Fault> {
        match self.value(name)? {
            Some(_) => self.number(name).map(Some),
            None => Ok(None),
        }
    }

    /// A number of bytes that need not be set.
    pub(super) fn optional_size(&self, name: &str) -> Result<Option<u64>, Fault> {
        Ok(match self.value(name)? {
            Some(Value::Size(bytes)) => Some(bytes),
            _ => None,
        })
    }

    /// A time that has a default.
    pub(super) fn duration(&self, name: &str) -> Result<Duration, Fault> {
        self.optional_duration(name)?
            .ok_or_else(|| self.missing(name, "expected a time"))
    }

    /// A time, if given or defaulted.
    pub(super) fn optional_duration(&self, name: &str) -> Result<Option<Duration>, Fault> {
        Ok(match self.value(name)? {
            Some(Value::Duration(time)) => Some(time),
            _ => None,
        })
    }

    /// One of a row's words.
    pub(super) fn choice(&self, name: &str) -> Result<&'static str, Fault> {
        match self.certain(name)? {
            Value::Choice(word) => Ok(word),
            _ => Err(self.missing(name, "expected a word")),
        }
    }

    /// The standby's address.
    pub(super) fn slave_address(&self, name: &str) -> Result<SlaveAddress, Fault> {
        match self.certain(name)? {
            Value::Slave(address) => Ok(address),
            _ => Err(self.missing(name, "expected an address")),
        }
    }

    /// Addresses to listen on; none if unset and without a default.
    pub(super) fn listen(&self, name: &str) -> Result<Vec<ListenAddress>, Fault> {
        Ok(match self.value(name)? {
            Some(Value::Listen(addresses)) => addresses,
            _ => Vec::new(),
        })
    }
}

/// The job's name where the file gives none: the file's own.
pub(super) fn default_job_name(file: &Path) -> String {
    let stem = file
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned());
    stem.filter(|stem| !stem.is_empty())
        .unwrap_or_else(|| "walmgr".to_owned())
}

/// An empty text or path is as good as none; an empty number is a mistake.
fn unset_by_empty(row: &Key) -> bool {
    !matches!(
        row.shape,
        Shape::Boolean
            | Shape::Integer(..)
            | Shape::Duration(..)
            | Shape::Size(..)
            | Shape::Choice(_)
    )
}

fn other_side(raw: &Raw, name: &str, side: Side, witness: &str) -> Fault {
    let owner = keys::only_side(name).unwrap_or(Side::Both).word();
    let says = format!(
        "expected a {0}'s setting, found one of the {owner}; this is a {0}'s file because of {witness}",
        side.word()
    );
    Fault::of_key(raw.place, &raw.spelled, says)
        .hint(format!("move it to the {owner}'s ini file, or remove it"))
}

fn not_of_host(raw: &Raw, name: &str, witness: &str) -> Fault {
    let (owner, hint) = match keys::only_side(name) {
        Some(Side::Master) => (
            "the master",
            "move it to the master's ini file, or remove it",
        ),
        _ => ("a cluster", "it belongs into a file of the folder clusters"),
    };
    let says = format!(
        "expected a setting of the host, found one of {owner}; \
         this file is of a host of many clusters because of {witness}"
    );
    Fault::of_key(raw.place, &raw.spelled, says).hint(hint)
}

fn wrong_value(row: &Key, raw: &Raw, text: &str, expected: value::Expected) -> Fault {
    let found = if text.is_empty() {
        "nothing".to_owned()
    } else {
        format!("`{}`", shown(text))
    };
    let hint = if !expected.hint.is_empty() {
        expected.hint
    } else if text.contains(" #") || text.contains("\t#") {
        "after a value a comment starts with a space and a semicolon, ` ;`, not with #".to_owned()
    } else {
        format!("write for example `{} = {}`", raw.spelled, row.example)
    };
    let says = format!("expected {}, found {found}", expected.what);
    Fault::of_key(raw.place, &raw.spelled, says).hint(hint)
}
