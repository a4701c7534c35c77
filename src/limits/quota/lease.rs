//! What a gateway of a fleet may still spend of one caller's amount in one period, without asking Redis.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Counted, Fleet};
use crate::limits::fleet::Unavailable;
use crate::limits::fleet::hold::Account;

/// Reservations that are held in advance, if there is plenty.
const IN_ADVANCE: u64 = 8;

/// Well before what a process holds is forgotten, it says so again.
const RENEWED: Duration = Duration::from_secs(20);

/// The lease of one cell.
pub struct Lease {
    caller: Box<str>,
    quota: Arc<str>,
    /// As it was when the lease was made; a question for more says it anew.
    limit: u64,
    window: super::Window,
    state: Mutex<State>,
    /// One question at a time, so that answers cannot overtake each other.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// What Redis has been told that this process holds.
    granted: u64,
    /// Reserved by calls under way, or used and not told as a part yet.
    taken: u64,
    /// Of that, what the store has and Redis does not.
    kept: u64,
    /// What Redis has been told in all: an answer that was asked for before knows nothing of what was told meanwhile.
    told: u64,
    /// What nobody held when Redis was last asked.
    free: Option<u64>,
    said: Option<Instant>,
}

/// How an amount was refused, with what is left.
pub struct Refused {
    pub free: u64,
}

impl Lease {
    pub(super) fn new(cell: &Counted, limit: u64) -> Lease {
        let (caller, quota) = (cell.kept.caller.clone(), cell.kept.quota.clone());
        let (state, asking) = Default::default();
        Lease { caller, quota, limit, window: cell.kept.window, state, asking }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn account(&self) -> Account<'_> {
        Account { quota: &self.quota, caller: &self.caller, window: self.window }
    }

    /// Takes an amount, and says what is left. Waits for Redis only when what it has granted does not suffice.
    pub async fn take(&self, fleet: &Fleet, amount: u64, limit: u64, used: u64) -> Result<u64, Refused> {
        if let Some(free) = self.take_granted(amount) {
            return Ok(free);
        }
        let _one = self.asking.lock().await;
        // Whoever asked before may have got more than it needs.
        if let Some(free) = self.take_granted(amount) {
            return Ok(free);
        }
        let (least, most, told) = {
            let state = self.state();
            let least = state.taken.saturating_add(amount);
            let others = 4 * u64::from(fleet.settings.gateways.max(1));
            let most = least.saturating_add((IN_ADVANCE * amount).min(state.free.unwrap_or(0) / others));
            (least, most, state.told)
        };
        match fleet.hold(&self.account(), limit, least, most).await {
            Ok(answer) => {
                let mut state = self.state();
                state.free = Some(answer.free);
                let Some(granted) = answer.holds else { return Err(Refused { free: answer.free }) };
                state.granted = granted.saturating_sub(state.told - told);
                state.taken = state.taken.saturating_add(amount);
                state.said = Some(Instant::now());
                Ok(answer.free)
            }
            Err(Unavailable) => {
                // Our part of what was left.
                let mut state = self.state();
                let free = state.free.unwrap_or(limit.saturating_sub(used)) / u64::from(fleet.settings.gateways.max(1));
                let most = state.granted.saturating_add(free);
                let taken = state.taken.saturating_add(amount);
                if taken > most {
                    return Err(Refused { free: most.saturating_sub(state.taken) });
                }
                state.taken = taken;
                Ok(most - taken)
            }
        }
    }

    fn take_granted(&self, amount: u64) -> Option<u64> {
        let mut state = self.state();
        let taken = state.taken.checked_add(amount).filter(|taken| *taken <= state.granted)?;
        state.taken = taken;
        Some(state.free.unwrap_or(0).saturating_add(state.granted - taken))
    }

    /// What was taken turned out to be used to another extent.
    pub fn settle(&self, reserved: u64, used: u64) {
        let mut state = self.state();
        state.taken = state.taken.saturating_sub(reserved).saturating_add(used);
    }

    /// The store has this much more of what was used.
    pub fn kept(&self, used: u64) {
        let mut state = self.state();
        state.kept = state.kept.saturating_add(used);
    }

    /// Redis has what the store has: it need not be held any more, and may not be spent again.
    pub fn told(&self) {
        let mut state = self.state();
        let kept = std::mem::take(&mut state.kept);
        state.told = state.told.saturating_add(kept);
        state.taken = state.taken.saturating_sub(kept);
        state.granted = state.granted.saturating_sub(kept);
    }

    /// Gives back what is held in advance, and says again what is held otherwise.
    pub async fn renew(&self, fleet: &Fleet, now: i64) {
        if self.window.end <= now {
            return;
        }
        // Whoever asks says it too.
        let Ok(_one) = self.asking.try_lock() else { return };
        let holds = {
            let mut state = self.state();
            let recently = state.said.is_some_and(|said| said.elapsed() < RENEWED);
            if state.granted == state.taken && (recently || state.granted == 0) {
                return;
            }
            state.granted = state.taken;
            state.taken
        };
        let answer = fleet.holds(&self.account(), self.limit, holds).await;
        let mut state = self.state();
        match answer {
            Ok(answer) => {
                state.free = Some(answer.free);
                state.said = Some(Instant::now());
            }
            // Said anew the next time, whatever is held then.
            Err(Unavailable) => state.said = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Window;
    use super::*;

    #[test]
    fn what_redis_has_been_told_of_cannot_be_spent_again() {
        let lease = Lease::new(&Counted::new("q".into(), "c", Window { start: 0, end: i64::MAX }), 100);
        lease.state().granted = 100;
        assert_eq!(lease.take_granted(90), Some(10));
        lease.settle(90, 80);
        lease.kept(80);
        assert_eq!(lease.take_granted(30), None, "80 of 100 are used");
        lease.told();
        assert_eq!(lease.take_granted(30), None, "they are, whoever counts them");
        assert_eq!(lease.take_granted(20), Some(0));
    }
}
