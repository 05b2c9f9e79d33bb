//! How a line of `--help` is written: one style for all commands, options and arguments.
//! Never looks at what a line means. Invariant tested: a command and an option say what walmgr does, verb first; an
//! argument without dashes says what it is; none is a sentence with its stop.

use clap::{Arg, Command};

use super::grammar;

/// What a line about something that is done begins with.
const VERBS: &[&str] = &[
    "Alarm",
    "Append",
    "Archive",
    "Bring",
    "Configure",
    "Create",
    "Do",
    "End",
    "Follow",
    "Go",
    "Grant",
    "Hand",
    "Have",
    "Hold",
    "Keep",
    "Let",
    "List",
    "Listen",
    "Lock",
    "Make",
    "Measure",
    "Note",
    "Open",
    "Pack",
    "Pin",
    "Print",
    "Prove",
    "Put",
    "Read",
    "Receive",
    "Recover",
    "Remove",
    "Rename",
    "Replay",
    "Restart",
    "Run",
    "Say",
    "Send",
    "Ship",
    "Show",
    "Stop",
    "Take",
    "Trust",
    "Warn",
    "Write",
];

/// What a line about a thing begins with; PostgreSQL's own names of it are things, too.
const THINGS: &[&str] = &["The", "A", "An", "One", "Another", "%p", "%f", "%r"];

/// What is wrong with a line, whose first word is to be one of these.
fn fault(help: &str, first_words: &[&str]) -> Option<String> {
    let sides = ["Master: ", "Standby: "];
    let side = sides.iter().find_map(|side| help.strip_prefix(side));
    // Behind its side a line goes on as a sentence does.
    let (text, is_lower) = side.map_or((help, false), |rest| (rest, true));
    let word = text.split([' ', ',', ':', ';']).next().unwrap_or_default();
    let is_word = |known: &str| match is_lower {
        true => known.to_lowercase() == word,
        false => known == word,
    };
    if !first_words.iter().any(|known| is_word(known)) {
        return Some(format!("it begins with {word:?}"));
    }
    help.ends_with('.')
        .then(|| "it ends with a stop".to_owned())
}

fn faults_of(command: &Command, path: &str, faults: &mut Vec<String>) {
    let mut judge = |what: &str, help: Option<&clap::builder::StyledStr>, words| {
        let help = help.map(ToString::to_string).unwrap_or_default();
        if let Some(fault) = fault(&help, words) {
            faults.push(format!("{path} {what}: {help:?}: {fault}"));
        }
    };
    let is_shown = |argument: &&Arg| !argument.is_hide_set();
    for argument in command.get_arguments().filter(is_shown) {
        let words = match argument.is_positional() {
            true => THINGS,
            false => VERBS,
        };
        judge(argument.get_id().as_str(), argument.get_help(), words);
    }
    for below in command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
    {
        judge(below.get_name(), below.get_about(), VERBS);
    }
    for below in command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
    {
        faults_of(below, &format!("{path} {}", below.get_name()), faults);
    }
}

#[test]
fn every_line_of_help_is_written_in_one_style() {
    let mut faults = Vec::new();
    faults_of(&grammar::grammar(), "walmgr", &mut faults);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_line_in_another_style_is_found() {
    for (help, words) in [
        ("Standby: the daemon that receives", VERBS),
        ("Where the receiver listens", VERBS),
        ("Sends it", VERBS),
        ("Print it.", VERBS),
        ("print it", VERBS),
        ("Which side this is", THINGS),
        ("", THINGS),
    ] {
        assert!(fault(help, words).is_some(), "{help}");
    }
    assert_eq!(fault("Standby: receive WAL, as a daemon", VERBS), None);
    assert_eq!(fault("%f", THINGS), None);
}
