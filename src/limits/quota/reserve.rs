//! Amounts that are reserved before it is known how much will be used, and settled afterwards.
//!
//! On one gateway a reservation is an atomic operation, and what is reserved and used together never exceeds the amount; only
//! what turns out larger than its reservation does, by as much. In a fleet the same holds over all gateways: each holds what
//! it reserves in Redis before it admits anything. While Redis does not answer, each goes on with its part of what was left.
//!
//! What is used counts in the period in which it was reserved. Only what has been settled is kept in the store: of what is
//! under way when a process is killed nothing is known, as of what came in since the last write.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::lease::Lease;
use super::{Counted, MOST_CALLERS, Quota, Quotas, SHARED, Window, unix_now};
use crate::limits::{Exceeded, Standing};

/// An amount that is reserved. It has to be settled: dropped, it stays reserved until its period is over.
#[derive(Debug)]
#[must_use]
pub struct Reserved {
    key: u64,
    amount: u64,
    lasts: bool,
}

/// Shorter periods are over before a process that was restarted serves again: they are counted in memory only.
const KEPT_FROM: Duration = Duration::from_secs(3600);

impl Quotas {
    /// Reserves an amount of a caller's quota, or says what stands against it. More than the whole quota is reserved as the
    /// whole: whoever has used nothing is admitted.
    pub async fn reserve(
        &self,
        quota: &Quota,
        caller: u64,
        name: &(dyn Fn() -> String + Sync),
        amount: u64,
    ) -> Result<(Reserved, Standing), Exceeded> {
        let now = unix_now();
        let window = quota.window(now);
        let limit = quota.amount.amount;
        let amount = amount.min(limit).max(1);
        let standing =
            |remaining: u64| Standing { amount: limit, remaining, reset: window.left(now), window: window.length() };
        let refused =
            |remaining: u64| Exceeded { index: 0, standing: standing(remaining), retry_after: window.left(now) };
        let fleet = self.fleet.load_full();
        let (key, taken) = self.with_cell(quota, caller, window, name, |cell| match &fleet {
            None => Taken::Here(cell.reserve(amount, limit)),
            Some(_) => Taken::Ask(self.lease(cell, limit), cell.used.load(Ordering::Relaxed)),
        });
        let reserved = Reserved { key, amount, lasts: window.length() >= KEPT_FROM };
        match (taken, &fleet) {
            (Taken::Here(Ok(left)), _) => Ok((reserved, standing(left))),
            (Taken::Here(Err(left)), _) => Err(refused(left)),
            (Taken::Ask(lease, used), Some(fleet)) => match lease.take(fleet, amount, limit, used).await {
                Ok(left) => {
                    self.with_key(key, |cell| cell.hold(amount));
                    Ok((reserved, standing(left)))
                }
                Err(without) => Err(refused(without.free)),
            },
            // Asked only in a fleet.
            (Taken::Ask(..), None) => Err(refused(0)),
        }
    }

    /// Replaces what was reserved by what was used.
    pub fn settle(&self, reserved: Reserved, used: u64) {
        let Reserved { key, amount, lasts } = reserved;
        self.with_key(key, |cell| {
            if let Some(lease) = cell.kept.lease.get() {
                lease.settle(amount, used);
            }
            // The order in which `learn` may see them: never more than there is.
            cell.kept.reserved.fetch_sub(amount, Ordering::SeqCst);
            match used.checked_sub(amount) {
                Some(more) => cell.used.fetch_add(more, Ordering::SeqCst),
                None => cell.used.fetch_sub(amount - used, Ordering::SeqCst),
            };
            if lasts {
                self.add_pending(key, cell, used);
            }
        });
    }

    /// Gives back in Redis what is held in advance, and says anew what is held otherwise.
    pub(super) fn renew_leases(&self, fleet: &super::Fleet, leases: &mut Vec<Arc<Lease>>) {
        leases.extend(std::iter::from_fn(|| self.new_leases.pop()));
        // Those of periods that are forgotten are nobody's.
        leases.retain(|lease| Arc::strong_count(lease) > 1);
        for leases in leases.chunks(super::TOLD_AT_ONCE) {
            if !fleet.is_up() {
                return;
            }
            let renewed = futures_util::future::join_all(leases.iter().map(|lease| lease.renew(fleet, unix_now())));
            fleet.handle().block_on(renewed);
        }
    }

    fn lease(&self, cell: &Counted, limit: u64) -> Arc<Lease> {
        let make = || {
            let lease = Arc::new(Lease::new(cell, limit));
            self.new_leases.push(lease.clone());
            lease
        };
        cell.kept.lease.get_or_init(make).clone()
    }

