//! The driver `tc`: HTB in the kernel, with a class for each network and one below it for each of its classes, turns by
//! quantum and `fq_codel` in every queue. Pure: what stands and what is wanted make lines for `tc -batch`.
//!
//! Open vSwitch gives a packet of queue *n* the priority 1:(*n* + 1), so that is the class of queue *n*. The port's QoS row says
//! `linux-noop`, so Open vSwitch leaves the qdisc alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use xenflow_qos::Bps;
use xenflow_qos::control::Sample;
use xenflow_qos::law::{FLOOR, FRAME, Setting, quantum_of};

use super::division::Division;

/// The class of the link, as Open vSwitch numbers it in its own driver.
const LINK: u16 = 0xfffe;
/// The class of what is in no queue.
const NOBODY: u16 = 1;
/// The first number for networks that have classes: beyond the numbers of queues.
const FIRST_BRANCH: u16 = 0xf001;
/// A class may catch up with what it could not send for so long because a timer was late.
const BURST_MS: u64 = 4;
/// CoDel's target beside the time between a queue's turns (RFC 8289, 4.3).
const TARGET_US: u64 = 5_000;
/// A queue has room for so long at the link's whole rate.
const LIMIT_MS: u64 = 100;
/// CoDel's interval (RFC 8289, 4.2).
const INTERVAL_US: u64 = 100_000;

/// A class as it stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Class {
    /// Minor number of its parent; 0: the qdisc.
    pub parent: u16,
    /// In bit/s.
    pub rate: Bps,
    /// In bit/s.
    pub ceil: Bps,
    /// In bytes.
    pub quantum: u32,
    /// Bytes that it may send at once.
    pub burst: u64,
    /// What it has counted.
    pub sample: Sample,
}

/// What stands in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Kind and handle of the root qdisc.
    pub root: Option<(String, u32)>,
    /// By minor number.
    pub classes: BTreeMap<u16, Class>,
    /// By minor number of the class: kind of its qdisc, and the target if that is `fq_codel`, in µs.
    pub leaves: BTreeMap<u16, (String, Option<u32>)>,
    /// By minor number of the class: packets that its qdisc has dropped.
    pub dropped: BTreeMap<u16, u64>,
}

/// The class of a queue.
#[must_use]
pub fn minor(number: u32) -> Option<u16> {
    u16::try_from(number + 1).ok().filter(|minor| *minor < FIRST_BRANCH)
}

impl Standing {
    /// The root qdisc is one that this driver, or Open vSwitch's, has made.
    #[must_use]
    pub fn is_htb(&self) -> bool {
        self.root.as_ref().is_some_and(|(kind, handle)| kind == "htb" && *handle == 1 << 16)
    }

    /// What was counted of each queue, by number.
    #[must_use]
    pub fn samples(&self) -> BTreeMap<u32, Sample> {
        self.queues().map(|(number, class)| (number, class.sample)).collect()
    }

    /// What each queue stands at, by number.
    #[must_use]
    pub fn told(&self) -> BTreeMap<u32, Setting> {
        let setting =
            |class: &Class| Setting { rate: class.rate, ceil: class.ceil, quantum: Some(class.quantum) };
        self.queues().map(|(number, class)| (number, setting(class))).collect()
    }

    fn queues(&self) -> impl Iterator<Item = (u32, &Class)> {
        self.classes.range(NOBODY..FIRST_BRANCH).map(|(minor, class)| (u32::from(*minor) - 1, class))
    }
}

/// A class as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    parent: u16,
    rate: Bps,
    ceil: Bps,
    /// None: it has classes below it.
    quantum: Option<u32>,
}

