//! Tar streams made by hand, honest and hostile ones, and whole sets to send.
//! Never checks what it writes. Invariant: everything of a sample set carries its version, so
//! that a mixture of two sets is seen.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use walmgr_protocol::names::{BackupName, Lsn, RelativePath, SystemId};
use walmgr_protocol::patch::{PAGE_BYTES, TAR_PATCH_KEYWORD, put_pages};

use super::Keeping;
use super::{BackupSets, ExpectedFile, HeldSet, IncomingSet, Lease, Parts, SealedFile, SetError};
use crate::pg::manifest::{Checksum, FileEntry, ManifestWriter};
use crate::store::WalProof;
use crate::store::testing::{new_archive, open, places, push, real, segment};
use crate::store::{Disk, DurableWal};
use crate::wal::segment::Verify;

/// A stream under construction.
#[derive(Clone, Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    pub(crate) fn file(self, path: &[u8], content: &[u8]) -> Self {
        let named = if path.len() <= 100 {
            self.header(path, octal(content.len() as u64), b'0')
        } else {
            self.pax(&[(b"path", path)])
                .header(&path[..99], octal(content.len() as u64), b'0')
        };
        named.content(content)
    }

    pub(crate) fn directory(self, path: &str) -> Self {
        self.header(path.as_bytes(), octal(0), b'5')
    }

    pub(crate) fn pax(self, records: &[(&[u8], &[u8])]) -> Self {
        let mut content = Vec::new();
        for (keyword, value) in records {
            let bare = keyword.len() + value.len() + 3;
            let mut length = bare + 1;
            while length != bare + length.to_string().len() {
                length = bare + length.to_string().len();
            }
            content.extend_from_slice(format!("{length} ").as_bytes());
            content.extend_from_slice(&[keyword, &b"="[..], value, b"\n"].concat());
        }
        self.typed(b'x', b"PaxHeader", &content)
    }

    /// An entry of any type with content.
    pub(crate) fn typed(self, type_flag: u8, name: &[u8], content: &[u8]) -> Self {
        self.header(name, octal(content.len() as u64), type_flag)
            .content(content)
    }

    pub(crate) fn header(self, name: &[u8], size: [u8; 12], type_flag: u8) -> Self {
        self.raw(header(name, size, type_flag))
    }

    pub(crate) fn raw(mut self, header: [u8; 512]) -> Self {
        self.0.extend_from_slice(&header);
        self
    }

    pub(crate) fn content(mut self, content: &[u8]) -> Self {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub(crate) fn octal(size: u64) -> [u8; 12] {
    let mut field = [0; 12];
    field[..11].copy_from_slice(format!("{size:011o}").as_bytes());
    field
}

pub(crate) fn base_256(size: u64) -> [u8; 12] {
    let mut field = [0; 12];
    field[0] = 0x80;
    field[4..].copy_from_slice(&size.to_be_bytes());
    field
}

pub(crate) fn header(name: &[u8], size: [u8; 12], type_flag: u8) -> [u8; 512] {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name);
    header[100..107].copy_from_slice(b"0000600");
    header[124..136].copy_from_slice(&size);
    header[156] = type_flag;
    header[257..265].copy_from_slice(b"ustar\x0000");
    seal_header(header)
}

