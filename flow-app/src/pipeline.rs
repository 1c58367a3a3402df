//! The pipeline, declared once: tables and where each may go on, registers, priorities, cookies.
//!
//! No other module knows a number of these. [`violation`] holds a flow against the declaration.

use std::net::IpAddr;

use openflow::{Action, Field, Flow, Instruction, Match, action};
use xenflow_proto::VlanId;
use xenflow_proto::table::TABLE_MAIN;

use crate::fib::Adjacency;
use crate::punt::PuntClass;
use crate::topology::{PortNo, RouterId, VifId};

/// Admission: the VLAN tagger, inward. Sets the tag and [`IN_PORT`]; nothing enters without it, and what does not is
/// counted ([`crate::refusal`]).
pub const ADMISSION: u8 = 0;
/// Router: which router a packet is for, by segment and MAC; the others are switched.
pub const ROUTER: u8 = 1;
/// Local: what only the guest's IP stack can answer.
pub const LOCAL: u8 = 2;
/// Route: longest prefix → next hop.
pub const ROUTE: u8 = 3;
/// Next hop: the rewrite. A miss is a glean: the guest resolves the neighbor.
pub const NEXT_HOP: u8 = 4;
/// L2: vifs of this host by MAC; a miss asks [`LEARNED`].
pub const L2: u8 = 5;
/// What `learn` wrote: (segment, MAC) → port. Outside reconcile.
pub const LEARNED: u8 = 6;
/// Flood: to all ports of the segment, unless a port is known by now.
pub const FLOOD: u8 = 7;
/// Egress: the VLAN tagger, outward. Only ports of the packet's segment; pops the tag where it is not a trunk. To a
/// guest through the meter of its router and class.
pub const EGRESS: u8 = 8;
/// Classify: why a guest gets the packet, where the tables before have not said it. Asked on the way to a vif's port.
pub const CLASSIFY: u8 = 9;
/// Source: addresses that no packet may come from to be forwarded. Asked on the way from [`LOCAL`] to [`ROUTE`]; a table
/// of its own, because Open vSwitch keeps at most three tries for the prefixes of a table.
pub const SOURCE: u8 = 10;

/// Queue: which class of its network's traffic a packet is in. Asked by [`EGRESS`] on the way to an uplink, for networks that
/// have classes.
pub const QUEUE: u8 = 11;
/// Limit: the meters of the packet's class and of its network. Asked by [`EGRESS`] on the way to an uplink that cannot shape,
/// for networks of which something has a maximum.
pub const LIMIT: u8 = 12;

/// A table, and which ones a packet may go on to.
#[derive(Debug, Clone, Copy)]
pub struct Stage {
    /// Its number.
    pub table: u8,
    /// Its name.
    pub name: &'static str,
    /// By `goto_table` or `resubmit`.
    pub next: &'static [u8],
    /// May send a packet out of a port, or to the controller.
    pub outputs: bool,
    /// What becomes of a packet that matches nothing.
    pub miss: &'static str,
}

/// All tables, in the order of their numbers.
pub const STAGES: [Stage; 13] = [
    Stage { table: ADMISSION, name: "admission", next: &[ROUTER], outputs: true, miss: "counted, dropped" },
    Stage { table: ROUTER, name: "router", next: &[LOCAL, L2], outputs: false, miss: "to l2" },
    Stage {
        table: LOCAL,
        name: "local",
        next: &[LOCAL, ROUTE, L2, SOURCE],
        outputs: false,
        miss: "to route",
    },
    Stage { table: ROUTE, name: "route", next: &[NEXT_HOP, L2], outputs: false, miss: "punt" },
    Stage { table: NEXT_HOP, name: "next hop", next: &[L2], outputs: false, miss: "punt (glean)" },
    Stage {
        table: L2,
        name: "l2",
        next: &[ROUTER, LEARNED, FLOOD, EGRESS, CLASSIFY],
        outputs: false,
        miss: "to learned",
    },
    Stage { table: LEARNED, name: "learned", next: &[], outputs: false, miss: "nothing" },
    Stage { table: FLOOD, name: "flood", next: &[EGRESS, CLASSIFY], outputs: false, miss: "drop" },
    Stage { table: EGRESS, name: "egress", next: &[QUEUE, LIMIT], outputs: true, miss: "drop" },
    Stage { table: CLASSIFY, name: "classify", next: &[], outputs: false, miss: "host" },
    Stage { table: SOURCE, name: "source", next: &[], outputs: false, miss: "nothing" },
    Stage { table: QUEUE, name: "queue", next: &[], outputs: false, miss: "the network's own" },
    Stage { table: LIMIT, name: "limit", next: &[LIMIT], outputs: false, miss: "no maximum" },
];

