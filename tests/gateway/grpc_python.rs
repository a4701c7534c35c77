//! gRPC between a real client and a real server: grpcio on both sides.

use crate::support::process::{GrpcServer, grpc_client};
use crate::support::*;

const GRPC: &str = "
listeners: { grpc: { address: '{{grpc}}', protocols: [h2c] } }
upstreams: { grpc: { targets: [{ address: '{{origin}}' }], protocol: h2c } }
services: { s: { routes: { all: { match: { path_prefix: / }, backend: { upstream: grpc } } } } }
";

async fn through_the_gateway(scenario: &'static str) {
    let server = GrpcServer::start();
    let gateway = Gateway::builder(GRPC).with("origin", server.address).start().await;
    grpc_client(gateway.address("grpc"), scenario).await;
}

#[tokio::test]
async fn unary_calls_keep_messages_metadata_and_trailers() {
    through_the_gateway("unary").await;
}

#[tokio::test]
async fn streams_of_servers_clients_and_both_flow() {
    through_the_gateway("streams").await;
}

#[tokio::test]
async fn errors_keep_their_status_message_and_trailers() {
    through_the_gateway("errors").await;
}

#[tokio::test]
async fn a_deadline_cancels_the_call_at_the_server() {
    through_the_gateway("deadline").await;
}

#[tokio::test]
async fn hundreds_of_calls_at_once_are_answered() {
    through_the_gateway("many").await;
}

#[tokio::test]
async fn a_server_that_is_away_is_unavailable() {
    let gateway = Gateway::start(GRPC).await;
    grpc_client(gateway.address("grpc"), "unavailable").await;
}

#[tokio::test]
async fn the_health_service_takes_a_server_out_and_back_in() {
    let server = GrpcServer::start();
    let yaml = GRPC.replace(
        "protocol: h2c }",
        "protocol: h2c, health: { active: { grpc: {}, interval: 100ms, healthy_after: 1, unhealthy_after: 1 } } }",
    );
    let gateway = Gateway::builder(&yaml).with("origin", server.address).start().await;
    let healthy = |wanted: f64| gateway.metric_becomes("headgate_upstream_target_healthy", &[], move |is| is == wanted);
    assert!(healthy(1.0).await);
    grpc_client(gateway.address("grpc"), "unary").await;
    grpc_client(server.address, "not_serving").await;
    assert!(healthy(0.0).await, "the server says that it does not serve");
    grpc_client(gateway.address("grpc"), "unavailable").await;
    grpc_client(server.address, "serving").await;
    assert!(healthy(1.0).await);
    grpc_client(gateway.address("grpc"), "unary").await;
}
