//! The scripted provider itself, to be run by its program or within a test.

mod anthropic;
mod asked;
mod connection;
mod example;
mod gemini;
mod openai_chat;
mod openai_responses;
mod others;
mod play;
mod said;
pub mod script;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::net::TcpListener;

/// Answers by script. Clones share what they remember.
#[derive(Clone, Default)]
pub struct Provider {
    /// Whole exchanges, as bytes, by what they depend on.
    remembered: Arc<Mutex<HashMap<Vec<u8>, Bytes>>>,
}

/// Scripts are few; whoever sends other names all the time gets answers that are made each time.
const MOST_REMEMBERED: usize = 1024;

impl Provider {
    /// Answers everybody who connects.
    pub async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        loop {
            let (stream, _) = listener.accept().await?;
            let _ = stream.set_nodelay(true);
            let provider = self.clone();
            tokio::spawn(async move {
                // A caller that leaves is no news.
                let _ = connection::serve(provider, stream).await;
            });
        }
    }

    fn recall(&self, key: &[u8]) -> Option<Bytes> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn remember(&self, key: Vec<u8>, answer: &Bytes) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() < MOST_REMEMBERED {
            remembered.insert(key, answer.clone());
        }
    }
}
