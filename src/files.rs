//! Small files that walmgr writes outside the archive: settings, keys, lists, stamps.
//! Never follows a symlink it did not resolve first, never leaves half a file under the final
//! name. Invariant: after a return of `Ok` the content survives a power cut; a `HandedOver` file,
//! whose reader makes it durable itself, is the one exception.

mod boot;
mod lock;
mod resolved;
pub(crate) mod slices;
mod stamp;

pub(crate) use boot::{BOOT_BYTES, boot};
pub(crate) use lock::{lock_folder_of, lock_within, try_lock, try_lock_open};
pub(crate) use resolved::resolved;
pub(crate) use stamp::{ChangeStamp, file_clock};

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use rustix::fs::{self, AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, Stat, Uid};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::error::{CommandError, IoContext, Kind, Result};

/// Longest file that is read as a whole: a `postgresql.conf` or `pg_hba.conf` that people still read is far shorter.
const TEXT_BYTES_MAX: u64 = 16 << 20;

/// How a file of walmgr's own is opened.
const OWN_FLAGS: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK);

/// What tells one file or directory from another: device and inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

impl FileId {
    pub(crate) const fn of(stat: &Stat) -> FileId {
        FileId {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }

    pub(crate) fn of_metadata(metadata: &Metadata) -> FileId {
        FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }

    /// Of what a path leads to; `None` where nothing can be found out.
    pub(crate) fn at(path: &Path) -> Option<FileId> {
        path.metadata().ok().as_ref().map(FileId::of_metadata)
    }
}

/// The name of a user of this host, if the system knows one.
pub(crate) fn user_name(uid: u32) -> Option<String> {
    uzers::get_user_by_uid(uid)?
        .name()
        .to_str()
        .map(str::to_owned)
}

/// Removes a file, a link, or a directory with everything in it, if there is one.
pub(crate) fn remove_any(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at(Kind::Retry, "remove", path),
    }
}

/// Creates `path` with this content; an existing file, or a symlink, is an error.
pub(crate) fn create_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0))
        .open(path)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // The name was ours alone, so removing it cannot lose anybody's file.
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    sync_directory_of(path)
}

/// Creates a first ini file; an existing one is the operator's and stays.
pub(crate) fn create_settings(path: &Path, text: &str) -> Result<()> {
    match create_new(path, text.as_bytes(), 0o640) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let says = format!("{} exists already and is not changed", path.display());
            Err(CommandError::config(says).hint("choose another name, or edit it"))
        }
        written => written.at_setting("write", path),
    }
}

/// How many bytes are going to be written, by the file system that takes them.
#[derive(Debug)]
pub(crate) struct RoomNeeded {
    /// What an error is in which a path cannot be looked at.
    kind: Kind,
    /// The bytes, and a path there, by the number of the device.
    by_device: BTreeMap<u64, (u64, PathBuf)>,
}

impl RoomNeeded {
    /// Nothing yet.
    pub(crate) fn new(kind: Kind) -> RoomNeeded {
        let by_device = BTreeMap::new();
        RoomNeeded { kind, by_device }
    }

    /// Adds what goes to the file system of a path that exists.
    pub(crate) fn add(&mut self, path: &Path, bytes: u64) -> Result<()> {
        let device = path.metadata().at(self.kind, "examine", path)?.dev();
        let entry = self.by_device.entry(device);
        let (sum, _) = entry.or_insert_with(|| (0, path.to_path_buf()));
        *sum = sum.saturating_add(bytes);
        Ok(())
    }

    /// Refuses what does not fit, before anything was changed.
    pub(crate) fn check(&self) -> Result<()> {
        for (needed_bytes, path) in self.by_device.values() {
            let state = fs::statvfs(path).at(self.kind, "examine", path)?;
            let free_bytes = state.f_bavail.saturating_mul(state.f_frsize);
            if free_bytes < *needed_bytes {
                return Err(CommandError::retry(format!(
                    "not enough space in {}: {} needed, {} free",
                    path.display(),
                    HumanBytes(*needed_bytes),
                    HumanBytes(free_bytes)
                ))
                .hint("nothing was changed; free some space, or restore to another directory"));
            }
        }
        Ok(())
    }
}

