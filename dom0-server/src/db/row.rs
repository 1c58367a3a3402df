//! Typed rows: each row becomes one of these once, or an error that names the value and the rule.
//!
//! Owns the rules of one row and of its references. Rules between rows of the same kind are in `desired`.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU16;

use ovsdb::{ColumnError, Row, Uuid};
use xenflow_flow_app::queue::MAX_CLASS_FLOWS;
use xenflow_proto::identity::NameError;
use xenflow_proto::types::{MacParseError, VlanRangeError};
use xenflow_proto::{MacAddr, Name, VlanId, control};

use super::contract::{Contract, Rate};
use super::policy::{self, PuntClass, RouterPolicy};
use super::{Rows, table};

/// Why a row is left out of the desired state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// A column is missing or of another type: the database has another schema.
    #[error(transparent)]
    Column(#[from] ColumnError),
    /// The name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The VLAN is out of range.
    #[error(transparent)]
    Vlan(#[from] VlanRangeError),
    /// The MAC address is none.
    #[error(transparent)]
    Mac(#[from] MacParseError),
    /// The MAC address cannot be an interface's.
    #[error("MAC address {mac} cannot be used: {rule}")]
    MacUnusable {
        /// The address.
        mac: MacAddr,
        /// The rule it breaks.
        rule: MacRule,
    },
    /// Upper case: the unique index of the database would take it for another address.
    #[error("MAC address \"{0}\" is not in lower case")]
    MacCase(String),
    /// The number is out of range.
    #[error("{what} {value} is out of range: 1 to {max}")]
    Number {
        /// Of what: `router id` or `vif number`.
        what: &'static str,
        /// The number.
        value: i64,
        /// Greatest allowed.
        max: u16,
    },
    /// The fast path's policy is none of those known.
    #[error("fastpath \"{0}\" is none of auto, always, never")]
    FastPath(String),
    /// The limit of routes is out of range.
    #[error("max_routes {value} is out of range: 1 to {}", policy::MAX_ROUTES)]
    MaxRoutes {
        /// What was asked for.
        value: String,
    },
    /// There is no such class of punted packets.
    #[error("punt rate of \"{0}\": a class is one of routing, resolution, host, exception, transit")]
    PuntClass(String),
    /// The rate of a class is out of range.
    #[error("punt rate of {} {value} is out of range: 1 to {} packets/s", .class.as_str(), policy::MAX_RATE)]
    PuntRate {
        /// The class.
        class: PuntClass,
        /// What was asked for.
        value: String,
    },
    /// No class and rate.
    #[error("punt rate \"{0}\" is not CLASS=PPS or CLASS=default")]
    PuntSyntax(String),
    /// A class twice.
    #[error("punt rate of {} is given twice", .0.as_str())]
    PuntTwice(PuntClass),
    /// A rate is none, or out of range.
    #[error("rate \"{0}\" is not a whole number of bit, kbit, mbit, gbit or tbit from 8kbit to 1tbit")]
    Rate(String),
    /// More is promised than there is at most.
    #[error("max {max} is below min {min}")]
    Contract {
        /// What is promised.
        min: Rate,
        /// The most.
        max: Rate,
    },
    /// A part of what a class takes in is out of its range.
    #[error("{what} {value} is out of range: {min} to {max}")]
    Range {
        /// `priority`, `DSCP`, `protocol` or `port`.
        what: &'static str,
        /// What was asked for.
        value: String,
        /// Least.
        min: i64,
        /// Greatest.
        max: i64,
    },
    /// The IP protocol is none of those known.
    #[error(
        "protocol \"{0}\" is neither a number from 0 to 255 nor one of tcp, udp, sctp, icmp, gre, esp, icmpv6, ospf"
    )]
    Protocol(String),
    /// Ports without a protocol that has any.
    #[error("a class with ports needs protocol tcp, udp or sctp")]
    PortsWithoutProtocol,
    /// More ports than a class takes.
    #[error("{0} ports are too many: at most 64")]
    TooManyPorts(usize),
    /// More combinations of code points and ports than a class takes.
    #[error("{0} combinations of a code point, a port and its end are too many: at most {MAX_CLASS_FLOWS}")]
    TooWide(usize),
    /// No key for `external_ids`.
    #[error(
        "\"{0}\" is not KEY=VALUE, or KEY to take it away: a key is 1 to 63 printable characters without blanks and ="
    )]
    ExternalId(String),
    /// The kind is neither `data` nor `control`.
    #[error("kind \"{0}\" is neither data nor control")]
    VifKind(String),
    /// A data vif needs a segment.
    #[error("a data vif needs a segment")]
    NoSegment,
    /// A control vif has none.
    #[error("a control vif is on no segment, this one is on {0}")]
    ControlSegment(Name),
    /// A reference to a row that is not there, or is invalid itself.
    #[error("refers to a {kind} that is not there or not valid")]
    Dangling {
        /// Of which kind.
        kind: Kind,
    },
    /// The segment belongs to another network than the router.
    #[error("segment {segment} is of network {segment_network}, router {router} of network {router_network}")]
    OtherNetwork {
        /// The segment.
        segment: Name,
        /// Its network.
        segment_network: Name,
        /// The router.
        router: Name,
        /// Its network.
        router_network: Name,
    },
    /// Another row has the same value, which must be unique.
    #[error("{what} {value} is taken by {kind} {by}: choose another")]
    Taken {
        /// Which value: `name`, `vlan`, `MAC address`, `control vif of router`…
        what: &'static str,
        /// The value.
        value: String,
        /// Kind of the row that has it.
        kind: Kind,
        /// Name of the row that has it.
        by: Name,
    },
    /// The state of a session is none of those known.
    #[error("state \"{0}\" is none of down, syncing, up")]
    State(String),
    /// The scope of counters is none of those known.
    #[error("scope \"{0}\" is none of router, vif, access, uplink, segment, network, node")]
    Scope(String),
    /// The name of an uplink's port is no interface name.
    #[error("\"{0}\" is not a port name: 1 to 63 printable characters without blanks and slashes")]
    Port(String),
    /// A word is none of those of its column.
    #[error("{what} \"{value}\" is not known")]
    Word {
        /// The column.
        what: &'static str,
        /// What stands there.
        value: String,
    },
    /// What a port carries is said of uplinks only.
    #[error("capacity of \"{0}\": the node has no such uplink")]
    CapacityOfNoUplink(String),
}