/// The classes that a division asks for. A network's own class keeps the number that it has.
fn classes(division: &Division, standing: &Standing) -> BTreeMap<u16, Wanted> {
    let capacity = division.capacity / 8 * 8;
    let mut wanted = BTreeMap::new();
    wanted.insert(LINK, Wanted { parent: 0, rate: capacity, ceil: capacity, quantum: None });
    wanted.insert(NOBODY, Wanted { parent: LINK, rate: FLOOR, ceil: capacity, quantum: Some(FRAME) });
    let mut used = BTreeSet::new();
    for branch in &division.branches {
        let minors: Vec<_> = branch.leaves.iter().filter_map(|leaf| minor(leaf.number)).collect();
        let parent = if branch.leaves.len() < 2 {
            LINK
        } else {
            let parents = minors.iter().filter_map(|minor| standing.classes.get(minor));
            let known =
                parents.map(|class| class.parent).find(|parent| (FIRST_BRANCH..LINK).contains(parent));
            let taken = |number: &u16| used.contains(number);
            let free = || {
                (FIRST_BRANCH..LINK).find(|number| !taken(number) && !standing.classes.contains_key(number))
            };
            let Some(own) = known.filter(|number| !taken(number)).or_else(free) else {
                // More networks with classes than there are numbers: their queues share the link as if each was one's own.
                add(&mut wanted, branch, LINK);
                continue;
            };
            used.insert(own);
            let rates: Bps = branch.leaves.iter().map(|leaf| leaf.setting.rate).sum();
            let rate = (branch.contract.min / 8 * 8).max(rates);
            let ceil = (branch.contract.most(division.capacity) / 8 * 8).max(rate);
            wanted.insert(own, Wanted { parent: LINK, rate, ceil, quantum: None });
            own
        };
        add(&mut wanted, branch, parent);
    }
    wanted
}

fn add(wanted: &mut BTreeMap<u16, Wanted>, branch: &super::division::Branch, parent: u16) {
    for leaf in &branch.leaves {
        let Some(minor) = minor(leaf.number) else { continue };
        let Setting { rate, ceil, quantum } = leaf.setting;
        // Told none, the kernel would take this.
        let turn = quantum.unwrap_or_else(|| u32::try_from(quantum_of(rate)).unwrap_or(FRAME));
        wanted.insert(minor, Wanted { parent, rate, ceil, quantum: Some(turn) });
    }
}

/// The lines that make a device as the division says; none if it is.
#[must_use]
pub fn batch(device: &str, division: &Division, standing: &Standing) -> String {
    let mut lines = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "{text}");
    };
    let empty = Standing::default();
    let standing = if standing.is_htb() {
        standing
    } else {
        line(format_args!("qdisc replace dev {device} root handle 1: htb default {NOBODY:x}"));
        &empty
    };
    let wanted = classes(division, standing);
    // HTB does not give a class another parent.
    let stays = |(minor, class): &(&u16, &Class)| {
        wanted.get(minor).is_some_and(|wanted| wanted.parent == class.parent)
    };
    let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = standing.classes.iter().partition(stays);
    // Queues before the classes they are below.
    for minor in gone.keys() {
        line(format_args!("class del dev {device} classid 1:{minor:x}"));
    }
    let order = |(minor, _): &(&u16, &Wanted)| match **minor {
        LINK => (0, **minor),
        branch if branch >= FIRST_BRANCH => (1, branch),
        queue => (2, queue),
    };
    let mut all: Vec<_> = wanted.iter().collect();
    all.sort_by_key(order);
    let round: u64 = wanted.values().filter_map(|class| class.quantum).map(u64::from).sum();
    let target = target_us(round, division.capacity);
    let limit = limit(division.capacity);
    for (minor, class) in all {
        let is_same = |now: &&Class| {
            now.rate == class.rate
                && now.ceil == class.ceil
                && class.quantum.is_none_or(|quantum| quantum == now.quantum)
                // The kernel keeps it as a time, in units of 64 ns.
                && now.burst.abs_diff(burst(class.rate)) <= burst(class.rate) / 4
        };
        let stands = kept.get(minor).copied();
        if stands.filter(is_same).is_none() {
            let parent = if class.parent == 0 { "1:".to_owned() } else { format!("1:{:x}", class.parent) };
            let quantum = class.quantum.map(|quantum| format!(" quantum {quantum}")).unwrap_or_default();
            let (burst, cburst) = (burst(class.rate), burst(class.ceil));
            line(format_args!(
                "class replace dev {device} parent {parent} classid 1:{minor:x} htb rate {}bit ceil {}bit burst \
                 {burst} cburst {cburst}{quantum}",
                class.rate, class.ceil
            ));
        }
        if class.quantum.is_some() {
            let leaf = standing.leaves.get(minor).filter(|_| stands.is_some());
            let is_same = leaf.is_some_and(|(kind, now)| {
                // The kernel keeps it in units of 1,024 ns.
                kind == "fq_codel" && now.is_some_and(|now| now.abs_diff(target) <= target / 4)
            });
            if !is_same {
                let interval = INTERVAL_US.max(10 * u64::from(target));
                line(format_args!(
                    "qdisc replace dev {device} parent 1:{minor:x} fq_codel limit {limit} target {target}us interval \
                     {interval}us"
                ));
            }
        }
    }
    lines
}

