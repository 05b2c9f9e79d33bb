//! Writes the indices of the archives that are open in this process.
//! Never reads a file of an archive, and never delays one. Invariant: an index is written only when every change of its
//! folder so far is in it, and the next one will give the folder another time.
//!
//! The kernel queues an event before the call returns that made it, and a folder's clock goes on within [`CLOCK_STEP`]. So when
//! that long nothing has changed and nothing is queued, whatever comes later has another time. A watch begins before
//! the folder is read, and whether a name is there is looked up behind each event about it: what changes later is told later.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use walmgr_protocol::names::WalSegmentSize;

use super::disk::{CLOCK_STEP, is_past};
use super::folder::Folder;
use super::held_names::{HeldNames, INDEX_NAME, NAMES_NAME};

/// Of the time, this part at most goes into writing an index.
const WRITING_SHARE: u32 = 20;

/// Enough for many events.
const EVENTS_BYTES: usize = 64 << 10;

/// File systems of this host alone, so that the kernel knows of every change: ext4, XFS, Btrfs, ZFS, tmpfs.
const LOCAL: [u64; 5] = [0xEF53, 0x5846_5342, 0x9123_683E, 0x2FC1_2FC1, 0x0102_1994];

/// Keeps the indices of a process.
pub(crate) struct IndexKeeper {
    asked: Option<Sender<IndexRequest>>,
    wake: Arc<OwnedFd>,
}

/// Keeps the index of one archive, until it is dropped.
pub(crate) struct KeptIndex {
    alive: Option<Arc<()>>,
    wake: Arc<OwnedFd>,
}

struct IndexRequest {
    folder: Arc<Folder>,
    size: WalSegmentSize,
    alive: Weak<()>,
}

impl IndexKeeper {
    /// Begins; `None` where the kernel tells nothing of folders.
    pub(crate) fn start() -> Option<IndexKeeper> {
        let start = || {
            let told = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
            let (asked, asks) = channel();
            let mut keeper = KeeperThread {
                told,
                wake: Arc::clone(&wake),
                asks,
                folders: BTreeMap::new(),
            };
            std::thread::Builder::new()
                .name("names".to_owned())
                .spawn(move || keeper.run())?;
            let asked = Some(asked);
            Ok::<_, io::Error>(IndexKeeper { asked, wake })
        };
        start()
            .inspect_err(|error| tracing::debug!("no index of names is kept: {error}"))
            .ok()
    }

    /// Keeps the index of this archive until the returned value is dropped; `None` if the archive lies on a file system
    /// of the network, where another host may change it unseen.
    pub(super) fn keep(&self, folder: Arc<Folder>, size: WalSegmentSize) -> Option<KeptIndex> {
        if !is_local(&folder) {
            return None;
        }
        // Here, so that the archive looks the same from now on but for what comes and goes.
        names_folder(&folder)
            .inspect_err(|error| tracing::debug!("no index of names is kept: {error}"))
            .ok()?;
        let alive = Arc::new(());
        let asked = IndexRequest {
            folder,
            size,
            alive: Arc::downgrade(&alive),
        };
        // Without its thread nothing is kept.
        let _ = self.asked.as_ref().map(|asks| asks.send(asked));
        wake(&self.wake);
        Some(KeptIndex {
            alive: Some(alive),
            wake: Arc::clone(&self.wake),
        })
    }
}

impl Drop for IndexKeeper {
    fn drop(&mut self) {
        self.asked = None;
        wake(&self.wake);
    }
}

impl Drop for KeptIndex {
    fn drop(&mut self) {
        self.alive = None;
        wake(&self.wake);
    }
}

fn wake(wake: &OwnedFd) {
    let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
}

struct KeeperThread {
    told: OwnedFd,
    wake: Arc<OwnedFd>,
    asks: Receiver<IndexRequest>,
    /// By the number of their watch.
    folders: BTreeMap<i32, KeptFolder>,
}

struct KeptFolder {
    folder: Arc<Folder>,
    size: WalSegmentSize,
    alive: Weak<()>,
    /// What is there; `None` until it is read.
    names: Option<HeldNames>,
    /// When the index is to be written.
    due: Option<Instant>,
}

impl KeeperThread {
    fn run(&mut self) {
        loop {
            self.wait();
            let is_asked = self.take_asks();
            self.take_events();
            self.folders.retain(|watch, kept| {
                let is_alive = kept.alive.strong_count() > 0;
                if !is_alive {
                    let _ = inotify::remove_watch(&self.told, *watch);
                }
                is_alive
            });
            if !is_asked && self.folders.is_empty() {
                return;
            }
            self.write_due();
        }
    }

    fn wait(&self) {
        let due = self.folders.values().filter_map(|kept| kept.due).min();
        let timeout = due.map(|due| {
            // To the millisecond above, or else this would turn without a rest.
            let wait = due.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec::try_from(wait).unwrap_or_default()
        });
        let mut polled = [
            PollFd::new(&self.told, PollFlags::IN),
            PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
        ];
        let _ = poll(&mut polled, timeout.as_ref());
        let mut woken = [0; 8];
        let _ = rustix::io::read(&*self.wake, &mut woken);
    }

