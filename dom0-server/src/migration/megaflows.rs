//! Flows of the datapath before the packets that would make them.
//!
//! A packet that no flow of the datapath stands for waits for Open vSwitch's handler, and those behind it overtake it once there is
//! a flow: a move would cost each stream its order at the destination, and at every host whose frames from the router have another
//! source then. So the source tells what the router's packets have in its datapath ([`told`]), and the destination takes in a
//! frame like each of them while its gate is closed ([`to_router`]): it goes nowhere, but its flow looks at all that the router
//! looks at ([`pipeline::REHEARSED`](xenflow_flow_app::pipeline::REHEARSED)), and when the gate opens it only does something else.
//! While the guest is on its way behind an open gate these frames are routed, and whoever gets them drops them.
//! Every node does so for the frames that its own hosts will get ([`from_router`]); these do come to the host, which drops them.
//!
//! Flows that somebody else than Open vSwitch makes do not stay: it finds that they do not look at all that it looks at
//! (`packet_type`, `revalidate_ukey__` in ofproto/ofproto-dpif-upcall.c). So frames are put into the datapath, as if they had come.
//!
//! Pure: it reads what `dpctl/dump-flows -m` says and makes frames. [`task`] talks to the switch and to the datapath.

mod frame;
pub mod task;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use xenflow_proto::node::{MAX_MEGAFLOWS, Megaflow};
use xenflow_proto::{MacAddr, VlanId};

use super::sequencer::Role;

/// What has had packets within this is told. All flows are kept for longer (`max-idle`, ten seconds), so a sender that is told is one
/// of the destination's own hosts only if that has a flow of it as well: its switch is taught nothing wrong.
const RECENT: Duration = Duration::from_secs(4);
/// Of the same kind at most so many are made for one move.
const MOST: usize = MAX_MEGAFLOWS;
/// `eth_type` of an IEEE 802.1Q tag.
const TAGGED: &str = "0x8100";
/// What the rest of a frame may be told by. Others have more to them than their fields.
const FIELDS: [&str; 9] = ["eth_type", "ipv4", "ipv6", "tcp", "udp", "sctp", "icmp", "icmpv6", "tcp_flags"];
/// What nothing of the pipeline looks at: of no use unless it is masked out.
const MASKED: [&str; 7] =
    ["dp_hash", "skb_priority", "skb_mark", "ct_state", "ct_zone", "ct_mark", "ct_label"];
/// Some frame of IPv4 and of IPv6.
const ANY: [(&str, &str); 2] =
    [("0x0800", "ipv4(src=0.0.0.0,dst=0.0.0.0)"), ("0x86dd", "ipv6(src=::,dst=::)")];

/// Where frames come in, by the names of interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Trunks.
    pub uplinks: BTreeSet<String>,
    /// Ports of one segment.
    pub access: BTreeMap<String, VlanId>,
}

/// A move that is open, whoever takes part in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// What this node is in it; none: only a host of some of the router's neighbors.
    pub role: Option<Role>,
    /// At its destination packets rehearse for the router, and what is for it goes nowhere yet; or its gate is open, and nobody knows of
    /// that.
    pub is_ahead: bool,
    /// At its destination: all nodes that are no part of it have said that they are prepared.
    pub are_others: bool,
    /// The router's addresses.
    pub vifs: BTreeMap<VlanId, MacAddr>,
    /// Those of both nodes, which routed frames have for a while.
    pub nodes: [MacAddr; 2],
}

impl Move {
    /// Whoever routed frames on this segment may come from while the router moves.
    fn sources(&self, vlan: VlanId) -> impl Iterator<Item = MacAddr> {
        self.nodes.into_iter().chain(self.vifs.get(&vlan).copied())
    }
}

/// What is asked of the switch, and whom it may concern.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moves {
    /// This host.
    pub host: Host,
    /// Its own address.
    pub node_mac: Option<MacAddr>,
    /// By the number of the migration.
    pub open: BTreeMap<u64, Move>,
}

/// A flow of the datapath with one sender and one receiver.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    in_port: String,
    vlan: Option<VlanId>,
    src: MacAddr,
    dst: MacAddr,
    /// From the Ethernet type on.
    fields: String,
    actions: String,
    /// A packet has come by it not long ago ([`RECENT`]).
    is_used: bool,
}