/// What a MAC address must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MacRule {
    /// A group address is never a source.
    Multicast,
    /// All zero.
    Zero,
    /// The host's on the control network.
    Host,
}

impl fmt::Display for MacRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Multicast => "it is a multicast address",
            Self::Zero => "it is all zero",
            Self::Host => "it is the host's on the control network",
        })
    }
}

/// Kinds of named things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A host.
    Node,
    /// A virtual network.
    Network,
    /// A virtual link.
    Segment,
    /// A virtual router.
    Router,
    /// A router's interface.
    Vif,
    /// A port of an end host.
    Access,
    /// A part of a network's traffic.
    Class,
}

impl Kind {
    /// Its table.
    #[must_use]
    pub const fn table(self) -> &'static str {
        match self {
            Self::Node => table::NODE,
            Self::Network => table::NETWORK,
            Self::Segment => table::SEGMENT,
            Self::Router => table::ROUTER,
            Self::Vif => table::VIF,
            Self::Access => table::ACCESS,
            Self::Class => table::TRAFFIC_CLASS,
        }
    }
}

impl Kind {
    /// The word of the command line.
    #[must_use]
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Network => "network",
            Self::Segment => "segment",
            Self::Router => "router",
            Self::Vif => "vif",
            Self::Access => "access",
            Self::Class => "class",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Network => "network",
            Self::Segment => "segment",
            Self::Router => "router",
            Self::Vif => "vif",
            Self::Access => "access port",
            Self::Class => "class",
        })
    }
}

/// Number of a router in the flow tables: 1 to 65535, the same on every host, never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouterId(NonZeroU16);

/// Number of a vif within its router: 1 to 4095, the same on every host, never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VifNumber(NonZeroU16);

macro_rules! number {
    ($ty:ident, $what:literal, $max:literal) => {
        impl $ty {
            /// Greatest.
            pub const MAX: u16 = $max;
            const LIMIT: NonZeroU16 = match NonZeroU16::new($max) {
                Some(limit) => limit,
                None => NonZeroU16::MAX,
            };

            /// The number.
            #[must_use]
            pub const fn get(self) -> u16 {
                self.0.get()
            }
        }

        impl TryFrom<i64> for $ty {
            type Error = RowError;

            fn try_from(value: i64) -> Result<Self, RowError> {
                let number = u16::try_from(value).ok().and_then(NonZeroU16::new);
                number.filter(|n| *n <= Self::LIMIT).map(Self).ok_or(RowError::Number {
                    what: $what,
                    value,
                    max: $max,
                })
            }
        }

        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(RouterId, "router id", 65535);
number!(VifNumber, "vif number", 4095);

/// A virtual network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its row.
    pub uuid: Uuid,
    /// Unique among networks.
    pub name: Name,
    /// What it is promised of every uplink.
    pub contract: Contract,
}

/// A virtual link: one VLAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its row.
    pub uuid: Uuid,
    /// Unique among segments.
    pub name: Name,
    /// The network it belongs to.
    pub network: Name,
    /// Its tag, unique among segments.
    pub vlan: VlanId,
}

/// A virtual router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Router {
    /// Its row.
    pub uuid: Uuid,
    /// Unique among routers; the name in its certificate.
    pub name: Name,
    /// The network it belongs to.
    pub network: Name,
    /// Its number in the flow tables.
    pub id: RouterId,
    /// How it is treated.
    pub policy: RouterPolicy,
}

/// Where a vif is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// On a segment of the router's network.
    Segment(Name),
    /// On the control network.
    Control,
}

