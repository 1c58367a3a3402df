//! What a switch with given flows does with a packet: tables, groups, actions and the limits of Open vSwitch, by
//! values alone. It knows what the pipeline uses and refuses the rest; counters, timeouts and the limit of `learn`
//! are not modeled. A meter lets everything pass or, once [`Switch::exhaust`]ed, nothing.
//!
//! The behaviors are those of Open vSwitch 3.1, `ofproto/ofproto-dpif-xlate.c`; each is cited where it is.

mod group;
pub mod steps;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use openflow::action::port;
use openflow::{
    Action, Field, Flow, Group, Instruction, Learn, LearnSpec, LearnSrc, Match, MatchField, SubField,
    VLAN_PRESENT,
};

use crate::pipeline::{ETH_HEADER, ETH_SVLAN, ETH_VLAN};
use crate::topology::PortNo;

use steps::Record;
pub use steps::{Pick, Step};

/// `MAX_DEPTH`: nested lookups in a table that does not come later (`xlate_recursively`).
const MAX_DEPTH: u32 = 64;
/// `MAX_RESUBMITS`: lookups for one packet.
const MAX_LOOKUPS: u32 = MAX_DEPTH * MAX_DEPTH;
/// Ways through groups that [`Switch::send_all`] follows.
const MAX_WAYS: usize = 4096;

/// A VLAN tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    /// Its Ethernet type.
    pub tpid: u16,
    /// VLAN id, 12 bits.
    pub vid: u16,
    /// Priority, 3 bits.
    pub pcp: u8,
}

impl Tag {
    /// An 802.1Q tag of priority 0.
    #[must_use]
    pub fn new(vid: u16) -> Self {
        Self { tpid: ETH_VLAN, vid, pcp: 0 }
    }
}

/// A packet outside of the switch.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    /// Outermost first.
    pub tags: Vec<Tag>,
    /// Values of the fields that its headers have. [`Field::EthType`] is the payload's, behind all tags.
    pub headers: BTreeMap<Field, u128>,
    /// Bytes of the IP packet, header included. `check_pkt_larger` compares this plus 14: the kernel's datapath
    /// keeps the outermost tag beside the packet (`skb_vlan_push`), so that it does not count
    /// (`execute_check_pkt_len` in net/openvswitch/actions.c; of a GSO packet each segment). The datapath in user
    /// space counts 4 bytes for a tag.
    pub ip_len: u16,
}

impl Packet {
    /// A header's value, 0 where the packet has no such header.
    #[must_use]
    pub fn header(&self, field: Field) -> u128 {
        self.headers.get(&field).copied().unwrap_or(0)
    }

    /// The same packet with another value in a header.
    #[must_use]
    pub fn with(mut self, field: Field, value: u128) -> Self {
        self.headers.insert(field, value);
        self
    }

    /// The same packet with that many bytes of IP.
    #[must_use]
    pub fn sized(mut self, ip_len: u16) -> Self {
        self.ip_len = ip_len;
        self
    }

    /// The same packet within one more tag.
    #[must_use]
    pub fn tagged(mut self, tag: Tag) -> Self {
        self.tags.insert(0, tag);
        self
    }

    /// Headers behind a second tag are not looked at: `vlan-limit` is 1 unless it is configured
    /// (`flow_limit_vlans`, ovs-vswitchd.conf.db(5)).
    fn sees(&self, field: Field) -> bool {
        self.headers.contains_key(&field)
            && (self.tags.len() < 2 || matches!(field, Field::EthSrc | Field::EthDst))
    }
}

/// What became of a packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Copies that left, by port, in order.
    pub sent: Vec<(PortNo, Packet)>,
    /// The queue by which each of them left, in the same order; 0 where none was chosen.
    pub queues: Vec<u32>,
    /// Copies that went to the controller, in order, each with what its flow says of it.
    pub told: Vec<(Box<[u8]>, Packet)>,
    /// Flows that were learned. The packet itself does not meet them; give them to [`Switch::insert`] for the next.
    pub learned: Vec<Flow>,
    /// Meters that a copy came to, in order, whether it passed or not.
    pub metered: Vec<u32>,
    /// Cookies of the flows that it met, in order.
    pub cookies: Vec<u64>,
}

