//! Which number each queue has. Pure: what is wanted and what the switch's own database says, in; numbers, out.
//!
//! A queue keeps its number for as long as anybody wants it, and that number is nobody else's until then. What the database says
//! counts for what has none yet: so a daemon that starts anew goes on with the numbers, and the flows, that are there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use xenflow_flow_app::{MAX_QUEUE, QueueClass, Topology};
use xenflow_proto::Name;

use crate::db::Desired;
use crate::db::class::TrafficClass;
use crate::db::contract::{Contract, Rate};
use crate::ports::SwitchPorts;
use crate::shaper::plan::{Plan, QueueOf};

/// Numbers of queues, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Numbers(BTreeMap<QueueOf, u32>);

/// So many networks and classes have no queue of their own: there are no more numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Surplus(pub usize);

impl fmt::Display for Surplus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(count) = self;
        write!(f, "{count} networks and classes have no queue of their own: at most {MAX_QUEUE} have one")
    }
}

/// A queue for each network, and one for each class of its traffic.
#[must_use]
pub fn wanted(desired: &Desired) -> BTreeSet<QueueOf> {
    let networks = desired.networks.keys().map(|network| QueueOf { network: network.clone(), class: None });
    let class =
        |(network, name): &(Name, Name)| QueueOf { network: network.clone(), class: Some(name.clone()) };
    networks.chain(desired.classes.keys().map(class)).collect()
}

/// What is to be shaped on this node: its uplinks that are there, and all contracts.
#[must_use]
pub fn plan(node: &Name, desired: &Desired, ports: &SwitchPorts, numbers: &Numbers) -> Plan {
    let wanted = desired.uplinks_of(node);
    let uplinks = ports.ports.iter().map(|port| &port.name).filter(|name| wanted.contains(*name));
    let class = |(key, class): (&(Name, Name), &TrafficClass)| (key.clone(), class.contract);
    Plan {
        uplinks: uplinks.map(|name| (name.clone(), desired.capacity_of(node, name))).collect(),
        queues: numbers.by_number(),
        networks: desired.networks.iter().map(|(name, network)| (name.clone(), network.contract)).collect(),
        classes: desired.classes.iter().map(class).collect(),
    }
}

impl Numbers {
    /// From now on these queues have numbers, 1 to [`MAX_QUEUE`]: those that they have had; else those that they are `found` to
    /// have; else the lowest that are free. Networks come before classes, and a class has one only where its network has.
    pub fn assign(&mut self, wanted: &BTreeSet<QueueOf>, found: &BTreeMap<u32, QueueOf>) -> Option<Surplus> {
        self.0.retain(|queue, _| wanted.contains(queue));
        let mut taken: BTreeSet<u32> = self.0.values().copied().collect();
        for (number, queue) in found.range(1..=MAX_QUEUE) {
            if wanted.contains(queue) && !self.0.contains_key(queue) && taken.insert(*number) {
                self.0.insert(queue.clone(), *number);
            }
        }
        let mut free = (1..=MAX_QUEUE).filter(|number| !taken.contains(number));
        let (networks, classes): (Vec<_>, Vec<_>) = wanted.iter().partition(|queue| queue.class.is_none());
        for queue in networks.into_iter().chain(classes) {
            if self.0.contains_key(queue)
                || (queue.class.is_some() && self.of(&queue.network, None).is_none())
            {
                continue;
            }
            let Some(number) = free.next() else { break };
            self.0.insert(queue.clone(), number);
        }
        let surplus = wanted.len() - self.0.len();
        (surplus > 0).then_some(Surplus(surplus))
    }

    /// The number of a queue.
    #[must_use]
    pub fn of(&self, network: &Name, class: Option<&Name>) -> Option<u32> {
        self.0.get(&QueueOf { network: network.clone(), class: class.cloned() }).copied()
    }

    /// All queues, by number.
    #[must_use]
    pub fn by_number(&self) -> BTreeMap<u32, QueueOf> {
        self.0.iter().map(|(queue, number)| (*number, queue.clone())).collect()
    }

    /// What queues get at most, by number, in kbit/s.
    pub(crate) fn maxima(&self, desired: &Desired) -> BTreeMap<u32, u32> {
        let networks = desired.networks.iter();
        let networks = networks.map(|(name, network)| (self.of(name, None), network.contract.max()));
        let classes = desired.classes.iter();
        let classes =
            classes.map(|((network, name), class)| (self.of(network, Some(name)), class.contract.max()));
        let kbps = |rate: Rate| u32::try_from(rate.bps() / 1000).unwrap_or(u32::MAX);
        networks.chain(classes).filter_map(|(queue, max)| Some((queue?, kbps(max?)))).collect()
    }

