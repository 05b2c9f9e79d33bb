//! A disk that writes down every operation, and fails or stops where a test says.
//! Never fails on its own. Invariant: once frozen it changes nothing any more, as a process that
//! was killed.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Barrier, Mutex};

use rustix::io::Errno;

use crate::files::FileId;
use crate::store::disk::{Disk, FileStat};
use crate::store::tree::{Node, Tree};

/// The operations of [`Disk`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    CreateDirectory,
    OpenDirectory,
    IdentityAt,
    Stat,
    StatAt,
    Names,
    Create,
    Open,
    OpenLock,
    Reopen,
    Lock,
    Read,
    Allocate,
    Write,
    SetLen,
    StartWriteback,
    ForgetCache,
    SyncFile,
    SyncBytes,
    Close,
    RenameNew,
    RenameOver,
    Link,
    LinkInto,
    Remove,
    SyncDirectory,
    FreeBytes,
    MakeDirectory,
    Enter,
    MakeFile,
    ReopenFile,
    OpenFile,
    MakeLink,
    Node,
    Entries,
    RemoveName,
    RemoveDirectory,
    LockShared,
    SyncEverything,
}

struct Fault {
    op: Op,
    /// What the name has to begin with.
    about: String,
    /// Calls of `op` that still go well before it fails.
    after: usize,
    /// How often it fails.
    times: usize,
    errno: Errno,
}

#[derive(Default)]
struct State {
    log: Vec<(Op, String)>,
    names: HashMap<RawFd, String>,
    faults: Vec<Fault>,
    freeze_after: Option<usize>,
    stall: Option<(Op, Arc<Barrier>)>,
    /// Calls that were let through.
    done: usize,
}

/// A real disk of which a test chooses the calls that fail, or the one behind which nothing happens any more.
pub(crate) struct FaultyDisk {
    inner: Arc<dyn Disk>,
    state: Mutex<State>,
}

impl FaultyDisk {
    pub(crate) fn over(inner: Arc<dyn Disk>) -> Arc<Self> {
        Arc::new(FaultyDisk {
            inner,
            state: Mutex::default(),
        })
    }

    /// Lets `after` calls of `op` pass and fails the `times` calls behind them.
    pub(crate) fn fail(&self, op: Op, after: usize, times: usize, errno: Errno) {
        let fault = Fault {
            op,
            about: String::new(),
            after,
            times,
            errno,
        };
        self.state.lock().unwrap().faults.push(fault);
    }

    /// Fails the first `op` on a file whose name begins so.
    pub(crate) fn fail_named(&self, op: Op, about: &str, errno: Errno) {
        let fault = Fault {
            op,
            about: about.to_owned(),
            after: 0,
            times: 1,
            errno,
        };
        self.state.lock().unwrap().faults.push(fault);
    }

    /// Lets `count` more operations pass; everything behind them fails, clean-up included.
    pub(crate) fn freeze_after(&self, count: usize) {
        let mut state = self.state.lock().unwrap();
        state.freeze_after = Some(state.done + count);
    }

    /// Stalls the next `op`: it waits twice at what is returned, first when it is reached, then to go on.
    pub(crate) fn stall(&self, op: Op) -> Arc<Barrier> {
        let barrier = Arc::new(Barrier::new(2));
        self.state.lock().unwrap().stall = Some((op, Arc::clone(&barrier)));
        barrier
    }

    /// Whether an operation was refused because of a freeze.
    pub(crate) fn is_frozen(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.freeze_after.is_some_and(|limit| state.done >= limit)
    }

    /// Every operation so far, with the name it was about.
    pub(crate) fn log(&self) -> Vec<(Op, String)> {
        self.state.lock().unwrap().log.clone()
    }

