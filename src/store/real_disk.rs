//! The operating system's own disk: one system call for each operation of the archive.
//! Never decides anything, and never repeats a sync. Invariant: no call but `enter_linked` follows a symbolic link
//! in the last component of a name.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    self, Advice, AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags,
    RenameFlags, Stat,
};
use rustix::io::{Errno, ReadWriteFlags, retry_on_intr};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::path::Arg;

use super::disk::{Disk, FileStat};
use super::tree::{FileUse, Node, Tree};
use crate::files;
use crate::files::FileId;

/// The operating system's own disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        Ok(fs::mkdir(path, Mode::RWXU)?)
    }

    fn open_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(retry_on_intr(|| fs::open(path, flags, Mode::empty()))?)
    }

    fn identity_at(&self, path: &Path) -> io::Result<FileId> {
        Ok(file_stat(&fs::statat(CWD, path, AtFlags::empty())?).identity)
    }

    fn stat(&self, file: BorrowedFd<'_>) -> io::Result<FileStat> {
        Ok(file_stat(&fs::fstat(file)?))
    }

    fn stat_at(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<FileStat> {
        Ok(file_stat(&fs::statat(
            directory,
            name,
            AtFlags::SYMLINK_NOFOLLOW,
        )?))
    }

    fn names(&self, directory: BorrowedFd<'_>) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        self.each_name(directory, &mut |name| names.push(name.to_owned()))?;
        Ok(names)
    }

    fn each_name(&self, directory: BorrowedFd<'_>, each: &mut dyn FnMut(&str)) -> io::Result<()> {
        for entry in fs::Dir::read_from(directory)? {
            if let Ok(name) = entry?.file_name().to_str()
                && name != "."
                && name != ".."
            {
                each(name);
            }
        }
        Ok(())
    }

    fn create(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        open_below(directory, name, flags)
    }

    fn open(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        open_below(directory, name, OFlags::RDONLY | OFlags::NONBLOCK)
    }

    fn open_lock(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        open_below(directory, name, OFlags::RDWR | OFlags::CREATE)
    }

    fn open_lock_to_hold(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        open_below(directory, name, OFlags::RDONLY | OFlags::CREATE)
    }

    fn reopen(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        open_below(directory, name, OFlags::RDWR | OFlags::NONBLOCK)
    }

    fn lock(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        match retry_on_intr(|| fs::flock(file, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn read(&self, file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(retry_on_intr(|| {
            rustix::io::pread(file, &mut *buffer, offset)
        })?)
    }

    fn read_in_memory(
        &self,
        file: BorrowedFd<'_>,
        buffer: &mut [u8],
        offset: u64,
    ) -> Option<usize> {
        // Even a read that may not wait has the kernel fetch what it lacks, for nobody.
        if !cache::holds(file, offset, buffer.len() as u64) {
            return None;
        }
        let (mut buffers, flags) = ([io::IoSliceMut::new(buffer)], ReadWriteFlags::NOWAIT);
        rustix::io::preadv2(file, &mut buffers, offset, flags).ok()
    }

    fn allocate(&self, file: BorrowedFd<'_>, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        Ok(retry_on_intr(|| {
            fs::fallocate(file, FallocateFlags::empty(), 0, len)
        })?)
    }

    fn write(&self, file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> io::Result<usize> {
        Ok(retry_on_intr(|| rustix::io::pwrite(file, bytes, offset))?)
    }

    fn set_len(&self, file: BorrowedFd<'_>, len: u64) -> io::Result<()> {
        Ok(retry_on_intr(|| fs::ftruncate(file, len))?)
    }

    fn share_content(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
        Ok(retry_on_intr(|| fs::ioctl_ficlone(to, from))?)
    }

    fn set_unshared_bytes(&self, file: BorrowedFd<'_>, bytes: Option<u32>) -> io::Result<()> {
        Ok(attributes::set_unshared_bytes(file, bytes)?)
    }

    fn set_modified(&self, file: BorrowedFd<'_>, modified_ns: i64) -> io::Result<()> {
        let omitted = fs::Timespec {
            tv_sec: 0,
            tv_nsec: fs::UTIME_OMIT,
        };
        let modified = fs::Timespec {
            tv_sec: modified_ns.div_euclid(1_000_000_000),
            tv_nsec: modified_ns.rem_euclid(1_000_000_000),
        };
        let times = fs::Timestamps {
            last_access: omitted,
            last_modification: modified,
        };
        Ok(fs::futimens(file, &times)?)
    }

    #[allow(unsafe_code)] // No safe crate offers this call.
    fn start_writeback(&self, file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
        let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
            return Err(Errno::INVAL.into());
        };
        // It only starts the write-back. Waiting here would take the error that the sync at the
        // end has to see.
        let flags = libc::SYNC_FILE_RANGE_WRITE;
        // SAFETY: the descriptor is open for as long as it is borrowed, and the call takes
        // numbers only, no pointers.
        match unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn forget_cache(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        Ok(fs::fadvise(file, 0, None, Advice::DontNeed)?)
    }

    fn sync_file(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        // Not repeated after EINTR either: nobody says what an interrupted sync has done.
        Ok(fs::fsync(file)?)
    }

    fn sync_bytes(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        Ok(fs::fdatasync(file)?)
    }

    #[allow(unsafe_code)] // Dropping the descriptor would swallow the error.
    fn close(&self, file: OwnedFd) -> io::Result<()> {
        // SAFETY: `into_raw_fd` gives up the only owner, so nobody uses or closes it after this;
        // Linux frees the number even when it reports an error.
        match unsafe { libc::close(file.into_raw_fd()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn rename_new(&self, directory: BorrowedFd<'_>, from: &str, to: &str) -> io::Result<()> {
        Ok(fs::renameat_with(
            directory,
            from,
            directory,
            to,
            RenameFlags::NOREPLACE,
        )?)
    }

    fn rename_over(&self, directory: BorrowedFd<'_>, from: &str, to: &str) -> io::Result<()> {
        Ok(fs::renameat(directory, from, directory, to)?)
    }

    fn link(&self, directory: BorrowedFd<'_>, from: &str, to: &str) -> io::Result<()> {
        Ok(fs::linkat(
            directory,
            from,
            directory,
            to,
            AtFlags::empty(),
        )?)
    }

    fn link_into(
        &self,
        directory: BorrowedFd<'_>,
        from: &str,
        other: BorrowedFd<'_>,
        to: &str,
    ) -> io::Result<()> {
        Ok(fs::linkat(directory, from, other, to, AtFlags::empty())?)
    }

    fn remove(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(directory, name, AtFlags::empty())?)
    }

    fn sync_directory(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        Ok(fs::fsync(directory)?)
    }

    fn free_bytes(&self, directory: BorrowedFd<'_>) -> io::Result<u64> {
        let state = fs::fstatvfs(directory)?;
        Ok(state.f_bavail.saturating_mul(state.f_frsize))
    }
}

impl Tree for RealDisk {
    fn make_directory(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        Ok(fs::mkdirat(directory, name, Mode::RWXU)?)
    }

    fn enter(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        open_below(directory, name, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    fn enter_linked(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(retry_on_intr(|| {
            fs::openat(directory, name, flags, Mode::empty())
        })?)
    }

    fn make_file(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        open_below(directory, name, flags)
    }

    fn reopen_file(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        open_below(directory, name, OFlags::WRONLY | OFlags::NONBLOCK)
    }

    fn open_file(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        open_below(directory, name, OFlags::RDONLY | OFlags::NONBLOCK)
    }

    fn file_use(&self, file: BorrowedFd<'_>) -> io::Result<FileUse> {
        // `st_blocks` counts these whatever the file system's blocks are.
        const STAT_BLOCK_BYTES: u64 = 512;
        let blocks = u64::try_from(fs::fstat(file)?.st_blocks).unwrap_or(0);
        let shared_bytes = match blocks {
            0 => Some(0),
            _ => match extents::shared_bytes(file) {
                Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL) => None,
                other => Some(other?),
            },
        };
        Ok(FileUse {
            allocated_bytes: blocks * STAT_BLOCK_BYTES,
            shared_bytes,
        })
    }

    fn make_link(&self, directory: BorrowedFd<'_>, name: &OsStr, target: &OsStr) -> io::Result<()> {
        Ok(fs::symlinkat(target, directory, name)?)
    }

    fn node(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<Node> {
        let stat = fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Node::File(u64::try_from(stat.st_size).unwrap_or(0)),
            FileType::Directory => Node::Directory,
            FileType::Symlink => Node::Link,
            _ => Node::Other,
        })
    }

    fn entries(&self, directory: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        Ok(names)
    }

    fn remove_name(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        Ok(fs::unlinkat(directory, name, AtFlags::empty())?)
    }

    fn remove_directory(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        Ok(fs::unlinkat(directory, name, AtFlags::REMOVEDIR)?)
    }

    fn lock_shared(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        match retry_on_intr(|| fs::flock(file, FlockOperation::NonBlockingLockShared)) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn sync_everything(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        files::sync_file_system(directory)
    }
}

fn open_below(
    directory: BorrowedFd<'_>,
    name: impl Arg + Copy,
    flags: OFlags,
) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(retry_on_intr(|| {
        fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
    })?)
}

fn file_stat(stat: &Stat) -> FileStat {
    let changed_ns = nanoseconds(stat.st_ctime, stat.st_ctime_nsec);
    FileStat {
        identity: FileId::of(stat),
        len: u64::try_from(stat.st_size).unwrap_or(0),
        is_file: FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
        modified_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
        changed_ns,
        changed_ms: changed_ns.div_euclid(1_000_000),
    }
}

fn nanoseconds(seconds: i64, nanoseconds: impl TryInto<i64>) -> i64 {
    let nanoseconds = nanoseconds.try_into().unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

/// How much XFS takes for a file at once when a shared block of it is written: `FS_IOC_FSGETXATTR` and
/// `FS_IOC_FSSETXATTR` (`include/uapi/linux/fs.h` of Linux; `ioctl_xfs_fsgetxattr(2)`). No crate has these calls.
mod attributes {
    use rustix::ioctl::{Getter, Setter};

    use super::{BorrowedFd, Errno, Opcode, ioctl, opcode, retry_on_intr};

    const GET: Opcode = opcode::read::<Attributes>(b'X', 31);
    const SET: Opcode = opcode::write::<Attributes>(b'X', 32);
    /// `FS_XFLAG_COWEXTSIZE`
    const HAS_UNSHARED_BYTES: u32 = 0x0001_0000;

    /// `struct fsxattr`
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Attributes {
        flags: u32,
        extent_bytes: u32,
        extents: u32,
        project: u32,
        unshared_bytes: u32,
        reserved: [u8; 8],
    }

    #[allow(unsafe_code)] // No safe crate offers these calls.
    pub(super) fn set_unshared_bytes(
        file: BorrowedFd<'_>,
        bytes: Option<u32>,
    ) -> Result<(), Errno> {
        // SAFETY: the kernel fills in one such structure of plain numbers, laid out as its header says.
        let mut attributes =
            retry_on_intr(|| unsafe { ioctl(file, Getter::<GET, Attributes>::new()) })?;
        attributes.flags &= !HAS_UNSHARED_BYTES;
        attributes.unshared_bytes = bytes.unwrap_or(0);
        if bytes.is_some() {
            attributes.flags |= HAS_UNSHARED_BYTES;
        }
        // SAFETY: the kernel reads one such structure, and writes nothing.
        retry_on_intr(|| unsafe { ioctl(file, Setter::<SET, Attributes>::new(attributes)) })
    }
}

/// What of a file is in memory: `cachestat` of Linux 6.5 (`include/uapi/linux/mman.h`). No crate has this call.
mod cache {
    use super::{AsRawFd, BorrowedFd};

    /// Its number, which is the same on each processor that Linux numbers calls for in common.
    const CACHESTAT: libc::c_long = 451;

    #[repr(C)]
    struct AskedSpan {
        start: u64,
        len: u64,
    }

    /// In pages of memory.
    #[repr(C)]
    #[derive(Default)]
    struct CachedPages {
        cached: u64,
        dirty: u64,
        written_back: u64,
        evicted: u64,
        recently_evicted: u64,
    }

    /// Whether all of this is in memory; not where nobody can tell.
    #[allow(unsafe_code)] // No safe crate offers these calls.
    pub(super) fn holds(file: BorrowedFd<'_>, start: u64, len: u64) -> bool {
        let (span, mut found) = (AskedSpan { start, len }, CachedPages::default());
        // SAFETY: the descriptor is open for as long as it is borrowed; the kernel reads one structure and fills in the
        // other, both of plain numbers laid out as its header says. An older kernel refuses the number.
        let (answer, page_bytes) = unsafe {
            let answer = libc::syscall(
                CACHESTAT,
                file.as_raw_fd(),
                &raw const span,
                &raw mut found,
                0,
            );
            (answer, libc::sysconf(libc::_SC_PAGESIZE))
        };
        let page_bytes = u64::try_from(page_bytes).unwrap_or(0);
        answer == 0 && page_bytes > 0 && found.cached >= len.div_ceil(page_bytes)
    }
}

/// Which of a file's blocks other files have too: `FS_IOC_FIEMAP` (`Documentation/filesystems/fiemap.rst` of Linux,
/// `include/uapi/linux/fiemap.h`). No crate has this call.
mod extents {
    use super::{BorrowedFd, Errno, Opcode, Updater, ioctl, opcode, retry_on_intr};

    const FIEMAP: Opcode = opcode::read_write::<ExtentsHead>(b'f', 11);
    /// `FIEMAP_EXTENT_LAST`
    const IS_LAST: u32 = 0x0001;
    /// `FIEMAP_EXTENT_SHARED`
    const IS_SHARED: u32 = 0x2000;
    /// `FIEMAP_MAX_OFFSET`
    const TO_THE_END: u64 = u64::MAX;
    /// How many are asked for at a time; most files have fewer.
    const ASKED: u32 = 64;

    /// `struct fiemap`
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct ExtentsHead {
        start: u64,
        length: u64,
        flags: u32,
        mapped_extents: u32,
        extent_count: u32,
        reserved: u32,
    }

    /// `struct fiemap_extent`
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct FileExtent {
        logical: u64,
        physical: u64,
        length: u64,
        reserved_longs: [u64; 2],
        flags: u32,
        reserved: [u32; 3],
    }

    #[repr(C)]
    struct FileExtents {
        head: ExtentsHead,
        extents: [FileExtent; ASKED as usize],
    }

    pub(super) fn shared_bytes(file: BorrowedFd<'_>) -> Result<u64, Errno> {
        let (mut shared_bytes, mut start) = (0_u64, 0);
        loop {
            let mapped = mapped_from(file, start)?;
            let count = mapped.head.mapped_extents.min(ASKED) as usize;
            let extents = &mapped.extents[..count];
            for extent in extents.iter().filter(|it| it.flags & IS_SHARED != 0) {
                shared_bytes = shared_bytes.saturating_add(extent.length);
            }
            let Some(last) = extents.last() else {
                return Ok(shared_bytes);
            };
            let end = last.logical.saturating_add(last.length);
            if last.flags & IS_LAST != 0 || end <= start {
                return Ok(shared_bytes);
            }
            start = end;
        }
    }

    #[allow(unsafe_code)] // No safe crate offers this call.
    fn mapped_from(file: BorrowedFd<'_>, start: u64) -> Result<FileExtents, Errno> {
        let mut mapped = FileExtents {
            head: ExtentsHead {
                start,
                length: TO_THE_END - start,
                flags: 0,
                mapped_extents: 0,
                extent_count: ASKED,
                reserved: 0,
            },
            extents: [FileExtent::default(); ASKED as usize],
        };
        // SAFETY: the kernel writes at most `extent_count` extents behind the head, and that many are there; both
        // structures are plain numbers laid out as the kernel's header says, so whatever it writes is a value.
        retry_on_intr(|| unsafe { ioctl(file, Updater::<FIEMAP, FileExtents>::new(&mut mapped)) })?;
        Ok(mapped)
    }
}
