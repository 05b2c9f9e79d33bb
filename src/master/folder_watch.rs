//! What the kernel tells of a folder.
//! Never says what happened, only that something did. Invariant: a folder that cannot be watched is a silent one.

use std::io;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::net::unix::pipe::Receiver;

/// Enough for many events; those of one kind and file are told once.
const EVENTS_BYTES: usize = 4 << 10;

/// The kernel's words about a folder.
#[derive(Debug)]
pub(super) struct FolderWatch(Option<Receiver>);

impl FolderWatch {
    /// Listens from now on.
    pub(super) fn of(folder: &Path, events: WatchFlags) -> FolderWatch {
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let told = inotify::init(flags)
            .and_then(|told| inotify::add_watch(&told, folder, events).map(|_| told))
            .map_err(io::Error::from)
            // It is read like a pipe, and Tokio has no safe way that knows it by name.
            .and_then(Receiver::from_owned_fd_unchecked);
        if let Err(error) = &told {
            tracing::debug!("watch {}: {error}", folder.display());
        }
        FolderWatch(told.ok())
    }

    /// Whether the kernel would tell.
    pub(super) const fn is_heard(&self) -> bool {
        self.0.is_some()
    }

    /// Takes what was told so far; whether that was anything.
    pub(super) fn forget(&self) -> bool {
        let (mut events, mut is_told) = ([0_u8; EVENTS_BYTES], false);
        if let Some(told) = &self.0 {
            while matches!(rustix::io::read(told, &mut events), Ok(1..)) {
                is_told = true;
            }
        }
        is_told
    }

    /// Returns when something is told, never if it cannot be. Nothing is lost when it is dropped.
    pub(super) async fn told(&self) {
        let Some(told) = &self.0 else {
            return std::future::pending().await;
        };
        let mut events = [0_u8; EVENTS_BYTES];
        loop {
            let read = match told.readable().await {
                Ok(()) => told.try_read(&mut events),
                Err(error) => Err(error),
            };
            match read {
                Ok(1..) => return,
                // It was forgotten before anybody could look.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return std::future::pending().await,
            }
        }
    }
}
