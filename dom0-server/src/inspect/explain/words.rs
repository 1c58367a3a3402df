//! What a step through the tables means, in words, and the names of what it is about.

#![allow(clippy::wildcard_enum_match_arm, reason = "what is not asked for does not matter")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use openflow::{Action, Field};
use xenflow_flow_app::pipeline::{self, cookie, priority};
use xenflow_flow_app::sim::{Packet, Step};
use xenflow_flow_app::{App, Fate, PortNo, PuntClass, RouterId, VifId, Which, next_hop_in};
use xenflow_proto::{MacAddr, Name, VlanId};

use crate::core::Core;
use crate::db::Desired;
use crate::inspect::{kind, protocol};
use crate::ports::{Owners, SwitchPort, SwitchPorts};
use crate::shaper::plan::QueueOf;

/// Ports of a flood that are named.
const NAMED: usize = 8;
/// Next hops of a group that are named.
const HOPS: usize = 8;

/// What things are called.
pub(super) struct Names<'a> {
    pub(super) core: &'a Core,
    pub(super) desired: &'a Desired,
    pub(super) ports: &'a SwitchPorts,
    vifs: BTreeMap<VifId, &'a Name>,
    /// Access ports.
    pub(super) hosts: BTreeMap<PortNo, &'a Name>,
    by_port: BTreeMap<PortNo, String>,
}

