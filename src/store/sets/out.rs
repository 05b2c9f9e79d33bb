//! Takes a set out of the archive: copied into a new directory, or moved there.
//! Never writes into a set, and never follows a link in one, which is refused where it stands for data. Invariant: the directory it makes has
//! no `global/pg_control`, without which PostgreSQL does not start, before all of it is durable;
//! nor does this give it that name: whoever asked for it does, when everything else is done.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use walmgr_protocol::limits::MANIFEST_BYTES_MAX;
use walmgr_protocol::names::{BackupName, RelativePath};

use super::BackupSets;
use super::delta::DeltaSource;
use super::error::SetError;
use super::list::HeldSet;
use super::lock::{Mode, NamesLock};
use crate::files;
use crate::pg::layout;
use crate::pg::listed::Listed;
use crate::pg::manifest::ManifestFault;
use crate::pg::old_files;
use crate::store::StoreError;
use crate::store::durable::{self, TREE_DEPTH_MAX};
use crate::store::tree::Node;

/// One read and one write each.
const PIECE_BYTES: usize = old_files::PIECE_BYTES;

/// How much is written before its write-back is started.
const WRITEBACK_BYTES: u64 = 16 << 20;

/// How much a set holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetSize {
    /// Bytes outside its tablespaces.
    pub bytes: u64,
    /// Bytes in each tablespace, by its OID.
    pub tablespaces: BTreeMap<OsString, u64>,
}

/// How a set is to be copied.
pub struct Copying<'a> {
    /// The directory to make, unless it is there; no file of the set may be in it.
    pub to: &'a Path,
    /// What `global/pg_control` is called there.
    pub control_name: &'a str,
    /// Where the content of a tablespace goes, by its OID: into a directory that exists. The others
    /// stay where the set has them.
    pub tablespaces: &'a BTreeMap<OsString, PathBuf>,
    /// Whether files share their content with the set's where the file system can do that. All of it is read and
    /// compared all the same.
    pub shares: bool,
    /// Files of an old data directory that are taken over where they are what the manifest lists, but for blocks.
    pub taken: Option<&'a mut DeltaSource>,
    /// Hears how many bytes more were written; whether to go on.
    pub progress: &'a mut dyn FnMut(u64) -> bool,
}

impl HeldSet {
    /// Adds up the lengths of its files.
    pub fn size(&self) -> Result<SetSize, SetError> {
        let mut size = SetSize::default();
        self.add_up(self.directory(), Path::new(""), &mut size)?;
        Ok(size)
    }

    fn add_up(
        &self,
        here: BorrowedFd<'_>,
        path: &Path,
        size: &mut SetSize,
    ) -> Result<(), SetError> {
        let disk = &self.sets.parent.disk;
        let failed = |op, path: &Path, error| self.failure(op, path, error);
        if path.components().count() > TREE_DEPTH_MAX {
            return Err(failed("list", path, Errno::LOOP.into()));
        }
        let names = disk.entries(here);
        for name in names.map_err(|error| failed("list", path, error))? {
            let path = path.join(&name);
            match disk.node(here, &name) {
                Ok(Node::File(len)) => match tablespace_of(&path) {
                    Some(oid) => *size.tablespaces.entry(oid.to_owned()).or_default() += len,
                    None => size.bytes += len,
                },
                Ok(Node::Directory) => {
                    let below = disk.enter(here, &name);
                    let below = below.map_err(|error| failed("open", &path, error))?;
                    if let Some(oid) = tablespace_of(&path) {
                        size.tablespaces.entry(oid.to_owned()).or_default();
                    }
                    self.add_up(below.as_fd(), &path, size)?;
                }
                Ok(Node::Link | Node::Other) => self.pass_over(&path)?,
                Err(error) => return Err(failed("examine", &path, error)),
            }
        }
        Ok(())
    }

