//! Commands of the settings that stop, start and restart a server: run to their end, with what they say.
//! Never ends a command and never waits for a server that keeps its output open. Invariant: what went
//! wrong is told in the words of what failed, which is the shell before it is PostgreSQL.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use uzers::os::unix::UserExt;

use crate::error::{CommandError, Result};
use crate::output::Waiting;
use crate::patience::process;

/// How often a command that runs is looked at.
const TICK: Duration = Duration::from_millis(25);

/// How long what an ended command said may be on its way. What a server it started says later is the
/// server's log.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Lines that are shown: what went wrong stands at the end.
const LINES_MAX: usize = 20;

/// Bytes of them that are kept; a command may say something for ever.
const KEPT_BYTES_MAX: usize = 16 << 10;

/// How many pieces of output wait to be looked at.
const PIECES_MAX: usize = 16;

/// Where a process without `PATH` (`env -i`, some service managers) finds programs.
const PATH_WITHOUT_ONE: &str = "/usr/local/bin:/usr/bin:/bin";

/// A shell that runs a command of the settings, with PostgreSQL's programs of `master_bin` or `slave_bin` first in its
/// `PATH`, and nothing to read.
pub(crate) fn shell_for(command: &str, programs: Option<&Path>) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(command).stdin(Stdio::null());
    if let Some(path) = programs.and_then(path_with) {
        shell.env("PATH", path);
    }
    shell
}

/// This program as the user with this number, for root, which would write files that only root can read.
pub(crate) fn as_user(uid: u32) -> Result<Command> {
    let Some(user) = uzers::get_user_by_uid(uid) else {
        return Err(CommandError::config(format!(
            "user {uid} is not known to this host"
        )));
    };
    let program = this_program()?;
    let group = user.primary_group_id();
    // Whoever is set by number has no other groups, such as the one that may read the server's key.
    let others = uzers::get_user_groups(user.name(), group).unwrap_or_default();
    let mut walmgr = if others.iter().all(|other| other.gid() == group) {
        let mut walmgr = Command::new(program);
        walmgr.gid(group).uid(uid);
        walmgr
    } else {
        let mut walmgr = Command::new("setpriv");
        walmgr
            .args(["--reuid", &uid.to_string(), "--regid", &group.to_string()])
            .args(["--init-groups", "--"])
            .arg(program);
        walmgr
    };
    walmgr
        .env("HOME", user.home_dir())
        .env("USER", user.name())
        .env("LOGNAME", user.name());
    Ok(walmgr)
}

/// A program that was replaced while it ran is still what was typed.
pub(crate) fn this_program() -> Result<PathBuf> {
    std::env::current_exe().map_err(|error| CommandError::retry("find this program").because(error))
}

/// This program beside this process, for what nobody waits for. It hears nobody and says nothing to anybody, gets no signal
/// that is meant for this one's group, and has nothing open that this one was given.
pub(crate) fn unawaited() -> Result<Command> {
    let mut program = Command::new(this_program()?);
    keep_descriptors();
    (program.stdin(Stdio::null()))
        .stdout(Stdio::null())
        // A server's own log would not end before whoever can write to it.
        .stderr(Stdio::null())
        .process_group(0);
    Ok(program)
}

/// Begins it, and does not look back.
pub(crate) fn begin(program: &mut Command) -> Result<()> {
    let begun = program.spawn().map(drop);
    begun.map_err(|error| CommandError::retry("start another process").because(error))
}

/// Keeps what whoever began this process left open from those that it begins: a lock of `flock` around an
/// `archive_command` would live as long as they do.
pub(crate) fn keep_descriptors() {
    let (first, last, flags) = (3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    #[allow(unsafe_code)] // No safe crate offers this call.
    // SAFETY: the call reads nothing of this process, and closes nothing before it becomes another program. Its only
    // error is a kernel without it (before 5.11), where all stays as it was.
    unsafe {
        libc::syscall(libc::SYS_close_range, first, last, flags);
    }
}

/// `None` for a directory with a colon in its name, which cannot stand there.
fn path_with(first: &Path) -> Option<OsString> {
    let others = std::env::var_os("PATH").unwrap_or_else(|| PATH_WITHOUT_ONE.into());
    let all = std::iter::once(first.to_path_buf()).chain(std::env::split_paths(&others));
    std::env::join_paths(all).ok()
}

/// Runs `archive_command` with the path of a set in `$BACKUPDIR`.
pub(crate) fn archive_set(
    command: &str,
    programs: Option<&Path>,
    set: &Path,
) -> Result<(), String> {
    tracing::info!("archive_command runs for {}", set.display());
    let output = shell_for(command, programs)
        .env("BACKUPDIR", set)
        .output()
        .map_err(|error| format!("start it: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.trim_end().lines().last().unwrap_or_default();
    Err(format!("{}: {last}", output.status))
}

/// A command of the settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SettingsCommand<'a> {
    /// The setting it stands in.
    pub setting: &'a str,
    /// What the shell runs.
    pub command: &'a str,
    /// How long it may take.
    pub limit: Duration,
    /// Where PostgreSQL's programs are, if the settings say so.
    pub programs: Option<&'a Path>,
}

impl fmt::Display for SettingsCommand<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} `{}`", self.setting, self.command)
    }
}

