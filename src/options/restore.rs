//! The arguments of `restore`.
//! Never reads what they name. Invariant: at most one place to end is asked for, and what belongs
//! to one is not given without it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::error::{CommandError, Result};

/// What stood behind `restore`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct Restoring {
    /// The set, as `listbackups` prints it; without it the newest is moved, not copied
    #[arg(id = "backup_set", value_name = "SET")]
    pub set: Option<String>,
    /// Another place than `slave_data`
    #[arg(value_name = "DST")]
    pub destination: Option<PathBuf>,
    #[command(flatten)]
    pub target: TargetWords,
    /// Put a tablespace elsewhere: OLD is its path on the master
    #[arg(long = "tablespace-mapping", value_name = "OLD=NEW")]
    #[arg(value_parser = OsStringValueParser::new().try_map(|text| tablespace_mapping(&text)))]
    pub tablespaces: Vec<(PathBuf, PathBuf)>,
    /// Keep settings of the set that run commands, load libraries or write elsewhere
    #[arg(long = "trust-settings")]
    pub trusts_settings: bool,
    /// Take files of the old directory over where they are what the set's manifest lists
    #[arg(long)]
    pub delta: bool,
    /// Make the old directory the new one, with --delta, where there is no room beside it
    #[arg(long = "in-place", requires = "delta")]
    pub in_place: bool,
}

/// How far to recover, as typed; at most one of the first five is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct TargetWords {
    /// Recover up to this time, such as '2026-01-31 17:45:00+01'
    #[arg(long = "target-time", value_name = "TIME", group = "end")]
    pub time: Option<String>,
    /// Recover up to the record at this WAL location
    #[arg(long = "target-lsn", value_name = "LSN", group = "end")]
    pub lsn: Option<String>,
    /// Recover up to the end of this transaction
    #[arg(long = "target-xid", value_name = "XID", group = "end")]
    pub xid: Option<String>,
    /// Recover up to this restore point
    #[arg(long = "target-name", value_name = "NAME", group = "end")]
    pub name: Option<String>,
    /// Recover only as far as the set needs: up to the end of the backup
    #[arg(long = "target-immediate", group = "end")]
    pub immediate: bool,
    /// Stop just before the time, location or transaction, not behind it
    #[arg(long = "target-exclusive")]
    pub exclusive: bool,
    /// Follow this timeline: a number, latest or current
    #[arg(long = "target-timeline", value_name = "TIMELINE")]
    pub timeline: Option<String>,
    /// Have the server do this when it is there
    #[arg(long = "target-action", value_name = "ACTION", requires = "end")]
    #[arg(value_parser = ["pause", "promote", "shutdown"])]
    pub action: Option<String>,
}

impl TargetWords {
    /// What the grammar cannot say: which ends have a record that the recovery can end before.
    pub(crate) fn check(&self) -> Result<()> {
        let has_record = self.time.is_some() || self.lsn.is_some() || self.xid.is_some();
        if !self.exclusive || has_record {
            return Ok(());
        }
        let wrong = if self.name.is_some() {
            "--target-exclusive does not go with --target-name: PostgreSQL always ends behind a \
            restore point"
        } else if self.immediate {
            "--target-exclusive does not go with --target-immediate, which ends at the end of the \
            backup and at no record of its own"
        } else {
            "--target-exclusive is given without the target that it belongs to"
        };
        Err(CommandError::usage(wrong)
            .hint("type it with --target-time, --target-lsn or --target-xid"))
    }
}

/// `OLD=NEW`, both absolute; `\=` is an equals sign of a path, as pg_basebackup has it.
pub(crate) fn tablespace_mapping(
    text: &OsStr,
) -> std::result::Result<(PathBuf, PathBuf), &'static str> {
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
        _ => Err("expected two absolute paths"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_two_absolute_paths() {
        let read = |text: &str| tablespace_mapping(OsStr::new(text));
        let (old, new) = read(r"/a\=b=/c\d").unwrap();
        assert_eq!((old, new), ("/a=b".into(), r"/c\d".into()));
        for wrong in ["", "/a", "/a=b", "a=/b", "/a=/b=/c", r"/a\=/b"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