/// All of a file that people or PostgreSQL write. Nothing but a file is read, so nothing is waited for.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    read_whole(&open_file(path.as_ref())?, TEXT_BYTES_MAX)?.ok_or_else(|| {
        let text = format!("it has more than {}", HumanBytes(TEXT_BYTES_MAX));
        io::Error::new(io::ErrorKind::FileTooLarge, text)
    })
}

/// The first bytes of a file, and no more of it than `bytes_max`; nothing but a file is read.
pub(crate) fn read_at_most(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_open_at_most(&open_file(path)?, bytes_max)
}

/// At most `bytes_max` bytes of an open file, from its position on.
pub(crate) fn read_open_at_most(file: &File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(bytes_max).read_to_end(&mut content)?;
    Ok(content)
}

/// What is left of an open file; `None` if that is more than `bytes_max`, however long the file said it was.
pub(crate) fn read_whole(file: &File, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let content = read_open_at_most(file, bytes_max.saturating_add(1))?;
    Ok((content.len() as u64 <= bytes_max).then_some(content))
}

/// Opens a file to read it; where a FIFO has the name, its writer is not waited for.
pub(crate) fn open_at_once(path: impl AsRef<Path>) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
}

/// Opens a file to read it without waiting for a FIFO's writer, and refuses anything but a file.
fn open_file(path: &Path) -> io::Result<File> {
    only_a_file(open_at_once(path)?)
}

/// Opens a file that is there to be locked, and makes it. Refuses a link: what is written into the file says who has
/// the lock, and would destroy what the link leads to.
pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    open_own(path, OpenOptions::new().read(true))
}

/// Writes a note of walmgr's own that a crash may take away. Refuses a link, and does not wait for a FIFO's reader.
pub(crate) fn note(path: &Path, content: &[u8]) -> io::Result<()> {
    open_own(path, OpenOptions::new().truncate(true))?.write_all(content)
}

/// Writes such a note where one of the same length lies already, or none, so that nothing is set aside or freed for it.
pub(crate) fn note_in_place(path: &Path, content: &[u8]) -> io::Result<()> {
    let file = open_own(path, &mut OpenOptions::new())?;
    file.write_all_at(content, 0)?;
    match file.metadata()?.len() > content.len() as u64 {
        true => file.set_len(content.len() as u64),
        false => Ok(()),
    }
}

/// Opens a file of walmgr's own to write it, or makes it; no link, and nothing but a file.
fn open_own(path: &Path, how: &mut OpenOptions) -> io::Result<File> {
    let file = how
        .write(true)
        .create(true)
        .mode(0o600)
        .custom_flags(OWN_FLAGS.bits().cast_signed())
        .open(path)
        .map_err(no_link)?;
    only_a_file(file)
}

fn only_a_file(file: File) -> io::Result<File> {
    let metadata = file.metadata()?;
    if metadata.is_file() {
        return Ok(file);
    }
    let (kind, text) = match metadata.is_dir() {
        true => (
            io::ErrorKind::IsADirectory,
            "expected a file, found a directory",
        ),
        false => (
            io::ErrorKind::InvalidInput,
            "expected a file, found a FIFO or a device",
        ),
    };
    Err(io::Error::new(kind, text))
}

/// "Too many levels of symbolic links" does not tell that one is too many.
fn no_link(error: io::Error) -> io::Error {
    match error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
        true => io::Error::new(
            io::ErrorKind::InvalidInput,
            "expected a file, found a symbolic link",
        ),
        false => error,
    }
}

/// Whether a new file of this path can share the content of that file: both are on one file system that can. Leaves
/// nothing; a file that is in the way is removed.
pub(crate) fn can_share(from: &Path, probe: &Path) -> bool {
    let shared = || -> io::Result<()> {
        let from = open_at_once(from)?;
        let to = File::create_new(probe)?;
        Ok(fs::ioctl_ficlone(&to, &from)?)
    };
    let _ = std::fs::remove_file(probe);
    let shared = shared();
    let _ = std::fs::remove_file(probe);
    shared.is_ok()
}

