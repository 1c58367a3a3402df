//! What a switch with given flows does with a packet: tables, actions and the limits of Open vSwitch, by values
//! alone. It knows what the pipeline uses and refuses the rest; counters, timeouts, the limit of `learn` and
//! meters (which let everything pass) are not modeled.
//!
//! The behaviors are those of Open vSwitch 3.1, `ofproto/ofproto-dpif-xlate.c`; each is cited where it is.

use std::collections::BTreeMap;

use openflow::action::port;
use openflow::{
    Action, Field, Flow, Instruction, Learn, LearnSpec, LearnSrc, Match, MatchField, SubField, VLAN_PRESENT,
};

use crate::pipeline::{ETH_SVLAN, ETH_VLAN};
use crate::topology::PortNo;

/// `MAX_DEPTH`: nested lookups in a table that does not come later (`xlate_recursively`).
const MAX_DEPTH: u32 = 64;
/// `MAX_RESUBMITS`: lookups for one packet.
const MAX_LOOKUPS: u32 = MAX_DEPTH * MAX_DEPTH;

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
    /// Flows that were learned. The packet itself does not meet them; give them to [`Switch::insert`] for the next.
    pub learned: Vec<Flow>,
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

/// A set of flows.
#[derive(Debug, Default)]
pub struct Switch {
    /// By table; the highest priority first.
    tables: BTreeMap<u8, Vec<Entry>>,
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

    /// What becomes of a packet that comes in by a port.
    ///
    /// # Errors
    /// [`Fault`]: the switch drops it, or the simulator does not know what it does.
    pub fn send(&self, in_port: PortNo, packet: &Packet) -> Result<Outcome, Fault> {
        let mut state = State { in_port, regs: [0; 16], packet: packet.clone() };
        let mut walk = Walk { switch: self, depth: 0, lookups: 0, outcome: Outcome::default() };
        walk.lookup(0, in_port, &mut state)?;
        Ok(walk.outcome)
    }

    fn find(&self, table: u8, state: &State) -> Option<&Flow> {
        let hit = |entry: &&Entry| entry.fields.iter().all(|f| state.get(f.field) & f.mask == f.value);
        self.tables.get(&table)?.iter().find(hit).map(|entry| &entry.flow)
    }
}

/// A packet on its way through the tables.
#[derive(Debug, Clone)]
struct State {
    in_port: PortNo,
    regs: [u32; 16],
    packet: Packet,
}

#[allow(clippy::wildcard_enum_match_arm, reason = "every other field is a header")]
#[allow(clippy::cast_possible_truncation, reason = "values of a field fit its width")]
impl State {
    fn get(&self, field: Field) -> u128 {
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
    switch: &'a Switch,
    depth: u32,
    lookups: u32,
    outcome: Outcome,
}

impl Walk<'_> {
    /// `xlate_table_action`: the other input port counts for the lookup only; a miss does nothing (OpenFlow 1.3 and
    /// later). The caller's state changes with what the flow does.
    fn lookup(&mut self, table: u8, in_port: PortNo, state: &mut State) -> Result<(), Fault> {
        self.lookups += 1;
        if self.lookups > MAX_LOOKUPS {
            return Err(Fault::TooManyLookups);
        }
        let own = std::mem::replace(&mut state.in_port, in_port);
        let flow = self.switch.find(table, state);
        state.in_port = own;
        let Some(flow) = flow else { return Ok(()) };
        for instruction in &flow.instructions {
            #[allow(clippy::wildcard_enum_match_arm, reason = "the rest is refused")]
            match instruction {
                Instruction::ApplyActions(actions) => {
                    if !self.apply(table, actions, state)? {
                        return Ok(());
                    }
                }
                Instruction::GotoTable(next) => self.descend(table, *next, state.in_port, state)?,
                other => return Err(Fault::Instruction(Box::new(other.clone()))),
            }
        }
        Ok(())
    }

