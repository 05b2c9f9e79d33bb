//! Ships what PostgreSQL has ready, or has just closed, before its archiver asks for it.
//! Never reports a failure to anybody: whoever asks for the file hears of it from a try of his own. Invariant: a proof
//! belongs to a file that had this stamp before it was read and has it still.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use walmgr_protocol::names::WalFileName;

use super::courier::Courier;
use super::marks;
use super::shared::AgentShared;
use super::words::ProvenFile;
use crate::error::{Kind, Result};
use crate::files::{ChangeStamp, file_clock};
use crate::master::archived_file::ArchivedFile;
use crate::master::backoff::backoff;
use crate::pg::layout;

/// How long a connection is kept for the next file.
const KEEP_FOR: Duration = Duration::from_secs(60);

/// How soon a file that was just written is looked at again: most clocks of file systems tick within this.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Takes one file after another.
pub(super) async fn carry(shared: Arc<AgentShared>) {
    let mut courier = Courier::new(Arc::clone(&shared), Some(KEEP_FOR));
    let mut has_work = shared.has_work.subscribe();
    let mut failures = 0_u32;
    loop {
        has_work.mark_unchanged();
        let Some((name, ticket)) = next(&shared) else {
            tokio::select! {
                changed = has_work.changed() => if changed.is_err() { return },
                () = courier.idle() => {}
                // One that was just written is taken a moment later.
                () = sleep(LOOK_AGAIN), if shared.first().is_some() => {}
            }
            continue;
        };
        let carried = carry_one(&shared, &mut courier, name).await;
        match carried {
            Ok(stored) => {
                failures = 0;
                shared.done(name, stored);
                drop(ticket);
            }
            Err(error) => {
                tracing::debug!("{name} is not shipped ahead: {error}");
                shared.shelf().put_back(name);
                drop(ticket);
                failures = failures.saturating_add(1);
                tokio::select! {
                    () = sleep(backoff(failures)) => {}
                    () = shared.is_there.notified() => {}
                }
            }
        }
    }
}

/// The next file, if its time has come.
fn next(shared: &AgentShared) -> Option<(WalFileName, tokio::sync::watch::Sender<()>)> {
    let archiver_asks = shared.looks_ahead();
    let mut shelf = shared.shelf();
    let name = shelf.first(archiver_asks)?;
    let path = shared
        .config
        .master_data
        .join(layout::PG_WAL)
        .join(name.to_string());
    let now = file_clock();
    let is_fresh = (path.metadata()).is_ok_and(|found| ChangeStamp::of(&found).is_fresh(now));
    if !shelf.is_closed(name) && is_fresh {
        return None;
    }
    let next = shelf.next(archiver_asks);
    shared.meter.waits(shelf.waiting());
    if shelf.is_out_of_work() {
        shared.out_of_work.notify_one();
    }
    next
}

/// Ships one, if it is still wanted and fit for it. An error is one that may be gone the next time.
async fn carry_one(
    shared: &Arc<AgentShared>,
    courier: &mut Courier,
    name: WalFileName,
) -> Result<Option<ProvenFile>> {
    let (config, archiver_asks) = (shared.config.clone(), shared.looks_ahead());
    let opened = tokio::task::spawn_blocking(move || {
        let data = &config.master_data;
        let path = data.join(layout::PG_WAL).join(name.to_string());
        let is_wanted = match archiver_asks {
            true => marks::is_wanted(data, name),
            // A server that archives nothing closes segments, too.
            false => marks::is_ready(data, name),
        };
        is_wanted.then(|| ArchivedFile::open(&config, &path, name))
    });
    let Ok(Some(Ok(source))) = opened.await else {
        return Ok(None);
    };
    let pushed = tokio::time::timeout(shared.config.push_timeout, courier.push(&source)).await;
    let crc32 = match pushed {
        Ok(Ok(crc32)) => crc32,
        Ok(Err(error)) if matches!(error.kind(), Kind::Conflict | Kind::ForeignCluster) => {
            return Ok(None);
        }
        Ok(Err(error)) => return Err(error),
        Err(_) => {
            return Err(crate::master::archived_file::not_in_time(
                &shared.config,
                name,
            ));
        }
    };
    if source.stamp_now() != Some(source.stamp) {
        return Ok(None);
    }
    let (of, slave) = (source.name, &shared.config.slave);
    tracing::debug!("{of} is durable on {slave}, asked for or not");
    Ok(Some(ProvenFile {
        name: source.name,
        stamp: source.stamp,
        crc32,
    }))
}