impl SettingsCommand<'_> {
    /// Runs it to its end and logs its last lines, whatever becomes of it. One that takes too long is
    /// left alone: a stop or a start that is cut in the middle helps nobody.
    pub(crate) fn run(&self) -> Result<()> {
        let failed = |error: io::Error| CommandError::retry(format!("run {self}")).because(error);
        let (reader, writer) = io::pipe().map_err(failed)?;
        let mut shell = shell_for(self.command, self.programs);
        shell.stdout(writer.try_clone().map_err(failed)?);
        let child = shell.stderr(writer).spawn().map_err(failed)?;
        // It holds the writing ends; what is read would never end.
        drop(shell);
        let (sender, pieces) = sync_channel(PIECES_MAX);
        let reading = std::thread::Builder::new().name("output".to_owned());
        reading
            .spawn(move || forward(reader, &sender))
            .map_err(failed)?;
        let mut said = Said::default();
        let ended = self.wait(child, &pieces, &mut said);
        said.show(self.setting, ended.is_err());
        ended
    }

    fn wait(&self, mut child: Child, pieces: &Receiver<Vec<u8>>, said: &mut Said) -> Result<()> {
        let (begun, mut waiting) = (Instant::now(), Waiting::begin());
        let mut is_silent = false;
        loop {
            let ended = child.try_wait();
            let ended = ended
                .map_err(|error| CommandError::retry(format!("wait for {self}")).because(error))?;
            if let Some(status) = ended {
                if !said.last_words(pieces, is_silent) && status.success() {
                    tracing::warn!(
                        "a process that {} started keeps its output open, and its further output \
                        is lost: if it is the server, let it log to a file (`pg_ctl -l FILE`, or \
                        logging_collector = on)",
                        self.setting
                    );
                }
                return match status.success() {
                    true => Ok(()),
                    false => Err(self.failure(status, said)),
                };
            }
            if begun.elapsed() > self.limit {
                let (seconds, process) = (self.limit.as_secs_f32(), child.id());
                return Err(CommandError::retry(format!(
                    "{self} has not ended within {seconds} s; it still runs as process {process}"
                )));
            }
            if waiting.is_due() {
                let (setting, seconds) = (self.setting, begun.elapsed().as_secs());
                let limit = self.limit.as_secs();
                tracing::info!("{setting} has run for {seconds} s of at most {limit} s");
            }
            match pieces.recv_timeout(TICK) {
                Ok(piece) => said.take(&piece),
                Err(RecvTimeoutError::Timeout) => {}
                // It closed its output and goes on.
                Err(RecvTimeoutError::Disconnected) => {
                    is_silent = true;
                    process::exited_within(&mut child, TICK).map_err(|error| {
                        CommandError::retry(format!("wait for {self}")).because(error)
                    })?;
                }
            }
        }
    }

    fn failure(&self, status: ExitStatus, said: &Said) -> CommandError {
        let how = in_words(status);
        let last = match said.last_line() {
            Some(line) => format!(": {line}"),
            None => "; it had no output".to_owned(),
        };
        CommandError::retry(format!("{self} {how}{last}"))
    }
}

/// Warns where the server that `setting` has started writes its log to nowhere.
pub(crate) fn check_log_of(setting: &str, pid: i32) {
    // Once the logging collector runs, or with `pg_ctl -l`, it leads elsewhere.
    let leads_to = std::fs::read_link(format!("/proc/{pid}/fd/2"));
    if leads_to.is_ok_and(|path| path == Path::new("/dev/null")) {
        tracing::warn!(
            "the standard error of the server that {setting} started goes to /dev/null: unless \
            log_destination is set, PostgreSQL's log is lost, and walmgr's messages in it \
            (`pg_ctl -l FILE`, or logging_collector = on)"
        );
    }
}

