//! An old data directory that is nearly what a set is, and what a restore by difference has to make of it.
//! Never asks walmgr. Invariant: what is compared with a manifest is read here, by PostgreSQL's own rules.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::dice::Dice;
use super::run;

/// What only comes from the set: nothing in these is written by a restore.
pub const CONTENT_OF: [&str; 5] = ["base", "global", "pg_xact", "pg_multixact", "tmpspc"];

/// All files below these directories, but for the control file.
pub fn files_below(root: &Path, names: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in names {
        let mut find = Command::new("find");
        let listed = run(find.arg(root.join(name)).args(["-type", "f"])).unwrap();
        found.extend(listed.lines().map(PathBuf::from));
    }
    found.retain(|path| !path.ends_with("global/pg_control"));
    found.sort();
    found
}

/// Changes files in every way that an old server, a disk or a person may have; lengths and times say nothing.
pub fn change(old: &Path, dice: &mut Dice) {
    let files = files_below(old, &CONTENT_OF);
    for _ in 0..60 {
        flip(&files[dice.index(files.len())], dice);
    }
    for (number, path) in files.iter().enumerate() {
        match dice.below(40) {
            0 => fs::remove_file(path).unwrap(),
            1 => {
                let len = path.metadata().unwrap().len();
                let file = fs::OpenOptions::new().write(true).open(path).unwrap();
                file.set_len(dice.below(2 * len + 8192)).unwrap();
            }
            2 => fs::hard_link(path, old.join(format!("second-name.{number}"))).unwrap(),
            3 => {
                let target = old.join(format!("moved-away.{number}"));
                fs::rename(path, &target).unwrap();
                std::os::unix::fs::symlink(&target, path).unwrap();
            }
            4 => fs::write(path.with_extension("foreign"), "foreign").unwrap(),
            _ => {}
        }
    }
}

/// Changes one bit, and neither length nor time.
pub fn flip(path: &Path, dice: &mut Dice) {
    let before = path.metadata().unwrap();
    if before.len() == 0 {
        return;
    }
    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let at = dice.below(before.len());
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    byte[0] ^= 1 << dice.below(8);
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&byte).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    assert_eq!(path.metadata().unwrap().mtime(), before.mtime());
}

/// Two trees have the same files and links, with the same content.
pub fn assert_same(one: &Path, other: &Path, context: &str) {
    let mut diff = Command::new("diff");
    let compared = diff
        .args(["-r", "--no-dereference", "-q"])
        .arg(one)
        .arg(other);
    run(compared).unwrap_or_else(|differs| panic!("{context}: {differs}"));
}

/// Files at the top that a restore settles for the host they come to, or renames.
const SETTLED: [&str; 4] = [
    "postgresql.conf",
    "postgresql.auto.conf",
    "pg_hba.conf",
    "tablespace_map",
];

/// Every file that the manifest in a data directory lists is there as it is listed, read through the links of the
/// tablespaces; how many there are.
#[track_caller]
pub fn assert_manifest(data: &Path, context: &str) -> usize {
    let manifest = fs::read(data.join("backup_manifest")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let files = manifest["Files"].as_array().unwrap();
    for file in files {
        let name = file["Path"].as_str().unwrap();
        if SETTLED.contains(&name) {
            continue;
        }
        let content = fs::read(data.join(name));
        let content = content.unwrap_or_else(|error| panic!("{context}: {name}: {error}"));
        assert_eq!(
            Some(content.len() as u64),
            file["Size"].as_u64(),
            "{context}: {name}"
        );
        assert_eq!(file["Checksum-Algorithm"], "CRC32C", "{context}: {name}");
        let crc32c = crc32c::crc32c(&content).to_le_bytes();
        let crc32c: String = crc32c.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(file["Checksum"], crc32c, "{context}: {name}");
    }
    files.len()
}
