//! What a base backup takes of a data directory: the files that `pg_basebackup` takes, and no other.
//! Never reads a file's content and never follows a link but `pg_tblspc` and those in it. Invariant:
//! whatever lies in the directory, nothing outside it and its tablespaces is listed or opened.
//!
//! Which names are left out is `sendDir`'s rule (`src/backend/replication/basebackup.c` up to 14,
//! `src/backend/backup/basebackup.c` from 15 on). Of files that come and go meanwhile WAL knows.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::{Errno, retry_on_intr};

use walmgr_protocol::limits::SET_ENTRIES_MAX;
use walmgr_protocol::names::RelativePath;

use super::control;
use super::data_directory::DataDirectory;
use super::relation::{Fork, RelationFile, TABLESPACE_LINKS, is_database};
use super::tablespace_map::oid_of;
use crate::error::{CommandError, Kind, Result};

/// A file as it was when it was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its path as PostgreSQL sees it: files of tablespaces are below `pg_tblspc/OID`.
    pub path: RelativePath,
    /// Its length in bytes.
    pub size: u64,
    /// When it was changed last, in seconds since 1970.
    pub modified_s: i64,
}

/// What a backup takes, and where it is.
pub struct Listing {
    /// Where the files are opened.
    pub roots: Roots,
    /// The OIDs of the tablespaces that are links. Those in place, which `allow_in_place_tablespaces`
    /// makes, are directories like any other.
    pub tablespaces: Vec<u32>,
    /// Every directory, each behind the one it is in.
    pub directories: Vec<RelativePath>,
    /// Every file but one.
    pub files: Vec<File>,
    /// `global/pg_control`, which is read last: what it says must not be older than the files.
    pub control: File,
    /// What is no file and no directory, and so in no backup.
    pub passed_over: Vec<PassedOver>,
}

/// Something that a person put into the data directory, and might miss in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver {
    /// Where it is.
    pub path: RelativePath,
    /// Why it is not taken.
    pub why: WhyNot,
}

/// Why something is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyNot {
    /// A symbolic link that is no tablespace.
    Link,
    /// A tablespace whose directory does not exist.
    Dangling,
    /// A socket, FIFO or device.
    Special,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.why {
            WhyNot::Link => "a symbolic link",
            WhyNot::Dangling => "a link to a directory that does not exist",
            WhyNot::Special => "neither a file nor a directory",
        };
        write!(out, "{} is {why}", self.path)
    }
}

/// The directory and its tablespaces, held open.
pub struct Roots {
    data: OwnedFd,
    /// `pg_tblspc`, which may be a link itself.
    links: OwnedFd,
    tablespaces: BTreeMap<u32, OwnedFd>,
}

impl Roots {
    /// Opens a listed file for reading. `NotFound` when it has been removed since.
    pub fn open_file(&self, file: &File) -> io::Result<std::fs::File> {
        let mut components = file.path.components().peekable();
        let mut here = Entered::Root(self.data.as_fd());
        if let Some((handle, skipped)) = self.tablespace_of(&file.path) {
            here = Entered::Root(handle);
            components.by_ref().take(skipped).for_each(drop);
        }
        while let Some(component) = components.next() {
            if components.peek().is_some() {
                here = Entered::Below(enter(here.as_fd(), component)?);
                continue;
            }
            // Without waiting: a FIFO that took the name must not hold up a backup.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let opened = retry_on_intr(|| openat(here.as_fd(), component, flags, Mode::empty()))?;
            if !is(&fstat(&opened)?, FileType::RegularFile) {
                return Err(io::Error::other("it is no longer a file"));
            }
            return Ok(opened.into());
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// The root that a path begins in and how many of its components lead there.
    fn tablespace_of(&self, path: &RelativePath) -> Option<(BorrowedFd<'_>, usize)> {
        let mut components = path.components();
        (components.next()? == TABLESPACE_LINKS.as_bytes()).then_some(())?;
        let oid = components.next().and_then(oid_of);
        let handle = oid.and_then(|oid| self.tablespaces.get(&oid));
        // Tablespaces in place are directories like any other.
        Some(handle.map_or((self.links.as_fd(), 1), |handle| (handle.as_fd(), 2)))
    }
}

enum Entered<'a> {
    Root(BorrowedFd<'a>),
    Below(OwnedFd),
}

impl AsFd for Entered<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Entered::Root(handle) => *handle,
            Entered::Below(handle) => handle.as_fd(),
        }
    }
}

