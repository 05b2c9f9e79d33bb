//! `-d`: the daemon runs in a fresh process of its own session; the one that was typed waits for it.
//! Never forks: after a fork without exec, threads and locks of the libraries would be in an unknown
//! state. Invariant: the waiting process succeeds only if the daemon said that it is ready.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, PipeReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};

use super::Notices;
use crate::error::{CommandError, Kind, Result};

/// Which of the two processes this is.
#[derive(Debug)]
pub enum ForkSide {
    /// The process that was typed; the daemon is ready, so it can end.
    Starter,
    /// The daemon.
    Daemon(Readiness),
}

/// Names the process that waits, so that a program which the daemon starts later, and which
/// inherits the variable, does not take itself for the daemon.
const STARTER_VARIABLE: &str = "WALMGR_STARTED_BY";

/// At the end of a line; everything else that comes through the pipe is meant for a person.
const READY_LINE: &str = "\u{1}walmgr is ready";

/// Starts this very command line again as a daemon and waits until it is ready.
///
/// The first call answers, in the new process, with [`ForkSide::Daemon`]; there stdout and stderr lead
/// to the waiting process until [`Readiness::ready`] is called. To be called before threads,
/// pidfile and logfile, so that only the daemon has them. If the daemon fails before it is ready,
/// the error is what it printed, with the kind that its exit code stands for.
pub fn into_background() -> Result<ForkSide> {
    if started_by_parent(std::env::var_os(STARTER_VARIABLE).as_deref()) {
        // Fails only for a leader of a process group, which already has what this is for.
        let _ = rustix::process::setsid();
        return Ok(ForkSide::Daemon(Readiness { background: true }));
    }
    let failed =
        |error: std::io::Error| CommandError::retry("start in the background").because(error);
    let mut arguments = std::env::args_os();
    let typed_name = arguments.next().unwrap_or_default();
    let (words, pipe) = std::io::pipe().map_err(failed)?;
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command
        .arg0(typed_name)
        .args(arguments)
        .env(STARTER_VARIABLE, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::from(pipe.try_clone().map_err(failed)?))
        .stderr(Stdio::from(pipe));
    let child = command.spawn().map_err(failed)?;
    // It holds the writing ends; the pipe would never end.
    drop(command);
    wait_until_ready(child, words)
}

fn started_by_parent(variable: Option<&OsStr>) -> bool {
    let Some(parent) = rustix::process::getppid() else {
        return false;
    };
    variable.is_some_and(|value| *value == *parent.as_raw_nonzero().to_string())
}

fn wait_until_ready(mut child: Child, words: PipeReader) -> Result<ForkSide> {
    let mut last: Option<String> = None;
    for line in BufReader::new(words).split(b'\n') {
        let Ok(line) = line else { break };
        let line = String::from_utf8_lossy(&line).into_owned();
        if let Some(unfinished) = line.strip_suffix(READY_LINE) {
            forward(last.as_deref());
            forward(Some(unfinished).filter(|text| !text.is_empty()));
            return Ok(ForkSide::Starter);
        }
        forward(last.as_deref());
        last = Some(line);
    }
    let status = child
        .wait()
        .map_err(|error| CommandError::retry("wait for the daemon").because(error))?;
    Err(failure(status, last.as_deref()))
}

fn forward(line: Option<&str>) {
    if let Some(line) = line {
        let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
    }
}

/// The daemon's last line is its reason; it arrives with the program's name in front.
fn failure(status: ExitStatus, last: Option<&str>) -> CommandError {
    let kind = match status.code() {
        Some(2) => Kind::Config,
        _ => Kind::Retry,
    };
    let reason = match (last, status.signal()) {
        (Some(line), None) => message_of(line),
        (Some(line), Some(signal)) => {
            format!("the daemon was ended by signal {signal} before it was ready, after: {line}")
        }
        (None, Some(signal)) => {
            format!("the daemon was ended by signal {signal} before it was ready")
        }
        (None, None) => "the daemon ended before it was ready, without a message".to_owned(),
    };
    CommandError::new(kind, reason)
}

/// The message in a line of the daemon's log, whichever form that has.
fn message_of(line: &str) -> String {
    let json: Option<serde_json::Value> = serde_json::from_str(line).ok();
    match json.as_ref().and_then(|json| json.get("message")?.as_str()) {
        Some(message) => message.to_owned(),
        None => line.strip_prefix("walmgr: ").unwrap_or(line).to_owned(),
    }
}

/// The right to say, once, that the daemon serves.
#[derive(Debug)]
#[must_use = "report that the daemon is ready"]
pub struct Readiness {
    background: bool,
}

impl Readiness {
    /// For a daemon that stays in the foreground.
    pub const fn in_foreground() -> Self {
        Readiness { background: false }
    }

    /// Tells whoever waits: the process that was typed, and the service manager.
    ///
    /// Wants to see the [`Notices`], because a SIGHUP before they are listened for would kill the
    /// daemon that has just been called ready.
    pub fn ready(self, _listening: &Notices) -> Result<()> {
        super::tell_ready();
        if self.background {
            // Whoever waited may have been interrupted; the daemon runs all the same.
            let _ = std::io::stdout().write_all(format!("{READY_LINE}\n").as_bytes());
            let _ = std::io::stdout().flush();
            leave_the_terminal().map_err(|error| {
                CommandError::retry("close stdout and stderr").because(std::io::Error::from(error))
            })?;
        }
        Ok(())
    }
}

/// Not closed but led to `/dev/null`: a file opened later must not get number 1 or 2.
fn leave_the_terminal() -> rustix::io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of(script: &str) -> ExitStatus {
        Command::new("sh").args(["-c", script]).status().unwrap()
    }

    #[test]
    fn the_reason_and_the_kind_of_a_failed_start_come_from_the_daemon() {
        let error = failure(status_of("exit 2"), Some("walmgr: pidfile x is locked"));
        assert_eq!(error.kind(), Kind::Config);
        assert_eq!(error.to_string(), "pidfile x is locked");
        let json = r#"{"level":"ERROR","message":"pidfile \"x\" is locked"}"#;
        let error = failure(status_of("exit 2"), Some(json));
        assert_eq!(error.to_string(), "pidfile \"x\" is locked");
        assert_eq!(failure(status_of("exit 1"), None).kind(), Kind::Retry);
        let killed = failure(status_of("kill -9 $$"), None);
        assert!(killed.to_string().contains("signal 9"), "{killed}");
    }

    #[test]
    fn a_program_that_inherited_the_variable_is_not_the_daemon() {
        assert!(!started_by_parent(None));
        assert!(!started_by_parent(Some(OsStr::new("1 "))));
        assert!(!started_by_parent(Some(OsStr::new(
            &std::process::id().to_string()
        ))));
    }
}
