//! `cleanup`, the command both sides have: the list of what goes and what stays, the question, the removal.
//! Never removes what is not on the list that it printed, and follows no link. Invariant: the ini file goes last, so a
//! cleanup that was killed is finished by typing it again.

mod neighbours;
mod places;

use std::fs::FileType;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::options::Options;
use crate::output;
use crate::pg::conninfo::password_lines::PasswordEdit;
use crate::pg::conninfo::password_note::PasswordNote;

pub(crate) use neighbours::Neighbours;
pub(crate) use places::{identity, list_of_keys, list_of_names, log, pidfile};

/// What stood behind `cleanup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct CleanupArgs {
    /// Do not ask
    #[arg(long)]
    pub force: bool,
}

/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64;

/// One thing that walmgr made, or may have made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trace {
    path: PathBuf,
    what: &'static str,
    fate: Fate,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// This file or socket, if its name still leads to it.
    File(files::FileId),
    /// This folder, if it is empty by then.
    Folder,
    /// The lines with these fields of this file, which itself stays.
    Lines(PasswordNote, Vec<String>),
    /// This folder and the notes in it, which are so many regular files.
    Notes(usize),
    Stays(String),
}

impl Trace {
    /// A file: it goes if there is one, and it is this user's own. `None` if there is nothing.
    pub(crate) fn file(path: &Path, what: &'static str) -> Option<Trace> {
        Trace::of_kind(path, what, (FileType::is_file, "regular file"))
    }

    /// The socket that a killed daemon left, likewise.
    pub(crate) fn socket(path: &Path, what: &'static str) -> Option<Trace> {
        Trace::of_kind(path, what, (FileType::is_socket, "socket"))
    }

    fn of_kind(
        path: &Path,
        what: &'static str,
        (is_one, kind): (fn(&FileType) -> bool, &str),
    ) -> Option<Trace> {
        let found = path.symlink_metadata();
        let fate = match found {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => Fate::Stays(format!("it cannot be looked at: {error}")),
            Ok(found) if !is_one(&found.file_type()) => Fate::Stays(format!("it is no {kind}")),
            Ok(found) => match places::other_owner(&found) {
                Some(owner) => Fate::Stays(format!("it belongs to {owner}")),
                None => Fate::File(files::FileId::of_metadata(&found)),
            },
        };
        let path = path.to_path_buf();
        Some(Trace { path, what, fate })
    }

    /// A folder, which goes if it is empty by then. `None` if there is nothing.
    pub(crate) fn folder(path: &Path, what: &'static str) -> Option<Trace> {
        let found = path.symlink_metadata().ok()?;
        let fate = match found.is_dir() {
            true => Fate::Folder,
            false => Fate::Stays("it is a link, or no folder".to_owned()),
        };
        let path = path.to_path_buf();
        Some(Trace { path, what, fate })
    }

    /// A folder with nothing but walmgr's notes, which go with it. `None` if there is nothing.
    pub(crate) fn notes(path: &Path, what: &'static str) -> Option<Trace> {
        let trace = Trace::folder(path, what)?;
        if !trace.goes() {
            return Some(trace);
        }
        let fate = match regular_files(path) {
            Ok(files) => Fate::Notes(files.len()),
            Err(why) => Fate::Stays(why),
        };
        Some(Trace { fate, ..trace })
    }

    /// The lines of a file of passwords that were written for this ini file, and the note of them. `user_of` says why
    /// a line stays.
    pub(crate) fn password_lines(
        ini: &Path,
        user_of: impl Fn(&str) -> Option<String>,
    ) -> Vec<Trace> {
        let what = "lines in it that init wrote";
        let Some(note) = PasswordNote::read(ini) else {
            return Vec::new();
        };
        let path = note.file().to_path_buf();
        let (mut traces, mut going) = (Vec::new(), Vec::new());
        for fields in note.there() {
            match user_of(&fields) {
                Some(why) => traces.push(Trace::stays(&path, what, format!("{fields}: {why}"))),
                None => going.push(fields),
            }
        }
        if !going.is_empty() {
            let fate = Fate::Lines(note, going);
            traces.push(Trace { path, what, fate });
        }
        let noted = "which lines of .pgpass init wrote";
        traces.extend(Trace::file(&PasswordNote::path(ini), noted));
        traces
    }

