//! Bounds how many requests of a key are in flight at a time.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::oneshot;

use super::key::{By, Key};
use super::report::{Report, Told, place};
use crate::config::units;
use crate::error::Reason;
use crate::filters::filter::{Compiled, Flow, OnRequestPerhaps, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::limits::{Exceeded, Standing};

/// Lets at most `limit` requests of a key be in flight at a time, from here to the last byte of the answer; a WebSocket
/// to its end. One more waits in the `queue`, if there is one, and is answered 429 if it finds no place there or waits
/// too long. A request is counted out whichever way it ends.
///
/// ```yaml
/// concurrency:
///   limit: 20
///   by: consumer
///   queue: { size: 10, wait: 500ms }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Requests of one key at a time.
    #[schemars(range(min = 1))]
    pub limit: u32,
    /// What counts together. A request without it counts by its client's address.
    #[serde(default)]
    pub by: By,
    /// Where requests above the limit wait for their turn, the first first. Left out: none waits.
    pub queue: Option<Queue>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// Requests of one key that wait at a time.
    #[schemars(range(min = 1))]
    pub size: u32,
    /// For how long at most.
    pub wait: units::Duration,
}

pub struct Concurrency {
    limit: u32,
    key: Key,
    queue: Option<(usize, Duration)>,
    /// Where the filter stands in the configuration: its counters are found again there after a reload.
    report: Report,
    counters: Arc<Counters>,
}

impl FilterKind for Concurrency {
    const NAME: &'static str = "concurrency";
    const STAGE: Stage = Stage::Limit;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let key = Key::compile(&config.by, at)?;
        let queue = config.queue.map(|queue| (queue.size as usize, queue.wait.get()));
        if queue.is_some_and(|(_, wait)| wait.is_zero()) {
            at.problems.add(format!("{}.queue.wait", at.path), "nobody waits for no time at all");
            return None;
        }
        let counters = at.lasting.kept(at.path, Counters::default);
        let name = place(at.path, Self::NAME);
        let policy = [(name.as_str(), u64::from(config.limit), SOON)];
        let report = Report::new(policy.into_iter(), Told::Nothing, &at.lasting.counters);
        Some(Compiled::on_request_perhaps(Concurrency { limit: config.limit, key, queue, report, counters }))
    }
}

#[async_trait]
impl OnRequestPerhaps for Concurrency {
    fn on_request(&self, request: &mut Request<'_>) -> Option<Flow> {
        match self.counters.ask(self.key.of_or_address(request), self.limit, 0) {
            Asked::Entered(place) => Some(enter(place, request)),
            _ if self.queue.is_some() => None,
            _ => Some(self.refuse(request)),
        }
    }

    async fn wait(&self, request: &mut Request<'_>) -> Flow {
        let (room, patience) = self.queue.unwrap_or_default();
        match self.counters.ask(self.key.of_or_address(request), self.limit, room) {
            Asked::Entered(place) => enter(place, request),
            Asked::Full => self.refuse(request),
            Asked::Waits(turn) => match tokio::time::timeout(patience, turn).await {
                Ok(Ok(place)) => enter(place, request),
                _ => self.refuse(request),
            },
        }
    }
}

/// The exchange holds the place until its end, whichever that is.
fn enter(place: Place, request: &mut Request<'_>) -> Flow {
    request.controls.held.push(Box::new(place));
    Flow::Continue
}

impl Concurrency {
    fn refuse(&self, request: &mut Request<'_>) -> Flow {
        request.exchange.cause = Some("too many requests of its key are in flight");
        let standing = Standing { amount: self.limit.into(), remaining: 0, reset: SOON, window: SOON };
        let exceeded = Exceeded { index: 0, standing, retry_after: SOON };
        let error = self.report.refuse(Reason::ConcurrencyExceeded, &exceeded, request);
        Flow::Refuse(error.member("in_flight", self.limit))
    }
}

/// How many requests of each key are in flight. A key that nobody uses takes no room, so that there are never more keys
/// than requests.
#[derive(Default)]
pub struct Counters {
    shards: [Mutex<Counts>; SHARDS],
}

const SHARDS: usize = 16;

/// When a place will be free nobody knows; that is soon enough to try again.
const SOON: Duration = Duration::from_secs(1);

type Counts = HashMap<u64, Count, foldhash::fast::RandomState>;

#[derive(Default)]
struct Count {
    /// As of the last request: after a reload it may be another.
    limit: u32,
    in_flight: u32,
    waiting: VecDeque<oneshot::Sender<Place>>,
}

impl Count {
    /// Counts in who waits, as long as there is room.
    fn let_in(&mut self) -> Vec<oneshot::Sender<Place>> {
        let mut let_in = Vec::new();
        while self.in_flight < self.limit
            && let Some(waiting) = self.waiting.pop_front()
        {
            // Who has given up is skipped.
            if !waiting.is_closed() {
                self.in_flight += 1;
                let_in.push(waiting);
            }
        }
        let_in
    }
}

/// What came of asking for a place.
enum Asked {
    Entered(Place),
    Waits(oneshot::Receiver<Place>),
    Full,
}

