//! The server of a drill: started as our child on the restored set, watched until it opens, ended at once.
//! Never runs in a process group of ours, so a Ctrl-C reaches it by us alone. Invariant: it ends with the drill; where the
//! drill is killed, the next one ends it.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;

use super::goal::DrillGoal;
use super::place::ScratchPlace;
use super::programs::DrillPrograms;
use super::settings::{HBA, IDENT};
use crate::abnormal::Interrupt;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::output::{Waiting, escaped};
use crate::patience::process;
use crate::pg::layout;
use crate::standby::replay::TICK;

/// How long replay may show no sign of life: a checkpoint at its end writes what the memory holds, and that is little.
const SILENCE_MAX: Duration = Duration::from_secs(3600);

/// How long an immediate shutdown may take before the server is killed.
const END_PATIENCE: Duration = Duration::from_secs(20);

const LOG_NAME: &str = "log";

/// What is read of the log: PostgreSQL's reason stands near its end.
const LOG_BYTES_MAX: u64 = 64 << 10;

/// What PostgreSQL puts before its own lines (`log_line_prefix`).
const OWN_LINE: &str = "postgres ";

/// The server.
pub(super) struct ScratchServer {
    child: Child,
    log: PathBuf,
}

impl ScratchServer {
    /// Starts it.
    pub(super) fn start(
        programs: &DrillPrograms,
        place: &ScratchPlace,
        settings: &[(String, String)],
    ) -> Result<ScratchServer> {
        for (name, text) in [HBA, IDENT] {
            let path = place.path().join(name);
            files::replace(&path, text.as_bytes(), 0o600).at(Kind::Retry, "write", &path)?;
        }
        let log = place.path().join(LOG_NAME);
        let output = File::create(&log).at(Kind::Retry, "create", &log)?;
        let errors = output.try_clone().at(Kind::Retry, "open", &log)?;
        let (server, data) = (programs.path("postgres"), place.data());
        let mut command = without_libpq(Command::new(&server));
        command.arg("-D").arg(&data);
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command
            .current_dir(&data)
            .process_group(0)
            .env("LC_MESSAGES", "C")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let child = command.spawn().at(Kind::Config, "start", &server)?;
        tracing::info!("started {} on {}", server.display(), data.display());
        Ok(ScratchServer { child, log })
    }

    /// Waits until it has replayed everything and is open.
    pub(super) fn wait_until_open(
        &mut self,
        place: &ScratchPlace,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let (mut waiting, mut sign, mut signed) = (Waiting::begin(), None, Instant::now());
        loop {
            interrupt.check()?;
            let ended = self.child.try_wait();
            if let Some(status) = ended.at(Kind::Retry, "wait for the server in", place.path())? {
                interrupt.check()?;
                return Err(self.failure(&status.to_string()));
            }
            if is_open(place) {
                return Ok(());
            }
            let asked = DrillGoal::asked(place.path());
            let control = crate::pg::control::read(&place.data());
            let stands = control.map(|control| (control.min_recovery_point, control.modified_s));
            let now = Some((asked.clone(), stands.ok()));
            if now != sign {
                (sign, signed) = (now, Instant::now());
            }
            if signed.elapsed() > SILENCE_MAX {
                return Err(CommandError::retry(format!(
                    "the server has shown no sign of life for {} s",
                    SILENCE_MAX.as_secs()
                ))
                .because(self.failure("and was ended")));
            }
            if waiting.is_due() {
                let asked = asked.as_deref().unwrap_or("nothing yet");
                tracing::info!("replaying: the server last asked for {asked}");
            }
            std::thread::sleep(TICK);
        }
    }

    fn failure(&self, how: &str) -> CommandError {
        let text = files::read_at_most(&self.log, LOG_BYTES_MAX).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        for line in text.lines() {
            tracing::debug!("{}", line.escape_debug());
        }
        let why = reason(&text).unwrap_or_else(|| format!("it ended ({how}) without a word"));
        CommandError::retry(format!("PostgreSQL did not open the set: {why}"))
    }

    /// Ends it at once: nobody needs what it has not written.
    pub(super) fn end(&mut self) {
        if let Ok(None) = self.child.try_wait()
            && let Ok(pid) = i32::try_from(self.child.id())
            && let Some(pid) = Pid::from_raw(pid)
        {
            let _ = kill_process(pid, Signal::QUIT);
        }
        if !matches!(
            process::exited_within(&mut self.child, END_PATIENCE),
            Ok(Some(_))
        ) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Drop for ScratchServer {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a program is started with that must not go where the environment says.
pub(super) fn without_libpq(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PG") {
            command.env_remove(name);
        }
    }
    command
}

/// Whether clients are let in: the eighth line of the pid file. While it replays it is `standby`.
fn is_open(place: &ScratchPlace) -> bool {
    let path = place.data().join(layout::POSTMASTER_PID);
    let text = files::read_at_most(&path, SMALL_FILE_BYTES_MAX).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines()
        .nth(7)
        .is_some_and(|line| line.trim() == "ready")
}

/// Why the server ended: its first fatal line, with what `xrestore` said right before that, and its details.
fn reason(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().map(str::trim_end).collect();
    let is_fatal = |line: &&str| {
        let own = line.strip_prefix(OWN_LINE);
        own.is_some_and(|own| own.starts_with("FATAL:") || own.starts_with("PANIC:"))
    };
    let at = lines.iter().position(is_fatal)?;
    let before = lines[..at]
        .last()
        .filter(|line| !line.starts_with(OWN_LINE));
    let words = |line: &str| {
        let line = line.strip_prefix(OWN_LINE).unwrap_or(line);
        line.trim().to_owned()
    };
    let mut said: Vec<String> = before.into_iter().map(|line| words(line)).collect();
    said.push(words(lines[at]));
    let details = lines[at + 1..].iter().take_while(|line| {
        let own = line.strip_prefix(OWN_LINE);
        own.is_some_and(|own| own.starts_with("DETAIL:") || own.starts_with("HINT:"))
    });
    said.extend(details.map(|line| words(line)));
    Some(escaped(&said.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_first_fatal_line_with_what_belongs_to_it() {
        let log = "postgres LOG:  starting\nwalmgr: \"a\" is damaged\n\
            postgres FATAL:  could not restore file \"a\" from archive: child process exited with exit code 254\n\
            postgres LOG:  startup process exited\npostgres FATAL:  later\n";
        assert_eq!(
            reason(log).unwrap(),
            "walmgr: \"a\" is damaged; FATAL:  could not restore file \"a\" from archive: child process exited \
             with exit code 254"
        );
        let log = "postgres LOG:  x\npostgres FATAL:  no\npostgres HINT:  do\npostgres LOG:  y\n";
        assert_eq!(reason(log).unwrap(), "FATAL:  no; HINT:  do");
        assert_eq!(reason("postgres LOG:  fine\n"), None);
        assert_eq!(
            reason("postgres PANIC:  \u{1b}[2J\n").unwrap(),
            "PANIC:  \\u{1b}[2J"
        );
    }
}
