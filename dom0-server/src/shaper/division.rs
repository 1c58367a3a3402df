//! One link: from what is seen of its queues to what they should be told, and what operators are told of it. Pure.

use std::collections::BTreeMap;

use xenflow_qos::Bps;
use xenflow_qos::control::{Sample, Seen, adopted, worth};
use xenflow_qos::law::{Contract, Link, Means, Network, Policy, Queue, Setting};

use super::plan::{Plan, QueueOf};
use super::report::{LinkReport, QueueReport};
use crate::db::contract;

/// Bytes of the largest packet that a host's kernel passes on whole: TCP segments that a guest leaves to be cut later.
const PACKET: u32 = 66_000;

/// What the queues of a link are to be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Division {
    /// What the link carries.
    pub capacity: Bps,
    /// Networks, in the order of their names.
    pub branches: Vec<Branch>,
}

/// A network's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// Of all its queues together.
    pub contract: Contract,
    /// Its classes' queues, and that of what is in no class.
    pub leaves: Vec<Leaf>,
}

/// A queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its number.
    pub number: u32,
    /// What it is for.
    pub of: QueueOf,
    /// What it is to be told.
    pub setting: Setting,
}

impl Division {
    /// All queues.
    pub fn leaves(&self) -> impl Iterator<Item = &Leaf> {
        self.branches.iter().flat_map(|branch| &branch.leaves)
    }
}

/// How a queue does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Met,
    Short,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Met => "met",
            Self::Short => "short",
        }
    }
}

/// What is remembered of a link from one look to the next.
#[derive(Debug)]
pub struct Watched {
    seen: Seen,
    is_new: bool,
    /// How each queue does, and since when.
    states: BTreeMap<u32, (State, u64)>,
}

/// How links are divided, and which one is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// By which policy.
    pub policy: Policy,
    /// With what.
    pub means: Means,
    /// Of the link.
    pub capacity: Bps,
}

/// When a look was taken.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Milliseconds of a clock that never goes back.
    pub at_ms: u64,
    /// Milliseconds since the Unix epoch, for operators.
    pub unix_ms: u64,
}

fn law_contract(contract: contract::Contract) -> Contract {
    Contract {
        min: contract.min().map_or(0, contract::Rate::bps),
        max: contract.max().map(contract::Rate::bps),
    }
}

/// HTB counts bytes a second.
fn whole_bytes(setting: Setting) -> Setting {
    let whole = |rate: Bps| (rate / 8).max(1) * 8;
    Setting { rate: whole(setting.rate), ceil: whole(setting.ceil), ..setting }
}

impl Watched {
    /// Nothing seen yet; loads are means over so many looks.
    #[must_use]
    pub fn new(kept: usize) -> Self {
        Self { seen: Seen::new(kept), is_new: true, states: BTreeMap::new() }
    }

    /// The networks of a plan with what is seen of them, and the numbers of their queues, in the same order.
    fn link(&self, plan: &Plan, capacity: Bps) -> (Link, Vec<Vec<(u32, QueueOf)>>) {
        let mut numbers: BTreeMap<_, Vec<(u32, QueueOf)>> = BTreeMap::new();
        for (number, of) in &plan.queues {
            numbers.entry(&of.network).or_default().push((*number, of.clone()));
        }
        let mut link = Link { capacity, packet: PACKET, ..Link::default() };
        for (name, queues) in &numbers {
            let contract = plan.networks.get(*name).copied().map(law_contract).unwrap_or_default();
            let of_class = |of: &QueueOf| {
                let class = of.class.as_ref()?;
                plan.classes.get(&(of.network.clone(), class.clone())).copied().map(law_contract)
            };
            let promised: Bps = queues.iter().filter_map(|(_, of)| of_class(of)).map(|own| own.min).sum();
            let rest = Contract { min: contract.min.saturating_sub(promised), max: contract.max };
            let queue = |(number, of): &(u32, QueueOf)| {
                let own = of_class(of).unwrap_or(if of.class.is_some() { Contract::default() } else { rest });
                Queue {
                    contract: Contract { max: own.max.or(contract.max), ..own },
                    load: self.seen.load(*number),
                    wants_more: self.seen.wants_more(*number),
                }
            };
            link.networks.push(Network { contract, queues: queues.iter().map(queue).collect() });
        }
        (link, numbers.into_values().collect())
    }

