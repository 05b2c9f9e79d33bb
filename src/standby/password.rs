//! `--add-password` and `--remove-password` of `init`: the line in `.pgpass` of the server that the standby streams from.
//! Never prints a password, and never keeps one anywhere else. Invariant: typed again, neither changes anything.

use std::path::{Path, PathBuf};

use crate::config;
use crate::error::{CommandError, Result};
use crate::options::{InitArgs, Options};
use crate::output;
use crate::pg::conninfo::password_lines::{PasswordEdit, PasswordLines, password_in};
use crate::pg::conninfo::password_note::PasswordNote;
use crate::pg::conninfo::{self, Environment};

/// A password that goes into the file, looked at before anything is changed.
pub(super) struct NewPassword {
    ini: PathBuf,
    lines: PasswordLines,
    password: Vec<u8>,
}

impl NewPassword {
    /// The one that was typed, if one was.
    pub(super) fn read(ini: &Path, typed: &InitArgs) -> Result<Option<NewPassword>> {
        let Some(file) = &typed.add_password else {
            return Ok(None);
        };
        Ok(Some(NewPassword {
            ini: ini.to_path_buf(),
            lines: lines(ini, typed)?,
            password: password_in(file)?,
        }))
    }

    /// What would be done.
    pub(super) fn in_words(&self) -> String {
        let (file, lines) = (self.lines.file().display(), self.lines.in_words());
        format!("have {file} contain {lines}")
    }

    /// Does it.
    pub(super) fn add(&self) -> Result<()> {
        let (file, lines) = (self.lines.file().display(), self.lines.in_words());
        PasswordNote::write(&self.ini, &self.lines, &self.password)?;
        match self.lines.add(&self.password)? {
            PasswordEdit::Changed => tracing::info!("{file} has the line {lines}"),
            PasswordEdit::Unchanged => {
                tracing::info!("{file} gives this password for {lines} already")
            }
        }
        Ok(())
    }
}

/// Takes the line out again.
pub(super) fn remove(ini: &Path, typed: &InitArgs, options: &Options) -> Result<()> {
    let password_lines = lines(ini, typed)?;
    let (file, lines) = (password_lines.file().display(), password_lines.in_words());
    if options.not_really {
        return output::not_really(&format!("take {lines} out of {file}"));
    }
    let removed = password_lines.remove()?;
    PasswordNote::remove(ini)?;
    match removed {
        PasswordEdit::Changed => tracing::info!("{lines} was taken out of {file}"),
        PasswordEdit::Unchanged => tracing::info!("{file} has no line {lines}"),
    }
    Ok(())
}

/// The lines of the connection string that was typed, or that the file has.
fn lines(ini: &Path, typed: &InitArgs) -> Result<PasswordLines> {
    let of_file = || -> Result<Option<String>> {
        match ini.exists() {
            true => Ok(config::load(ini, &[])?
                .into_standby("init")?
                .primary_conninfo),
            false => Ok(None),
        }
    };
    let text = match &typed.primary_conninfo {
        Some(text) => Some(text.clone()),
        None => of_file()?,
    };
    let text = text.ok_or_else(|| {
        CommandError::usage("nothing says for which server the password is")
            .hint("add --primary-conninfo 'host=MASTER user=ROLE'")
    })?;
    // As the server will read it, which has none of this shell's variables.
    let environment = Environment::of_process().without_libpq();
    let conninfo = conninfo::parse(&text, &environment)?;
    if conninfo.has_own_password() {
        tracing::warn!("the connection string has a password, so that in .pgpass does not count");
    }
    PasswordLines::of(&conninfo)
}
