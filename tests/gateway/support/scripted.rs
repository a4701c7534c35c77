//! The scripted provider of `load-tests`, within the test: the name of a model says what it answers.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

#[allow(dead_code, reason = "its program uses the rest")]
#[path = "../../../load-tests/scripted_provider/mod.rs"]
mod provider;

/// Runs until dropped.
pub struct Scripted {
    pub address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Scripted {
    pub async fn start() -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port for the provider");
        let address = listener.local_addr().expect("a bound listener has an address");
        let serving = tokio::spawn(async move {
            let _ = provider::Provider::default().serve(listener).await;
        });
        Scripted { address, serving }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
