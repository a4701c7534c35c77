//! A route may have less patience than its upstream.

use std::time::{Duration, Instant};

use crate::support::*;

#[tokio::test]
async fn an_answer_that_does_not_begin_in_time_is_a_504() {
    let origin = Origin::start(|_| Reply::ok("late").after(Duration::from_millis(1500))).await;
    let gateway = Gateway::example("timeout", &origin).await;
    let begun = Instant::now();
    let answer = gateway.get("/search").await;
    assert_eq!((answer.status, answer.problem().as_deref()), (504, Some("upstream_timeout")));
    assert!(begun.elapsed() < Duration::from_millis(1400), "{:?}", begun.elapsed());
    assert_eq!(gateway.get("/other").await.text(), "late", "other routes keep their patience");
}
