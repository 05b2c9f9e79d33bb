//! Runs `pg_basebackup`, shows how far it is, and says in one sentence why it failed.
//! Never has a password on a command line. Invariant: as long as any process of it lives, it holds the lock that it
//! was given, so nobody takes what it writes for a leftover; and none of them outlives this process, or the first of them.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{CommandError, Result};
use crate::output::Waiting;

/// Lines of it that are kept for its last words.
const LINES_MAX: usize = 50;

/// Longest line that is looked at; a path is at most 4 KiB, and a sentence has two.
const LINE_BYTES_MAX: usize = 16 << 10;

/// How often it is looked at where it says nothing.
const TICK: Duration = Duration::from_millis(200);

/// `pg_basebackup` leaves the process that receives WAL behind where it is killed, or has nobody left to write to:
/// that one would fill the disk for ever. Standard input ends when walmgr does, however that ends; standard output is the
/// lock.
const GUARD: &str = r#"
exec 3<&0
"$@" </dev/null 3<&- &
backup=$!
{ read -r _ <&3; kill -KILL 0; } &
wait $backup 2>/dev/null
status=$?
trap '' TERM
kill -TERM 0
wait 2>/dev/null
exit $status
"#;

/// A base backup to be taken.
pub(super) struct BaseBackup<'a> {
    /// `pg_basebackup`.
    pub program: &'a Path,
    /// The master, without its password.
    pub conninfo: &'a str,
    /// The password that stood there.
    pub password: Option<&'a str>,
    /// Where it goes: nothing is there yet.
    pub target: &'a Path,
    /// Where each tablespace of the master goes.
    pub mapping: Vec<(PathBuf, PathBuf)>,
    /// Whether the server has a temporary slot to spare, which keeps the WAL of the backup.
    pub has_slots: bool,
    /// Kept by every process of it.
    pub lock: &'a File,
    /// Is asked once, with the bytes that are still to come.
    pub has_room: &'a dyn Fn(u64) -> Result<()>,
}

impl BaseBackup<'_> {
    /// Takes it; what an unfinished one leaves is for whoever called this.
    pub(super) fn run(&self, quiet: bool) -> Result<()> {
        let program = self.program.display();
        let failed =
            |error: std::io::Error| CommandError::retry(format!("run {program}")).because(error);
        let lock = self.lock.try_clone().map_err(failed)?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", GUARD, "pg_basebackup"])
            .arg(self.program)
            .args(self.arguments())
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::from(lock))
            .stderr(Stdio::piped())
            .process_group(0);
        if let Some(password) = self.password {
            command.env("PGPASSWORD", password);
        }
        let mut child = command.spawn().map_err(failed)?;
        let group = Group::of(&child);
        let lines = lines_of(&mut child).map_err(failed)?;
        let mut said = Vec::new();
        let followed = self.follow(&lines, &mut said, quiet);
        if followed.is_err() {
            group.kill();
        }
        let ended = child.wait().map_err(failed)?;
        followed?;
        match ended.success() {
            true => Ok(()),
            false => Err(failure(self.program, &said)),
        }
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["-D".into(), self.target.into()];
        arguments.extend(["-d".into(), self.conninfo.into()]);
        for word in [
            "--format=plain",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--label=walmgr createslave",
            "--progress",
            "--no-password",
        ] {
            arguments.push(word.into());
        }
        if !self.has_slots {
            arguments.push("--no-slot".into());
        }
        for (old, new) in &self.mapping {
            let mut word = OsString::from("--tablespace-mapping=");
            word.push(escaped(old));
            word.push("=");
            word.push(escaped(new));
            arguments.push(word);
        }
        arguments
    }

    /// Reads what it says until it says no more.
    fn follow(&self, lines: &Receiver<String>, said: &mut Vec<String>, quiet: bool) -> Result<()> {
        let bar = bar(quiet);
        let (mut waiting, mut has_asked) = (Waiting::begin(), false);
        let mut last: Option<(u64, u64)> = None;
        loop {
            match lines.recv_timeout(TICK) {
                Ok(line) => match progress(&line) {
                    Some((done_bytes, total_bytes)) => {
                        if !has_asked {
                            has_asked = true;
                            (self.has_room)(total_bytes.saturating_sub(done_bytes))?;
                        }
                        last = Some((done_bytes, total_bytes));
                        if let Some(bar) = &bar {
                            bar.set_length(total_bytes);
                            bar.set_position(done_bytes);
                        }
                    }
                    None if said.len() < LINES_MAX => said.push(line),
                    None => {}
                },
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if bar.is_none() && waiting.is_due() {
                match last {
                    Some((done, total)) => {
                        tracing::info!("received {} of {}", HumanBytes(done), HumanBytes(total))
                    }
                    None => tracing::info!("waiting for the master's checkpoint"),
                }
            }
        }
        if let Some(bar) = &bar {
            bar.finish_and_clear();
        }
        Ok(())
    }
}