/// Register 0: [`ROUTED`], [`FROM_UPLINK`], [`TOO_BIG`], [`PUNT_CLASS`], [`LATE`], [`REHEARSED`].
pub const FLAGS: u8 = 0;
/// Register 1: the port the packet came in by; 0 after it entered another router.
pub const IN_PORT: u8 = 1;
/// Register 2: the port it is to leave by, or the [`virtual_port`] of a vif.
pub const OUT_PORT: u8 = 2;
/// Register 3: one bit for each router passed, and for each choice between next hops, from the lowest; the highest is
/// the limit.
pub const HOPS: u8 = 3;
/// Register 4: the router that has the packet.
pub const ROUTER_ID: u8 = 4;
/// Register 5: the routing table that the router looks in, of a VRF; 0 is the main one. Set with [`ROUTER_ID`].
pub const TABLE_ID: u8 = 5;
/// 64-bit register 3: the next hop's router and vif in register 6, its IPv4 address in register 7; see [`next_hop`].
pub const NEXT_HOP_ID: u8 = 3;
/// 128-bit register 2 (registers 8 to 11): the next hop's IPv6 address.
pub const NEXT_HOP_IPV6: u8 = 2;

/// Register 12: the number of the packet's queue on the way out by an uplink: its network's on the way to [`QUEUE`], its own on
/// the way to [`LIMIT`], and then its network's again.
pub const QUEUE_ID: u8 = 12;

/// In [`FLAGS`]: a router rewrote the packet, so it may leave by the port it came in.
pub const ROUTED: u32 = 1;
/// In [`FLAGS`]: the packet came in by a trunk, so as a switched packet it leaves by no trunk.
pub const FROM_UPLINK: u32 = 2;
/// In [`FLAGS`]: the packet is bigger than the next hop takes, and the guest's. The bit of `check_pkt_larger`, whose
/// answer lasts to the end of its flow's actions, tables they go on to included. In a group's bucket Open vSwitch
/// passes that action over without a word: the bucket resubmits to a flow that has it.
pub const TOO_BIG: u32 = 1 << TOO_BIG_BIT;
/// Where [`TOO_BIG`] is.
pub const TOO_BIG_BIT: u16 = 2;
/// In [`FLAGS`]: the number of the [`PuntClass`] of a packet that a guest gets, 0 for none.
pub const PUNT_CLASS: u32 = 7 << PUNT_CLASS_BIT;
/// Where [`PUNT_CLASS`] begins.
pub const PUNT_CLASS_BIT: u16 = 3;
/// In [`FLAGS`]: the packet came by an uplink for a router that is elsewhere, and was counted.
pub const LATE: u32 = 1 << LATE_BIT;
/// Where [`LATE`] is.
pub const LATE_BIT: u16 = 6;
/// In [`FLAGS`]: a copy that goes through a closed gate and then nowhere, so that the datapath's flow for the packet looks at all that
/// the router looks at. Once the gate opens that flow only does something else: no packet waits for another one.
pub const REHEARSED: u32 = 1 << REHEARSED_BIT;
/// Where [`REHEARSED`] is.
pub const REHEARSED_BIT: u16 = 7;
/// In [`PUNT_CLASS`]: none; the guest gets the packet as it would from any switch.
pub const UNPOLICED: u32 = 7 << PUNT_CLASS_BIT;
/// Bytes before the IP packet in a frame without tag; the switch's lengths count them, and no tag.
pub const ETH_HEADER: u16 = 14;
/// In [`HOPS`]: this many routers of one host have passed the packet on; the next one gets it as a punt.
pub const MAX_ROUTERS: u32 = 32;

/// Ethernet type of IPv4.
pub const ETH_IPV4: u16 = 0x0800;
/// Ethernet type of IPv6.
pub const ETH_IPV6: u16 = 0x86dd;
/// The Ethernet types that routers forward.
pub const ETH_IP: [u16; 2] = [ETH_IPV4, ETH_IPV6];
/// Ethernet type of ARP.
pub const ETH_ARP: u16 = 0x0806;
/// Ethernet type of an IEEE 802.1Q tag.
pub const ETH_VLAN: u16 = 0x8100;
/// Ethernet type of an IEEE 802.1ad service tag.
pub const ETH_SVLAN: u16 = 0x88a8;