    /// Works on the cell of a caller, which may be new, and says which it is.
    fn with_cell<T>(
        &self,
        quota: &Quota,
        caller: u64,
        window: Window,
        name: &(dyn Fn() -> String + Sync),
        work: impl FnOnce(&Counted) -> T,
    ) -> (u64, T) {
        let cells = self.cells.pin();
        let mut key = quota.key(caller, window);
        let cell = match cells.get(&key) {
            Some(cell) => cell,
            None => {
                let mut name = name();
                if cells.len() >= MOST_CALLERS && !name.starts_with("consumer:") {
                    let part = caller % SHARED;
                    (key, name) = (quota.key(part, window), format!("others:{part}"));
                }
                cells.get_or_insert_with(key, || Counted::new(quota.name.clone(), &name, window))
            }
        };
        (key, work(cell))
    }

    /// Works on a cell that is there: cells with something reserved are not forgotten.
    fn with_key(&self, key: u64, work: impl FnOnce(&Counted)) {
        if let Some(cell) = self.cells.pin().get(&key) {
            work(cell);
        }
    }
}

/// What was found out without waiting.
enum Taken {
    /// What is left; an error if it is too little.
    Here(Result<u64, u64>),
    Ask(Arc<Lease>, u64),
}

impl Counted {
    /// Reserves an amount if there is as much, and says what is left.
    fn reserve(&self, amount: u64, limit: u64) -> Result<u64, u64> {
        let fits = |used: u64| used.checked_add(amount).filter(|used| *used <= limit);
        match self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits) {
            Ok(before) => {
                self.kept.reserved.fetch_add(amount, Ordering::SeqCst);
                Ok(limit - before - amount)
            }
            Err(used) => Err(limit.saturating_sub(used)),
        }
    }

    /// Notes what a fleet has admitted.
    fn hold(&self, amount: u64) {
        self.used.fetch_add(amount, Ordering::SeqCst);
        self.kept.reserved.fetch_add(amount, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;
    use crate::config::units::{Period, QuotaAmount};

    fn quota(amount: u64) -> Quota {
        Quota::new("b", 7, QuotaAmount { amount, period: Period::Day }, TimeZone::UTC, None)
    }

    const NAME: &(dyn Fn() -> String + Sync) = &|| "consumer:a".to_owned();

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn what_is_reserved_at_once_never_exceeds_the_amount_and_what_is_settled_stays() {
        let (quotas, quota) = (Quotas::default(), Arc::new(quota(1000)));
        let tasks = (0..200).map(|_| {
            let (quotas, quota) = (quotas.clone(), quota.clone());
            tokio::spawn(async move { quotas.reserve(&quota, 1, NAME, 30).await.ok().map(|(reserved, _)| reserved) })
        });
        let mut held = Vec::new();
        for task in tasks.collect::<Vec<_>>() {
            held.extend(task.await.unwrap());
        }
        assert_eq!((held.len(), quotas.standing(&quota, 1).0), (33, 990));
        for (reserved, used) in held.into_iter().zip([0, 10, 50].into_iter().cycle()) {
            quotas.settle(reserved, used);
        }
        assert_eq!(quotas.standing(&quota, 1).0, 11 * 60);
    }

    #[tokio::test]
    async fn more_than_all_is_admitted_once_and_nothing_where_there_is_nothing() {
        let (quotas, small) = (Quotas::default(), quota(10));
        let (all, standing) = quotas.reserve(&small, 1, NAME, 1000).await.unwrap();
        assert_eq!(standing.remaining, 0);
        assert_eq!(quotas.reserve(&small, 1, NAME, 1).await.unwrap_err().standing.remaining, 0);
        quotas.settle(all, 25);
        assert_eq!(quotas.standing(&small, 1).0, 25, "what was used is used");
        let none = Quota::new("n", 8, QuotaAmount { amount: 0, period: Period::Day }, TimeZone::UTC, None);
        assert!(quotas.reserve(&none, 1, NAME, 1).await.is_err());
    }

    #[tokio::test]
    async fn what_is_learnt_of_others_comes_on_top_of_what_is_reserved() {
        let (quotas, quota) = (Quotas::default(), quota(1000));
        let (reserved, _) = quotas.reserve(&quota, 1, NAME, 100).await.unwrap();
        quotas.with_key(reserved.key, |cell| cell.learn(0, 500));
        assert_eq!(quotas.standing(&quota, 1).0, 600);
        quotas.settle(reserved, 40);
        assert_eq!(quotas.standing(&quota, 1).0, 540);
    }
}