    /// `xlate_recursively`: only a lookup in this or an earlier table counts for the depth.
    fn descend(&mut self, from: u8, to: u8, in_port: PortNo, state: &mut State) -> Result<(), Fault> {
        let deepens = u32::from(to <= from);
        if self.depth >= MAX_DEPTH {
            return Err(Fault::TooDeep);
        }
        self.depth += deepens;
        self.lookup(to, in_port, state)?;
        self.depth -= deepens;
        Ok(())
    }

    /// `do_xlate_actions`; false ends the list, and what its flow would do after it.
    fn apply(&mut self, table: u8, actions: &[Action], state: &mut State) -> Result<bool, Fault> {
        for action in actions {
            #[allow(clippy::wildcard_enum_match_arm, reason = "the rest is refused")]
            match action {
                // `compose_output_action__` skips the input port.
                Action::Output { port, .. } if *port < port::IN_PORT => {
                    if *port != state.in_port {
                        self.outcome.sent.push((*port, state.packet.clone()));
                    }
                }
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
                    0 | 1 => return Ok(false),
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
                    self.apply(table, actions, &mut state.clone())?;
                }
                Action::Learn(learn) => self.outcome.learned.push(learned(learn, state)),
                Action::Meter(_) => {}
                other => return Err(Fault::Action(Box::new(other.clone()))),
            }
        }
        Ok(true)
    }
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
mod tests {
    use super::*;

    fn packet() -> Packet {
        let headers =
            [(Field::EthSrc, 0xa), (Field::EthDst, 0xb), (Field::EthType, 0x800), (Field::IpTtl, 9)];
        Packet { tags: Vec::new(), headers: headers.into() }
    }

    fn flow(table: u8, priority: u16, actions: impl Into<Vec<Action>>) -> Flow {
        Flow::new(table, priority, 0, Match::any()).apply(actions)
    }

    fn ports(switch: &Switch) -> Vec<PortNo> {
        switch.send(1, &packet()).unwrap().sent.into_iter().map(|(port, _)| port).collect()
    }

    fn reg_to_port(table: u8, value: u32, port: PortNo) -> Flow {
        let matching = Match::builder().reg(0, value).build();
        Flow::new(table, 9, 0, matching).apply([Action::output(port)])
    }

    #[test]
    fn the_highest_priority_wins_and_a_miss_drops() {
        let mut switch: Switch = [flow(0, 1, [Action::output(2)])].into_iter().collect();
        switch.insert(flow(0, 5, [Action::output(3)]));
        assert_eq!(ports(&switch), [3]);
        switch.insert(flow(0, 5, [Action::output(4)]));
        assert_eq!(ports(&switch), [4], "in the place of the other");
        switch.insert(Flow::new(0, 9, 0, Match::builder().vlan_tagged().build()).apply([Action::output(5)]));
        assert_eq!(ports(&switch), [4], "there is no tag");
        switch.insert(Flow::new(0, 9, 0, Match::builder().untagged().build()).goto(7));
        assert_eq!(ports(&switch), []);
    }

    #[test]
    fn no_output_to_the_input_port_unless_it_is_reset() {
        let reset = Action::set_field(Field::InPortNxm, 0);
        let back = || Action::output(1);
        assert_eq!(ports(&[flow(0, 1, [back(), reset, back()])].into_iter().collect()), [1]);
    }

    #[test]
    fn what_a_resubmitted_table_sets_stays_but_not_what_a_clone_sets() {
        let set = || Action::set_field(Field::Reg(0), 7);
        let then = [Action::resubmit(2), Action::Clone(Box::new([Action::resubmit(1)])), Action::resubmit(2)];
        let mut switch: Switch =
            [flow(0, 1, then), flow(1, 1, [set()]), reg_to_port(2, 7, 5)].into_iter().collect();
        assert_eq!(ports(&switch), []);
        switch.insert(flow(0, 1, [Action::resubmit(1), Action::resubmit(2), Action::output(6)]));
        assert_eq!(ports(&switch), [5, 6]);
    }

    #[test]
    fn overlapping_parts_of_a_register_count_in_unary() {
        let reg = Field::Reg(0);
        let count =
            || [Action::CopyField { src: reg.slice(0, 31), dst: (reg, 1) }, Action::set_masked(reg, 1, 1)];
        let thrice: Vec<Action> = count().into_iter().chain(count()).chain(count()).collect();
        let switch: Switch = [flow(0, 1, thrice).goto(1), reg_to_port(1, 0b111, 5)].into_iter().collect();
        assert_eq!(ports(&switch), [5]);
    }