/// The lines that take away what [`batch`] has made.
#[must_use]
pub fn clear(device: &str) -> String {
    format!("qdisc del dev {device} root\n")
}

/// Bytes that a class of this rate may send at once after it was late; at least two frames.
fn burst(rate: Bps) -> u64 {
    (rate / 8000 * BURST_MS).max(2 * u64::from(FRAME))
}

/// Packets that wait in a queue at most: CoDel drops too little of what does not listen, and what such a sender has left behind
/// would keep its queue busy for seconds after it has gone silent.
fn limit(capacity: Bps) -> u64 {
    (capacity / 8000 * LIMIT_MS / u64::from(FRAME)).clamp(100, 100_000)
}

/// A packet that waits for its queue's turn is no sign of a queue that stands: that time comes on top, twice.
fn target_us(round: u64, capacity: Bps) -> u32 {
    let turn_us = round.saturating_mul(8_000_000).checked_div(capacity).unwrap_or_default();
    u32::try_from(TARGET_US + 2 * turn_us).unwrap_or(u32::MAX).min(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::super::division::{Branch, Leaf};
    use super::super::plan::QueueOf;
    use super::*;
    use xenflow_qos::law::Contract;

    const MBIT: Bps = 1_000_000;

    fn leaf(number: u32, rate: Bps, quantum: u32) -> Leaf {
        let setting = Setting { rate, ceil: 96 * MBIT, quantum: Some(quantum) };
        Leaf { number, of: QueueOf { network: "red".parse().unwrap(), class: None }, setting }
    }

    fn division() -> Division {
        let branch = |min: Bps, leaves| Branch { contract: Contract { min, max: Some(96 * MBIT) }, leaves };
        Division {
            capacity: 100 * MBIT,
            branches: vec![
                branch(16 * MBIT, vec![leaf(1, 16 * MBIT, 66_000)]),
                branch(40 * MBIT, vec![leaf(2, 32 * MBIT, 100_000), leaf(3, 8 * MBIT, 33_000)]),
            ],
        }
    }

    /// What the kernel would say after these lines.
    fn applied(lines: &str, mut standing: Standing) -> Standing {
        for line in lines.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            let after = |key: &str| {
                let at = words.iter().position(|word| *word == key)?;
                words.get(at + 1).copied()
            };
            let minor = |text: &str| u16::from_str_radix(text.trim_start_matches("1:"), 16).unwrap_or(0);
            let bits = |key| after(key).unwrap().trim_end_matches("bit").parse().unwrap();
            match (words[0], words[1]) {
                ("qdisc", "replace") if words.contains(&"root") => {
                    standing = Standing { root: Some(("htb".into(), 1 << 16)), ..Standing::default() };
                }
                ("qdisc", "replace") => {
                    let target = after("target").unwrap().trim_end_matches("us").parse().unwrap();
                    let of = minor(after("parent").unwrap());
                    assert!(standing.classes.contains_key(&of), "{line}");
                    standing.leaves.insert(of, ("fq_codel".into(), Some(target)));
                }
                ("class", "del") => {
                    let gone = minor(after("classid").unwrap());
                    assert!(standing.classes.values().all(|class| class.parent != gone), "{line}");
                    standing.classes.remove(&gone).unwrap();
                    standing.leaves.remove(&gone);
                }
                ("class", "replace") => {
                    let parent = minor(after("parent").unwrap());
                    assert!(parent == 0 || standing.classes.contains_key(&parent), "{line}");
                    let own = minor(after("classid").unwrap());
                    let before = standing.classes.get(&own).map(|class| class.parent);
                    assert!(before.is_none_or(|before| before == parent), "{line}");
                    let quantum = after("quantum").map_or(0, |text| text.parse().unwrap());
                    let burst = after("burst").unwrap().parse().unwrap();
                    let (rate, ceil) = (bits("rate"), bits("ceil"));
                    let class = Class { parent, rate, ceil, quantum, burst, ..Class::default() };
                    standing.classes.insert(own, class);
                }
                _ => panic!("{line}"),
            }
        }
        standing
    }

    #[test]
    fn what_is_made_is_left_alone() {
        let made = applied(&batch("eth0", &division(), &Standing::default()), Standing::default());
        assert_eq!(batch("eth0", &division(), &made), "");
        assert_eq!(made.classes[&2].parent, LINK);
        assert_eq!(made.classes[&3].parent, FIRST_BRANCH);
        assert_eq!(made.told()[&1].rate, 16 * MBIT);
        let branch = made.classes[&FIRST_BRANCH];
        assert_eq!((branch.parent, branch.rate, branch.ceil), (LINK, 40 * MBIT, 96 * MBIT));
    }

    #[test]
    fn only_what_differs_is_written() {
        let made = applied(&batch("eth0", &division(), &Standing::default()), Standing::default());
        let mut other = division();
        other.branches[0].leaves[0].setting.quantum = Some(70_000);
        assert_eq!(
            batch("eth0", &other, &made),
            "class replace dev eth0 parent 1:fffe classid 1:2 htb rate 16000000bit ceil 96000000bit burst 8000 cburst \
             48000 quantum 70000\n"
        );
        // Somebody has taken the qdisc of a queue away, and changed another class.
        let mut meddled = made.clone();
        meddled.leaves.remove(&2);
        meddled.classes.get_mut(&3).unwrap().ceil = 1;
        let mended = applied(&batch("eth0", &division(), &meddled), meddled);
        assert_eq!(mended, made);
    }

    #[test]
    fn a_network_gets_and_loses_classes() {
        let made = applied(&batch("eth0", &division(), &Standing::default()), Standing::default());
        let mut other = division();
        other.branches[1].leaves.pop();
        other.branches[0].leaves.push(leaf(7, 8 * MBIT, 33_000));
        let changed = applied(&batch("eth0", &other, &made), made);
        assert_eq!(batch("eth0", &other, &changed), "");
        assert_eq!(changed.classes[&3].parent, LINK);
        assert_eq!(changed.classes[&8].parent, changed.classes[&2].parent);
        assert!(!changed.classes.contains_key(&4));
        let back = applied(&batch("eth0", &division(), &changed), changed);
        assert_eq!(batch("eth0", &division(), &back), "");
    }

    #[test]
    fn another_qdisc_is_replaced() {
        let foreign = Standing { root: Some(("noqueue".into(), 0)), ..Standing::default() };
        assert!(
            batch("eth0", &division(), &foreign).starts_with("qdisc replace dev eth0 root handle 1: htb")
        );
    }
}