/// Why nothing became of it. Open vSwitch then drops the packet whole (`xlate_actions` clears its output).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// `XLATE_RECURSION_TOO_DEEP`.
    #[error("more than {MAX_DEPTH} nested backward lookups")]
    TooDeep,
    /// `XLATE_TOO_MANY_RESUBMITS`.
    #[error("more than {MAX_LOOKUPS} lookups")]
    TooManyLookups,
    /// The switch refuses a flow that sends to it, and deletes such flows with the group.
    #[error("no group {0}")]
    NoGroup(u32),
    /// The simulator knows select groups of method `hash` whose buckets watch nothing.
    #[error("{0:?} is not simulated")]
    Group(Box<Group>),
    /// The groups on the way can be passed in too many ways.
    #[error("more than {MAX_WAYS} ways through groups")]
    TooManyWays,
    /// The simulator does not know this action.
    #[error("{0:?} is not simulated")]
    Action(Box<Action>),
    /// The simulator does not know this instruction.
    #[error("{0:?} is not simulated")]
    Instruction(Box<Instruction>),
}

#[derive(Debug)]
struct Entry {
    flow: Flow,
    fields: Vec<MatchField>,
}

/// A set of flows and groups.
#[derive(Debug, Default)]
pub struct Switch {
    /// By table; the highest priority first.
    tables: BTreeMap<u8, Vec<Entry>>,
    groups: BTreeMap<u32, Group>,
    exhausted: BTreeSet<u32>,
}

impl FromIterator<Flow> for Switch {
    fn from_iter<I: IntoIterator<Item = Flow>>(flows: I) -> Self {
        let mut switch = Self::default();
        for flow in flows {
            switch.insert(flow);
        }
        switch
    }
}

impl Switch {
    /// Adds a flow in the place of one with the same table, priority and match.
    pub fn insert(&mut self, flow: Flow) {
        let table = self.tables.entry(flow.table).or_default();
        table.retain(|entry| entry.flow.priority != flow.priority || entry.flow.matching != flow.matching);
        let at = table.partition_point(|entry| entry.flow.priority >= flow.priority);
        let fields = flow.matching.fields().collect();
        table.insert(at, Entry { flow, fields });
    }

    /// Adds a group in the place of one with the same number.
    pub fn insert_group(&mut self, group: Group) {
        self.groups.insert(group.id, group);
    }

    /// From now on this meter drops everything.
    pub fn exhaust(&mut self, meter: u32) {
        self.exhausted.insert(meter);
    }

    /// From now on no meter drops anything.
    pub fn refill(&mut self) {
        self.exhausted.clear();
    }

    /// What becomes of a packet that comes in by a port. Which bucket of a group it takes follows from the group's
    /// fields alone; Open vSwitch has another hash.
    ///
    /// # Errors
    /// [`Fault`]: the switch drops it, or the simulator does not know what it does.
    pub fn send(&self, in_port: PortNo, packet: &Packet) -> Result<Outcome, Fault> {
        Ok(self.walk(in_port, packet, None)?.outcome)
    }

    /// All that may become of it, whatever bucket each group picks: at least one outcome, each once.
    ///
    /// # Errors
    /// [`Fault`]: on one of the ways the switch drops it, or there are too many.
    pub fn send_all(&self, in_port: PortNo, packet: &Packet) -> Result<Vec<Outcome>, Fault> {
        let mut outcomes = Vec::new();
        let mut way = group::Way::default();
        for _ in 0..MAX_WAYS {
            let walk = self.walk(in_port, packet, Some(way))?;
            if !outcomes.contains(&walk.outcome) {
                outcomes.push(walk.outcome);
            }
            match walk.way.and_then(group::Way::next) {
                Some(next) => way = next,
                None => return Ok(outcomes),
            }
        }
        Err(Fault::TooManyWays)
    }

    fn walk(&self, in_port: PortNo, packet: &Packet, way: Option<group::Way>) -> Result<Walk<'_>, Fault> {
        let mut walk = Walk::new(self, way);
        walk.lookup(0, in_port, &mut State::new(in_port, packet))?;
        Ok(walk)
    }
}

/// Where a packet finds flows and groups.
pub(crate) trait Tables {
    /// The flow of a table that a packet meets.
    fn find(&self, table: u8, state: &State) -> Option<Cow<'_, Flow>>;
    /// The group of a number.
    fn group(&self, id: u32) -> Option<Cow<'_, Group>>;
    /// That meter drops everything.
    fn is_exhausted(&self, meter: u32) -> bool;
}

