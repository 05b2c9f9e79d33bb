//! `verify`: proves that what is archived and sealed can be restored, and says to which times.
//! Never changes anything but what it remembers in `.verified`. Invariant: the exit code is that of the worst finding,
//! as with `status`, and a summary stands behind the findings, also where there are none.

use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use walmgr_protocol::names::BackupName;

use crate::config::StandbyConfig;
use crate::error::{CommandError, Result};
use crate::options::Options;
use crate::output::{self, Waiting, escaped};
use crate::standby::audited;
use crate::standby::sets;
use crate::standby::verified;
use crate::status::{self, Code, Level};
use crate::store::sets::SetError;
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
    /// One set, as `listbackups` prints it, with the WAL that it needs; without it everything, of each cluster of a host
    #[arg(id = "backup_set", value_name = "SET")]
    pub set: Option<String>,
    /// Read every file, also what has not changed since it was found good
    #[arg(long)]
    pub all: bool,
}

/// Proves the archive, or a set of it.
pub(crate) fn run(config: &StandbyConfig, options: &Options, typed: &VerifyArgs) -> Result<()> {
    let wanted = match &typed.set {
        None => None,
        Some(text) => Some(sets::named(&sets::open(config)?, text)?),
    };
    let proof = ArchiveProof::of(config, wanted.as_ref(), typed.all);
    if options.not_really {
        return output::not_really(&proof.extent_text()?);
    }
    let (mut printed, mut kept) = (Ok(()), Vec::new());
    let (report, seconds) = proof.make(&mut |step| match step {
        VerifyStep::Passed(_) => {}
        VerifyStep::Found(finding) if options.json => keep(&mut kept, finding),
        VerifyStep::Found(finding) => {
            if printed.is_ok() {
                printed = output::print(&finding_line(finding));
            }
        }
    })?;
    printed?;
    if options.json {
        output::print(&page_json(&report, kept).to_string())?;
    } else if !options.quiet {
        output::print(&summary(&report, seconds))?;
    }
    status::ended("verify", level(&report))
}

/// What one line says of the archive of a cluster that is one of several.
pub(super) struct VerifyLine {
    /// The summary, or the first of the worst findings and what to type.
    pub text: String,
    /// What `--json` prints of one cluster.
    pub value: Value,
    /// That of the worst finding.
    pub level: Option<Level>,
}

/// Proves the whole archive of one of several clusters; says when it has passed a file.
pub(super) fn line(
    config: &StandbyConfig,
    options: &Options,
    reads_all: bool,
    passed: &mut dyn FnMut(),
) -> Result<VerifyLine> {
    let proof = ArchiveProof::of(config, None, reads_all);
    if options.not_really {
        return Ok(VerifyLine {
            text: format!("would {}", proof.extent_text()?),
            value: Value::Null,
            level: None,
        });
    }
    let (mut worst, mut kept) = (None::<VerifyFinding>, Vec::new());
    let (report, seconds) = proof.make(&mut |step| {
        passed();
        let VerifyStep::Found(finding) = step else {
            return;
        };
        keep(&mut kept, finding);
        let is_worse = |than: &VerifyFinding| finding.is_critical && !than.is_critical;
        if worst.as_ref().is_none_or(is_worse) {
            worst = Some(finding.clone());
        }
    })?;
    let text = match &worst {
        None => good_line(&report, seconds),
        Some(worst) => format!(
            "{}; {}; type: walmgr {} verify",
            counted(&report),
            finding_line(worst),
            config.path.display()
        ),
    };
    Ok(VerifyLine {
        text,
        level: level(&report),
        value: page_json(&report, kept),
    })
}

/// What is to be proven of a cluster's archive.
struct ArchiveProof<'a> {
    config: &'a StandbyConfig,
    wanted: Option<&'a BackupName>,
    reads_all: bool,
    places: ArchiveFolders,
    disk: Arc<dyn Disk>,
}

impl<'a> ArchiveProof<'a> {
    fn of(config: &'a StandbyConfig, wanted: Option<&'a BackupName>, reads_all: bool) -> Self {
        ArchiveProof {
            config,
            wanted,
            reads_all,
            places: ArchiveFolders::of(config),
            disk: Arc::new(RealDisk),
        }
    }

