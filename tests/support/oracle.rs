//! Remembers what was offered and what was acknowledged, and judges an archive by it.
//! Never asks walmgr what it holds. Invariant: an acknowledgement counts only after it was synced
//! to the oracle's own file, which lies on another file system than the archive under test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use aws_lc_rs::digest::{SHA256, digest};

use super::outcome::Output;
use super::place::TempDir;
use super::site::Site;
use super::stored;

/// What was offered under which name with which digest, and which of it was acknowledged.
pub struct Oracle {
    path: PathBuf,
    memory: Mutex<Memory>,
    _home: TempDir,
}

#[derive(Default)]
struct Memory {
    offered: BTreeMap<String, BTreeSet<String>>,
    acknowledged: BTreeMap<String, String>,
}

impl Oracle {
    /// One that knows nothing yet.
    pub fn new() -> Oracle {
        let home = TempDir::new();
        Oracle {
            path: home.write("acknowledged", ""),
            memory: Mutex::default(),
            _home: home,
        }
    }

    /// Offers this content under this name, and remembers whether it was acknowledged.
    pub fn offer(&self, site: &Site, name: &str, content: &[u8]) -> Output {
        site.write_wal(name, content);
        self.offered(name, content);
        let output = site.archive(name);
        if output.code == Some(0) {
            self.acknowledged(name, content);
        }
        output
    }

    /// This content is about to be offered under this name.
    fn offered(&self, name: &str, content: &[u8]) {
        let mut memory = self.memory.lock().unwrap();
        let digests = memory.offered.entry(name.to_owned()).or_default();
        digests.insert(sha256(content));
    }

    /// The client that offered this content ended with 0.
    fn acknowledged(&self, name: &str, content: &[u8]) {
        let digest = sha256(content);
        let mut memory = self.memory.lock().unwrap();
        let mut file = File::options().append(true).open(&self.path).unwrap();
        writeln!(file, "{name} {digest}").unwrap();
        file.sync_all().unwrap();
        memory.acknowledged.insert(name.to_owned(), digest);
    }

    /// How many files were acknowledged and not forgotten.
    pub fn count(&self) -> usize {
        self.memory.lock().unwrap().acknowledged.len()
    }

    /// What was offered and not acknowledged.
    pub fn unanswered(&self) -> Vec<String> {
        let memory = self.memory.lock().unwrap();
        let names = memory.offered.keys();
        names
            .filter(|name| !memory.acknowledged.contains_key(*name))
            .cloned()
            .collect()
    }

    /// Removes every file from these folders and from memory; to keep a small disk from filling.
    pub fn forget(&self, folders: &[&Path]) {
        let mut memory = self.memory.lock().unwrap();
        for (name, folder) in memory.offered.keys().flat_map(|name| {
            let each = folders.iter();
            each.map(move |folder| (name, folder))
        }) {
            // It may not have been stored, or lie there in both forms.
            for form in [name.clone(), format!("{name}.zst")] {
                let _ = std::fs::remove_file(folder.join(form));
            }
        }
        *memory = Memory::default();
        std::fs::write(&self.path, "").unwrap();
    }

    /// Whether the archive holds every acknowledged file with its digest, under every other final
    /// name something that was offered under it, and nothing else but walmgr's own files.
    pub fn judge(&self, completed_wals: &Path) -> Result<(), String> {
        let memory = self.memory.lock().unwrap();
        let mut wrong = Vec::new();
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(completed_wals).map_err(|error| error.to_string())? {
            let path = entry.map_err(|error| error.to_string())?.path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if is_own(&name) {
                continue;
            }
            let content = stored::read(&path).map_err(|error| format!("{name}: {error}"))?;
            let name = name.strip_suffix(".zst").unwrap_or(&name).to_owned();
            let digest = sha256(&content);
            match memory.offered.get(&name) {
                None => wrong.push(format!("{name} was never offered")),
                Some(offered) if !offered.contains(&digest) => {
                    let zeros = content.iter().filter(|byte| **byte == 0).count();
                    let bytes = content.len();
                    wrong.push(format!(
                        "{name} is torn: {bytes} bytes, {zeros} of them zero"
                    ));
                }
                Some(_) => {}
            }
            found.insert(name, digest);
        }
        for (name, digest) in &memory.acknowledged {
            match found.get(name) {
                None => wrong.push(format!("{name} was acknowledged and is lost")),
                Some(other) if other != digest => {
                    wrong.push(format!("{name} was acknowledged and is another file"));
                }
                Some(_) => {}
            }
        }
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(wrong.join("; ")),
        }
    }
}

/// Marker, lock, checksums, notes and temporaries; a temporary is no final name.
fn is_own(name: &str) -> bool {
    let own = [
        ".walmgr-archive",
        ".walmgr-lock",
        ".walmgr-compress",
        ".checksums",
        ".maps",
        ".names",
        ".apart",
        ".obstacles",
        "BACKUPLOCK",
    ];
    let passing = [".in.", ".packing.", ".retired."];
    own.contains(&name) || passing.iter().any(|prefix| name.starts_with(prefix))
}

/// The SHA-256 of this content in hexadecimal.
pub fn sha256(content: &[u8]) -> String {
    let digest = digest(&SHA256, content);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn the_oracle_notices_what_is_lost_torn_or_unknown() {
    let folder = TempDir::new();
    let oracle = Oracle::new();
    let judge = || oracle.judge(folder.path());
    oracle.offered("one", b"1111");
    assert_eq!(judge(), Ok(()));
    folder.write("one", "1111");
    folder.write(".walmgr-lock", "");
    folder.write(".in.one.77", "11");
    assert_eq!(judge(), Ok(()));
    oracle.acknowledged("one", b"1111");
    assert_eq!(judge(), Ok(()));
    folder.write("one", "11\0\0");
    assert!(judge().unwrap_err().contains("torn"));
    std::fs::remove_file(folder.join("one")).unwrap();
    assert!(judge().unwrap_err().contains("lost"));
    oracle.forget(&[folder.path()]);
    folder.write("two", "");
    assert!(judge().unwrap_err().contains("never offered"));
}
