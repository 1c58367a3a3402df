//! The laws that every division of a link keeps, for random links, contracts and demands, in closed loop with a model of
//! HTB, and which of them the paper's eq. (1) and Open vSwitch by itself break.
#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::collection::vec;
use proptest::prelude::*;
use xenflow_qos::Bps;
use xenflow_qos::law::{Contract, FLOOR, FRAME, Link, Means, Network, Policy, Queue, Setting, quantum_of};
use xenflow_qos::share::{Want, max_min};

const MBIT: Bps = 1_000_000;
const GREEDY: Bps = 1 << 50;

/// A link, what its queues are told, and what they want.
#[derive(Debug, Clone)]
struct Loop {
    link: Link,
    policy: Policy,
    means: Means,
    told: Vec<Vec<Setting>>,
    demands: Vec<Vec<Bps>>,
}

impl Loop {
    fn new(link: Link, policy: Policy, means: Means, demands: Vec<Vec<Bps>>) -> Self {
        let (link, _) = link.fitted();
        let told = link.settings(policy, means);
        Self { link, policy, means, told, demands }
    }

    /// One period: what the queues carry as they are told; then they are told anew.
    fn period(&mut self) -> Vec<Vec<Bps>> {
        let carried = self.carried();
        for (network, at) in self.link.networks.iter_mut().zip(0..) {
            for (queue, leaf) in network.queues.iter_mut().zip(0..) {
                queue.load = carried[at][leaf];
                queue.wants_more = self.demands[at][leaf] > queue.load;
            }
        }
        self.told = self.link.settings(self.policy, self.means);
        carried
    }

    /// HTB as a fluid: each class has its rate at once; what its parent has left goes by quantum to those that want it
    /// and are below their ceilings, those of a network together up to its own.
    fn carried(&self) -> Vec<Vec<Bps>> {
        let mut carried: Vec<Vec<Bps>> = self
            .told
            .iter()
            .zip(&self.demands)
            .map(|(told, demands)| {
                told.iter().zip(demands).map(|(told, want)| told.rate.min(*want)).collect()
            })
            .collect();
        let left = |at: usize, leaf: usize, carried: &[Vec<Bps>]| {
            let most = self.told[at][leaf].ceil.min(self.demands[at][leaf]);
            most.saturating_sub(carried[at][leaf])
        };
        let quantum = |told: &Setting| told.quantum.map_or_else(|| quantum_of(told.rate), u64::from);
        let lend = |at: usize, room: Bps, carried: &mut Vec<Vec<Bps>>| {
            let wants: Vec<_> = (0..carried[at].len())
                .map(|leaf| Want { demand: left(at, leaf, carried), weight: quantum(&self.told[at][leaf]) })
                .collect();
            for (carried, more) in carried[at].iter_mut().zip(max_min(room, &wants)) {
                *carried += more;
            }
        };
        if self.means == Means::Tree {
            for (at, network) in self.link.networks.iter().enumerate() {
                let room = network.contract.min.saturating_sub(carried[at].iter().sum());
                lend(at, room, &mut carried);
            }
        }
        // Turns go from queue to queue; a network that has come to its ceiling is left out.
        let mut open: Vec<usize> = (0..carried.len()).collect();
        loop {
            let room = self.link.capacity.saturating_sub(carried.iter().flatten().sum());
            let leaves = || open.iter().flat_map(|&at| (0..carried[at].len()).map(move |leaf| (at, leaf)));
            let wants: Vec<_> = leaves()
                .map(|(at, leaf)| Want {
                    demand: left(at, leaf, &carried),
                    weight: quantum(&self.told[at][leaf]),
                })
                .collect();
            let mut lent = carried.clone();
            for ((at, leaf), more) in leaves().zip(max_min(room, &wants)) {
                lent[at][leaf] += more;
            }
            let most = |at: usize| match self.means {
                Means::Tree => self.link.networks[at].contract.most(self.link.capacity),
                Means::Flat => Bps::MAX,
            };
            let full = open.iter().copied().find(|&at| lent[at].iter().sum::<Bps>() > most(at));
            let Some(full) = full else { return lent };
            let own: Bps = carried[full].iter().sum();
            lend(full, most(full).saturating_sub(own), &mut carried);
            open.retain(|at| *at != full);
        }
    }

