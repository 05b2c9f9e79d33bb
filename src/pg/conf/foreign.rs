//! Settings that came from another host: data, not orders. One table says what each may do here.
//! Never removes a byte: a line that is switched off stays as a comment. Invariant: a server that is
//! started on the result runs no command, loads no library and writes to no place that this host's
//! own file does not name.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::line::{self, ConfSetting};
use super::{is_on, lines, value};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::layout;

/// What stands in front of a line that was switched off.
const MARK: &[u8] = b"#walmgr restore: ";

/// Files that one restore looks into; a data directory has two or three.
const FILES_MAX: usize = 1_000;

/// A file of settings is far smaller.
pub(super) const FILE_BYTES_MAX: u64 = 16 << 20;

/// What a value has to be to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Empty: anything else is run, written or obeyed.
    Empty,
    /// Off.
    Off,
    /// Libraries of the installation: plain names, or `$libdir/NAME`.
    Libraries,
    /// A search path of this element only.
    Only(&'static str),
    /// A place inside the data directory.
    Inside,
    /// A file's name without a directory, also after `strftime` has filled it in.
    PlainName,
    /// This file beside the settings, or in the data directory.
    Beside(&'static str),
}

/// The settings of PostgreSQL 13 to 18 that reach beyond the server's data, or were about another life of
/// it, with the reason.
///
/// Left alone on purpose: `ssl_*_file`, `krb_server_keyfile` (they are read and let nobody in by
/// themselves), `listen_addresses`, `port` and `unix_socket_directories` (nothing is run or overwritten
/// by them). A restore shows what `pg_hba.conf` lets in, so no other file may stand in its place.
const TABLE: [(&str, Rule, &str); 39] = [
    ("archive_cleanup_command", Rule::Empty, "it runs a command"),
    ("archive_command", Rule::Empty, "it runs a command"),
    ("archive_library", Rule::Empty, "it loads a library"),
    ("recovery_end_command", Rule::Empty, "it runs a command"),
    ("restore_command", Rule::Empty, "it runs a command"),
    ("ssl_passphrase_command", Rule::Empty, "it runs a command"),
    (
        "shared_preload_libraries",
        Rule::Libraries,
        "it loads a library from elsewhere",
    ),
    (
        "session_preload_libraries",
        Rule::Libraries,
        "it loads a library from elsewhere",
    ),
    (
        "local_preload_libraries",
        Rule::Libraries,
        "it loads a library from elsewhere",
    ),
    (
        "jit_provider",
        Rule::Libraries,
        "it loads a library from elsewhere",
    ),
    (
        "oauth_validator_libraries",
        Rule::Libraries,
        "it loads a library from elsewhere",
    ),
    (
        "dynamic_library_path",
        Rule::Only("$libdir"),
        "libraries come from elsewhere",
    ),
    (
        "extension_control_path",
        Rule::Only("$system"),
        "extensions come from elsewhere",
    ),
    ("data_directory", Rule::Empty, "it names another directory"),
    ("external_pid_file", Rule::Empty, "it overwrites a file"),
    (
        "hba_file",
        Rule::Beside(layout::HBA_CONF),
        "another file controls who may connect",
    ),
    (
        "ident_file",
        Rule::Beside(layout::IDENT_CONF),
        "another file maps users",
    ),
    ("log_directory", Rule::Inside, "it writes files elsewhere"),
    ("log_filename", Rule::PlainName, "it writes files elsewhere"),
    (
        "stats_temp_directory",
        Rule::Inside,
        "it writes files elsewhere",
    ),
    (
        "primary_conninfo",
        Rule::Empty,
        "it names a server to follow",
    ),
    ("primary_slot_name", Rule::Empty, "it names another's slot"),
    ("recovery_min_apply_delay", Rule::Empty, "it delays replay"),
    ("promote_trigger_file", Rule::Empty, "it opens the server"),
    (
        "synchronous_standby_names",
        Rule::Empty,
        "every commit would wait for another server's standbys",
    ),
    (
        "synchronized_standby_slots",
        Rule::Empty,
        "logical replication would wait for another server's standbys",
    ),
    (
        "sync_replication_slots",
        Rule::Off,
        "it copies another server's slots",
    ),
    ("cluster_name", Rule::Empty, "it is another server's name"),
    (
        "ignore_invalid_pages",
        Rule::Off,
        "it makes replay ignore damage",
    ),
    (
        "ignore_checksum_failure",
        Rule::Off,
        "it makes the server accept damaged data",
    ),
    ("zero_damaged_pages", Rule::Off, "it clears what is damaged"),
    (
        "recovery_target",
        Rule::Empty,
        "it is another recovery's target",
    ),
    (
        "recovery_target_action",
        Rule::Empty,
        "it is another recovery's target",
    ),
    (
        "recovery_target_inclusive",
        Rule::Empty,
        "it is another recovery's target",
    ),
    (
        "recovery_target_lsn",
        Rule::Empty,
        "it is another recovery's target",
    ),
    (
        "recovery_target_name",
        Rule::Empty,
        "it is another recovery's target",
    ),
    (
        "recovery_target_time",
        Rule::Empty,
        "it is another recovery's target",
    ),
    (
        "recovery_target_timeline",
        Rule::Empty,
        "it is another recovery's target",
    ),
    (
        "recovery_target_xid",
        Rule::Empty,
        "it is another recovery's target",
    ),
];

/// Last parts of an extension's settings (`basebackup_to_shell.command`, `plperl.on_init`,
/// `pgsodium.getkey_script`, `pljava.libjvm_location`, `basic_archive.archive_directory`) that run or
/// load something, or write somewhere. Nobody knows all extensions; these are their words.
const EXTENSION_WORDS: [&str; 15] = [
    "command",
    "script",
    "program",
    "executable",
    "library",
    "libraries",
    "start_proc",
    "on_init",
    "on_plperl_init",
    "on_plperlu_init",
    "libjvm_location",
    "vmoptions",
    "path",
    "directory",
    "filename",
];

/// Conversions of `log_filename` that give digits, names of days and months, and nothing else. `%Z`
/// gives what `log_timezone` says, and that may be `<../../NAME>0`.
const TIME_CONVERSIONS: &[u8] = b"%aAbBCdeFgGhHIjklmMpRsSTuUVwWyYz";

/// Folders of a data directory into which the server itself writes, so that what lies there later is
/// not what was looked at.
const SERVERS_FOLDERS: [&str; 2] = [layout::BASE, layout::GLOBAL];

/// A line that is without effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SwitchedOff {
    /// The setting.
    pub name: String,
    /// What it said.
    pub value: String,
    /// Why it may not say that here.
    pub why: &'static str,
}

