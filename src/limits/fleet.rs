//! A fleet: several gateways whose limits hold together, by way of Redis (or Valkey).
//!
//! Amounts are leased from Redis and spent here, so that a request does not wait for it. A gateway that meets a caller for
//! the first time spends a lease in advance and has it debited afterwards, whatever Redis says then: the long-run rate is
//! exact, and at no time are more requests admitted than the limit and one lease for each gateway.
//!
//! What a caller who stops has left of a lease is given back to Redis within [`LIFE`] and [`SWEEP`], and at once when the
//! gateway stops. One that is killed leaves it to the rate, which makes up for it in time.
//!
//! While Redis does not answer, it is asked once a second at most, and each gateway goes on with its share of the limit.

pub mod hold;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, ConnectionInfo, IntoConnectionInfo, RedisError, Script};
use tokio::runtime::Handle;

use super::gcra::{Rate, mix};
use super::store::Usage;
use super::table::{Cell, Table};
use super::{Exceeded, Standing};
use crate::config::Secret;

/// How long Redis is left alone after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Questions on their way at one time; further ones are put off.
const MOST_QUESTIONS: usize = 1024;

/// Callers whose leases are held at one time.
const MOST_LEASES: usize = 2_000_000;

/// How long a lease is good for.
const LIFE: Duration = Duration::from_secs(2);

/// How often leases that are over are looked for.
pub const SWEEP: Duration = Duration::from_secs(2);

/// Leases that are given back at one time.
const GIVEN_BACK_AT_ONCE: usize = 100;

/// How long a gateway that stops may take to give back all that is left.
const FAREWELL: Duration = Duration::from_secs(1);

/// Debits what was spent in advance and grants what is free, in one step on Redis's own clock: clocks of gateways need not
/// agree. Times are microseconds. Beside the TAT stands when it was written: if that is to come, the clock was set back,
/// and the TAT with it.
const LEASE: &str = r"
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local interval, tolerance = tonumber(ARGV[1]), tonumber(ARGV[2])
local owed, want = tonumber(ARGV[3]), tonumber(ARGV[4])
local tat, written = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) (%S+)$')
tat, written = tonumber(tat) or now, tonumber(written) or now
if written > now then tat = tat - (written - now) end
tat = math.max(now, math.max(now, tat) + owed * interval)
local free = math.floor((now + tolerance - tat) / interval + 0.000001)
local grant = math.max(0, math.min(want, free))
tat = tat + grant * interval
redis.call('SET', KEYS[1], string.format('%.3f %.0f', tat, now), 'PX', math.ceil((tat - now) / 1000) + 1000)
return { grant, math.max(0, math.ceil(tat + interval - tolerance - now)), math.max(0, free - grant), math.ceil(tat - now) }
";

/// Takes what a gateway has used in all as its own part, and returns the sum of all parts and what its own was before. The
/// part is set, not added: an answer that got lost on the way does no harm when the question is asked again. It never gets
/// smaller: the two processes of an upgrade share a part, and either may come late.
const COUNT: &str = r"
local before = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0) or 0
if tonumber(ARGV[2]) > before then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
if ARGV[4] ~= ARGV[1] then redis.call('HDEL', KEYS[1], ARGV[4]) end
redis.call('EXPIREAT', KEYS[1], ARGV[3])
local sum = 0
for _, part in ipairs(redis.call('HVALS', KEYS[1])) do sum = sum + part end
return { sum, before }
";

/// Where Redis is and how it is spoken to.
#[derive(Clone)]
pub struct Settings {
    pub url: String,
    pub username: Option<String>,
    pub password: Option<Secret>,
    /// Before every key, so that several fleets may share one Redis.
    pub prefix: String,
    /// For one answer; later ones are failures.
    pub timeout: Duration,
    /// How many gateways share the limits when Redis cannot say.
    pub gateways: u32,
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        let secret = |settings: &Settings| settings.password.as_ref().map(|password| password.expose().to_owned());
        (&self.url, &self.username, &self.prefix, self.timeout, self.gateways)
            == (&other.url, &other.username, &other.prefix, other.timeout, other.gateways)
            && secret(self) == secret(other)
    }
}

/// The connection to Redis, shared by all limits.
pub struct Fleet {
    pub settings: Settings,
    connection: ConnectionManager,
    handle: Handle,
    lease: Script,
    count: Script,
    start: Instant,
    /// Nanoseconds since `start` until which Redis is left alone; 0 while it answers.
    paused: AtomicU64,
    questions: tokio::sync::Semaphore,
    pub answers: AtomicU64,
    pub failures: AtomicU64,
    leases: Table<Arc<Lease>>,
}

