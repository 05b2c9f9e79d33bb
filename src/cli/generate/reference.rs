//! `docs/reference`: commands, settings and exit codes as Markdown, and the commented samples of the ini files.
//! Never writes a file. Invariant: text of the tables stands in a page as it stands in the program.

use std::fmt::Write;

use clap::{Arg, Command};

use super::exit_codes::{self, TABLES};
use super::{GeneratedFile, exit_codes::meanings};
use crate::cli::help::{PAGES, Page};
use crate::config::keys::Side;
use crate::config::sample;
use crate::error::ExitTable;

/// What a page begins with.
const GENERATED: &str =
    "<!-- Generated: `walmgr --generate reference docs/reference` writes this page anew. -->";

/// The pages.
pub(super) fn pages(grammar: Command) -> Vec<GeneratedFile> {
    vec![
        ("commands.md".to_owned(), commands(grammar)),
        ("settings.md".to_owned(), settings()),
        ("exit-codes.md".to_owned(), exit_codes()),
    ]
}

/// The samples.
pub(super) fn examples() -> Vec<GeneratedFile> {
    vec![
        ("master.ini".to_owned(), sample::master_sample()),
        ("standby.ini".to_owned(), sample::standby_sample()),
        ("host.ini".to_owned(), sample::host_sample()),
    ]
}

fn commands(mut grammar: Command) -> String {
    grammar.build();
    let mut page = format!("{GENERATED}\n# Commands\n\n    {}\n", super::grammar::USAGE);
    let _ = writeln!(
        page,
        "\nAn option means the same before the ini file, behind it and behind the command.\n\
         [Settings](settings.md) · [exit codes](exit-codes.md)\n\n| command | |\n|---|---|"
    );
    for command in grammar.get_subcommands() {
        let name = command.get_name();
        let _ = writeln!(page, "| [`{name}`](#{name}) | {} |", about(command));
    }
    page.push_str("\n## Options of every command\n");
    table(&mut page, &grammar, |argument| {
        !argument.is_positional() && argument.get_id() != "sample" && !is_of_daemons(argument)
    });
    for command in grammar.get_subcommands() {
        let _ = writeln!(page, "\n## {}\n\n{}.\n", command.get_name(), about(command));
        let usage = command.get_overridden_usage().map(ToString::to_string);
        let _ = writeln!(page, "    {}", usage.unwrap_or_default());
        let is_about = |page: &&Page| page.folder == "tasks" && page.name == command.get_name();
        if let Some(about) = PAGES.iter().find(is_about) {
            let _ = writeln!(
                page,
                "\nSee [{}](../tasks/{}.md).",
                about.title(),
                about.name
            );
        }
        table(&mut page, command, |argument| {
            !is_common(&grammar, argument)
        });
    }
    page
}

/// Whether an option stands with those of every command.
pub(super) fn is_common(grammar: &Command, argument: &Arg) -> bool {
    !is_of_daemons(argument)
        && grammar
            .get_arguments()
            .any(|common| !common.is_hide_set() && common.get_id() == argument.get_id())
}

/// Whether an option is accepted everywhere, and means something to `receiver` and `syncdaemon` only.
pub(super) fn is_of_daemons(argument: &Arg) -> bool {
    ["daemon", "reload", "stop", "kill"].contains(&argument.get_id().as_str())
}

/// A row for each argument of `command` that is shown.
fn table(page: &mut String, command: &Command, is_shown: impl Fn(&Arg) -> bool) {
    let shown = |argument: &&Arg| !argument.is_hide_set() && is_shown(argument);
    let mut rows: Vec<&Arg> = command.get_arguments().filter(shown).collect();
    if rows.is_empty() {
        return;
    }
    rows.sort_by_key(|argument| !argument.is_positional());
    page.push_str("\n| argument | |\n|---|---|\n");
    for argument in rows {
        let help = argument.get_help().map(ToString::to_string);
        let mut help = help.unwrap_or_default().replace('|', "\\|");
        let values = values(argument);
        if !values.is_empty() {
            let _ = write!(help, " (`{}`)", values.join("`, `"));
        }
        let _ = writeln!(page, "| {} | {help} |", spelled(argument));
    }
}

/// The words that a value may be, if it is one of a few.
pub(super) fn values(argument: &Arg) -> Vec<String> {
    let takes = argument.get_action().takes_values();
    let values = argument.get_possible_values().into_iter();
    let names = values.map(|value| value.get_name().to_owned());
    names.filter(|_| takes).collect()
}

/// An argument as it is typed.
fn spelled(argument: &Arg) -> String {
    let value = value_names(argument);
    let mut spellings: Vec<String> = argument
        .get_short()
        .iter()
        .map(|short| format!("`-{short}`"))
        .collect();
    match argument.get_long() {
        Some(long) if value.is_empty() => spellings.push(format!("`--{long}`")),
        Some(long) => spellings.push(format!("`--{long} {value}`")),
        None if argument.is_positional() => spellings.push(format!("`{value}`")),
        None => {}
    }
    spellings.join(" ").replace('|', "\\|")
}

/// What stands for the values of an argument.
pub(super) fn value_names(argument: &Arg) -> String {
    if !argument.get_action().takes_values() {
        return String::new();
    }
    let names = argument.get_value_names().unwrap_or_default();
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    names.join(" ")
}

fn settings() -> String {
    let mut page = format!(
        "{GENERATED}\n# Settings\n\n[The ini file](ini-files.md) has how a file is written. `walmgr --ini` prints all settings with comments.\n"
    );
    for (title, side) in [
        ("Master", Side::Master),
        ("Standby", Side::Standby),
        ("Host", Side::Host),
    ] {
        let head = "| setting | value | default | meaning |\n|---|---|---|---|\n";
        let _ = write!(page, "\n## {title}\n\n{head}{}", sample::readme_rows(side));
    }
    page
}

fn exit_codes() -> String {
    let mut page = format!(
        "{GENERATED}\n# Exit codes\n\n[Messages](messages.md) has what stands beside them.\n"
    );
    for (table, of) in TABLES {
        let title = match table {
            ExitTable::Ordinary => "All other commands".to_owned(),
            _ => format!("`{of}`"),
        };
        let _ = write!(
            page,
            "\n## {title}\n\n| exit | meaning | what to do |\n|---|---|---|\n"
        );
        for (code, meaning) in meanings(table) {
            let link = |page: &str| format!("[{page}](../runbooks/{page}.md)");
            let links: Vec<String> = exit_codes::runbooks(table, code)
                .into_iter()
                .map(link)
                .collect();
            let _ = writeln!(page, "| {code} | {meaning} | {} |", links.join(", "));
        }
        let _ = write!(page, "\n{}\n", exit_codes::why(table));
    }
    page
}

fn about(command: &Command) -> String {
    command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default()
}
