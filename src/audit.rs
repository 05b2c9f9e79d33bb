//! The audit log: who did what to an archive or to its rules, when, and how it ended; `audit_log` of the settings.
//! Never decides anything, and never fails or holds up what it tells of. Invariant: a line is one write to a file that
//! is open for append, so the lines of several processes never mix; one that was not written is counted and told of.
//!
//! `docs/reference/audit.md` is the format; a test compares its table with [`event`]. A line is a JSON object of ASCII
//! letters alone: text of a peer, a file or a person can neither end a line nor reach a terminal.
//!
//! # What a crash leaves
//!
//! A line is in the kernel when [`AuditLog::record`] has passed it on and the writer has written it, which a kill of the
//! process after that does not undo. It is not synced: a power cut may take the last seconds of it, and no acknowledged
//! byte depends on it. What cannot be undone is told of twice: a line with the outcome `begun` is synced before a set
//! or WAL is removed and before a command begins, so that nothing that was removed durably is without a line. A
//! `begun` without its end means that the process was killed or the power failed in between.
//!
//! A file that ends amid a line, by a full disk or a power cut, gets a new line first, so that only that line is broken.

pub(crate) mod event;
mod loss;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, Sender, TrySendError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::files;

pub(crate) use event::{AuditEvent, AuditOutcome};
pub(crate) use loss::AuditLoss;
use writer::{AuditWriter, WriterOrder};

/// How long somebody waits for a line that is to be on the disk before he goes on: a disk that hangs stops nobody.
const LINE_PATIENCE: Duration = Duration::from_secs(5);

/// The note of lost lines in an archive's folder.
const LOSSES_NAME: &str = ".audit-lost";

/// Most letters of one text in a line. A line has a few texts, and fits a page.
const TEXT_CHARS_MAX: usize = 600;

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Actor {
    /// Somebody on the network.
    Peer {
        /// As the list calls him that let him in.
        name: Option<String>,
        /// Fingerprint of the key that he proved.
        key: Option<String>,
        /// Where from.
        address: String,
    },
    /// Somebody who typed a command on this host.
    User,
    /// The receiver, by itself or asked by a signal.
    Receiver,
}

impl Actor {
    fn members(&self) -> Value {
        match self {
            Actor::Peer { name, key, address } => json!({
                "kind": "peer",
                "name": name.as_deref().map(short),
                "key": key,
                "address": address,
            }),
            Actor::User => {
                let uid = rustix::process::geteuid().as_raw();
                // Who logged in, whatever sudo has made of him since.
                let login = files::read("/proc/self/loginuid").unwrap_or_default();
                let login = String::from_utf8_lossy(&login).trim().parse::<u32>();
                let login = login.ok().filter(|uid| *uid != u32::MAX);
                json!({
                    "kind": "user",
                    "user": files::user_name(uid),
                    "uid": uid,
                    "login_uid": login,
                })
            }
            Actor::Receiver => json!({ "kind": "receiver" }),
        }
    }
}

/// Where the lines of one cluster go, or of a process.
pub(crate) struct AuditLog {
    /// What its lines call it.
    cluster: String,
    /// Where it is noted which lines are lost.
    losses: Option<PathBuf>,
    target: Mutex<AuditTarget>,
}

/// The file; its thread begins with the first line, which most clusters and commands never have.
struct AuditTarget {
    path: Option<PathBuf>,
    writer: Option<AuditWriter>,
}

impl AuditLog {
    /// Lines of this cluster, for the file; without one they are in the log, for those who want to see all of it.
    pub(crate) fn new(cluster: &str, path: Option<&Path>) -> AuditLog {
        AuditLog {
            cluster: cluster.to_owned(),
            losses: None,
            target: Mutex::new(AuditTarget {
                path: path.map(Path::to_path_buf),
                writer: None,
            }),
        }
    }

    /// Also notes in this file that lines were lost; the file may lie on another disk than the log.
    pub(crate) fn noting_losses_at(mut self, note: &Path) -> AuditLog {
        self.losses = Some(note.to_path_buf());
        self
    }

    /// Where it is noted what is lost of the log of the archive in this folder.
    pub(crate) fn losses_in(folder: &Path) -> PathBuf {
        folder.join(LOSSES_NAME)
    }

    /// Where it is noted what is lost of a host's own log: an archive is none of its.
    pub(crate) fn losses_beside(pidfile: &Path) -> PathBuf {
        pidfile.with_extension("audit-lost")
    }

    /// Lines that are lost by this note, and not told of in their file.
    pub(crate) fn lost(note: &Path) -> Option<AuditLoss> {
        loss::read(note)
    }