    /// Copies the set and makes the copy durable; fails if what was read is not what the set's
    /// manifest lists. Links stay behind, those of the tablespaces included. A copy that failed is
    /// worth nothing and is for the caller to remove.
    pub fn copy<'a>(&'a self, copying: Copying<'a>) -> Result<(), SetError> {
        let disk = &self.sets.parent.disk;
        let made = unless_there(disk.create_directory(copying.to));
        let opened = made.and_then(|()| disk.open_directory(copying.to));
        let root = opened.map_err(|error| failure("create", copying.to, error))?;
        let mut copier = Copier {
            set: self,
            copying,
            listed: self.listed()?,
            spaces: Vec::new(),
            buffer: vec![0; PIECE_BYTES],
        };
        copier.directory(self.directory(), root.as_fd(), Path::new(""))?;
        if let Some(listed) = &copier.listed {
            let finished = listed.finish();
            finished.map_err(|(path, why)| SetError::Manifest { path, why })?;
        }
        let parent = &self.sets.parent;
        let shown = copier.copying.to.display().to_string();
        parent.sync_tree(root.as_fd(), &shown)?;
        for (path, space) in &copier.spaces {
            parent.sync_tree(space.as_fd(), &path.display().to_string())?;
        }
        Ok(())
    }

    /// Reads the set and fails if it is not what its manifest lists. Nothing is written.
    pub fn verify<'a>(&'a self, progress: &'a mut dyn FnMut(u64)) -> Result<(), SetError> {
        let Some(listed) = self.listed()? else {
            return Ok(());
        };
        let mut verifier = Verifier {
            set: self,
            listed,
            progress,
            buffer: vec![0; PIECE_BYTES],
        };
        verifier.directory(self.directory(), Path::new(""))?;
        let finished = verifier.listed.finish();
        finished.map_err(|(path, why)| SetError::Manifest { path, why })
    }

    /// What its manifest lists; `None` for a set without one, which somebody made by hand.
    fn listed(&self) -> Result<Option<Listed>, SetError> {
        let Some(bytes) = self.manifest()? else {
            tracing::warn!(
                "{} has no manifest and is restored without a check",
                self.name()
            );
            return Ok(None);
        };
        let listed = Listed::parse(&bytes);
        listed.map(Some).map_err(|fault| self.bad_manifest(&fault))
    }

    pub(super) fn bad_manifest(&self, fault: &ManifestFault) -> SetError {
        SetError::InTheWay {
            path: self.path().join(layout::BACKUP_MANIFEST),
            why: fault.to_string(),
        }
    }

    /// Its manifest, if it has one.
    pub(super) fn manifest(&self) -> Result<Option<Vec<u8>>, SetError> {
        let parent = &self.sets.parent;
        let file = match parent
            .disk
            .open_file(self.directory(), layout::BACKUP_MANIFEST.as_ref())
        {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other
                .map_err(|error| self.failure("open", layout::BACKUP_MANIFEST.as_ref(), error))?,
        };
        let mut bytes = Vec::new();
        parent.read_through(
            file.as_fd(),
            &format!("{}/{}", self.name(), layout::BACKUP_MANIFEST),
            |piece| {
                bytes.extend_from_slice(piece);
                bytes.len() as u64 <= MANIFEST_BYTES_MAX
            },
        )?;
        Ok(Some(bytes))
    }

    /// Moves the set, which has to be taken before. Hands the set back if it would have to be copied: if `to` lies on
    /// another file system, or if the set's name is a link to a directory on one.
    pub fn move_to(self, to: &Path) -> Result<Option<HeldSet>, SetError> {
        let name = self.name().to_string();
        let parent = &self.sets.parent;
        let node = parent.disk.node(parent.handle(), name.as_ref());
        if node.is_ok_and(|node| node == Node::Link) {
            let target = std::fs::canonicalize(self.path());
            let home = target.and_then(|target| files::bring_home(self.path(), &target));
            if let Err(error) = home {
                tracing::debug!("{name} is copied, since it lies elsewhere: {error}");
                return Ok(Some(self));
            }
        }
        match durable::move_directory(parent.handle(), &name, to) {
            Ok(()) => Ok(None),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::XDEV) => Ok(Some(self)),
            Err(error) => Err(failure("move a backup set to", to, error)),
        }
    }

    pub(super) fn failure(&self, op: &'static str, path: &Path, error: io::Error) -> SetError {
        failure(op, &self.path().join(path), error)
    }

    /// Goes on without what is neither file nor directory, unless PostgreSQL has data there: an
    /// administrator may have moved it. It is not followed, as nobody would know what belongs to the set when
    /// that is rotated, moved or removed.
    pub(super) fn pass_over(&self, path: &Path) -> Result<(), SetError> {
        if !is_data(path) {
            return Ok(());
        }
        let path = self.path().join(path);
        let why = match std::fs::read_link(&path) {
            Ok(target) => format!(
                "a link to {}, but only a whole set may lie elsewhere: remove the link, and move \
                its target here",
                target.display()
            ),
            Err(_) => "neither a file nor a directory".to_owned(),
        };
        Err(SetError::InTheWay { path, why })
    }
}

