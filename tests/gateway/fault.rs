//! Trouble on demand.

use std::time::{Duration, Instant};

use crate::support::*;

#[tokio::test]
async fn delays_and_aborts_come_as_configured() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("fault", &origin).await;
    let begun = Instant::now();
    assert_eq!(gateway.get("/slow").await.status, 200);
    assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
    for _ in 0..5 {
        let answer = gateway.get("/broken").await;
        assert_eq!((answer.status, answer.problem().as_deref()), (503, Some("fault_injected")));
    }
    assert_eq!(origin.requests().len(), 1, "an aborted call does not reach the origin");
}

#[tokio::test]
async fn a_share_of_faults_is_about_that_share() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("fault", &origin).await;
    let mut client = gateway.connect().await;
    let mut failed = 0;
    for _ in 0..500 {
        failed += usize::from(client.get("/").await.unwrap().status == 500);
    }
    // Ten percent of 500; seven standard deviations on either side.
    assert!((3..=97).contains(&failed), "{failed} of 500");
}
