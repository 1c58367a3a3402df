//! Which routes come and go: all prefixes distinct, their order and their ways from a seed. Pure.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};

use crate::oracle::random::Random;

/// Most routes of one plan: the blocks of 8 addresses in 10.128.0.0/9.
pub const MAX: u32 = 1 << 20;
/// `RTPROT_*` of all of them.
const PROTOCOL: u8 = 99;
/// Gateways on the link that stays.
pub const STEADY: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 1, 0, 20), Ipv4Addr::new(10, 1, 0, 21), Ipv4Addr::new(10, 1, 0, 22)];
/// Gateways on the link that flaps.
pub const FLAPPING: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 2, 0, 20), Ipv4Addr::new(10, 2, 0, 21), Ipv4Addr::new(10, 2, 0, 22)];
/// Ids of next-hop objects, each by one of [`STEADY`].
pub const NEXT_HOPS: std::ops::RangeInclusive<u32> = 1..=12;

/// Where a route goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By this gateway.
    Via(Ipv4Addr),
    /// By this next-hop object.
    NextHop(u32),
}

/// An IPv4 route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Its destination.
    pub dst: Ipv4Addr,
    /// Length of its prefix.
    pub len: u8,
    /// Where to.
    pub way: Way,
}

/// Lines for the routes, each with this verb: `add` or `del`.
pub fn lines(verb: &str, routes: &[Route]) -> String {
    let line = |Route { dst, len, way }: &Route| {
        let way = match way {
            Way::Via(gateway) => format!("via {gateway}"),
            Way::NextHop(id) => format!("nhid {id}"),
        };
        format!("route {verb} {dst}/{len} {way} proto {PROTOCOL}\n")
    };
    routes.iter().map(line).collect()
}

/// See the module.
#[derive(Debug)]
pub struct Plan {
    random: Random,
    offset: u32,
    made: u32,
    present: Vec<Route>,
}

impl Plan {
    /// A plan of at most [`MAX`] routes.
    pub fn new(routes: u32, seed: u64) -> Result<Self> {
        ensure!((1..=MAX).contains(&routes), "{routes} routes is not 1 to {MAX}");
        let mut random = Random::new(seed, 1);
        let offset = random.bits() as u32;
        Ok(Self { random, offset, made: 0, present: Vec::new() })
    }

    /// What else is random in the run.
    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// How many routes were made.
    pub fn made(&self) -> u32 {
        self.made
    }

    /// How many of them are there.
    pub fn present(&self) -> usize {
        self.present.len()
    }

    /// The next routes to add; they count as present.
    pub fn add(&mut self, count: u32) -> Vec<Route> {
        let routes: Vec<Route> = (0..count).map(|_| self.next()).collect();
        self.present.extend(&routes);
        routes
    }

    fn next(&mut self) -> Route {
        // An odd factor: every block once.
        let block = self.made.wrapping_mul(0x9e37_79b1).wrapping_add(self.offset) % MAX;
        self.made += 1;
        let way = match self.random.below(20) {
            0..12 => Way::Via(*self.random.pick(&STEADY)),
            12..17 => Way::Via(*self.random.pick(&FLAPPING)),
            _ => {
                let ids: Vec<u32> = NEXT_HOPS.collect();
                Way::NextHop(*self.random.pick(&ids))
            }
        };
        let len = self.random.between(29, 32);
        Route { dst: Ipv4Addr::from(0x0a80_0000 + block * 8), len, way }
    }

    /// The link [`FLAPPING`] is on went down: the kernel has lost its routes.
    pub fn flapped(&mut self) {
        self.present.retain(|route| !matches!(route.way, Way::Via(gateway) if FLAPPING.contains(&gateway)));
    }

    /// A next-hop object went: the kernel has lost its routes.
    pub fn next_hop_gone(&mut self, id: u32) {
        self.present.retain(|route| route.way != Way::NextHop(id));
    }

    /// Routes to remove, one after another, until `left` are there.
    pub fn remove(&mut self, count: usize, left: usize) -> Vec<Route> {
        let count = count.min(self.present.len().saturating_sub(left));
        let random = &mut self.random;
        let present = &mut self.present;
        (0..count).map(|_| present.swap_remove(random.below(present.len()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_prefix_comes_once() {
        let mut plan = Plan::new(MAX, 5).unwrap();
        let routes = plan.add(MAX);
        let prefixes: BTreeSet<(Ipv4Addr, u8)> = routes.iter().map(|route| (route.dst, route.len)).collect();
        assert_eq!(prefixes.len(), MAX as usize);
        assert!(routes.iter().all(|route| u32::from(route.dst) >> 23 == 0x0a80_0000 >> 23));
        assert!(Plan::new(MAX + 1, 5).is_err());
    }

    #[test]
    fn what_the_kernel_loses_is_not_removed() {
        let mut plan = Plan::new(1000, 5).unwrap();
        plan.add(1000);
        plan.flapped();
        plan.next_hop_gone(1);
        let present = plan.present();
        assert!((600..850).contains(&present), "{present}");
        let mut removed = Vec::new();
        loop {
            let some = plan.remove(100, 50);
            if some.is_empty() {
                break;
            }
            removed.extend(some);
        }
        assert_eq!((plan.present(), removed.len()), (50, present - 50));
        let lost = |route: &Route| match route.way {
            Way::Via(gateway) => FLAPPING.contains(&gateway),
            Way::NextHop(id) => id == 1,
        };
        assert!(!removed.iter().any(lost));
    }
}
