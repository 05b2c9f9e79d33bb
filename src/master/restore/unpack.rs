//! The stream of a set, taken apart into a new directory as it arrives.
//! Never writes over a file that is there. Invariant: no file counts that is not the manifest's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use walmgr_protocol::limits::{MANIFEST_BYTES_MAX, SET_ENTRIES_MAX};
use walmgr_protocol::message::fetch::{GetSet, SetDescription};
use walmgr_protocol::names::RelativePath;
use walmgr_protocol::session::fetch::FetchRequest;

use super::place::{MARK, RestorePlace};
use super::stream::Continued;
use super::tree::{NewTree, failed, refused};
use crate::error::{CommandError, Result};
use crate::master::fetch::Sink;
use crate::output::progress::Counters;
use crate::pg::layout;
use crate::pg::listed::Listed;
use crate::tar::{EntryKind, TarEntry, TarReader, TarStep};

/// What was taken apart.
pub(super) struct Layout {
    /// Whether the files were compared with one.
    pub has_manifest: bool,
}

/// Takes a stream apart. Lives through as many connections as the stream needs.
pub(super) struct Unpack {
    tree: NewTree,
    /// What the control file is called until everything is done.
    control_name: &'static str,
    is_outline: bool,
    tar: TarReader,
    file: Option<OpenFile>,
    /// The files that have to come.
    expected: Option<Listed>,
    /// What may still come, as the set was described.
    left: Left,
    counters: Arc<Counters>,
}

/// What a set was said to hold; a receiver that sends more fills no disk.
struct Left {
    stream_bytes: u64,
    entries: usize,
    /// Bytes in each tablespace, and under `None` outside of them.
    bytes: BTreeMap<Option<u32>, u64>,
}

impl Left {
    fn of(described: &SetDescription) -> Left {
        let spaces = described.tablespaces.iter();
        let spaces = spaces.map(|space| (Some(space.oid), space.bytes));
        Left {
            stream_bytes: described.stream_bytes,
            entries: SET_ENTRIES_MAX,
            bytes: spaces.chain([(None, described.bytes)]).collect(),
        }
    }

    /// Takes bytes of a file in a tablespace off, or of one elsewhere.
    fn take(&mut self, space: Option<u32>, bytes: u64) -> Option<()> {
        let key = space.filter(|_| self.bytes.contains_key(&space));
        let left = self.bytes.get_mut(&key)?;
        *left = left.checked_sub(bytes)?;
        Some(())
    }
}

struct OpenFile {
    path: RelativePath,
    /// The tablespace it is in.
    space: Option<u32>,
    /// `None` for one that is left out.
    file: Option<File>,
    len: u64,
    crc32c: u32,
    /// The manifest's own bytes.
    kept: Option<Vec<u8>>,
}

impl Unpack {
    /// Begins in a place that is empty but for its mark.
    pub(super) fn begin(
        place: &RestorePlace,
        described: &SetDescription,
        counters: Arc<Counters>,
    ) -> Result<Unpack> {
        Ok(Unpack {
            tree: NewTree::of(place)?,
            control_name: layout::name_of(place.control_name()),
            is_outline: place.old.is_some(),
            tar: TarReader::default(),
            file: None,
            expected: None,
            left: Left::of(described),
            counters,
        })
    }

    /// Ends the outline; what its manifest lists beside that. `None` without a manifest.
    pub(super) fn finish_outline(self) -> Result<Option<Listed>> {
        self.tar.finish().map_err(|fault| {
            CommandError::retry("take the outline of the set apart").because(fault)
        })?;
        Ok(self.expected)
    }

    /// Ends the stream; fails if anything is missing.
    pub(super) fn finish(self) -> Result<Layout> {
        self.tar
            .finish()
            .map_err(|fault| CommandError::retry("take the backup set apart").because(fault))?;
        if let Some(expected) = &self.expected {
            let finished = expected.finish();
            finished.map_err(|(path, why)| refused(&path, &why))?;
        }
        Ok(Layout {
            has_manifest: self.expected.is_some(),
        })
    }

