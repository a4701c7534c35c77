//! Smooth weighted round robin, worked out in advance so that a turn is one atomic addition.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::lots::reduced;

/// Longest schedule; weights whose sum is larger are scaled down to it.
const LONGEST: u32 = 8192;

/// One round in which each target has as many turns as its weight, spread as evenly as can be.
pub(super) struct Schedule {
    turns: Box<[u32]>,
    next: AtomicUsize,
}

impl Schedule {
    pub(super) fn new(weights: &[u32]) -> Self {
        let weights = reduced(weights, LONGEST);
        let total: i64 = weights.iter().map(|weight| i64::from(*weight)).sum();
        // nginx's method: each turn everybody gains its weight, the richest goes and pays for the round.
        let mut credit = vec![0i64; weights.len()];
        let turns: Box<[u32]> = (0..total)
            .map(|_| {
                let mut richest = 0;
                for i in 0..credit.len() {
                    credit[i] += i64::from(weights[i]);
                    if credit[i] > credit[richest] {
                        richest = i;
                    }
                }
                credit[richest] -= total;
                richest as u32
            })
            .collect();
        // Gateways that start together should not all begin with the first target.
        let next = AtomicUsize::new(fastrand::usize(..turns.len().max(1)));
        Schedule { turns, next }
    }

    /// Index of the target whose turn it is. There must be a target.
    pub(super) fn next(&self) -> usize {
        self.turns[self.next.fetch_add(1, Relaxed) % self.turns.len()] as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_exact_and_interleaved() {
        let schedule = Schedule::new(&[5, 1, 1]);
        assert_eq!(&*schedule.turns, [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(&*Schedule::new(&[300, 300]).turns, [0, 1], "common factors are taken out");
        assert!(Schedule::new(&[10_000, 9_999, 1]).turns.len() <= LONGEST as usize + 3);
    }
}
