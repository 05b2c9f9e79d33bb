//! Sees to it that the shelf knows what PostgreSQL has ready.
//! Never reads the marks for nobody: only while there is an archiver that asks. Invariant: a backlog is read once for so
//! many files as fit the shelf, not once for each.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::marks::{self, Marks};
use super::shared::AgentShared;
use super::shelf::WAITING_MAX;
use crate::master::folder_watch::FolderWatch;
use rustix::fs::inotify::WatchFlags;

/// A folder that tells nothing is read this often.
const READ_INTERVAL: Duration = Duration::from_secs(10);

/// While there is something to do, the folder is read again at most this often for what is told of it.
const REREAD_INTERVAL: Duration = Duration::from_secs(1);

/// Sees to it that the shelf knows what is ready, as long as there is an archiver that asks.
pub(super) async fn watch(shared: Arc<AgentShared>) {
    let data = &shared.config.master_data;
    let told = FolderWatch::of(
        &marks::folder(data),
        WatchFlags::CREATE | WatchFlags::MOVED_TO,
    );
    let mut has_news = true;
    let mut read_at: Option<Instant> = None;
    // Or it would be read for each file of a backlog that is shipped already.
    let mut gave_work = true;
    loop {
        let is_read_lately = || read_at.is_some_and(|at| at.elapsed() < REREAD_INTERVAL);
        let needs_more = gave_work && shared.is_out_of_work();
        if has_news && shared.looks_ahead() && (needs_more || !is_read_lately()) {
            let (data, proven) = (data.clone(), shared.shelf().proven());
            let read = tokio::task::spawn_blocking(move || Marks::read(&data, proven)).await;
            match read.map_err(io::Error::other).and_then(|marks| marks) {
                Ok(marks) => {
                    // There may be more where those came from.
                    has_news = marks.ready.len() >= WAITING_MAX;
                    gave_work = shared.are_ready(marks);
                }
                Err(error) => {
                    has_news = false;
                    tracing::debug!("read archive_status: {error}");
                }
            }
            read_at = Some(Instant::now());
        }
        tokio::select! {
            () = told.told() => has_news = true,
            () = shared.out_of_work.notified() => {}
            () = tokio::time::sleep(READ_INTERVAL) => has_news = true,
        }
    }
}