impl Tables for Switch {
    fn find(&self, table: u8, state: &State) -> Option<Cow<'_, Flow>> {
        let hit = |entry: &&Entry| entry.fields.iter().all(|field| state.hits(field));
        self.tables.get(&table)?.iter().find(hit).map(|entry| Cow::Borrowed(&entry.flow))
    }

    fn group(&self, id: u32) -> Option<Cow<'_, Group>> {
        self.groups.get(&id).map(Cow::Borrowed)
    }

    fn is_exhausted(&self, meter: u32) -> bool {
        self.exhausted.contains(&meter)
    }
}

/// A packet on its way through the tables.
#[derive(Debug, Clone)]
pub(crate) struct State {
    in_port: PortNo,
    regs: [u32; 16],
    /// That the packet is to leave by; 0 is the one that it came with.
    queue: u32,
    packet: Packet,
}

#[allow(clippy::wildcard_enum_match_arm, reason = "every other field is a header")]
#[allow(clippy::cast_possible_truncation, reason = "values of a field fit its width")]
impl State {
    fn new(in_port: PortNo, packet: &Packet) -> Self {
        Self { in_port, regs: [0; 16], queue: 0, packet: packet.clone() }
    }

    pub(crate) fn hits(&self, it: &MatchField) -> bool {
        self.get(it.field) & it.mask == it.value
    }

    pub(crate) fn get(&self, field: Field) -> u128 {
        let tag = self.packet.tags.first();
        let reg = |n: u8| u128::from(self.regs.get(usize::from(n)).copied().unwrap_or(0));
        match field {
            Field::InPort | Field::InPortNxm => self.in_port.into(),
            Field::Reg(n) => reg(n),
            Field::Xreg(n) => reg(2 * n) << 32 | reg(2 * n + 1),
            Field::Xxreg(n) => self.get(Field::Xreg(2 * n)) << 64 | self.get(Field::Xreg(2 * n + 1)),
            Field::VlanVid => tag.map_or(0, |tag| (VLAN_PRESENT | tag.vid).into()),
            Field::VlanPcp => tag.map_or(0, |tag| tag.pcp.into()),
            Field::VlanTci => self.get(Field::VlanPcp) << 13 | self.get(Field::VlanVid),
            Field::EthType if self.packet.tags.len() > 1 => self.packet.tags[1].tpid.into(),
            _ if self.packet.sees(field) => self.packet.header(field),
            _ => 0,
        }
    }

    /// Does nothing where the packet has no such header (`mf_are_prereqs_ok` in `do_xlate_actions`).
    fn set(&mut self, field: Field, value: u128) {
        match field {
            Field::InPortNxm => self.in_port = value as u32,
            Field::Reg(n) => self.regs[usize::from(n)] = value as u32,
            Field::Xreg(n) => {
                self.set(Field::Reg(2 * n), value >> 32);
                self.set(Field::Reg(2 * n + 1), value & u128::from(u32::MAX));
            }
            Field::Xxreg(n) => {
                self.set(Field::Xreg(2 * n), value >> 64);
                self.set(Field::Xreg(2 * n + 1), value & u128::from(u64::MAX));
            }
            Field::VlanVid => {
                if let Some(tag) = self.packet.tags.first_mut() {
                    tag.vid = value as u16 & 0xfff;
                }
            }
            Field::VlanPcp => {
                if let Some(tag) = self.packet.tags.first_mut() {
                    tag.pcp = value as u8;
                }
            }
            _ if self.packet.sees(field) => {
                self.packet.headers.insert(field, value);
            }
            _ => {}
        }
    }

    fn set_masked(&mut self, field: Field, value: u128, mask: u128) {
        self.set(field, self.get(field) & !mask | value & mask);
    }

    fn part(&self, part: SubField) -> u128 {
        self.get(part.field) >> part.start & ones(part.n_bits)
    }
}

fn ones(bits: u16) -> u128 {
    u128::MAX.checked_shr(128u32.saturating_sub(bits.into())).unwrap_or(0)
}

struct Walk<'a> {
    tables: &'a dyn Tables,
    depth: u32,
    lookups: u32,
    /// A meter has dropped the packet, as far as this list of the datapath goes. The switch goes on compiling the
    /// flow that it hands to the datapath, so that what it learns is learned all the same.
    is_dropped: bool,
    /// Which buckets to take; by hash without it.
    way: Option<group::Way>,
    outcome: Outcome,
    /// What it did, where somebody wants to know.
    record: Option<Record>,
}