/// Makes a directory as PostgreSQL wants them, unless it is there.
pub(crate) fn make_directory(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.at(Kind::Retry, "create", path),
    }
}

/// Replaces `path` by this content in one step, keeping its owner and mode if it exists.
///
/// A symlink is resolved first, so the link stays and the file it leads to is replaced.
pub(crate) fn replace(path: &Path, content: &[u8], mode_if_new: u32) -> io::Result<()> {
    let target = match std::fs::canonicalize(path) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_path_buf(),
        Err(error) => return Err(error),
    };
    let old = match std::fs::metadata(&target) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let temporary = temporary_beside(&target);
    let mode = old
        .as_ref()
        .map_or(mode_if_new, |metadata| metadata.mode() & 0o7777);
    create_new(&temporary, content, mode)?;
    let finish = || -> io::Result<()> {
        if let Some(metadata) = &old {
            let file = File::open(&temporary)?;
            fs::fchmod(&file, Mode::from_raw_mode(mode))?;
            let owner = Uid::from_raw(metadata.uid());
            let group = Gid::from_raw(metadata.gid());
            let new = file.metadata()?;
            if (new.uid(), new.gid()) != (metadata.uid(), metadata.gid()) {
                fs::fchown(&file, Some(owner), Some(group))?;
            }
        }
        std::fs::rename(&temporary, &target)?;
        sync_directory_of(&target)
    };
    finish().inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })
}

/// Replaces a file that nobody but walmgr writes. A link of that name goes, and what it leads to stays.
pub(crate) fn replace_own(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = temporary_beside(path);
    create_new(&temporary, content, 0o600)?;
    let renamed = std::fs::rename(&temporary, path);
    renamed
        .and_then(|()| sync_directory_of(path))
        .inspect_err(|_| {
            let _ = std::fs::remove_file(&temporary);
        })
}

/// Puts this content under a name in one step, whatever had the name before, a symlink included; whoever reads there
/// sees all of one or all of the other. Not synced: for what is written again and again.
pub(crate) fn put_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut new = HandedOver::begin(path)?;
    new.append(content)?;
    // The umask of whoever calls is no matter of those who read.
    fs::fchmod(&new.file, Mode::from_raw_mode(mode))?;
    new.put_in_place()
}

/// Removes `path` for good; `false` when there was nothing.
pub(crate) fn remove(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_directory_of(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a directory for good if nothing is in it; `false` when it stays or there was none. One that is mounted, or
/// lies where this user may not write, stays, too.
pub(crate) fn remove_if_empty(path: &Path) -> io::Result<bool> {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound, PermissionDenied, ResourceBusy};
    match std::fs::remove_dir(path) {
        Ok(()) => sync_directory_of(path).map(|()| true),
        Err(error) => match error.kind() {
            DirectoryNotEmpty | NotFound | PermissionDenied | ResourceBusy => Ok(false),
            _ => Err(error),
        },
    }
}

/// Moves a file or directory to a name that nothing has, for good; the new directory is synced
/// before the old one, so that a power cut leaves it under either name and never under none.
pub(crate) fn move_to(from: &Path, to: &Path) -> io::Result<()> {
    rename_new((CWD, from.as_os_str()), (CWD, to.as_os_str()))?;
    sync_directory_of(to)?;
    sync_directory_of(from)
}

/// Renames to a name that nothing has, each name as seen from a directory. Where a file system cannot refuse a
/// name that is taken, it is looked for first: whoever renames here holds a lock.
pub(crate) fn rename_new(
    from: (BorrowedFd<'_>, &OsStr),
    to: (BorrowedFd<'_>, &OsStr),
) -> io::Result<()> {
    match fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            match fs::statat(to.0, to.1, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Err(Errno::EXIST.into()),
                Err(_) => Ok(fs::renameat(from.0, from.1, to.0, to.1)?),
            }
        }
        other => Ok(other?),
    }
}

/// Has a directory change places with the link to it, for good, and removes the link where it is then;
/// fails where the two lie on different file systems. Killed in between, it leaves a link to itself
/// where the directory was, and nothing else.
pub(crate) fn bring_home(link: &Path, target: &Path) -> io::Result<()> {
    let (cwd, flags) = (CWD, RenameFlags::EXCHANGE);
    fs::renameat_with(cwd, link, cwd, target, flags)?;
    sync_directory_of(link)?;
    sync_directory_of(target)?;
    std::fs::remove_file(target)?;
    sync_directory_of(target)
}

/// Makes a symlink for good, in the place of one that is there.
pub(crate) fn link(path: &Path, target: &Path) -> io::Result<()> {
    if std::fs::read_link(path).is_ok_and(|found| found == target) {
        return sync_directory_of(path);
    }
    remove_if_there(path)?;
    std::os::unix::fs::symlink(target, path)?;
    sync_directory_of(path)
}

/// Copies a file under a name that nothing has, durable but for that name.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = open_file(from)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    io::copy(&mut source, &mut file)?;
    file.sync_all()
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes everything below a directory durable that was written since it was opened.
pub(crate) fn sync_tree(directory: BorrowedFd<'_>) -> io::Result<()> {
    match sync_file_system(directory) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOSYS) => sync_each(directory),
        other => other,
    }
}