/// Lists what a backup takes. What vanishes while it looks is left out; what cannot be read is an
/// error, because a backup without it would not be one.
pub fn walk(data: &DataDirectory) -> Result<Listing> {
    let catalog_version = data.control()?.catalog_version;
    let at_root = |error| failure(data.path(), error);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, data.path(), flags, Mode::empty()).map_err(at_root)?;
    let mut walker = Walker {
        data,
        version_directory: format!("PG_{}_{catalog_version}", data.major()),
        tablespaces: BTreeMap::new(),
        identities: HashSet::new(),
        directories: Vec::new(),
        files: Vec::new(),
        control: None,
        passed_over: Vec::new(),
    };
    let links = walker.open_tablespaces(root.as_fd())?;
    walker.directory(root.as_fd(), None)?;
    let roots = Roots {
        data: root,
        links,
        tablespaces: std::mem::take(&mut walker.tablespaces),
    };
    for (oid, handle) in &roots.tablespaces {
        let path = walker.path(None, format!("{TABLESPACE_LINKS}/{oid}").as_bytes())?;
        walker.directories.push(path.clone());
        walker.directory(handle.as_fd(), Some(&path))?;
    }
    Ok(Listing {
        tablespaces: roots.tablespaces.keys().copied().collect(),
        roots,
        directories: walker.directories,
        files: walker.files,
        control: walker.control.ok_or_else(|| {
            let path = data.path().join(control::FILE_NAME);
            failure(&path, Errno::NOENT)
        })?,
        passed_over: walker.passed_over,
    })
}

/// Deals files out to this many streams: the largest first, each to the stream that has least.
pub fn balance(mut files: Vec<File>, jobs: NonZeroUsize) -> Vec<Vec<File>> {
    /// What an empty file costs: its header, and the time to open it.
    const ENTRY_BYTES: u64 = 4096;
    files.sort_by(|one, other| {
        (Reverse(one.size), &one.path).cmp(&(Reverse(other.size), &other.path))
    });
    let mut streams: Vec<Vec<File>> = vec![Vec::new(); jobs.get()];
    let mut loads: BinaryHeap<Reverse<(u64, usize)>> =
        (0..jobs.get()).map(|index| Reverse((0, index))).collect();
    for file in files {
        let Some(Reverse((load, index))) = loads.pop() else {
            break;
        };
        let cost = file.size.saturating_add(ENTRY_BYTES);
        loads.push(Reverse((load.saturating_add(cost), index)));
        streams[index].push(file);
    }
    streams
}

struct Walker<'a> {
    data: &'a DataDirectory,
    /// `TABLESPACE_VERSION_DIRECTORY`: a tablespace may hold clusters of other versions too.
    version_directory: String,
    tablespaces: BTreeMap<u32, OwnedFd>,
    /// Device and inode of each: one inside the data directory is not taken twice.
    identities: HashSet<(u64, u64)>,
    directories: Vec<RelativePath>,
    files: Vec<File>,
    control: Option<File>,
    passed_over: Vec<PassedOver>,
}

/// What becomes of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Take,
    /// A directory without its content; also where a person made it a link.
    Empty,
    Omit,
}

