//! A document that an authority publishes: fetched in the background, again now and then, and kept when the authority is
//! down. Requests read it without a lock and never wait for a fetch that is not already the first one.

use std::collections::HashMap;
use std::sync::atomic::Ordering::*;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// The least time between two fetches that requests have asked for. Whoever invents key ids makes no more of them.
const BETWEEN_ASKS: Duration = Duration::from_secs(30);

/// After a failure it is tried again after one second, then after twice as long each time.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// One content of a document.
pub struct Version<T> {
    /// Changes with the content, and only with it.
    pub revision: u64,
    pub value: T,
}

/// A document that is kept up to date.
pub struct Refreshed<T> {
    current: ArcSwapOption<Version<T>>,
    revision: AtomicU64,
    started: Instant,
    /// When a request may next ask for a fetch, in milliseconds since `started`.
    next_ask: AtomicU64,
    /// A fetch is running, or about to.
    busy: AtomicBool,
    /// How many have ended.
    ended: watch::Sender<u64>,
    wake: Arc<Notify>,
}

impl<T> Default for Refreshed<T> {
    /// One that nobody fetches.
    fn default() -> Self {
        Refreshed {
            current: ArcSwapOption::empty(),
            revision: AtomicU64::new(0),
            started: Instant::now(),
            next_ask: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            ended: watch::Sender::new(0),
            wake: Arc::default(),
        }
    }
}

impl<T: Send + Sync + 'static> Refreshed<T> {
    /// Begins to fetch: at once, and again every `interval`. A fetch returns the bytes that tell whether anything has
    /// changed, and what they mean; its error is for the log. It has to end by itself. All of it stops once nobody holds
    /// the document any more.
    pub fn start<F, R>(name: String, interval: Duration, background: &Handle, fetch: F) -> Arc<Self>
    where
        F: Fn() -> R + Send + 'static,
        R: Future<Output = Result<(Vec<u8>, T), String>> + Send,
    {
        let document = Arc::new(Refreshed::default());
        document.busy.store(true, Release);
        let (weak, wake) = (Arc::downgrade(&document), document.wake.clone());
        background.spawn(async move {
            let (mut known, mut failures) = (None, 0u32);
            while weak.strong_count() > 0 {
                let fetched = fetch().await;
                let Some(document) = weak.upgrade() else { return };
                let pause = match fetched {
                    Ok((bytes, value)) => {
                        if failures > 0 {
                            log::info!("{name}: fetched again");
                        }
                        failures = 0;
                        document.take(&mut known, &bytes, value);
                        interval
                    }
                    Err(error) => {
                        let kept = if known.is_some() { "; what was fetched before stays in use" } else { "" };
                        log::warn!("{name}: {error}{kept}");
                        failures += 1;
                        (Duration::from_millis(500) * 2u32.pow(failures.min(8))).min(LONGEST_PAUSE).min(interval)
                    }
                };
                document.busy.store(false, Release);
                document.ended.send_modify(|count| *count += 1);
                drop(document);
                // Gateways that were started together do not ask together for ever.
                let _ = timeout(pause.mul_f64(0.9 + 0.2 * fastrand::f64()), wake.notified()).await;
                if let Some(document) = weak.upgrade() {
                    document.busy.store(true, Release);
                }
            }
        });
        document
    }

    fn take(&self, known: &mut Option<Vec<u8>>, bytes: &[u8], value: T) {
        if known.as_deref() == Some(bytes) {
            return;
        }
        *known = Some(bytes.to_vec());
        let revision = self.revision.load(Acquire) + 1;
        self.current.store(Some(Arc::new(Version { revision, value })));
        self.revision.store(revision, Release);
    }
}

impl<T> Refreshed<T> {
    /// `None` until it was fetched for the first time.
    pub fn current(&self) -> Option<Arc<Version<T>>> {
        self.current.load_full()
    }

    /// The revision of what is current; 0 before there is anything.
    pub fn revision(&self) -> u64 {
        self.revision.load(Acquire)
    }