    /// What everybody should have for good.
    fn ideal(&self) -> Vec<Vec<Bps>> {
        let mut link = self.link.clone();
        for (network, demands) in link.networks.iter_mut().zip(&self.demands) {
            for (queue, demand) in network.queues.iter_mut().zip(demands) {
                (queue.load, queue.wants_more) = (*demand, false);
            }
        }
        link.shares(link.capacity)
    }

    /// So far from the law may be what a queue carries: what is rounded, and turns that are a frame, though the contract is
    /// less.
    fn near(&self) -> Bps {
        let turns = self.told.iter().flatten().filter_map(|told| told.quantum).map(u64::from);
        let frames = turns.clone().filter(|turn| *turn == u64::from(FRAME)).sum::<u64>();
        self.link.capacity / 50 + 4 * FLOOR + self.link.capacity / turns.sum::<u64>().max(1) * frames
    }
}

/// Of a network: parts of the link for its contract, its bound if it has one, its classes' parts and all demands.
fn network() -> impl Strategy<Value = (u64, u8, Vec<u64>, Vec<u64>)> {
    (0..100_u64, 0..4_u8, vec(0..50_u64, 0..3), vec(0..150_u64, 3))
}

/// Links and what is wanted of them, with classes or without.
fn links(classes: bool) -> impl Strategy<Value = (Link, Vec<Vec<Bps>>)> {
    (10..10_000_u64, vec(network(), 1..8), 1..100_u64).prop_map(move |(mbits, networks, promised)| {
        let capacity = mbits * MBIT;
        let parts = networks.iter().map(|(part, ..)| part).sum::<u64>().max(1);
        let mut demands = Vec::new();
        let mut link = Link { capacity, packet: 66_000, ..Link::default() };
        for (part, bound, class_parts, wants) in networks {
            let min = capacity / 100 * promised / parts * part;
            let contract = Contract { min, max: (bound == 0).then_some(min.max(MBIT) * 2) };
            let class_parts = if classes { class_parts } else { Vec::new() };
            let mut rest = min;
            let mut queues = Vec::new();
            for part in class_parts {
                let own = Contract { min: min / 100 * part, max: None };
                rest -= own.min;
                queues.push(Queue { contract: own, ..Queue::default() });
            }
            queues.push(Queue { contract: Contract { min: rest, max: contract.max }, ..Queue::default() });
            demands.push(wants.iter().take(queues.len()).map(|want| capacity / 100 * want).collect());
            link.networks.push(Network { contract, queues });
        }
        (link, demands)
    })
}

/// Those that keep the laws, and on what.
fn lawful() -> impl Strategy<Value = (Policy, Means)> {
    prop_oneof![
        Just((Policy::Weights, Means::Tree)),
        Just((Policy::Fair, Means::Tree)),
        Just((Policy::Fair, Means::Flat)),
    ]
}