/// What a flow does, step by step.
#[derive(Debug, Clone, Copy)]
enum Op<'a> {
    Action(&'a Action),
    Goto(u8),
}

fn ops(actions: &[Action]) -> Vec<Op<'_>> {
    actions.iter().map(Op::Action).collect()
}

impl<'a> Walk<'a> {
    fn new(tables: &'a dyn Tables, way: Option<group::Way>) -> Self {
        let outcome = Outcome::default();
        Self { tables, depth: 0, lookups: 0, is_dropped: false, way, outcome, record: None }
    }

    /// `xlate_table_action`: the other input port counts for the lookup only; a miss does nothing (OpenFlow 1.3 and
    /// later). The caller's state changes with what the flow does.
    fn lookup(&mut self, table: u8, in_port: PortNo, state: &mut State) -> Result<(), Fault> {
        self.lookups += 1;
        if self.lookups > MAX_LOOKUPS {
            return Err(Fault::TooManyLookups);
        }
        let own = std::mem::replace(&mut state.in_port, in_port);
        let flow = self.tables.find(table, state);
        state.in_port = own;
        let before = self.record.as_mut().map(|record| record.enter(table, flow.as_deref(), state));
        let Some(flow) = flow else {
            self.leave(before);
            return Ok(());
        };
        self.outcome.cookies.push(flow.cookie);
        let mut steps = Vec::new();
        for instruction in &flow.instructions {
            #[allow(clippy::wildcard_enum_match_arm, reason = "the rest is refused")]
            match instruction {
                Instruction::ApplyActions(actions) => steps.extend(actions.iter().map(Op::Action)),
                Instruction::GotoTable(next) => steps.push(Op::Goto(*next)),
                other => return Err(Fault::Instruction(Box::new(other.clone()))),
            }
        }
        self.apply(table, &steps, state)?;
        self.leave(before);
        Ok(())
    }

    /// `xlate_recursively`: only a lookup in this or an earlier table counts for the depth.
    fn descend(&mut self, from: u8, to: u8, in_port: PortNo, state: &mut State) -> Result<(), Fault> {
        let deepens = u32::from(to <= from);
        self.check_depth()?;
        self.depth += deepens;
        self.lookup(to, in_port, state)?;
        self.depth -= deepens;
        Ok(())
    }

    /// `xlate_resubmit_resource_check`.
    fn check_depth(&self) -> Result<(), Fault> {
        if self.depth >= MAX_DEPTH { Err(Fault::TooDeep) } else { Ok(()) }
    }

