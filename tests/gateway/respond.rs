//! Answers without any origin.

use crate::support::*;

#[tokio::test]
async fn mocks_and_notices_answer_without_the_origin() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("respond", &origin).await;
    let mock = gateway.call(&Call::get("/users/7").header("User-Agent", "tester")).await;
    assert_eq!((mock.status, mock.header("content-type")), (200, Some("application/json")));
    assert_eq!(mock.json(), serde_json::json!({ "id": "7", "agent": "tester" }));
    let notice = gateway.get("/anything").await;
    assert_eq!(
        (notice.status, notice.header("retry-after"), notice.text().as_str()),
        (503, Some("120"), "Back soon.\n")
    );
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn values_of_a_request_do_not_break_out_of_a_json_body() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("respond", &origin).await;
    let answer = gateway.call(&Call::get("/users/7").header("User-Agent", "\", \"admin\": \"true")).await;
    assert_eq!(answer.json()["admin"], serde_json::Value::Null, "{}", answer.text());
}

#[tokio::test]
async fn the_connection_goes_on_after_an_unread_body() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("respond", &origin).await;
    let mut client = gateway.connect().await;
    for _ in 0..3 {
        assert_eq!(client.call(&Call::post("/x", vec![b'x'; 100_000])).await.unwrap().status, 503);
    }
}