fn any_policy() -> impl Strategy<Value = (Policy, Means)> {
    (prop::sample::select(Policy::ALL.to_vec()), prop_oneof![Just(Means::Flat), Just(Means::Tree)])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// HTB can honor what it is told: in every period, whoever sets it.
    #[test]
    fn rates_are_what_the_link_can_give(
        (link, demands) in links(true), (policy, means) in any_policy(), more in 1..4_u64,
    ) {
        // Also contracts that nobody should have let in.
        let mut link = link;
        for network in &mut link.networks {
            network.contract.min *= more;
            network.queues.iter_mut().for_each(|queue| queue.contract.min *= more);
        }
        let mut run = Loop::new(link, policy, means, demands);
        for _ in 0..6 {
            prop_assert!(run.told.iter().flatten().map(|told| told.rate).sum::<Bps>() <= run.link.capacity);
            for (network, told) in run.link.networks.iter().zip(&run.told) {
                for (queue, told) in network.queues.iter().zip(told) {
                    let most = queue.contract.most(run.link.capacity).max(FLOOR);
                    prop_assert!(0 < told.rate && told.rate <= told.ceil && told.ceil <= most, "{:?}", run);
                }
            }
            let carried = run.period();
            prop_assert!(carried.iter().flatten().sum::<Bps>() <= run.link.capacity);
        }
    }

    /// Guarantee: in every period, also just after all demands have changed.
    #[test]
    fn who_wants_its_minimum_has_it(
        (link, demands) in links(true), (policy, means) in lawful(), others in vec(vec(0..150_u64, 3), 8),
    ) {
        let mut run = Loop::new(link, policy, means, demands);
        for _ in 0..4 {
            run.period();
        }
        for (demands, others) in run.demands.iter_mut().zip(&others) {
            demands.iter_mut().zip(others).for_each(|(demand, part)| *demand = run.link.capacity / 100 * part);
        }
        for _ in 0..4 {
            let told = run.told.clone();
            let carried = run.period();
            for (at, network) in run.link.networks.iter().enumerate() {
                let all: Bps = carried[at].iter().sum();
                if policy == Policy::Weights {
                    let wanted: Bps = run.demands[at].iter().sum();
                    prop_assert!(all >= network.contract.min.min(wanted), "{told:?} {carried:?}");
                }
                for (leaf, queue) in network.queues.iter().enumerate() {
                    let due = queue.contract.min.min(run.demands[at][leaf]);
                    prop_assert!(carried[at][leaf] >= due, "{told:?} {carried:?}");
                }
            }
        }
    }

    /// Proportionality and work conservation, for demand that is steady.
    #[test]
    fn what_is_left_is_divided_by_contract((link, demands) in links(false), (policy, means) in lawful()) {
        let mut run = Loop::new(link, policy, means, demands);
        let carried = (0..6).map(|_| run.period()).last().unwrap();
        let ideal = run.ideal();
        let near = run.near();
        for (carried, ideal) in carried.iter().flatten().zip(ideal.iter().flatten()) {
            prop_assert!(carried.abs_diff(*ideal) <= near, "{:?}\n{:?}\n{:?}", run, carried, ideal);
        }
        let wanted: Bps = ideal.iter().flatten().sum();
        prop_assert!(carried.iter().flatten().sum::<Bps>() + near >= wanted);
    }

    /// The same with classes: the network's share is its own whichever of its classes are at work.
    #[test]
    fn networks_with_classes_have_their_shares((link, demands) in links(true)) {
        let mut run = Loop::new(link, Policy::Weights, Means::Tree, demands);
        let carried = (0..6).map(|_| run.period()).last().unwrap();
        let ideal = run.ideal();
        for (carried, ideal) in carried.iter().zip(&ideal) {
            let (all, due): (Bps, Bps) = (carried.iter().sum(), ideal.iter().sum());
            // One that has all it wants takes no turns of the others', which the division of turns leaves out.
            let near = run.near() + run.link.capacity / 50;
            prop_assert!(all.abs_diff(due) <= near, "{:?}\n{:?}\n{:?}", run, carried, ideal);
        }
    }

    /// Calm: where nothing changes, nothing is written. A byte of a turn is rounded, and not worth it.
    #[test]
    fn what_is_steady_is_left_alone((link, demands) in links(true), (policy, means) in lawful()) {
        let mut run = Loop::new(link, policy, means, demands);
        for _ in 0..8 {
            run.period();
        }
        let before = run.told.clone();
        run.period();
        for (before, now) in before.iter().flatten().zip(run.told.iter().flatten()) {
            let turns = before.quantum.unwrap_or_default().abs_diff(now.quantum.unwrap_or_default());
            prop_assert!(turns <= 1 && (before.rate, before.ceil) == (now.rate, now.ceil), "{:?}", run);
        }
    }

    /// Readiness: one that was idle has its minimum in the first period, and its share in the second.
    #[test]
    fn who_comes_back_has_its_share_in_two_periods(
        (link, demands) in links(false), who in any::<prop::sample::Index>(), (policy, means) in lawful(),
    ) {
        let who = who.index(demands.len());
        let mut run = Loop::new(link, policy, means, demands);
        run.demands = vec![vec![GREEDY]; run.demands.len()];
        run.demands[who] = vec![0];
        for _ in 0..6 {
            run.period();
        }
        run.demands[who] = vec![GREEDY];
        let first = run.period();
        prop_assert!(first[who][0] >= run.link.networks[who].contract.min);
        let second = run.period();
        let due = run.ideal()[who][0];
        prop_assert!(second[who][0] + run.near() >= due, "{:?} {:?} {:?} {}", run, first, second, due);
    }
}

