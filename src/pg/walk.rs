//! What a base backup takes of a data directory: the files that `pg_basebackup` takes, and no other.
//! Never reads a file's content. Invariant: what the server reaches by a symbolic link is listed as if it
//! lay there, and whatever of it is not is named.
//!
//! `pg_basebackup` leaves links out, and so a database that an administrator moved behind one. Which names are left out is `sendDir`'s rule (`src/backend/replication/basebackup.c` up to 14,
//! `src/backend/backup/basebackup.c` from 15 on). Of files that come and go meanwhile WAL knows.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    Access, AtFlags, CWD, FileType, Mode, OFlags, Stat, accessat, fstat, openat, statat,
};
use rustix::io::Errno;

use walmgr_protocol::limits::SET_ENTRIES_MAX;
use walmgr_protocol::names::RelativePath;

use super::backup_note;
use super::data_directory::DataDirectory;
use super::group_access;
use super::layout;
use super::left_out::{DAMAGED_PAGES, LEFT_OUT, LEFT_OUT_ALLOWED, PassedOver, WhyNot};
use super::mounts::LOST_AND_FOUND;
use super::needs::WITHIN_PREFIX;
use super::relation::{Fork, RelationFile, is_database};
use super::roots::{Followed, Roots, enter, enter_linked, is, names};
use super::tablespace_map::oid_of;
use crate::error::{CommandError, Kind, Result};
use crate::files::{self, FileId};

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
    /// The files that the group may not read, of a cluster to which it has access otherwise.
    pub private: Option<Vec<RelativePath>>,
    /// What is in no backup.
    pub passed_over: Vec<PassedOver>,
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
        followed: Followed::new(),
        behind_links: 0,
        above: around(data.path()),
        directories: Vec::new(),
        files: Vec::new(),
        control: None,
        passed_over: Vec::new(),
        private: None,
    };
    let mode = fstat(&root).map_err(at_root)?.st_mode;
    walker.private = group_access::is_granted(mode).then(Vec::new);
    let links = walker.open_tablespaces(root.as_fd())?;
    walker.directory(root.as_fd(), None)?;
    let mut roots = Roots {
        data: root,
        links,
        tablespaces: std::mem::take(&mut walker.tablespaces),
        followed: Followed::new(),
    };
    for (oid, handle) in &roots.tablespaces {
        let path = walker.path(None, format!("{}/{oid}", layout::PG_TBLSPC).as_bytes())?;
        walker.directories.push(path.clone());
        walker.directory(handle.as_fd(), Some(&path))?;
    }
    roots.followed = std::mem::take(&mut walker.followed);
    Ok(Listing {
        tablespaces: roots.tablespaces.keys().copied().collect(),
        roots,
        directories: walker.directories,
        files: walker.files,
        control: walker.control.ok_or_else(|| {
            let path = data.path().join(layout::PG_CONTROL);
            failure(&path, Errno::NOENT)
        })?,
        private: walker.private,
        passed_over: walker.passed_over,
    })
}

struct Walker<'a> {
    data: &'a DataDirectory,
    /// `TABLESPACE_VERSION_DIRECTORY`: a tablespace may hold clusters of other versions too.
    version_directory: String,
    tablespaces: BTreeMap<u32, OwnedFd>,
    /// One inside the data directory is not taken twice.
    identities: HashSet<FileId>,
    followed: Followed,
    /// How many links lead to where the walk is.
    behind_links: usize,
    /// The directories that the walk is in, and those that the data directory lies in.
    above: Vec<FileId>,
    directories: Vec<RelativePath>,
    files: Vec<File>,
    control: Option<File>,
    passed_over: Vec<PassedOver>,
    private: Option<Vec<RelativePath>>,
}

/// What becomes of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WalkRule {
    Take,
    /// A directory without its content; also where a person made it a link.
    Empty,
    Omit,
}