    /// Something that stays, and why.
    pub(crate) fn stays(path: &Path, what: &'static str, why: impl Into<String>) -> Trace {
        Trace {
            path: path.to_path_buf(),
            what,
            fate: Fate::Stays(why.into()),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it goes.
    pub(crate) const fn goes(&self) -> bool {
        !matches!(self.fate, Fate::Stays(_))
    }

    /// Has the trace stay if there is a reason. A trace that stays already keeps its own reason.
    pub(crate) fn unless(self, why: Option<String>) -> Trace {
        match why {
            Some(why) if self.goes() => Trace {
                fate: Fate::Stays(why),
                ..self
            },
            _ => self,
        }
    }
}

/// Prints the list, asks, and removes if `refuse_while_used` still refuses nothing; the ini file goes last.
pub(crate) fn finish(
    ini: &Path,
    mut traces: Vec<Trace>,
    options: &Options,
    typed: CleanupArgs,
    refuse_while_used: impl FnOnce() -> Result<()>,
) -> Result<()> {
    traces.extend(Trace::file(ini, "file of settings"));
    for trace in &traces {
        let path = trace.path.display();
        let line = match &trace.fate {
            Fate::File(_) => format!("goes   {path} ({})", trace.what),
            Fate::Folder => format!("goes   {path}, if it is empty then ({})", trace.what),
            Fate::Notes(count) => format!("goes   {path} ({count} {})", trace.what),
            Fate::Lines(_, fields) => {
                let fields: Vec<String> = fields.iter().map(|it| format!("{it}:***")).collect();
                format!("goes   {} in {path} ({})", fields.join(", "), trace.what)
            }
            Fate::Stays(why) => format!("stays  {path} ({}): {why}", trace.what),
        };
        output::print(&line)?;
    }
    if !traces.iter().any(Trace::goes) {
        return output::print("nothing is left to remove");
    }
    if options.not_really {
        return output::not_really("ask, and remove what goes");
    }
    if !typed.force && !is_agreed(ini)? {
        return output::print("nothing was removed");
    }
    // The question may have stood for days.
    refuse_while_used()?;
    let mut removed = 0;
    for trace in &traces {
        removed += u32::from(remove(trace)?);
    }
    output::print(&format!("removed {removed} files and folders"))
}

/// What a second call says.
pub(crate) fn nothing_left(ini: &Path) -> Result<()> {
    output::print(&format!("nothing is left: there is no {}", ini.display()))
}

fn is_agreed(ini: &Path) -> Result<bool> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(CommandError::usage(
            "cleanup asks before it removes anything, and standard input is no terminal",
        )
        .hint(format!("type: walmgr {} cleanup --force", ini.display())));
    }
    let asked = |error: io::Error| CommandError::retry("ask").because(error);
    let mut stderr = io::stderr();
    write!(stderr, "Remove what goes? (y/N) ").map_err(asked)?;
    stderr.flush().map_err(asked)?;
    let mut answer = String::new();
    io::Read::take(stdin.lock(), ANSWER_BYTES_MAX)
        .read_line(&mut answer)
        .map_err(asked)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Whether it was removed; what was replaced since it was listed stays.
fn remove(trace: &Trace) -> Result<bool> {
    let path = &trace.path;
    match &trace.fate {
        Fate::Stays(_) => Ok(false),
        Fate::File(listed) => {
            let found = path.symlink_metadata();
            let is_same = found.is_ok_and(|found| {
                let kind = found.file_type();
                (kind.is_file() || kind.is_socket())
                    && files::FileId::of_metadata(&found) == *listed
            });
            if !is_same {
                tracing::warn!("{} changed since it was listed and stays", path.display());
                return Ok(false);
            }
            files::remove(path).at(Kind::Retry, "remove", path)
        }
        Fate::Lines(note, fields) => Ok(note.take_out(fields)? == PasswordEdit::Changed),
        Fate::Notes(_) => {
            for file in regular_files(path).unwrap_or_default() {
                files::remove(&file).at(Kind::Retry, "remove", &file)?;
            }
            files::remove_if_empty(path).at(Kind::Retry, "remove", path)
        }
        Fate::Folder => files::remove_if_empty(path).at(Kind::Retry, "remove", path),
    }
}

/// What is in a folder, if that is nothing but regular files.
fn regular_files(folder: &Path) -> std::result::Result<Vec<PathBuf>, String> {
    let unseen = |error: io::Error| format!("it cannot be looked at: {error}");
    let mut found = Vec::new();
    for entry in folder.read_dir().map_err(unseen)? {
        let entry = entry.map_err(unseen)?;
        if !entry.file_type().map_err(unseen)?.is_file() {
            return Err(format!(
                "{} in it is no regular file",
                entry.file_name().display()
            ));
        }
        found.push(entry.path());
    }
    Ok(found)
}
