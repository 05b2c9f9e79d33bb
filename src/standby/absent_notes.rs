//! What `xrestore` told its server to be absent, for `boot` to know when it may promote.
//! Never grows: a file that is served, or asked for again, settles what was said before it.
//! Invariant: as long as PostgreSQL may act on an answer that was given before `STOP` there is a
//! note of it, so a promotion that waits for the notes cannot end recovery early.
//!
//! A standby that is told that a segment is absent looks whether it is to be promoted, and only
//! then tries again (`WaitForWALToBecomeAvailable`, `src/backend/access/transam/xlogrecovery.c`).
//! An answer of before `STOP` that it acts on after the promotion therefore makes it open without
//! the segments in progress. It may act on one much later: it asks ahead of what it replays, and
//! `pg_wal_replay_pause()` or a query that conflicts holds it up in between. The two sides exclude
//! that between them:
//!
//! ```text
//! xrestore    write the note, look for STOP: if it is there, look for the segment again
//! boot        write STOP, look for notes: if there is one, wait until it is gone
//! ```
//!
//! Whichever comes second sees what the other wrote. There is a note for each name, because a
//! standby asks for a segment on several timelines before it gives up. Any other segment that it
//! asks for says that it has gone on. So does a walreceiver: when that ends, the archive is asked
//! before anything else. The notes lie in `pg_stat_tmp`, which PostgreSQL leaves out of backups;
//! none of them has to survive a crash.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use walmgr_protocol::names::SegmentName;

use crate::files;
use crate::pg::data_directory::Postmaster;
use crate::standby::replay::server_text;

/// The folder in the data directory.
const FOLDER: &str = "pg_stat_tmp";

/// What the notes' names begin with.
const PREFIX: &str = "walmgr.absent.";

/// The timeline in a segment's name; what follows is its number.
const TIMELINE_DIGITS: usize = 8;

/// The notes in a data directory, whichever server they are of.
pub(super) fn paths(data: &Path) -> Vec<PathBuf> {
    let entries = data.join(FOLDER).read_dir().into_iter().flatten().flatten();
    let is_note = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(PREFIX))
    };
    entries.map(|entry| entry.path()).filter(is_note).collect()
}

/// The notes about one server.
#[derive(Debug)]
pub(super) struct AbsentNotes {
    folder: PathBuf,
    server: String,
}

impl AbsentNotes {
    /// Those of this server, whose data directory that is.
    pub(super) fn of(data: &Path, server: &Postmaster) -> AbsentNotes {
        AbsentNotes {
            folder: data.join(FOLDER),
            server: server_text(server),
        }
    }

    fn path(&self, segment: SegmentName) -> PathBuf {
        self.folder.join(format!("{PREFIX}{segment}"))
    }

    /// The server asks for this one. What it was told of that, and of segments of other numbers,
    /// is settled.
    pub(super) fn asked(&self, segment: SegmentName) {
        let asked = segment.to_string();
        for name in self.notes() {
            if name == asked || name[TIMELINE_DIGITS..] != asked[TIMELINE_DIGITS..] {
                self.remove(&name);
            }
        }
    }

    /// The server is about to hear that there is no such segment.
    pub(super) fn absent(&self, segment: SegmentName) {
        unnoted(files::note(&self.path(segment), self.server.as_bytes()));
    }

    /// The server gets a segment, so it has found what it looked for.
    pub(super) fn served(&self) {
        for name in self.notes() {
            self.remove(&name);
        }
    }

    /// A segment that the server was told to be absent, and may still act on.
    pub(super) fn pending(&self) -> Option<String> {
        self.notes().into_iter().find(|name| {
            // Half of one is of a call that has not ended.
            match files::read(self.folder.join(format!("{PREFIX}{name}"))) {
                Ok(server) => server.is_empty() || server == self.server.as_bytes(),
                Err(error) => error.kind() != io::ErrorKind::NotFound,
            }
        })
    }

    fn remove(&self, name: &str) {
        unnoted(fs::remove_file(self.folder.join(format!("{PREFIX}{name}"))));
    }

    /// The segments that there are notes of.
    fn notes(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let noted = names.filter_map(|name| name.strip_prefix(PREFIX).map(ToOwned::to_owned));
        noted
            .filter(|name| name.parse::<SegmentName>().is_ok())
            .collect()
    }
}

/// Replay must not end because a note cannot be written.
fn unnoted(result: io::Result<()>) {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!("note what the server was told: {error}");
        }
        _ => {}
    }
}

/// Whether a walreceiver of this server runs.
pub(super) fn streams(server: &Postmaster) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut folders = processes.map(|process| process.path());
    folders.any(|folder| {
        let of_server = fs::read_to_string(folder.join("stat"))
            .is_ok_and(|stat| parent_in(&stat) == Some(server.pid));
        of_server
            && fs::read(folder.join("cmdline"))
                .is_ok_and(|title| String::from_utf8_lossy(&title).contains("walreceiver"))
    })
}

/// The fourth field of `/proc/PID/stat`; the second is a name in brackets that may hold anything.
fn parent_in(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(pid: i32) -> Postmaster {
        Postmaster::parse(&format!("{pid}\n/data\n1700\n")).unwrap()
    }

    #[test]
    fn an_answer_counts_until_the_server_has_gone_on() {
        let data = tempfile::tempdir().unwrap();
        let notes = AbsentNotes::of(data.path(), &server(41));
        let [first, same_number, next] = [
            "000000010000000000000031",
            "000000020000000000000031",
            "000000020000000000000032",
        ]
        .map(|name| name.parse::<SegmentName>().unwrap());
        let pending = |notes: &AbsentNotes| notes.pending().is_some();
        // A server without the folder is none whose answers count.
        notes.absent(first);
        assert!(!pending(&notes));

        let folder = data.path().join(FOLDER);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("global.stat"), b"").unwrap();
        assert!(!pending(&notes));
        notes.absent(first);
        notes.absent(same_number);
        assert!(!pending(&AbsentNotes::of(data.path(), &server(42))));
        notes.asked(first);
        assert!(pending(&notes), "the other was not asked for again");
        notes.asked(same_number);
        assert!(!pending(&notes));

        notes.absent(first);
        notes.absent(same_number);
        notes.asked(next);
        assert!(!pending(&notes), "it asks for what comes behind them");

        notes.absent(next);
        notes.served();
        assert!(!pending(&notes));

        fs::write(notes.path(next), b"").unwrap();
        assert!(pending(&notes), "it is being written");
        assert!(folder.join("global.stat").exists());
    }

    #[test]
    fn a_parent_is_found_behind_any_name() {
        assert_eq!(parent_in("7 (a) b) (c) S 41 7 7 0"), Some(41));
        assert_eq!(parent_in("7 (postgres) S"), None);
    }
}
