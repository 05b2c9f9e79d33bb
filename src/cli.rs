//! The command line: `walmgr [options] <config.ini> <command> [args]`, and which code runs for it.
//! Never reads a file while parsing. Invariant: whatever is typed, `parse` answers with a run, a page
//! for stdout, or one line and exit code 2; it never exits and never prints by itself.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::error::ErrorKind;

use crate::abnormal;
use crate::config::sample;
use crate::error::{CommandError, ExitTable, Result};
pub use crate::options::Options;
use crate::output;

mod audited;
mod command;
mod generate;
mod grammar;
mod help;
mod mistakes;
mod old_spellings;
mod owner;
mod run;
mod set;

pub use generate::{Generated, generate};
pub use grammar::words;
pub use run::run;

use command::Command;

/// What the command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// Run this command.
    Run(Invocation),
    /// Print this page on stdout and be done: help or version.
    Print(String),
    /// Print the commented sample of both ini files (`--ini`).
    Sample,
    /// Write manual pages, completions or the reference into this directory (`--generate`).
    Generate(Generated, PathBuf),
    /// Say this on stderr and exit with this table's code.
    Usage(CommandError, ExitTable),
}

/// One command with everything that was typed for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Invocation {
    /// The file of settings; `init` creates it, every other command reads it. Empty where an old spelling
    /// needs none.
    pub(crate) ini: PathBuf,
    /// The word of the command.
    pub(crate) word: String,
    /// The command and its own arguments.
    pub(crate) command: Command,
    /// The options of every command.
    pub(crate) options: Options,
}

impl Invocation {
    /// Which table its exit code comes from.
    pub const fn exit_table(&self) -> ExitTable {
        self.command.exit_table()
    }
}

/// Reads a command line, the program's own name first.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Parsed {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(page) = help::asked(&arguments) {
        return page;
    }
    let table = table_of(&arguments);
    match parse_line(&arguments) {
        Ok(parsed) => parsed,
        Err(error) => Parsed::Usage(error, table),
    }
}

/// Prints the sample of `--ini`.
pub fn print_sample() -> Result<()> {
    output::print(&sample::all_samples())
}

/// PostgreSQL's own commands are recognised even in a line that makes no sense otherwise, and a
/// `restore_command` even when its word is mistyped: one that exits with 2 opens the database.
fn table_of(arguments: &[OsString]) -> ExitTable {
    let unawaited = |argument: &OsString| abnormal::is_unawaited(argument.as_bytes());
    if arguments.iter().skip(1).any(unawaited) {
        return ExitTable::Unawaited;
    }
    let restores = |argument: &OsString| abnormal::is_restored_to(argument.as_bytes());
    if arguments.iter().skip(1).any(restores) {
        return ExitTable::Xrestore;
    }
    arguments
        .iter()
        .skip(1)
        .find_map(|argument| match argument.to_str() {
            Some("xarchive") => Some(ExitTable::Xarchive),
            Some("xrestore") => Some(ExitTable::Xrestore),
            _ => None,
        })
        .unwrap_or_default()
}

fn parse_line(arguments: &[OsString]) -> Result<Parsed> {
    let mut typed = match grammar::read(arguments) {
        Ok(typed) => typed,
        Err(error) => {
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                    Ok(Parsed::Print(error.render().to_string()))
                }
                _ => Err(mistakes::mistake(&error, arguments)),
            };
        }
    };
    if typed.line.sample {
        return Ok(Parsed::Sample);
    }
    if !typed.line.generate.is_empty() {
        let (kind, folder) = generate::read(&typed.line.generate)?;
        return Ok(Parsed::Generate(kind, folder.into()));
    }
    let old_spellings = std::mem::take(&mut typed.line.old_spellings);
    let word = typed.line.command.is_some().then_some(typed.word.as_str());
    if let Some(spelled) = old_spellings.command(typed.line.ini.as_deref(), word)? {
        let options = typed.options(&spelled.command)?;
        spelled.word.clone_into(&mut typed.word);
        typed.check_together(&spelled.command, &options)?;
        return Ok(Parsed::Run(Invocation {
            ini: spelled.ini,
            word: typed.word,
            command: spelled.command,
            options,
        }));
    }
    let Some(command) = typed.line.command.take() else {
        return Err(mistakes::no_command(typed.line.ini.as_deref()));
    };
    let Some(ini) = typed.line.ini.take() else {
        return Err(mistakes::no_file(arguments, &typed.word));
    };
    let options = typed.options(&command)?;
    command.check(&ini)?;
    typed.check_together(&command, &options)?;
    Ok(Parsed::Run(Invocation {
        ini,
        word: typed.word,
        command,
        options,
    }))
}

#[cfg(test)]
mod help_line_tests;
#[cfg(test)]
mod tests;
