//! Changes of routes, next-hop objects and neighbors, as fast as a kernel takes them.
//!
//! A [`Writer`] takes lines as `ip -batch` does and understands the few that benches and scenarios write; many of them
//! share one system call, where `ip` makes several for each. `lab routes` is the same as a program, for what must not
//! be in the scenario's own process. Neither knows which routes these are.

use std::collections::HashMap;
use std::io::BufRead as _;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::net::if_::if_nameindex;
use xenflow_proto::MacAddr;

use crate::net::Netns;

/// Messages in one system call.
const TOGETHER: usize = 64;
/// `linux/netlink.h`: the header, and flags of requests.
const HEADER: usize = 16;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const REPLACE: u16 = 0x100;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
/// `linux/rtnetlink.h`.
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_NH_ID: u16 = 30;
/// `linux/neighbour.h`.
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u8 = 0x80;
/// `linux/nexthop.h`.
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const TABLE_MAIN: u8 = 254;
const PROTOCOL_UNSPEC: u8 = 0;
const PROTOCOL_BOOT: u8 = 3;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_NOWHERE: u8 = 255;

/// A socket that writes into one kernel's tables.
pub struct Writer {
    socket: Socket,
    /// Indices of the interfaces that were there when it was opened.
    links: HashMap<String, u32>,
    seq: u32,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("seq", &self.seq).finish_non_exhaustive()
    }
}

impl Writer {
    /// A writer into the tables of a namespace, whose interfaces are all there.
    pub fn open(ns: &Netns) -> Result<Self> {
        ns.enter(Self::here)
    }

    /// A writer into the tables of the namespace that this thread is in.
    fn here() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("cannot open a netlink socket")?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut links = HashMap::new();
        for link in &if_nameindex().context("cannot list the interfaces")? {
            links.insert(link.name().to_string_lossy().into_owned(), link.index());
        }
        Ok(Self { socket, links, seq: 0 })
    }

    /// Makes the changes of these lines, in their order, and returns when the kernel has taken the last.
    ///
    /// # Errors
    /// A line that is not understood, or that the kernel refuses: a route to add may not be there, and one to delete
    /// must be. Lines around it may have been taken.
    pub fn write(&mut self, lines: &str) -> Result<()> {
        let lines: Vec<&str> = lines.lines().filter(|line| !line.trim().is_empty()).collect();
        lines.chunks(TOGETHER).try_for_each(|lines| self.send(lines))
    }

    /// Sends the messages of these lines at once and waits until the kernel has taken the last.
    fn send(&mut self, lines: &[&str]) -> Result<()> {
        let mut out = Vec::new();
        let first = self.seq.wrapping_add(1);
        for (index, line) in lines.iter().enumerate() {
            self.seq = self.seq.wrapping_add(1);
            // Errors come whatever is asked for.
            let ack = if index + 1 == lines.len() { ACK } else { 0 };
            message(line, self.seq, ack, &self.links, &mut out)
                .with_context(|| format!("line \"{line}\""))?;
        }
        self.socket.send(&out, 0)?;
        loop {
            let (answer, _) = self.socket.recv_from_full()?;
            let mut rest = answer.as_slice();
            while rest.len() >= HEADER + 4 {
                let size = u32::from_ne_bytes(rest[..4].try_into()?) as usize;
                ensure!(
                    (HEADER + 4..=rest.len()).contains(&size),
                    "an answer of {size} bytes from the kernel"
                );
                let of = u32::from_ne_bytes(rest[8..12].try_into()?);
                if u16::from_ne_bytes(rest[4..6].try_into()?) == NLMSG_ERROR {
                    let code = i32::from_ne_bytes(rest[HEADER..HEADER + 4].try_into()?);
                    let line = lines.get(of.wrapping_sub(first) as usize);
                    if code != 0 {
                        let error = std::io::Error::from_raw_os_error(-code);
                        return Err(error).with_context(|| format!("line {line:?} is refused"));
                    }
                    if of == self.seq {
                        return Ok(());
                    }
                }
                rest = &rest[size.next_multiple_of(4).min(rest.len())..];
            }
        }
    }
}

