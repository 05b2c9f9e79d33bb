//! What `xrestore` told its server to be absent, for `boot` to know when it may promote.
//! Never grows: a file that is served, or asked for again, settles what was said before it.
//! Invariant: as long as PostgreSQL may act on an answer that was given before `STOP` there is a
//! note of it, so a promotion that waits for the notes cannot end recovery early.
//!
//! A standby that is told that a segment is absent looks whether it is to be promoted, and only
//! then tries again (`WaitForWALToBecomeAvailable`, `src/backend/access/transam/xlogrecovery.c`).
//! An answer of before `STOP` that it gets after the promotion therefore makes it open without the
//! segments in progress. The two sides exclude that between them:
//!
//! ```text
//! xrestore    write the note, look for STOP: if it is there, look for the segment again
//! boot        write STOP, look for notes: if there is one, wait until it is gone
//! ```
//!
//! Whichever comes second sees what the other wrote. There is a note for each name, because a
//! standby asks for a segment on several timelines before it gives up. The notes lie in
//! `pg_stat_tmp`, which PostgreSQL leaves out of backups; none of them has to survive a crash.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use walmgr_protocol::names::SegmentName;

/// The folder in the data directory.
const FOLDER: &str = "pg_stat_tmp";

/// What the notes' names begin with.
const PREFIX: &str = "walmgr.absent.";

/// How long a note counts. A server that asks nobody for so long, twice its default
/// `wal_retrieve_retry_interval`, has passed that point long ago: it streams, or it waits.
const COUNTS_FOR: Duration = Duration::from_secs(10);

/// The notes about one server.
#[derive(Debug)]
pub struct Answers(PathBuf);

impl Answers {
    /// Those of the server in this data directory.
    pub fn of(data: &Path) -> Answers {
        Answers(data.join(FOLDER))
    }

    fn path(&self, segment: SegmentName) -> PathBuf {
        self.0.join(format!("{PREFIX}{segment}"))
    }

    /// The server asks for it, so what it was told before is settled.
    pub fn asked(&self, segment: SegmentName) {
        unnoted(fs::remove_file(self.path(segment)));
    }

    /// The server is about to hear that there is no such segment.
    pub fn absent(&self, segment: SegmentName) {
        let path = self.path(segment);
        // As old as this answer, even if a note is there.
        unnoted(fs::remove_file(&path));
        unnoted(File::create_new(path).map(drop));
    }

    /// The server gets a segment, so it has found what it looked for.
    pub fn served(&self) {
        for (path, _) in self.notes() {
            unnoted(fs::remove_file(path));
        }
    }

    /// Whether the server may still act on what it was told.
    pub fn count(&self) -> bool {
        let now = SystemTime::now();
        (self.notes().iter()).any(|(_, since)| {
            // One from the future is of a clock that was set back; it ends nowhere else.
            now.duration_since(*since).unwrap_or_default() < COUNTS_FOR
        })
    }

    fn notes(&self) -> Vec<(PathBuf, SystemTime)> {
        let found = fs::read_dir(&self.0).map(|entries| {
            let notes = entries.flatten().filter(|entry| {
                let name = entry.file_name();
                name.to_str().is_some_and(|name| name.starts_with(PREFIX))
            });
            let dated = notes.map(|entry| Ok((entry.path(), entry.metadata()?.modified()?)));
            dated.filter_map(io::Result::ok).collect()
        });
        found.unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_until_it_is_settled_or_old() {
        let data = tempfile::tempdir().unwrap();
        let answers = Answers::of(data.path());
        let segments: [SegmentName; 2] = ["000000010000000000000031", "000000020000000000000031"]
            .map(|name| name.parse().unwrap());
        // A server without the folder is none whose answers count.
        answers.absent(segments[0]);
        assert!(!answers.count());

        fs::create_dir(data.path().join(FOLDER)).unwrap();
        fs::write(data.path().join(FOLDER).join("global.stat"), b"").unwrap();
        assert!(!answers.count());
        for segment in segments {
            answers.absent(segment);
        }
        answers.asked(segments[0]);
        assert!(answers.count(), "the other one was not asked for again");
        answers.asked(segments[1]);
        assert!(!answers.count());

        for segment in segments {
            answers.absent(segment);
        }
        answers.served();
        assert!(!answers.count());

        answers.absent(segments[0]);
        let note = File::options()
            .write(true)
            .open(answers.path(segments[0]))
            .unwrap();
        let long_ago = SystemTime::now() - COUNTS_FOR;
        note.set_modified(long_ago).unwrap();
        assert!(!answers.count());
        answers.absent(segments[0]);
        assert!(answers.count());
        assert!(data.path().join(FOLDER).join("global.stat").exists());
    }
}
