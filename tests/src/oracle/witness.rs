//! The witness: where the switch sends a packet, told by `ofproto/trace` over one persistent control connection.
//!
//! Reads the datapath actions that a trace ends with: they are what the kernel would do, with every rewrite in it.
//! Knows nothing of the product's tables.

use std::io::{BufReader, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::Family;

/// A bound for one answer of the switch.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A packet: what of it matters here, and what may be rewritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Source MAC address.
    pub eth_src: String,
    /// Destination MAC address.
    pub eth_dst: String,
    /// VLAN tag.
    pub vlan: Option<u16>,
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Source port: what the packets of one pair differ in.
    pub port: u16,
}

/// A copy of a packet that leaves by a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emit {
    /// Datapath number of the port.
    pub port: u32,
    /// As it leaves.
    pub packet: Packet,
}

/// A control connection to ovs-vswitchd: JSON-RPC 1.0 over a unix socket (`lib/unixctl.c`).
pub struct Witness {
    writer: UnixStream,
    replies: serde_json::StreamDeserializer<'static, serde_json::de::IoRead<BufReader<UnixStream>>, Value>,
    bridge: String,
}

impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Witness").field("bridge", &self.bridge).finish_non_exhaustive()
    }
}

impl Witness {
    /// Connects to the control socket of a switch.
    pub fn connect(socket: &Path, bridge: &str) -> Result<Self> {
        let writer =
            UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
        let reader = writer.try_clone()?;
        reader.set_read_timeout(Some(TIMEOUT))?;
        let replies = serde_json::Deserializer::from_reader(BufReader::new(reader)).into_iter();
        Ok(Self { writer, replies, bridge: bridge.to_owned() })
    }

    /// Runs a command of `ovs-appctl`.
    pub fn command(&mut self, method: &str, params: &[&str]) -> Result<String> {
        let request = json!({ "id": 0, "method": method, "params": params });
        self.writer.write_all(request.to_string().as_bytes())?;
        let reply = self.replies.next().context("the switch closed the control connection")??;
        if let Some(error) = reply.get("error").filter(|error| !error.is_null()) {
            bail!("{method} {params:?}: {error}");
        }
        let result = reply.get("result").and_then(Value::as_str);
        Ok(result.with_context(|| format!("{method} answered {reply}"))?.to_owned())
    }

    /// Numbers of a port: OpenFlow's and the datapath's.
    pub fn port(&mut self, name: &str) -> Result<(u32, u32)> {
        let text = self.command("dpif/show", &[])?;
        port_numbers(&text, name).with_context(|| format!("no port {name} in {text}"))
    }

    /// Where a packet goes that comes in by this OpenFlow port. No copies: it is dropped.
    pub fn trace(&mut self, in_port: u32, packet: &Packet) -> Result<Vec<Emit>> {
        let bridge = self.bridge.clone();
        let text = self.command("ofproto/trace", &[&bridge, &flow(in_port, packet)])?;
        let mut actions = text.lines().filter_map(|line| line.strip_prefix("Datapath actions: "));
        let (Some(last), None) = (actions.next(), actions.next()) else {
            bail!("a trace without exactly one list of datapath actions: {text}");
        };
        outputs(last, packet).with_context(|| format!("in the trace {text}"))
    }
}

/// The packet as `ovs-fields(7)` writes it.
fn flow(in_port: u32, packet: &Packet) -> String {
    let Packet { eth_src, eth_dst, vlan, src, dst, ttl, port } = packet;
    let vlan = vlan.map(|vlan| format!("dl_vlan={vlan},")).unwrap_or_default();
    let ip = match Family::of(*dst) {
        Family::V4 => format!("udp,nw_src={src},nw_dst={dst}"),
        Family::V6 => format!("udp6,ipv6_src={src},ipv6_dst={dst}"),
    };
    format!(
        "in_port={in_port},dl_src={eth_src},dl_dst={eth_dst},{vlan}{ip},nw_ttl={ttl},udp_src={port},udp_dst=9"
    )
}

/// Finds `    name 3/5: (system)` in what `dpif/show` prints.
fn port_numbers(text: &str, name: &str) -> Option<(u32, u32)> {
    let numbers = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(' '))?;
    let (openflow, datapath) = numbers.split(':').next()?.split_once('/')?;
    Some((openflow.parse().ok()?, datapath.parse().ok()?))
}