/// Whether a server that lacks what a set has under this name has lost something. `pg_wal` and the log are made
/// anew, links to tablespaces are too, and what an administrator keeps beside the data is no part of it.
fn is_data(path: &Path) -> bool {
    let mut components = path.iter().filter_map(OsStr::to_str);
    let Some(first) = components.next() else {
        return false;
    };
    let is_below = components.next().is_some();
    match first {
        layout::PG_TBLSPC => !is_below || components.next().is_some(),
        layout::PG_WAL | "pg_log" => false,
        layout::BASE | layout::GLOBAL | layout::TMPSPC => true,
        name => name.starts_with("pg_") && !name.ends_with(".conf"),
    }
}

impl BackupSets {
    /// Gives a set that was moved away, and not changed since, its name back.
    pub fn put_back(&self, from: &Path, name: &BackupName) -> Result<(), SetError> {
        let _names = NamesLock::acquire(&self.parent, &self.lock_name(), Mode::Alone)?;
        self.ensure_no_intent()?;
        let to = self.path_of(&name.to_string());
        let above = from.parent().unwrap_or(Path::new("/"));
        let moved = (self.parent.disk.open_directory(above)).and_then(|above| {
            let from = from.file_name().and_then(OsStr::to_str).unwrap_or_default();
            durable::move_directory(above.as_fd(), from, &to)
        });
        moved.map_err(|error| failure("move a backup set to", &to, error))
    }

    /// Removes a set that was taken. Killed in between, the next backup removes the rest.
    pub fn discard(&self, taken: HeldSet) -> Result<(), SetError> {
        self.set_aside(&taken.name().to_string())?;
        drop(taken);
        self.sweep().map(drop)
    }
}

fn unless_there(made: io::Result<()>) -> io::Result<()> {
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

pub(super) fn failure(op: &'static str, path: &Path, source: io::Error) -> SetError {
    let path = path.to_path_buf();
    SetError::Store(StoreError::Disk { op, path, source })
}

/// The tablespace that a path of a set lies in, or is.
fn tablespace_of(path: &Path) -> Option<&OsStr> {
    let mut components = path.iter();
    let is_below = components.next() == Some(OsStr::new(layout::TMPSPC));
    components.next().filter(|_| is_below)
}

pub(super) struct Copier<'a> {
    pub(super) set: &'a HeldSet,
    pub(super) copying: Copying<'a>,
    /// The files of the manifest that were not copied yet.
    listed: Option<Listed>,
    /// The directories outside that tablespaces went to, opened before anything was written there.
    spaces: Vec<(PathBuf, OwnedFd)>,
    pub(super) buffer: Vec<u8>,
}

