//! Weighted max-min: nobody gets more than it wants, and what is left goes to those who want more, by weight.

use crate::Bps;

/// Somebody who wants a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// What it would take if it were alone, at most.
    pub demand: Bps,
    /// Its part beside others. Who weighs nothing gets what those who do leave.
    pub weight: u64,
}

/// The parts of `capacity`, in the order of `wants`, in whole bit/s. Their sum is `capacity`, or that of the demands
/// if it is less; only rounding, less than 1 bit/s for each, is left.
///
/// Sorted by how soon it is satisfied, each is given the less of its demand and its weighted part of what is left:
/// who comes later can only get more by that (D. Bertsekas, R. Gallager, Data Networks, section 6.5.2).
#[must_use]
pub fn max_min(capacity: Bps, wants: &[Want]) -> Vec<Bps> {
    let mut parts = vec![0; wants.len()];
    let left = fill(capacity, wants, &mut parts, |want| u128::from(want.weight));
    fill(left, wants, &mut parts, |want| u128::from(want.weight == 0));
    parts
}

/// Gives to those that weigh something; what is left.
fn fill(capacity: Bps, wants: &[Want], parts: &mut [Bps], weight: impl Fn(&Want) -> u128) -> Bps {
    let mut order: Vec<usize> = (0..wants.len()).filter(|&at| weight(&wants[at]) > 0).collect();
    // demand / weight, without the division.
    order.sort_by(|&a, &b| {
        let (left, right) = (&wants[a], &wants[b]);
        (u128::from(left.demand) * weight(right)).cmp(&(u128::from(right.demand) * weight(left)))
    });
    let mut left = capacity;
    let mut weights: u128 = order.iter().map(|&at| weight(&wants[at])).sum();
    for at in order {
        let own = weight(&wants[at]);
        let fair = u64::try_from(u128::from(left) * own / weights).unwrap_or(left);
        parts[at] = fair.min(wants[at].demand);
        left -= parts[at];
        weights -= own;
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(capacity: Bps, wants: &[(Bps, u64)]) -> Vec<Bps> {
        let wants: Vec<_> = wants.iter().map(|&(demand, weight)| Want { demand, weight }).collect();
        max_min(capacity, &wants)
    }

    #[test]
    fn what_is_left_goes_by_weight() {
        let all = Bps::MAX;
        assert_eq!(parts(90, &[(all, 20), (all, 40)]), [30, 60]);
        assert_eq!(parts(100, &[(10, 20), (all, 40)]), [10, 90]);
        assert_eq!(parts(100, &[(25, 20), (all, 40), (all, 20)]), [25, 50, 25]);
        assert_eq!(parts(100, &[(all, 1), (30, 1), (5, 1)]), [65, 30, 5]);
        assert_eq!(parts(100, &[(10, 3), (20, 1)]), [10, 20]);
    }

    #[test]
    fn who_weighs_nothing_gets_what_others_leave() {
        assert_eq!(parts(100, &[(Bps::MAX, 0), (Bps::MAX, 1)]), [0, 100]);
        assert_eq!(parts(100, &[(Bps::MAX, 0), (60, 1), (5, 0)]), [35, 60, 5]);
        assert_eq!(parts(100, &[]), [0; 0]);
        assert_eq!(parts(0, &[(1, 1), (1, 0)]), [0, 0]);
    }
}
