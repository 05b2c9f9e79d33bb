//! The arguments of `restore`.
//! Never reads what they name. Invariant: at most one place to end is asked for, and what belongs
//! to one is not given without it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::Args;

use crate::abnormal::RESTORED_TO;
use crate::error::{CommandError, Result};
use crate::options::{Restoring, TargetWords};

#[derive(Args)]
pub(super) struct RestoreArgs {
    /// The set, as `listbackups` prints it; without it the newest is moved, not copied
    #[arg(value_name = "SET")]
    backup_set: Option<String>,
    /// Another place than `slave_data`
    #[arg(value_name = "DST")]
    destination: Option<PathBuf>,
    /// Recover up to this time, such as '2026-01-31 17:45:00+01'
    #[arg(long, value_name = "TIME", group = "end")]
    target_time: Option<String>,
    /// Recover up to the record at this WAL location
    #[arg(long, value_name = "LSN", group = "end")]
    target_lsn: Option<String>,
    /// Recover up to the end of this transaction
    #[arg(long, value_name = "XID", group = "end")]
    target_xid: Option<String>,
    /// Recover up to this restore point
    #[arg(long, value_name = "NAME", group = "end")]
    target_name: Option<String>,
    /// Follow this timeline: a number, latest or current
    #[arg(long, value_name = "TIMELINE")]
    target_timeline: Option<String>,
    /// What the server does when it is there
    #[arg(long, value_name = "ACTION", value_parser = ["pause", "promote", "shutdown"], requires = "end")]
    target_action: Option<String>,
    /// Where a tablespace goes: OLD is its path on the master
    #[arg(long, value_name = "OLD=NEW")]
    tablespace_mapping: Vec<OsString>,
    /// Keep settings of the set that run commands, load libraries or write elsewhere
    #[arg(long)]
    trust_settings: bool,
}

impl RestoreArgs {
    pub(super) fn into_restoring(self) -> Result<Restoring> {
        // As a restore_command this would tell PostgreSQL that its archive has ended.
        let restored_to = self.destination.as_ref().map(|path| path.to_string_lossy());
        if restored_to.is_some_and(|path| RESTORED_TO.iter().any(|end| path.ends_with(end))) {
            return Err(CommandError::usage("`restore` is not for restore_command")
                .hint("use `xrestore %f %p`"));
        }
        let tablespaces = self.tablespace_mapping.iter().map(|text| mapping(text));
        Ok(Restoring {
            set: self.backup_set,
            destination: self.destination,
            target: TargetWords {
                time: self.target_time,
                lsn: self.target_lsn,
                xid: self.target_xid,
                name: self.target_name,
                timeline: self.target_timeline,
                action: self.target_action,
            },
            tablespaces: tablespaces.collect::<Result<_>>()?,
            trusts_settings: self.trust_settings,
        })
    }
}

/// `OLD=NEW`, both absolute; `\=` is an equals sign of a path, as pg_basebackup has it.
fn mapping(text: &OsStr) -> Result<(PathBuf, PathBuf)> {
    let mut parts = vec![Vec::new()];
    let mut bytes = text.as_bytes().iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match (byte, bytes.peek(), parts.last_mut()) {
            (b'\\', Some(b'='), Some(part)) => {
                bytes.next();
                part.push(b'=');
            }
            (b'=', _, _) => parts.push(Vec::new()),
            (byte, _, Some(part)) => part.push(byte),
            (_, _, None) => {}
        }
    }
    let parts = parts.into_iter().map(OsString::from_vec).map(PathBuf::from);
    let parts: Vec<PathBuf> = parts.collect();
    match <[PathBuf; 2]>::try_from(parts) {
        Ok([old, new]) if old.is_absolute() && new.is_absolute() => Ok((old, new)),
        _ => Err(CommandError::usage(format!(
            "--tablespace-mapping {}: expected OLD=NEW, two absolute paths",
            text.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_two_absolute_paths() {
        let read = |text: &str| mapping(OsStr::new(text));
        let (old, new) = read(r"/a\=b=/c\d").unwrap();
        assert_eq!((old, new), ("/a=b".into(), r"/c\d".into()));
        for wrong in ["", "/a", "/a=b", "a=/b", "/a=/b=/c", r"/a\=/b"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
