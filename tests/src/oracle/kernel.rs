//! The oracle: what the guest's kernel would do with a packet, asked of its forwarding table.
//!
//! `RTM_GETROUTE` with the input interface, the source and `RTM_F_FIB_MATCH`: without the interface the kernel looks
//! up as for a packet of its own, without the flag it has picked one next hop of several already, and says which.
//!
//! A match in IPv6 misleads where routes use next-hop objects (Linux 6.1): the kernel answers with the route (`from`)
//! of the destination entry that it caches per next hop and CPU (`rt6_get_pcpu_route`), and all routes that use an
//! object share its next hop, so its cache: prefix, metric, MTU and id are those of whichever route was looked up first.
//! The hop itself is right. [`super::dump`] says what such routes are.

#![expect(clippy::wildcard_enum_match_arm, reason = "netlink and errno are open sets")]

use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHopFlags, RouteType,
    RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::Family;
use crate::net::Netns;

/// What the kernel says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It keeps the packet: own, broadcast, multicast address.
    Local,
    /// It forwards by one of these.
    Forward(Forward),
    /// It drops without a word. So it does with martians, which the question tells.
    Blackhole,
    /// It answers with an error.
    Refuse(Refusal),
}

/// Why the kernel refuses to forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No route at all.
    NoRoute,
    /// A route of type unreachable.
    Unreachable,
    /// A route of type prohibit.
    Prohibit,
}

/// The route that the kernel forwards by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Length of its prefix.
    pub prefix_len: u8,
    /// Its routing table.
    pub table: u32,
    /// Its next hops.
    pub hops: Vec<KernelHop>,
    /// Its own limit for the size of packets.
    pub mtu: Option<u32>,
    /// Its next-hop object.
    pub next_hop_id: Option<u32>,
}

/// A next hop of a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelHop {
    /// The device.
    pub oif: Option<u32>,
    /// The gateway; none: the destination itself.
    pub gateway: Option<IpAddr>,
    /// Its link is down.
    pub is_dead: bool,
    /// It wraps packets into something.
    pub is_encap: bool,
}

/// A socket that asks one kernel.
pub struct Kernel {
    socket: Socket,
    sequence: u32,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Kernel {
    /// A socket of the namespace.
    pub fn open(ns: &Netns) -> Result<Self> {
        let socket = ns.enter(|| {
            let mut socket = Socket::new(NETLINK_ROUTE).context("no netlink socket")?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // An attribute the kernel does not know is an error then, not ignored.
            socket.set_netlink_get_strict_chk(true)?;
            Ok(socket)
        })?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks by which route a packet goes that comes in by the interface with this index.
    pub fn ask(&mut self, iif: u32, src: IpAddr, dst: IpAddr) -> Result<Answer> {
        self.get(question(iif, src, dst), src, dst)
    }

    /// Asks where that packet goes: one next hop, as the kernel chooses it. Prefix, table and MTU say nothing.
    pub fn choose(&mut self, iif: u32, src: IpAddr, dst: IpAddr) -> Result<Answer> {
        let mut question = question(iif, src, dst);
        question.header.flags = RouteFlags::empty();
        self.get(question, src, dst)
    }

    fn get(&mut self, question: RouteMessage, src: IpAddr, dst: IpAddr) -> Result<Answer> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(question));
        message.header.flags = NLM_F_REQUEST;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).context("cannot ask the kernel")?;
        let (reply, _) = self.socket.recv_from_full().context("the kernel does not answer")?;
        let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&reply)
            .with_context(|| format!("the kernel's answer about {dst}"))?;
        ensure!(reply.header.sequence_number == self.sequence, "an answer to another question: {reply:?}");
        match reply.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => Ok(answer(&route)),
            NetlinkPayload::Error(error) => error_answer(-error.raw_code())
                .with_context(|| format!("the kernel says of {src} → {dst}: {}", error.to_io())),
            other => bail!("the kernel answers about {dst} with {other:?}"),
        }
    }
}

fn question(iif: u32, src: IpAddr, dst: IpAddr) -> RouteMessage {
    let mut question = RouteMessage::default();
    let family = Family::of(dst);
    question.header.address_family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    question.header.destination_prefix_length = family.width();
    question.header.source_prefix_length = family.width();
    // IPv6 knows no other flag and names the table anyway.
    question.header.flags = match family {
        Family::V4 => RouteFlags::FibMatch | RouteFlags::LookupTable,
        Family::V6 => RouteFlags::FibMatch,
    };
    question.attributes = vec![
        RouteAttribute::Destination(dst.into()),
        RouteAttribute::Source(src.into()),
        RouteAttribute::Iif(iif),
    ];
    question
}

/// `fib_props` of net/ipv4/fib_semantics.c and `ip6_rt_type_to_error` say which error stands for which type.
fn error_answer(errno: i32) -> Result<Answer> {
    use nix::errno::Errno;
    match Errno::from_raw(errno) {
        Errno::EINVAL => Ok(Answer::Blackhole),
        Errno::EHOSTUNREACH => Ok(Answer::Refuse(Refusal::Unreachable)),
        Errno::EACCES => Ok(Answer::Refuse(Refusal::Prohibit)),
        // A throw sends the lookup on, and the table `default` is empty.
        Errno::ENETUNREACH | Errno::EAGAIN => Ok(Answer::Refuse(Refusal::NoRoute)),
        other => bail!("the error {other} says nothing about a route"),
    }
}

fn answer(route: &RouteMessage) -> Answer {
    match route.header.kind {
        RouteType::Unicast => {}
        RouteType::BlackHole => return Answer::Blackhole,
        RouteType::Unreachable => return Answer::Refuse(Refusal::Unreachable),
        RouteType::Prohibit => return Answer::Refuse(Refusal::Prohibit),
        RouteType::Throw => return Answer::Refuse(Refusal::NoRoute),
        _ => return Answer::Local,
    }
    let mut forward = Forward {
        prefix_len: route.header.destination_prefix_length,
        table: route.header.table.into(),
        hops: Vec::new(),
        mtu: None,
        next_hop_id: None,
    };
    // The low eight bits of rtm_flags are those of the only next hop (`fib_dump_info`).
    let dead = RouteNextHopFlags::Dead.bits();
    let mut single = hop(&route.attributes);
    single.is_dead = route.header.flags.bits() & u32::from(dead) != 0;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::MultiPath(hops) => {
                forward.hops = hops
                    .iter()
                    .map(|it| KernelHop {
                        oif: Some(it.interface_index),
                        is_dead: it.flags.bits() & dead != 0,
                        ..hop(&it.attributes)
                    })
                    .collect();
            }
            RouteAttribute::Table(table) => forward.table = *table,
            RouteAttribute::NhId(id) => forward.next_hop_id = Some(*id),
            RouteAttribute::Metrics(metrics) => {
                forward.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if forward.hops.is_empty() {
        forward.hops = vec![single];
    }
    forward.hops.sort();
    Answer::Forward(forward)
}

fn hop(attributes: &[RouteAttribute]) -> KernelHop {
    let mut hop = KernelHop { oif: None, gateway: None, is_dead: false, is_encap: false };
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(oif) => hop.oif = Some(*oif),
            RouteAttribute::Gateway(RouteAddress::Inet(addr)) | RouteAttribute::Via(RouteVia::Inet(addr)) => {
                hop.gateway = Some((*addr).into());
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(addr))
            | RouteAttribute::Via(RouteVia::Inet6(addr)) => hop.gateway = Some((*addr).into()),
            RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => hop.is_encap = true,
            _ => {}
        }
    }
    hop
}