impl Counters {
    /// Asks for a place among `limit` in flight, or else for one among `room` that wait. Nobody passes those who wait.
    fn ask(self: &Arc<Self>, key: u64, limit: u32, room: usize) -> Asked {
        let mut shard = self.shard(key);
        let count = shard.entry(key).or_default();
        count.limit = limit;
        let let_in = count.let_in();
        let asked = if count.in_flight < limit {
            count.in_flight += 1;
            Asked::Entered(Place { key, counters: self.clone() })
        } else {
            if count.waiting.len() >= room {
                count.waiting.retain(|waiting| !waiting.is_closed());
            }
            if count.waiting.len() < room {
                let (sender, receiver) = oneshot::channel();
                count.waiting.push_back(sender);
                Asked::Waits(receiver)
            } else {
                Asked::Full
            }
        };
        drop(shard);
        self.hand_over(key, let_in);
        asked
    }

    /// Counts one out, and lets in who waits.
    fn leave(self: &Arc<Self>, key: u64) {
        let mut shard = self.shard(key);
        let Some(count) = shard.get_mut(&key) else { return };
        count.in_flight = count.in_flight.saturating_sub(1);
        let let_in = count.let_in();
        if count.in_flight == 0 && count.waiting.is_empty() {
            shard.remove(&key);
        }
        drop(shard);
        self.hand_over(key, let_in);
    }

    /// Outside the lock: one that has given up this moment gives its place back, and is counted out again.
    fn hand_over(self: &Arc<Self>, key: u64, let_in: Vec<oneshot::Sender<Place>>) {
        for waiting in let_in {
            drop(waiting.send(Place { key, counters: self.clone() }));
        }
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, Counts> {
        let shard = &self.shards[key as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn keys(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().len()).sum()
    }

    #[cfg(test)]
    fn enter(self: &Arc<Self>, key: u64, limit: u32) -> Option<Place> {
        match self.ask(key, limit, 0) {
            Asked::Entered(place) => Some(place),
            _ => None,
        }
    }
}

/// One request in flight. Its end counts it out.
struct Place {
    key: u64,
    counters: Arc<Counters>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counters.leave(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_than_the_limit_and_nothing_is_left() {
        let counters = Arc::new(Counters::default());
        let places: Vec<_> = (0..10).map(|_| counters.enter(1, 3)).collect();
        assert_eq!(places.iter().flatten().count(), 3);
        assert!(counters.enter(2, 3).is_some(), "other keys are not affected");
        drop(places);
        assert!(counters.enter(1, 3).is_some());
        assert_eq!(counters.keys(), 0, "a key that nobody uses takes no room");
    }

    #[test]
    fn exact_with_many_threads() {
        let counters = Arc::new(Counters::default());
        let most = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let now = Arc::new(std::sync::atomic::AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5000 {
                        if let Some(place) = counters.enter(7, 3) {
                            let at_once = now.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                            most.fetch_max(at_once, std::sync::atomic::Ordering::SeqCst);
                            std::hint::spin_loop();
                            now.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                            drop(place);
                        }
                    }
                });
            }
        });
        assert!(most.load(std::sync::atomic::Ordering::SeqCst) <= 3);
        assert_eq!(counters.keys(), 0);
    }

    #[tokio::test]
    async fn who_waits_is_let_in_first_come_first_served() {
        let counters = Arc::new(Counters::default());
        let first = counters.enter(1, 1).unwrap();
        let Asked::Waits(second) = counters.ask(1, 1, 2) else { panic!("there is room to wait") };
        let Asked::Waits(third) = counters.ask(1, 1, 2) else { panic!("there is room to wait") };
        assert!(matches!(counters.ask(1, 1, 2), Asked::Full));
        assert!(counters.enter(1, 1).is_none(), "nobody passes those who wait");
        drop(second);
        drop(first);
        let place = third.await.expect("who has given up is skipped");
        assert!(counters.enter(1, 1).is_none());
        drop(place);
        assert_eq!(counters.keys(), 0);
    }

    #[test]
    fn a_place_that_comes_too_late_is_given_back() {
        let counters = Arc::new(Counters::default());
        let first = counters.enter(1, 1).unwrap();
        let Asked::Waits(mut second) = counters.ask(1, 1, 1) else { panic!("there is room to wait") };
        drop(first);
        let place = second.try_recv().expect("its turn has come");
        drop(second);
        drop(place);
        assert_eq!(counters.keys(), 0);
    }

    #[test]
    fn a_smaller_limit_of_a_reload_holds_at_once() {
        let counters = Arc::new(Counters::default());
        let before: Vec<_> = (0..3).filter_map(|_| counters.enter(1, 3)).collect();
        assert!(counters.enter(1, 1).is_none());
        drop(before);
        assert!(counters.enter(1, 1).is_some());
    }

    #[test]
    fn a_larger_limit_lets_in_who_waits() {
        let counters = Arc::new(Counters::default());
        let first = counters.enter(1, 1);
        let Asked::Waits(mut second) = counters.ask(1, 1, 1) else { panic!("there is room to wait") };
        let third = counters.enter(1, 3);
        assert!(first.is_some() && third.is_some() && second.try_recv().is_ok());
    }

    #[test]
    #[ignore = "a measurement: cargo nextest run --release --run-ignored all a_place_takes --no-capture"]
    fn a_place_takes() {
        let counters = Arc::new(Counters::default());
        let began = std::time::Instant::now();
        for n in 0..1_000_000u64 {
            drop(std::hint::black_box(counters.enter(n % 1000, 10)));
        }
        eprintln!("{} ns for one in and out", began.elapsed().as_nanos() / 1_000_000);
    }
}