impl SwitchedOff {
    /// The line as a restore names it; `path` is the file that it stands in.
    pub(crate) fn sentence(&self, path: &Path) -> String {
        let (name, value, why) = (&self.name, self.value.escape_debug(), self.why);
        let path = path.display();
        format!("{name} = '{value}' in {path} was switched off: {why}; --trust-settings keeps it")
    }
}

/// The host that foreign settings come to.
pub(crate) struct Host<'a> {
    /// The text of its own `postgresql.conf`; empty if it has none.
    pub own: &'a [u8],
    /// Where the server's data lies, or will.
    pub data: &'a Path,
}

impl Host<'_> {
    /// The text with every line commented out that reaches beyond the data, and those lines.
    ///
    /// `folder` is where the file will lie: what it includes has to lie there too.
    pub(crate) fn neutralise(&self, text: &[u8], folder: &Path) -> (Vec<u8>, Vec<SwitchedOff>) {
        let (mut kept, mut off) = (Vec::with_capacity(text.len()), Vec::new());
        for line in lines(text) {
            if let Some(setting) = line::setting(line)
                && let Some(why) =
                    objection_to_line(line).or_else(|| self.objection(&setting, folder))
            {
                kept.extend_from_slice(MARK);
                off.push(SwitchedOff {
                    value: String::from_utf8_lossy(&setting.value).into_owned(),
                    name: setting.name,
                    why,
                });
            }
            kept.extend_from_slice(line);
        }
        (kept, off)
    }

    /// Why a setting may not stand; `None` if it may.
    fn objection(&self, setting: &ConfSetting, folder: &Path) -> Option<&'static str> {
        let name = setting.name.as_str();
        let Ok(text) = std::str::from_utf8(&setting.value) else {
            return is_known(name).then_some("it is no text");
        };
        if matches!(name, "include" | "include_if_exists" | "include_dir") {
            if !is_inside(text, folder) {
                return Some("it includes files of the host");
            }
            return is_servers(text, folder).then_some("it includes what the server writes");
        }
        let (rule, why) = rule_of(name)?;
        let fits = match rule {
            Rule::Empty => text.is_empty() || self.is_own_data_directory(name, text),
            Rule::Off => !is_on(text),
            Rule::Libraries => elements(text, ',').all(is_of_installation),
            Rule::Only(element) => elements(text, ':').all(|it| it == element),
            Rule::Inside => is_inside(text, self.data),
            Rule::PlainName => is_plain_name(text),
            Rule::Beside(file) => [folder, self.data]
                .map(|folder| folder.join(file))
                .contains(&PathBuf::from(text)),
        };
        // A `data_directory` with the value of this host's own file is another server's directory.
        let is_own =
            || name != "data_directory" && value(self.own, name).is_some_and(|own| own == text);
        (!fits && !is_own()).then_some(why)
    }

    fn is_own_data_directory(&self, name: &str, text: &str) -> bool {
        name == "data_directory" && Path::new(text) == self.data
    }

    /// Neutralises `postgresql.conf`, `postgresql.auto.conf` and what they include, in a directory on
    /// which no server runs. The lines are told with the file that they stand in.
    pub(crate) fn neutralise_directory(
        &self,
        folder: &Path,
    ) -> Result<Vec<(PathBuf, SwitchedOff)>> {
        let mut waiting: Vec<PathBuf> = [layout::MAIN_CONF, layout::AUTO_CONF]
            .map(|name| folder.join(name))
            .to_vec();
        let (mut seen, mut all) = (BTreeSet::new(), Vec::new());
        while let Some(path) = waiting.pop() {
            if !seen.insert(path.clone()) {
                continue;
            }
            if seen.len() > FILES_MAX {
                let folder = folder.display();
                return Err(CommandError::config(format!(
                    "the settings in {folder} include more than {FILES_MAX} files"
                ))
                .hint("look at what includes them; --trust-settings restores them unchanged"));
            }
            let found = match path.symlink_metadata() {
                Ok(found) => found,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).at(Kind::Retry, "examine", &path),
            };
            if found.is_dir() {
                waiting.extend(conf_files(&path)?);
                continue;
            }
            if found.is_symlink() {
                // What it leads to is not of the set, and may not be read with it.
                std::fs::remove_file(&path).at(Kind::Retry, "remove", &path)?;
                tracing::warn!("{} is a symlink and was removed", path.display());
                continue;
            }
            if !found.is_file() || found.len() > FILE_BYTES_MAX {
                let path = path.display();
                return Err(
                    CommandError::config(format!("{path} is not a configuration file"))
                        .hint("look at what includes it; --trust-settings restores it unchanged"),
                );
            }
            let text = files::read(&path).at(Kind::Retry, "read", &path)?;
            let (kept, off) = self.neutralise(&text, folder);
            let above = path.parent().unwrap_or(folder);
            waiting.extend(included(&kept).map(|name| above.join(name)));
            if kept != text {
                files::replace(&path, &kept, 0o600).at(Kind::Retry, "write", &path)?;
            }
            all.extend(off.into_iter().map(|off| (path.clone(), off)));
        }
        Ok(all)
    }
}

