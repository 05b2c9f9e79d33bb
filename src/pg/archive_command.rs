//! What an `archive_command` does with a segment, as far as its text and the files that it names tell.
//! Never runs anything. Invariant: a command is ours only if the shell runs walmgr with this ini file, whatever
//! stands around it, and PostgreSQL hears of its failure.

use std::path::{Path, PathBuf};

pub(crate) mod cleanup;
pub(crate) mod restores;
mod shell;

use shell::{CommandJoint, ShellWord};

use crate::files;

/// An `archive_command` that lets every segment go: what `stop` sets where it cannot restart.
pub(crate) const LETS_GO: &str = "/bin/true";

/// A script is read this far for a call of ours.
const SCRIPT_BYTES_MAX: usize = 64 << 10;

/// Shells within shells: one is common, a second happens.
const SHELLS_MAX: usize = 4;

/// Programs that run the program behind them on this host, and end as it ends.
const WRAPPERS: [&str; 23] = [
    "builtin",
    "chpst",
    "chrt",
    "command",
    "env",
    "exec",
    "flock",
    "ionice",
    "nice",
    "nohup",
    "numactl",
    "prlimit",
    "runuser",
    "setpriv",
    "setsid",
    "softlimit",
    "stdbuf",
    "su",
    "sudo",
    "systemd-cat",
    "taskset",
    "time",
    "timeout",
];

const SHELLS: [&str; 6] = ["sh", "bash", "dash", "ash", "ksh", "zsh"];

/// Wrappers that take what they run as one text as well.
const TAKE_TEXT: [&str; 3] = ["flock", "runuser", "su"];

/// Where an `archive_command` sends segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    /// To walmgr, with this ini file.
    Here,
    /// To walmgr, with this ini file, and PostgreSQL hears "archived" also where walmgr fails.
    Unheard,
    /// Nowhere.
    Nobody,
    /// PostgreSQL keeps them until there is a command.
    Kept,
    /// Elsewhere.
    Other,
}

/// The ini file that counts, and from where PostgreSQL runs its commands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ours<'a> {
    /// The ini file.
    pub ini: &'a Path,
    /// The data directory.
    pub data: &'a Path,
}

/// Where this command sends them.
pub(crate) fn destination(command: &str, ours: &Ours<'_>) -> Destination {
    if command.is_empty() {
        return Destination::Kept;
    }
    let items = shell::items(&command.replace("%%", "%"));
    let lets_go = |item: &ShellWord| {
        let words: Vec<&str> = item.words.iter().map(String::as_str).collect();
        matches!(
            words[..],
            [LETS_GO | "/usr/bin/true" | "true" | ":", ..]
                | ["exit", "0"]
                | ["exit"]
                | ["test", "1"]
                | ["cd", "."]
        )
    };
    if items.iter().all(lets_go) {
        return Destination::Nobody;
    }
    match call_in(&items, ours, 0) {
        Some(Call::Sends { is_heard: true }) => Destination::Here,
        Some(Call::Sends { is_heard: false }) => Destination::Unheard,
        Some(Call::Idle) => Destination::Nobody,
        None => Destination::Other,
    }
}

/// Whether it is more than our own line, and what is more there works: what is around our line was put there
/// for a reason.
pub(crate) fn is_worth_keeping(command: &str, ours: &Ours<'_>) -> bool {
    if destination(command, ours) != Destination::Here {
        return false;
    }
    let items = shell::items(&command.replace("%%", "%"));
    let own_line = match &items[..] {
        [item] => item.words.first().is_some_and(|first| is_our_name(first)),
        _ => false,
    };
    let named = items.iter().flat_map(|item| &item.words);
    let missing = named.filter(|word| word.starts_with('/') && is_our_name(word));
    !own_line && missing.map(Path::new).all(Path::exists)
}

/// What a call of ours comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Sends {
        is_heard: bool,
    },
    /// It shows something, or only says what it would do.
    Idle,
}