impl Copier<'_> {
    fn directory(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &Path,
    ) -> Result<(), SetError> {
        if path.components().count() > TREE_DEPTH_MAX {
            return Err(self.set.failure("copy", path, Errno::LOOP.into()));
        }
        let disk = &self.set.sets.parent.disk;
        let names = disk.entries(from);
        for name in names.map_err(|error| self.set.failure("list", path, error))? {
            let path = path.join(&name);
            let node = disk.node(from, &name);
            match node.map_err(|error| self.set.failure("examine", &path, error))? {
                Node::File(_) if layout::OF_A_SERVER.iter().any(|of| path == Path::new(of)) => {}
                Node::File(_) => self.file(from, to, &path)?,
                Node::Directory => {
                    let below = disk.enter(from, &name);
                    let below = below.map_err(|error| self.set.failure("open", &path, error))?;
                    let made = self.make_directory(to, &path, &name)?;
                    self.directory(below.as_fd(), made.as_fd(), &path)?;
                }
                Node::Link | Node::Other => {
                    self.set.pass_over(&path)?;
                    if !path.starts_with(layout::PG_TBLSPC) {
                        tracing::warn!("{} is not a file and is left out", path.display());
                    }
                }
            }
        }
        Ok(())
    }

    /// The directory for `path`: where its tablespace goes, or `name` below `to`.
    fn make_directory(
        &mut self,
        to: BorrowedFd<'_>,
        path: &Path,
        name: &OsStr,
    ) -> Result<OwnedFd, SetError> {
        let disk = &self.set.sets.parent.disk;
        let is_root = path.iter().count() == 2;
        let mapped = tablespace_of(path).filter(|_| is_root);
        if let Some(space) = mapped.and_then(|oid| self.copying.tablespaces.get(oid)) {
            let open = || disk.open_directory(space);
            let failed = |error| failure("open", space, error);
            self.spaces.push((space.clone(), open().map_err(failed)?));
            return open().map_err(failed);
        }
        let made = unless_there(disk.make_directory(to, name));
        let made = made.and_then(|()| disk.enter(to, name));
        made.map_err(|error| self.failure("create", path, error))
    }

    fn file(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &Path,
    ) -> Result<(), SetError> {
        let disk = &self.set.sets.parent.disk;
        let name = path.file_name().unwrap_or_default();
        let new_name = match path == Path::new(layout::PG_CONTROL) {
            true => OsStr::new(self.copying.control_name),
            false => name,
        };
        if let Some((len, crc32c)) = self.move_over(from, to, path)? {
            return self.compare(path, len, crc32c);
        }
        let source = disk.open_file(from, name);
        let source = source.map_err(|error| self.set.failure("open", path, error))?;
        let file = disk.make_file(to, new_name);
        let file = file.map_err(|error| self.failure("create", path, error))?;
        if let Some((len, crc32c)) = self.clone_over(source.as_fd(), file.as_fd(), to, path)? {
            (disk.close(file)).map_err(|error| self.failure("close", path, error))?;
            return self.compare(path, len, crc32c);
        }
        let is_shared =
            self.copying.shares && disk.share_content(source.as_fd(), file.as_fd()).is_ok();
        // What PostgreSQL will read, if it is there already.
        let read_from = match is_shared {
            true => disk.open_file(to, new_name),
            false => Ok(source),
        };
        let read_from = read_from.map_err(|error| self.failure("open", path, error))?;
        let (mut offset_bytes, mut writeback_bytes, mut crc32c) = (0, 0, 0);
        loop {
            let read_bytes = disk.read(read_from.as_fd(), &mut self.buffer, offset_bytes);
            let read_bytes = read_bytes.map_err(|error| self.set.failure("read", path, error))?;
            if read_bytes == 0 {
                break;
            }
            let piece = &self.buffer[..read_bytes];
            crc32c = crc32c::crc32c_append(crc32c, piece);
            if !is_shared {
                disk.write_all(file.as_fd(), piece, offset_bytes)
                    .map_err(|error| self.failure("write", path, error))?;
            }
            offset_bytes += read_bytes as u64;
            if !(self.copying.progress)(read_bytes as u64) {
                return Err(SetError::Interrupted);
            }
            if !is_shared && offset_bytes - writeback_bytes >= WRITEBACK_BYTES {
                // Advice only: the sync at the end is what counts.
                let len = offset_bytes - writeback_bytes;
                let _ = disk.start_writeback(file.as_fd(), writeback_bytes, len);
                writeback_bytes = offset_bytes;
            }
        }
        disk.close(file)
            .map_err(|error| self.failure("close", path, error))?;
        self.count_copied(offset_bytes);
        self.compare(path, offset_bytes, crc32c)
    }

    /// Refuses a file that is not the manifest's: PostgreSQL would not notice before it reads it.
    fn compare(&mut self, path: &Path, len: u64, crc32c: u32) -> Result<(), SetError> {
        match &mut self.listed {
            Some(listed) => compare(self.set, listed, path, len, crc32c),
            None => Ok(()),
        }
    }

    pub(super) fn failure(&self, op: &'static str, path: &Path, error: io::Error) -> SetError {
        failure(op, &self.copying.to.join(path), error)
    }
}