impl<'a> Names<'a> {
    /// None before the databases have spoken.
    pub(super) fn new(core: &'a Core) -> Option<Self> {
        let (desired, ports) = (core.desired()?, core.ports()?);
        let vif = |vif: &'a crate::db::row::Vif| {
            let router = RouterId(desired.routers.get(&vif.router)?.id.get());
            Some((VifId { router, number: vif.number.get() }, &vif.name))
        };
        let vifs: BTreeMap<VifId, &Name> = desired.vifs.values().filter_map(vif).collect();
        let topology = core.app().topology();
        let vif_ports: BTreeMap<PortNo, VifId> =
            topology.vifs.iter().filter_map(|(id, vif)| Some((vif.port?, *id))).collect();
        let owners = Owners::of(desired);
        let host = |port: &SwitchPort| {
            topology.access.contains_key(&port.number).then_some(())?;
            Some((port.number, owners.owner(port.attached_mac, port.iface_id.as_deref())?))
        };
        let hosts: BTreeMap<PortNo, &Name> = ports.ports.iter().filter_map(host).collect();
        let name = |port: &SwitchPort| {
            let vif = vif_ports.get(&port.number).and_then(|id| vifs.get(id));
            let what = match (vif, hosts.get(&port.number)) {
                (Some(vif), _) => format!("vif {vif}"),
                (None, Some(host)) => format!("access port {host}"),
                (None, None) if topology.uplinks.contains(&port.number) => "uplink".to_owned(),
                (None, None) => "nobody's".to_owned(),
            };
            (port.number, format!("port {} ({what})", port.name))
        };
        let by_port = ports.ports.iter().map(name).collect();
        Some(Self { core, desired, ports, vifs, hosts, by_port })
    }

    fn app(&self) -> &App {
        self.core.app()
    }

    /// The number of a vif.
    pub(super) fn vif_id(&self, name: &Name) -> Option<VifId> {
        let vif = self.desired.vifs.get(name)?;
        let router = RouterId(self.desired.routers.get(&vif.router)?.id.get());
        Some(VifId { router, number: vif.number.get() })
    }

    /// `port p1 (access port h1)`.
    pub(super) fn port(&self, number: PortNo) -> String {
        let is_control = || self.ports.control.is_some_and(|control| control.number == number);
        match self.by_port.get(&number) {
            Some(name) => name.clone(),
            None if is_control() => "the host's control port".to_owned(),
            None => format!("port number {number}"),
        }
    }

    /// `segment lan (VLAN 100)`.
    pub(super) fn segment(&self, vlan: VlanId) -> String {
        match self.segment_name(vlan) {
            Some(name) => format!("segment {name} (VLAN {})", vlan.get()),
            None => format!("VLAN {}", vlan.get()),
        }
    }

    pub(super) fn segment_name(&self, vlan: VlanId) -> Option<&Name> {
        self.desired.segments.values().find(|segment| segment.vlan == vlan).map(|segment| &segment.name)
    }

    pub(super) fn router(&self, id: RouterId) -> String {
        let row = self.desired.routers.values().find(|router| router.id.get() == id.0);
        row.map_or_else(|| format!("number {id}"), |router| router.name.to_string())
    }

    /// `queue 2 (class voice of network red)`.
    fn queue(&self, number: u32) -> String {
        match self.core.plan().and_then(|plan| plan.queues.get(&number)) {
            Some(QueueOf { network, class: None }) => format!("queue {number} (network {network})"),
            Some(QueueOf { network, class: Some(class) }) => {
                format!("queue {number} (class {class} of network {network})")
            }
            None => format!("queue {number}"),
        }
    }

    fn vif(&self, id: VifId) -> String {
        self.vifs.get(&id).map_or_else(|| format!("number {}", id.number), |name| (*name).to_string())
    }

    /// The vif with that address on a segment.
    fn vif_at(&self, vlan: VlanId, mac: MacAddr) -> Option<VifId> {
        let mut vifs = self.app().topology().vifs.iter();
        vifs.find(|(_, vif)| vif.vlan() == Some(vlan) && vif.mac == mac).map(|(id, _)| *id)
    }

    /// What is done in a step.
    pub(super) fn step(&self, step: &Step) -> String {
        match step.table {
            _ if reg(step, pipeline::FLAGS) & pipeline::REHEARSED == 0 => self.done(step),
            pipeline::L2 => "rehearsed, so it goes nowhere".to_owned(),
            _ => format!("rehearsed: {}", self.done(step)),
        }
    }

    fn done(&self, step: &Step) -> String {
        match step.table {
            pipeline::ADMISSION => self.admission(step),
            pipeline::ROUTER => self.gate(step),
            pipeline::LOCAL | pipeline::SOURCE => self.local(step),
            pipeline::ROUTE => self.route(step),
            pipeline::NEXT_HOP => self.next_hop(step),
            pipeline::L2 => self.l2(step),
            pipeline::LEARNED => match out_port(step) {
                Some(port) => {
                    format!("learned by the switch: {mac} is behind {}", self.port(port), mac = dst(step))
                }
                None => format!("{} is not learned", dst(step)),
            },
            pipeline::FLOOD => self.flood(step),
            pipeline::CLASSIFY => match priority_of(step) {
                Some(priority::FIRST) => "its class is known".to_owned(),
                Some(priority::EXCEPTION) => "the guest forwards itself here: not policed".to_owned(),
                _ => format!("class {}", class(step)),
            },
            pipeline::EGRESS => self.egress(step),
            pipeline::QUEUE => match queue(step) {
                Some(number) => format!("of a class: {}", self.queue(number)),
                None => "in no class: its network's queue".to_owned(),
            },
            pipeline::LIMIT => match step.actions.first() {
                Some(Action::Meter(_)) => {
                    format!("as far as the maximum of {} lets it", self.queue(reg(step, pipeline::QUEUE_ID)))
                }
                _ => format!("{} has no maximum of its own", self.queue(reg(step, pipeline::QUEUE_ID))),
            },
            other => format!("table {other}"),
        }
    }

    fn admission(&self, step: &Step) -> String {
        let Some(flow) = &step.flow else { return "dropped: no port lets it in".to_owned() };
        if let Some((reason, port)) = cookie::refusal_of(flow.cookie) {
            let at = if port == 0 { "any port".to_owned() } else { self.port(port) };
            return format!("dropped at {at}: {}", reason.as_str());
        }
        if flow.priority == priority::EXCEPTION {
            let to: Vec<String> = step.sent.iter().map(|(port, _)| self.port(*port)).collect();
            return format!("on the control network: to {}", to.join(", "));
        }
        let port = flow.matching.field(Field::InPort).or_else(|| flow.matching.field(Field::InPortNxm));
        let port = port.and_then(|port| u32::try_from(port.value).ok());
        let port = port.map_or_else(|| "a port".to_owned(), |port| self.port(port));
        let vlan = tag_after(step).and_then(|vid| VlanId::try_from(i64::from(vid)).ok());
        let segment = vlan.map_or_else(|| "no segment".to_owned(), |vlan| self.segment(vlan));
        format!("in by {port}: {segment}")
    }

    fn gate(&self, step: &Step) -> String {
        if priority_of(step) == Some(priority::EXCEPTION) {
            return format!(
                "punted, class exception: {} routers of this host have passed it on",
                pipeline::MAX_ROUTERS
            );
        }
        let vif = vlan(step).and_then(|vlan| self.vif_at(vlan, mac_of(step, Field::EthDst)));
        match (is_gate(step), vif) {
            (true, Some(vif)) => format!("to {}'s vif {}: routed", self.router(vif.router), self.vif(vif)),
            (_, Some(vif)) if is_ip(&step.packet) => {
                format!(
                    "to {}'s vif {}, for which the guest forwards itself{}",
                    self.router(vif.router),
                    self.vif(vif),
                    self.slow(vif.router)
                )
            }
            (_, Some(vif)) => {
                format!("to {}'s vif {}, and no IP: the guest's", self.router(vif.router), self.vif(vif))
            }
            (_, None) => format!("{} is no router's here: switched", dst(step)),
        }
    }

    /// Why a router's guest forwards itself.
    fn slow(&self, router: RouterId) -> String {
        let Some(status) = self.app().router(router) else { return String::new() };
        if !status.synced {
            return ": it has not told its tables".to_owned();
        }
        let reasons: Vec<String> = status.slow.iter().map(|slow| slow.reason.to_string()).collect();
        if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join(", ")) }
    }

    fn local(&self, step: &Step) -> String {
        let (is_source, addr) = match step.table {
            pipeline::SOURCE => (true, ip(&step.packet, true)),
            _ => (false, ip(&step.packet, false)),
        };
        let addr = addr.map_or_else(|| "it".to_owned(), |addr| addr.to_string());
        let router = self.router(RouterId(u16::try_from(reg(step, pipeline::ROUTER_ID)).unwrap_or(0)));
        let ttl = step.packet.header(Field::IpTtl);
        match (is_source, priority_of(step)) {
            (false, Some(priority::FIRST)) => format!("punted: {addr} is {router}'s own"),
            (false, Some(priority::EXCEPTION)) if ttl <= 1 => {
                format!("punted, class exception: its TTL of {ttl} ends here")
            }
            (false, Some(priority::EXCEPTION)) => {
                format!("punted, class exception: nobody forwards to {addr}")
            }
            (false, _) => format!("nothing that only {router}'s guest can answer"),
            (true, Some(priority::EXCEPTION)) => {
                format!("punted, class exception: nobody forwards from {addr}")
            }
            (true, Some(_)) => {
                format!("punted, class exception: it says that it is from {router}'s own {addr}")
            }
            (true, None) => format!("from {addr}: may be forwarded"),
        }
    }

    fn route(&self, step: &Step) -> String {
        let Some(flow) = &step.flow else { return "dropped: no flow".to_owned() };
        let id = RouterId(u16::try_from(reg(step, pipeline::ROUTER_ID)).unwrap_or(0));
        let router = self.router(id);
        let Some(addr) = ip(&step.packet, false) else { return "no IP".to_owned() };
        if cookie::router_of(flow.cookie).is_none() {
            return match flow.priority {
                priority::FIRST => "punted: its source has said so".to_owned(),
                priority::FIRST_FALLBACK => {
                    format!("punted, class exception: {router} has no route to {addr}")
                }
                _ => format!("punted, class transit: the VRF has no route to {addr}"),
            };
        }
        let length = u8::try_from(flow.priority.saturating_sub(priority::PREFIX)).unwrap_or(0);
        let prefix = ipnet::IpNet::new(addr, length).map(|net| net.trunc()).unwrap_or_else(|_| addr.into());
        let table = match reg(step, pipeline::TABLE_ID) {
            0 => xenflow_proto::table::TABLE_MAIN,
            table => table,
        };
        let (views, _) = self.app().view_routes(id, Which::Covering(addr), None, 4096).unwrap_or_default();
        let mut views =
            views.iter().filter(|view| view.route.key.table == table && view.route.key.dst == prefix);
        let rib = match views.find(|view| !matches!(view.fate, Fate::Unused(_))) {
            Some(view) => {
                let hops = view.hops.iter().take(HOPS).map(|(hop, link)| match (hop.gateway, link) {
                    (Some(gateway), Some(link)) => format!(" via {gateway} dev {link}"),
                    (Some(gateway), None) => format!(" via {gateway}"),
                    (None, Some(link)) => format!(" dev {link}"),
                    (None, None) => String::new(),
                });
                let hops: String = if view.hops.len() > 1 { String::new() } else { hops.collect() };
                let key = view.route.key;
                let kind = match view.route.kind {
                    xenflow_proto::table::RouteKind::Unicast => "route".to_owned(),
                    other => kind(other),
                };
                let vrf = if table == xenflow_proto::table::TABLE_MAIN {
                    String::new()
                } else {
                    format!(", table {table}")
                };
                let fate = match &view.fate {
                    Fate::Forwarded => String::new(),
                    Fate::Dropped => ": dropped".to_owned(),
                    Fate::Punted(why) => format!(": punted, {why}"),
                    Fate::Rejected(why) => format!(": punted, {why}"),
                    Fate::Unused(_) => String::new(),
                };
                format!(
                    "{kind} {prefix}{hops} (RIB: metric {}, {}{vrf}){fate}",
                    key.metric,
                    protocol(view.route.protocol)
                )
            }
            None => format!("{prefix} is a neighbor on a connected network"),
        };
        let group = flow_group(step).map(|group| self.group(group)).unwrap_or_default();
        rib + &group
    }

    fn group(&self, id: u32) -> String {
        let hops = self.app().hops_of_group(id).unwrap_or_default();
        let named = hops.iter().take(HOPS).map(|(to, weight)| format!("{} weight {weight}", to.addr));
        let more = if hops.len() > HOPS { ", …" } else { "" };
        format!(": group {id} of {} next hops ({}{more})", hops.len(), named.collect::<Vec<_>>().join(", "))
    }

    fn next_hop(&self, step: &Step) -> String {
        let to = next_hop_in(&step.regs);
        let out = self.vif(to.vif);
        match (&step.flow, priority_of(step)) {
            (Some(_), Some(priority::EXCEPTION)) => {
                "punted, class exception: too big for the next hop".to_owned()
            }
            (Some(flow), _) if cookie::router_of(flow.cookie).is_some() => {
                let mac = set_mac(step, Field::EthDst).map_or_else(|| "?".to_owned(), |mac| mac.to_string());
                let ttl = step.packet.header(Field::IpTtl);
                let segment = tag_after(step).and_then(|vid| VlanId::try_from(i64::from(vid)).ok());
                let segment = segment.map_or_else(String::new, |vlan| format!(", {}", self.segment(vlan)));
                format!(
                    "neighbor {} is at {mac}: from vif {out}{segment}, TTL {ttl} → {}",
                    to.addr,
                    ttl.saturating_sub(1)
                )
            }
            _ => format!("punted, class transit: vif {out} has no neighbor {} resolved", to.addr),
        }
    }

    fn l2(&self, step: &Step) -> String {
        let mac = mac_of(step, Field::EthDst);
        let vif = vlan(step).and_then(|vlan| self.vif_at(vlan, mac));
        match (priority_of(step), vif, out_port(step)) {
            (Some(priority::EXCEPTION), Some(vif), _) => {
                format!(
                    "{mac} is {}'s vif {}, of this host: to that router",
                    self.router(vif.router),
                    self.vif(vif)
                )
            }
            (Some(priority::NORMAL), Some(vif), Some(port)) if self.is_vif(port) => {
                format!("to the guest of {} by its vif {}", self.router(vif.router), self.vif(vif))
            }
            (Some(priority::NORMAL), _, Some(port)) if self.app().topology().uplinks.contains(&port) => {
                format!("{mac} is another node's: by {}", self.port(port))
            }
            (Some(priority::NORMAL), _, Some(port)) => format!("{mac} is declared at {}", self.port(port)),
            _ if mac.0[0] & 1 == 1 => format!("{mac} is a group: all ports of the segment"),
            _ => format!("nobody has declared {mac}"),
        }
    }

    fn is_vif(&self, port: PortNo) -> bool {
        self.app().topology().vifs.values().any(|vif| vif.port == Some(port))
    }

    fn flood(&self, step: &Step) -> String {
        if priority_of(step) == Some(priority::FALLBACK) {
            return "its port is known".to_owned();
        }
        let Some(vlan) = vlan(step) else { return "dropped: no tag".to_owned() };
        let members = self.app().topology().members(vlan);
        let named: Vec<String> = members.iter().take(NAMED).map(|port| self.port(*port)).collect();
        let more = members.len().saturating_sub(NAMED);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        format!("flooded within {} to {}{more}", self.segment(vlan), named.join(", "))
    }

    fn egress(&self, step: &Step) -> String {
        let port = reg(step, pipeline::OUT_PORT);
        if port == 0 {
            return "dropped: no port".to_owned();
        }
        let name = self.port(port);
        match (step.sent.first(), priority_of(step)) {
            (Some((_, packet)), _) => match packet.tags.first() {
                Some(tag) => match queue(step) {
                    Some(number) => format!("out of {name} with VLAN {}, {}", tag.vid, self.queue(number)),
                    None => format!("out of {name} with VLAN {}", tag.vid),
                },
                None if self.is_vif(port) => format!("out of {name}: {}", punt(step)),
                None => format!("out of {name}, untagged"),
            },
            (None, Some(priority::EXCEPTION)) => {
                format!("not out of {name}: it came in there, or by another uplink")
            }
            (None, _) if !step.is_taken => format!("out of {name}"),
            (None, Some(_)) => format!("not out of {name}: it came in there"),
            (None, None) => format!("dropped: {name} is not of its segment"),
        }
    }
}