/// A router's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vif {
    /// Its row.
    pub uuid: Uuid,
    /// Unique among vifs and access ports: `external_ids:iface-id` of its OVS interface.
    pub name: Name,
    /// The router it belongs to.
    pub router: Name,
    /// Its number within the router.
    pub number: VifNumber,
    /// Unique; unicast.
    pub mac: MacAddr,
    /// Where it is.
    pub attachment: Attachment,
}

/// A port of an end host or ordinary VM: untagged, on one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Its row.
    pub uuid: Uuid,
    /// Unique among vifs and access ports: `external_ids:iface-id` of its OVS interface.
    pub name: Name,
    /// The segment it is on.
    pub segment: Name,
    /// The only source addresses its host may use, never a vif's; empty: any that is no vif's.
    pub macs: BTreeSet<MacAddr>,
}

/// Checks that an interface of a guest may have this address.
pub fn usable_mac(mac: MacAddr) -> Result<MacAddr, RowError> {
    let rule = match mac {
        _ if mac.is_multicast() => MacRule::Multicast,
        MacAddr::ZERO => MacRule::Zero,
        control::HOST_MAC => MacRule::Host,
        _ => return Ok(mac),
    };
    Err(RowError::MacUnusable { mac, rule })
}

/// Reads the address of an interface of a guest.
///
/// # Errors
/// [`RowError::Mac`] or [`RowError::MacUnusable`].
pub fn mac(text: &str) -> Result<MacAddr, RowError> {
    usable_mac(text.parse()?)
}

/// Checks the name of an uplink's port: any interface name that Linux takes (`dev_valid_name`), in ASCII.
pub fn port_name(text: &str) -> Result<&str, RowError> {
    let usable = text.bytes().all(|b| b.is_ascii_graphic() && b != b'/') && !matches!(text, "" | "." | "..");
    if usable && text.len() <= Name::MAX {
        Ok(text)
    } else {
        Err(RowError::Port(text.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()))
    }
}

fn stored_mac(text: &str) -> Result<MacAddr, RowError> {
    let mac = mac(text)?;
    if mac.to_string() == text { Ok(mac) } else { Err(RowError::MacCase(text.to_owned())) }
}

pub(super) fn name_in(rows: &Rows, kind: Kind, uuid: Uuid) -> Result<Name, RowError> {
    let name = rows.name_of(kind.table(), uuid).and_then(|name| name.parse().ok());
    name.ok_or(RowError::Dangling { kind })
}

impl Network {
    /// Reads a row of `Network`.
    pub fn parse(uuid: Uuid, row: &Row) -> Result<Self, RowError> {
        Ok(Self { uuid, name: row.str("name")?.parse()?, contract: Contract::parse(row)? })
    }
}

impl Segment {
    /// Reads a row of `Segment`.
    pub fn parse(rows: &Rows, uuid: Uuid, row: &Row) -> Result<Self, RowError> {
        let name = row.str("name")?.parse()?;
        let network = name_in(rows, Kind::Network, row.uuid("network")?)?;
        Ok(Self { uuid, name, network, vlan: VlanId::try_from(row.int("vlan")?)? })
    }
}

impl Router {
    /// Reads a row of `Router`.
    pub fn parse(rows: &Rows, uuid: Uuid, row: &Row) -> Result<Self, RowError> {
        let name = row.str("name")?.parse()?;
        let network = name_in(rows, Kind::Network, row.uuid("network")?)?;
        let id = RouterId::try_from(row.int("id")?)?;
        Ok(Self { uuid, name, network, id, policy: RouterPolicy::parse(row)? })
    }
}

impl Vif {
    /// Reads a row of `Vif`. That segment and router are of one network is checked in `desired`.
    pub fn parse(rows: &Rows, uuid: Uuid, row: &Row) -> Result<Self, RowError> {
        let segment = row.opt_uuid("segment")?.map(|s| name_in(rows, Kind::Segment, s)).transpose()?;
        let attachment = match (row.str("kind")?, segment) {
            ("data", Some(segment)) => Attachment::Segment(segment),
            ("data", None) => return Err(RowError::NoSegment),
            ("control", None) => Attachment::Control,
            ("control", Some(segment)) => return Err(RowError::ControlSegment(segment)),
            (other, _) => return Err(RowError::VifKind(other.chars().take(40).collect())),
        };
        Ok(Self {
            uuid,
            name: row.str("name")?.parse()?,
            router: name_in(rows, Kind::Router, row.uuid("router")?)?,
            number: VifNumber::try_from(row.int("number")?)?,
            mac: stored_mac(row.str("mac")?)?,
            attachment,
        })
    }
}

impl Access {
    /// Reads a row of `Access`.
    pub fn parse(rows: &Rows, uuid: Uuid, row: &Row) -> Result<Self, RowError> {
        Ok(Self {
            uuid,
            name: row.str("name")?.parse()?,
            segment: name_in(rows, Kind::Segment, row.uuid("segment")?)?,
            macs: row.set_str("macs")?.into_iter().map(stored_mac).collect::<Result<_, _>>()?,
        })
    }
}