    fn begin_entry(&mut self, entry: TarEntry) -> Result<()> {
        let TarEntry { path, kind } = entry;
        if path.as_bytes() == MARK.as_bytes() {
            return Err(refused(&path, "its name is this command's own"));
        }
        let entries = self.left.entries.checked_sub(1);
        self.left.entries = entries.ok_or_else(more_than_said)?;
        match kind {
            EntryKind::Directory => self.tree.enter(path.as_bytes()).map(drop),
            EntryKind::File { offset: 0, .. } => self.begin_file(path),
            EntryKind::File { .. } => Err(refused(&path, "it begins in its middle")),
            EntryKind::Patch { .. } => Err(refused(&path, "it is a patch")),
        }
    }

    fn begin_file(&mut self, path: RelativePath) -> Result<()> {
        let is = |name: &str| path.as_bytes() == name.as_bytes();
        let file = match layout::SINCE_THE_BACKUP.into_iter().any(is) {
            true => None,
            false => {
                let name = match () {
                    () if is(layout::PG_CONTROL) => self.control_name.as_bytes(),
                    () if is(layout::TABLESPACE_MAP) => layout::TABLESPACE_MAP_DONE.as_bytes(),
                    () => path.file_name(),
                };
                Some(self.tree.make_file(&path, name)?)
            }
        };
        self.file = Some(OpenFile {
            kept: is(layout::BACKUP_MANIFEST).then(Vec::new),
            space: space_of(&path),
            path,
            file,
            len: 0,
            crc32c: 0,
        });
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> Result<()> {
        let Some(open) = &mut self.file else {
            // The reader gives data only behind the entry of a file.
            return Ok(());
        };
        let taken = self.left.take(open.space, data.len() as u64);
        taken.ok_or_else(more_than_said)?;
        if let Some(file) = &mut open.file {
            let written = file.write_all(data);
            written.map_err(|error| failed("write", &open.path, error))?;
        }
        open.len += data.len() as u64;
        open.crc32c = crc32c::crc32c_append(open.crc32c, data);
        if let Some(kept) = &mut open.kept {
            if open.len > MANIFEST_BYTES_MAX {
                return Err(refused(&open.path, "it is longer than a manifest can be"));
            }
            kept.extend_from_slice(data);
        }
        Ok(())
    }

    fn end_file(&mut self) -> Result<()> {
        let Some(open) = self.file.take() else {
            return Ok(());
        };
        Counters::add(&self.counters.files, 1);
        if let Some(kept) = open.kept {
            let listed = Listed::parse(&kept).map_err(|fault| {
                CommandError::retry("read the set's backup_manifest").because(fault)
            })?;
            self.expected = Some(listed);
            return Ok(());
        }
        let Some(expected) = &mut self.expected else {
            return Ok(());
        };
        let passed = expected.pass(&open.path, open.len, open.crc32c);
        passed.map_err(|why| refused(&open.path, &why))
    }
}

impl Continued for Unpack {
    fn request(&mut self, of: GetSet) -> FetchRequest {
        let set = GetSet {
            offset: self.tar.position(),
            ..of
        };
        match self.is_outline {
            true => FetchRequest::Outline(set),
            false => FetchRequest::Set(set),
        }
    }

    fn taken_bytes(&self) -> u64 {
        self.tar.position()
    }
}

impl Sink for Unpack {
    fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        Counters::add(&self.counters.read_bytes, bytes.len() as u64);
        let left = self.left.stream_bytes.checked_sub(bytes.len() as u64);
        self.left.stream_bytes = left.ok_or_else(more_than_said)?;
        loop {
            let step = self
                .tar
                .next(&mut bytes)
                .map_err(|fault| CommandError::retry("take the backup set apart").because(fault))?;
            match step {
                TarStep::Entry(entry) => self.begin_entry(entry)?,
                TarStep::Data(data) => self.data(data)?,
                TarStep::FileEnd => self.end_file()?,
                TarStep::NeedMore => return Ok(()),
            }
        }
    }
}

