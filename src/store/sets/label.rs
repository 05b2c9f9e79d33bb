//! What a list of sets and a purge need of a `backup_label`.
//! Never reads a file. Invariant: a label that is not understood is an error, never an old one.

use std::str::FromStr;

use walmgr_protocol::names::{Lsn, SegmentName};

/// The lines of a `backup_label` (`build_backup_content`,
/// `src/backend/access/transam/xlogbackup.c`) that matter to the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelFacts {
    /// `START WAL LOCATION`.
    pub start: Lsn,
    /// The segment that it is in: the first one that a recovery of the set reads.
    pub first_segment: SegmentName,
    /// `START TIME` as the master wrote it.
    pub start_time: String,
    /// `LABEL`.
    pub label: String,
}

impl LabelFacts {
    /// Reads a label; the error is what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<LabelFacts, String> {
        parse(bytes)
    }
}

/// Reads a label.
pub(super) fn parse(bytes: &[u8]) -> Result<LabelFacts, String> {
    let text = String::from_utf8_lossy(bytes);
    let value = |key: &str| {
        let lines = text.lines();
        let mut values = lines.filter_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        let value = values.next().ok_or_else(|| format!("it has no {key}"))?;
        match values.next() {
            None => Ok(value.to_owned()),
            Some(_) => Err(format!("it has {key} twice")),
        }
    };
    let location = value("START WAL LOCATION")?;
    let (start, file) = location
        .split_once(" (file ")
        .ok_or("its START WAL LOCATION names no file")?;
    let file = file.strip_suffix(')').unwrap_or(file);
    let wrong = |error| format!("its START WAL LOCATION: {error}");
    Ok(LabelFacts {
        start: Lsn::from_str(start).map_err(wrong)?,
        first_segment: SegmentName::from_str(file).map_err(wrong)?,
        start_time: value("START TIME")?,
        label: value("LABEL")?,
    })
}
