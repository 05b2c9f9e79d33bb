//! A question of a connection that is being looked into, while the connection is served.
//! Never looks into it itself. Invariant: whoever looks hears that nobody waits any more, and whoever waits that
//! nobody looks.

use tokio::sync::oneshot;
use walmgr_protocol::message::{Error, Message};

use crate::receiver::worker::{self, AwaitedWork};

/// The answer that is awaited, if any is.
#[derive(Default)]
pub(crate) struct SetAsking(Option<oneshot::Receiver<Result<Message, Error>>>);

impl SetAsking {
    /// Whether an answer is awaited.
    pub(crate) const fn is_busy(&self) -> bool {
        self.0.is_some()
    }

    /// Awaits this answer.
    pub(crate) fn begin(&mut self, answer: oneshot::Receiver<Result<Message, Error>>) {
        self.0 = Some(answer);
    }

    /// The answer; never comes while nothing is asked. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Message {
        let Some(answer) = &mut self.0 else {
            return std::future::pending().await;
        };
        let answer = answer.await;
        self.0 = None;
        let lost = |_| Err(worker::failed_on(AwaitedWork::SetQuestion.words()));
        answer.unwrap_or_else(lost).unwrap_or_else(Message::Error)
    }
}
