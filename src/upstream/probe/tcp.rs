//! A target is healthy when it accepts a connection, and finishes the TLS handshake if it speaks TLS.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::upstreams::peer::HttpPeer;

use super::{Connectors, Probe, describe, within};

/// Connects and hangs up.
pub struct TcpProbe {
    timeout: Duration,
    connectors: Arc<Connectors>,
}

impl TcpProbe {
    pub fn new(timeout: Duration, connectors: Arc<Connectors>) -> Self {
        TcpProbe { timeout, connectors }
    }
}

#[async_trait]
impl Probe for TcpProbe {
    async fn run(&self, peer: &HttpPeer) -> Result<(), String> {
        within(self.timeout, async {
            self.connectors.transport.new_stream(peer).await.map(drop).map_err(|e| describe(&e))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn probe(timeout: Duration) -> TcpProbe {
        TcpProbe::new(timeout, Arc::new(Connectors::new()))
    }

    #[tokio::test]
    async fn a_listening_port_is_healthy_and_a_closed_one_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = HttpPeer::new(listener.local_addr().unwrap(), false, String::new());
        let probe = probe(Duration::from_secs(5));
        assert_eq!(probe.run(&peer).await, Ok(()));
        drop(listener);
        assert_eq!(probe.run(&peer).await, Err("connect refused".into()));
    }

    #[tokio::test]
    async fn a_unix_socket_can_be_probed() {
        let path = std::env::temp_dir().join(format!("headgate-probe-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        let peer = HttpPeer::new_uds(path.to_str().unwrap(), false, String::new()).unwrap();
        assert_eq!(probe(Duration::from_secs(5)).run(&peer).await, Ok(()));
        std::fs::remove_file(&path).unwrap();
        assert!(probe(Duration::from_secs(5)).run(&peer).await.is_err());
    }

    #[tokio::test]
    async fn a_tls_target_that_never_answers_the_handshake_times_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = HttpPeer::new(listener.local_addr().unwrap(), true, "origin.test".into());
        let result = probe(Duration::from_millis(100)).run(&peer).await;
        assert_eq!(result, Err("timed out after 100ms".into()));
    }

    #[tokio::test]
    async fn a_target_that_does_not_speak_tls_fails_the_handshake() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = HttpPeer::new(listener.local_addr().unwrap(), true, "origin.test".into());
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        });
        let error = probe(Duration::from_secs(5)).run(&peer).await.unwrap_err();
        assert!(error.starts_with("TLS handshake failed"), "{error}");
    }
}
