//! The witness: where the switch sends a packet, told by `ofproto/trace` over one persistent control connection.
//!
//! Reads the datapath actions that a trace ends with: they are what the datapath would do, with every rewrite in it;
//! [`super::actions`] runs them.
//! Knows nothing of the product's tables.

use std::io::{BufReader, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
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

    /// What the datapath does with a packet that comes in by this OpenFlow port, whatever its length.
    pub fn trace(&mut self, in_port: u32, packet: &Packet) -> Result<String> {
        let bridge = self.bridge.clone();
        let text = self.command("ofproto/trace", &[&bridge, &flow(in_port, packet)])?;
        let mut actions = text.lines().filter_map(|line| line.strip_prefix("Datapath actions: "));
        let (Some(last), None) = (actions.next(), actions.next()) else {
            bail!("a trace without exactly one list of datapath actions: {text}");
        };
        Ok(last.to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_found_by_name() {
        let text = "system@ovs-system: hit:0 missed:3\n  br-xf:\n    br-xf 65534/1: (internal)\n    v1-if0 3/5: (system)\n";
        assert_eq!(port_numbers(text, "v1-if0"), Some((3, 5)));
        assert_eq!(port_numbers(text, "v1-if"), None);
    }
}
