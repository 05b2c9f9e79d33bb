//! Runs a command under strace, or attaches to it, so that chosen system calls fail, wait, or kill.
//! Never attaches to a process that the test did not start. Invariant: where tracing is impossible
//! the reason is an `Err`, and the test that wanted it says SKIP.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::cluster::is_alive;
use super::place::{TempDir, server_user};
use super::{have, run, wait_for};

/// What strace shall do to a command.
pub struct Strace {
    injections: Vec<String>,
    traced: Vec<String>,
    path: Option<PathBuf>,
    unprivileged: bool,
    named: bool,
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
            path: None,
            unprivileged: false,
            named: false,
            folder: TempDir::new(),
        })
    }

    /// The same, for a machine on which a process that runs can be traced too.
    pub fn attachable() -> Result<Strace, String> {
        let strace = Strace::available()?;
        let mut sleep = Command::new("sleep").arg("60").spawn().unwrap();
        let attached = strace.try_attach(sleep.id());
        sleep.kill().unwrap();
        sleep.wait().unwrap();
        attached.map(drop)?;
        Strace::available()
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

    /// Only calls on this file or directory count, whether by its path or by a descriptor.
    pub fn only_on(mut self, path: &Path) -> Self {
        self.path = Some(path.to_path_buf());
        self
    }

    /// Writes the path of each file descriptor beside it into the log.
    pub fn named(mut self) -> Self {
        self.named = true;
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
        let mut strace = self.tracer();
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

    /// Attaches to all threads of a process that the test started, until the result is dropped or
    /// the process ends. Counts of calls begin here.
    pub fn attach(&self, pid: u32) -> Attached {
        // A thread that ends just then makes strace give up on the whole process, and behind a start several do.
        wait_for("strace to attach to all threads", ATTACH_LIMIT, || {
            self.try_attach(pid).ok()
        })
    }

    fn try_attach(&self, pid: u32) -> Result<Attached, String> {
        let mut strace = self.tracer();
        strace.args(["-p", &pid.to_string()]).stdin(Stdio::null());
        let mut attached = Attached(strace.stderr(Stdio::null()).spawn().unwrap());
        wait_for("strace to attach", ATTACH_LIMIT, || {
            // An injection may kill it at a call of its own.
            if !is_alive(pid) {
                return Some(Ok(()));
            }
            if let Some(status) = attached.0.try_wait().unwrap() {
                return Some(Err(format!("strace cannot attach here: {status}")));
            }
            threads_of(pid)
                .iter()
                .all(|thread| is_traced(thread))
                .then_some(Ok(()))
        })?;
        Ok(attached)
    }

    fn tracer(&self) -> Command {
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-qq", "-s", "256", "-o"])
            .arg(self.log_path());
        if self.named {
            strace.arg("-y");
        }
        if let Some(path) = &self.path {
            strace.arg("-P").arg(path);
        }
        if !self.traced.is_empty() {
            strace
                .arg("-e")
                .arg(format!("trace={}", self.traced.join(",")));
        }
        for injection in &self.injections {
            strace.arg("-e").arg(format!("inject={injection}"));
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

const ATTACH_LIMIT: Duration = Duration::from_secs(20);

/// A tracer that runs beside the process; dropping it lets the process go on untraced.
pub struct Attached(Child);

/// A tracer writes the rest of its log and ends, unless the process died in the middle of a delay.
const DETACH_LIMIT: Duration = Duration::from_millis(500);

impl Attached {
    /// Ends the tracer at once, because the process is dead.
    pub fn kill(mut self) {
        let _ = self.0.kill();
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // It may have ended together with the process.
        let _ = Command::new("kill")
            .arg(self.0.id().to_string())
            .stderr(Stdio::null())
            .status();
        let begin = Instant::now();
        while begin.elapsed() < DETACH_LIMIT && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn threads_of(pid: u32) -> Vec<PathBuf> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    tasks
        .into_iter()
        .flatten()
        .filter_map(|task| Some(task.ok()?.path()))
        .collect()
}

fn is_traced(thread: &Path) -> bool {
    std::fs::read_to_string(thread.join("status"))
        .is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
}

/// Whether a thread of the process is held by its tracer, as one is whose call is delayed.
pub fn is_held(pid: u32) -> bool {
    threads_of(pid).iter().any(|thread| {
        std::fs::read_to_string(thread.join("stat")).is_ok_and(|stat| {
            let state = stat.rsplit(')').next().unwrap_or_default();
            state.trim_start().starts_with('t')
        })
    })
}

#[test]
fn a_tracer_attaches_to_a_process_that_runs_and_lets_it_go() {
    let strace = skip_unless!(Strace::attachable()).inject("openat:error=ENOSPC:when=1");
    let folder = TempDir::new();
    let script = "for name in one two; do read -r; true >$name; echo $?; done";
    let mut shell = Command::new("bash")
        .args(["-c", script])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
    let mut answer = || {
        let mut line = [0; 2];
        stdin.write_all(b"go\n").unwrap();
        stdout.read_exact(&mut line).unwrap();
        line
    };
    let attached = strace.attach(shell.id());
    assert_eq!(answer(), *b"1\n");
    drop(attached);
    assert_eq!(answer(), *b"0\n");
    assert!(shell.wait().unwrap().success());
    assert!(!folder.join("one").exists() && folder.join("two").exists());
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