impl Walker<'_> {
    fn open_tablespaces(&mut self, root: BorrowedFd<'_>) -> Result<OwnedFd> {
        let links = self.data.path().join(layout::PG_TBLSPC);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = enter_linked(root, layout::PG_TBLSPC.as_bytes());
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
                    self.identities.insert(FileId::of(&stat));
                    self.tablespaces.insert(oid, handle);
                }
                Err(Errno::NOENT) if is_gone(folder.as_fd(), &name) => {}
                // The server goes on as well, as long as nobody asks for what was there.
                Err(Errno::NOENT) => {
                    let path = format!("{}/{oid}", layout::PG_TBLSPC);
                    let path = self.path(None, path.as_bytes())?;
                    self.pass_over(path, WhyNot::Dangling);
                }
                Err(error) => return Err(failure(&links.join(oid.to_string()), error)),
            }
        }
        Ok(folder)
    }

    /// Takes the content of a directory that is taken itself; the root has no path.
    fn directory(&mut self, handle: BorrowedFd<'_>, path: Option<&RelativePath>) -> Result<()> {
        let failed = |error| self.failure_at(path, error);
        let names = names(handle).map_err(failed)?;
        let own = fstat(handle).map_err(failed)?;
        let relations = path.is_some_and(is_database);
        let unlogged: HashSet<u32> = (names.iter().filter(|_| relations))
            .filter_map(|name| RelationFile::named(name))
            .filter(|file| file.fork == Fork::Init)
            .map(|file| file.number)
            .collect();
        self.above.push(FileId::of(&own));
        for name in &names {
            let rule = match self.rule(path, name) {
                WalkRule::Take if relations => relation_rule(name, &unlogged),
                rule => rule,
            };
            if rule != WalkRule::Omit {
                self.entry(handle, path, name, rule)?;
            }
        }
        self.above.pop();
        Ok(())
    }

    fn entry(
        &mut self,
        handle: BorrowedFd<'_>,
        above: Option<&RelativePath>,
        name: &[u8],
        rule: WalkRule,
    ) -> Result<()> {
        let path = self.path(above, name)?;
        let stat = match statat(handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(self.failure_at(Some(&path), error)),
        };
        match (FileType::from_raw_mode(stat.st_mode), rule) {
            (FileType::Directory | FileType::Symlink, WalkRule::Empty) => self.empty(path)?,
            (FileType::Symlink, _) if is_links(&path) => {
                let below = enter_linked(handle, name);
                let below = below.map_err(|error| self.failure_at(Some(&path), error))?;
                self.directories.push(path.clone());
                self.directory(below.as_fd(), Some(&path))?;
            }
            (FileType::Symlink, _) if self.is_tablespace(&path) => {}
            (FileType::Symlink, _) if is_log(&path) => {
                self.directories.push(path.clone());
                self.pass_over(path, WhyNot::Log);
            }
            (FileType::Symlink, _) => self.link(handle, path, name)?,
            _ => self.found(handle, path, name, &stat)?,
        }
        self.ensure_bounded()
    }

    /// Takes what a link leads to, as the server does.
    fn link(&mut self, handle: BorrowedFd<'_>, path: RelativePath, name: &[u8]) -> Result<()> {
        let why = match statat(handle, name, AtFlags::empty()) {
            Ok(stat) => {
                let led_to = FileId::of(&stat);
                self.followed.insert(path.as_bytes().to_vec(), led_to);
                self.behind_links += 1;
                let taken = self.found(handle, path, name, &stat);
                self.behind_links -= 1;
                return taken;
            }
            Err(Errno::NOENT) if is_gone(handle, name) => return Ok(()),
            Err(Errno::NOENT | Errno::NOTDIR) => WhyNot::Dangling,
            Err(Errno::LOOP) => WhyNot::Loop,
            Err(Errno::ACCESS) => WhyNot::Unreadable,
            Err(error) => return Err(self.failure_at(Some(&path), error)),
        };
        self.pass_over(path, why);
        Ok(())
    }

    /// Takes what is no link, or what one leads to.
    fn found(
        &mut self,
        handle: BorrowedFd<'_>,
        path: RelativePath,
        name: &[u8],
        stat: &Stat,
    ) -> Result<()> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return self.below(handle, path, name, stat),
            FileType::RegularFile if self.may_not_read(handle, name) => {
                self.pass_over(path, WhyNot::Unreadable);
            }
            FileType::RegularFile => {
                let file = File {
                    size: u64::try_from(stat.st_size).unwrap_or_default(),
                    modified_s: stat.st_mtime,
                    path,
                };
                self.note_mode(&file.path, stat);
                match file.path.as_bytes() == layout::PG_CONTROL.as_bytes() {
                    true => self.control = Some(file),
                    false => self.files.push(file),
                }
            }
            FileType::Socket => self.pass_over(path, WhyNot::Socket),
            _ => self.pass_over(path, WhyNot::Special),
        }
        Ok(())
    }

    fn below(
        &mut self,
        handle: BorrowedFd<'_>,
        path: RelativePath,
        name: &[u8],
        stat: &Stat,
    ) -> Result<()> {
        let is_linked = self.followed.contains_key(path.as_bytes());
        let is_tablespace = self.identities.contains(&FileId::of(stat));
        if self.behind_links > 0 && self.above.contains(&FileId::of(stat)) {
            self.pass_over(path, WhyNot::Around);
            return Ok(());
        }
        let entered = match is_linked {
            true => enter_linked(handle, name),
            false => enter(handle, name),
        };
        match entered {
            Ok(_) if is_tablespace => self.directories.push(path),
            Ok(below) => {
                self.directories.push(path.clone());
                self.directory(below.as_fd(), Some(&path))?;
            }
            Err(Errno::NOENT) if !is_linked => {}
            // The file system's own, where somebody mounted one.
            Err(Errno::ACCESS) if name == LOST_AND_FOUND.as_bytes() => {}
            Err(Errno::ACCESS) if self.behind_links > 0 => {
                self.pass_over(path, WhyNot::Unreadable);
            }
            Err(error) => return Err(self.failure_at(Some(&path), error)),
        }
        Ok(())
    }

    /// Of what lies in the directory itself this is found when it is read, and ends the backup.
    fn may_not_read(&self, handle: BorrowedFd<'_>, name: &[u8]) -> bool {
        let flags = AtFlags::EACCESS;
        self.behind_links > 0
            && accessat(handle, name, Access::READ_OK, flags) == Err(Errno::ACCESS)
    }

    /// PostgreSQL's own files are the group's to read, as initdb and the server make them; what a person
    /// put beside them may be a key.
    fn note_mode(&mut self, path: &RelativePath, stat: &Stat) {
        let top = path.components().next().unwrap_or_default();
        let is_own = path.parent().is_some()
            && (top == layout::BASE.as_bytes()
                || top == layout::GLOBAL.as_bytes()
                || top.starts_with(b"pg_"));
        if let Some(private) = &mut self.private
            && !is_own
            && stat.st_mode & Mode::RGRP.bits() == 0
        {
            private.push(path.clone());
        }
    }

    fn pass_over(&mut self, path: RelativePath, why: WhyNot) {
        self.passed_over.push(PassedOver { path, why });
    }

    /// A directory without its content; `pg_wal` keeps those the server expects in it.
    fn empty(&mut self, path: RelativePath) -> Result<()> {
        let wal = (path.as_bytes() == layout::PG_WAL.as_bytes()).then(|| path.clone());
        self.directories.push(path);
        if let Some(wal) = wal {
            let archive_status = self.path(Some(&wal), layout::ARCHIVE_STATUS.as_bytes())?;
            self.directories.push(archive_status);
            if self.data.major() >= 17 {
                let summaries = self.path(Some(&wal), layout::SUMMARIES.as_bytes())?;
                self.directories.push(summaries);
            }
        }
        Ok(())
    }

    fn rule(&self, above: Option<&RelativePath>, name: &[u8]) -> WalkRule {
        /// Temporary files, and caches of catalogs that the server builds anew.
        const OMITTED_PREFIXES: [&[u8]; 2] = [b"pgsql_tmp", b"pg_internal.init"];
        /// Of a running server, or of another backup.
        const OMITTED: [&[u8]; 7] = [
            b"postgresql.auto.conf.tmp",
            b"current_logfiles.tmp",
            layout::BACKUP_LABEL.as_bytes(),
            layout::TABLESPACE_MAP.as_bytes(),
            layout::BACKUP_MANIFEST.as_bytes(),
            layout::POSTMASTER_PID.as_bytes(),
            layout::POSTMASTER_OPTS.as_bytes(),
        ];
        /// What the server renames them to; of a backup from which this cluster was restored.
        const OMITTED_IN_ROOT: [&[u8]; 7] = [
            layout::BACKUP_LABEL_DONE.as_bytes(),
            layout::TABLESPACE_MAP_DONE.as_bytes(),
            DAMAGED_PAGES.as_bytes(),
            LEFT_OUT.as_bytes(),
            group_access::NOTE.as_bytes(),
            LEFT_OUT_ALLOWED.as_bytes(),
            backup_note::NAME.as_bytes(),
        ];
        let is_root = above.is_none();
        if OMITTED.contains(&name)
            || OMITTED_PREFIXES
                .iter()
                .any(|prefix| name.starts_with(prefix))
            || is_root && OMITTED_IN_ROOT.contains(&name)
            // What a restore left beside the cluster, where the directory is a mount point.
            || is_root && name.starts_with(WITHIN_PREFIX.as_bytes())
        {
            return WalkRule::Omit;
        }
        if layout::EMPTIED
            .iter()
            .any(|emptied| name == emptied.as_bytes())
            || is_root && name == layout::PG_WAL.as_bytes()
        {
            return WalkRule::Empty;
        }
        match above {
            Some(above) if is_tablespace_root(above) => {
                match name == self.version_directory.as_bytes() {
                    true => WalkRule::Take,
                    false => WalkRule::Omit,
                }
            }
            _ => WalkRule::Take,
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
fn relation_rule(name: &[u8], unlogged: &HashSet<u32>) -> WalkRule {
    match RelationFile::named(name) {
        Some(file) if file.is_temporary => WalkRule::Omit,
        Some(file) if file.fork != Fork::Init && unlogged.contains(&file.number) => WalkRule::Omit,
        _ => WalkRule::Take,
    }
}

/// `pg_tblspc`.
fn is_links(path: &RelativePath) -> bool {
    path.as_bytes() == layout::PG_TBLSPC.as_bytes()
}

/// Where the server logs, as PostgreSQL and the packages of old call it.
fn is_log(path: &RelativePath) -> bool {
    matches!(path.as_bytes(), b"log" | b"pg_log")
}

/// `pg_tblspc/OID`.
fn is_tablespace_root(path: &RelativePath) -> bool {
    let above = path.parent();
    above.as_ref().is_some_and(is_links) && oid_of(path.file_name()).is_some()
}

/// The directories that the data directory lies in: a link to one of them would take the whole host.
fn around(data: &Path) -> Vec<FileId> {
    let data = files::resolved(data);
    let above = data.ancestors().skip(1);
    above.filter_map(FileId::at).collect()
}

/// Whether a name that was listed is no more.
fn is_gone(directory: BorrowedFd<'_>, name: &[u8]) -> bool {
    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_err_and(|error| error == Errno::NOENT)
}

fn failure(path: &Path, error: Errno) -> CommandError {
    let kind = match error {
        Errno::ACCESS | Errno::PERM => Kind::Config,
        _ => Kind::Retry,
    };
    CommandError::new(kind, format!("read {}", path.display())).because(io::Error::from(error))
}
