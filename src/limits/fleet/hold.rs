//! What a gateway of a fleet sets aside in Redis of an amount, before it spends it.
//!
//! Beside the parts that gateways have used of an amount (see [`Fleet::count`]) stands what each process holds: reserved for
//! what is under way, used and not told as a part yet, and a little in advance. All of it together never exceeds the amount.
//! What a process holds is set, not added: an answer that got lost does no harm. A process that is gone holds nothing after
//! [`LIFE`].

use std::sync::LazyLock;
use std::time::Duration;

use redis::Script;

use super::{Fleet, Unavailable, process_name};
use crate::limits::calendar::Window;

/// How long what a process holds counts, unless it says so again.
pub const LIFE: Duration = Duration::from_secs(60);

/// Sets what a process holds: the most that is free, from `least` to `most`, or nothing anew if not even `least` is. Returns
/// what it holds now, or -1, and what is left beyond that.
const HOLD: &str = r"
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local limit, least, most = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local taken = 0
for _, part in ipairs(redis.call('HVALS', KEYS[1])) do taken = taken + part end
local all = redis.call('HGETALL', KEYS[2])
for at = 1, #all, 2 do
  if all[at] ~= ARGV[1] then
    local amount, ends = string.match(all[at + 1], '^(%d+) (%d+)$')
    if amount and tonumber(ends) > now then taken = taken + amount else redis.call('HDEL', KEYS[2], all[at]) end
  end
end
local free = math.max(0, limit - taken)
local holds = most
if ARGV[5] == '1' then
  if least > free then return { '-1', string.format('%.0f', free) } end
  holds = math.min(most, free)
end
if holds > 0 then
  redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f %.0f', holds, now + ARGV[6]))
  redis.call('EXPIREAT', KEYS[2], ARGV[7])
else
  redis.call('HDEL', KEYS[2], ARGV[1])
end
return { string.format('%.0f', holds), string.format('%.0f', math.max(0, free - holds)) }
";

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(HOLD));

/// Of which amount: the words are the same on every gateway.
pub struct Account<'a> {
    pub quota: &'a str,
    pub caller: &'a str,
    pub window: Window,
}

/// What Redis says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// What this process holds now; `None` if there was not enough, and it holds what it did.
    pub holds: Option<u64>,
    /// What nobody has used or holds.
    pub free: u64,
}

impl Fleet {
    /// Asks to hold from `least` to `most` of an amount of `limit`.
    pub async fn hold(&self, of: &Account<'_>, limit: u64, least: u64, most: u64) -> Result<Holding, Unavailable> {
        if !self.is_up() && !self.may_ask(self.now()) {
            return Err(Unavailable);
        }
        self.put(of, limit, least, most, true).await
    }

    /// Says what this process holds, which is no more than before, or used already.
    pub async fn holds(&self, of: &Account<'_>, limit: u64, amount: u64) -> Result<Holding, Unavailable> {
        self.put(of, limit, amount, amount, false).await
    }

    async fn put(
        &self,
        of: &Account<'_>,
        limit: u64,
        least: u64,
        most: u64,
        only_if_free: bool,
    ) -> Result<Holding, Unavailable> {
        let mut connection = self.connection.clone();
        let name = |kind: &str| {
            // The braces keep both on one node of a Redis cluster.
            format!("{}:{kind}:{{{}}}:{}:{}", self.settings.prefix, of.caller, of.quota, of.window.start)
        };
        let mut call = SCRIPT.key(name("quota"));
        let call = call.key(name("held")).arg(process_name()).arg(limit).arg(least).arg(most);
        let call = call.arg(u8::from(only_if_free)).arg(LIFE.as_millis() as u64);
        let call = call.arg(of.window.end.saturating_add(86_400));
        let asked = tokio::time::timeout(self.settings.timeout, call.invoke_async(&mut connection));
        let (holds, free): (i64, u64) = self.heard(asked.await)?;
        Ok(Holding { holds: u64::try_from(holds).ok(), free })
    }
}