/// The OID of the tablespace that a path is in.
fn space_of(path: &RelativePath) -> Option<u32> {
    layout::tablespace_of(path.as_bytes(), layout::TMPSPC).map(|(oid, _)| oid)
}

fn more_than_said() -> CommandError {
    CommandError::retry("the backup set is refused: it is larger than announced")
        .hint("look at the set on the standby, and check that its receiver is yours")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::writer;
    use std::os::fd::OwnedFd;
    use std::path::Path;

    fn unpack_into(root: &Path, space: Option<&Path>) -> Unpack {
        let open = |path: &Path| OwnedFd::from(File::open(path).unwrap());
        let spaces = space.map(|space| (16_385, open(space)));
        Unpack {
            tree: NewTree::new(open(root), spaces.into_iter().collect()),
            control_name: layout::name_of(layout::CONTROL_RESTORING),
            is_outline: false,
            tar: TarReader::default(),
            file: None,
            expected: None,
            left: Left {
                stream_bytes: 1 << 20,
                entries: 100,
                bytes: [(None, 1_000)].into(),
            },
            counters: Arc::default(),
        }
    }

    fn tar(files: &[(&str, &str)]) -> Vec<u8> {
        let mut tar = Vec::new();
        for (path, content) in files {
            let size = content.len() as u64;
            writer::put_file(&mut tar, path.as_bytes(), size, 0);
            tar.extend_from_slice(content.as_bytes());
            tar.resize(tar.len() + writer::padding(size), 0);
        }
        tar.extend_from_slice(&writer::END);
        tar
    }

    #[test]
    fn files_go_where_they_belong_and_the_control_file_waits() {
        let (root, space) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut unpack = unpack_into(root.path(), Some(space.path()));
        let stream = tar(&[
            ("tablespace_map", "16385 /srv/fast\n"),
            ("base/1/1259", "one"),
            ("standby.signal", ""),
            ("tmpspc/16385/PG_15/5/1", "two"),
            ("tmpspc/163850/PG_15/5/1", "three"),
            ("global/pg_control", "control"),
        ]);
        for piece in stream.chunks(700) {
            unpack.append(piece).unwrap();
        }
        assert_eq!(unpack.taken_bytes(), stream.len() as u64);
        assert!(!unpack.finish().unwrap().has_manifest);
        let read = |path: &str| std::fs::read_to_string(root.path().join(path)).ok();
        assert_eq!(read("base/1/1259").as_deref(), Some("one"));
        assert_eq!(read("tmpspc/163850/PG_15/5/1").as_deref(), Some("three"));
        let mapped = std::fs::read(space.path().join("PG_15/5/1")).unwrap();
        assert_eq!(mapped, b"two");
        assert!(!root.path().join("tmpspc/16385").exists());
        assert_eq!(
            read("global/pg_control.restoring").as_deref(),
            Some("control")
        );
        assert!(read("tablespace_map.old").is_some());
        for absent in ["global/pg_control", "tablespace_map", "standby.signal"] {
            assert_eq!(read(absent), None, "{absent}");
        }
    }

    #[test]
    fn fault_90_nothing_is_written_through_a_link_or_over_a_file() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(outside.path(), root.path().join("base")).unwrap();
        std::fs::write(root.path().join("PG_VERSION"), "precious").unwrap();
        for (path, named) in [
            ("base/1", "base"),
            ("PG_VERSION", "PG_VERSION"),
            (MARK, MARK),
        ] {
            let mut unpack = unpack_into(root.path(), None);
            let error = unpack.append(&tar(&[(path, "x")])).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        let kept = std::fs::read(root.path().join("PG_VERSION")).unwrap();
        assert_eq!(kept, b"precious");
    }

    #[test]
    fn a_stream_that_ends_early_is_not_whole() {
        let root = tempfile::tempdir().unwrap();
        let stream = tar(&[("PG_VERSION", "15\n")]);
        let mut unpack = unpack_into(root.path(), None);
        unpack.append(&stream[..stream.len() - 600]).unwrap();
        assert!(unpack.finish().is_err());
    }
}
