//! What becomes of one packet: at each table, in words, from the tables of the host's routers and from the switch, and where the
//! two differ.
//!
//! Owns the question and its way: the core finds the port and makes the frame ([`plan`]), the task of the client that asked has
//! the switch trace it ([`Plan::trace`]), and the core goes the same way through what the switch should hold ([`answer`]). The
//! core looks at the flows that this packet meets and at no others.

pub mod frame;
mod origin;
pub mod trace;
mod verdict;
mod words;

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use xenflow_flow_app::{Hints, PortNo};
use xenflow_proto::identity::NameError;
use xenflow_proto::types::MacParseError;
use xenflow_proto::{MacAddr, Name};

use self::frame::{Frame, FrameError, Protocol};
use self::trace::{Bridge, Trace, TraceError};
use crate::core::Core;

pub use self::origin::plan;

/// Bytes of the name of a port.
const MAX_PORT: usize = 63;

/// A packet as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Asked {
    /// An access port, a vif, or a port of the switch; without it a frame comes by the uplink.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// All of it, in hexadecimal digits. What follows is for a packet that is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
    /// Where it goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<IpAddr>,
    /// Where it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<IpAddr>,
    /// The router that gets it first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router: Option<String>,
    /// Its destination MAC address, where that is no router's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst_mac: Option<String>,
    /// `udp`, `tcp` or `icmp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Source port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// TTL or hop limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
}

/// A packet that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Where it comes in: a name, or the uplink.
    pub from: Option<String>,
    /// What it is.
    pub what: What,
}

/// See [`Wanted::what`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// These bytes.
    Frame(Box<Frame>),
    /// One that is to be made.
    Made(Made),
}

/// A packet that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    dst: IpAddr,
    src: Option<IpAddr>,
    router: Option<Name>,
    dst_mac: Option<MacAddr>,
    protocol: Protocol,
    ports: (u16, u16),
    ttl: u8,
}

/// A packet that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// Its bytes.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The router's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The MAC address.
    #[error(transparent)]
    Mac(#[from] MacParseError),
    /// Neither a frame nor a destination.
    #[error("a packet needs a frame or a destination address, not both")]
    What,
    /// Both a frame and what one is made of.
    #[error("a frame is taken as it is: no {0} goes with it")]
    Both(&'static str),
    /// Nobody knows where it comes in.
    #[error("a packet that is made needs a port that it comes in by")]
    From,
    /// No port has such a name.
    #[error("\"{0}\" is no name of a port: 1 to {MAX_PORT} characters without blanks")]
    Port(String),
    /// None of those that are made.
    #[error("\"{0}\" is not a protocol: udp, tcp or icmp")]
    Protocol(String),
    /// ICMP has no ports.
    #[error("icmp has no ports")]
    IcmpPorts,
    /// IPv4 and IPv6.
    #[error("source {src} and destination {dst} are of different families")]
    Families {
        /// Source.
        src: IpAddr,
        /// Destination.
        dst: IpAddr,
    },
}

impl Asked {
    /// Understands it.
    ///
    /// # Errors
    /// [`PacketError`].
    pub fn parse(self) -> Result<Wanted, PacketError> {
        let Self { from, frame, dst, src, router, dst_mac, proto, sport, dport, ttl } = self;
        if let Some(name) = &from
            && (name.is_empty()
                || name.len() > MAX_PORT
                || name.contains(|c: char| c.is_whitespace() || c.is_control()))
        {
            return Err(PacketError::Port(name.chars().take(MAX_PORT).collect()));
        }
        let what = match (frame, dst) {
            (Some(frame), None) => {
                let rest = [
                    ("source address", src.is_some()),
                    ("router", router.is_some()),
                    ("MAC address", dst_mac.is_some()),
                    ("protocol", proto.is_some()),
                    ("port number", sport.is_some() || dport.is_some()),
                    ("TTL", ttl.is_some()),
                ];
                match rest.iter().find(|(_, is_there)| *is_there) {
                    Some((what, _)) => return Err(PacketError::Both(what)),
                    None => What::Frame(Box::new(Frame::parse(&frame)?)),
                }
            }
            (None, Some(dst)) => {
                if from.is_none() {
                    return Err(PacketError::From);
                }
                if let Some(src) = src.filter(|src| src.is_ipv4() != dst.is_ipv4()) {
                    return Err(PacketError::Families { src, dst });
                }
                let protocol = match proto.as_deref() {
                    None | Some("udp") => Protocol::Udp,
                    Some("tcp") => Protocol::Tcp,
                    Some("icmp") => Protocol::Icmp,
                    Some(other) => return Err(PacketError::Protocol(other.chars().take(40).collect())),
                };
                if protocol == Protocol::Icmp && (sport.is_some() || dport.is_some()) {
                    return Err(PacketError::IcmpPorts);
                }
                What::Made(Made {
                    dst,
                    src,
                    router: router.map(|name| name.parse()).transpose()?,
                    dst_mac: dst_mac.map(|mac| mac.parse()).transpose()?,
                    protocol,
                    // Of nobody's: the ephemeral range, and discard.
                    ports: (sport.unwrap_or(49_152), dport.unwrap_or(9)),
                    ttl: ttl.unwrap_or(64),
                })
            }
            _ => return Err(PacketError::What),
        };
        Ok(Wanted { from, what })
    }
}

/// A frame at a port.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    in_port: PortNo,
    frame: Frame,
    /// What was taken for granted.
    notes: Vec<String>,
    bridge: Option<Arc<Bridge>>,
}

/// A frame with the switch's word on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Traced {
    plan: Plan,
    trace: Result<Trace, String>,
}

impl Plan {
    /// Says which switch.
    pub fn aim(&mut self, bridge: &Arc<Bridge>) {
        self.bridge = Some(Arc::clone(bridge));
    }

    /// Asks the switch.
    pub async fn trace(self) -> Traced {
        let trace = match &self.bridge {
            Some(bridge) => bridge.trace(self.in_port, self.frame.packet()).await,
            None => Err(TraceError::Nowhere),
        };
        Traced { plan: self, trace: trace.map_err(|error| error.to_string()) }
    }
}

/// Both views side by side.
#[must_use]
pub fn answer(core: &Core, Traced { plan, trace }: &Traced) -> Value {
    let hints = trace.as_ref().map(Trace::hints).unwrap_or_else(|_| Hints::default());
    let explained = core.app().explain(plan.in_port, plan.frame.packet(), &hints);
    verdict::value(core, plan, &explained, trace.as_ref().map_err(String::as_str))
}

#[cfg(test)]
mod tests;
