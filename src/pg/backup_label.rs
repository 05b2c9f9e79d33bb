//! `backup_label`: where the WAL begins that a recovery of a base backup reads.
//! Never reads a file. Invariant: a label that is not understood to its last byte is an error, so
//! what is parsed is written back byte for byte.

use std::fmt::Write;
use std::str::FromStr;

use walmgr_protocol::names::{InvalidName, Lsn, SegmentName, TimelineId};

const START: &str = "START WAL LOCATION";
const CHECKPOINT: &str = "CHECKPOINT LOCATION";
const METHOD: &str = "BACKUP METHOD";
const FROM: &str = "BACKUP FROM";
/// What `BACKUP FROM` says of a backup that was made on a standby.
pub(crate) const FROM_STANDBY: &str = "standby";
const TIME: &str = "START TIME";
const LABEL: &str = "LABEL";
const TIMELINE: &str = "START TIMELINE";
const INCREMENTAL_LSN: &str = "INCREMENTAL FROM LSN";
const INCREMENTAL_TIMELINE: &str = "INCREMENTAL FROM TLI";

/// A label, line by line: `build_backup_content` writes it (`src/backend/access/transam/xlog.c` up
/// to 14, `xlogbackup.c` from 15 on), `read_backup_label` (`xlog.c`, `xlogrecovery.c`) reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// `START WAL LOCATION`: where replay begins.
    pub start: Lsn,
    /// The segment that it is in: the first one that a recovery of the set reads.
    pub first_segment: SegmentName,
    /// `CHECKPOINT LOCATION`: the record of the checkpoint the backup began with.
    pub checkpoint: Lsn,
    /// `BACKUP METHOD`: `streamed`, or `pg_start_backup` of an exclusive backup of 13 and 14.
    pub method: Option<String>,
    /// `BACKUP FROM`: `primary` (`master` in 13) or `standby`.
    pub from: Option<String>,
    /// `START TIME` as the server wrote it, in its time zone.
    pub start_time: String,
    /// `LABEL`: what the client called the backup.
    pub label: String,
    /// `START TIMELINE`, the same as the first segment's.
    pub timeline: Option<TimelineId>,
    /// The backup this one needs. PostgreSQL does not start from one that has this.
    pub incremental_from: Option<IncrementalFrom>,
}

/// The last lines of an incremental backup's label (17 and newer).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IncrementalFrom {
    /// `INCREMENTAL FROM LSN`: where the backup before it began.
    pub lsn: Lsn,
    /// `INCREMENTAL FROM TLI`: its timeline.
    pub timeline: TimelineId,
}

/// Why bytes are not a label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelFault {
    /// Not UTF-8, which is how SQL hands a label out.
    #[error("it is not text")]
    NotText,
    /// The last line has no end, so the others may be missing.
    #[error("its last line is cut")]
    Cut,
    /// A line that PostgreSQL always writes is not where it writes it.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// What a line says makes no sense.
    #[error("its {line}: {why}")]
    Value {
        /// The line.
        line: &'static str,
        /// What is expected there.
        why: String,
    },
    /// A line that no version of PostgreSQL writes at this place.
    #[error("its line {0:?} is unknown there")]
    Unknown(String),
}

impl BackupLabel {
    /// Reads a label. The lines come in PostgreSQL's order; it reads them in that order too.
    pub fn parse(bytes: &[u8]) -> Result<BackupLabel, LabelFault> {
        let text = std::str::from_utf8(bytes).map_err(|_| LabelFault::NotText)?;
        let mut lines = Lines { rest: text };
        let (start, first_segment) = location(lines.required(START)?)?;
        let label = BackupLabel {
            start,
            first_segment,
            checkpoint: lsn(CHECKPOINT, lines.required(CHECKPOINT)?)?,
            method: lines.optional(METHOD)?.map(str::to_owned),
            from: lines.optional(FROM)?.map(str::to_owned),
            start_time: lines.required(TIME)?.to_owned(),
            label: lines.required(LABEL)?.to_owned(),
            timeline: (lines.optional(TIMELINE)?)
                .map(|text| timeline(TIMELINE, text))
                .transpose()?,
            incremental_from: incremental_from(&mut lines)?,
        };
        if let Some(line) = lines.rest.lines().next() {
            return Err(LabelFault::Unknown(line.chars().take(60).collect()));
        }
        match label.timeline {
            Some(timeline) if timeline != first_segment.timeline() => {
                let why = format!("expected that of {first_segment}, found {timeline}");
                Err(value(TIMELINE, why))
            }
            _ => Ok(label),
        }
    }

    /// The label as PostgreSQL writes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = String::new();
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{key}: {value}");
        };
        let (start, file) = (self.start, self.first_segment);
        line(START, &format_args!("{start} (file {file})"));
        line(CHECKPOINT, &self.checkpoint);
        if let Some(method) = &self.method {
            line(METHOD, method);
        }
        if let Some(from) = &self.from {
            line(FROM, from);
        }
        line(TIME, &self.start_time);
        line(LABEL, &self.label);
        if let Some(timeline) = self.timeline {
            line(TIMELINE, &timeline.number());
        }
        if let Some(from) = self.incremental_from {
            line(INCREMENTAL_LSN, &from.lsn);
            line(INCREMENTAL_TIMELINE, &from.timeline.number());
        }
        text.into_bytes()
    }
}

fn incremental_from(lines: &mut Lines<'_>) -> Result<Option<IncrementalFrom>, LabelFault> {
    let Some(from) = lines.optional(INCREMENTAL_LSN)? else {
        return Ok(None);
    };
    Ok(Some(IncrementalFrom {
        lsn: lsn(INCREMENTAL_LSN, from)?,
        timeline: timeline(INCREMENTAL_TIMELINE, lines.required(INCREMENTAL_TIMELINE)?)?,
    }))
}