    #[test]
    fn a_dying_packet_ends_its_list() {
        let switch: Switch =
            [flow(0, 1, [Action::DecTtl, Action::output(2)]).goto(1), flow(1, 1, [Action::output(3)])]
                .into_iter()
                .collect();
        let ttl = |ttl| switch.send(1, &packet().with(Field::IpTtl, ttl)).unwrap().sent;
        assert_eq!(ttl(1), []);
        assert_eq!(ttl(2).len(), 2);
        assert_eq!(ttl(2)[0].1.header(Field::IpTtl), 1);
    }

    #[test]
    fn tags_are_pushed_empty_set_and_popped() {
        let vid = |vid| Action::set_field(Field::VlanVid, vid);
        let actions = [vid(5), Action::PushVlan(ETH_VLAN), Action::output(2), vid(0x1007), Action::output(3)];
        let switch: Switch = [flow(0, 1, actions).goto(1), flow(1, 1, [Action::PopVlan, Action::output(4)])]
            .into_iter()
            .collect();
        let sent = switch.send(1, &packet()).unwrap().sent;
        let expected = [(2, packet().tagged(Tag::new(0))), (3, packet().tagged(Tag::new(7))), (4, packet())];
        assert_eq!(sent, expected);
    }

    #[test]
    fn headers_behind_two_tags_are_not_seen() {
        let switch: Switch =
            [Flow::new(0, 1, 0, Match::builder().eth_type(0x800).build()).apply([Action::output(2)])]
                .into_iter()
                .collect();
        let one = packet().tagged(Tag::new(1));
        assert_eq!(switch.send(1, &one).unwrap().sent.len(), 1);
        assert_eq!(switch.send(1, &one.tagged(Tag::new(2))).unwrap().sent, []);
    }

    #[test]
    fn endless_lookups_are_a_fault() {
        let switch: Switch = [flow(0, 1, [Action::resubmit(0)])].into_iter().collect();
        assert_eq!(switch.send(1, &packet()), Err(Fault::TooDeep));
        // Twice in each of 13 later tables: 2^13 lookups, none of them deep.
        let wide =
            (0..13).map(|table| flow(table, 1, [Action::resubmit(table + 1), Action::resubmit(table + 1)]));
        assert_eq!(wide.collect::<Switch>().send(1, &packet()), Err(Fault::TooManyLookups));
        let unknown: Switch = [flow(0, 1, [Action::Group(1)])].into_iter().collect();
        assert_eq!(unknown.send(1, &packet()), Err(Fault::Action(Box::new(Action::Group(1)))));
    }

    #[test]
    fn a_learned_flow_leads_back() {
        let learn = Learn {
            table: 1,
            priority: 4,
            cookie: 9,
            idle_timeout: 3,
            specs: vec![
                LearnSpec::Match(LearnSrc::Field(Field::VlanTci.slice(0, 12)), (Field::VlanTci, 0)),
                LearnSpec::Match(LearnSrc::Field(Field::EthSrc.whole()), (Field::EthDst, 0)),
                LearnSpec::Load(LearnSrc::Field(Field::InPort.whole()), (Field::Reg(0), 0)),
                LearnSpec::Output(Field::InPort.whole()),
            ],
            ..Learn::default()
        };
        let switch: Switch = [flow(0, 1, [Action::Learn(Box::new(learn))])].into_iter().collect();
        let outcome = switch.send(3, &packet().tagged(Tag::new(5))).unwrap();
        let matching = Match::builder().vlan_vid_masked(5, 0xfff).eth_dst([0, 0, 0, 0, 0, 0xa]).build();
        let flow =
            Flow::new(1, 4, 9, matching).apply([Action::set_field(Field::Reg(0), 3), Action::output(3)]);
        assert_eq!(outcome.learned, [Flow { idle_timeout: 3, ..flow }]);
    }
}
