//! Files of an old directory that are compared while what is missing of others comes.
//! Never outlives whoever waits for it. Invariant: when it is dropped, its thread writes nothing any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::stream::Streams;
use crate::error::{CommandError, Result};

/// A thread of its own that compares.
pub(super) struct Comparing<T> {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    found: oneshot::Receiver<Result<T>>,
}

impl<T: Send + 'static> Comparing<T> {
    /// Begins with what ends soon when it is told that it is over.
    pub(super) fn begin(
        compare: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static,
    ) -> Result<Comparing<T>> {
        let (say, found) = oneshot::channel();
        let is_over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_over);
        let thread = std::thread::Builder::new().spawn(move || drop(say.send(compare(&told))));
        let thread = thread.map_err(|error| {
            CommandError::retry("begin a thread that compares the old directory").because(error)
        })?;
        Ok(Comparing {
            is_over,
            thread: Some(thread),
            found,
        })
    }

    /// What was found. A receiver that would have to wait long for the next question is let go.
    pub(super) async fn found(
        mut self,
        patience: Duration,
        streams: &mut Streams<'_, '_>,
    ) -> Result<T> {
        let found = match tokio::time::timeout(patience, &mut self.found).await {
            Ok(found) => found,
            Err(_) => {
                streams.pause().await;
                (&mut self.found).await
            }
        };
        found.map_err(|_| CommandError::retry("wait for a thread that compares"))?
    }
}

impl<T> Drop for Comparing<T> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Whoever waited has heard that it panicked.
            let _ = thread.join();
        }
    }
}