    fn request(&self) -> VerifyRequest<'_> {
        VerifyRequest {
            places: &self.places,
            full_backup: self.config.full_backup.as_deref(),
            disk: &self.disk,
            set: self.wanted,
            again_after: self.config.verify_again_after,
            reads_all: self.reads_all,
        }
    }

    /// What a real run would do, as a verb phrase.
    fn extent_text(&self) -> Result<String> {
        let (files, sets) = extent(&self.request()).map_err(|error| failed(&error))?;
        Ok(match self.wanted {
            None => format!("read {files} archived files and {sets} backup sets"),
            Some(set) => format!("read {set} and what it needs of {files} archived files"),
        })
    }

    /// Hands out each step, the finding of the audit log too; returns the report, and how many seconds it took.
    fn make(&self, each: &mut dyn FnMut(VerifyStep<'_>)) -> Result<(VerifyReport, f64)> {
        let begun = Instant::now();
        let (mut waiting, mut passed_bytes) = (Waiting::begin(), 0_u64);
        let report = verify(&self.request(), &mut |step| {
            if let VerifyStep::Passed(bytes) = step {
                passed_bytes += bytes;
                if waiting.is_due() {
                    tracing::info!("{} so far", size_text(passed_bytes));
                }
            }
            each(step);
        });
        let mut report = report.map_err(|error| failed(&error))?;
        let is_good = level(&report).is_none();
        if self.wanted.is_none()
            && let Some(why) = audited::trouble(self.config)
        {
            report.warning_count += 1;
            each(VerifyStep::Found(&of_audit(why)));
        }
        if let Some(why) = &report.not_remembered {
            tracing::warn!("the next verify reads everything again: {why}");
        } else if self.wanted.is_none()
            && is_good
            && let Err(error) = verified::note(self.config)
        {
            tracing::warn!("monitoring does not hear of this verify: {error}");
        }
        Ok((report, begun.elapsed().as_secs_f64()))
    }
}

fn failed(error: &SetError) -> CommandError {
    sets::failed("verify the archive", error)
}

fn keep(kept: &mut Vec<Value>, finding: &VerifyFinding) {
    // The one about the audit log comes last and is of another kind.
    if kept.len() < JSON_FINDINGS_MAX || finding.code == Code::AuditLog.word() {
        kept.push(finding_json(finding));
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

fn level_word(finding: &VerifyFinding) -> &'static str {
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
    let (level, file) = (level_word(finding), file_of(finding));
    escaped(&format!(
        "{level}: {file}{place}: {}; {}",
        finding.why, finding.remedy
    ))
}

fn finding_json(finding: &VerifyFinding) -> Value {
    json!({
        "level": level_word(finding),
        "code": finding.code,
        "set": finding.set.as_ref().map(ToString::to_string),
        "file": finding.file,
        "lsn": finding.place.lsn.map(|lsn| lsn.to_string()),
        "offset_bytes": finding.place.offset_bytes,
        "why": finding.why,
        "remedy": finding.remedy,
    })
}

fn level(report: &VerifyReport) -> Option<Level> {
    match (report.critical_count, report.warning_count) {
        (0, 0) => None,
        (0, _) => Some(Level::Warning),
        _ => Some(Level::Critical),
    }
}

fn state(report: &VerifyReport) -> &'static str {
    match level(report) {
        None => "ok",
        Some(Level::Warning) => "warning",
        Some(Level::Critical) => "critical",
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
    let mut text = read_lines(report, seconds).join("\n");
    for window in &report.sets {
        text += &format!("\n  {}: {}", window.set, window_text(window));
    }
    text + "\n" + &counted(report)
}

/// It all in one line, of the sets only the newest.
fn good_line(report: &VerifyReport, seconds: f64) -> String {
    let newest = report.sets.first();
    let newest = newest.map(|window| format!("{}: {}", window.set, window_text(window)));
    let mut parts = vec![counted(report)];
    parts.extend(read_lines(report, seconds).into_iter().chain(newest));
    parts.join("; ")
}

fn counted(report: &VerifyReport) -> String {
    match (report.critical_count, report.warning_count) {
        (0, 0) => "all is well".to_owned(),
        (critical, warnings) => format!("{critical} critical findings, {warnings} warnings"),
    }
}

fn read_lines(report: &VerifyReport, seconds: f64) -> Vec<String> {
    let (counts, sets) = (&report.counts, &report.sets);
    let files: u64 = sets.iter().map(|set| set.files).sum();
    let mut lines = vec![
        format!(
            "{} segments, {} in progress, {} other files; {} backup sets with {files} files",
            report.segments,
            report.partials,
            report.other_files,
            sets.len(),
        ),
        format!(
            "{} in {} files read in {seconds:.1} s; {} in {} files not again, as they have not changed",
            size_text(counts.bytes_read),
            counts.files_read,
            size_text(counts.bytes_skipped),
            counts.files_skipped,
        ),
    ];
    if report.old_copies > 0 {
        lines.push(format!(
            "{} damaged copies of files that are there and good",
            report.old_copies
        ));
    }
    lines
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
