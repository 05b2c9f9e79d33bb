//! How many lines of an audit log are lost and not told of in its file: a note beside the archive, for whoever looks next.
//! Never has a line in it, and never waits long for another process. Invariant: a count leaves the note only once the
//! file of the log says it; a crash in between has it said twice.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use crate::files;

/// A count, a time and a sentence.
const NOTE_BYTES_MAX: u64 = 8 << 10;

/// How long others may have the note locked, who only count.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// What the note says: `LINES SINCE WHY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AuditLoss {
    /// How many.
    pub lines: u64,
    /// When the first of them was, in UTC.
    pub since: String,
    /// Why the last one was not written.
    pub why: String,
}

impl AuditLoss {
    fn text(&self) -> String {
        let why = self.why.replace('\n', " ");
        format!("{} {} {}\n", self.lines, self.since, super::short(&why))
    }

    /// Nothing for what is no note, or was torn.
    fn parsed(text: &[u8]) -> Option<AuditLoss> {
        let text = std::str::from_utf8(text).ok()?.strip_suffix('\n')?;
        let mut words = text.splitn(3, ' ');
        let (lines, since, why) = (words.next()?, words.next()?, words.next()?);
        since.parse::<jiff::Timestamp>().ok()?;
        Some(AuditLoss {
            lines: lines.parse().ok().filter(|lines| *lines > 0)?,
            since: since.to_owned(),
            why: why.to_owned(),
        })
    }
}

/// What is lost and not told of; nothing if nobody can tell.
pub(super) fn read(note: &Path) -> Option<AuditLoss> {
    AuditLoss::parsed(&files::read_at_most(note, NOTE_BYTES_MAX).ok()?)
}

/// Counts more lines.
pub(super) fn add(note: &Path, lines: u64, why: &str) -> io::Result<()> {
    let mut file = locked(files::open_lock(note)?)?;
    let found = read_open(&mut file)?;
    let now = || format!("{:.0}", jiff::Timestamp::now());
    let loss = AuditLoss {
        lines: (found.as_ref())
            .map_or(0, |found| found.lines)
            .saturating_add(lines),
        since: found.map_or_else(now, |found| found.since),
        why: why.to_owned(),
    };
    rewrite(&mut file, loss.text().as_bytes())
}

/// Has the count told of, if there is one, and forgets it if that succeeds. Meanwhile nobody else does. A note that
/// cannot be locked stays for the next line.
pub(super) fn tell<E>(note: &Path, told: impl FnOnce(u64) -> Result<(), E>) -> Result<(), E> {
    // Most never lost a line.
    if read(note).is_none() {
        return Ok(());
    }
    let opened = files::open_lock(note).and_then(locked);
    let found = opened.and_then(|mut file| Ok((read_open(&mut file)?, file)));
    let (Some(loss), mut file) = (match found {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!("{}: {error}", note.display());
            return Ok(());
        }
    }) else {
        return Ok(());
    };
    told(loss.lines)?;
    // Not removed: another process may be waiting for this very file.
    if let Err(error) = rewrite(&mut file, b"") {
        tracing::debug!("{}: {error}", note.display());
    }
    Ok(())
}

fn read_open(file: &mut File) -> io::Result<Option<AuditLoss>> {
    let mut text = Vec::new();
    file.rewind()?;
    file.take(NOTE_BYTES_MAX).read_to_end(&mut text)?;
    Ok(AuditLoss::parsed(&text))
}

fn rewrite(file: &mut File, text: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text)
}

fn locked(file: File) -> io::Result<File> {
    match files::lock_within(LOCK_PATIENCE, || files::try_lock_open(&file))? {
        true => Ok(file),
        false => Err(io::ErrorKind::WouldBlock.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_231_the_note_counts_for_all_and_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join("lost");
        assert_eq!(read(&note), None);
        tell(&note, |_| Err("nothing was lost")).unwrap();
        assert!(!note.exists(), "nothing was lost, and there is a note");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    // Whoever does not get the lock in time keeps its count and tries again.
                    (0..25).for_each(|_| while add(&note, 2, "the disk\nis full").is_err() {});
                });
            }
        });
        let found = read(&note).unwrap();
        assert_eq!((found.lines, found.why.as_str()), (200, "the disk is full"));
        let failed = tell(&note, |_| Err(io::Error::other("full")));
        assert_eq!(failed.unwrap_err().to_string(), "full");
        assert_eq!(read(&note).unwrap().since, found.since);
        let told = |lines: u64| (lines == 200).then_some(()).ok_or(lines);
        assert_eq!(tell(&note, told), Ok(()));
        assert_eq!(read(&note), None);
    }

    #[test]
    fn a_torn_or_foreign_note_says_nothing_and_a_link_is_refused() {
        for torn in [
            "",
            "3",
            "3 2026-11-26T18:20:01Z",
            "0 2026-11-26T18:20:01Z x\n",
            "x y z\n",
        ] {
            assert_eq!(AuditLoss::parsed(torn.as_bytes()), None, "{torn:?}");
        }
        assert!(AuditLoss::parsed(b"3 2026-11-26T18:20:01Z no space\n").is_some());
        let folder = tempfile::tempdir().unwrap();
        let (note, victim) = (folder.path().join("lost"), folder.path().join("victim"));
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &note).unwrap();
        add(&note, 1, "full").unwrap_err();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    }
}
