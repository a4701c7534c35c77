//! A configuration in a directory: its files are one document, merged by name.

use crate::support::*;

const SERVICES: &str = "
services:
  one: { routes: { r: { match: { path: /one }, backend: { respond: { body: one } } } } }
";
const MORE: &str = "
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services:
  two: { routes: { r: { match: { path: /two }, backend: { upstream: origin } } } }
";

fn answering(body: &str) -> String {
    format!(
        "services: {{ two: {{ routes: {{ r: {{ match: {{ path: /two }}, backend: {{ respond: {{ body: {body} }} }} }} }} }} }}\n"
    )
}

async fn gateway(origin: &Origin) -> Gateway {
    Gateway::builder(SERVICES)
        .origin(origin)
        .beside("more.yml", MORE)
        .beside("notes.txt", "no: yaml: here")
        .start()
        .await
}

#[tokio::test]
async fn files_are_merged_by_name_and_others_ignored() {
    let origin = Origin::named("a").await;
    let gateway = gateway(&origin).await;
    assert_eq!(gateway.get("/one").await.text(), "one");
    assert_eq!(gateway.get("/two").await.text(), "a");
}

#[tokio::test]
async fn a_changed_added_or_removed_file_is_noticed() {
    let origin = Origin::named("a").await;
    let mut gateway = gateway(&origin).await;
    gateway.write_beside("more.yml", &answering("changed"));
    assert!(eventually(PATIENCE, || async { gateway.get("/two").await.text() == "changed" }).await, "changed");
    let three =
        "services: { three: { routes: { r: { match: { path: /three }, backend: { respond: { body: three } } } } } }\n";
    gateway.write_beside("third.yaml", three);
    assert!(eventually(PATIENCE, || async { gateway.get("/three").await.text() == "three" }).await, "added");
    std::fs::remove_file(gateway.config().join("more.yml")).unwrap();
    assert!(eventually(PATIENCE, || async { gateway.get("/two").await.status == 404 }).await, "removed");
    assert_eq!(gateway.get("/one").await.text(), "one");
}

#[tokio::test]
async fn one_name_in_two_files_is_refused_and_both_files_are_named() {
    let origin = Origin::named("a").await;
    let mut gateway = gateway(&origin).await;
    gateway.write_beside("twice.yaml", &answering("other"));
    let reload = gateway.admin(&Call::new("POST", "/reload")).await;
    let said = reload.text();
    assert!((400..500).contains(&reload.status), "{} {said}", reload.status);
    assert!(said.contains("more.yml") && said.contains("twice.yaml"), "{said}");
    assert_eq!(gateway.get("/two").await.text(), "a");
}

#[tokio::test]
async fn problems_are_told_with_the_file_and_line_they_are_in() {
    let origin = Origin::named("a").await;
    let mut gateway = gateway(&origin).await;
    gateway.write_beside("third.yaml", "services:\n  three:\n    routs: {}\n");
    let said = gateway.admin(&Call::new("POST", "/reload")).await.text();
    assert!(said.contains("third.yaml") && said.contains("routs") && said.contains("routes"), "{said}");
    assert!(said.contains("third.yaml:3"), "{said}");
}
