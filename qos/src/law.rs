//! What queues are told, from what they were promised and what they carry.
//!
//! HTB is told a rate, which it always gives, a ceiling, up to which it lends what others leave, and a quantum, by which it
//! divides what it lends among those that borrow (tc-htb(8)). A [`Policy`] sets them.
//!
//! HTB's turns go by quantum among the borrowers below one class, however much they were promised, so a division by quantum
//! that follows the contracts is a weighted max-min one at once, with no loop: everyone has its rate, and the rest goes by
//! weight to those who want it. What is left for a loop are quanta of classes inside a network, whose sum must be the
//! network's whichever of them are at work, and drivers that cannot set a quantum.

use crate::Bps;
use crate::share::{Want, max_min};

/// What a queue, or a network, was promised on the link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Contract {
    /// It gets that much whenever it wants it, and its part of what is left by it. 0: nothing was agreed; it gets what
    /// others leave, and a little more if there is room ([`Link::fitted`]).
    pub min: Bps,
    /// It gets no more; none: all there is.
    pub max: Option<Bps>,
}

impl Contract {
    /// The most it gets of a link.
    #[must_use]
    pub fn most(&self, capacity: Bps) -> Bps {
        self.max.map_or(capacity, |max| max.min(capacity)).max(self.min)
    }
}

/// A queue as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queue {
    /// Its own part of its network's contract.
    pub contract: Contract,
    /// What it carries.
    pub load: Bps,
    /// It would carry more: packets wait in it or were dropped.
    pub wants_more: bool,
}

/// A network, and its queues: one, or one for each class and one for what is in none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Of all its queues together; not less than the sum of their minima.
    pub contract: Contract,
    /// At least one.
    pub queues: Vec<Queue>,
}

/// A link, and who shares it. The sum of the networks' minima is not more than its capacity ([`Link::fitted`]).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Of Ethernet frames.
    pub capacity: Bps,
    /// Bytes of the largest packet that its qdisc is given at once. A quantum below that would be exceeded by a packet, and
    /// so no share (see [`quanta`]).
    pub packet: u32,
    /// Who shares it.
    pub networks: Vec<Network>,
    /// What queues have that were promised nothing, once it is fitted; 0: no more than HTB needs.
    pub least: Bps,
}

/// What a queue is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Setting {
    /// HTB's rate; never 0.
    pub rate: Bps,
    /// HTB's ceiling, never below the rate.
    pub ceil: Bps,
    /// Bytes of its turn when it borrows; none: what follows from the rate ([`quantum_of`]).
    pub quantum: Option<u32>,
}

/// How to divide a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// What Open vSwitch does by itself: the contracts, and what is left by quantum, which is mostly equal.
    Static,
    /// XenFlow (the paper), section II.E: eq. (1) as written, and the control of the minima above it.
    Paper,
    /// Turns in proportion to the contracts.
    Weights,
    /// Ceilings in proportion to the contracts, set anew in each period.
    Fair,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Static, Self::Paper, Self::Weights, Self::Fair];

    /// As operators write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Paper => "paper",
            Self::Weights => "weights",
            Self::Fair => "fair",
        }
    }
}

/// What can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// Rate and ceiling of queues that are all children of the link (Open vSwitch's linux-htb).
    Flat,
    /// Also the quantum, and the queues of a network below a class of its own that has the network's contract.
    Tree,
}

/// The least rate that is set: what HTB needs where nothing was promised.
pub const FLOOR: Bps = 1_000;
/// Who was promised nothing counts as if it had been promised at most this part of the link.
const LEAST_PART: u64 = 200;
/// Bytes a second of rate for each byte of quantum, as Open vSwitch sets it (`r2q`).
const R2Q: u64 = 10;
/// A quantum that follows from a rate is not less (net/sched/sch_htb.c).
const LEAST_QUANTUM: u64 = 1_000;
/// Nor more.
const MOST_QUANTUM: u64 = 200_000;
/// The greatest rate whose quantum HTB does not clamp: 16 Mbit/s.
const UNCLAMPED: Bps = MOST_QUANTUM * R2Q * 8;
/// No quantum is less: one full frame of Ethernet with a tag, and some room.
pub const FRAME: u32 = 1_600;
/// All turns of a link take about that long at most, as long as none is below [`FRAME`].
const ROUND_MS: u64 = 100;

