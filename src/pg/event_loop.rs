//! An event loop for one conversation with a server, of a command that otherwise waits for nothing.
//! Never runs two at once, and never outlives its answer. Invariant: a host name that is still being looked up holds
//! nobody's exit back.

use std::future::Future;

use crate::error::{CommandError, Result};

/// Runs a conversation to its end on this thread.
pub(crate) fn converse<T>(conversation: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::retry("start the event loop").because(error))?;
    let answer = runtime.block_on(conversation);
    runtime.shutdown_background();
    answer
}
