//! `walmgr --generate KIND DIR`: manual pages, completions and the reference, out of the grammar, the settings table and
//! the table of exit codes. Never describes a command or a setting in words of its own. Invariant: the same program
//! writes the same bytes, whatever the host, the time and the terminal.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use clap::ValueEnum;

use super::grammar;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::output;

mod completions;
mod exit_codes;
mod manual;
mod reference;

/// What can be generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Generated {
    /// The manual pages.
    Man,
    /// The completion of one shell.
    Bash,
    Zsh,
    Fish,
    /// `docs/reference`.
    Reference,
    /// A commented sample of each ini file.
    Examples,
}

/// A file that is generated: its name and what it says.
type GeneratedFile = (String, String);

/// Takes the two words behind `--generate`.
pub(super) fn read(words: &[OsString]) -> Result<(Generated, &OsString)> {
    let [kind, folder] = words else {
        return Err(CommandError::usage(
            "--generate takes a kind and a directory",
        ));
    };
    let known = || {
        let kinds = Generated::value_variants().iter();
        let names = kinds.filter_map(|kind| Some(kind.to_possible_value()?.get_name().to_owned()));
        names.collect::<Vec<_>>().join(", ")
    };
    let found = Generated::from_str(&kind.to_string_lossy(), false);
    match found {
        Ok(found) => Ok((found, folder)),
        Err(_) => Err(CommandError::usage(format!(
            "--generate makes {}; there is no {}",
            known(),
            kind.display()
        ))),
    }
}

/// Writes the files of `kind` into `folder`, which it makes.
pub fn generate(kind: Generated, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).at(Kind::Config, "create", folder)?;
    for (name, text) in files(kind) {
        let path = folder.join(name);
        fs::write(&path, text).at_setting("write", &path)?;
        output::print(&path.display().to_string())?;
    }
    Ok(())
}

/// The files of `kind`.
pub(crate) fn files(kind: Generated) -> Vec<GeneratedFile> {
    let grammar = grammar::grammar();
    match kind {
        Generated::Man => manual::pages(grammar),
        Generated::Bash | Generated::Zsh | Generated::Fish => vec![completions::of(kind, grammar)],
        Generated::Reference => reference::pages(grammar),
        Generated::Examples => reference::examples(),
    }
}