/// The quantum that HTB gives a class of this rate if it is told none.
#[must_use]
pub fn quantum_of(rate: Bps) -> u64 {
    (rate / 8 / R2Q).clamp(LEAST_QUANTUM, MOST_QUANTUM)
}

/// `a * b / c`; 0 for nothing of nothing.
fn part(a: u64, b: u64, c: u64) -> u64 {
    let part = (u128::from(a) * u128::from(b)).checked_div(u128::from(c));
    part.map_or(0, |part| u64::try_from(part).unwrap_or(u64::MAX))
}

impl Link {
    /// The same with minima that the link can keep: if they are more than it carries, all are less in proportion. The second
    /// value is what they were in all if so.
    ///
    /// If they leave room, who was promised nothing counts as if it had been promised a little: so much that the largest
    /// packet takes a second, but not more than a two-hundredth of the link, nor than the smallest of the others has. What
    /// HTB lets a class send as its own costs it the time that this takes at its rate, up to a minute, and it owes that time
    /// still when its rate has become another one (`htb_change_class()` leaves the tokens alone): at 12 kbit/s one packet
    /// of 64 KiB holds back for 45 seconds what the class is promised next.
    #[must_use]
    pub fn fitted(mut self) -> (Self, Option<Bps>) {
        for network in &mut self.networks {
            let own: Bps = network.queues.iter().map(|queue| queue.contract.min).sum();
            // Classes beyond their network's contract, which nobody should have let in.
            let most = network.contract.min;
            for queue in network.queues.iter_mut().filter(|_| own > most) {
                queue.contract.min = part(queue.contract.min, most, own);
            }
        }
        let needs = |network: &Network| {
            let rates = network.queues.iter().map(|queue| self.contracted(queue).rate).sum();
            network.contract.min.max(rates)
        };
        if self.networks.iter().map(needs).sum::<Bps>() <= self.capacity {
            self.spare();
            return (self, None);
        }
        let sum: Bps = self.networks.iter().map(|network| network.contract.min).sum();
        let room = self.capacity.saturating_sub(self.floors());
        for network in &mut self.networks {
            let fit = |contract: &mut Contract| contract.min = part(contract.min, room, sum);
            fit(&mut network.contract);
            network.queues.iter_mut().for_each(|queue| fit(&mut queue.contract));
        }
        let is_too_much = sum > self.capacity;
        (self, is_too_much.then_some(sum))
    }

    /// Gives a little to who was promised nothing, of what nobody was.
    fn spare(&mut self) {
        let is_bare = |queue: &&mut Queue| queue.contract.min == 0;
        let count = |queues: usize| u64::try_from(queues).unwrap_or(u64::MAX);
        let minima = || self.queues().map(|queue| queue.contract.min);
        let bare = count(minima().filter(|min| *min == 0).count());
        let promised: Bps = self.networks.iter().map(|network| network.contract.min).sum();
        let free = self.capacity.saturating_sub(promised + self.floors());
        let Some(each) = free.checked_div(bare) else { return };
        let smallest = minima().filter(|min| *min > 0).min().unwrap_or(Bps::MAX);
        let most = smallest.min(self.capacity / LEAST_PART).min(Bps::from(self.packet) * 8);
        self.least = each.min(most);
        for network in &mut self.networks {
            let bare = count(network.queues.iter_mut().filter(is_bare).count());
            let room = network.contract.most(self.capacity).saturating_sub(network.contract.min);
            let Some(each) = room.checked_div(bare) else { continue };
            for queue in network.queues.iter_mut().filter(is_bare) {
                queue.contract.min = self.least.min(each).min(queue.contract.most(self.capacity));
            }
            let own = network.queues.iter().map(|queue| queue.contract.min).sum();
            network.contract.min = network.contract.min.max(own);
        }
    }