/// The guard, the program, and the process that receives WAL beside it.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Group {
        Group(i32::try_from(child.id()).ok().and_then(Pid::from_raw))
    }

    fn kill(&self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

fn bar(quiet: bool) -> Option<ProgressBar> {
    (!quiet && std::io::stderr().is_terminal()).then(|| {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let template =
            "{bar:30} {percent:>3}% {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        let style = ProgressStyle::with_template(template);
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    })
}

/// Its lines, until the last process that may say something has ended.
fn lines_of(child: &mut Child) -> std::io::Result<Receiver<String>> {
    let stderr = child.stderr.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
    let (sender, lines) = sync_channel(LINES_MAX);
    let reading = std::thread::Builder::new().name("pg_basebackup".to_owned());
    reading.spawn(move || {
        let mut reader = BufReader::with_capacity(LINE_BYTES_MAX, stderr);
        let mut line = Vec::new();
        loop {
            let taken = match reader.fill_buf() {
                Ok([]) | Err(_) => break,
                Ok(bytes) => {
                    let end = bytes.iter().position(|byte| b"\r\n".contains(byte));
                    let text = &bytes[..end.unwrap_or(bytes.len())];
                    let room = LINE_BYTES_MAX.saturating_sub(line.len());
                    line.extend_from_slice(&text[..text.len().min(room)]);
                    match end {
                        Some(end) => {
                            let text = String::from_utf8_lossy(&line).trim().to_owned();
                            line.clear();
                            if !text.is_empty() && sender.send(text).is_err() {
                                break;
                            }
                            end + 1
                        }
                        None => bytes.len(),
                    }
                }
            };
            reader.consume(taken);
        }
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if !text.is_empty() {
            let _ = sender.send(text);
        }
    })?;
    Ok(lines)
}

/// Bytes done and in all of a line such as `3085/23191 kB (13%), 0/1 tablespace (…)`.
fn progress(line: &str) -> Option<(u64, u64)> {
    let (numbers, _) = line.trim_start().split_once(" kB (")?;
    let (done, total) = numbers.split_once('/')?;
    let bytes = |text: &str| text.trim().parse::<u64>().ok()?.checked_mul(1024);
    Some((bytes(done)?, bytes(total)?))
}

/// A path as pg_basebackup reads it in a mapping.
fn escaped(path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = path.as_os_str().as_bytes();
    let mut escaped = Vec::with_capacity(bytes.len());
    for byte in bytes {
        if *byte == b'=' {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    OsString::from_vec(escaped)
}

/// The first thing that went wrong: what follows it is its consequence.
fn failure(program: &Path, said: &[String]) -> CommandError {
    let is_error = |line: &&String| line.contains("error:") || line.contains("fatal:");
    let line = said.iter().find(is_error).or(said.last());
    let text = line.map_or("it had no output", |line| without_name(line));
    let error = CommandError::retry(format!("{} failed: {text}", program.display()));
    match what_to_do(text) {
        Some(hint) => error.hint(hint),
        None => error.hint("nothing was changed; the master's log may say more"),
    }
}

fn without_name(line: &str) -> &str {
    match line
        .split_once("error: ")
        .or_else(|| line.split_once("fatal: "))
    {
        Some((before, text)) if before.starts_with("pg_basebackup") => text,
        _ => line,
    }
}

/// What a person can do about a refusal of the master, or of this host's disk.
pub(super) fn what_to_do(text: &str) -> Option<&'static str> {
    const HINTS: [(&str, &str); 12] = [
        (
            "pg_hba.conf",
            "add a line to the master's pg_hba.conf and reload it: host replication USER ADDRESS scram-sha-256",
        ),
        (
            "must be superuser or replication role",
            "type on the master: ALTER ROLE name REPLICATION",
        ),
        (
            "permission denied to start WAL sender",
            "type on the master: ALTER ROLE name REPLICATION",
        ),
        (
            "password",
            "write HOST:PORT:replication:USER:PASSWORD into ~/.pgpass and type `chmod 600 ~/.pgpass`",
        ),
        (
            "max_wal_senders",
            "raise max_wal_senders on the master by two and restart it, or end a standby's connection",
        ),
        (
            "remaining connection slots",
            "raise max_connections on the master, or end connections",
        ),
        (
            "replication slots are in use",
            "raise max_replication_slots on the master, or drop a slot that nobody uses",
        ),
        (
            "max_replication_slots",
            "raise max_replication_slots on the master, or drop a slot that nobody uses",
        ),
        (
            "WAL level not sufficient",
            "set wal_level = replica on the master, as `setup` does, and restart it",
        ),
        (
            "No space left on device",
            "free some space; nothing was changed",
        ),
        (
            "is not empty",
            "name another directory: --tablespace-mapping OLD=NEW",
        ),
        (
            "checksum",
            "a page of the master is damaged: its log names the file; restore a backup set instead",
        ),
    ];
    let found = HINTS.iter().find(|(part, _)| text.contains(part));
    found.map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_from_sentences() {
        assert_eq!(
            progress("    0/23191 kB (0%), 0/1 tablespace"),
            Some((0, 23191 << 10))
        );
        let long = "3085/23191 kB (13%), 0/1 tablespace (/srv/data/base/1/2619             )";
        assert_eq!(progress(long), Some((3085 << 10, 23191 << 10)));
        for line in [
            "",
            "kB (",
            "a/b kB (",
            "1/99999999999999999999 kB (",
            "pg_basebackup: error: 1/2 kB",
        ] {
            assert_eq!(progress(line), None, "{line}");
        }
    }

    #[test]
    fn the_first_error_is_the_reason_and_comes_with_what_to_do() {
        let said = [
            "pg_basebackup: error: could not write to file \"/a\": No space left on device",
            "pg_basebackup: error: child process exited with exit code 1",
            "pg_basebackup: removing contents of data directory \"/a\"",
        ];
        let said = said.map(str::to_owned);
        let error = failure(Path::new("/bin/pg_basebackup"), &said).to_string();
        let expected = "/bin/pg_basebackup failed: could not write to file \"/a\": No space left on device; free some";
        assert!(error.starts_with(expected), "{error}");
        assert!(
            failure(Path::new("x"), &[])
                .to_string()
                .contains("it had no output")
        );
    }

    #[test]
    fn an_equals_sign_of_a_path_is_escaped() {
        assert_eq!(escaped(Path::new("/a=b/c")), OsString::from(r"/a\=b/c"));
    }
}