/// "Ethernet type" of frames that have a length and an LLC header in its place (`OFP_DL_TYPE_NOT_ETH_TYPE`).
pub const ETH_LLC: u16 = 0x05ff;

/// The number in [`OUT_PORT`] of a vif whose guest gets nothing by a port at present: the controller takes it in. Above the
/// numbers of all ports that a packet is switched to, which are below 0xff00 (`OFPP_MAX` of OpenFlow 1.0, to which Open vSwitch
/// keeps): routers begin at 1. It is nobody's output port, so it may be one of OpenFlow's reserved numbers.
#[must_use]
pub fn virtual_port(vif: VifId) -> PortNo {
    u32::from(vif.router.0) << 16 | u32::from(vif.number)
}

/// The router of which this flow counts what its gate lets in late.
#[must_use]
pub fn counted_late(flow: &Flow) -> Option<RouterId> {
    let is_counter = flow.table == LOCAL && flow.priority == priority::LATE;
    let owner = flow.matching.field(Field::Reg(ROUTER_ID)).filter(|_| is_counter)?;
    u16::try_from(owner.value).ok().map(RouterId)
}

/// The router and the segment of which this flow counts what enters the router from there.
#[must_use]
pub fn counted_entry(flow: &Flow) -> Option<(RouterId, VlanId)> {
    let router = cookie::router_of(flow.cookie).filter(|_| flow.table == ROUTER)?;
    let tag = u16::try_from(flow.matching.field(Field::VlanVid)?.value).ok()?;
    Some((router, i64::from(tag & !openflow::VLAN_PRESENT).try_into().ok()?))
}

/// Priorities: the higher wins.
pub mod priority {
    /// What a gate lets in late is counted before all else.
    pub const LATE: u16 = 460;
    /// How a router stands, before all that its tables say.
    pub const GATE: u16 = 450;
    /// What is never let through.
    pub const REFUSE: u16 = 400;
    /// What is never let through by any port, where [`REFUSE`] does not count it by port.
    pub const REFUSE_ANYWHERE: u16 = 390;
    /// Copies for a rehearsal go nowhere, whatever they are.
    pub const REHEARSED: u16 = 380;
    /// What comes before the exceptions of a table.
    pub const FIRST: u16 = 350;
    /// Exceptions to the ordinary flows of a table.
    pub const EXCEPTION: u16 = 300;
    /// The ordinary flows of a table.
    pub const NORMAL: u16 = 200;
    /// What goes before the other fallbacks.
    pub const FIRST_FALLBACK: u16 = 2;
    /// What stands in for a miss.
    pub const FALLBACK: u16 = 1;
    /// What stands in for a miss where even [`FALLBACK`] misses.
    pub const LAST: u16 = 0;
    /// A prefix: this plus its length, at most 128.
    pub const PREFIX: u16 = 50;
    /// A class of a network's traffic: this plus its own priority, 1 to 1000.
    pub const CLASS: u16 = 1000;
    /// Learned MAC addresses, in a table of their own.
    pub const LEARNED: u16 = 10;
}

/// Cookies: 16 bits that say XenFlow, 8 bits of category, 8 bits of the reason of a refusal, 16 bits of owner (router,
/// segment, or port of a refusal), 16 unused. A mask finds the flows of a former life; flows without
/// [`cookie::MAGIC`] are somebody else's and never touched.
pub mod cookie {
    use super::{RouterId, VlanId};
    use crate::refusal::Refusal;
    use crate::topology::PortNo;

    /// "XF".
    pub const MAGIC: u64 = 0x5846 << 48;
    /// Bits of magic and category.
    pub const CATEGORY_MASK: u64 = 0xffff_ff00_0000_0000;
    /// Bits of magic, category and owner.
    pub const OWNER_MASK: u64 = CATEGORY_MASK | 0xffff_0000;
    /// Flows of the host's own topology.
    pub const TOPOLOGY: u64 = MAGIC | 1 << 40;
    /// Flows of any router; see [`router`].
    pub const ROUTERS: u64 = MAGIC | 2 << 40;
    /// Learned flows of any segment; see [`learned`].
    pub const LEARNED: u64 = MAGIC | 3 << 40;