/// What a gateway may spend of one caller's rate.
struct Lease {
    /// Left to spend; `RETIRED` if the cell is no longer used.
    left: AtomicI64,
    /// Spent in advance and not debited yet; below zero, debited and never spent.
    owed: AtomicI64,
    /// Nanoseconds after which what is left is given back.
    expires: AtomicU64,
    /// Nanoseconds after which, as far as is known here, the caller owes nothing: a new cell says the same then.
    whole: AtomicU64,
    /// Nanoseconds before which there is nothing to ask for.
    again: AtomicU64,
    asking: AtomicBool,
    /// What Redis had left when it was last asked.
    free: AtomicU64,
    /// Whose it is in Redis, once that was asked. Nobody's if callers share it, since there are too many.
    account: OnceLock<Box<Account>>,
}

struct Account {
    rate: Rate,
    name: String,
}

const RETIRED: i64 = i64::MIN;

impl Cell for Arc<Lease> {
    fn retire(&self, now: u64) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        let over = |moment: &AtomicU64| moment.load(Ordering::Relaxed) < now;
        left == RETIRED
            || (over(&self.expires)
                && over(&self.whole)
                && !self.asking.load(Ordering::Relaxed)
                && self.left.compare_exchange(left, RETIRED, Ordering::Relaxed, Ordering::Relaxed).is_ok())
    }
}

impl Lease {
    /// A lease of a caller of whom nothing is known: spent in advance.
    fn new(rate: &Rate, size: u64, now: u64) -> Lease {
        Lease {
            left: AtomicI64::new(size as i64),
            owed: AtomicI64::new(size as i64),
            expires: AtomicU64::new(now + nanos(LIFE)),
            whole: AtomicU64::new(now + rate.nanos(size)),
            again: AtomicU64::new(0),
            asking: AtomicBool::new(false),
            free: AtomicU64::new(rate.burst.saturating_sub(size)),
            account: OnceLock::new(),
        }
    }

    /// Whether there is something to give back. What the rate has made up for meanwhile is not: Redis would have it twice.
    fn is_unspent(&self, now: u64) -> bool {
        self.left.load(Ordering::Relaxed) > 0
            && self.whole.load(Ordering::Relaxed) > now
            && self.account.get().is_some()
    }

    fn is_over(&self, now: u64) -> bool {
        self.expires.load(Ordering::Relaxed) < now
    }

    /// Leaves nothing to spend. A caller who comes back begins with a new lease.
    fn give_up(&self) {
        let rest = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| (left > 0).then_some(0));
        self.owed.fetch_sub(rest.unwrap_or(0), Ordering::Relaxed);
        self.expires.store(0, Ordering::Relaxed);
    }

    /// Gives back what is left of a lease that is over, and takes another in advance, out of what is known to be free.
    fn renew(&self, rate: &Rate, size: u64, now: u64) {
        let expires = self.expires.load(Ordering::Relaxed);
        let renewed = self.expires.compare_exchange(expires, now + nanos(LIFE), Ordering::Relaxed, Ordering::Relaxed);
        if expires >= now || renewed.is_err() {
            return;
        }
        let ahead = self.whole.load(Ordering::Relaxed).saturating_sub(now);
        let advance = size.min(rate.free(ahead)) as i64;
        let rest =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| (left != RETIRED).then_some(advance));
        if let Ok(rest) = rest {
            self.owed.fetch_add(advance - rest, Ordering::Relaxed);
        }
    }

    fn standing(&self, rate: &Rate, now: u64) -> Standing {
        Standing {
            amount: rate.burst,
            remaining: self.free.load(Ordering::Relaxed) + self.left.load(Ordering::Relaxed).max(0) as u64,
            reset: Duration::from_nanos(self.whole.load(Ordering::Relaxed).saturating_sub(now)),
            window: rate.window,
        }
    }
}

/// A question on its way. Whichever way it ends, the lease may be asked for again, and nothing that is owed is forgotten.
struct Question {
    lease: Arc<Lease>,
    owed: i64,
}

impl Question {
    /// Asks Redis to settle what is owed and for `want` more.
    async fn put(&mut self, fleet: &Fleet, rate: &Rate, name: &str, want: u64) -> Result<Granted, Unavailable> {
        let granted = fleet.grant(rate, name, self.owed, want).await;
        // The answer may have been lost on the way. Debited twice, a caller has less for a while; given back twice, the
        // limit would not hold.
        self.owed = if granted.is_ok() { 0 } else { self.owed.max(0) };
        granted
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.lease.owed.fetch_add(self.owed, Ordering::Relaxed);
        self.lease.asking.store(false, Ordering::Relaxed);
    }
}

