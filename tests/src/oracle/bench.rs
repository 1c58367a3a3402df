//! Oracle, witness and judge, of one router.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Family;
use super::actions::outputs;
use super::dump::{Dump, Opinion};
use super::kernel::{Answer, Kernel};
use super::plan::{DOWN, LINKS, Plan, TABLE_MAIN, TABLE_RED};
use super::questions::{Asker, Destinations, Question};
use super::random::Random;
use super::tally::Tally;
use super::verdict::{Facts, Member, Port, Shares, UNRESOLVED, Verdict};
use super::witness::Witness;
use crate::net::Netns;
use crate::node::{BRIDGE, Node};
use crate::virtual_router::VirtualRouter;

/// Bytes of an Ethernet header.
const ETH_HEADER: u32 = 14;
/// Packets to try until each of several next hops should have had one. Of the unluckiest group, with weights from 1 to
/// 9 and three more members, one gets less than one in 28: it is missed once in 10⁹ times.
const TRIES: usize = 600;

/// What a look at shared routes came to.
#[derive(Debug, Default)]
pub struct Usage {
    /// Sets of neighbors that share packets.
    pub sets: usize,
    /// Packets traced.
    pub traced: usize,
    /// Neighbors that got none.
    pub unused: usize,
    /// Packets that went elsewhere.
    pub wrong: usize,
    /// One line each.
    pub findings: Vec<String>,
}

/// Asks and compares.
pub struct Bench<'a> {
    /// The host.
    pub node: &'a Node,
    /// The guest.
    pub guest: &'a Netns,
    /// What the verdict needs to know.
    pub facts: Facts<'a>,
    /// Draws packets.
    pub asker: Asker<'a>,
    /// OpenFlow numbers of the access ports, by link.
    pub access: [u32; LINKS],
    kernel: Kernel,
    dump: Dump,
    witness: Witness,
    /// The guest's interfaces.
    interfaces: BTreeMap<String, u32>,
    /// Their numbers, by link.
    indices: [u32; LINKS],
    trunk: u32,
}

impl fmt::Debug for Bench<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bench").field("node", self.node).finish_non_exhaustive()
    }
}

impl<'a> Bench<'a> {
    /// A bench for a router as it is now, on a node with this trunk.
    pub fn new(
        seed: u64,
        plan: &'a Plan,
        node: &'a Node,
        router: &'a VirtualRouter,
        trunk: &str,
    ) -> Result<Self> {
        let guest = router.guest().netns();
        let mut witness = Witness::connect(&node.host().rundir().join("ovs-vswitchd.ctl"), BRIDGE)?;
        let interfaces = interfaces(guest)?;
        let mut ports = BTreeMap::new();
        let (trunk, number) = witness.port(trunk)?;
        ports.insert(number, Port::Uplink);
        let (mut access, mut indices) = ([0; LINKS], [0; LINKS]);
        for (index, link) in plan.links.iter().enumerate() {
            let (openflow, number) = witness.port(&link.access)?;
            access[index] = openflow;
            ports.insert(number, Port::Access(index));
            let (_, number) = witness.port(&router.port(&link.name))?;
            ports.insert(number, Port::Vif(index));
            indices[index] = *interfaces.get(&link.name).with_context(|| format!("no {}", link.name))?;
        }
        let macs: [String; LINKS] = std::array::from_fn(|index| router.mac(index));
        let up = indices.into_iter().zip(0..).filter(|(_, link)| *link != DOWN);
        let dump = Dump::read(guest, &interfaces)?;
        let facts = Facts {
            plan,
            macs: macs.clone(),
            ports,
            links: up.collect(),
            tos: dump.tos.clone(),
            closed: Family::ALL.map(|family| ((DOWN, family), "link down")).into(),
            watched: BTreeSet::new(),
        };
        let asker = Asker::new(plan, macs, Random::new(seed, 3));
        let kernel = Kernel::open(guest)?;
        Ok(Self { node, guest, facts, asker, access, kernel, dump, witness, interfaces, indices, trunk })
    }

    /// Lists the guest's routes again.
    pub fn refresh(&mut self) -> Result<()> {
        self.dump = Dump::read(self.guest, &self.interfaces)?;
        self.facts.tos.clone_from(&self.dump.tos);
        Ok(())
    }

    /// Routes in the guest's tables that packets are looked up in.
    pub fn routes(&self) -> usize {
        let tables = [TABLE_MAIN, TABLE_RED];
        let of = |family| tables.map(|table| self.dump.len(family, table)).into_iter().sum::<usize>();
        Family::ALL.into_iter().map(of).sum()
    }

    /// Compares what kernel and switch do with packets.
    pub fn compare(&mut self, questions: &[Question]) -> Result<Tally> {
        let mut tally = Tally::default();
        for question in questions {
            // Whatever the kernel says where something else decides as well.
            let opinion = match self.facts.closed(question) {
                Some(_) => None,
                None => Some(self.ask(question, &mut tally)?),
            };
            let actions = self.trace(question)?;
            let verdicts = self.judge(question, opinion.as_ref(), &actions)?;
            tally.take(question, opinion.as_ref(), &verdicts, &actions);
            let Some(opinion) = opinion else { continue };
            if let Some(shares) = self.facts.shares(question, &opinion) {
                tally.shared += usize::from(matches!(verdicts[..], [(_, Verdict::Forwarded(_)), ..]));
                tally.shares.entry(shares).or_insert_with(|| (question.clone(), opinion));
            }
        }
        Ok(tally)
    }

