//! What each sender should get of what the link carried, and how near it is to that.

use std::collections::BTreeMap;

use xenflow_qos::share::{Want, max_min};

/// A sender as the law sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Party {
    /// Its network, by index.
    pub network: usize,
    /// The weight of the network: its contracted minimum.
    pub weight: u64,
    /// The weight of its class within the network; anything for who is alone there.
    pub class_weight: u64,
    /// What it wants, in bit/s.
    pub demand: u64,
}

/// Weighted max-min of networks, then of the classes within each, in the order of `parties`, in bit/s.
#[must_use]
pub fn expected(carried: f64, parties: &[Party]) -> Vec<f64> {
    let mut networks: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, party) in parties.iter().enumerate() {
        networks.entry(party.network).or_default().push(at);
    }
    let wants: Vec<_> = networks
        .values()
        .map(|of| Want {
            demand: of.iter().map(|&at| parties[at].demand).fold(0, u64::saturating_add),
            weight: parties[of[0]].weight,
        })
        .collect();
    let mut shares = vec![0.0; parties.len()];
    for (of, share) in networks.values().zip(max_min(carried as u64, &wants)) {
        let wants =
            of.iter().map(|&at| Want { demand: parties[at].demand, weight: parties[at].class_weight });
        for (&at, part) in of.iter().zip(max_min(share, &wants.collect::<Vec<_>>())) {
            shares[at] = part as f64;
        }
    }
    shares
}

/// The mean over who should get something of 1 − |1 − obtained/expected|; none if nobody should.
#[must_use]
pub fn fitness(obtained: &[f64], expected: &[f64]) -> Option<f64> {
    let all: Vec<f64> = obtained
        .iter()
        .zip(expected)
        .filter(|(_, expected)| **expected > 0.0)
        .map(|(obtained, expected)| 1.0 - (1.0 - obtained / expected).abs())
        .collect();
    (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = u64::MAX;

    fn party(network: usize, weight: u64, class_weight: u64, demand: u64) -> Party {
        Party { network, weight, class_weight, demand }
    }

    #[test]
    fn networks_come_before_classes() {
        let two = [party(0, 20, 1, ALL), party(1, 40, 1, ALL)];
        assert_eq!(expected(90.0, &two), [30.0, 60.0]);
        let classes = [party(0, 20, 1, ALL), party(1, 40, 1, ALL), party(0, 20, 3, ALL)];
        assert_eq!(expected(120.0, &classes), [10.0, 80.0, 30.0]);
        // What a class leaves is its network's; what a network leaves is everybody's.
        let modest = [party(0, 20, 1, ALL), party(1, 40, 1, ALL), party(0, 20, 3, 5)];
        assert_eq!(expected(120.0, &modest), [35.0, 80.0, 5.0]);
    }

    #[test]
    fn fitness_is_of_those_who_should_get_something() {
        assert_eq!(fitness(&[30.0, 60.0], &[30.0, 60.0]), Some(1.0));
        // Open vSwitch as the paper has it: 20 and 40 of 100 with equal parts of the rest.
        let plain = fitness(&[40.0, 60.0, 0.0], &[100.0 / 3.0, 200.0 / 3.0, 0.0]);
        assert!(plain.is_some_and(|fitness| (fitness - 0.85).abs() < 1e-9), "{plain:?}");
        assert_eq!(fitness(&[1.0], &[0.0]), None);
    }
}
