//! Weighted drawing.

/// Targets' weights, summed up, so that one draw is a binary search.
pub(super) struct Lots(Box<[u32]>);

impl Lots {
    pub(super) fn new(weights: &[u32]) -> Self {
        let mut sum = 0u32;
        Lots(
            weights
                .iter()
                .map(|weight| {
                    sum = sum.saturating_add(*weight);
                    sum
                })
                .collect(),
        )
    }

    /// Index of a target, by weight. There must be a target.
    pub(super) fn draw(&self) -> usize {
        let total = self.0.last().copied().unwrap_or(0);
        let lot = fastrand::u32(..total.max(1));
        self.0.partition_point(|sum| *sum <= lot)
    }
}

/// The same proportions in smaller numbers: common factors taken out, and scaled down if their sum exceeds `most`; each
/// stays at least 1.
pub(super) fn reduced(weights: &[u32], most: u32) -> Vec<u32> {
    let divisor = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
    let total: u64 = weights.iter().map(|weight| u64::from(weight / divisor)).sum();
    weights
        .iter()
        .map(|weight| match weight / divisor {
            weight if total <= u64::from(most) => weight,
            weight => (u64::from(weight) * u64::from(most) / total).max(1) as u32,
        })
        .collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reduced_weights_keep_their_proportions() {
        assert_eq!(reduced(&[200, 100, 300], 1000), [2, 1, 3]);
        assert_eq!(reduced(&[10_000, 5_000, 1], 300), [199, 99, 1]);
        assert_eq!(reduced(&[], 10), [0u32; 0]);
    }
}