    /// Flows that follow from what one guest says.
    #[must_use]
    pub fn router(id: RouterId) -> u64 {
        ROUTERS | u64::from(id.0) << 16
    }

    /// The router a cookie of [`router`] names.
    #[must_use]
    pub fn router_of(cookie: u64) -> Option<RouterId> {
        let owner = u16::try_from(cookie >> 16 & 0xffff).ok()?;
        (cookie & CATEGORY_MASK == ROUTERS).then_some(RouterId(owner))
    }

    /// A flow of [`TOPOLOGY`] that drops and counts what a port does not let in; port 0 is any.
    #[must_use]
    pub fn refusal(reason: Refusal, port: PortNo) -> u64 {
        TOPOLOGY | u64::from(reason.number()) << 32 | u64::from(port & 0xffff) << 16
    }

    /// The reason and the port of a cookie of [`refusal`].
    #[must_use]
    pub fn refusal_of(cookie: u64) -> Option<(Refusal, PortNo)> {
        let number = (cookie >> 32 & 0xff) as u8;
        let reason = Refusal::ALL.into_iter().find(|reason| reason.number() == number)?;
        let port = u32::from((cookie >> 16 & 0xffff) as u16);
        // Reserved numbers, as that of the bridge's own port, have the upper half set (`OFPP_MAX`).
        let port = if port >= 0xff00 { port | 0xffff_0000 } else { port };
        (cookie & CATEGORY_MASK == TOPOLOGY).then_some((reason, port))
    }

    /// MAC addresses learned on one segment.
    #[must_use]
    pub fn learned(segment: VlanId) -> u64 {
        LEARNED | u64::from(segment.get()) << 16
    }
}

/// MAC addresses learned on one segment, at most. With no room left a segment does not follow one that moves, either:
/// Open vSwitch counts its new flow as one more (`ofproto_flow_mod_learn`).
pub const LEARNED_LIMIT: u32 = 4096;
/// Seconds without a packet from it until a learned MAC address goes. As a hard timeout: each packet that learns it begins it anew,
/// while an idle one goes by packets *to* the address. One that goes while packets come takes the datapath's flows of
/// those with it (`avoid_caching` of `xlate_learn_action`, for a limit is set).
pub const LEARNED_S: u16 = 300;

/// What names a next hop: router, vif and address as values of registers, so that it needs no table of numbers, and
/// a restarted daemon finds the same ones. No two next hops have the same: register 7 is 0 for IPv6 and for 0.0.0.0
/// alone, which is nobody's address ([`crate::fib::Fib::resolve`] finds none).
pub fn next_hop(adjacency: Adjacency) -> impl Iterator<Item = (Field, u128)> {
    let vif = adjacency.vif;
    let vif = u128::from(vif.router.0) << 48 | u128::from(vif.number) << 32;
    let (low, ipv6) = match adjacency.addr {
        IpAddr::V4(addr) => (addr.to_bits().into(), None),
        IpAddr::V6(addr) => (0, Some((Field::Xxreg(NEXT_HOP_IPV6), addr.to_bits()))),
    };
    [(Field::Xreg(NEXT_HOP_ID), vif | low)].into_iter().chain(ipv6)
}

/// The next hop whose registers of [`next_hop`] a match asks for; none if it does not ask for all of them.
#[must_use]
pub fn next_hop_of(matching: &Match) -> Option<Adjacency> {
    let register = |number| {
        let field = matching.field(Field::Xreg(number))?;
        (field.mask == u64::MAX.into()).then_some(field.value as u64)
    };
    let id = register(NEXT_HOP_ID)?;
    let vif = VifId { router: RouterId((id >> 48) as u16), number: (id >> 32) as u16 };
    // A match keeps the 128 bits as two halves.
    let half = 2 * NEXT_HOP_IPV6;
    let addr = match (matching.field(Field::Xreg(half)), matching.field(Field::Xreg(half + 1))) {
        (None, None) => IpAddr::V4((id as u32).into()),
        _ => IpAddr::V6((u128::from(register(half)?) << 64 | u128::from(register(half + 1)?)).into()),
    };
    Some(Adjacency { vif, addr })
}