/// Runs datapath actions (`odp-util.c` prints them) on a packet.
fn outputs(actions: &str, packet: &Packet) -> Result<Vec<Emit>> {
    let mut packet = packet.clone();
    let mut emits = Vec::new();
    if actions != "drop" {
        run(actions, &mut packet, &mut emits)?;
    }
    Ok(emits)
}

fn run(actions: &str, packet: &mut Packet, emits: &mut Vec<Emit>) -> Result<()> {
    for action in split(actions) {
        if let Ok(port) = action.parse() {
            emits.push(Emit { port, packet: packet.clone() });
        } else if action == "pop_vlan" {
            ensure!(packet.vlan.take().is_some(), "pop_vlan without a tag");
        } else if let Some(tag) = inside(action, "push_vlan") {
            ensure!(packet.vlan.is_none(), "a second tag");
            packet.vlan = Some(value(tag, "vid").context("push_vlan without vid")?.parse()?);
        } else if let Some(field) = inside(action, "set") {
            set(field, packet)?;
        } else if let Some(inner) = inside(action, "clone") {
            run(inner, &mut packet.clone(), emits)?;
        } else {
            bail!("the datapath action {action:?} is not known here");
        }
    }
    Ok(())
}

fn set(field: &str, packet: &mut Packet) -> Result<()> {
    if let Some(eth) = inside(field, "eth") {
        for (name, place) in [("src", &mut packet.eth_src), ("dst", &mut packet.eth_dst)] {
            if let Some(mac) = value(eth, name) {
                mac.clone_into(place);
            }
        }
        return Ok(());
    }
    let ttl = inside(field, "ipv4").and_then(|ip| value(ip, "ttl"));
    let ttl = ttl.or_else(|| inside(field, "ipv6").and_then(|ip| value(ip, "hlimit")));
    packet.ttl = ttl.with_context(|| format!("the rewrite {field:?} is not known here"))?.parse()?;
    Ok(())
}

/// What is between the parentheses of `name(…)`.
fn inside<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')')
}

/// The value of `key=value` or `key=value/mask` in a list.
fn value<'a>(list: &'a str, key: &str) -> Option<&'a str> {
    let value = list.split(',').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))?;
    value.split('/').next()
}

/// Splits at commas outside of parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0_u32, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Packet {
        Packet {
            eth_src: "02:00:00:00:00:01".into(),
            eth_dst: "02:00:00:00:00:02".into(),
            vlan: None,
            src: "10.0.0.1".parse().unwrap(),
            dst: "10.0.0.2".parse().unwrap(),
            ttl: 64,
            port: 7,
        }
    }

    // What ofproto/trace of Open vSwitch 3.1.0 prints for a routed and flooded packet.
    const FLOOD: &str = "set(eth(src=02:aa:00:00:00:01,dst=02:bb:00:00:00:01)),set(ipv4(ttl=63)),4,push_vlan(vid=102,pcp=0),6";

    #[test]
    fn actions_are_run() {
        let emits = outputs(FLOOD, &packet()).unwrap();
        let (ports, vlans): (Vec<_>, Vec<_>) = emits.iter().map(|it| (it.port, it.packet.vlan)).unzip();
        assert_eq!((ports, vlans), (vec![4, 6], vec![None, Some(102)]));
        assert!(emits.iter().all(|it| it.packet.ttl == 63 && it.packet.eth_dst == "02:bb:00:00:00:01"));
        assert_eq!(outputs("drop", &packet()).unwrap(), []);
    }

    #[test]
    fn a_clone_leaves_the_packet_as_it_was() {
        let emits = outputs("clone(set(ipv6(hlimit=1/0xff)),1),2", &packet()).unwrap();
        assert_eq!(emits.iter().map(|it| it.packet.ttl).collect::<Vec<_>>(), [1, 64]);
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        for actions in ["recirc(0x1)", "set(skb_priority(0x1)),1", "userspace(pid=1)", "pop_vlan,1", ""] {
            assert!(outputs(actions, &packet()).is_err(), "{actions}");
        }
    }

    #[test]
    fn ports_are_found_by_name() {
        let text = "system@ovs-system: hit:0 missed:3\n  br-xf:\n    br-xf 65534/1: (internal)\n    v1-if0 3/5: (system)\n";
        assert_eq!(port_numbers(text, "v1-if0"), Some((3, 5)));
        assert_eq!(port_numbers(text, "v1-if"), None);
    }
}