    /// Puts the queues into what the flows are made of. While there is no contract at all nothing is shaped, no row keeps the
    /// numbers, and the flows are without them: so a restart changes none.
    pub(crate) fn put(&self, desired: &Desired, topology: &mut Topology) {
        let networks = desired.networks.values().map(|network| network.contract);
        let mut contracts = networks.chain(desired.classes.values().map(|class| class.contract));
        if contracts.all(|contract| contract == Contract::default()) {
            return;
        }
        let of_segment =
            desired.segments.values().filter_map(|it| Some((it.vlan, self.of(&it.network, None)?)));
        topology.queues = of_segment.collect();
        for ((network, name), class) in &desired.classes {
            if let (Some(own), Some(queue)) = (self.of(network, None), self.of(network, Some(name))) {
                let matching = class.matching.clone();
                let (dscp, protocol, ports) = (matching.dscp, matching.protocol, matching.ports);
                let class = (class.priority, QueueClass { dscp, protocol, ports, queue });
                topology.classes.entry(own).or_default().extend([class]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(text: &str) -> QueueOf {
        let (network, class) =
            text.split_once('/').map_or((text, None), |(network, class)| (network, Some(class)));
        QueueOf { network: network.parse().unwrap(), class: class.map(|class| class.parse().unwrap()) }
    }

    fn queues(names: &[&str]) -> BTreeSet<QueueOf> {
        names.iter().map(|name| queue(name)).collect()
    }

    fn numbers(numbers: &Numbers) -> Vec<(u32, String)> {
        let text = |QueueOf { network, class }: QueueOf| match class {
            Some(class) => format!("{network}/{class}"),
            None => network.to_string(),
        };
        numbers.by_number().into_iter().map(|(number, queue)| (number, text(queue))).collect()
    }

    fn list(all: &[(u32, &str)]) -> Vec<(u32, String)> {
        all.iter().map(|(number, name)| (*number, (*name).to_owned())).collect()
    }

    #[test]
    fn a_queue_keeps_its_number_until_nobody_wants_it() {
        let mut all = Numbers::default();
        assert_eq!(all.assign(&queues(&["b", "a", "a/voice"]), &BTreeMap::new()), None);
        assert_eq!(numbers(&all), list(&[(1, "a"), (2, "b"), (3, "a/voice")]));
        all.assign(&queues(&["b", "0", "b/bulk"]), &BTreeMap::new());
        assert_eq!(numbers(&all), list(&[(1, "0"), (2, "b"), (3, "b/bulk")]));
        all.assign(&queues(&["b", "a", "0"]), &BTreeMap::new());
        assert_eq!(numbers(&all), list(&[(1, "0"), (2, "b"), (3, "a")]));
    }

    #[test]
    fn a_start_goes_on_with_the_numbers_that_it_finds() {
        let wanted = queues(&["a", "b", "c", "a/voice"]);
        let mut before = Numbers::default();
        before.assign(&queues(&["c", "b"]), &BTreeMap::new());
        before.assign(&wanted, &BTreeMap::new());
        let mut after = Numbers::default();
        after.assign(&wanted, &before.by_number());
        assert_eq!(after, before);
        // What is nobody's, has two numbers or one that cannot be is passed over; what has a number keeps it.
        let hostile = [(0, "a"), (4, "b"), (5, "gone"), (6, "b"), (0xf000, "c"), (u32::MAX, "a/voice")];
        let hostile = hostile.map(|(number, name)| (number, queue(name))).into();
        let mut fresh = Numbers::default();
        fresh.assign(&wanted, &hostile);
        assert_eq!(numbers(&fresh), list(&[(1, "a"), (2, "c"), (3, "a/voice"), (4, "b")]));
        fresh.assign(&wanted, &[(9, queue("b")), (1, queue("c"))].into());
        assert_eq!(numbers(&fresh), list(&[(1, "a"), (2, "c"), (3, "a/voice"), (4, "b")]));
    }

    #[test]
    fn networks_without_a_number_have_no_queue_and_nobody_loses_one() {
        let many =
            |n: u32| (0..n).map(|n| QueueOf { network: format!("n{n}").parse().unwrap(), class: None });
        let mut all = Numbers::default();
        let mut wanted: BTreeSet<QueueOf> =
            many(MAX_QUEUE - 1).chain([queue("n0/x"), queue("n0/y")]).collect();
        assert_eq!(all.assign(&wanted, &BTreeMap::new()), Some(Surplus(1)));
        let x = all.of(&"n0".parse().unwrap(), Some(&"x".parse().unwrap()));
        assert_eq!(x, Some(MAX_QUEUE));
        wanted.extend([queue("first"), queue("first/z")]);
        let surplus = all.assign(&wanted, &BTreeMap::new()).unwrap();
        assert_eq!(all.of(&"first".parse().unwrap(), None), None);
        assert_eq!(
            surplus.to_string(),
            "3 networks and classes have no queue of their own: at most 61439 have one"
        );
        wanted.remove(&queue("n5"));
        assert_eq!(all.assign(&wanted, &BTreeMap::new()), Some(Surplus(2)));
        assert!(all.of(&"first".parse().unwrap(), None).is_some(), "networks come first");
    }
}