/// What `name(value),…` says, in order; none unless it is that and nothing else.
fn attributes(text: &str) -> Option<Vec<(&str, &str)>> {
    let mut all = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, tail) = rest.split_once('(')?;
        let mut depth = 1_usize;
        let end = tail.bytes().position(|byte| {
            depth = match byte {
                b'(' => depth + 1,
                b')' => depth - 1,
                _ => depth,
            };
            depth == 0
        })?;
        all.push((name, &tail[..end]));
        rest = &tail[end + 1..];
        if !rest.is_empty() {
            rest = rest.strip_prefix(',').filter(|rest| !rest.is_empty())?;
        }
    }
    Some(all)
}

/// The value of `key=value` among others.
fn value<'a>(list: &'a str, key: &str) -> Option<&'a str> {
    list.split(',').find_map(|item| item.strip_prefix(key)?.strip_prefix('='))
}

/// Whether these are fields from the Ethernet type on that a flow may be made of.
fn are_fields(text: &str) -> bool {
    attributes(text).is_some_and(|all| {
        let (first, rest) = all.split_first().map_or(("", &all[..]), |((name, _), rest)| (*name, rest));
        let known = |(name, value): &(&str, &str)| {
            FIELDS.contains(name) && *name != "eth_type" && !value.contains(['(', ')'])
        };
        first == "eth_type" && rest.iter().all(known)
    })
}

impl Flow {
    /// A line of `dpctl/dump-flows --names -m`; none for what is not about one sender and one receiver, or looks at more.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let (key, rest) = line.split_once(", packets:")?;
        let (rest, actions) = rest.split_once("actions:")?;
        // "used:0.010s", or "used:never".
        let used = rest.split_once("used:").and_then(|(_, used)| used.split_once('s')?.0.parse::<f64>().ok());
        let (_, key) = key.strip_prefix("ufid:")?.split_once(", ")?;
        let (mut in_port, mut eth, mut vlan, mut tagged) = (None, None, None, None);
        let mut fields: Vec<String> = Vec::new();
        for (name, value) in attributes(key)? {
            match name {
                "recirc_id" if value == "0" => {}
                "in_port" => in_port = Some(value),
                "eth" => eth = Some(value),
                "vlan" => vlan = Some(value),
                "encap" => tagged = Some(value),
                "ct_tuple4" | "ct_tuple6" | "packet_type" => {}
                _ if MASKED.contains(&name) && value.ends_with("/0") => {}
                // Newer than Open vSwitch, which does not look at it.
                _ if name.starts_with("key") && value.ends_with("/00 00") => {}
                _ if FIELDS.contains(&name) => fields.push(format!("{name}({value})")),
                _ => return None,
            }
        }
        let fields = match (vlan, tagged) {
            (Some(_), Some(tagged)) if fields == [format!("eth_type({TAGGED})")] => {
                let inner = attributes(tagged)?.into_iter().filter(|(name, _)| !name.starts_with("key"));
                inner.map(|(name, value)| format!("{name}({value})")).collect::<Vec<_>>().join(",")
            }
            (None, None) => fields.join(","),
            _ => return None,
        };
        let vlan = match vlan {
            Some(vlan) if value(vlan, "pcp") == Some("0") => {
                Some(value(vlan, "vid")?.parse::<i64>().ok()?.try_into().ok()?)
            }
            Some(_) => return None,
            None => None,
        };
        let mac = |key| value(eth?, key)?.parse::<MacAddr>().ok();
        are_fields(&fields).then_some(())?;
        Some(Self {
            in_port: in_port?.to_owned(),
            vlan,
            src: mac("src")?,
            dst: mac("dst")?,
            fields,
            actions: actions.trim().to_owned(),
            is_used: used.is_some_and(|seconds| seconds <= RECENT.as_secs_f64()),
        })
    }

    fn eth_type(&self) -> Option<&str> {
        self.fields.strip_prefix("eth_type(")?.split(')').next()
    }

    /// The segment that its packets come from.
    fn segment(&self, host: &Host) -> Option<VlanId> {
        if host.uplinks.contains(&self.in_port) {
            self.vlan
        } else {
            host.access.get(&self.in_port).copied().filter(|_| self.vlan.is_none())
        }
    }

    fn is_to(&self, host: &Host, of: &Move) -> bool {
        self.segment(host).is_some_and(|vlan| of.vifs.get(&vlan) == Some(&self.dst))
    }

    /// The host of this node that it leads to by a router, and its segment.
    fn leads_to(&self, host: &Host) -> Option<(VlanId, MacAddr)> {
        let (_, eth) = self.actions.rsplit_once("set(eth(")?;
        let to = value(eth.split(')').next()?, "dst")?.parse().ok()?;
        let port = self.actions.rsplit(',').next()?;
        Some((*host.access.get(port)?, to))
    }
}