/// Puts the right checksum into a header.
pub(crate) fn seal_header(mut header: [u8; 512]) -> [u8; 512] {
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

pub(crate) fn path(text: &str) -> RelativePath {
    text.parse().unwrap()
}

/// The files of a version of the sample set; the tablespace is where the set keeps it.
pub(crate) fn sample_files(version: u8) -> BTreeMap<String, Vec<u8>> {
    let long = format!("base/1/{}", "long".repeat(40));
    let files = [
        ("PG_VERSION", 3_usize),
        ("global/pg_control", 8_192),
        ("base/1/1259", 600),
        ("base/1/empty", 0),
        (&long, 1),
        ("tmpspc/16385/PG_15_202209061/5/16390", 513),
    ];
    let files = files.map(|(path, len)| (path.to_owned(), vec![version; len]));
    let pages = [vec![0; PAGE_LEN], vec![version; PAGE_LEN]].concat();
    files
        .into_iter()
        .chain([(PAGES_FILE.to_owned(), pages)])
        .collect()
}

#[expect(clippy::cast_possible_truncation, reason = "a page")]
const PAGE_LEN: usize = PAGE_BYTES as usize;

/// A file of two pages, of which each version has the first.
pub(crate) const PAGES_FILE: &str = "base/1/16400";

pub(crate) fn sample_stream(version: u8) -> Vec<u8> {
    stream_of(version, Tar::file)
}

/// The stream of a set that is built on an older version: of [`PAGES_FILE`] it has only the page that differs.
pub(crate) fn incremental_stream(version: u8) -> Vec<u8> {
    stream_of(version, |tar, path, content| {
        if path != PAGES_FILE.as_bytes() {
            return tar.file(path, content);
        }
        let mut patch = Vec::new();
        put_pages(&mut patch, 1, 1);
        patch.extend_from_slice(&content[PAGE_LEN..]);
        let len = content.len().to_string();
        let tar = tar.pax(&[(TAR_PATCH_KEYWORD.as_bytes(), len.as_bytes())]);
        tar.file(path, &patch)
    })
}

fn stream_of(version: u8, put: impl Fn(Tar, &[u8], &[u8]) -> Tar) -> Vec<u8> {
    let mut tar = Tar::default().directory("base/").directory("pg_wal/");
    for (path, content) in sample_files(version) {
        tar = put(tar, path.as_bytes(), &content);
    }
    tar.end()
}

pub(crate) fn label(version: u8) -> Vec<u8> {
    format!(
        "START WAL LOCATION: 0/300028 (file 000000010000000000000003)\n\
         CHECKPOINT LOCATION: 0/300060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
         START TIME: 2026-01-02 03:04:0{version} UTC\nLABEL: FullBackup\nSTART TIMELINE: 1\n"
    )
    .into_bytes()
}

/// What the manifest of a sample set lists: tablespaces where PostgreSQL sees them.
pub(crate) fn sample_manifest(version: u8) -> Vec<ExpectedFile> {
    let mut files = sample_files(version);
    files.insert("backup_label".to_owned(), label(version));
    let expected = files.into_iter().map(|(name, content)| ExpectedFile {
        path: path(&name.replace("tmpspc/", "pg_tblspc/")),
        len: content.len() as u64,
        crc32c: Some(crc32c::crc32c(&content)),
    });
    expected.collect()
}

/// A manifest as PostgreSQL writes it.
pub(crate) fn manifest(version: u8) -> Vec<u8> {
    let mut writer = ManifestWriter::new(Vec::new(), 15, SystemId(u64::from(version))).unwrap();
    for file in sample_manifest(version) {
        let entry = FileEntry {
            path: file.path,
            size: file.len,
            last_modified: 0,
            checksum: file.crc32c.map(Checksum::Crc32c),
        };
        writer.add(&entry).unwrap();
    }
    writer.finish(&[]).unwrap()
}

/// An archive with the WAL that every sample set needs, and no sets.
pub(crate) fn prepare(root: &Path) {
    let places = new_archive(root);
    push(&open(&places), &segment(3, 1)).unwrap();
}

pub(crate) fn sets(root: &Path, disk: &Arc<dyn Disk>) -> Result<BackupSets, SetError> {
    let places = places(root);
    BackupSets::open(&root.join("data.master"), &places.completed_wals, disk)?
        .with_partials(&places.partial_wals)
}

pub(crate) fn real_sets(root: &Path) -> BackupSets {
    sets(root, &real()).unwrap()
}

pub(crate) fn lease(sets: &BackupSets) -> Result<Arc<Lease>, SetError> {
    sets.lease("the test, since a moment ago").map(Arc::new)
}

pub(crate) fn wal_proof(root: &Path) -> DurableWal {
    let archive = open(&places(root));
    let first = "000000010000000000000003".parse().unwrap();
    match archive.prove_wal(first, Lsn(0x30_0100), Verify::Records) {
        Ok(WalProof::Durable(proof)) => proof,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn write(incoming: &IncomingSet, stream: &[u8]) -> Result<Vec<SealedFile>, SetError> {
    let mut writer = incoming.stream()?;
    let mut sealed = Vec::new();
    for block in stream.chunks(1_000) {
        sealed.extend(writer.write(block)?);
    }
    writer.finish()?;
    Ok(sealed)
}

pub(crate) fn seal(
    incoming: IncomingSet,
    version: u8,
    wal: &DurableWal,
) -> Result<BackupName, SetError> {
    let sealed = incoming.seal(Parts {
        backup_label: &label(version),
        tablespace_map: None,
        manifest: &manifest(version),
        files: &mut sample_manifest(version).into_iter(),
        wal,
    });
    sealed.map(|set| set.name().clone())
}

/// Receives and seals a version of the sample set.
pub(crate) fn back_up(
    sets: &BackupSets,
    lease: &Arc<Lease>,
    version: u8,
    wal: &DurableWal,
) -> Result<BackupName, SetError> {
    let incoming = sets.begin(lease)?;
    write(&incoming, &sample_stream(version))?;
    seal(incoming, version, wal)
}

/// The first version of the sample set, in an archive of its own.
pub(crate) fn held_sample(root: &Path) -> HeldSet {
    prepare(root);
    let sets = real_sets(root);
    let lease = lease(&sets).unwrap();
    back_up(&sets, &lease, 1, &wal_proof(root)).unwrap();
    sets.hold(sets.newest()).unwrap()
}

/// Receives and seals a version of the sample set, built on the newest set.
pub(crate) fn back_up_incrementally(
    sets: &BackupSets,
    lease: &Arc<Lease>,
    version: u8,
    wal: &DurableWal,
) -> Result<BackupName, SetError> {
    let parent = sets.newest_as_parent()?;
    let incoming = sets.begin(lease)?;
    incoming.build_on(&Arc::new(parent));
    write(&incoming, &incremental_stream(version))?;
    seal(incoming, version, wal)
}

/// The version of a set, once every file of it was looked at; `Err` says what is wrong.
pub(crate) fn whole_version(set: &Path) -> Result<u8, String> {
    let read = |name: &str| {
        let path = set.join(name);
        std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let version = *read("PG_VERSION")?.first().ok_or("an empty PG_VERSION")?;
    if read("backup_manifest")? != manifest(version) {
        return Err("the manifest is another set's".to_owned());
    }
    if read("backup_label")? != label(version) {
        return Err("the label is another set's".to_owned());
    }
    for (name, content) in sample_files(version) {
        if read(&name)? != content {
            return Err(format!("{name} differs"));
        }
        if name.starts_with("tmpspc/") && read(&name.replace("tmpspc/", "pg_tblspc/"))? != content {
            return Err(format!("{name} is not reached through its link"));
        }
    }
    let mut count = 0;
    count_files(set, &mut count);
    let expected = sample_files(version).len() + 2;
    match count == expected {
        true => Ok(version),
        false => Err(format!("{count} files, expected {expected}")),
    }
}

fn count_files(directory: &Path, count: &mut usize) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            count_files(&entry.path(), count);
        } else if kind.is_file() {
            *count += 1;
        }
    }
}

/// Every listed set: its name and its version.
pub(crate) fn versions(root: &Path) -> Result<Vec<(String, u8)>, String> {
    let listed = real_sets(root).list().map_err(|error| error.to_string())?;
    let versions = listed.into_iter().map(|set| {
        set.label?;
        let name = set.name.to_string();
        let version = whole_version(&root.join(&name));
        Ok((
            name.clone(),
            version.map_err(|why| format!("{name}: {why}"))?,
        ))
    });
    versions.collect()
}

/// The names beside the sets that only exist for a while.
pub(crate) fn leftovers(root: &Path) -> Vec<String> {
    let names = std::fs::read_dir(root).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| {
            let passing = ["incoming", "expired", "intent", "unsealed"];
            passing.iter().any(|part| name.contains(part))
        })
        .collect()
}

/// Keeps this many sets, however young they are.
pub(super) fn keep(sets: u32) -> Keeping {
    Keeping {
        sets,
        ..Keeping::default()
    }
}