    /// `do_xlate_actions`.
    fn apply(&mut self, table: u8, steps: &[Op<'_>], state: &mut State) -> Result<(), Fault> {
        for (i, step) in steps.iter().enumerate() {
            let action = match *step {
                Op::Action(action) => action,
                Op::Goto(next) => {
                    self.note(|| Action::resubmit(next));
                    self.descend(table, next, state.in_port, state)?;
                    continue;
                }
            };
            self.note(|| action.clone());
            #[allow(clippy::wildcard_enum_match_arm, reason = "the rest is refused")]
            match action {
                // `compose_output_action__` skips the input port.
                Action::Output { port, .. } if *port < port::IN_PORT => {
                    if *port != state.in_port && !self.is_dropped {
                        self.emit(*port, state);
                    }
                }
                // `xlate_output_trunc_action` warns and does nothing; see `is_kept`.
                Action::OutputTrunc { port: port::TABLE_16, .. } => {}
                // `flow_push_vlan_uninit`: the new tag is empty.
                Action::PushVlan(tpid @ (ETH_VLAN | ETH_SVLAN)) => {
                    state.packet.tags.insert(0, Tag { tpid: *tpid, vid: 0, pcp: 0 });
                }
                Action::PopVlan => {
                    if !state.packet.tags.is_empty() {
                        state.packet.tags.remove(0);
                    }
                }
                // `compose_dec_ttl`: a TTL that would reach 0 ends the list.
                Action::DecTtl => match state.get(Field::IpTtl) {
                    0 | 1 => return Ok(()),
                    ttl => state.set(Field::IpTtl, ttl - 1),
                },
                Action::SetField { field, value, mask } => state.set_masked(*field, value.get(), mask.get()),
                // `mf_subfield_copy` reads all before it writes, so the parts may overlap.
                Action::CopyField { src, dst: (field, start) } => {
                    let value = state.part(*src);
                    state.set_masked(*field, value << start, ones(src.n_bits) << start);
                }
                Action::Resubmit { in_port, table: to } => {
                    let in_port = in_port.map_or(state.in_port, PortNo::from);
                    self.descend(table, to.unwrap_or(table), in_port, state)?;
                }
                // `compose_clone`: registers, input port and headers are as before after it.
                Action::Clone(actions) => {
                    let is_dropped = self.is_dropped;
                    self.apply(table, &ops(actions), &mut state.clone())?;
                    if is_kept(actions) {
                        self.is_dropped = is_dropped;
                    }
                }
                // `xlate_group_bucket` likewise.
                Action::Group(id) => {
                    let actions = self.bucket(*id, state)?;
                    self.check_depth()?;
                    self.depth += 1;
                    self.apply(table, &ops(&actions), &mut state.clone())?;
                    self.depth -= 1;
                }
                // `xlate_check_pkt_larger`: the rest of the list is a branch of its own, in the datapath too, and
                // what it did to the packet is undone after it.
                Action::CheckPktLarger { len, dst: (field, bit) } => {
                    let is_larger = u32::from(state.packet.ip_len) + u32::from(ETH_HEADER) > u32::from(*len);
                    if self.record.is_some() {
                        return self.both_branches(table, &steps[i + 1..], state, (*field, *bit), is_larger);
                    }
                    let mut branch = state.clone();
                    branch.set_masked(*field, u128::from(is_larger) << bit, 1 << bit);
                    let is_dropped = self.is_dropped;
                    self.apply(table, &steps[i + 1..], &mut branch)?;
                    self.is_dropped = is_dropped;
                    return Ok(());
                }
                Action::SetQueue(queue) => state.queue = *queue,
                Action::PopQueue => state.queue = 0,
                Action::Learn(learn) => self.outcome.learned.push(learned(learn, state)),
                Action::Meter(id) => {
                    if !self.is_dropped {
                        self.outcome.metered.push(*id);
                    }
                    self.is_dropped |= self.tables.is_exhausted(*id);
                }
                // `xlate_controller_action`: a meter of its own drops this copy and nothing else.
                Action::Controller(it) if !it.pause => {
                    if !self.is_dropped {
                        self.outcome.metered.extend(it.meter);
                        if !it.meter.is_some_and(|meter| self.tables.is_exhausted(meter)) {
                            self.tell(&it.userdata, state);
                        }
                    }
                }
                other => return Err(Fault::Action(Box::new(other.clone()))),
            }
        }
        Ok(())
    }
}

/// Whether a clone is one for the datapath as well, so that a meter in it, or in what it resubmits to, drops that
/// copy and nothing else. Open vSwitch makes one only if an action of the clone itself is of a kind that it cannot
/// undo (`reversible_actions`), and otherwise appends the actions to the others. (The last clone of all is never
/// kept, and need not be.)
fn is_kept(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Meter(_) | Action::OutputTrunc { .. }))
}

/// `learn_execute` in `lib/learn.c`.
fn learned(learn: &Learn, state: &State) -> Flow {
    let value = |src: &LearnSrc| match src {
        LearnSrc::Field(part) => (state.part(*part), part.n_bits),
        LearnSrc::Value(value, bits) => (value.get(), *bits),
    };
    let mut matching = Match::builder();
    let mut actions = Vec::new();
    for spec in &learn.specs {
        match spec {
            LearnSpec::Match(src, (field, start)) => {
                let (value, bits) = value(src);
                let (value, mask) = (value << start, ones(bits) << start);
                // The switch keeps the control word as its two OXM fields.
                matching = if *field == Field::VlanTci {
                    let pcp = (value >> 13, mask >> 13);
                    matching.masked(Field::VlanVid, value, mask).masked(Field::VlanPcp, pcp.0, pcp.1)
                } else {
                    matching.masked(*field, value, mask)
                };
            }
            LearnSpec::Load(src, (field, start)) => {
                let (value, bits) = value(src);
                actions.push(Action::load(field.slice(*start, bits), value));
            }
            LearnSpec::Output(part) => {
                actions.push(Action::output(u32::try_from(state.part(*part)).unwrap_or(port::ANY)));
            }
        }
    }
    let flow = Flow::new(learn.table, learn.priority, learn.cookie, matching.build()).apply(actions);
    let Learn { idle_timeout, hard_timeout, .. } = *learn;
    Flow { idle_timeout, hard_timeout, ..flow }
}

#[cfg(test)]
mod tests;