/// What the guest gets it as.
fn punt(step: &Step) -> String {
    let number = step.regs[usize::from(pipeline::FLAGS)] >> pipeline::PUNT_CLASS_BIT & 7;
    match PuntClass::ALL.into_iter().find(|class| u32::from(class.number()) == number) {
        Some(class) => format!("the guest gets it, class {}, as far as its meter lets it", class.as_str()),
        None => "the guest gets it".to_owned(),
    }
}

/// The class that a step gives.
fn class(step: &Step) -> String {
    let shift = pipeline::PUNT_CLASS_BIT;
    let number = step.actions.iter().find_map(|action| match action {
        Action::SetField { field: Field::Reg(pipeline::FLAGS), value, mask }
            if mask.get() == pipeline::PUNT_CLASS.into() =>
        {
            Some(value.get() >> shift)
        }
        _ => None,
    });
    let class = PuntClass::ALL.into_iter().find(|class| Some(u128::from(class.number())) == number);
    class.map_or("none", PuntClass::as_str).to_owned()
}

fn priority_of(step: &Step) -> Option<u16> {
    step.flow.as_ref().map(|flow| flow.priority)
}

fn is_gate(step: &Step) -> bool {
    step.flow.as_ref().is_some_and(|flow| cookie::router_of(flow.cookie).is_some())
}