    /// What a queue was promised by somebody.
    fn promised(&self, queue: &Queue) -> Option<Bps> {
        Some(queue.contract.min).filter(|min| *min > self.least)
    }

    /// What all queues need even if nothing was promised.
    fn floors(&self) -> Bps {
        FLOOR * u64::try_from(self.queues().count()).unwrap_or(u64::MAX)
    }

    fn queues(&self) -> impl Iterator<Item = &Queue> {
        self.networks.iter().flat_map(|network| &network.queues)
    }

    /// What all queues carry.
    #[must_use]
    pub fn carried(&self) -> Bps {
        self.queues().map(|queue| queue.load).sum()
    }

    /// The law: what each queue should have of `capacity`. Weighted max-min by contract among networks, and within a
    /// network among its queues.
    #[must_use]
    pub fn shares(&self, capacity: Bps) -> Vec<Vec<Bps>> {
        let demand = |queue: &Queue| {
            let most = queue.contract.most(capacity);
            if queue.wants_more { most } else { queue.load.min(most) }
        };
        let wants: Vec<_> = self
            .networks
            .iter()
            .map(|network| {
                let sum = network.queues.iter().map(demand).fold(0, Bps::saturating_add);
                Want { demand: sum.min(network.contract.most(capacity)), weight: network.contract.min }
            })
            .collect();
        let within = |(network, share): (&Network, Bps)| {
            let wants: Vec<_> = network
                .queues
                .iter()
                .map(|queue| Want { demand: demand(queue), weight: queue.contract.min })
                .collect();
            max_min(share, &wants)
        };
        self.networks.iter().zip(max_min(capacity, &wants)).map(within).collect()
    }

    /// What the queues are told, as [`Link::networks`] lists them. The sum of the rates is not more than the link carries.
    #[must_use]
    pub fn settings(&self, policy: Policy, means: Means) -> Vec<Vec<Setting>> {
        match (policy, means) {
            (Policy::Static, _) => self.each(|_, queue| self.contracted(queue)),
            (Policy::Paper, _) => self.paper(),
            (Policy::Weights, Means::Flat) => self.scaled(),
            (Policy::Weights, Means::Tree) => self.with_quanta(self.each(|_, queue| self.contracted(queue))),
            (Policy::Fair, Means::Flat) => self.fair(),
            (Policy::Fair, Means::Tree) => self.with_quanta(self.fair()),
        }
    }

    fn each(&self, setting: impl Fn(&Network, &Queue) -> Setting) -> Vec<Vec<Setting>> {
        let of = |network: &Network| network.queues.iter().map(|queue| setting(network, queue)).collect();
        self.networks.iter().map(of).collect()
    }

    fn contracted(&self, queue: &Queue) -> Setting {
        let rate = queue.contract.min.max(FLOOR);
        Setting { rate, ceil: queue.contract.most(self.capacity).max(rate), quantum: None }
    }

    /// The first level gives what no contract has to the minima: by contract, and less to who uses more than its own. The
    /// second gives what nobody uses to the maxima: eq. (1).
    fn paper(&self) -> Vec<Vec<Setting>> {
        let promised = |queue: &Queue| self.promised(queue).unwrap_or_default();
        let minima: Bps = self.queues().map(promised).sum();
        let rates: Bps = self.queues().map(|queue| self.contracted(queue).rate).sum();
        let free = self.capacity.saturating_sub(rates);
        let idle = self.capacity.saturating_sub(self.carried());
        let weight = |queue: &Queue| {
            let min = promised(queue);
            part(min, min, queue.load.max(min))
        };
        let weights: u64 = self.queues().map(weight).sum();
        self.each(|_, queue| {
            let open = self.contracted(queue);
            let rate = (open.rate + part(free, weight(queue), weights)).min(open.ceil);
            let ceil = queue.contract.min + part(idle, promised(queue), minima);
            Setting { rate, ceil: ceil.min(open.ceil).max(rate), quantum: None }
        })
    }

