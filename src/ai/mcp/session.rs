//! Sessions of callers: bounded in number and time, and each its owner's alone.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom};
use serde_json::Value;
use tokio::sync::{Notify, OnceCell, watch};

use super::Version;

/// Bounds on sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub max: usize,
    pub per_caller: usize,
    pub idle: Duration,
    pub lifetime: Duration,
}

/// What a session begins with.
pub struct Beginning<'b> {
    /// Who it belongs to.
    pub owner: &'b str,
    /// Who it is counted for; also those who say nothing of themselves are told apart by it.
    pub counted: &'b str,
    pub version: Version,
    pub client: Value,
    pub capabilities: Value,
}

/// All sessions of one route.
pub struct Sessions {
    /// Looked up by every message.
    open: papaya::HashMap<Box<str>, Arc<Session>, foldhash::fast::RandomState>,
    /// The ids of each owner's, those begun first in front. Locked when a session begins or ends only.
    owners: Mutex<Owners>,
    began: Instant,
}

#[derive(Default)]
struct Owners {
    ids: HashMap<Box<str>, VecDeque<Box<str>>>,
    /// When those that have become too old were last taken away.
    swept: Duration,
}

/// How often those that have become too old are looked for.
const SWEEP: Duration = Duration::from_secs(10);

/// Where the session with a server is, once it has been opened.
pub type Place = Arc<OnceCell<Arc<ServerSession>>>;

/// One session of a caller.
pub struct Session {
    pub id: Box<str>,
    /// Who began it; nobody else finds it.
    owner: Box<str>,
    pub version: Version,
    /// What the client said of itself, which servers are told.
    pub client: Value,
    pub capabilities: Value,
    /// By the name of the server.
    servers: Mutex<HashMap<Arc<str>, Place>>,
    /// Requests under way, by their ids as JSON.
    calls: Mutex<HashMap<String, Call>>,
    /// Of the last `logging/setLevel`.
    level: Mutex<Option<Value>>,
    /// Counts the streams that have listened: a new one takes the place of the one before.
    listening: watch::Sender<u64>,
    created: Duration,
    used: AtomicU64,
}

/// A session with a server, on behalf of a caller's.
#[derive(Debug, PartialEq)]
pub struct ServerSession {
    /// What the server calls it, if it keeps any.
    pub id: Option<http::HeaderValue>,
    pub version: String,
    pub capabilities: Value,
}

/// A request under way.
#[derive(Clone)]
pub struct Call {
    /// Who answers it; `None` is the gateway.
    pub server: Option<Arc<str>>,
    pub cancelled: Arc<Notify>,
}

/// Why no session can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl Default for Sessions {
    fn default() -> Self {
        Sessions { open: papaya::HashMap::default(), owners: Mutex::default(), began: Instant::now() }
    }
}

impl Sessions {
    /// Begins a session.
    pub fn begin(&self, beginning: Beginning<'_>, bounds: &Bounds, now: Instant) -> Result<Arc<Session>, Full> {
        let Beginning { owner, counted, version, client, capabilities } = beginning;
        let id = random_id().ok_or(Full)?;
        let mut owners = lock(&self.owners);
        let full = self.open.pin().len() >= bounds.max;
        if full || self.since(now).saturating_sub(owners.swept) > SWEEP {
            self.sweep(&mut owners, bounds, now);
        }
        if self.open.pin().len() >= bounds.max {
            return Err(Full);
        }
        let own = owners.ids.entry(counted.into()).or_default();
        while own.len() >= bounds.per_caller {
            let used = |id: &str| self.open.pin().get(id).map_or(0, |session| session.used.load(Ordering::Relaxed));
            let Some(oldest) = (0..own.len()).min_by_key(|at| own.get(*at).map_or(0, |id| used(id))) else { break };
            if let Some(ended) = own.remove(oldest) {
                self.open.pin().remove(&*ended);
            }
        }
        let session = Arc::new(Session {
            id: id.clone(),
            owner: owner.into(),
            version,
            client,
            capabilities,
            servers: Mutex::default(),
            calls: Mutex::default(),
            level: Mutex::default(),
            listening: watch::Sender::new(0),
            created: self.since(now),
            used: AtomicU64::new(self.since(now).as_millis() as u64),
        });
        own.push_back(id.clone());
        self.open.pin().insert(id, session.clone());
        Ok(session)
    }

