//! The official SDK of the Model Context Protocol and its conformance tests, through the gateway.

use crate::support::process::{Everything, conformance, mcp_client};
use crate::support::*;

/// With a server behind the gateway that has all that the tests ask for, under its own names.
fn federated() -> &'static str {
    "
services:
  api: { routes: { time: { match: { path: '/time/{zone}' }, backend: { respond: { json: { zone: '${path.zone}' } } } } } }
  tools:
    routes:
      mcp:
        match: { path: /mcp }
        backend:
          mcp:
            tools: { get_time: { route: api/time, description: What time it is } }
            servers: { everything: { url: 'http://{{everything}}/mcp', prefix: '', bearer: env:TOKEN } }
"
}

/// A thread has 2 MiB of stack, and requests to servers are the deepest work there is: they must leave room.
const STACK: &str = "1600000";

async fn gateway(server: &Everything) -> Gateway {
    let builder = Gateway::builder(federated()).with("everything", server.address);
    builder.environment("TOKEN", "the-token").environment("RUST_MIN_STACK", STACK).start().await
}

#[tokio::test]
async fn the_protocols_own_conformance_tests_pass() {
    let server = Everything::start();
    let gateway = gateway(&server).await;
    conformance(gateway.address("http"), &[]).await;
    for scenario in ["json-schema-2020-12", "server-sse-polling"] {
        conformance(gateway.address("http"), &["--scenario", scenario]).await;
    }
}

#[tokio::test]
async fn the_official_client_calls_published_routes_and_federated_tools() {
    let server = Everything::start();
    let gateway = gateway(&server).await;
    mcp_client(gateway.address("http")).await;
}