/// What the flows of the source say of the router's packets.
#[must_use]
pub fn told(flows: &[Flow], host: &Host, of: &Move) -> Vec<Megaflow> {
    let to_router = flows.iter().filter(|flow| flow.is_used && flow.is_to(host, of));
    let told = to_router.filter_map(|flow| {
        let fields = flow.fields.parse().ok()?;
        Some(Megaflow { vlan: flow.segment(host)?, src: flow.src, dst: flow.dst, fields })
    });
    told.take(MOST).collect()
}

/// A frame, and the name of the port that it comes in by.
pub type Received = (String, Vec<u8>);

/// Frames like the router's packets at its destination, as the source has told, which come by its uplinks. What is not for the router
/// is left out, and what its own hosts send: those rehearse by themselves.
#[must_use]
pub fn to_router(told: &[Megaflow], flows: &[Flow], host: &Host, of: &Move) -> Vec<Received> {
    let by_access = flows.iter().filter(|flow| host.access.contains_key(&flow.in_port));
    let own: BTreeSet<MacAddr> = by_access.map(|flow| flow.src).collect();
    let is_right = |flow: &&Megaflow| {
        let is_to_router = of.vifs.get(&flow.vlan) == Some(&flow.dst);
        is_to_router && !own.contains(&flow.src) && are_fields(flow.fields.as_str())
    };
    let frames = told.iter().filter(is_right).flat_map(|Megaflow { vlan, src, dst, fields }| {
        let frame = frame::frame(*src, *dst, Some(*vlan), fields.as_str());
        host.uplinks.iter().filter_map(move |uplink| Some((uplink.clone(), frame.clone()?)))
    });
    frames.take(MOST).collect()
}

/// Frames that come by an uplink for hosts of this node: from whoever may route them while the router moves. Without those
/// whose flows are in use: others are gone before long.
#[must_use]
pub fn from_router<'a>(flows: &'a [Flow], host: &Host, of: &Move, own: Option<MacAddr>) -> Vec<Received> {
    let by_uplink = |flow: &&Flow| host.uplinks.contains(&flow.in_port);
    let key = |flow: &'a Flow| Some((flow.vlan?, flow.src, flow.dst, flow.eth_type()?));
    let there: BTreeSet<_> = flows.iter().filter(by_uplink).filter_map(key).collect();
    let in_use: BTreeSet<_> =
        flows.iter().filter(|flow| flow.is_used && by_uplink(flow)).filter_map(key).collect();
    let direct = there.iter().filter(|(vlan, src, dst, _)| {
        of.sources(*vlan).any(|source| source == *src) && of.vifs.get(vlan) != Some(dst)
    });
    let routed = flows.iter().filter(|flow| flow.is_to(host, of)).filter_map(|flow| {
        let (vlan, to) = flow.leads_to(host)?;
        Some((vlan, to, flow.eth_type()?))
    });
    let receivers: BTreeSet<_> =
        direct.map(|(vlan, _, dst, kind)| (*vlan, *dst, *kind)).chain(routed).collect();
    let mut frames = Vec::new();
    for (vlan, to, kind) in receivers {
        let Some((_, fields)) = ANY.iter().find(|(eth_type, _)| *eth_type == kind) else { continue };
        let fields = format!("eth_type({kind}),{fields}");
        for source in of.sources(vlan).filter(|source| Some(*source) != own) {
            let frame = frame::frame(source, to, Some(vlan), &fields);
            if let Some(frame) = frame.filter(|_| !in_use.contains(&(vlan, source, to, kind))) {
                frames.extend(host.uplinks.iter().map(|uplink| (uplink.clone(), frame.clone())));
            }
        }
    }
    frames.truncate(MOST);
    frames
}

/// The datapath's device, and its numbers of ports by name, as `dpif/show` says. None: it is not the kernel's.
#[must_use]
pub fn ports(said: &str) -> Option<(&str, BTreeMap<&str, u32>)> {
    // "system@ovs-system: hit:512 missed:8", and for each port "    h2 2/3: (system)".
    let (device, _) = said.strip_prefix("system@")?.split_once(':')?;
    let ports = said.lines().filter_map(|line| {
        let (name, numbers) = line.strip_prefix("    ")?.split_once(' ')?;
        let (_, number) = numbers.split_once(':')?.0.split_once('/')?;
        Some((name, number.parse().ok()?))
    });
    Some((device, ports.collect()))
}