    /// So many packets to any of these destinations.
    pub fn compare_any(&mut self, count: usize, destinations: &Destinations) -> Result<Tally> {
        let questions: Vec<Question> = (0..count).map(|_| self.asker.any(destinations)).collect();
        self.compare(&questions)
    }

    /// What the kernel says. Where it can be asked in several ways, they must agree.
    fn ask(&mut self, question: &Question, tally: &mut Tally) -> Result<Opinion> {
        let (iif, src, dst) = (self.indices[question.link], question.packet.src, question.packet.dst);
        let matched = self.kernel.ask(iif, src, dst)?;
        if self.facts.is_martian(question) {
            return Ok(Opinion { answer: matched, table: None, is_by_interface: false });
        }
        let mut opinion = self.dump.look_up(Plan::table(question.link), dst);
        if opinion.is_by_interface {
            opinion.answer = self.kernel.choose(iif, src, dst)?;
            return Ok(opinion);
        }
        let mut contradiction = None;
        let has_object = matches!(&opinion.answer, Answer::Forward(forward) if forward.next_hop_id.is_some());
        if matched != opinion.answer {
            if question.family() == Family::V6 && has_object {
                tally.misled += 1;
            } else {
                contradiction = Some(format!("listed is {opinion:?}"));
                opinion.answer = matched;
            }
        }
        if let Answer::Forward(forward) = &opinion.answer {
            let chosen = self.kernel.choose(iif, src, dst)?;
            let is_of_them = match &chosen {
                Answer::Forward(chosen) => chosen.hops.iter().all(|it| {
                    let mut alive = forward.hops.iter().filter(|hop| !hop.is_dead);
                    alive.any(|hop| (hop.oif, hop.gateway) == (it.oif, it.gateway))
                }),
                Answer::Local | Answer::Blackhole | Answer::Refuse(_) => false,
            };
            if !is_of_them {
                contradiction = Some(format!("the kernel chooses {chosen:?}"));
            }
        }
        if let Some(contradiction) = contradiction {
            tally.contradictions += 1;
            tally.find(format!("{contradiction}, but {opinion:?}: {question:?}"));
        }
        Ok(opinion)
    }

    fn trace(&mut self, question: &Question) -> Result<String> {
        let port = if question.is_from_uplink { self.trunk } else { self.access[question.link] };
        self.witness.trace(port, &question.packet)
    }

    fn judge(
        &self,
        question: &Question,
        opinion: Option<&Opinion>,
        actions: &str,
    ) -> Result<Vec<(u32, Verdict)>> {
        let of_size = |size: u32| {
            let emits = outputs(actions, &question.packet, size + ETH_HEADER)
                .with_context(|| format!("actions {actions} for {question:?}"))?;
            Ok((size, self.facts.judge(question, size, opinion, &emits)))
        };
        self.facts.sizes(question, opinion).into_iter().map(of_size).collect()
    }

    /// Sends packets of many senders until every neighbor that shares them has had one.
    pub fn exercise(&mut self, shares: &BTreeMap<Shares, (Question, Opinion)>) -> Result<Usage> {
        let mut usage = Usage { sets: shares.len(), ..Usage::default() };
        for (Shares { known, unknown, .. }, (question, opinion)) in shares {
            let mut without: BTreeSet<Member> = known.clone();
            let mut is_punted = unknown.is_empty();
            for _ in 0..TRIES {
                if without.is_empty() && is_punted {
                    break;
                }
                let question = self.asker.of_another(question);
                let actions = self.trace(&question)?;
                usage.traced += 1;
                for (size, verdict) in self.judge(&question, Some(opinion), &actions)? {
                    match verdict {
                        Verdict::Forwarded(member) => drop(without.remove(&member)),
                        Verdict::Punted(UNRESOLVED) => is_punted = true,
                        Verdict::Punted(_) => {}
                        Verdict::Dropped | Verdict::PuntUnexplained | Verdict::Wrong { .. } => {
                            usage.wrong += 1;
                            usage.findings.push(format!(
                                "{verdict:?} at {size} bytes: {question:?}\n  kernel: {opinion:?}\n  switch: {actions}"
                            ));
                        }
                    }
                }
            }
            let unused = without.len() + usize::from(!is_punted);
            usage.unused += unused;
            if unused > 0 {
                usage.findings.push(format!(
                    "of {known:?} and unknown {unknown:?} never used: {without:?}: {question:?}, {opinion:?}"
                ));
            }
        }
        Ok(usage)
    }

    /// Lines of `dump-flows`.
    pub fn flows(&self, filter: &str) -> Result<Vec<String>> {
        let text = self.node.host().ofctl(&["--no-stats", "dump-flows", BRIDGE, filter])?;
        Ok(text.lines().filter(|line| line.contains("actions=")).map(|line| line.trim().to_owned()).collect())
    }
}

/// The interfaces of a namespace with their numbers.
fn interfaces(ns: &Netns) -> Result<BTreeMap<String, u32>> {
    let links: Vec<Value> = serde_json::from_str(&ns.ip(&["-j", "link", "show"])?)?;
    let named = |link: &Value| {
        let index = u32::try_from(link.get("ifindex")?.as_u64()?).ok()?;
        Some((link.get("ifname")?.as_str()?.to_owned(), index))
    };
    Ok(links.iter().filter_map(named).collect())
}
