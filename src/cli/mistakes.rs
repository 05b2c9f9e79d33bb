//! What is said about a line that makes no sense: one sentence, and what to type instead.
//! Never decides whether it makes sense; the grammar does. Invariant: each answer is one line.

use std::ffi::OsString;
use std::path::Path;

use clap::error::{ContextKind, ContextValue};

use super::grammar::{USAGE, words};
use super::owner::quoted;
use crate::error::CommandError;

/// For a line that has no command.
pub(super) fn no_command(ini: Option<&Path>) -> CommandError {
    let hint = format!("type: {USAGE}; walmgr --help lists the commands");
    match ini {
        None => {
            CommandError::usage("the configuration file and the command are missing").hint(hint)
        }
        Some(word) => {
            CommandError::usage(format!("the command is missing behind {}", word.display()))
                .hint(hint)
        }
    }
}

/// For a line that fits the grammar but for its file.
pub(super) fn no_file(arguments: &[OsString], word: &str) -> CommandError {
    match leading_command(arguments) {
        Some(at) => file_first(arguments, at, None),
        None => CommandError::usage("the configuration file is missing")
            .hint(format!("type: walmgr <config.ini> {word}")),
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
    if let Some(at) = leading_command(arguments) {
        return Some(file_first(arguments, at, Some(&word)));
    }
    let mut before = arguments
        .iter()
        .skip(1)
        .filter_map(|argument| argument.to_str())
        .take_while(|argument| *argument != word);
    if before.any(is_command) {
        return None;
    }
    let message = format!("there is no command `{word}`");
    let hint = format!("the commands are: {}", words().join(", "));
    let unknown = CommandError::usage(message).hint(hint);
    Some(match text_of(error, ContextKind::SuggestedSubcommand) {
        Some(near) => unknown.with_tip(format!("did you mean `{near}`?")),
        None => unknown,
    })
}

/// Where the command stands in a line that has no file before it.
fn leading_command(arguments: &[OsString]) -> Option<usize> {
    let mut at = 1;
    loop {
        match arguments.get(at)?.to_str()? {
            "--set" => at += 2,
            word if word.starts_with('-') => at += 1,
            word => return is_command(word).then_some(at),
        }
    }
}

/// For a line whose command, at that place, has no file before it: the words typed, in their order, behind the
/// file. That is a word named like one, else the one that clap has no use for; clap may also speak of an argument by
/// its name, which nobody typed.
fn file_first(arguments: &[OsString], at: usize, useless: Option<&str>) -> CommandError {
    let typed: Vec<String> = arguments
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let (before, behind) = typed.split_at(at);
    let named = behind.iter().position(|word| word.ends_with(".ini"));
    let file = named.or_else(|| {
        behind
            .iter()
            .position(|word| Some(word.as_str()) == useless)
    });
    let (says, shown) = match file {
        Some(file) => (
            "the configuration file comes before the command",
            quoted(&behind[file]),
        ),
        None => (
            "the configuration file is missing",
            "<config.ini>".to_owned(),
        ),
    };
    let others = behind.iter().enumerate();
    let others = others.filter(|(place, _)| Some(*place) != file);
    let line: Vec<String> = before
        .iter()
        .skip(1)
        .map(|word| quoted(word))
        .chain([shown])
        .chain(others.map(|(_, word)| quoted(word)))
        .collect();
    CommandError::usage(says).hint(format!("type: walmgr {}", line.join(" ")))
}

fn is_command(word: &str) -> bool {
    words().iter().any(|known| known == word)
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