/// One more bit in [`HOPS`]: for each router entered, and for each group passed, because both count for the depth
/// at which Open vSwitch gives a packet up (64, `MAX_DEPTH` in ofproto-dpif-xlate.c).
pub(crate) fn count_lookup() -> [Action; 2] {
    let bits = MAX_ROUTERS as u16 - 1;
    [
        Action::CopyField { src: Field::Reg(HOPS).slice(0, bits), dst: (Field::Reg(HOPS), 1) },
        Action::set_masked(Field::Reg(HOPS), 1, 1),
    ]
}

/// Sets a register.
#[must_use]
pub fn set_reg(register: u8, value: u32) -> Action {
    Action::set_field(Field::Reg(register), value.into())
}

/// The value of [`TABLE_ID`] for a routing table of the guest.
pub(crate) fn table_id(table: u32) -> u32 {
    if table == TABLE_MAIN { 0 } else { table }
}

/// The value of [`PUNT_CLASS`] for a class.
pub(crate) fn punt_class(class: PuntClass) -> u32 {
    u32::from(class.number()) << PUNT_CLASS_BIT
}

/// Says that a guest gets the packet, and why. Goes before the way to [`L2`].
pub(crate) fn punt(class: PuntClass) -> Action {
    Action::set_masked(Field::Reg(FLAGS), punt_class(class).into(), PUNT_CLASS.into())
}

/// Says that a guest gets the packet whatever it is.
pub(crate) fn unpoliced() -> Action {
    Action::set_masked(Field::Reg(FLAGS), UNPOLICED.into(), PUNT_CLASS.into())
}

/// A copy of the packet, in a clone that the datapath keeps: a meter on its way drops this copy and nothing else.
/// Open vSwitch makes a clone of the datapath's only for actions that it cannot undo, and appends all others to
/// those that it has (`reversible_actions` in ofproto/ofproto-dpif-xlate.c). Of the former a truncated output is the
/// one that can do nothing: to the port "table" it sends nothing (`xlate_output_trunc_action`).
pub(crate) fn kept_clone(actions: impl IntoIterator<Item = Action>) -> Action {
    let nothing = Action::OutputTrunc { port: action::port::TABLE_16, max_len: u16::MAX.into() };
    Action::Clone(std::iter::once(nothing).chain(actions).collect())
}

/// What a flow does that the declaration does not allow; none for a good flow.
#[must_use]
pub fn violation(flow: &Flow) -> Option<String> {
    let Some(stage) = STAGES.get(usize::from(flow.table)) else {
        return Some(format!("table {} is not of the pipeline", flow.table));
    };
    let mut pending: Vec<&Action> = Vec::new();
    let mut metered = false;
    for instruction in &flow.instructions {
        #[allow(clippy::wildcard_enum_match_arm, reason = "the rest leads nowhere")]
        match instruction {
            Instruction::GotoTable(table) if !stage.next.contains(table) => {
                return Some(format!("{} goes to table {table}", stage.name));
            }
            // Elsewhere Open vSwitch refuses a meter.
            Instruction::ApplyActions(actions) => match actions.split_first() {
                Some((Action::Meter(_), rest)) if !metered && pending.is_empty() => {
                    metered = true;
                    pending.extend(rest);
                }
                _ => pending.extend(actions),
            },
            _ => {}
        }
    }
    let chooses = |action: &&Action| {
        matches!(action, Action::SetQueue(_) | Action::Resubmit { table: Some(QUEUE), .. })
    };
    if stage.outputs && pending.iter().any(chooses) && pending.last() != Some(&&Action::PopQueue) {
        return Some(format!("{} keeps a queue", stage.name));
    }
    while let Some(action) = pending.pop() {
        #[allow(clippy::wildcard_enum_match_arm, reason = "the rest leads nowhere")]
        match action {
            Action::Clone(actions) => pending.extend(actions.iter()),
            Action::Meter(_) => return Some(format!("{} meters late", stage.name)),
            Action::Resubmit { table: Some(table), .. } if !stage.next.contains(table) => {
                return Some(format!("{} resubmits to table {table}", stage.name));
            }
            Action::SetQueue(_) if !matches!(flow.table, EGRESS | QUEUE) => {
                return Some(format!("{} chooses a queue", stage.name));
            }
            Action::Output { .. } | Action::OutputReg { .. } if !stage.outputs => {
                return Some(format!("{} outputs", stage.name));
            }
            Action::Controller(_) if !stage.outputs => {
                return Some(format!("{} tells the controller", stage.name));
            }
            _ => {}
        }
    }
    None
}