fn compare(
    set: &HeldSet,
    listed: &mut Listed,
    path: &Path,
    len: u64,
    crc32c: u32,
) -> Result<(), SetError> {
    let path = RelativePath::new(path.as_os_str().as_bytes()).map_err(|error| {
        let path = set.path().join(path);
        let why = error.to_string();
        SetError::InTheWay { path, why }
    })?;
    let passed = listed.pass(&path, len, crc32c);
    passed.map_err(|why| SetError::Manifest { path, why })
}

struct Verifier<'a> {
    set: &'a HeldSet,
    /// The files of the manifest that were not read yet.
    listed: Listed,
    /// Hears how many bytes more were read.
    progress: &'a mut dyn FnMut(u64),
    buffer: Vec<u8>,
}

impl Verifier<'_> {
    fn directory(&mut self, here: BorrowedFd<'_>, path: &Path) -> Result<(), SetError> {
        if path.components().count() > TREE_DEPTH_MAX {
            return Err(self.set.failure("read", path, Errno::LOOP.into()));
        }
        let disk = &self.set.sets.parent.disk;
        let names = disk.entries(here);
        for name in names.map_err(|error| self.set.failure("list", path, error))? {
            let path = path.join(&name);
            let node = disk.node(here, &name);
            match node.map_err(|error| self.set.failure("examine", &path, error))? {
                Node::File(_) => self.file(here, &path)?,
                Node::Directory => {
                    let below = disk.enter(here, &name);
                    let below = below.map_err(|error| self.set.failure("open", &path, error))?;
                    self.directory(below.as_fd(), &path)?;
                }
                Node::Link | Node::Other => self.set.pass_over(&path)?,
            }
        }
        Ok(())
    }

    fn file(&mut self, here: BorrowedFd<'_>, path: &Path) -> Result<(), SetError> {
        let disk = &self.set.sets.parent.disk;
        let failed = |op, error| self.set.failure(op, path, error);
        let file = disk.open_file(here, path.file_name().unwrap_or_default());
        let file = file.map_err(|error| failed("open", error))?;
        let (mut len, mut crc32c) = (0, 0);
        loop {
            let read_bytes = disk.read(file.as_fd(), &mut self.buffer, len);
            let read_bytes = read_bytes.map_err(|error| failed("read", error))?;
            if read_bytes == 0 {
                return compare(self.set, &mut self.listed, path, len, crc32c);
            }
            crc32c = crc32c::crc32c_append(crc32c, &self.buffer[..read_bytes]);
            len += read_bytes as u64;
            (self.progress)(read_bytes as u64);
        }
    }
}
