//! Who carries files to the receiver over a connection that is kept.
//! Never takes a word of a connection that had been idle for a refusal: it asks again over a new one. Invariant: a
//! connection that anything was left under way on is not kept.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};
use walmgr_protocol::message::{ClusterIdentity, Message};
use walmgr_protocol::names::TimelineId;
use walmgr_protocol::session::push::PushOutcome;

use super::shared::AgentShared;
use crate::error::{CommandError, Result};
use crate::master::archived_file::{ArchivedFile, verdict};
use crate::master::push::Pushed;
use crate::transport::connect::Connection;

/// A connection that was not used for so long is asked first whether its other end is there: something between the
/// two may have forgotten it.
const ASK_AFTER: Duration = Duration::from_secs(5);

/// How long the answer to that may take. A new connection costs less than waiting for longer.
const THERE_WITHIN: Duration = Duration::from_secs(1);

/// The receiver pings within this; without, it is gone.
const SILENCE_MAX: Duration = Duration::from_secs(40);

/// One connection at a time, and the way to the next.
pub(super) struct Courier {
    shared: Arc<AgentShared>,
    kept: Option<KeptConnection>,
    /// How long a connection is kept for nothing.
    keep_for: Option<Duration>,
}

struct KeptConnection {
    connection: Connection,
    of: (ClusterIdentity, TimelineId),
    used: Instant,
}

impl Courier {
    /// One without a connection, who keeps it for so long when there is nothing to carry.
    pub(super) const fn new(shared: Arc<AgentShared>, keep_for: Option<Duration>) -> Courier {
        Courier {
            shared,
            kept: None,
            keep_for,
        }
    }

    /// Pushes a file, and returns its checksum if it is stored.
    pub(super) async fn push(&mut self, source: &ArchivedFile) -> Result<u32> {
        let config = &Arc::clone(&self.shared).config;
        let digest = source.start_digest();
        let kept = self.kept_for(source).await;
        let is_kept = kept.is_some();
        let mut connection = match kept {
            Some(connection) => connection,
            None => source.connect(config).await?,
        };
        let crc32 = digest.await?;
        let mut pushed = source.push_over(config, &mut connection, crc32).await;
        let is_final = matches!(
            pushed.as_ref().map(|pushed| &pushed.outcome),
            Ok(PushOutcome::Stored | PushOutcome::Conflict(_) | PushOutcome::SourceChanged)
        );
        if is_kept && !is_final {
            connection = source.connect(config).await?;
            pushed = source.push_over(config, &mut connection, crc32).await;
        }
        let Pushed { outcome, crc32 } = pushed?;
        if matches!(outcome, PushOutcome::Stored | PushOutcome::Conflict(_)) {
            self.kept = Some(KeptConnection {
                connection,
                of: (source.facts.cluster, source.facts.timeline),
                used: Instant::now(),
            });
        }
        verdict(config, source.name, outcome)?;
        // What is stored was committed, or offered and found there.
        crc32.ok_or_else(|| CommandError::retry("learn the checksum of what was stored"))
    }

    /// Lets time pass, and returns when the connection that is kept has ended. Dropping it loses nothing.
    pub(super) async fn idle(&mut self) {
        let Some(kept) = &mut self.kept else {
            return std::future::pending().await;
        };
        let ends = self.keep_for.map(|keep_for| kept.used + keep_for);
        let kept_long_enough = async {
            match ends {
                Some(ends) => sleep_until(ends).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Nothing but pings is expected: whatever it says else is an end.
            _ = kept.connection.wire.next_within(SILENCE_MAX) => self.kept = None,
            () = kept_long_enough => {
                if let Some(kept) = self.kept.take() {
                    kept.connection.wire.goodbye().await;
                }
            }
        }
    }

    /// The connection that is kept, if it is one of this file's cluster and its other end is there.
    async fn kept_for(&mut self, source: &ArchivedFile) -> Option<Connection> {
        let of = (source.facts.cluster, source.facts.timeline);
        let mut kept = self.kept.take().filter(|kept| kept.of == of)?;
        if kept.used.elapsed() > ASK_AFTER {
            timeout(THERE_WITHIN, is_there(&mut kept.connection))
                .await
                .ok()
                .flatten()?;
        }
        Some(kept.connection)
    }
}

async fn is_there(connection: &mut Connection) -> Option<()> {
    let wire = &mut connection.wire;
    wire.send(0, &Message::Ping).await.ok()?;
    loop {
        let frame = wire.receive().await.ok()?;
        match frame.message {
            Message::Pong => return Some(()),
            Message::Ping => wire.send(frame.channel, &Message::Pong).await.ok()?,
            _ => return None,
        }
    }
}
