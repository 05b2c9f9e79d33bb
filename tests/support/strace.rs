//! Runs a command under strace, so that chosen system calls fail, wait, or kill it.
//! Never attaches to a process it did not start. Invariant: where tracing is impossible the
//! reason is an `Err`, and the test that wanted it says SKIP.

use std::path::PathBuf;
use std::process::Command;

use super::place::{TempDir, server_user};
use super::{have, run};

/// What strace shall do to a command.
pub struct Strace {
    injections: Vec<String>,
    traced: Vec<String>,
    unprivileged: bool,
    folder: TempDir,
}

impl Strace {
    /// A tracer that changes nothing yet, or why this machine cannot trace.
    pub fn available() -> Result<Strace, String> {
        if !have("strace") {
            return Err("strace is not installed".to_owned());
        }
        let mut probe = Command::new("strace");
        run(probe.args(["-f", "-o", "/dev/null", "true"]))
            .map_err(|error| format!("strace cannot trace here: {error}"))?;
        Ok(Strace {
            injections: Vec::new(),
            traced: Vec::new(),
            unprivileged: false,
            folder: TempDir::new(),
        })
    }

    /// One `-e inject=`: `fsync:error=EIO:when=1`, `renameat2:signal=KILL:when=2`,
    /// `fsync:delay_enter=30s`. Counts are per thread.
    pub fn inject(mut self, what: &str) -> Self {
        let call = what.split(':').next().unwrap_or(what);
        self.traced.push(call.to_owned());
        self.injections.push(what.to_owned());
        self
    }

    /// System calls to log beside those injected into, separated by commas.
    pub fn trace(mut self, calls: &str) -> Self {
        self.traced.push(calls.to_owned());
        self
    }

    /// Runs the command as the server's user when the tests run as root: user and group set on
    /// a [`Command`] cannot be read back from it, and strace itself may need to stay root.
    pub fn unprivileged(mut self) -> Self {
        self.unprivileged = true;
        self
    }

    /// The command that runs `command` with its arguments, environment and working directory
    /// under strace. Its streams have to be set on the result.
    pub fn wrap(&self, command: &Command) -> Command {
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-qq", "-s", "256", "-o"])
            .arg(self.log_path());
        if !self.traced.is_empty() {
            strace
                .arg("-e")
                .arg(format!("trace={}", self.traced.join(",")));
        }
        for injection in &self.injections {
            strace.arg("-e").arg(format!("inject={injection}"));
        }
        if self.unprivileged && matches!(server_user(), Ok(Some(_))) {
            strace.args(["-u", "postgres"]);
        }
        // The environment of the command, whatever it was made of, and not ours.
        strace
            .arg("--")
            .arg("env")
            .args(command.get_envs().filter_map(|(name, value)| {
                let mut pair = name.to_owned();
                pair.push("=");
                pair.push(value?);
                Some(pair)
            }));
        strace.arg(command.get_program()).args(command.get_args());
        if let Some(folder) = command.get_current_dir() {
            strace.current_dir(folder);
        }
        strace
    }

    /// The system calls in the order they were made, `PID CALL(ARGUMENTS) = RESULT`.
    pub fn log(&self) -> Vec<String> {
        let text = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&text)
            .lines()
            .map(str::to_owned)
            .collect()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("strace.log")
    }
}

#[test]
fn an_injected_error_reaches_the_command_and_the_log() {
    let strace = skip_unless!(Strace::available()).inject("fsync:error=EIO:when=1");
    let folder = TempDir::new();
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "of=out", "count=1", "conv=fsync"])
        .current_dir(folder.path());
    let error = run(&mut strace.wrap(&dd)).unwrap_err();
    assert!(error.contains("Input/output error"), "{error}");
    assert!(
        strace
            .log()
            .iter()
            .any(|line| line.contains("EIO") && line.contains("INJECTED"))
    );
    run(&mut dd).unwrap();
}

#[test]
fn an_injected_signal_kills_at_the_chosen_call() {
    let strace = skip_unless!(Strace::available())
        .unprivileged()
        .inject("/rename.*:signal=KILL:when=1");
    let folder = TempDir::new();
    let from = folder.write("from", "x");
    let mut mv = Command::new("mv");
    mv.args([&from, &folder.join("to")]);
    assert!(!strace.wrap(&mv).status().unwrap().success());
    assert!(
        strace
            .log()
            .iter()
            .any(|line| line.contains("killed by SIGKILL"))
    );
}
