//! A table as big as one likes: lengths as in a table of the Internet, places and next hops at random. Pure.
//!
//! The share of each length is that of the IPv4 and the IPv6 table in the reports on BGP by potaroo.net (2024), rounded; next hops
//! follow Zipf's law: the second has half as many prefixes as the first, the third a third.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::oracle::random::Random;

/// Weights of prefix lengths, of 10,000.
const LENGTHS_4: [(usize, u8); 15] = [
    (1, 10),
    (1, 11),
    (3, 12),
    (6, 13),
    (12, 14),
    (20, 15),
    (135, 16),
    (80, 17),
    (140, 18),
    (250, 19),
    (450, 20),
    (520, 21),
    (1120, 22),
    (1000, 23),
    (6262, 24),
];
const LENGTHS_6: [(usize, u8); 8] =
    [(300, 29), (1150, 32), (250, 33), (450, 36), (850, 40), (950, 44), (550, 46), (5500, 48)];

/// Prefixes, each once, with the number of their next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) routes: Vec<(IpAddr, u8, usize)>,
}

impl Table {
    /// So many routes by so many next hops; the same for the same seed.
    pub(super) fn new(count: usize, is_ipv4: bool, hops: usize, seed: u64) -> Self {
        let mut random = Random::new(seed, 8);
        let weights: Vec<(usize, usize)> = (0..hops).map(|hop| (5040 / (hop + 1), hop)).collect();
        let mut seen = BTreeSet::new();
        let mut routes = Vec::with_capacity(count);
        while routes.len() < count {
            let (addr, len) = if is_ipv4 { ipv4(&mut random) } else { ipv6(&mut random) };
            let hop = random.weighted(&weights);
            if seen.insert((addr, len)) {
                routes.push((addr, len, hop));
            }
        }
        Self { routes }
    }
}

fn ipv4(random: &mut Random) -> (IpAddr, u8) {
    loop {
        let len = random.weighted(&LENGTHS_4);
        let bits = random.bits() as u32 & (u32::MAX << (32 - len));
        let addr = Ipv4Addr::from_bits(bits);
        let [first, second, ..] = addr.octets();
        // Those of the lab, and those that no router forwards to.
        let is_other = matches!(first, 0 | 8..=11 | 127 | 224..) || (first == 169 && second >= 240);
        if !is_other {
            return (addr.into(), len);
        }
    }
}

fn ipv6(random: &mut Random) -> (IpAddr, u8) {
    let len = random.weighted(&LENGTHS_6);
    // 2000::/3, most of whose prefixes come from a few of its parts.
    let part = random.below(64) as u128;
    let bits = (random.wide() >> 16 | 1 << 125 | part << 112) & (u128::MAX << (128 - len));
    (Ipv6Addr::from_bits(bits & !(0b110 << 125)).into(), len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_the_same_for_a_seed_and_has_the_shares_it_should_have() {
        for is_ipv4 in [true, false] {
            let table = Table::new(20_000, is_ipv4, 2, 7);
            assert_eq!(table, Table::new(20_000, is_ipv4, 2, 7));
            assert_ne!(table, Table::new(20_000, is_ipv4, 2, 8));
            let distinct: BTreeSet<_> = table.routes.iter().map(|(addr, len, _)| (addr, len)).collect();
            assert_eq!(distinct.len(), 20_000);
            let longest = if is_ipv4 { 24 } else { 48 };
            let of_longest = table.routes.iter().filter(|(_, len, _)| *len == longest).count();
            assert!((10_500..13_000).contains(&of_longest), "{of_longest}");
            let first = table.routes.iter().filter(|(.., hop)| *hop == 0).count();
            assert!((13_000..13_700).contains(&first), "two thirds by the first: {first}");
            assert!(table.routes.iter().all(|(addr, ..)| !addr.is_multicast() && !addr.is_loopback()));
        }
    }
}