/// What an exit status says, and of whom.
fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(127), _) => "was not found by the shell (exit status 127), so nothing ran".to_owned(),
        (Some(126), _) => {
            "may not be executed (exit status 126 of the shell), so nothing ran".to_owned()
        }
        (Some(code), _) => format!("failed with exit status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => format!("failed with {status}"),
    }
}

/// Reads until nobody can write any more, or nobody listens.
fn forward(mut reader: io::PipeReader, sender: &SyncSender<Vec<u8>>) {
    let mut buffer = [0; 4 << 10];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(read_bytes) => {
                if sender.send(buffer[..read_bytes].to_vec()).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// The end of what a command said.
#[derive(Debug, Default)]
struct Said {
    kept: VecDeque<u8>,
    /// Whether there was more before it.
    is_cut: bool,
}

impl Said {
    fn take(&mut self, piece: &[u8]) {
        self.kept.extend(piece);
        let over = self.kept.len().saturating_sub(KEPT_BYTES_MAX);
        self.is_cut |= over > 0;
        self.kept.drain(..over);
    }

    /// What is on its way when the command has ended; whether that was all there ever will be.
    fn last_words(&mut self, pieces: &Receiver<Vec<u8>>, is_silent: bool) -> bool {
        let until = Instant::now() + LAST_WORDS;
        if is_silent {
            return true;
        }
        loop {
            match pieces.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(piece) if Instant::now() < until => self.take(&piece),
                Ok(_) | Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.kept.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines = text.lines().map(str::trim_end);
        lines
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect()
    }

    fn last_line(&self) -> Option<String> {
        self.lines().pop()
    }

    /// Logs the last lines: a failed command's always, another one's for whoever looks into the log.
    fn show(&self, setting: &str, has_failed: bool) {
        let lines = self.lines();
        let left_out = lines.len().saturating_sub(LINES_MAX);
        if left_out > 0 || self.is_cut {
            tracing::info!("{setting} had more output; its last lines are:");
        }
        for line in &lines[left_out..] {
            match has_failed {
                true => tracing::warn!("{setting}: {line}"),
                false => tracing::info!("{setting}: {line}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: &str, limit: Duration) -> Result<()> {
        SettingsCommand {
            setting: "slave_start_cmd",
            command,
            limit,
            programs: None,
        }
        .run()
    }

    #[test]
    fn the_programs_of_the_settings_come_first_in_the_path() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("pg_ctl");
        std::fs::write(&program, "#!/bin/sh\nexit 7\n").unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let status = |programs| shell_for("pg_ctl; exit $?", programs).status().unwrap();
        assert_eq!(status(Some(folder.path())).code(), Some(7));
        assert_ne!(status(None).code(), Some(7));
        // What is not of PostgreSQL is found as before.
        let shell = shell_for("ls / >&2", Some(folder.path())).status();
        assert!(shell.unwrap().success());
        assert_eq!(path_with(Path::new("/a:b")), None);
    }

    #[test]
    fn fault_134_what_failed_is_named_and_not_something_else() {
        let long = Duration::from_secs(60);
        run("echo fine; echo fine >&2", long).unwrap();
        for (command, part) in [
            ("no-such-program -x", "was not found by the shell"),
            ("/etc/passwd", "may not be executed"),
            (
                "echo one; echo two >&2; exit 3",
                "failed with exit status 3: two",
            ),
            ("exit 1", "failed with exit status 1; it had no output"),
            ("kill -9 $$", "was ended by signal 9"),
            (
                "seq 100000; echo over >&2; exit 1",
                "failed with exit status 1: over",
            ),
        ] {
            let error = run(command, long).unwrap_err().to_string();
            assert!(error.contains(part), "{command}: {error}");
            assert!(
                error.starts_with(&format!("slave_start_cmd `{command}` ")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_command_that_does_not_end_is_left_running_and_named() {
        let error = run("exec sleep 600", Duration::from_millis(50)).unwrap_err();
        let error = error.to_string();
        let pid = error.rsplit(' ').next().unwrap().parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        assert!(error.contains("has not ended within 0.05 s"), "{error}");
    }

    #[test]
    fn nobody_waits_for_a_server_that_keeps_the_output_open() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("pid");
        let command = format!("sleep 600 & echo $! >{}", pid_file.display());
        run(&command, Duration::from_secs(60)).unwrap();
        let pid = std::fs::read_to_string(pid_file).unwrap();
        let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        // It would be gone if anybody had waited for it.
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
}