    /// A look at the link: what was seen of its queues, and what they stand at. What they should be told, and a report of
    /// it; the link's name, and who shapes it, are not in that.
    pub fn look(
        &mut self,
        now: Now,
        plan: &Plan,
        way: Way,
        samples: &BTreeMap<u32, Sample>,
        told: &BTreeMap<u32, Setting>,
    ) -> (Division, LinkReport) {
        self.seen.look(now.at_ms, way.capacity, samples);
        let is_new = std::mem::take(&mut self.is_new);
        let (agreed, numbers) = self.link(plan, way.capacity);
        let (link, too_much) = agreed.clone().fitted();
        let mut branches = Vec::new();
        for ((network, settings), numbers) in
            link.networks.iter().zip(link.settings(way.policy, way.means)).zip(&numbers)
        {
            let leaf = |((queue, wanted), (number, of)): ((&Queue, Setting), &(u32, QueueOf))| {
                let open = queue.contract.most(way.capacity) / 8 * 8;
                let wanted = whole_bytes(wanted);
                let is_alone = network.queues.len() == 1;
                let of_both = if is_new { adopted } else { worth };
                let setting =
                    told.get(number).map_or(wanted, |standing| of_both(*standing, wanted, open, is_alone));
                Leaf { number: *number, of: of.clone(), setting }
            };
            let leaves = network.queues.iter().zip(settings).zip(numbers).map(leaf).collect();
            branches.push(Branch { contract: network.contract, leaves });
        }
        let queues = self.reports(now, (&agreed, &link), &numbers, told);
        let problem = too_much.map(|sum| {
            format!(
                "the networks were promised {sum} bit/s, the link carries {}: all have less in proportion",
                way.capacity
            )
        });
        let report = LinkReport {
            capacity_bps: way.capacity,
            carried_bps: link.carried(),
            problem,
            queues,
            ..LinkReport::default()
        };
        (Division { capacity: way.capacity, branches }, report)
    }

    fn reports(
        &mut self,
        now: Now,
        (agreed, link): (&Link, &Link),
        numbers: &[Vec<(u32, QueueOf)>],
        told: &BTreeMap<u32, Setting>,
    ) -> Vec<QueueReport> {
        let mut reports = Vec::new();
        let mut states = BTreeMap::new();
        let agreed = agreed.networks.iter().flat_map(|network| &network.queues);
        let fitted = link.networks.iter().flat_map(|network| &network.queues);
        let shares = link.shares(link.carried()).into_iter().flatten();
        let queues = agreed.zip(fitted).zip(shares).zip(numbers.iter().flatten());
        for (((agreed, queue), expected), (number, of)) in queues {
            let state = match (queue.load, queue.wants_more) {
                (0, false) => State::Idle,
                (load, true) if load < expected - expected / 20 => State::Short,
                _ => State::Met,
            };
            let before = self.states.get(number).filter(|(before, _)| *before == state);
            let since_ms = before.map_or(now.unix_ms, |(_, since)| *since);
            states.insert(*number, (state, since_ms));
            let (dropped_packets, backlog_bytes) = self.seen.losses(*number);
            let standing = told.get(number);
            reports.push(QueueReport {
                network: of.network.to_string(),
                class: of.class.as_ref().map(ToString::to_string),
                queue: *number,
                // One that was promised nothing has a little all the same.
                min_bps: queue.contract.min.min(agreed.contract.min),
                max_bps: queue.contract.max,
                obtained_bps: queue.load,
                expected_bps: expected,
                wants_more: queue.wants_more,
                backlog_bytes,
                dropped_packets,
                fitness: fitness(queue.load, expected),
                rate_bps: standing.map(|standing| standing.rate),
                ceil_bps: standing.map(|standing| standing.ceil),
                since_ms,
                state: state.as_str().to_owned(),
            });
        }
        self.states = states;
        reports.sort_by_key(|report| report.queue);
        reports
    }
}