fn sync_each(directory: BorrowedFd<'_>) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            Ok(file) if File::from(file.try_clone()?).metadata()?.is_dir() => {
                sync_each(file.as_fd())?;
            }
            Ok(file) => File::from(file).sync_all()?,
            // A link has no content of its own.
            Err(Errno::LOOP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    File::from(directory.try_clone_to_owned()?).sync_all()
}

/// Asks for a part of a file to be read from the disk while its reader is busy with what lies before. Advice only.
pub(crate) fn read_ahead(file: BorrowedFd<'_>, range: Range<u64>) {
    if let Some(len) = NonZeroU64::new(range.end.saturating_sub(range.start)) {
        let _ = fs::fadvise(file, range.start, Some(len), fs::Advice::WillNeed);
    }
}

/// Has what was written to a file survive a power cut.
pub(crate) fn sync_content(file: &File) -> io::Result<()> {
    file.sync_data()
}

/// `syncfs`, which reports failed write-backs since Linux 5.8 only.
pub(crate) fn sync_file_system(directory: BorrowedFd<'_>) -> io::Result<()> {
    if !reports_write_back(rustix::system::uname().release()) {
        return Err(Errno::NOSYS.into());
    }
    Ok(rustix::fs::syncfs(directory)?)
}

fn reports_write_back(release: &std::ffi::CStr) -> bool {
    let release = release.to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || -> Option<u32> { numbers.next()?.parse().ok() };
    matches!((number(), number()), (Some(major), Some(minor)) if (major, minor) >= (5, 8))
}

/// A file that grows under a temporary name, for a program that takes it at once and makes it
/// durable itself: syncing it here would only be slower.
///
/// A kill leaves the temporary, which the next one for the same path removes.
pub(crate) struct HandedOver {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
}

impl HandedOver {
    /// Begins a file that is to appear at `path`.
    pub(crate) fn begin(path: &Path) -> io::Result<HandedOver> {
        let temporary = temporary_beside(path);
        remove_abandoned(path)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0))
            .open(&temporary)?;
        Ok(HandedOver {
            path: path.to_path_buf(),
            temporary,
            file,
        })
    }

    /// Writes these bytes behind the ones before.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// What was written so far.
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its name, whatever had the name before.
    pub(crate) fn put_in_place(self) -> io::Result<()> {
        std::fs::rename(&self.temporary, &self.path)
    }
}