    fn before(&self, op: Op, name: &str) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.log.push((op, name.to_owned()));
        if state.freeze_after.is_some_and(|limit| state.done >= limit) {
            return Err(Errno::IO.into());
        }
        state.done += 1;
        if let Some((_, barrier)) = state.stall.take_if(|(stalled, _)| *stalled == op) {
            drop(state);
            barrier.wait();
            barrier.wait();
            state = self.state.lock().unwrap();
        }
        let concerned = |fault: &&mut Fault| fault.op == op && name.starts_with(&fault.about);
        for fault in state.faults.iter_mut().filter(concerned) {
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 {
                fault.times -= 1;
                return Err(fault.errno.into());
            }
        }
        Ok(())
    }

    fn before_file(&self, op: Op, file: BorrowedFd<'_>) -> io::Result<()> {
        let name = self
            .state
            .lock()
            .unwrap()
            .names
            .get(&file.as_raw_fd())
            .cloned();
        self.before(op, &name.unwrap_or_default())
    }

    fn named(&self, file: io::Result<OwnedFd>, name: &str) -> io::Result<OwnedFd> {
        let file = file?;
        let mut state = self.state.lock().unwrap();
        state.names.insert(file.as_raw_fd(), name.to_owned());
        Ok(file)
    }
}

impl Disk for FaultyDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.before(Op::CreateDirectory, &path.to_string_lossy())?;
        self.inner.create_directory(path)
    }

    fn open_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.before(Op::OpenDirectory, &name)?;
        self.named(self.inner.open_directory(path), &name)
    }

    fn identity_at(&self, path: &Path) -> io::Result<FileId> {
        self.before(Op::IdentityAt, &path.to_string_lossy())?;
        self.inner.identity_at(path)
    }

    fn stat(&self, file: BorrowedFd<'_>) -> io::Result<FileStat> {
        self.before_file(Op::Stat, file)?;
        self.inner.stat(file)
    }

    fn stat_at(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<FileStat> {
        self.before(Op::StatAt, name)?;
        self.inner.stat_at(directory, name)
    }

    fn names(&self, directory: BorrowedFd<'_>) -> io::Result<Vec<String>> {
        self.before_file(Op::Names, directory)?;
        self.inner.names(directory)
    }

    fn create(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        self.before(Op::Create, name)?;
        self.named(self.inner.create(directory, name), name)
    }

    fn open(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        self.before(Op::Open, name)?;
        self.named(self.inner.open(directory, name), name)
    }

    fn open_lock(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        self.before(Op::OpenLock, name)?;
        self.named(self.inner.open_lock(directory, name), name)
    }

    fn open_lock_to_hold(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        self.before(Op::OpenLock, name)?;
        self.named(self.inner.open_lock_to_hold(directory, name), name)
    }

    fn reopen(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        self.before(Op::Reopen, name)?;
        self.named(self.inner.reopen(directory, name), name)
    }

    fn lock(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        self.before_file(Op::Lock, file)?;
        self.inner.lock(file)
    }

    fn read(&self, file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.before_file(Op::Read, file)?;
        self.inner.read(file, buffer, offset)
    }

    fn allocate(&self, file: BorrowedFd<'_>, len: u64) -> io::Result<()> {
        self.before_file(Op::Allocate, file)?;
        self.inner.allocate(file, len)
    }

    fn write(&self, file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.before_file(Op::Write, file)?;
        self.inner.write(file, bytes, offset)
    }

    fn set_len(&self, file: BorrowedFd<'_>, len: u64) -> io::Result<()> {
        self.before_file(Op::SetLen, file)?;
        self.inner.set_len(file, len)
    }

    fn share_content(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
        self.inner.share_content(from, to)
    }

    fn set_modified(&self, file: BorrowedFd<'_>, modified_ns: i64) -> io::Result<()> {
        self.inner.set_modified(file, modified_ns)
    }

    fn start_writeback(&self, file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
        self.before_file(Op::StartWriteback, file)?;
        self.inner.start_writeback(file, offset, len)
    }

    fn forget_cache(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.before_file(Op::ForgetCache, file)?;
        self.inner.forget_cache(file)
    }

    fn sync_file(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.before_file(Op::SyncFile, file)?;
        self.inner.sync_file(file)
    }

    fn sync_bytes(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.before_file(Op::SyncBytes, file)?;
        self.inner.sync_bytes(file)
    }

    fn close(&self, file: OwnedFd) -> io::Result<()> {
        use std::os::fd::AsFd;
        self.before_file(Op::Close, file.as_fd())?;
        self.inner.close(file)
    }

    fn rename_new(&self, directory: BorrowedFd<'_>, from: &str, to: &str) -> io::Result<()> {
        self.before(Op::RenameNew, to)?;
        self.inner.rename_new(directory, from, to)
    }

    fn rename_over(&self, directory: BorrowedFd<'_>, from: &str, to: &str) -> io::Result<()> {
        self.before(Op::RenameOver, to)?;
        self.inner.rename_over(directory, from, to)
    }

    fn link(&self, directory: BorrowedFd<'_>, from: &str, to: &str) -> io::Result<()> {
        self.before(Op::Link, to)?;
        self.inner.link(directory, from, to)
    }

    fn link_into(
        &self,
        directory: BorrowedFd<'_>,
        from: &str,
        other: BorrowedFd<'_>,
        to: &str,
    ) -> io::Result<()> {
        self.before(Op::LinkInto, to)?;
        self.inner.link_into(directory, from, other, to)
    }

    fn remove(&self, directory: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        self.before(Op::Remove, name)?;
        self.inner.remove(directory, name)
    }

    fn sync_directory(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        self.before_file(Op::SyncDirectory, directory)?;
        self.inner.sync_directory(directory)
    }

    fn free_bytes(&self, directory: BorrowedFd<'_>) -> io::Result<u64> {
        self.before_file(Op::FreeBytes, directory)?;
        self.inner.free_bytes(directory)
    }
}

