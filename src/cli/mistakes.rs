//! What is said about a line that makes no sense: one sentence, and what to type instead.
//! Never decides whether it makes sense; the grammar does. Invariant: each answer is one line.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::error::{ContextKind, ContextValue};

use super::grammar::{USAGE, words};
use crate::error::CommandError;

/// Commands of the manual which this version does not have.
pub(super) const ABSENT: [&str; 9] = [
    "synch-standby",
    "bench",
    "cleanup",
    "verify",
    "createslave",
    "xlock",
    "xrelease",
    "xrotate",
    "xpartialsync",
];

/// For a line that has no command.
pub(super) fn no_command(ini: Option<&Path>) -> CommandError {
    let hint = format!("type: {USAGE}; walmgr --help lists the commands");
    match ini {
        None => {
            CommandError::usage("the configuration file and the command are missing").hint(hint)
        }
        Some(word) => absent_or_late(word.as_os_str()).unwrap_or_else(|| {
            CommandError::usage(format!("the command is missing behind {}", word.display()))
                .hint(hint)
        }),
    }
}

/// For a line that does not fit the grammar.
pub(super) fn mistake(error: &clap::Error, arguments: &[OsString]) -> CommandError {
    misplaced_word(error, arguments).unwrap_or_else(|| complaint(error))
}

/// For a word where a command was expected. clap calls it an unknown command or an unexpected
/// argument, depending on whether a command of a similar name exists.
fn misplaced_word(error: &clap::Error, arguments: &[OsString]) -> Option<CommandError> {
    let word = text_of(error, ContextKind::InvalidSubcommand)
        .or_else(|| text_of(error, ContextKind::InvalidArg))
        .filter(|word| !word.starts_with('-'))?;
    let is_command =
        |word: &str| ABSENT.contains(&word) || words().iter().any(|known| known == word);
    let mut before = arguments
        .iter()
        .skip(1)
        .filter_map(|argument| argument.to_str())
        .take_while(|argument| *argument != word)
        .filter(|argument| !argument.starts_with('-'));
    let first = before.next();
    if let Some(first) = first.filter(|first| is_command(first)) {
        return Some(
            CommandError::usage("the configuration file comes before the command")
                .hint(format!("type: walmgr {word} {first}")),
        );
    }
    if before.any(is_command) {
        return None;
    }
    absent_or_late(OsStr::new(&word)).or_else(|| {
        let message = format!("there is no command `{word}`");
        let hint = format!("the commands are: {}", words().join(", "));
        let unknown = CommandError::usage(message).hint(hint);
        Some(match text_of(error, ContextKind::SuggestedSubcommand) {
            Some(near) => unknown.with_tip(format!("did you mean `{near}`?")),
            None => unknown,
        })
    })
}

/// For a word that is a command of the manual, but not one that could run where it stands.
fn absent_or_late(word: &OsStr) -> Option<CommandError> {
    let word = word.to_str()?;
    ABSENT.contains(&word).then(|| {
        CommandError::usage(format!(
            "this version does not have `{word}` yet; it has: {}",
            words().join(", ")
        ))
    })
}

fn text_of(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        // The nearest comes last.
        ContextValue::Strings(texts) => texts.last().cloned(),
        _ => None,
    }
}

/// clap's complaint, which takes many lines, as one.
fn complaint(error: &clap::Error) -> CommandError {
    let text = error.render().to_string();
    let mut parts: Vec<&str> = Vec::new();
    let mut tip = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with("Usage:") || line.starts_with("For more information") {
            break;
        }
        match line.strip_prefix("tip: ") {
            // To put `--` in front of a mistyped option helps nobody.
            Some(text) if !text.starts_with("to pass") => tip = Some(text.to_owned()),
            Some(_) => {}
            None => parts.push(line.trim_start_matches("error: ")),
        }
    }
    let complaint = CommandError::usage(parts.join(" ")).hint("see walmgr --help");
    match tip {
        Some(tip) => complaint.with_tip(tip),
        None => complaint,
    }
}