fn location(text: &str) -> Result<(Lsn, SegmentName), LabelFault> {
    let (start, file) = text
        .strip_suffix(')')
        .and_then(|text| text.split_once(" (file "))
        .ok_or_else(|| value(START, "it names no file".to_owned()))?;
    let wrong = |error: InvalidName| value(START, error.to_string());
    Ok((lsn(START, start)?, file.parse().map_err(wrong)?))
}

fn lsn(line: &'static str, text: &str) -> Result<Lsn, LabelFault> {
    let lsn = Lsn::from_str(text).map_err(|error| value(line, error.to_string()))?;
    exact(line, lsn, text, &lsn.to_string())
}

fn timeline(line: &'static str, text: &str) -> Result<TimelineId, LabelFault> {
    let expected = || value(line, "expected the number of a timeline".to_owned());
    let number: u32 = text.parse().map_err(|_| expected())?;
    let timeline = TimelineId::new(number).ok_or_else(expected)?;
    exact(line, timeline, text, &number.to_string())
}

/// Other spellings of a number are not PostgreSQL's, and would not survive being written back.
fn exact<T>(line: &'static str, parsed: T, text: &str, spelt: &str) -> Result<T, LabelFault> {
    match text == spelt {
        true => Ok(parsed),
        false => Err(value(line, format!("expected {spelt}, found {text:?}"))),
    }
}

fn value(line: &'static str, why: String) -> LabelFault {
    LabelFault::Value { line, why }
}

struct Lines<'a> {
    rest: &'a str,
}

impl<'a> Lines<'a> {
    /// What the next line says if it has this key.
    fn optional(&mut self, key: &str) -> Result<Option<&'a str>, LabelFault> {
        let behind = self.rest.strip_prefix(key);
        let Some(behind) = behind.and_then(|behind| behind.strip_prefix(": ")) else {
            return Ok(None);
        };
        let (value, rest) = behind.split_once('\n').ok_or(LabelFault::Cut)?;
        self.rest = rest;
        Ok(Some(value))
    }

    fn required(&mut self, key: &'static str) -> Result<&'a str, LabelFault> {
        self.optional(key)?.ok_or(LabelFault::Missing(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-01-02 03:04:05 CET\nLABEL: FullBackup\nSTART TIMELINE: 1\n";

    fn parse(text: &str) -> Result<BackupLabel, LabelFault> {
        BackupLabel::parse(text.as_bytes())
    }

    #[test]
    fn a_label_is_read_and_written_back() {
        let label = parse(WHOLE).unwrap();
        assert_eq!(label.start, Lsn(0x200_0028));
        assert_eq!(label.first_segment.to_string(), "000000010000000000000002");
        assert_eq!(label.checkpoint, Lsn(0x200_0060));
        assert_eq!(label.method.as_deref(), Some("streamed"));
        assert_eq!(label.from.as_deref(), Some("primary"));
        assert_eq!(label.start_time, "2026-01-02 03:04:05 CET");
        assert_eq!(label.label, "FullBackup");
        assert_eq!(label.timeline, TimelineId::new(1));
        assert_eq!(label.incremental_from, None);
        assert_eq!(label.to_bytes(), WHOLE.as_bytes());
    }

    #[test]
    fn an_incremental_label_keeps_what_it_needs() {
        let text = format!("{WHOLE}INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n");
        let label = parse(&text).unwrap();
        let from = label.incremental_from.unwrap();
        assert_eq!((from.lsn, from.timeline.number()), (Lsn(0x100_0028), 1));
        assert_eq!(label.to_bytes(), text.as_bytes());
    }

    #[test]
    fn lines_that_old_servers_left_out_may_be_absent() {
        let mut text = WHOLE.to_owned();
        for line in [
            "BACKUP METHOD: streamed\n",
            "BACKUP FROM: primary\n",
            "START TIMELINE: 1\n",
        ] {
            text = text.replace(line, "");
            assert_eq!(parse(&text).unwrap().to_bytes(), text.as_bytes());
        }
    }

    #[test]
    fn every_shortened_label_is_refused_but_for_whole_optional_lines() {
        let whole = WHOLE.len();
        let without_timeline = whole - "START TIMELINE: 1\n".len();
        for end in (0..whole).filter(|end| *end != without_timeline) {
            assert!(parse(&WHOLE[..end]).is_err(), "{:?}", &WHOLE[..end]);
        }
    }

    #[test]
    fn what_postgresql_does_not_write_is_refused() {
        for (from, to, why) in [
            ("LABEL: FullBackup\n", "", "it has no LABEL"),
            ("CHECKPOINT LOCATION", "CHECKPOINT", "it has no CHECKPOINT"),
            (" (file ", " (", "its START WAL LOCATION: it names no file"),
            ("0/2000060", "0/200006x", "an LSN"),
            ("0/2000060", "0/02000060", "expected 0/2000060"),
            ("TIMELINE: 1", "TIMELINE: 2", "its START TIMELINE: expected"),
            ("TIMELINE: 1", "TIMELINE: 0", "the number of a timeline"),
            (
                "FullBackup",
                "Full\nBackup",
                "its line \"Backup\" is unknown",
            ),
            ("LABEL: ", "LABEL: x\nLABEL: ", "is unknown there"),
            ("000000010000", "00000001", "a segment name"),
        ] {
            let fault = parse(&WHOLE.replace(from, to)).unwrap_err().to_string();
            assert!(fault.contains(why), "{to}: {fault}");
        }
        assert_eq!(BackupLabel::parse(&[0xFF]), Err(LabelFault::NotText));
    }
}
