//! `verify`: proves that what is archived and sealed can be restored, and says to which times.
//! Never changes anything but what it remembers in `.verified`. Invariant: the exit code is that of the worst finding,
//! as with `status`, and a summary stands behind the findings, also where there are none.

use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::config::StandbyConfig;
use crate::error::{CommandError, Kind, Result};
use crate::options::Options;
use crate::output::{self, Waiting, escaped};
use crate::standby::audited;
use crate::standby::sets;
use crate::standby::verified;
use crate::status::Code;
use crate::store::verify::finding::{
    FaultPlace, SetWindow, VerifyFinding, VerifyReport, VerifyStep,
};
use crate::store::verify::{VerifyRequest, extent, verify};
use crate::store::{ArchiveFolders, Disk, RealDisk};
use crate::wal::commit::CommitAt;

/// How many findings a program gets; the counts are of all.
const JSON_FINDINGS_MAX: usize = 1_000;

/// What stood behind `verify`.
#[derive(Debug, Default, PartialEq, Eq, Args)]
pub(crate) struct VerifyArgs {
    /// One set, as `listbackups` prints it, with the WAL that it needs; without it everything
    #[arg(id = "backup_set", value_name = "SET")]
    pub set: Option<String>,
    /// Read every file, also what has not changed since it was found good
    #[arg(long)]
    pub all: bool,
}

/// Proves the archive, or a set of it.
pub(crate) fn run(config: &StandbyConfig, options: &Options, typed: &VerifyArgs) -> Result<()> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let wanted = match &typed.set {
        None => None,
        Some(text) => Some(sets::named(&sets::open(config)?, text)?),
    };
    let places = ArchiveFolders::of(config);
    let request = VerifyRequest {
        places: &places,
        full_backup: config.full_backup.as_deref(),
        disk: &disk,
        set: wanted.as_ref(),
        again_after: config.verify_again_after,
        reads_all: typed.all,
    };
    let failed = |error| sets::failed("verify the archive", &error);
    if options.not_really {
        let (files, sets) = extent(&request).map_err(failed)?;
        return output::not_really(&match &wanted {
            None => format!("read {files} archived files and {sets} backup sets"),
            Some(set) => format!("read {set} and what it needs of {files} archived files"),
        });
    }
    let begun = Instant::now();
    let mut waiting = Waiting::begin();
    let (mut printed, mut kept, mut passed_bytes) = (Ok(()), Vec::new(), 0_u64);
    let report = verify(&request, &mut |step| match step {
        VerifyStep::Passed(bytes) => {
            passed_bytes += bytes;
            if waiting.is_due() {
                tracing::info!("{} so far", size_text(passed_bytes));
            }
        }
        VerifyStep::Found(finding) if options.json => {
            if kept.len() < JSON_FINDINGS_MAX {
                kept.push(finding_json(finding));
            }
        }
        VerifyStep::Found(finding) => {
            if printed.is_ok() {
                printed = output::print(&finding_line(finding));
            }
        }
    });
    let mut report = report.map_err(failed)?;
    printed?;
    let is_good = state(&report) == "ok";
    if wanted.is_none()
        && let Some(why) = audited::trouble(config)
    {
        let finding = of_audit(why);
        report.warning_count += 1;
        match options.json {
            true => kept.push(finding_json(&finding)),
            false => output::print(&finding_line(&finding))?,
        }
    }
    if options.json {
        output::print(&page_json(&report, kept).to_string())?;
    } else if !options.quiet {
        output::print(&summary(&report, begun.elapsed().as_secs_f64()))?;
    }
    if let Some(why) = &report.not_remembered {
        tracing::warn!("the next verify reads everything again: {why}");
    } else if wanted.is_none()
        && is_good
        && let Err(error) = verified::note(config)
    {
        tracing::warn!("monitoring does not hear of this verify: {error}");
    }
    match (report.critical_count, report.warning_count) {
        (0, 0) => Ok(()),
        (0, _) => Err(CommandError::new(Kind::Warned, "verify: warning")),
        _ => Err(CommandError::new(Kind::Alarmed, "verify: critical")),
    }
}

/// No fault of the archive: nobody may rely on the list of what was done to it.
fn of_audit(why: String) -> VerifyFinding {
    VerifyFinding {
        is_critical: false,
        code: Code::AuditLog.word(),
        set: None,
        file: "audit_log".to_owned(),
        place: FaultPlace::default(),
        why,
        remedy: "`walmgr help audit_log` says how it ends".to_owned(),
    }
}

fn level(finding: &VerifyFinding) -> &'static str {
    match finding.is_critical {
        true => "critical",
        false => "warning",
    }
}

/// Where a finding is: the file, with its set before it.
fn file_of(finding: &VerifyFinding) -> String {
    match (&finding.set, finding.file.as_str()) {
        (Some(set), "") => set.to_string(),
        (Some(set), file) => format!("{set}/{file}"),
        (None, file) => file.to_owned(),
    }
}