/// Why Redis could not be asked.
#[derive(Debug)]
pub struct Unavailable;

impl Fleet {
    /// Connects when it is first needed.
    pub fn new(settings: Settings, handle: &Handle) -> Result<Fleet, String> {
        let client = client(&settings)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(settings.timeout.max(Duration::from_millis(200))))
            .set_response_timeout(Some(settings.timeout))
            // Whoever needs it asks again, after a pause; waiting here would pile questions up.
            .set_number_of_retries(0);
        let guard = handle.enter();
        let connection = ConnectionManager::new_lazy_with_config(client, config).map_err(|error| error.to_string())?;
        drop(guard);
        Ok(Fleet {
            settings,
            connection,
            handle: handle.clone(),
            lease: Script::new(LEASE),
            count: Script::new(COUNT),
            start: Instant::now(),
            paused: AtomicU64::new(0),
            questions: tokio::sync::Semaphore::new(MOST_QUESTIONS),
            answers: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            leases: Table::new(MOST_LEASES),
        })
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64 + 1
    }

    /// Whether Redis answered when it was last asked.
    pub fn is_up(&self) -> bool {
        self.paused.load(Ordering::Relaxed) == 0
    }

    /// Whether it may be asked now. After a pause one question goes first; the others wait for how it fares.
    fn may_ask(&self, now: u64) -> bool {
        let paused = self.paused.load(Ordering::Relaxed);
        let next = now + nanos(PAUSE);
        paused == 0
            || (paused <= now
                && self.paused.compare_exchange(paused, next, Ordering::Relaxed, Ordering::Relaxed).is_ok())
    }

    /// Admits a request out of a caller's lease, without waiting. `Unavailable` if Redis did not answer when it was last
    /// asked.
    pub fn take(
        self: &Arc<Self>,
        rate: &Rate,
        key: &LeaseKey<'_>,
        caller: u64,
    ) -> Result<Result<Standing, Exceeded>, Unavailable> {
        let now = self.now();
        // After a pause one request goes first, to see whether Redis answers again.
        let probe = !self.is_up();
        if probe && !self.may_ask(now) {
            return Err(Unavailable);
        }
        let size = key.lease.clamp(1, rate.burst.max(1));
        let make = || Arc::new(Lease::new(rate, size, now));
        Ok(self.leases.with(mix(rate.id, caller), make, |lease| {
            if lease.is_over(now) {
                if lease.retire(now) {
                    return None;
                }
                lease.renew(rate, size, now);
            }
            let before =
                lease.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| (left > 0).then(|| left - 1));
            let left = match before {
                Ok(before) => before - 1,
                Err(RETIRED) => return None,
                Err(_) => -1,
            };
            let again = lease.again.load(Ordering::Relaxed);
            let due = lease.owed.load(Ordering::Relaxed) != 0 || left <= size as i64 / 2;
            if probe || (due && now >= again) {
                self.ask(rate, key, size, lease);
            }
            let standing = lease.standing(rate, now);
            Some(match left {
                0.. => Ok(standing),
                _ => {
                    let retry_after = Duration::from_nanos(again.saturating_sub(now)).max(Duration::from_millis(1));
                    Err(Exceeded { index: 0, standing: Standing { remaining: 0, ..standing }, retry_after })
                }
            })
        }))
    }

    /// Puts back what [`Fleet::take`] has admitted, for a request that another rate refuses.
    pub fn give_back(&self, rate: &Rate, caller: u64) {
        self.leases.peek(mix(rate.id, caller), |lease| {
            let _ = lease
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| (left != RETIRED).then(|| left + 1));
        });
    }

    /// How a caller stands, as far as this gateway knows.
    pub fn standing(&self, rate: &Rate, caller: u64) -> Option<Standing> {
        self.leases.peek(mix(rate.id, caller), |lease| lease.standing(rate, self.now()))
    }

    /// Settles what is owed and asks for more, in the background, unless a question is on its way.
    fn ask(self: &Arc<Self>, rate: &Rate, key: &LeaseKey<'_>, size: u64, lease: &Arc<Lease>) {
        if lease.asking.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut question = Question { lease: lease.clone(), owed: lease.owed.swap(0, Ordering::Relaxed) };
        let want = size.saturating_sub(lease.left.load(Ordering::Relaxed).max(0) as u64);
        let (fleet, rate, name) = (self.clone(), *rate, self.key(key));
        if !self.leases.is_full() {
            lease.account.get_or_init(|| Box::new(Account { rate, name: name.clone() }));
        }
        self.handle.spawn(async move {
            let Ok(permit) = fleet.questions.try_acquire() else { return };
            let Ok(granted) = question.put(&fleet, &rate, &name, want).await else { return };
            drop(permit);
            let (now, lease) = (fleet.now(), &question.lease);
            lease.expires.store(now + nanos(LIFE), Ordering::Relaxed);
            lease.whole.store(now + nanos(granted.ahead), Ordering::Relaxed);
            lease.again.store(if granted.count < want { now + nanos(granted.wait) } else { 0 }, Ordering::Relaxed);
            lease.free.store(granted.free, Ordering::Relaxed);
            let count = granted.count as i64;
            let _ = lease
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| (left != RETIRED).then(|| left + count));
        });
    }

    /// Admits a request by asking Redis for it, and waits for the answer.
    pub async fn take_exactly(
        &self,
        rate: &Rate,
        key: &LeaseKey<'_>,
    ) -> Result<Result<Standing, Exceeded>, Unavailable> {
        if !self.is_up() && !self.may_ask(self.now()) {
            return Err(Unavailable);
        }
        // A crowd is no failure of Redis: whoever cannot ask yet waits as long as an answer may take.
        let permit = tokio::time::timeout(self.settings.timeout, self.questions.acquire()).await;
        let Ok(Ok(_permit)) = permit else { return Err(Unavailable) };
        let granted = self.grant(rate, &self.key(key), 0, 1).await?;
        let standing =
            Standing { amount: rate.burst, remaining: granted.free, reset: granted.ahead, window: rate.window };
        Ok(match granted.count {
            0 => Err(Exceeded { index: 0, standing, retry_after: granted.wait }),
            _ => Ok(standing),
        })
    }

    /// Takes back what [`Fleet::take_exactly`] has admitted, for a request that another rate refuses.
    pub async fn give_back_exactly(&self, rate: &Rate, key: &LeaseKey<'_>) {
        // If it fails, the caller has one less: never too many.
        let _ = self.grant(rate, &self.key(key), -1, 0).await;
    }

    fn key(&self, key: &LeaseKey<'_>) -> String {
        // The braces keep one caller's keys on one node of a Redis cluster.
        format!("{}:rate:{{{}}}:{}", self.settings.prefix, (key.caller)(), key.limit)
    }

    async fn grant(&self, rate: &Rate, name: &str, owed: i64, want: u64) -> Result<Granted, Unavailable> {
        let (interval, tolerance) = rate.micros();
        let mut connection = self.connection.clone();
        let mut call = self.lease.key(name);
        let call = call.arg(interval).arg(tolerance).arg(owed).arg(want);
        let asked = tokio::time::timeout(self.settings.timeout, call.invoke_async(&mut connection));
        let (count, wait, free, ahead): (u64, u64, u64, u64) = self.heard(asked.await)?;
        Ok(Granted { count, wait: Duration::from_micros(wait), free, ahead: Duration::from_micros(ahead) })
    }

    /// Tells Redis what this gateway has used in all, and learns what all have, in the same order. `part` is where it was
    /// counted: a usage store's file, or this process if it has none.
    pub async fn count(&self, part: Option<&str>, used: &[Usage]) -> Result<Vec<Total>, Unavailable> {
        let part = part.unwrap_or(process_name());
        // Many at a time, on the one connection: an answer's way is long, and the work behind it short.
        let asked = used.iter().map(|usage| async {
            let mut connection = self.connection.clone();
            let name = format!("{}:quota:{{{}}}:{}:{}", self.settings.prefix, usage.caller, usage.quota, usage.start);
            let mut call = self.count.key(name);
            // A day longer, for whoever looks back at a period that has just ended.
            let call = call.arg(part).arg(usage.used).arg(usage.end.saturating_add(86_400));
            // What a process counted before it had a file is in the file.
            let call = call.arg(process_name());
            tokio::time::timeout(self.settings.timeout, call.invoke_async(&mut connection)).await
        });
        let answers = futures_util::future::join_all(asked).await;
        answers.into_iter().map(|answer| self.heard(answer).map(|(sum, before)| Total { sum, before })).collect()
    }

    /// Notes how Redis fared.
    fn heard<T>(&self, answer: Result<Result<T, RedisError>, tokio::time::error::Elapsed>) -> Result<T, Unavailable> {
        let failure = match answer {
            Ok(Ok(answer)) => {
                self.answers.fetch_add(1, Ordering::Relaxed);
                if self.paused.swap(0, Ordering::Relaxed) != 0 {
                    log::info!("Redis at {} answers again", self.settings.url);
                }
                return Ok(answer);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", self.settings.timeout),
        };
        self.failures.fetch_add(1, Ordering::Relaxed);
        let until = self.now() + nanos(PAUSE);
        if self.paused.swap(until, Ordering::Relaxed) == 0 {
            log::warn!("Redis at {} fails ({failure}); limits go by what is configured for that", self.settings.url);
        }
        Err(Unavailable)
    }

    /// Forgets leases that are over, and gives back what is left of them.
    pub async fn sweep(&self) {
        self.hand_back(Lease::is_over).await;
    }

    /// Gives back what is left of all leases, before the process ends. Blocks, for [`FAREWELL`] at most.
    pub fn close(&self) {
        let all = self.hand_back(|_, _| true);
        let _ = self.handle.block_on(async { tokio::time::timeout(FAREWELL, all).await });
    }

    /// Gives back what is left of leases that are `due`.
    async fn hand_back(&self, due: impl Fn(&Lease, u64) -> bool) {
        let now = self.now();
        let mut unspent = Vec::new();
        self.leases.sweep(now, |lease| {
            if lease.is_unspent(now) && due(lease, now) {
                unspent.push(lease.clone());
            }
        });
        for leases in unspent.chunks(GIVEN_BACK_AT_ONCE) {
            if !self.is_up() {
                return;
            }
            futures_util::future::join_all(leases.iter().map(|lease| self.hand_back_one(lease, &due))).await;
        }
    }

    async fn hand_back_one(&self, lease: &Arc<Lease>, due: impl Fn(&Lease, u64) -> bool) {
        let Some(account) = lease.account.get() else { return };
        if lease.asking.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut question = Question { lease: lease.clone(), owed: 0 };
        // The caller may have come back since.
        let now = self.now();
        if !lease.is_unspent(now) || !due(lease, now) {
            return;
        }
        lease.give_up();
        question.owed = lease.owed.swap(0, Ordering::Relaxed);
        let Ok(granted) = question.put(self, &account.rate, &account.name, 0).await else { return };
        lease.whole.store(self.now() + nanos(granted.ahead), Ordering::Relaxed);
        lease.free.store(granted.free, Ordering::Relaxed);
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

fn nanos(time: Duration) -> u64 {
    time.as_nanos() as u64
}

/// This process's part of counts, if no file has them. One for the whole process, since what it sends is what the process
/// has counted in all.
fn process_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| format!("{:016x}", fastrand::u64(..)))
}