/// The program `lab routes`: what comes on standard input, to the last line that has come whole.
///
/// # Errors
/// As [`Writer::write`].
pub fn main() -> Result<()> {
    let mut writer = Writer::here()?;
    let mut stdin = std::io::stdin().lock();
    let mut rest = String::new();
    loop {
        let chunk = stdin.fill_buf()?;
        let taken = chunk.len();
        rest.push_str(std::str::from_utf8(chunk)?);
        stdin.consume(taken);
        let end = if taken == 0 { rest.len() } else { rest.rfind('\n').map_or(0, |at| at + 1) };
        writer.write(&rest[..end])?;
        rest.drain(..end);
        if taken == 0 {
            return Ok(());
        }
    }
}

/// Appends the message of a line.
fn message(line: &str, seq: u32, flags: u16, links: &HashMap<String, u32>, out: &mut Vec<u8>) -> Result<()> {
    let mut words = line.split_whitespace();
    let (object, verb) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let verb_flags = match verb {
        "add" => CREATE | EXCL,
        "replace" => CREATE | REPLACE,
        "del" => 0,
        _ => bail!("\"{verb}\" is none of add, replace and del"),
    };
    let start = out.len();
    out.extend([0; HEADER]);
    let kind = match (object, verb) {
        ("route", "del") => RTM_DELROUTE,
        ("route", _) => RTM_NEWROUTE,
        ("nexthop", "del") => RTM_DELNEXTHOP,
        ("nexthop", _) => RTM_NEWNEXTHOP,
        ("neigh", "del") => RTM_DELNEIGH,
        ("neigh", _) => RTM_NEWNEIGH,
        _ => bail!("\"{object}\" is none of route, nexthop and neigh"),
    };
    let words: Vec<&str> = words.collect();
    match object {
        "route" => route(&words, verb == "del", links, out)?,
        "nexthop" => next_hop(&words, links, out)?,
        _ => neighbor(&words, links, out)?,
    }
    let size = u32::try_from(out.len() - start)?;
    let header = &mut out[start..start + HEADER];
    header[..4].copy_from_slice(&size.to_ne_bytes());
    header[4..6].copy_from_slice(&kind.to_ne_bytes());
    header[6..8].copy_from_slice(&(REQUEST | verb_flags | flags).to_ne_bytes());
    header[8..12].copy_from_slice(&seq.to_ne_bytes());
    Ok(())
}

/// `[KIND] PREFIX [via ADDRESS] [dev NAME] [nhid ID] [metric N] [proto N]`: what `struct rtmsg` and its attributes say.
fn route(words: &[&str], is_removal: bool, links: &HashMap<String, u32>, out: &mut Vec<u8>) -> Result<()> {
    let number = |name: &str| match name {
        "blackhole" => Some(6_u8),
        "unreachable" => Some(7),
        "prohibit" => Some(8),
        _ => None,
    };
    let kind = words.first().and_then(|word| number(word));
    let words = if kind.is_some() { &words[1..] } else { words };
    let (prefix, options) = words.split_first().context("there is no prefix")?;
    let (addr, len) = prefix.split_once('/').context("the prefix has no length")?;
    let (addr, len): (IpAddr, u8) = (addr.parse()?, len.parse()?);
    let mut attributes = Vec::new();
    attribute(&mut attributes, RTA_DST, &octets(addr));
    let mut is_direct = kind.is_none();
    let mut protocol = if is_removal { PROTOCOL_UNSPEC } else { PROTOCOL_BOOT };
    for pair in options.chunks(2) {
        let [word, value] = pair else { bail!("\"{}\" has no value", pair.concat()) };
        match *word {
            "via" => attribute(&mut attributes, RTA_GATEWAY, &octets(value.parse()?)),
            "dev" => attribute(&mut attributes, RTA_OIF, &link(value, links)?.to_ne_bytes()),
            "nhid" => attribute(&mut attributes, RTA_NH_ID, &value.parse::<u32>()?.to_ne_bytes()),
            "metric" => attribute(&mut attributes, RTA_PRIORITY, &value.parse::<u32>()?.to_ne_bytes()),
            "proto" => protocol = value.parse()?,
            _ => bail!("\"{word}\" is none of via, dev, nhid, metric and proto"),
        }
        is_direct &= !matches!(*word, "via" | "nhid");
    }
    let (scope, kind) = match (is_removal, kind) {
        (true, kind) => (SCOPE_NOWHERE, kind.unwrap_or(0)),
        (false, None) if is_direct => (SCOPE_LINK, 1),
        (false, kind) => (SCOPE_UNIVERSE, kind.unwrap_or(1)),
    };
    out.extend([family(addr), len, 0, 0, TABLE_MAIN, protocol, scope, kind, 0, 0, 0, 0]);
    out.extend(attributes);
    Ok(())
}

