//! How much a client may send; `errors.rs` has what a refusal looks like.

use crate::support::*;

#[tokio::test]
async fn the_limit_of_a_route_replaces_that_of_its_service() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("body_limit", &origin).await;
    for (path, kib, status) in [("/", 64, 200), ("/", 65, 413), ("/uploads/x", 1024, 200), ("/uploads/x", 1025, 413)] {
        let answer = gateway.call(&Call::post(path, vec![b'x'; kib << 10])).await;
        assert_eq!(answer.status, status, "{kib} KiB to {path}");
    }
    assert_eq!(origin.count(), 2, "nothing of a refused body counts as a request");
}