fn reg(step: &Step, number: u8) -> u32 {
    step.regs.get(usize::from(number)).copied().unwrap_or(0)
}

/// The last value that a step gives a field.
fn set(step: &Step, of: Field) -> Option<u128> {
    step.actions.iter().rev().find_map(|action| match action {
        Action::SetField { field, value, .. } if *field == of => Some(value.get()),
        _ => None,
    })
}

/// The queue that a step chooses.
fn queue(step: &Step) -> Option<u32> {
    step.actions.iter().find_map(|action| match action {
        Action::SetQueue(queue) => Some(*queue),
        _ => None,
    })
}

fn out_port(step: &Step) -> Option<PortNo> {
    let port = set(step, Field::Reg(pipeline::OUT_PORT))?;
    u32::try_from(port).ok().filter(|port| *port != 0)
}

fn flow_group(step: &Step) -> Option<u32> {
    step.actions.iter().find_map(|action| if let Action::Group(id) = action { Some(*id) } else { None })
}

/// The VLAN id behind a step.
fn tag_after(step: &Step) -> Option<u16> {
    let set = set(step, Field::VlanVid).and_then(|vid| u16::try_from(vid & 0xfff).ok());
    set.or_else(|| step.packet.tags.first().map(|tag| tag.vid))
}

fn vlan(step: &Step) -> Option<VlanId> {
    VlanId::try_from(i64::from(step.packet.tags.first()?.vid)).ok()
}