fn call_in(items: &[ShellWord], ours: &Ours<'_>, depth: usize) -> Option<Call> {
    let mut folder = ours.data.to_path_buf();
    for (at, item) in items.iter().enumerate() {
        if let [cd, place] = &item.words[..]
            && cd == "cd"
        {
            folder = place_of(&folder, place);
        }
        match call_of(&item.words, &folder, ours, depth) {
            Some(Call::Sends { is_heard }) => {
                let again = items[at + 1..]
                    .iter()
                    .any(|later| call_of(&later.words, &folder, ours, depth).is_some());
                let is_heard = is_heard && (again || failure_is_heard(items, at));
                return Some(Call::Sends { is_heard });
            }
            Some(Call::Idle) => return Some(Call::Idle),
            None => {}
        }
    }
    None
}

fn call_of(words: &[String], folder: &Path, ours: &Ours<'_>, depth: usize) -> Option<Call> {
    let first = words.first()?;
    let name = name_of(first);
    let is_wrapper = WRAPPERS.contains(&name);
    if SHELLS.contains(&name) || is_wrapper {
        let takes_text =
            |word: &String| SHELLS.contains(&name_of(word)) || TAKE_TEXT.contains(&name_of(word));
        let inner = words.iter().position(takes_text);
        if let Some(script) = inner.and_then(|at| script_of(&words[at..]))
            && depth < SHELLS_MAX
        {
            let there = Ours {
                data: folder,
                ..*ours
            };
            return call_in(&shell::items(script), &there, depth + 1);
        }
    }
    if !is_wrapper {
        return match SHELLS.contains(&name) {
            // `sh script`, without an option before it.
            true => script_call(words.get(1..)?, folder, ours),
            false => program_call(words, folder, ours),
        };
    }
    // Options of wrappers are as they are; what they run is the first that is ours.
    (1..words.len()).find_map(|at| program_call(&words[at..], folder, ours))
}

/// The words of `-c`.
fn script_of(words: &[String]) -> Option<&str> {
    let is_option =
        |word: &String| word.starts_with('-') && !word.starts_with("--") && word.ends_with('c');
    let at = words
        .iter()
        .position(|word| is_option(word) || word == "--command")?;
    words.get(at + 1).map(String::as_str)
}

fn program_call(words: &[String], folder: &Path, ours: &Ours<'_>) -> Option<Call> {
    let (program, arguments) = words.split_first()?;
    if !is_our_name(program) {
        return script_call(words, folder, ours);
    }
    match interpreter(program) {
        // Skytools' own walmgr takes the same words.
        Some(Script {
            is_of_shell: false, ..
        }) => return None,
        Some(Script { text, .. }) if !names_us(&text) => return None,
        _ => {}
    }
    arguments_call(arguments, folder, ours)
}

/// The words that walmgr would read.
fn arguments_call(arguments: &[String], folder: &Path, ours: &Ours<'_>) -> Option<Call> {
    let mut places = Vec::new();
    let mut is_idle = false;
    let mut left = arguments.iter();
    while let Some(word) = left.next() {
        match word.as_str() {
            "--set" => drop(left.next()),
            "--not-really" | "--help" | "--version" | "--ini" => is_idle = true,
            option if option.starts_with("--") => {}
            option if option.starts_with('-') => is_idle |= option.contains(['n', 'h', 'V']),
            place => places.push(place),
        }
    }
    let [ini, "xarchive", ..] = places[..] else {
        return None;
    };
    is_same_file(&place_of(folder, ini), ours.ini).then_some(match is_idle {
        true => Call::Idle,
        false => Call::Sends { is_heard: true },
    })
}