/// Two networks of 20 and 40 Mbit/s on 100 (the paper's Fig. 3), as they come to rest.
fn fig_3(policy: Policy, means: Means, demands: [Bps; 2]) -> Vec<Bps> {
    let network = |mbit| {
        let contract = Contract { min: mbit * MBIT, max: None };
        Network { contract, queues: vec![Queue { contract, ..Queue::default() }] }
    };
    let link =
        Link { capacity: 100 * MBIT, packet: 66_000, networks: vec![network(20), network(40)], least: 0 };
    let mut run = Loop::new(link, policy, means, demands.map(|demand| vec![demand]).into());
    (0..20).map(|_| run.period()).last().unwrap().into_iter().flatten().collect()
}

#[test]
fn the_papers_two_networks() {
    let both = [GREEDY; 2];
    assert_eq!(fig_3(Policy::Static, Means::Flat, both), [40 * MBIT, 60 * MBIT], "in halves");
    for (policy, means) in [(Policy::Weights, Means::Tree), (Policy::Fair, Means::Flat)] {
        let carried = fig_3(policy, means, both);
        assert!(carried[0].abs_diff(33_333_333) < 10 && carried[1].abs_diff(66_666_667) < 10, "{carried:?}");
    }
    let one = [GREEDY, 0];
    for (policy, means) in
        [(Policy::Static, Means::Flat), (Policy::Weights, Means::Tree), (Policy::Fair, Means::Flat)]
    {
        assert_eq!(fig_3(policy, means, one), [100 * MBIT, 0], "{policy:?}");
    }
    let alone = fig_3(Policy::Paper, Means::Flat, one)[0];
    assert!(alone < 80 * MBIT, "eq. (1) wastes what one alone could have, or this has changed: {alone}");
    // In proportion, but the smallest packets that count are those of the quantum.
    let scaled = fig_3(Policy::Weights, Means::Flat, both);
    assert!(scaled[0].abs_diff(33_333_333) < MBIT, "{scaled:?}");
}

/// Who was promised nothing has what others leave; contracts beyond the link are all cut alike.
#[test]
fn what_nobody_agreed_on() {
    let mut link = Link { capacity: 10 * MBIT, packet: 66_000, ..Link::default() };
    for mbit in [0, 10, 20] {
        let contract = Contract { min: mbit * MBIT, max: None };
        let queue = Queue { contract, load: MBIT, wants_more: true };
        link.networks.push(Network { contract, queues: vec![queue] });
    }
    let (link, sum) = link.fitted();
    assert_eq!(sum, Some(30 * MBIT));
    let minima: Vec<_> = link.networks.iter().map(|network| network.contract.min).collect();
    assert_eq!(minima, [0, 3_332_333, 6_664_666]);
    assert_eq!(link.shares(9 * MBIT).concat(), [0, 3_000_000, 6_000_000]);
}

/// What HTB lets a queue send as its own holds it back for as long as that takes at its rate, also when its contract has
/// become another one: not for long, if the link has room.
#[test]
fn a_packet_is_paid_for_in_a_second() {
    let link = |promised: Bps| {
        let mut link = Link { capacity: 1000 * MBIT, packet: 66_000, ..Link::default() };
        for (min, max) in [(0, None), (4, None), (promised, None), (0, Some(1)), (4, Some(4))] {
            let contract = Contract { min: min * MBIT, max: max.map(|max| max * MBIT) };
            let parts = [contract.min / 4 * 3, contract.min / 4, 0];
            let queues =
                parts.map(|min| Queue { contract: Contract { min, ..contract }, ..Queue::default() });
            link.networks.push(Network { contract, queues: queues.into() });
        }
        link.fitted().0
    };
    let roomy = link(900);
    let told = roomy.settings(Policy::Weights, Means::Tree);
    for (told, network) in told.iter().zip(&roomy.networks).take(3) {
        assert!(told.iter().all(|told| told.rate >= 66_000 * 8), "{told:?}");
        assert!(told.iter().map(|told| told.rate).sum::<Bps>() <= network.contract.min, "{told:?}");
    }
    for (network, max) in roomy.networks.iter().skip(3).zip([1, 4]) {
        assert!(network.contract.min <= max * MBIT, "their maxima leave less: {network:?}");
    }
    // Nor is there any where contracts are all that the link carries.
    let full = link(992).settings(Policy::Weights, Means::Tree);
    assert_eq!(full.concat().iter().map(|told| told.rate).min(), Some(FLOOR));
}