    /// Whether somebody may still ask.
    fn take_asks(&mut self) -> bool {
        use std::sync::mpsc::TryRecvError;
        loop {
            let asked = match self.asks.try_recv() {
                Ok(asked) => asked,
                Err(error) => return error == TryRecvError::Empty,
            };
            // By the folder that is open, wherever its path leads by now.
            let path = format!("/proc/self/fd/{}", asked.folder.handle().as_raw_fd());
            let events = WatchFlags::CREATE
                | WatchFlags::DELETE
                | WatchFlags::MOVED_FROM
                | WatchFlags::MOVED_TO
                | WatchFlags::ONLYDIR;
            match inotify::add_watch(&self.told, path, events) {
                Ok(watch) => drop(
                    self.folders.insert(
                        watch,
                        KeptFolder {
                            names: asked
                                .folder
                                .indexed()
                                .filter(|names| names.is_of(asked.size)),
                            folder: asked.folder,
                            size: asked.size,
                            alive: asked.alive,
                            due: Some(Instant::now() + CLOCK_STEP),
                        },
                    ),
                ),
                Err(error) => tracing::debug!("no index of names is kept: {error}"),
            }
        }
    }

    /// Takes what the kernel tells; says of which folders.
    fn take_events(&mut self) -> BTreeSet<i32> {
        let mut changed = BTreeSet::new();
        let mut room = vec![MaybeUninit::uninit(); EVENTS_BYTES];
        let mut events = inotify::Reader::new(&self.told, &mut room);
        while let Ok(event) = events.next() {
            let (watch, what) = (event.wd(), event.events());
            if what.contains(ReadFlags::QUEUE_OVERFLOW) {
                for (watch, kept) in &mut self.folders {
                    kept.names = None;
                    changed.insert(*watch);
                }
                continue;
            }
            if what.contains(ReadFlags::IGNORED) {
                self.folders.remove(&watch);
                continue;
            }
            let Some(kept) = self.folders.get_mut(&watch) else {
                continue;
            };
            changed.insert(watch);
            // What is no UTF-8 is in no listing either.
            let name = event.file_name().and_then(|name| name.to_str().ok());
            if let (Some(names), Some(name)) = (&mut kept.names, name) {
                // Events of two names that change places do not say that both stay.
                let (disk, handle) = (&kept.folder.disk, kept.folder.handle());
                match disk.stat_at(handle, name).is_ok() {
                    true => names.add(name),
                    false => names.remove(name),
                }
            }
        }
        let now = Instant::now();
        for watch in &changed {
            if let Some(kept) = self.folders.get_mut(watch) {
                kept.due = Some(kept.due.unwrap_or(now).max(now + CLOCK_STEP));
            }
        }
        changed
    }

    fn write_due(&mut self) {
        let now = Instant::now();
        let due = self.folders.iter();
        let due = due.filter(|(_, kept)| kept.due.is_some_and(|due| due <= now));
        let due: Vec<i32> = due.map(|(watch, _)| *watch).collect();
        for watch in due {
            self.write(watch);
        }
    }

    /// Writes an index, unless something changes meanwhile: then it is due again.
    fn write(&mut self, watch: i32) {
        let Some(kept) = self.folders.get_mut(&watch) else {
            return;
        };
        let begun = Instant::now();
        kept.due = None;
        if kept.names.is_none() {
            match HeldNames::list(&kept.folder, kept.size) {
                Ok(names) => kept.names = Some(names),
                Err(error) => return tracing::debug!("no index of names is kept: {error}"),
            }
        }
        let moment = kept.folder.moment();
        let Some(moment) = moment.filter(|moment| is_past(moment.changed_ns)) else {
            kept.due = Some(Instant::now() + CLOCK_STEP);
            return;
        };
        if self.take_events().contains(&watch) {
            return;
        }
        let Some(kept) = self.folders.get_mut(&watch) else {
            return;
        };
        let is_still = kept.folder.moment().as_ref() == Some(&moment);
        let text = kept.names.as_ref().and_then(|names| names.text(&moment));
        if !is_still {
            kept.due = Some(Instant::now() + CLOCK_STEP);
        } else if let Some(text) = text
            && let Err(error) = replace(&kept.folder, text.as_bytes())
        {
            tracing::debug!("no index of names is kept: {error}");
        }
        let rest = begun.elapsed() * WRITING_SHARE;
        kept.due = kept.due.map(|due| due.max(Instant::now() + rest));
    }
}

/// Whether only this host changes what lies there.
fn is_local(folder: &Folder) -> bool {
    let found = rustix::fs::fstatfs(folder.handle());
    let kind = found
        .ok()
        .and_then(|found| u64::try_from(found.f_type).ok());
    kind.is_some_and(|kind| LOCAL.contains(&kind))
}

/// The folder of the index, which is made where there is none. By the folder that is open: another one may lie at its path by now.
fn names_folder(completed: &Folder) -> io::Result<OwnedFd> {
    let (disk, handle, name) = (&completed.disk, completed.handle(), OsStr::new(NAMES_NAME));
    match disk.enter(handle, name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            disk.make_directory(handle, name)?;
            disk.enter(handle, name)
        }
        other => other,
    }
}

/// Puts an index in the place of the one before. Not synced: one that a power cut leaves is of another boot.
fn replace(completed: &Folder, text: &[u8]) -> io::Result<()> {
    const NEW: &str = "index.new";
    let (disk, names) = (&completed.disk, names_folder(completed)?);
    match disk.remove(names.as_fd(), NEW) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => other?,
    }
    let file = disk.create(names.as_fd(), NEW)?;
    disk.write_all(file.as_fd(), text, 0)?;
    disk.rename_over(names.as_fd(), NEW, INDEX_NAME)
}