/// A shell's script around our line; one that is given our words passes them on.
fn script_call(words: &[String], folder: &Path, ours: &Ours<'_>) -> Option<Call> {
    let (program, arguments) = words.split_first()?;
    let path = folder.join(program);
    let script = path
        .to_str()
        .filter(|_| program.contains('/'))
        .and_then(interpreter)?;
    if !script.is_of_shell || !names_us(&script.text) {
        return None;
    }
    match arguments.iter().any(|word| word == "xarchive") {
        true => arguments_call(arguments, folder, ours),
        // Which ini file it names may hang on a variable.
        false => (script.text.contains("xarchive")).then_some(Call::Sends { is_heard: true }),
    }
}

struct Script {
    is_of_shell: bool,
    text: String,
}

/// A script at this place, and whether a shell reads it.
fn interpreter(program: &str) -> Option<Script> {
    let path = Path::new(program);
    // A pipe would be waited for.
    if !path.is_absolute() || !path.is_file() {
        return None;
    }
    let text = files::read_at_most(path, SCRIPT_BYTES_MAX as u64).ok()?;
    let text = String::from_utf8_lossy(text.strip_prefix(b"#!")?).into_owned();
    let line = text.lines().next().unwrap_or_default();
    let mut words = line.split_whitespace().map(name_of);
    Some(Script {
        is_of_shell: words.any(|word| SHELLS.contains(&word)),
        text,
    })
}

/// Whether a script has our name in it, as a word or at the end of a path.
fn names_us(text: &str) -> bool {
    let lines = text
        .lines()
        .skip(1)
        .filter(|line| !line.trim_start().starts_with('#'));
    let mut words = lines
        .flat_map(|line| line.split(|c: char| c.is_whitespace() || "'\"();&|`={}".contains(c)));
    words.any(is_our_name)
}

fn name_of(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or_default()
}

/// `walmgr`, or a file that is this program.
fn is_our_name(word: &str) -> bool {
    let own = || -> Option<(PathBuf, PathBuf)> {
        let own = std::env::current_exe().and_then(std::fs::canonicalize);
        Some((own.ok()?, std::fs::canonicalize(word).ok()?))
    };
    name_of(word) == "walmgr"
        || word.starts_with('/') && own().is_some_and(|(own, named)| own == named)
}

/// What a word is as a path for a shell in this folder.
fn place_of(folder: &Path, word: &str) -> PathBuf {
    match (word.strip_prefix("~/"), std::env::home_dir()) {
        (Some(below), Some(home)) => home.join(below),
        _ => folder.join(word),
    }
}

fn is_same_file(named: &Path, ini: &Path) -> bool {
    named == ini
        || matches!(
            (std::fs::canonicalize(named), std::fs::canonicalize(ini)),
            (Ok(named), Ok(ini)) if named == ini
        )
}

/// Whether the whole ends with an error where the command at this place does.
fn failure_is_heard(items: &[ShellWord], at: usize) -> bool {
    let own = &items[at];
    if own.is_negated || matches!(own.joint, CommandJoint::Pipe | CommandJoint::Background) {
        return false;
    }
    let rest = &items[at + 1..];
    let mut joint = own.joint;
    let mut is_caught = own.is_condition;
    for item in rest {
        // The other branch is not taken once this one was.
        if is_caught || matches!(item.keyword.as_deref(), Some("else" | "elif")) {
            break;
        }
        let closes = item.words.is_empty();
        if closes && matches!(item.joint, CommandJoint::Pipe | CommandJoint::Background) {
            return false;
        }
        is_caught = !closes && matches!(joint, CommandJoint::Or | CommandJoint::Then);
        joint = item.joint;
    }
    !is_caught || rest.iter().any(makes_an_error)
}

/// Of what was caught.
fn makes_an_error(item: &ShellWord) -> bool {
    let words: Vec<&str> = item.words.iter().map(String::as_str).collect();
    match words[..] {
        ["false" | "/bin/false", ..] | ["exit"] => true,
        ["exit", code, ..] => code != "0",
        _ => words.iter().any(|word| word.contains("$?")),
    }
}

#[cfg(test)]
mod tests;