fn is_ip(packet: &Packet) -> bool {
    ip(packet, false).is_some()
}

fn ip(packet: &Packet, is_source: bool) -> Option<IpAddr> {
    let v4 = |field| std::net::Ipv4Addr::from_bits(u32::try_from(packet.header(field)).unwrap_or(0)).into();
    let v6 = |field| std::net::Ipv6Addr::from_bits(packet.header(field)).into();
    match u16::try_from(packet.header(Field::EthType)).ok()? {
        pipeline::ETH_IPV4 if is_source => Some(v4(Field::Ipv4Src)),
        pipeline::ETH_IPV4 => Some(v4(Field::Ipv4Dst)),
        pipeline::ETH_IPV6 if is_source => Some(v6(Field::Ipv6Src)),
        pipeline::ETH_IPV6 => Some(v6(Field::Ipv6Dst)),
        _ => None,
    }
}

fn mac(bits: u128) -> MacAddr {
    let [_, _, bytes @ ..] = u64::try_from(bits).unwrap_or(0).to_be_bytes();
    MacAddr(bytes)
}

fn mac_of(step: &Step, field: Field) -> MacAddr {
    mac(step.packet.header(field))
}

fn set_mac(step: &Step, field: Field) -> Option<MacAddr> {
    set(step, field).map(mac)
}