    /// Rates in proportion to the contracts, so small that HTB's quantum, which follows them, is so as well.
    fn scaled(&self) -> Vec<Vec<Setting>> {
        let largest = self.queues().map(|queue| queue.contract.min).max().unwrap_or_default();
        self.each(|_, queue| {
            let open = self.contracted(queue);
            let rate =
                if largest > UNCLAMPED { part(queue.contract.min, UNCLAMPED, largest) } else { open.rate };
            Setting { rate: rate.max(FLOOR), ..open }
        })
    }

    /// Who wants more, or has more than its share, may borrow up to that; the others may take theirs whenever they want it.
    fn fair(&self) -> Vec<Vec<Setting>> {
        let shares = self.shares(self.capacity);
        let mut settings = self.each(|_, queue| self.contracted(queue));
        for ((network, shares), settings) in self.networks.iter().zip(shares).zip(&mut settings) {
            for ((queue, share), setting) in network.queues.iter().zip(shares).zip(settings) {
                if queue.wants_more || queue.load > share {
                    setting.ceil = share.clamp(setting.rate, setting.ceil);
                }
            }
        }
        settings
    }

    fn with_quanta(&self, mut settings: Vec<Vec<Setting>>) -> Vec<Vec<Setting>> {
        for (settings, quanta) in settings.iter_mut().zip(self.quanta()) {
            for (setting, quantum) in settings.iter_mut().zip(quanta) {
                setting.quantum = Some(quantum);
            }
        }
        settings
    }

    /// Turns in proportion to the contracts: the least of those that were promised something is of one whole packet, or else
    /// that packet would be a turn whatever the quantum. If that made a round of all of them too long, all are shorter, and then only packets of a frame are
    /// divided to the letter.
    ///
    /// HTB passes from class to class of a network before it goes on to the next network, so what its queues take in a round
    /// is the network's turn together: those that want more, or have more than their share, divide it as they are to borrow.
    fn quanta(&self) -> Vec<Vec<u32>> {
        let weight = |contract: &Contract| contract.min.max(FLOOR);
        let weights: u64 = self.networks.iter().map(|network| weight(&network.contract)).sum();
        let promised = self.queues().filter_map(|queue| self.promised(queue));
        let least = promised.min().unwrap_or(self.least.max(FLOOR));
        let round = part(self.packet.into(), weights, least).min(self.capacity / 8 / 1000 * ROUND_MS);
        let bounded = |quantum: u64| u32::try_from(quantum).unwrap_or(u32::MAX).max(FRAME);
        let of = |(network, shares): (&Network, Vec<Bps>)| {
            let own = part(round, weight(&network.contract), weights);
            let queues = || network.queues.iter().zip(&shares);
            let borrowed = |queue: &Queue, share: &Bps| share.saturating_sub(weight(&queue.contract));
            let all: u64 = queues().map(|(queue, share)| borrowed(queue, share)).sum();
            let quantum = |(queue, share): (&Queue, &Bps)| match all {
                // It takes what it needs of its turn; or it is idle, and may begin to need it at any time.
                _ if !queue.wants_more && queue.load <= *share => own,
                0 => part(own, weight(&queue.contract), weight(&network.contract)),
                all => part(own, borrowed(queue, share), all),
            };
            queues().map(|each| bounded(quantum(each))).collect()
        };
        self.networks.iter().zip(self.shares(self.capacity)).map(of).collect()
    }
}