    /// The session of that id, if it is this owner's and has not ended.
    pub fn find(&self, id: &str, owner: &str, bounds: &Bounds, now: Instant) -> Option<Arc<Session>> {
        let open = self.open.pin();
        let session = open.get(id).filter(|session| *session.owner == *owner)?;
        if !session.lives(self.since(now), bounds) {
            return None;
        }
        session.used.store(self.since(now).as_millis() as u64, Ordering::Relaxed);
        Some(session.clone())
    }

    /// Notes that a session is in use without a message.
    pub fn touch(&self, session: &Session, now: Instant) {
        session.used.store(self.since(now).as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether a session goes on: it may have been ended, or have become too old.
    pub fn lives(&self, session: &Session, bounds: &Bounds, now: Instant) -> bool {
        session.lives(self.since(now), bounds) && self.open.pin().contains_key(&session.id)
    }

    pub fn end(&self, session: &Session) {
        let mut owners = lock(&self.owners);
        self.open.pin().remove(&session.id);
        owners.ids.retain(|_, ids| {
            ids.retain(|id| *id != session.id);
            !ids.is_empty()
        });
    }

    /// Ends what has become too old.
    fn sweep(&self, owners: &mut Owners, bounds: &Bounds, now: Instant) {
        let now = self.since(now);
        owners.swept = now;
        let open = self.open.pin();
        open.retain(|_, session| session.lives(now, bounds));
        owners.ids.retain(|_, ids| {
            ids.retain(|id| open.contains_key(id));
            !ids.is_empty()
        });
    }

    pub fn len(&self) -> usize {
        self.open.pin().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }
}

impl Session {
    fn lives(&self, now: Duration, bounds: &Bounds) -> bool {
        let used = Duration::from_millis(self.used.load(Ordering::Relaxed));
        now.saturating_sub(self.created) < bounds.lifetime && now.saturating_sub(used) < bounds.idle
    }

    /// The place of the session with a server: empty until it is opened.
    pub fn server(&self, name: &Arc<str>) -> Place {
        lock(&self.servers).entry(name.clone()).or_default().clone()
    }

    /// Forgets a session with a server that has ended there, unless another has taken its place.
    pub fn forget(&self, name: &Arc<str>, ended: &Arc<ServerSession>) {
        let mut servers = lock(&self.servers);
        if servers.get(name).and_then(|cell| cell.get()).is_some_and(|known| Arc::ptr_eq(known, ended)) {
            servers.remove(name);
        }
    }

    /// The servers that there is a session with.
    pub fn connected(&self) -> Vec<(Arc<str>, Arc<ServerSession>)> {
        let servers = lock(&self.servers);
        servers.iter().filter_map(|(name, cell)| Some((name.clone(), cell.get()?.clone()))).collect()
    }

    /// Enters a request. One before it with the same id, which a client should not give twice, can be cancelled no more.
    pub fn enter(&self, id: &Value) -> Arc<Notify> {
        let cancelled = Arc::new(Notify::new());
        lock(&self.calls).insert(id.to_string(), Call { server: None, cancelled: cancelled.clone() });
        cancelled
    }

    /// A request is under way no more.
    pub fn leave(&self, id: &Value, cancelled: &Arc<Notify>) {
        let mut calls = lock(&self.calls);
        let id = id.to_string();
        // The answer may have reached a client before, that has given the id again.
        if calls.get(&id).is_some_and(|call| Arc::ptr_eq(&call.cancelled, cancelled)) {
            calls.remove(&id);
        }
    }

    /// Notes which server answers a request under way.
    pub fn answered_by(&self, id: &Value, server: &Arc<str>) {
        if let Some(call) = lock(&self.calls).get_mut(&id.to_string()) {
            call.server = Some(server.clone());
        }
    }

    /// Done when the caller has given a request up.
    pub async fn cancelled(&self, id: &Value) {
        let call = lock(&self.calls).get(&id.to_string()).map(|call| call.cancelled.clone());
        match call {
            Some(cancelled) => cancelled.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Tells a request under way that the caller has given it up.
    pub fn cancel(&self, id: &Value) -> Option<Call> {
        let call = lock(&self.calls).get(&id.to_string()).cloned()?;
        call.cancelled.notify_one();
        Some(call)
    }

    pub fn level(&self) -> Option<Value> {
        lock(&self.level).clone()
    }

    pub fn set_level(&self, level: Value) {
        *lock(&self.level) = Some(level);
    }

    /// Begins to listen in place of whoever does, who learns of it by the number.
    pub fn listen(&self) -> (u64, watch::Receiver<u64>) {
        self.listening.send_modify(|number| *number += 1);
        let listening = self.listening.subscribe();
        let number = *listening.borrow();
        (number, listening)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What nobody can guess, in characters that a header may hold.
fn random_id() -> Option<Box<str>> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(uuid::Builder::from_random_bytes(bytes).into_uuid().hyphenated().to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds =
        Bounds { max: 4, per_caller: 2, idle: Duration::from_secs(10), lifetime: Duration::from_secs(60) };

    fn begin(sessions: &Sessions, owner: &str, now: Instant) -> Result<Arc<Session>, Full> {
        let version = Version::V2025_11_25;
        let beginning = Beginning { owner, counted: owner, version, client: Value::Null, capabilities: Value::Null };
        sessions.begin(beginning, &BOUNDS, now)
    }

    #[test]
    fn a_session_is_its_owners_alone() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let session = begin(&sessions, "a", now).unwrap();
        assert!(sessions.find(&session.id, "a", &BOUNDS, now).is_some());
        assert!(sessions.find(&session.id, "b", &BOUNDS, now).is_none());
        sessions.end(&session);
        assert!(sessions.find(&session.id, "a", &BOUNDS, now).is_none());
        assert!(lock(&sessions.owners).ids.is_empty());
    }

    #[test]
    fn who_begins_too_many_loses_the_one_used_least_lately_and_harms_nobody() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let first = begin(&sessions, "a", at(0)).unwrap();
        let second = begin(&sessions, "a", at(1)).unwrap();
        assert!(sessions.find(&first.id, "a", &BOUNDS, at(2)).is_some());
        let third = begin(&sessions, "a", at(3)).unwrap();
        let open = |session: &Session, now| sessions.find(&session.id, "a", &BOUNDS, now).is_some();
        assert!(open(&first, at(3)) && !open(&second, at(3)) && open(&third, at(3)));
        begin(&sessions, "b", at(3)).unwrap();
        begin(&sessions, "c", at(3)).unwrap();
        assert_eq!(begin(&sessions, "d", at(4)).err(), Some(Full));
        assert!(begin(&sessions, "d", at(14)).is_ok(), "those that are idle have given way");
        assert_eq!(sessions.len(), 1);
    }

    #[test]
    fn a_session_ends_when_it_is_idle_or_old() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let session = begin(&sessions, "a", start).unwrap();
        for seconds in (0..60).step_by(9) {
            assert!(sessions.find(&session.id, "a", &BOUNDS, at(seconds)).is_some(), "{seconds}");
        }
        assert!(sessions.find(&session.id, "a", &BOUNDS, at(61)).is_none(), "however much it was used");
        let idle = begin(&sessions, "a", at(61)).unwrap();
        assert!(sessions.find(&idle.id, "a", &BOUNDS, at(72)).is_none());
        begin(&sessions, "b", at(90)).unwrap();
        assert_eq!((sessions.len(), lock(&sessions.owners).ids.len()), (1, 1), "what is old takes no memory");
    }

    #[test]
    fn a_request_leaves_no_trace_and_takes_nobodys_place() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let session = begin(&sessions, "a", now).unwrap();
        let first = session.enter(&Value::from(1));
        let text = session.enter(&Value::from("1"));
        assert!(session.cancel(&Value::from(2)).is_none() && session.cancel(&Value::from(1)).is_some());
        let second = session.enter(&Value::from(1));
        session.leave(&Value::from(1), &first);
        assert!(session.cancel(&Value::from(1)).is_some(), "the id was given again");
        session.leave(&Value::from(1), &second);
        session.leave(&Value::from("1"), &text);
        assert!(lock(&session.calls).is_empty());
    }
}
