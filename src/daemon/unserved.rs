//! The note of a host's receiver that says which clusters of its folder are not served as their files say, and why.
//! Never counts for anything but `status`. Invariant: it lies beside the host's pidfile, and is believed only while a
//! process holds that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::is_running;
use crate::error::{IoContext, Kind, Result};
use crate::files::{self, HandedOver};

/// Most bytes that are read of one: a sentence for each of the most files that a folder may have.
const NOTE_BYTES_MAX: u64 = 32 << 20;

/// Sentences by the names of the clusters' files without `.ini`.
pub(crate) type UnservedClusters = BTreeMap<String, String>;

/// Notes these, in place of those before; a power cut may take the note, and takes the process as well.
pub(crate) fn note_unserved(host_pidfile: &Path, unserved: &UnservedClusters) -> Result<()> {
    let path = note_beside(host_pidfile);
    if unserved.is_empty() {
        return files::remove_any(&path);
    }
    let text = serde_json::Value::from_iter(unserved.clone()).to_string();
    let write = || -> std::io::Result<()> {
        let mut file = HandedOver::begin(&path)?;
        file.append(text.as_bytes())?;
        file.put_in_place()
    };
    write().at(Kind::Retry, "write", &path)
}

/// What the receiver with this pidfile has noted; `None` if it does not run.
pub(crate) fn noted_as_unserved(host_pidfile: &Path) -> Result<Option<UnservedClusters>> {
    if !is_running(host_pidfile)? {
        return Ok(None);
    }
    let file = files::open_at_once(note_beside(host_pidfile));
    let bytes = file.and_then(|file| files::read_whole(&file, NOTE_BYTES_MAX));
    let noted = bytes.ok().flatten().and_then(|bytes| parse(&bytes));
    Ok(Some(noted.unwrap_or_default()))
}

fn parse(bytes: &[u8]) -> Option<UnservedClusters> {
    serde_json::from_slice(bytes).ok()
}

fn note_beside(host_pidfile: &Path) -> PathBuf {
    let mut name = host_pidfile.file_name().unwrap_or_default().to_owned();
    name.push(".unserved");
    host_pidfile.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::PidFile;

    #[test]
    fn a_note_counts_as_long_as_its_process_holds_the_pidfile() {
        let folder = tempfile::tempdir().unwrap();
        let pidfile = folder.path().join("host.pid");
        let note = note_beside(&pidfile);
        let unserved = UnservedClusters::from([("a".to_owned(), "no \"disk\"\n".to_owned())]);
        note_unserved(&pidfile, &unserved).unwrap();
        assert_eq!(noted_as_unserved(&pidfile).unwrap(), None);
        let lock = PidFile::acquire(&pidfile).unwrap();
        assert_eq!(noted_as_unserved(&pidfile).unwrap().unwrap(), unserved);
        for damaged in ["", "[1]", "{\"a\": 1}", "{\"a\": \"x\""] {
            std::fs::write(&note, damaged).unwrap();
            let none = UnservedClusters::new();
            assert_eq!(
                noted_as_unserved(&pidfile).unwrap(),
                Some(none),
                "{damaged}"
            );
        }
        note_unserved(&pidfile, &UnservedClusters::new()).unwrap();
        assert!(!note.exists());
        drop(lock);
    }
}
