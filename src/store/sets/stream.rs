//! A set as one tar stream, for a master that wants it back.
//! Never changes a set and never follows a link in one. Invariant: the stream of a set is the same
//! byte for byte whenever it is asked for, so it can be continued at any offset.
//!
//! In the order of the stream: `backup_manifest`, so that whoever takes it apart can check each file as
//! it comes; the label and the map; everything else by name; `global/pg_control` last. Links stay
//! behind, those of the tablespaces included: they lead somewhere else where the set goes.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use walmgr_protocol::limits::{SET_TABLESPACES_MAX, SMALL_FILE_BYTES_MAX};
use walmgr_protocol::names::{Lsn, RelativePath};

use super::BackupSets;
use super::error::SetError;
use super::list::HeldSet;
use crate::pg::old_files::may_be_taken;
use crate::pg::{layout, tablespace_map};
use crate::store::StoreError;
use crate::store::durable::TREE_DEPTH_MAX;
use crate::store::tree::Node;
use crate::tar::writer;

/// What is read at once.
const PIECE_BYTES: usize = 256 << 10;

/// Sent before everything else, in this order.
const FIRST: [&str; 3] = [
    layout::BACKUP_MANIFEST,
    layout::BACKUP_LABEL,
    layout::TABLESPACE_MAP,
];

/// What a set holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetContent {
    /// Length of its stream.
    pub stream_bytes: u64,
    /// Bytes outside its tablespaces.
    pub bytes: u64,
    /// Its tablespaces, by OID.
    pub tablespaces: BTreeMap<u32, StreamedTablespace>,
}

/// A tablespace of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamedTablespace {
    /// Where it was on the master.
    pub location: PathBuf,
    /// Bytes in it.
    pub bytes: u64,
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streamed {
    /// All of it went out.
    Whole,
    /// Whoever takes it has seen enough.
    Stopped,
}