impl Walker<'_> {
    fn open_tablespaces(&mut self, root: BorrowedFd<'_>) -> Result<OwnedFd> {
        let links = self.data.path().join(TABLESPACE_LINKS);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = enter_linked(root, TABLESPACE_LINKS.as_bytes());
        let folder = folder.map_err(|error| failure(&links, error))?;
        for name in names(folder.as_fd()).map_err(|error| failure(&links, error))? {
            let Some(oid) = oid_of(&name) else { continue };
            let is_link = |stat: &Stat| is(stat, FileType::Symlink);
            match statat(&folder, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if is_link(&stat) => {}
                _ => continue,
            }
            match openat(&folder, name.as_slice(), flags, Mode::empty()) {
                Ok(handle) => {
                    let stat = fstat(&handle).map_err(|error| failure(&links, error))?;
                    self.identities.insert(identity(&stat));
                    self.tablespaces.insert(oid, handle);
                }
                // Dropped while we look, or never there: the server goes on as well.
                Err(Errno::NOENT) => {
                    let path = format!("{TABLESPACE_LINKS}/{oid}");
                    let path = self.path(None, path.as_bytes())?;
                    let why = WhyNot::Dangling;
                    self.passed_over.push(PassedOver { path, why });
                }
                Err(error) => return Err(failure(&links.join(oid.to_string()), error)),
            }
        }
        Ok(folder)
    }

    /// Takes the content of a directory that is taken itself; the root has no path.
    fn directory(&mut self, handle: BorrowedFd<'_>, path: Option<&RelativePath>) -> Result<()> {
        let names = names(handle).map_err(|error| self.failure_at(path, error))?;
        let relations = path.is_some_and(is_database);
        let unlogged: HashSet<u32> = (names.iter().filter(|_| relations))
            .filter_map(|name| RelationFile::named(name))
            .filter(|file| file.fork == Fork::Init)
            .map(|file| file.number)
            .collect();
        for name in &names {
            let rule = match self.rule(path, name) {
                Rule::Take if relations => relation_rule(name, &unlogged),
                rule => rule,
            };
            if rule != Rule::Omit {
                self.entry(handle, path, name, rule)?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        handle: BorrowedFd<'_>,
        above: Option<&RelativePath>,
        name: &[u8],
        rule: Rule,
    ) -> Result<()> {
        let path = self.path(above, name)?;
        let stat = match statat(handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(self.failure_at(Some(&path), error)),
        };
        let file_type = FileType::from_raw_mode(stat.st_mode);
        match (file_type, rule) {
            (FileType::Directory | FileType::Symlink, Rule::Empty) => self.empty(path)?,
            (FileType::Symlink, _) if is_links(&path) => {
                let below = enter_linked(handle, name);
                let below = below.map_err(|error| self.failure_at(Some(&path), error))?;
                self.directories.push(path.clone());
                self.directory(below.as_fd(), Some(&path))?;
            }
            (FileType::Directory, _) => {
                let is_tablespace = self.identities.contains(&identity(&stat));
                match enter(handle, name) {
                    Ok(_) if is_tablespace => self.directories.push(path),
                    Ok(below) => {
                        self.directories.push(path.clone());
                        self.directory(below.as_fd(), Some(&path))?;
                    }
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(self.failure_at(Some(&path), error)),
                }
            }
            (FileType::RegularFile, _) => {
                let file = File {
                    size: u64::try_from(stat.st_size).unwrap_or_default(),
                    modified_s: stat.st_mtime,
                    path,
                };
                match file.path.as_bytes() == control::FILE_NAME.as_bytes() {
                    true => self.control = Some(file),
                    false => self.files.push(file),
                }
            }
            (FileType::Symlink, _) if self.is_tablespace(&path) => {}
            (FileType::Symlink, _) => {
                let why = WhyNot::Link;
                self.passed_over.push(PassedOver { path, why });
            }
            _ => {
                let why = WhyNot::Special;
                self.passed_over.push(PassedOver { path, why });
            }
        }
        self.ensure_bounded()
    }

    /// A directory without its content; `pg_wal` keeps those the server expects in it.
    fn empty(&mut self, path: RelativePath) -> Result<()> {
        let is_wal = path.as_bytes() == b"pg_wal";
        self.directories.push(path);
        if is_wal {
            let archive_status = self.path(None, b"pg_wal/archive_status")?;
            self.directories.push(archive_status);
            if self.data.major() >= 17 {
                let summaries = self.path(None, b"pg_wal/summaries")?;
                self.directories.push(summaries);
            }
        }
        Ok(())
    }

    fn rule(&self, above: Option<&RelativePath>, name: &[u8]) -> Rule {
        /// Temporary files, and caches of catalogs that the server builds anew.
        const OMITTED_PREFIXES: [&[u8]; 2] = [b"pgsql_tmp", b"pg_internal.init"];
        /// Of a running server, or of another backup.
        const OMITTED: [&[u8]; 7] = [
            b"postgresql.auto.conf.tmp",
            b"current_logfiles.tmp",
            b"backup_label",
            b"tablespace_map",
            b"backup_manifest",
            b"postmaster.pid",
            b"postmaster.opts",
        ];
        /// What the server renames them to; of a backup from which this cluster was restored.
        const OMITTED_IN_ROOT: [&[u8]; 2] = [b"backup_label.old", b"tablespace_map.old"];
        /// What a server that starts clears anyway, or what belongs to one server alone.
        const EMPTIED: [&[u8]; 7] = [
            b"pg_stat_tmp",
            b"pg_replslot",
            b"pg_dynshmem",
            b"pg_notify",
            b"pg_serial",
            b"pg_snapshots",
            b"pg_subtrans",
        ];
        let is_root = above.is_none();
        if OMITTED.contains(&name)
            || OMITTED_PREFIXES
                .iter()
                .any(|prefix| name.starts_with(prefix))
            || is_root && OMITTED_IN_ROOT.contains(&name)
        {
            return Rule::Omit;
        }
        if EMPTIED.contains(&name) || is_root && name == b"pg_wal" {
            return Rule::Empty;
        }
        match above {
            Some(above) if is_tablespace_root(above) => {
                match name == self.version_directory.as_bytes() {
                    true => Rule::Take,
                    false => Rule::Omit,
                }
            }
            _ => Rule::Take,
        }
    }

    fn is_tablespace(&self, path: &RelativePath) -> bool {
        let is_known = |oid| self.tablespaces.contains_key(&oid);
        // A link that was passed over already is not noted twice.
        let is_noted = || self.passed_over.iter().any(|noted| noted.path == *path);
        is_tablespace_root(path) && (oid_of(path.file_name()).is_some_and(is_known) || is_noted())
    }

    fn path(&self, above: Option<&RelativePath>, name: &[u8]) -> Result<RelativePath> {
        let joined = match above {
            Some(above) => &[above.as_bytes(), b"/", name].concat(),
            None => name,
        };
        RelativePath::new(joined).map_err(|error| {
            let doing = format!("list {}", self.data.path().display());
            CommandError::config(doing).because(error)
        })
    }

    /// A standby refuses a larger set; better now than when most of it is there.
    fn ensure_bounded(&self) -> Result<()> {
        let entries = self.directories.len() + self.files.len() + self.passed_over.len();
        match entries <= SET_ENTRIES_MAX {
            true => Ok(()),
            false => Err(CommandError::config(format!(
                "{} has more than {SET_ENTRIES_MAX} files, which is the most a backup can have",
                self.data.path().display()
            ))),
        }
    }

    fn failure_at(&self, path: Option<&RelativePath>, error: Errno) -> CommandError {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let below = path.map_or(OsStr::new(""), |path| OsStr::from_bytes(path.as_bytes()));
        failure(&self.data.path().join(below), error)
    }
}

/// Temporary relations die with their sessions; unlogged ones are reset from their `_init` fork.
fn relation_rule(name: &[u8], unlogged: &HashSet<u32>) -> Rule {
    match RelationFile::named(name) {
        Some(file) if file.is_temporary => Rule::Omit,
        Some(file) if file.fork != Fork::Init && unlogged.contains(&file.number) => Rule::Omit,
        _ => Rule::Take,
    }
}

/// `pg_tblspc`.
fn is_links(path: &RelativePath) -> bool {
    path.as_bytes() == TABLESPACE_LINKS.as_bytes()
}

/// `pg_tblspc/OID`.
fn is_tablespace_root(path: &RelativePath) -> bool {
    let above = path.parent();
    above.as_ref().is_some_and(is_links) && oid_of(path.file_name()).is_some()
}

/// Every name in a directory, sorted, so that two listings can be compared.
fn names(directory: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn enter(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    retry_on_intr(|| openat(directory, name, flags, Mode::empty()))
}

/// The same for `pg_tblspc`, which the server follows wherever an administrator moved it.
fn enter_linked(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    retry_on_intr(|| openat(directory, name, flags, Mode::empty()))
}

fn is(stat: &Stat, file_type: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == file_type
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn failure(path: &Path, error: Errno) -> CommandError {
    let kind = match error {
        Errno::ACCESS | Errno::PERM => Kind::Config,
        _ => Kind::Retry,
    };
    CommandError::new(kind, format!("read {}", path.display())).because(io::Error::from(error))
}