    /// Asks for a fetch out of turn, since what is current lacks something. True if one is on its way.
    pub fn ask(&self) -> bool {
        if self.busy.load(Acquire) {
            return true;
        }
        let now = self.started.elapsed().as_millis() as u64;
        let next = self.next_ask.load(Acquire);
        let until = now + BETWEEN_ASKS.as_millis() as u64;
        if now < next || self.next_ask.compare_exchange(next, until, AcqRel, Acquire).is_err() {
            return self.busy.load(Acquire);
        }
        self.busy.store(true, Release);
        self.wake.notify_one();
        true
    }

    /// Whether the first fetch is still under way.
    pub fn begins(&self) -> bool {
        self.busy.load(Acquire) && *self.ended.borrow() == 0
    }

    /// Waits for the end of the fetch that is on its way, if there is one.
    pub async fn settled(&self, at_most: Duration) {
        let mut ended = self.ended.subscribe();
        if self.busy.load(Acquire) {
            let _ = timeout(at_most, ended.changed()).await;
        }
    }
}

impl<T> Drop for Refreshed<T> {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

/// Documents that are in use, so that a reload goes on with what was fetched before it.
pub struct Kept<T>(Mutex<HashMap<String, Weak<Refreshed<T>>>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept(Mutex::default())
    }
}

impl<T> Kept<T> {
    /// The document of this key; `start` begins one that nobody uses yet.
    pub fn get(&self, key: String, start: impl FnOnce() -> Arc<Refreshed<T>>) -> Arc<Refreshed<T>> {
        let mut documents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        documents.retain(|_, document| document.strong_count() > 0);
        if let Some(document) = documents.get(&key).and_then(Weak::upgrade) {
            return document;
        }
        let document = start();
        documents.insert(key, Arc::downgrade(&document));
        document
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    type Answer = Result<(Vec<u8>, u32), String>;

    fn scripted(answers: Vec<Answer>) -> (Arc<Refreshed<u32>>, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let document = Refreshed::start("a document".into(), Duration::from_secs(600), &Handle::current(), move || {
            let answer = answers.get(counted.fetch_add(1, SeqCst)).cloned();
            async move { answer.unwrap_or_else(|| Err("down".into())) }
        });
        (document, count)
    }

    fn value(n: u32) -> Answer {
        Ok((vec![n as u8], n))
    }

    async fn ended(document: &Refreshed<u32>, count: u64) {
        document.ended.subscribe().wait_for(|ended| *ended >= count).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_fetched_stays_when_the_authority_is_down() {
        let (document, _) = scripted(vec![Err("down".into()), value(7), Err("down".into()), value(7), value(8)]);
        assert!(document.begins() && document.current().is_none());
        ended(&document, 2).await;
        assert_eq!((document.current().unwrap().value, document.revision()), (7, 1), "after a second it was there");
        ended(&document, 3).await;
        assert_eq!(document.current().unwrap().value, 7);
        ended(&document, 4).await;
        assert_eq!(document.revision(), 1, "the same content is no new revision");
        ended(&document, 5).await;
        assert_eq!((document.current().unwrap().value, document.revision()), (8, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_at_once_cause_one_fetch() {
        let (document, count) = scripted(vec![value(1), value(2), value(3)]);
        ended(&document, 1).await;
        for _ in 0..10_000 {
            document.ask();
        }
        ended(&document, 2).await;
        assert!((0..10_000).all(|_| !document.ask()), "not again so soon");
        assert_eq!(count.load(SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_document_that_nobody_uses_is_fetched_no_more() {
        let (document, count) = scripted(vec![value(1), value(1), value(1)]);
        ended(&document, 1).await;
        let weak = Arc::downgrade(&document);
        drop(document);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!((count.load(SeqCst), weak.strong_count()), (1, 0));
    }

    #[test]
    fn a_reload_goes_on_with_the_same_document() {
        let kept = Kept::<u32>::default();
        let one = kept.get("a".into(), Arc::default);
        assert!(Arc::ptr_eq(&one, &kept.get("a".into(), Arc::default)));
        assert!(!Arc::ptr_eq(&one, &kept.get("b".into(), Arc::default)));
        drop(one);
        kept.get("c".into(), Arc::default);
        assert!(kept.0.lock().unwrap().len() <= 1, "documents that nobody uses are forgotten");
    }
}