impl BackupSets {
    /// Holds the set with this label, whatever its name is by now.
    pub fn hold_labelled(&self, start: Lsn, start_time: &str) -> Result<Option<HeldSet>, SetError> {
        // A rotation may rename it between the two looks, but only once.
        for _ in 0..3 {
            let wanted = self.list()?.into_iter().find(|set| {
                let label = set.label.as_ref();
                label.is_ok_and(|label| label.start == start && label.start_time == start_time)
            });
            let Some(wanted) = wanted else {
                return Ok(None);
            };
            match self.hold(&wanted.name) {
                Ok(held) if held.label().start == start => return Ok(Some(held)),
                Ok(_) | Err(SetError::Absent { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

impl HeldSet {
    /// What the set holds; `major` is the version that made it.
    pub fn content(&self, major: u8) -> Result<SetContent, SetError> {
        let mut tablespaces = self.tablespaces(major)?;
        let mut bytes = 0;
        let mut count = |path: &[u8], size: u64| match tablespace_of(path) {
            Some(oid) => match tablespaces.get_mut(&oid) {
                Some(space) => space.bytes += size,
                None => bytes += size,
            },
            None => bytes += size,
        };
        let mut nobody = |_: &[u8]| true;
        let mut sender = TarSender::new(self, u64::MAX, &mut nobody);
        let walked = sender.walk(&mut count);
        let stream_bytes = sender.position;
        walked.map_err(Halt::into_error)?;
        Ok(SetContent {
            stream_bytes,
            bytes,
            tablespaces,
        })
    }

    /// Hands the stream from an offset on to `each`, piece by piece. Ends when `each` has seen enough.
    pub fn stream(
        &self,
        from: u64,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Streamed, SetError> {
        TarSender::new(self, from, each).send()
    }

    /// Hands the outline of the stream to `each`, from an offset on: the stream without the files that a receiver may
    /// take from an old data directory. Ends when `each` has seen enough.
    pub fn outline(
        &self,
        from: u64,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Streamed, SetError> {
        let mut sender = TarSender::new(self, from, each);
        sender.is_outline = true;
        sender.send()
    }

    /// What `tablespace_map` says; fails where the set lacks what that names.
    fn tablespaces(&self, major: u8) -> Result<BTreeMap<u32, StreamedTablespace>, SetError> {
        let wrong = |why: String| SetError::InTheWay {
            path: self.path().clone(),
            why,
        };
        let map = match self.small_file(FIRST[2])? {
            Some(map) => Some(map),
            None => self.small_file(layout::TABLESPACE_MAP_DONE)?,
        };
        let map = tablespace_map::parse(&map.unwrap_or_default(), major);
        let map = map.map_err(|fault| wrong(format!("its tablespace_map: {fault}")))?;
        if map.len() > usize::from(SET_TABLESPACES_MAX) {
            return Err(wrong(format!("it has {} tablespaces", map.len())));
        }
        let mut tablespaces = BTreeMap::new();
        for space in map {
            let oid = OsString::from(space.oid.to_string());
            let is_there = [layout::TMPSPC, layout::PG_TBLSPC].iter().any(|above| {
                let disk = &self.sets.parent.disk;
                let above = disk.enter(self.directory(), OsStr::new(above));
                let node = above.and_then(|above| disk.node(above.as_fd(), &oid));
                matches!(node, Ok(Node::Directory))
            });
            if !is_there {
                let above = Path::new(layout::TMPSPC);
                for path in [above.to_path_buf(), above.join(&oid)] {
                    if self.path().join(&path).is_symlink() {
                        self.pass_over(&path)?;
                    }
                }
                let location = space.location.display();
                return Err(wrong(format!(
                    "it does not hold the tablespace {location} (OID {})",
                    space.oid
                )));
            }
            let location = space.location;
            tablespaces.insert(space.oid, StreamedTablespace { location, bytes: 0 });
        }
        Ok(tablespaces)
    }

    fn small_file(&self, name: &str) -> Result<Option<Vec<u8>>, SetError> {
        let parent = &self.sets.parent;
        let path = Path::new(name);
        match parent.disk.node(self.directory(), name.as_ref()) {
            Ok(Node::File(len)) if len <= SMALL_FILE_BYTES_MAX => {}
            Ok(_) => return Err(self.broken("read", path, io::ErrorKind::InvalidData.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.broken("examine", path, error)),
        }
        let file = parent.disk.open_file(self.directory(), name.as_ref());
        let file = file.map_err(|error| self.broken("open", path, error))?;
        let mut bytes = Vec::new();
        parent.read_through(file.as_fd(), name, |piece| {
            bytes.extend_from_slice(piece);
            bytes.len() as u64 <= SMALL_FILE_BYTES_MAX
        })?;
        Ok(Some(bytes))
    }

    fn broken(&self, op: &'static str, path: &Path, source: io::Error) -> SetError {
        let path = self.path().join(path);
        SetError::Store(StoreError::Disk { op, path, source })
    }
}

/// The tablespace that a file lies in.
fn tablespace_of(path: &[u8]) -> Option<u32> {
    layout::tablespace_of(path, layout::TMPSPC).map(|(oid, _)| oid)
}

/// Why a stream does not go on.
enum Halt {
    Stopped,
    Failed(SetError),
}

impl From<SetError> for Halt {
    fn from(error: SetError) -> Self {
        Halt::Failed(error)
    }
}

impl Halt {
    fn into_error(self) -> SetError {
        match self {
            Halt::Failed(error) => error,
            Halt::Stopped => SetError::GivenUp {
                why: "nobody wanted the rest".to_owned(),
                needs_full: false,
            },
        }
    }
}

/// Hears of every file and its size.
type Count<'a> = &'a mut dyn FnMut(&[u8], u64);

struct TarSender<'a> {
    set: &'a HeldSet,
    each: &'a mut dyn FnMut(&[u8]) -> bool,
    /// Where the taker begins; what lies before is only counted.
    from: u64,
    /// Whether files stay behind that an old data directory may have.
    is_outline: bool,
    position: u64,
    header: Vec<u8>,
    buffer: Vec<u8>,
}

impl<'a> TarSender<'a> {
    fn new(set: &'a HeldSet, from: u64, each: &'a mut dyn FnMut(&[u8]) -> bool) -> Self {
        TarSender {
            set,
            each,
            from,
            is_outline: false,
            position: 0,
            header: Vec::new(),
            buffer: Vec::new(),
        }
    }

    fn send(mut self) -> Result<Streamed, SetError> {
        match self.walk(&mut |_, _| {}) {
            Ok(()) => Ok(Streamed::Whole),
            Err(Halt::Stopped) => Ok(Streamed::Stopped),
            Err(Halt::Failed(error)) => Err(error),
        }
    }

    fn walk(&mut self, count: Count<'_>) -> Result<(), Halt> {
        let root = self.set.directory();
        for name in FIRST {
            self.file_if_there(root, name.as_ref(), Path::new(name), count)?;
        }
        self.directory(root, Path::new(""), count)?;
        let control = Path::new(layout::PG_CONTROL);
        let (Some(above), Some(name)) = (control.parent(), control.file_name()) else {
            return self.put(&writer::END);
        };
        match self.set.sets.parent.disk.enter(root, above.as_os_str()) {
            Ok(above) => self.file_if_there(above.as_fd(), name, control, count)?,
            // A set without a control file is of no use, which whoever takes it will notice.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.set.broken("open", above, error).into()),
        }
        self.put(&writer::END)
    }

    fn directory(
        &mut self,
        here: BorrowedFd<'_>,
        path: &Path,
        count: Count<'_>,
    ) -> Result<(), Halt> {
        let set = self.set;
        let disk = &set.sets.parent.disk;
        if path.components().count() > TREE_DEPTH_MAX {
            return Err(set.broken("list", path, Errno::LOOP.into()).into());
        }
        let names = disk.entries(here);
        let mut names = names.map_err(|error| set.broken("list", path, error))?;
        names.sort();
        for name in names {
            let path = path.join(&name);
            let node = disk.node(here, &name);
            match node.map_err(|error| set.broken("examine", &path, error))? {
                Node::File(_) if is_special(&path) => {}
                Node::File(_) if self.is_outline && may_be_taken(&self.checked(&path)?) => {}
                Node::File(size) => self.file(here, &name, &path, size, count)?,
                Node::Directory => {
                    let below = disk.enter(here, &name);
                    let below = below.map_err(|error| set.broken("open", &path, error))?;
                    let checked = self.checked(&path)?;
                    self.header.clear();
                    writer::put_directory(&mut self.header, checked.as_bytes());
                    self.put_header()?;
                    self.directory(below.as_fd(), &path, count)?;
                }
                Node::Link | Node::Other => set.pass_over(&path)?,
            }
        }
        Ok(())
    }

    fn file_if_there(
        &mut self,
        here: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        count: Count<'_>,
    ) -> Result<(), Halt> {
        match self.set.sets.parent.disk.node(here, name) {
            Ok(Node::File(size)) => self.file(here, name, path, size, count),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.set.broken("examine", path, error).into()),
        }
    }

    fn file(
        &mut self,
        here: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        size: u64,
        count: Count<'_>,
    ) -> Result<(), Halt> {
        let checked = self.checked(path)?;
        count(checked.as_bytes(), size);
        self.header.clear();
        writer::put_file(&mut self.header, checked.as_bytes(), size, 0);
        self.put_header()?;
        if self.position + size <= self.from {
            self.position += size;
        } else {
            let file = self.set.sets.parent.disk.open_file(here, name);
            let file = file.map_err(|error| self.set.broken("open", path, error))?;
            self.content(&file, path, size)?;
        }
        let padding = writer::padding(size);
        self.put(&[0; writer::BLOCK_BYTES][..padding])
    }

    fn content(&mut self, file: &OwnedFd, path: &Path, size: u64) -> Result<(), Halt> {
        let begin = self.position;
        let skipped = self.from.saturating_sub(begin);
        self.position = begin + skipped;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(PIECE_BYTES, 0);
        while self.position < begin + size {
            let left = begin + size - self.position;
            let want = usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
            let offset = self.position - begin;
            let disk = &self.set.sets.parent.disk;
            let read = disk.read(file.as_fd(), &mut buffer[..want], offset);
            let read_bytes = read.map_err(|error| self.set.broken("read", path, error))?;
            if read_bytes == 0 {
                // A set does not change, so this one is damaged.
                let error = io::ErrorKind::UnexpectedEof.into();
                return Err(self.set.broken("read", path, error).into());
            }
            self.put(&buffer[..read_bytes])?;
        }
        self.buffer = buffer;
        Ok(())
    }

    fn checked(&self, path: &Path) -> Result<RelativePath, Halt> {
        let checked = RelativePath::new(path.as_os_str().as_bytes());
        Ok(checked.map_err(|error| SetError::InTheWay {
            path: self.set.path().join(path),
            why: error.to_string(),
        })?)
    }

    fn put_header(&mut self) -> Result<(), Halt> {
        let header = std::mem::take(&mut self.header);
        let put = self.put(&header);
        self.header = header;
        put
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Halt> {
        let skipped = self.from.saturating_sub(self.position);
        self.position += bytes.len() as u64;
        let skipped = usize::try_from(skipped).map_or(bytes.len(), |skip| skip.min(bytes.len()));
        let rest = &bytes[skipped..];
        match rest.is_empty() || (self.each)(rest) {
            true => Ok(()),
            false => Err(Halt::Stopped),
        }
    }
}

/// Whether a file is sent at another place, or not at all.
fn is_special(path: &Path) -> bool {
    let is = |name: &str| path == Path::new(name);
    FIRST.into_iter().any(is) || layout::OF_A_SERVER.into_iter().any(is) || is(layout::PG_CONTROL)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        back_up, held_sample, lease, real_sets, sample_files, wal_proof, whole_version,
    };
    use super::*;
    use crate::store::testing::scratch_folder;
    use crate::tar::{TarReader, TarStep};

    fn stream_from(set: &HeldSet, from: u64) -> Vec<u8> {
        let mut stream = Vec::new();
        let ended = set.stream(from, &mut |bytes| {
            stream.extend_from_slice(bytes);
            true
        });
        assert_eq!(ended.unwrap(), Streamed::Whole);
        stream
    }

    #[test]
    fn the_stream_holds_the_whole_set_and_its_control_file_last() {
        let folder = scratch_folder();
        let set = held_sample(folder.path());
        let stream = stream_from(&set, 0);
        let content = set.content(15).unwrap();
        assert_eq!(content.stream_bytes, stream.len() as u64);
        let (mut reader, mut rest) = (TarReader::default(), &stream[..]);
        let (mut names, mut bytes) = (Vec::new(), 0);
        loop {
            match reader.next(&mut rest).unwrap() {
                TarStep::Entry(entry) => names.push(entry.path.to_string()),
                TarStep::Data(data) => bytes += data.len() as u64,
                TarStep::FileEnd => {}
                TarStep::NeedMore => break,
            }
        }
        reader.finish().unwrap();
        assert_eq!(names[..2], ["backup_manifest", "backup_label"]);
        assert_eq!(names.last().unwrap(), "global/pg_control");
        for name in sample_files(1).keys() {
            assert_eq!(names.iter().filter(|found| *found == name).count(), 1);
        }
        let length = |name| std::fs::metadata(set.path().join(name)).unwrap().len();
        let small = length("backup_label") + length("backup_manifest");
        let sizes = sample_files(1)
            .values()
            .map(|content| content.len() as u64)
            .sum::<u64>();
        assert_eq!(bytes, sizes + small);
        // The sample has no map, so what is below tmpspc counts as part of the set.
        assert_eq!(content.bytes, bytes);
        assert_eq!(whole_version(set.path()), Ok(1));
    }

    #[test]
    fn a_stream_goes_on_at_any_offset() {
        let folder = scratch_folder();
        let set = held_sample(folder.path());
        let stream = stream_from(&set, 0);
        for from in (0..stream.len())
            .step_by(97)
            .chain([stream.len() - 1, stream.len()])
        {
            assert!(stream_from(&set, from as u64) == stream[from..], "{from}");
        }
        let ended = set.stream(0, &mut |_| false).unwrap();
        assert_eq!(ended, Streamed::Stopped);
    }

    #[test]
    fn a_set_is_found_by_its_label_whatever_its_name_is() {
        let folder = scratch_folder();
        let first = held_sample(folder.path());
        let (start, time) = (first.label().start, first.label().start_time.clone());
        let sets = real_sets(folder.path());
        drop(first);
        let lease = lease(&sets).unwrap();
        back_up(&sets, &lease, 2, &wal_proof(folder.path())).unwrap();
        let found = sets.hold_labelled(start, &time).unwrap().unwrap();
        assert_eq!(found.name().to_string(), "data.master.0");
        assert_eq!(whole_version(found.path()), Ok(1));
        assert!(sets.hold_labelled(start, "another time").unwrap().is_none());
    }

    #[test]
    fn tablespaces_are_counted_where_they_lie_and_missing_ones_are_named() {
        let folder = scratch_folder();
        let set = held_sample(folder.path());
        let map = set.path().join("tablespace_map");
        std::fs::write(&map, "16385 /srv/fast\n").unwrap();
        let content = set.content(15).unwrap();
        let space = &content.tablespaces[&16_385];
        assert_eq!(
            (space.bytes, space.location.to_str()),
            (513, Some("/srv/fast"))
        );
        std::fs::write(&map, "16385 /srv/fast\n99 /srv/gone\n").unwrap();
        let error = set.content(15).unwrap_err().to_string();
        assert!(error.contains("/srv/gone"), "{error}");
    }
}
