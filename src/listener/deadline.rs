//! Waiting for a client, but not for ever: one lazy timer per connection, and a measure of the pace a client keeps.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

/// A timer that is armed at most once per timeout, not once per request.
///
/// Moving a deadline back costs nothing: the timer fires at the old one, and is armed again. Only an earlier deadline
/// touches the runtime's timer wheel, which all threads share. No timer exists until something is first waited for.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Ready if the deadline has passed; otherwise the task is woken when it does.
    pub fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let at = tokio::time::Instant::from_std(deadline);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if tokio::time::Instant::now() >= at {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
        Poll::Pending
    }
}

/// How long a client may still keep us waiting.
///
/// The allowance is one timeout. Waiting uses it up; each byte earns back the time it may take at the minimum rate, up
/// to the whole. A client that pauses and then makes up for it is served; one that sends a byte now and then is not.
#[derive(Debug, Default)]
pub(super) struct Pace {
    used: Duration,
    since: Option<Instant>,
}

impl Pace {
    /// The client keeps us waiting: when is it too long?
    pub fn waiting(&mut self, now: impl FnOnce() -> Instant, timeout: Duration) -> Instant {
        *self.since.get_or_insert_with(now) + timeout.saturating_sub(self.used)
    }

    /// Bytes were moved, at once or after a wait.
    pub fn moved(&mut self, bytes: usize, now: impl FnOnce() -> Instant, timeout: Duration, min_rate: u64) {
        let Some(since) = self.since.take() else { return };
        if min_rate == 0 {
            self.used = Duration::ZERO;
            return;
        }
        let earned = Duration::from_secs_f64((bytes as f64 / min_rate as f64).min(timeout.as_secs_f64()));
        self.used = (self.used + now().saturating_duration_since(since)).saturating_sub(earned).min(timeout);
    }

    pub fn reset(&mut self) {
        *self = Pace::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    /// When a client that sends `bytes` every `every` is given up, within an hour.
    fn given_up(bytes: usize, every: Duration, min_rate: u64) -> Option<Duration> {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut now = start;
        while now < start + Duration::from_secs(3600) {
            let deadline = pace.waiting(|| now, TIMEOUT);
            if deadline <= now + every {
                return Some(deadline - start);
            }
            now += every;
            pace.moved(bytes, || now, TIMEOUT, min_rate);
        }
        None
    }

    #[test]
    fn a_dripping_client_is_given_up_after_one_timeout() {
        let end = given_up(1, Duration::from_millis(500), 240).unwrap();
        assert!(end >= TIMEOUT && end < TIMEOUT + Duration::from_secs(2), "{end:?}");
    }

    #[test]
    fn a_client_at_the_minimum_rate_is_served() {
        assert_eq!(given_up(240, Duration::from_secs(1), 240), None);
        assert_eq!(given_up(64 << 10, Duration::from_secs(50), 240), None, "pauses that it makes up for");
    }

    #[test]
    fn without_minimum_rate_only_silence_counts() {
        assert_eq!(given_up(1, Duration::from_secs(59), 0), None);
        assert_eq!(given_up(1, Duration::from_secs(61), 0), Some(TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_follows_its_deadline_both_ways() {
        use std::future::poll_fn;
        use tokio::time;

        let start = time::Instant::now();
        let at = |secs| (start + Duration::from_secs(secs)).into_std();
        let mut alarm = Alarm::default();
        for (first, then) in [(10, 30), (60, 40)] {
            assert!(poll_fn(|cx| Poll::Ready(alarm.poll(cx, at(first)).is_pending())).await);
            poll_fn(|cx| alarm.poll(cx, at(then))).await;
            assert_eq!(start.elapsed().as_secs(), then, "{first} s, then {then} s");
        }
    }
}