/// `id ID [via ADDRESS dev NAME] [group ID/ID...]`: what `struct nhmsg` and its attributes say.
fn next_hop(words: &[&str], links: &HashMap<String, u32>, out: &mut Vec<u8>) -> Result<()> {
    let mut attributes = Vec::new();
    let mut of = 0;
    for pair in words.chunks(2) {
        let [word, value] = pair else { bail!("\"{}\" has no value", pair.concat()) };
        match *word {
            "id" => attribute(&mut attributes, NHA_ID, &value.parse::<u32>()?.to_ne_bytes()),
            "via" => {
                let gateway = value.parse()?;
                of = family(gateway);
                attribute(&mut attributes, NHA_GATEWAY, &octets(gateway));
            }
            "dev" => attribute(&mut attributes, NHA_OIF, &link(value, links)?.to_ne_bytes()),
            "group" => {
                let members =
                    value.split('/').map(|id| Ok([id.parse::<u32>()?.to_ne_bytes(), [0; 4]].concat()));
                attribute(&mut attributes, NHA_GROUP, &members.collect::<Result<Vec<_>>>()?.concat());
            }
            _ => bail!("\"{word}\" is none of id, via, dev and group"),
        }
    }
    out.extend([of, SCOPE_UNIVERSE, if of == 0 { 0 } else { PROTOCOL_BOOT }, 0, 0, 0, 0, 0]);
    out.extend(attributes);
    Ok(())
}

/// `ADDRESS dev NAME [lladdr MAC]`: what `struct ndmsg` and its attributes say of a permanent neighbor.
fn neighbor(words: &[&str], links: &HashMap<String, u32>, out: &mut Vec<u8>) -> Result<()> {
    let (addr, options) = words.split_first().context("there is no address")?;
    let addr: IpAddr = addr.parse()?;
    let (mut of, mut attributes) = (0, Vec::new());
    attribute(&mut attributes, NDA_DST, &octets(addr));
    for pair in options.chunks(2) {
        let [word, value] = pair else { bail!("\"{}\" has no value", pair.concat()) };
        match *word {
            "dev" => of = link(value, links)?,
            "lladdr" => attribute(&mut attributes, NDA_LLADDR, &value.parse::<MacAddr>()?.0),
            _ => bail!("\"{word}\" is none of dev and lladdr"),
        }
    }
    out.extend([family(addr), 0, 0, 0]);
    out.extend(of.to_ne_bytes());
    out.extend([NUD_PERMANENT, 0, 0, 0]);
    out.extend(attributes);
    Ok(())
}

fn family(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 2 } else { 10 }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