/// `critical: FILE at LSN (byte N): what was expected and found; what to do`
fn finding_line(finding: &VerifyFinding) -> String {
    let place = match (finding.place.lsn, finding.place.offset_bytes) {
        (Some(lsn), Some(offset)) => format!(" at {lsn} (byte {offset})"),
        (Some(lsn), None) => format!(" at {lsn}"),
        (None, Some(offset)) => format!(" at byte {offset}"),
        (None, None) => String::new(),
    };
    let (level, file) = (level(finding), file_of(finding));
    escaped(&format!(
        "{level}: {file}{place}: {}; {}",
        finding.why, finding.remedy
    ))
}

fn finding_json(finding: &VerifyFinding) -> Value {
    json!({
        "level": level(finding),
        "code": finding.code,
        "set": finding.set.as_ref().map(ToString::to_string),
        "file": finding.file,
        "lsn": finding.place.lsn.map(|lsn| lsn.to_string()),
        "offset_bytes": finding.place.offset_bytes,
        "why": finding.why,
        "remedy": finding.remedy,
    })
}

fn state(report: &VerifyReport) -> &'static str {
    match (report.critical_count, report.warning_count) {
        (0, 0) => "ok",
        (0, _) => "warning",
        _ => "critical",
    }
}

fn page_json(report: &VerifyReport, findings: Vec<Value>) -> Value {
    let sets: Vec<Value> = report.sets.iter().map(window_json).collect();
    let counts = &report.counts;
    json!({
        "state": state(report),
        "findings": findings,
        "critical_count": report.critical_count,
        "warning_count": report.warning_count,
        "segments": report.segments,
        "other_files": report.other_files,
        "segments_in_progress": report.partials,
        "old_damaged_copies": report.old_copies,
        "sets": sets,
        "files_read": counts.files_read,
        "bytes_read": counts.bytes_read,
        "files_skipped": counts.files_skipped,
        "bytes_skipped": counts.bytes_skipped,
    })
}

fn window_json(window: &SetWindow) -> Value {
    let commit = |commit: Option<CommitAt>| {
        commit.map(|CommitAt { lsn, time_us }| {
            let time = Timestamp::from_microsecond(time_us).ok();
            json!({ "lsn": lsn.to_string(), "time": time.map(|time| time.to_string()) })
        })
    };
    json!({
        "set": window.set.to_string(),
        "files": window.files,
        "damaged_files": window.damaged_files,
        "is_recoverable": window.is_recoverable(),
        "timeline": window.from.map(|(timeline, _)| timeline.number()),
        "start_lsn": window.from.map(|(_, start)| start.to_string()),
        "stop_lsn": window.stop.map(|stop| stop.to_string()),
        "end_lsn": window.from.map(|_| window.end.to_string()),
        "first_commit": commit(window.first),
        "last_commit": commit(window.last),
    })
}

/// What was read, and to which times the sets lead.
fn summary(report: &VerifyReport, seconds: f64) -> String {
    let (counts, sets) = (&report.counts, &report.sets);
    let files: u64 = sets.iter().map(|set| set.files).sum();
    let mut text = format!(
        "{} segments, {} in progress, {} other files; {} backup sets with {files} files\n",
        report.segments,
        report.partials,
        report.other_files,
        sets.len(),
    );
    text += &format!(
        "{} in {} files read in {seconds:.1} s; {} in {} files not again, as they have not changed",
        size_text(counts.bytes_read),
        counts.files_read,
        size_text(counts.bytes_skipped),
        counts.files_skipped,
    );
    if report.old_copies > 0 {
        text += &format!(
            "\n{} damaged copies of files that are there and good",
            report.old_copies
        );
    }
    for window in sets {
        text += &format!("\n  {}: {}", window.set, window_text(window));
    }
    text += &match (report.critical_count, report.warning_count) {
        (0, 0) => "\nall is well".to_owned(),
        (critical, warnings) => format!("\n{critical} critical findings, {warnings} warnings"),
    };
    text
}

fn window_text(window: &SetWindow) -> String {
    if !window.is_recoverable() {
        return "cannot be restored".to_owned();
    }
    let end = window.end;
    match (window.first, window.last) {
        (Some(first), Some(last)) => format!(
            "can be restored to any time from {} to {}, to {end} at the latest",
            time_text(first.time_us),
            time_text(last.time_us)
        ),
        _ => format!("can be restored to {end}; no commit lies behind its backup"),
    }
}

fn time_text(time_us: i64) -> String {
    match Timestamp::from_microsecond(time_us) {
        Ok(time) => {
            let local = time.to_zoned(TimeZone::system());
            local.strftime("%Y-%m-%d %H:%M:%S%:z").to_string()
        }
        Err(_) => format!("{time_us} µs since 1970"),
    }
}

fn size_text(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
