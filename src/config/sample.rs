//! Ini files and tables for people: the full commented samples, the short ones that `init`
//! writes, and the rows of docs/reference/settings.md. Never prints or writes a file. Invariant: what is returned as an
//! ini file loads.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::ini;
use super::keys::{self, Default, Effect, Key, Shape, Side};
use crate::error::{CommandError, Result};

/// Longest line of a comment.
const COMMENT_CHARS_MAX: usize = 78;

/// Every setting of the master's file, commented.
pub(crate) fn master_sample() -> String {
    sample(Side::Master)
}

/// Every setting of the standby's file, commented.
pub(crate) fn standby_sample() -> String {
    sample(Side::Standby)
}

/// Every setting of the file of a host of many clusters, commented.
pub(crate) fn host_sample() -> String {
    sample(Side::Host)
}

/// All samples, as `walmgr --ini` prints them. The lines of all but the master's are commented out
/// once more, so that the whole loads as a master's file.
pub(crate) fn all_samples() -> String {
    let mut out = String::from("# ---- master.ini ----\n");
    out.push_str(&master_sample());
    let others = [
        (
            "standby.ini: a file of its own on the standby, without the first #",
            standby_sample(),
        ),
        (
            "host.ini: only where one receiver serves many clusters; without the first #, too",
            host_sample(),
        ),
    ];
    for (title, text) in others {
        out.push_str(&format!("\n# ---- {title} ----\n"));
        for line in text.lines() {
            out.push('#');
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

fn sample(side: Side) -> String {
    let mut out = String::from("[walmgr]\n");
    for row in keys::rows(side).filter(|row| row.effect != Effect::Ignored) {
        out.push('\n');
        comment(&mut out, row.help);
        if let Some(words) = remark(row) {
            comment(&mut out, &words);
        }
        let active = row.required || (side == Side::Standby && row.name == "walmgr_data");
        let value = match row.default {
            Default::Text(text) => text,
            Default::Unset | Default::Derived(_) => row.example,
        };
        let mark = if active { "" } else { "#" };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{mark}{} = {value}", row.name);
    }
    out
}

fn remark(row: &Key) -> Option<String> {
    match row.default {
        Default::Derived(words) => Some(format!("Default: {words}.")),
        Default::Text(_) | Default::Unset => None,
    }
}

/// Adds `text` as comment lines, wrapped.
fn comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > COMMENT_CHARS_MAX && line.len() > 1 {
            out.push_str(&line);
            out.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    out.push_str(&line);
    out.push('\n');
}

/// The rows of the manual's table of the settings of one side, each ending in a newline, below the head
/// `| setting | value | default | meaning |`.
pub(crate) fn readme_rows(side: Side) -> String {
    let mut out = String::new();
    for row in keys::rows(side) {
        let default = match row.default {
            Default::Text(text) => format!("`{text}`"),
            Default::Unset | Default::Derived(_) => row.default_in_words().to_owned(),
        };
        let _ = writeln!(
            out,
            "| `{}` | {} | {default} | {} |",
            row.name,
            shape_in_words(row.shape),
            row.help
        );
    }
    out
}

pub(crate) fn shape_in_words(shape: Shape) -> String {
    match shape {
        Shape::Text | Shape::Name => "text".to_owned(),
        Shape::Command => "shell command".to_owned(),
        Shape::Path | Shape::BasePath => "path".to_owned(),
        Shape::Boolean => "yes or no".to_owned(),
        Shape::Integer(min, max) => format!("{min} to {max}"),
        Shape::Duration(..) => "time".to_owned(),
        Shape::Size(..) => "size".to_owned(),
        Shape::Choice(words) => format!("`{}`", words.join("`, `")),
        Shape::SlaveAddress => "`HOST[:PORT]`".to_owned(),
        Shape::Listen(_) => "`ADDRESS:PORT`, ...".to_owned(),
        Shape::Fingerprint => "`SHA256:...`".to_owned(),
    }
}

/// What `init` knows on the master.
#[derive(Debug, Clone, Default)]
pub(crate) struct InitMaster {
    /// `master_data`.
    pub pgdata: PathBuf,
    /// `slave`: HOST or HOST:PORT.
    pub slave: String,
    /// `slave_fingerprint`, if the standby's is known already.
    pub slave_fingerprint: Option<String>,
    /// `master_db`, if it differs from the default.
    pub master_db: Option<String>,
    /// `master_config`, if it is not in the data directory.
    pub master_config: Option<PathBuf>,
    /// `master_bin`, if found.
    pub master_bin: Option<PathBuf>,
    /// What could be set as `master_restart_cmd`.
    pub restart_example: Option<String>,
}

/// What `init` knows on the standby.
#[derive(Debug, Clone, Default)]
pub(crate) struct InitStandby {
    /// `walmgr_data`: the base directory of the archive.
    pub walmgr_data: PathBuf,
    /// `listen`, if it differs from the default.
    pub listen: Option<String>,
    /// `slave_data`, if known.
    pub slave_data: Option<PathBuf>,
    /// `slave_bin`, if found.
    pub slave_bin: Option<PathBuf>,
    /// `primary_conninfo`, if known.
    pub primary_conninfo: Option<String>,
    /// The file's name without `.ini`, where a host serves it with others.
    pub hosted_name: Option<String>,
}

/// A short commented master.ini. Fails if a value cannot be written in an ini file.
pub(crate) fn master_ini(init: &InitMaster) -> Result<String> {
    let mut file = SampleWriter::new(Side::Master);
    file.path("master_data", Some(&init.pgdata))?;
    file.path("master_config", init.master_config.as_deref())?;
    file.path("master_bin", init.master_bin.as_deref())?;
    file.text("master_db", init.master_db.as_deref())?;
    file.text("slave", Some(&init.slave))?;
    match &init.slave_fingerprint {
        Some(fingerprint) => file.text("slave_fingerprint", Some(fingerprint))?,
        None => file.hint("slave_fingerprint"),
    }
    match &init.restart_example {
        Some(command) => file.example("master_restart_cmd", command)?,
        None => file.hint("master_restart_cmd"),
    }
    file.hint("compression");
    file.hint("logfile");
    Ok(file.finish())
}

/// A short commented standby.ini. Fails if a value cannot be written in an ini file.
pub(crate) fn standby_ini(init: &InitStandby) -> Result<String> {
    let mut file = SampleWriter::new(Side::Standby);
    file.path("walmgr_data", Some(&init.walmgr_data))?;
    let folders = [
        ("completed_wals", "logs.complete"),
        ("partial_wals", "logs.partial"),
        ("full_backup", "data.master"),
        ("config_backup", "config.backup"),
    ];
    for (name, below) in folders {
        file.line(name, &format!("%(walmgr_data)s/{below}"));
    }
    match (&init.listen, &init.hosted_name) {
        (Some(listen), _) => file.text("listen", Some(listen))?,
        (None, None) => file.hint("listen"),
        (None, Some(_)) => {}
    }
    file.path("slave_data", init.slave_data.as_deref())?;
    file.path("slave_bin", init.slave_bin.as_deref())?;
    file.text("primary_conninfo", init.primary_conninfo.as_deref())?;
    for name in ["authorized_keys", "authorized_names"] {
        match &init.hosted_name {
            // Of its own, or the masters of one cluster could write to all others of the folder.
            Some(cluster) => file.text(name, Some(&format!("{cluster}.{name}")))?,
            None => file.hint(name),
        }
    }
    file.hint("keep_backups");
    file.hint("logfile");
    Ok(file.finish())
}

/// A short commented host.ini of the clusters in this folder.
pub(crate) fn host_ini(clusters: &Path) -> Result<String> {
    let mut file = SampleWriter::new(Side::Host);
    file.path("clusters", Some(clusters))?;
    for name in ["listen", "max_connections", "logfile", "pidfile"] {
        file.hint(name);
    }
    Ok(file.finish())
}

struct SampleWriter {
    side: Side,
    out: String,
}

impl SampleWriter {
    fn new(side: Side) -> Self {
        let out = format!(
            "# walmgr on the {}. `walmgr --ini` prints every setting.\n[walmgr]\n",
            side.word()
        );
        SampleWriter { side, out }
    }

    fn path(&mut self, name: &str, path: Option<&Path>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        let text = path
            .to_str()
            .ok_or_else(|| inexpressible(name, &path.display()))?;
        self.text(name, Some(text))
    }

    fn text(&mut self, name: &str, value: Option<&str>) -> Result<()> {
        let Some(value) = value else { return Ok(()) };
        let printed = ini::print_value(value).ok_or_else(|| inexpressible(name, &value))?;
        self.line(name, &printed);
        Ok(())
    }

    /// A line that is in force.
    fn line(&mut self, name: &str, printed: &str) {
        self.help(name);
        let _ = writeln!(self.out, "{name} = {printed}");
    }

    /// A commented line with the example of the table.
    fn hint(&mut self, name: &str) {
        let example = keys::row(name, self.side).map_or("", |row| row.example);
        self.commented(name, example);
    }

    /// A commented line with a value that fits this host.
    fn example(&mut self, name: &str, value: &str) -> Result<()> {
        let printed = ini::print_value(value).ok_or_else(|| inexpressible(name, &value))?;
        self.commented(name, &printed);
        Ok(())
    }

    fn commented(&mut self, name: &str, printed: &str) {
        self.help(name);
        if let Some(words) = keys::row(name, self.side).and_then(remark) {
            comment(&mut self.out, &words);
        }
        let _ = writeln!(self.out, "#{name} = {printed}");
    }

    fn help(&mut self, name: &str) {
        self.out.push('\n');
        if let Some(row) = keys::row(name, self.side) {
            comment(&mut self.out, row.help);
        }
    }

    fn finish(self) -> String {
        self.out
    }
}

fn inexpressible(name: &str, value: &dyn std::fmt::Display) -> CommandError {
    let shown = super::fault::shown(&value.to_string());
    CommandError::usage(format!(
        "{name}: expected a value that fits in an ini file, found `{shown}`"
    ))
    .hint("line breaks, spaces at the ends and ` ;` cannot be written there")
}