fn link(name: &str, links: &HashMap<String, u32>) -> Result<u32> {
    links.get(name).copied().with_context(|| format!("there is no interface {name}"))
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend((4 + value.len() as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader};

    use super::*;

    fn bytes(line: &str) -> Vec<u8> {
        let links = HashMap::from([("lan2".to_owned(), 3)]);
        let mut out = Vec::new();
        message(line, 9, 0, &links, &mut out).unwrap();
        assert_eq!(u32::from_ne_bytes(out[..4].try_into().unwrap()) as usize, out.len());
        out
    }

    /// Little endian, as `ip` sends them (`strace -e trace=sendmsg`).
    #[test]
    #[cfg(target_endian = "little")]
    fn messages_are_those_of_ip() {
        let header = |kind: u8, flags: u16| {
            let [low, high] = flags.to_le_bytes();
            [kind, 0, low, high, 9, 0, 0, 0, 0, 0, 0, 0].to_vec()
        };
        let add = bytes("route add 10.9.0.0/16 via 10.2.0.20 dev lan2 metric 40");
        assert_eq!(add[4..16], header(24, 0x601));
        assert_eq!(add[16..28], [2, 16, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0]);
        let attributes = [
            [8, 0, 1, 0, 10, 9, 0, 0],
            [8, 0, 5, 0, 10, 2, 0, 20],
            [8, 0, 4, 0, 3, 0, 0, 0],
            [8, 0, 6, 0, 40, 0, 0, 0],
        ];
        assert_eq!(add[28..], attributes.concat());
        let del = bytes("route del blackhole 10.9.0.0/16");
        assert_eq!(del[4..16], header(25, 1));
        assert_eq!(del[16..28], [2, 16, 0, 0, 254, 0, 255, 6, 0, 0, 0, 0]);
        let object = bytes("nexthop add id 7 via 10.2.0.20 dev lan2");
        assert_eq!(object[4..16], header(104, 0x601));
        assert_eq!(object[16..24], [2, 0, 3, 0, 0, 0, 0, 0]);
        assert_eq!(bytes("nexthop del id 7")[16..], [0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 1, 0, 7, 0, 0, 0]);
        let group = bytes("nexthop replace id 30 group 11/12");
        assert_eq!(group[4..16], header(104, 0x501));
        let members = [[11, 0, 0, 0, 0, 0, 0, 0], [12, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(group[16..], [&[0; 8][..], &[8, 0, 1, 0, 30, 0, 0, 0], &[20, 0, 2, 0], &members].concat());
        let neighbor = bytes("neigh replace 10.2.0.20 dev lan2 lladdr 02:aa:00:00:00:14");
        assert_eq!(neighbor[4..16], header(28, 0x501));
        assert_eq!(neighbor[16..28], [2, 0, 0, 0, 3, 0, 0, 0, 0x80, 0, 0, 0]);
        let attributes =
            [[8, 0, 1, 0, 10, 2, 0, 20, 10, 0, 2, 0], [2, 0xaa, 0, 0, 0, 0x14, 0, 0, 0, 0, 0, 0]];
        assert_eq!(neighbor[28..], attributes.concat()[..20]);
        assert_eq!(bytes("route replace 10.9.0.0/16 nhid 2")[4..16], header(24, 0x501));
    }

    /// By an independent decoder.
    #[test]
    fn routes_say_what_they_should() {
        let decoded = |line: &str| {
            let bytes = bytes(line);
            let decoded = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).unwrap();
            assert_eq!((decoded.header.length as usize, decoded.header.sequence_number), (bytes.len(), 9));
            let NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
            ) = decoded.payload
            else {
                panic!("{:?}", decoded.payload)
            };
            route
        };
        let dst = RouteAttribute::Destination(RouteAddress::Inet([10, 128, 3, 0].into()));
        let via = RouteAttribute::Gateway(RouteAddress::Inet([10, 1, 0, 10].into()));
        for verb in ["add", "del"] {
            let route = decoded(&format!("route {verb} 10.128.3.0/24 via 10.1.0.10 proto 99"));
            let RouteHeader { destination_prefix_length, protocol, table, .. } = route.header;
            assert_eq!((destination_prefix_length, u8::from(protocol), table), (24, 99, TABLE_MAIN));
            assert_eq!(route.attributes, [dst.clone(), via.clone()]);
        }
        let route = decoded("route add 10.128.3.0/24 nhid 7 proto 99");
        assert_eq!(route.attributes.len(), 2);
        assert!(format!("{:?}", route.attributes[1]).contains('7'), "{route:?}");
    }

    #[test]
    fn other_lines_are_refused() {
        for line in [
            "",
            "link add x",
            "route add 10.0.0.0",
            "route add 10.0.0.0/8 src 1.1.1.1",
            "route get 10.0.0.0/8",
            "route add 10.0.0.0/8 dev lan9",
            "route add 10.0.0.0/8 via 10.1.0.1 proto 256",
        ] {
            assert!(message(line, 1, 0, &HashMap::new(), &mut Vec::new()).is_err(), "{line}");
        }
    }
}
