//! Callers without credentials: they are guests, and nobody becomes one by presenting bad credentials.

use crate::support::gateway::{headgate, key_hash};
use crate::support::*;

/// The key of the example.
const KEY: &str = "hgk_exampleexampleexampleexample01231XI1lm";

#[tokio::test]
async fn the_example_makes_callers_without_a_key_guests() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("anonymous", &origin).await;
    assert_eq!(gateway.get("/").await.status, 200);
    let received = origin.last().await;
    assert_eq!(received.headers.get("x-consumer-username"), Some("guest"));
    assert_eq!(received.headers.get("x-consumer-team"), Some("public"));
    assert_eq!(received.headers.get("x-anonymous-consumer"), Some("true"));
    assert_eq!(gateway.call(&Call::get("/").header("X-Api-Key", KEY)).await.status, 200);
    let received = origin.last().await;
    assert_eq!(received.headers.get("x-consumer-username"), Some("mobile"));
    assert_eq!(received.headers.get("x-anonymous-consumer"), None);
    assert_eq!(received.headers.get("x-consumer-team"), None, "nothing of the guest is left to the next");
}

#[tokio::test]
async fn bad_credentials_make_nobody_anonymous() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("anonymous", &origin).await;
    for presented in ["wrong", "", &format!("{KEY}x")] {
        let answer = gateway.call(&Call::get("/").header("X-Api-Key", presented)).await;
        assert_eq!((answer.status, answer.problem().as_deref()), (401, Some("invalid_credentials")), "{presented:?}");
    }
    let spoofed = Call::get("/").header("X-Consumer-Username", "mobile").header("X-Anonymous-Consumer", "false");
    assert_eq!(gateway.call(&spoofed).await.status, 200);
    assert_eq!(origin.last().await.headers.get("x-consumer-username"), Some("guest"));
    assert_eq!(origin.last().await.headers.get("x-anonymous-consumer"), Some("true"));
}

fn yaml(require: &str, anonymous: &str) -> String {
    format!(
        "
services:
  s:
    access: authenticated
    require: {require}
    filters: [{{ anonymous: {anonymous} }}, {{ api_key: {{}} }}, {{ basic_auth: {{}} }}]
    routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ upstream: origin }} }} }}
upstreams: {{ origin: {{ targets: [{{ address: '{{{{origin}}}}' }}] }} }}
consumers: {{ mobile: {{ credentials: [{{ api_key: {{ hash: '{}' }} }}] }}, guest: {{}} }}
",
        key_hash("k-e-y")
    )
}

#[tokio::test]
async fn part_of_what_is_required_is_not_anonymous() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::builder(&yaml("all", "{ consumer: guest }")).origin(&origin).start().await;
    assert_eq!(gateway.get("/").await.status, 200, "nothing was presented");
    assert_eq!(origin.last().await.headers.get("x-consumer-username"), Some("guest"));
    assert_eq!(gateway.call(&Call::get("/").header("X-Api-Key", "k-e-y")).await.status, 401);
}

#[tokio::test]
async fn a_guest_may_be_nobody_in_particular() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::builder(&yaml("any", "{}")).origin(&origin).start().await;
    assert_eq!(gateway.get("/").await.status, 200);
    let received = origin.last().await;
    assert_eq!(received.headers.get("x-consumer-username"), None);
    assert_eq!(received.headers.get("x-anonymous-consumer"), Some("true"));
    assert_eq!(gateway.call(&Call::get("/").header("X-Api-Key", "k-e-y")).await.status, 200);
    assert_eq!(origin.last().await.headers.get("x-consumer-username"), Some("mobile"));
}

#[test]
fn a_guest_that_does_not_exist_is_refused_with_a_suggestion() {
    let scratch = scratch::Scratch::new();
    scratch.write("pepper", "a pepper");
    let yaml = yaml("any", "{ consumer: gest }").replace("{{origin}}", "127.0.0.1:1");
    let file = scratch.write("headgate.yaml", yaml + "\nlisteners: { http: { address: '127.0.0.1:1' } }\n");
    let output = headgate(&["check", "-c", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("services.s.filters[0].anonymous.consumer"), "{said}");
    assert!(said.contains("there is no consumer named `gest`") && said.contains("guest"), "{said}");
}