/// Whether a file in a folder of settings has an effect outside PostgreSQL: Debian's `environment`
/// (`LD_PRELOAD`), `start.conf` and `pg_ctl.conf`, files of a shell or of ssh. Settings, and who may
/// come in, lie in `*.conf`.
pub(crate) fn is_outside_postgresql(name: &str) -> bool {
    let debians = [
        "start.conf",
        "pg_ctl.conf",
        "createcluster.conf",
        "pg_service.conf",
    ];
    !name.ends_with(".conf") || name.starts_with('.') || debians.contains(&name)
}

/// What `include_dir` reads of a folder: files named `*.conf`, and what may be one.
fn conf_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).at(Kind::Retry, "list", folder)? {
        let entry = entry.at(Kind::Retry, "list", folder)?;
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_folder && name.ends_with(b".conf") && !name.starts_with(b".") {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// The files and folders that a text includes.
fn included(text: &[u8]) -> impl Iterator<Item = PathBuf> {
    let settings = lines(text).filter_map(line::setting);
    settings
        .filter(|setting| setting.name.starts_with("include"))
        .filter_map(|setting| String::from_utf8(setting.value).ok().map(PathBuf::from))
}

/// PostgreSQL's scanner goes on behind a NUL byte, and what reads the value does not: where such a
/// value ends is not the same for both.
fn objection_to_line(line: &[u8]) -> Option<&'static str> {
    line.contains(&0).then_some("it holds a NUL byte")
}

fn is_known(name: &str) -> bool {
    rule_of(name).is_some() || name.starts_with("include")
}

fn rule_of(name: &str) -> Option<(Rule, &'static str)> {
    if let Some((_, rule, why)) = TABLE.iter().find(|(known, ..)| *known == name) {
        return Some((*rule, why));
    }
    let (_, word) = name.rsplit_once('.')?;
    let is_word = |known: &&str| {
        let before = word.strip_suffix(*known);
        before.is_some_and(|before| before.is_empty() || before.ends_with('_'))
    };
    let found = EXTENSION_WORDS.into_iter().find(is_word);
    found.map(|_| (Rule::Empty, "it runs or loads what an extension is given"))
}

/// The elements of a list, without blanks and quotes.
fn elements(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let elements = text.split(separator).map(|element| {
        let element = element.trim_matches(|letter: char| letter.is_ascii_whitespace());
        element.trim_matches('"')
    });
    elements.filter(|element| !element.is_empty())
}

/// A name that PostgreSQL looks for among the installed libraries, and nowhere else.
fn is_of_installation(library: &str) -> bool {
    // `plugins/NAME` without `$libdir` is a path, below the data directory.
    let name = match library.strip_prefix("$libdir/") {
        Some(name) => name.strip_prefix("plugins/").unwrap_or(name),
        None => library,
    };
    !name.contains('/') && !name.contains('\\') && name != ".."
}

/// Whether a pattern of a file's name gives one without a directory, whatever the time zone.
fn is_plain_name(pattern: &str) -> bool {
    let mut parts = pattern.as_bytes().split(|byte| *byte == b'%').peekable();
    let Some(first) = parts.next() else {
        return true;
    };
    let mut is_plain = !first.contains(&b'/');
    while let Some(part) = parts.next() {
        is_plain &= !part.contains(&b'/');
        match part.first() {
            Some(conversion) => is_plain &= TIME_CONVERSIONS.contains(conversion),
            // `%%`: what follows is text.
            None => is_plain &= parts.next().is_some_and(|text| !text.contains(&b'/')),
        }
    }
    is_plain
}

/// Whether a path that is inside a folder of settings leads to where a server writes: relations,
/// WAL, tablespaces.
fn is_servers(path: &str, folder: &Path) -> bool {
    let path = folder.join(path);
    let below = path.strip_prefix(folder).unwrap_or(&path);
    let mut parts = below
        .components()
        .filter(|part| !matches!(part, Component::CurDir));
    let first = parts.next().map(|part| part.as_os_str().to_string_lossy());
    first.is_some_and(|first| {
        let is_pg_folder = first.starts_with("pg_") && parts.next().is_some();
        is_pg_folder || SERVERS_FOLDERS.contains(&&*first)
    })
}

/// Whether a path, relative to `folder` or absolute, stays below it.
fn is_inside(path: &str, folder: &Path) -> bool {
    let path = Path::new(path);
    let climbs = |part: Component<'_>| part == Component::ParentDir;
    if path.components().any(climbs) {
        return false;
    }
    let path = folder.join(path);
    // A link on the way may lead elsewhere.
    let leads_out = match (std::fs::canonicalize(&path), std::fs::canonicalize(folder)) {
        (Ok(path), Ok(folder)) => !path.starts_with(folder),
        _ => false,
    };
    path.starts_with(folder) && !leads_out
}

#[cfg(test)]
#[path = "foreign_tests.rs"]
mod tests;