    /// Why the next line of this file would be lost, as far as that can be seen without writing it.
    pub(crate) fn obstacle(path: &Path) -> Option<String> {
        writer::obstacle(path)
    }

    /// Refuses what is no file. A disk that is full, or a folder that is not there yet, is no reason to archive
    /// nothing: then lines are lost, and that is said.
    pub(crate) fn check(path: Option<&Path>) -> Result<()> {
        path.map_or(Ok(()), writer::refuse_foreign)
    }

    /// Writes to this file from here on; the same one is opened again, as logrotate expects it.
    pub(crate) fn set(&self, path: Option<PathBuf>) {
        let mut target = self.target();
        if target.path == path {
            if let Some(writer) = &target.writer {
                writer.reopen();
            }
            return;
        }
        let before = std::mem::replace(&mut *target, AuditTarget { path, writer: None });
        drop(target);
        // It waits for its last lines, which nobody else has to; without a thread it does so here.
        let named = std::thread::Builder::new().name("audit".to_owned());
        drop(named.spawn(move || drop(before)));
    }

    /// Opens the file again by its name.
    pub(crate) fn reopen(&self) {
        if let Some(writer) = &self.target().writer {
            writer.reopen();
        }
    }

    /// Tells what was done; waits for nothing.
    pub(crate) fn record(&self, who: &Actor, outcome: &AuditOutcome<'_>, event: &AuditEvent<'_>) {
        let line = self.line(who, outcome, event);
        self.pass_on(line, None);
    }

    /// Tells what is about to be done, or what a process did that ends now: the line is on the disk when this
    /// returns, or was given up.
    pub(crate) fn record_durably(
        &self,
        who: &Actor,
        outcome: &AuditOutcome<'_>,
        event: &AuditEvent<'_>,
    ) {
        let (written, told) = channel();
        let line = self.line(who, outcome, event);
        if self.pass_on(line, Some(written))
            && told.recv_timeout(LINE_PATIENCE) == Err(RecvTimeoutError::Timeout)
        {
            tracing::warn!(
                "the audit log has not taken a line within {LINE_PATIENCE:?}; this goes on without it"
            );
        }
    }

    fn pass_on(&self, line: String, written: Option<Sender<()>>) -> bool {
        let mut target = self.target();
        let AuditTarget { path, writer } = &mut *target;
        let losses = self.losses.as_deref();
        let Some(path) = path else {
            tracing::debug!("audit: {}", line.trim_end());
            return false;
        };
        let writer = writer.get_or_insert_with(|| AuditWriter::start(path, losses));
        match writer.orders.try_send(WriterOrder::Line(line, written)) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                writer.lost.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }

    fn line(&self, who: &Actor, outcome: &AuditOutcome<'_>, event: &AuditEvent<'_>) -> String {
        line_of(&self.cluster, who, outcome, event)
    }

    fn target(&self) -> MutexGuard<'_, AuditTarget> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line with its end.
fn line_of(
    cluster: &str,
    who: &Actor,
    outcome: &AuditOutcome<'_>,
    event: &AuditEvent<'_>,
) -> String {
    let mut members = Map::new();
    members.insert("outcome".to_owned(), json!(outcome.word()));
    if let AuditOutcome::Failed(why) | AuditOutcome::Refused(why) = outcome {
        members.insert("why".to_owned(), json!(short(why)));
    }
    members.insert("cluster".to_owned(), json!(cluster));
    members.insert("who".to_owned(), who.members());
    members.insert("process".to_owned(), json!(std::process::id()));
    for (name, value) in event.members() {
        members.insert(name.to_owned(), shortened(value));
    }
    let members = ascii(&Value::Object(members).to_string());
    // Time and event first, so that lines can be sorted and are read at a glance.
    format!(
        "{{\"time\":\"{:.6}\",\"event\":\"{}\",{}\n",
        jiff::Timestamp::now(),
        event.word(),
        members.trim_start_matches('{')
    )
}

fn short(text: &str) -> String {
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

fn shortened(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(short(&text)),
        Value::Array(values) => {
            // Nobody types more that means something.
            Value::Array(values.into_iter().take(32).map(shortened).collect())
        }
        other => other,
    }
}

/// JSON text with every letter outside ASCII escaped: only in texts can there be any.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    let mut units = [0; 2];
    for letter in json.chars() {
        match letter {
            ' '..='~' => text.push(letter),
            _ => {
                for unit in letter.encode_utf16(&mut units) {
                    text.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    text
}

#[cfg(test)]
mod tests;
