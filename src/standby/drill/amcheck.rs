//! `pg_amcheck` over all databases of a drill's server.
//! Never decides what is damage: that program does. Invariant: where it cannot run that is said, and is no failure.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;

use super::place::{PORT, ScratchPlace};
use super::programs::DrillPrograms;
use super::query::CHECK_LIMIT;
use super::server::without_libpq;
use crate::abnormal::Interrupt;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::output::{Waiting, escaped};
use crate::patience::process;
use crate::standby::replay::TICK;

/// The first major version that has it.
const SINCE_MAJOR: u8 = 14;

/// What it checks with; `--install-missing` takes it from here.
const EXTENSION: &str = "extension/amcheck.control";

/// No timeout of the set's ends the check, and no event trigger of it runs.
const OPTIONS: &str = "-c statement_timeout=0 -c lock_timeout=0 \
    -c idle_in_transaction_session_timeout=0 -c default_transaction_read_only=off";

/// Lines of its findings that are told; the rest says the same of other blocks.
const LINES_MAX: usize = 5;

/// Checks; a note if that is not possible here.
pub(super) fn run(
    programs: &DrillPrograms,
    place: &ScratchPlace,
    user: &str,
    interrupt: &Interrupt,
) -> Result<Option<String>> {
    let program = programs.path("pg_amcheck");
    if programs.major < SINCE_MAJOR {
        return Ok(Some(format!(
            "pg_amcheck did not run: PostgreSQL {} has none",
            programs.major
        )));
    }
    if !program.is_file() {
        return Ok(Some(format!(
            "pg_amcheck did not run: there is no {}",
            program.display()
        )));
    }
    if !has_extension(programs) {
        return Ok(Some(
            "pg_amcheck did not run: the extension amcheck is not installed on this host"
                .to_owned(),
        ));
    }
    let log = place.path().join("amcheck");
    let output = File::create(&log).at(Kind::Retry, "create", &log)?;
    let errors = output.try_clone().at(Kind::Retry, "open", &log)?;
    let mut command = without_libpq(Command::new(&program));
    command
        .args(["--all", "--install-missing", "--no-password"])
        .arg("--host")
        .arg(place.socket_folder())
        .args(["--port", &PORT.to_string(), "--username", user])
        .env("PGOPTIONS", OPTIONS)
        .env("LC_MESSAGES", "C")
        .current_dir(place.path())
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors);
    let mut child = command.spawn().at(Kind::Config, "start", &program)?;
    let (begun, mut waiting) = (Instant::now(), Waiting::begin());
    let status = loop {
        let ended = process::exited_within(&mut child, TICK);
        let stopped = match ended.at(Kind::Retry, "wait for", &program) {
            Ok(Some(status)) => break status,
            Ok(None) if begun.elapsed() > CHECK_LIMIT => {
                Err(CommandError::retry("pg_amcheck has run for a day"))
            }
            Ok(None) => interrupt.check(),
            Err(error) => Err(error),
        };
        if let Err(error) = stopped {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        if waiting.is_due() {
            tracing::info!("pg_amcheck has run for {} s", begun.elapsed().as_secs());
        }
    };
    if status.success() {
        return Ok(None);
    }
    let text = files::read_at_most(&log, SMALL_FILE_BYTES_MAX).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<String> = text
        .lines()
        .take(LINES_MAX)
        .map(|line| escaped(line.trim()))
        .collect();
    Err(CommandError::retry(format!(
        "pg_amcheck found damage ({status}): {}",
        lines.join("; ")
    )))
}

fn has_extension(programs: &DrillPrograms) -> bool {
    let folders = programs.shared();
    folders.is_empty()
        || folders
            .iter()
            .any(|folder| folder.join(EXTENSION).is_file())
}