impl FaultyDisk {
    fn before_name(&self, op: Op, name: &OsStr) -> io::Result<()> {
        self.before(op, &name.to_string_lossy())
    }

    fn opened(&self, file: io::Result<OwnedFd>, name: &OsStr) -> io::Result<OwnedFd> {
        self.named(file, &name.to_string_lossy())
    }
}

impl Tree for FaultyDisk {
    fn make_directory(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        self.before_name(Op::MakeDirectory, name)?;
        self.inner.make_directory(directory, name)
    }

    fn enter(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        self.before_name(Op::Enter, name)?;
        self.opened(self.inner.enter(directory, name), name)
    }

    fn enter_linked(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        self.before_name(Op::Enter, name)?;
        self.opened(self.inner.enter_linked(directory, name), name)
    }

    fn make_file(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        self.before_name(Op::MakeFile, name)?;
        self.opened(self.inner.make_file(directory, name), name)
    }

    fn reopen_file(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        self.before_name(Op::ReopenFile, name)?;
        self.opened(self.inner.reopen_file(directory, name), name)
    }

    fn open_file(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        self.before_name(Op::OpenFile, name)?;
        self.opened(self.inner.open_file(directory, name), name)
    }

    fn make_link(&self, directory: BorrowedFd<'_>, name: &OsStr, target: &OsStr) -> io::Result<()> {
        self.before_name(Op::MakeLink, name)?;
        self.inner.make_link(directory, name, target)
    }

    fn node(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<Node> {
        self.before_name(Op::Node, name)?;
        self.inner.node(directory, name)
    }

    fn entries(&self, directory: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
        self.before_file(Op::Entries, directory)?;
        self.inner.entries(directory)
    }

    fn remove_name(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        self.before_name(Op::RemoveName, name)?;
        self.inner.remove_name(directory, name)
    }

    fn remove_directory(&self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        self.before_name(Op::RemoveDirectory, name)?;
        self.inner.remove_directory(directory, name)
    }

    fn lock_shared(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        self.before_file(Op::LockShared, file)?;
        self.inner.lock_shared(file)
    }

    fn sync_everything(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        self.before_file(Op::SyncEverything, directory)?;
        self.inner.sync_everything(directory)
    }
}
