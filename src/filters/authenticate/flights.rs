//! Asking once for all who want to know the same at the same time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::remembered::Digest;

/// Questions that are being asked. They run in the background and outlive requests that have given up waiting.
pub struct Flights<A> {
    open: Mutex<HashMap<Digest, watch::Receiver<Option<A>>>>,
    most: usize,
}

impl<A: Clone + Send + Sync + 'static> Flights<A> {
    /// `most`: how many may be open at once.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Flights { open: Mutex::default(), most })
    }

    /// Waits for the answer to a question, which is asked unless somebody has begun to. `None` if too much is being asked
    /// already, or the process is ending. The question needs a time limit of its own.
    pub async fn join<F>(self: &Arc<Self>, digest: Digest, background: &Handle, ask: impl FnOnce() -> F) -> Option<A>
    where
        F: Future<Output = A> + Send + 'static,
    {
        let mut answer = self.begin(digest, background, ask)?;
        answer.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone())
    }

    fn begin<F>(
        self: &Arc<Self>,
        digest: Digest,
        background: &Handle,
        ask: impl FnOnce() -> F,
    ) -> Option<watch::Receiver<Option<A>>>
    where
        F: Future<Output = A> + Send + 'static,
    {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = open.get(&digest) {
            return Some(same.clone());
        }
        if open.len() >= self.most {
            return None;
        }
        let (answered, answer) = watch::channel(None);
        open.insert(digest, answer.clone());
        let flight = Flight { flights: self.clone(), digest };
        let asking = ask();
        background.spawn(async move {
            let answer = asking.await;
            // Before it is said: whoever comes later finds it where the question has put it.
            drop(flight);
            answered.send_replace(Some(answer));
        });
        Some(answer)
    }
}

/// A question that is being asked; its end, whichever way it comes, makes room for another.
struct Flight<A> {
    flights: Arc<Flights<A>>,
    digest: Digest,
}

impl<A> Drop for Flight<A> {
    fn drop(&mut self) {
        self.flights.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.digest);
    }
}