/// What a lease is for.
#[derive(Clone, Copy)]
pub struct LeaseKey<'a> {
    /// The limit's name, the same on every gateway.
    pub limit: &'a str,
    /// Who is limited, in words; they are put together only when Redis is asked.
    pub caller: &'a (dyn Fn() -> String + Sync),
    /// Requests in one lease.
    pub lease: u64,
}

/// What Redis knows of one caller's use of a quota.
pub struct Total {
    /// Of all gateways.
    pub sum: u64,
    /// Of this one, before it was told anew.
    pub before: u64,
}

struct Granted {
    count: u64,
    /// Until there is one more to be had.
    wait: Duration,
    /// What Redis has left.
    free: u64,
    ahead: Duration,
}

/// Whether the settings can be those of a Redis; it is not asked.
pub fn check(settings: &Settings) -> Result<(), String> {
    client(settings).map(drop)
}

fn client(settings: &Settings) -> Result<Client, String> {
    // The URL is shown in logs, and may hold what must not be.
    let wrong = |error: RedisError| format!("this is not the URL of a Redis: {}", error.category());
    let info: ConnectionInfo = settings.url.as_str().into_connection_info().map_err(wrong)?;
    if info.redis_settings().password().is_some() {
        return Err("a password does not belong into the URL; write where it is kept as `redis.password`".to_owned());
    }
    let mut login = info.redis_settings().clone();
    if let Some(username) = &settings.username {
        login = login.set_username(username);
    }
    if let Some(password) = &settings.password {
        login = login.set_password(password.expose());
    }
    Client::open(info.set_redis_settings(login)).map_err(wrong)
}