fn dst(step: &Step) -> MacAddr {
    mac_of(step, Field::EthDst)
}

/// The addresses of a packet, and what it is.
pub(super) fn packet(packet: &Packet) -> String {
    let macs = format!("{} → {}", mac(packet.header(Field::EthSrc)), mac(packet.header(Field::EthDst)));
    let tags: String = packet.tags.iter().map(|tag| format!(", VLAN {}", tag.vid)).collect();
    let Some((src, dst)) = ip(packet, true).zip(ip(packet, false)) else {
        let what = match u16::try_from(packet.header(Field::EthType)).unwrap_or(0) {
            pipeline::ETH_ARP => "ARP".to_owned(),
            other => format!("type {other:#06x}"),
        };
        return format!("{what}, {macs}{tags}");
    };
    let ports =
        [(Field::UdpSrc, Field::UdpDst), (Field::TcpSrc, Field::TcpDst), (Field::SctpSrc, Field::SctpDst)];
    let ports = ports.iter().find(|(source, _)| packet.headers.contains_key(source));
    let ports = ports.map_or_else(String::new, |(source, destination)| {
        format!(", ports {} → {}", packet.header(*source), packet.header(*destination))
    });
    let protocol = match packet.header(Field::IpProto) {
        1 | 58 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        132 => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    };
    format!("{protocol} {src} → {dst}{ports}, TTL {}, {macs}{tags}", packet.header(Field::IpTtl))
}