/// The paper's eq. (2), not below 0.
fn fitness(obtained: Bps, expected: Bps) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let ratio = (expected > 0).then(|| obtained as f64 / expected as f64);
    ratio.map(|ratio| (1.0 - (1.0 - ratio).abs()).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: Bps = 1_000_000;

    fn plan() -> Plan {
        let contract = |min: &str, max: Option<&str>| {
            contract::Contract::new(Some(min.parse().unwrap()), max.map(|max| max.parse().unwrap())).unwrap()
        };
        let of = |network: &str, class: Option<&str>| QueueOf {
            network: network.parse().unwrap(),
            class: class.map(|class| class.parse().unwrap()),
        };
        Plan {
            uplinks: BTreeMap::new(),
            queues: [(1, of("red", None)), (2, of("blue", None)), (3, of("blue", Some("voice")))].into(),
            networks: [
                ("red".parse().unwrap(), contract("20mbit", None)),
                ("blue".parse().unwrap(), contract("40mbit", Some("80mbit"))),
            ]
            .into(),
            classes: [(("blue".parse().unwrap(), "voice".parse().unwrap()), contract("10mbit", None))].into(),
        }
    }

    const WAY: Way = Way { policy: Policy::Weights, means: Means::Tree, capacity: 100 * MBIT };

    fn now(s: u64) -> Now {
        Now { at_ms: s * 1000, unix_ms: 1_000_000 + s * 1000 }
    }

    #[test]
    fn what_is_in_no_class_has_what_classes_leave_of_the_contract() {
        let mut watched = Watched::new(1);
        let (division, report) = watched.look(now(0), &plan(), WAY, &BTreeMap::new(), &BTreeMap::new());
        let rates: Vec<_> = division.leaves().map(|leaf| (leaf.number, leaf.setting.rate / MBIT)).collect();
        assert_eq!(rates, [(2, 30), (3, 10), (1, 20)]);
        let ceils: Vec<_> = division.leaves().map(|leaf| leaf.setting.ceil / MBIT).collect();
        assert_eq!(ceils, [80, 80, 100], "a class has no more than its network");
        assert_eq!(report.queues.len(), 3);
        assert!(report.problem.is_none());
    }

    #[test]
    fn a_report_says_how_each_does_and_since_when() {
        let mut watched = Watched::new(1);
        let told: BTreeMap<u32, Setting> = BTreeMap::new();
        let sample =
            |mbit: u64, s: u64, dropped| Sample { bytes: mbit * s * MBIT / 8, dropped, backlog: None };
        let mut states = Vec::new();
        for s in 0..4 {
            // Red loses packets all the time at 20 Mbit/s, and has to be content with that: blue takes 80.
            let samples = [(1, sample(20, s, s)), (2, sample(80, s, 0)), (3, Sample::default())].into();
            let (_, report) = watched.look(now(s), &plan(), WAY, &samples, &told);
            let of = |report: &QueueReport| (report.state.clone(), report.since_ms / 1000 - 1000);
            states.push(report.queues.iter().map(of).collect::<Vec<_>>());
            if s == 3 {
                let red = &report.queues[0];
                assert_eq!((red.obtained_bps, red.expected_bps), (20 * MBIT, 33_333_334));
                assert!((red.fitness.unwrap() - 0.6).abs() < 0.01);
            }
        }
        let is = |state: &str, since| (state.to_owned(), since);
        assert_eq!(states[0], [is("idle", 0), is("idle", 0), is("idle", 0)]);
        assert_eq!(states[3], [is("short", 1), is("met", 1), is("idle", 0)]);
    }

    #[test]
    fn contracts_that_the_link_cannot_keep_are_less_in_proportion() {
        let way = Way { capacity: 30 * MBIT, ..WAY };
        let (division, report) =
            Watched::new(1).look(now(0), &plan(), way, &BTreeMap::new(), &BTreeMap::new());
        assert!(division.leaves().map(|leaf| leaf.setting.rate).sum::<Bps>() <= 30 * MBIT);
        let problem = report.problem.unwrap();
        assert!(problem.contains("60000000 bit/s") && problem.contains("30000000"), "{problem}");
    }
}