impl Drop for HandedOver {
    fn drop(&mut self) {
        // Gone already if it was put in place; otherwise the next one tries again.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Gives a file that was made as [`HandedOver`] another name, whatever had that before.
pub(crate) fn hand_over(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}

/// Removes the temporaries for `path` of processes that are gone, and of this one's number.
fn remove_abandoned(path: &Path) -> io::Result<()> {
    let [mut prefix, suffix] = [OsString::from("."), OsString::from(".new")];
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".");
    for entry in std::fs::read_dir(directory_of(path))? {
        let name = entry?.file_name();
        let owner = (name.as_encoded_bytes())
            .strip_prefix(prefix.as_encoded_bytes())
            .and_then(|rest| rest.strip_suffix(suffix.as_encoded_bytes()))
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
            .and_then(Pid::from_raw);
        let Some(owner) = owner else { continue };
        if owner == rustix::process::getpid() || test_kill_process(owner) == Err(Errno::SRCH) {
            remove_if_there(&path.with_file_name(name))?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.new", std::process::id()));
    path.with_file_name(name)
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    File::open(directory_of(path))?.sync_all()
}

pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn replacing_keeps_mode_and_leaves_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.conf");
        create_new(&path, b"one", 0o640).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).unwrap();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o604);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn fault_75_a_handed_over_file_appears_whole_and_abandoned_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("RECOVERYXLOG");
        let abandoned = folder
            .path()
            .join(format!(".RECOVERYXLOG.{}.new", i32::MAX));
        std::fs::write(&abandoned, "half").unwrap();
        std::fs::write(&path, "longer than the new one").unwrap();
        let mut file = HandedOver::begin(&path).unwrap();
        assert!(!abandoned.exists());
        file.append(b"on").unwrap();
        file.append(b"e").unwrap();
        file.put_in_place().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        drop(HandedOver::begin(&path).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_one_byte_too_long_is_not_read_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        std::fs::write(&path, "four").unwrap();
        let opened = || open_at_once(&path).unwrap();
        assert_eq!(read_whole(&opened(), 4).unwrap().unwrap(), b"four");
        assert_eq!(read_whole(&opened(), 3).unwrap(), None);
        assert_eq!(read_open_at_most(&opened(), 3).unwrap(), b"fou");
        // It says of itself that it is empty.
        let table = open_at_once(Path::new("/proc/self/mountinfo")).unwrap();
        assert_eq!(table.metadata().unwrap().len(), 0);
        assert_eq!(read_whole(&table, 3).unwrap(), None);
    }

    /// What else may have the name of a file: each is refused at once, and stays.
    fn no_files(folder: &Path) -> Vec<PathBuf> {
        let names = ["fifo", "directory", "link", "dangling", "circle"];
        let [fifo, directory, link, dangling, circle] = names.map(|name| folder.join(name));
        let mode = Mode::from_raw_mode(0o600);
        fs::mknodat(CWD, &fifo, fs::FileType::Fifo, mode, 0).unwrap();
        std::fs::create_dir(&directory).unwrap();
        for (target, link) in [
            ("precious", &link),
            ("nothing", &dangling),
            ("circle", &circle),
        ] {
            std::os::unix::fs::symlink(target, link).unwrap();
        }
        vec![fifo, directory, link, dangling, circle]
    }

    #[test]
    fn fault_175_what_is_no_file_is_neither_waited_for_nor_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let precious = folder.path().join("precious");
        std::fs::write(&precious, "precious").unwrap();
        for path in no_files(folder.path()) {
            let shown = path.display();
            let is_precious = path.ends_with("link");
            assert_eq!(read(&path).is_ok(), is_precious, "{shown}");
            assert_eq!(read_at_most(&path, 9).is_ok(), is_precious, "{shown}");
            assert!(open_lock(&path).is_err(), "{shown}");
            assert!(note(&path, b"ours").is_err(), "{shown}");
            assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
            let is_directory = path.ends_with("directory");
            assert_eq!(
                replace_own(&path, b"ours").is_err(),
                is_directory,
                "{shown}"
            );
            assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
            assert!(!folder.path().join("nothing").exists());
        }
        // No temporary is left of those that could not be put in place.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 6);
    }

    #[test]
    fn fault_175_a_file_without_end_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pg_hba.conf");
        let sparse = File::create(&path).unwrap();
        sparse.set_len(1 << 40).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(read("/dev/zero").is_err());
        sparse.set_len(2).unwrap();
        assert_eq!(read(&path).unwrap(), [0, 0]);
    }

    #[test]
    fn removing_says_whether_there_was_something() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("PAUSE");
        std::fs::write(&path, "").unwrap();
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
    }

    #[test]
    fn fault_95_a_planted_symlink_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        let link = folder.path().join("key");
        std::os::unix::fs::symlink(&victim, &link).unwrap();
        assert!(create_new(&link, b"secret", 0o600).is_err());
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }
}
