//! Classes: parts of a network's traffic with contracts of their own, rows of `Traffic_Class`.

use std::collections::BTreeSet;

use ovsdb::{Atom, Datum, Row, Uuid};
use xenflow_flow_app::queue::{MAX_CLASS_FLOWS, class_flows};
use xenflow_proto::Name;

use super::Rows;
use super::contract::Contract;
use super::policy::shown;
use super::row::{Kind, RowError, name_in};

/// Most ports of a class; the schema's limit.
const MAX_PORTS: usize = 64;
/// IP protocols with ports, by name and number (RFC 768, 9293, 9260).
const WITH_PORTS: [(&str, u8); 3] = [("tcp", 6), ("udp", 17), ("sctp", 132)];
/// Others that have a name here.
const OTHERS: [(&str, u8); 5] = [("icmp", 1), ("gre", 47), ("esp", 50), ("icmpv6", 58), ("ospf", 89)];

/// A part of a network's traffic. A packet is in it if it meets all of `dscp`, `protocol` and `ports`; what is empty is met
/// by every packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficClass {
    /// Its row.
    pub uuid: Uuid,
    /// Unique within the network.
    pub name: Name,
    /// The network.
    pub network: Name,
    /// Unique within the network, 1 to 1000: the greater one wins.
    pub priority: u16,
    /// What it takes in.
    pub matching: Matching,
    /// Within its network's share.
    pub contract: Contract,
}

/// What a class takes in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matching {
    /// RFC 2474 code points.
    pub dscp: BTreeSet<u8>,
    /// The IP protocol.
    pub protocol: Option<u8>,
    /// TCP, UDP or SCTP ports, at either end; only with such a protocol.
    pub ports: BTreeSet<u16>,
}

fn within<T: TryFrom<i64>>(what: &'static str, value: i64, min: i64, max: i64) -> Result<T, RowError> {
    let inside = (min..=max).contains(&value).then_some(value).and_then(|value| T::try_from(value).ok());
    inside.ok_or_else(|| RowError::Range { what, value: value.to_string(), min, max })
}

/// The number of an IP protocol, by its name or number.
///
/// # Errors
/// [`RowError::Protocol`] names the value and the rule.
pub fn protocol(text: &str) -> Result<u8, RowError> {
    let known = WITH_PORTS.iter().chain(&OTHERS).find(|(name, _)| name.eq_ignore_ascii_case(text));
    match known {
        Some((_, number)) => Ok(*number),
        None => text.parse().map_err(|_| RowError::Protocol(shown(text))),
    }
}

/// The name of an IP protocol, or its number.
#[must_use]
pub fn protocol_name(number: u8) -> String {
    let known = WITH_PORTS.iter().chain(&OTHERS).find(|(_, known)| *known == number);
    known.map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}

/// A class's priority.
///
/// # Errors
/// [`RowError::Range`].
pub fn priority(value: i64) -> Result<u16, RowError> {
    within("priority", value, 1, 1000)
}

impl Matching {
    /// Checks what was asked for.
    ///
    /// # Errors
    /// [`RowError`] names the value and the rule.
    pub fn new(
        dscp: impl IntoIterator<Item = i64>,
        protocol: Option<u8>,
        ports: impl IntoIterator<Item = i64>,
    ) -> Result<Self, RowError> {
        let dscp = dscp.into_iter().map(|value| within("DSCP", value, 0, 63));
        let dscp = dscp.collect::<Result<BTreeSet<u8>, _>>()?;
        let ports = ports.into_iter().map(|value| within("port", value, 1, 65535));
        let ports = ports.collect::<Result<BTreeSet<u16>, _>>()?;
        if !ports.is_empty() && !WITH_PORTS.iter().any(|(_, number)| protocol == Some(*number)) {
            return Err(RowError::PortsWithoutProtocol);
        }
        if ports.len() > MAX_PORTS {
            return Err(RowError::TooManyPorts(ports.len()));
        }
        let flows = class_flows(dscp.len(), ports.len());
        if flows > MAX_CLASS_FLOWS {
            return Err(RowError::TooWide(flows));
        }
        Ok(Self { dscp, protocol, ports })
    }

    /// Reads the columns of a row.
    ///
    /// # Errors
    /// [`RowError`] names the value and the rule.
    pub fn parse(row: &Row) -> Result<Self, RowError> {
        let number = row.opt_int("protocol")?.map(|value| within("protocol", value, 0, 255)).transpose()?;
        Self::new(row.set_int("dscp")?, number, row.set_int("ports")?)
    }

    /// The columns that say this.
    #[must_use]
    pub fn columns(&self) -> [(&'static str, Datum); 3] {
        let numbers = |values: &mut dyn Iterator<Item = i64>| Datum::set(values.map(Atom::from));
        [
            ("dscp", numbers(&mut self.dscp.iter().map(|value| i64::from(*value)))),
            ("protocol", numbers(&mut self.protocol.iter().map(|value| i64::from(*value)))),
            ("ports", numbers(&mut self.ports.iter().map(|value| i64::from(*value)))),
        ]
    }
}

/// A change of what a class takes in; what it leaves out stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MatchingChange {
    dscp: Option<BTreeSet<i64>>,
    protocol: Option<Option<u8>>,
    ports: Option<BTreeSet<i64>>,
}

impl MatchingChange {
    /// Reads the words of the command line: numbers, a protocol, numbers; or `none`.
    ///
    /// # Errors
    /// [`RowError`] names the value and the rule.
    pub fn parse(dscp: &[String], protocol_: Option<&str>, ports: &[String]) -> Result<Self, RowError> {
        let numbers = |what, min, max, texts: &[String]| match texts {
            [] => Ok(None),
            [none] if none == "none" => Ok(Some(BTreeSet::new())),
            texts => {
                let refuse = |text: &str| RowError::Range { what, value: shown(text), min, max };
                let number = |text: &String| text.parse().map_err(|_| refuse(text));
                texts.iter().map(number).collect::<Result<_, _>>().map(Some)
            }
        };
        let protocol = match protocol_ {
            None => None,
            Some("none") => Some(None),
            Some(text) => Some(Some(protocol(text)?)),
        };
        Ok(Self { dscp: numbers("DSCP", 0, 63, dscp)?, protocol, ports: numbers("port", 1, 65535, ports)? })
    }

    /// It changes nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.dscp.is_none() && self.protocol.is_none() && self.ports.is_none()
    }

    /// What is taken in after the change.
    ///
    /// # Errors
    /// See [`Matching::new`].
    pub fn applied(&self, to: &Matching) -> Result<Matching, RowError> {
        let dscp = self.dscp.clone().unwrap_or_else(|| to.dscp.iter().map(|n| i64::from(*n)).collect());
        let ports = self.ports.clone().unwrap_or_else(|| to.ports.iter().map(|n| i64::from(*n)).collect());
        Matching::new(dscp, self.protocol.unwrap_or(to.protocol), ports)
    }
}

impl TrafficClass {
    /// Reads a row of `Traffic_Class`.
    ///
    /// # Errors
    /// [`RowError`] names the value and the rule.
    pub fn parse(rows: &Rows, uuid: Uuid, row: &Row) -> Result<Self, RowError> {
        Ok(Self {
            uuid,
            name: row.str("name")?.parse()?,
            network: name_in(rows, Kind::Network, row.uuid("network")?)?,
            priority: priority(row.int("priority")?)?,
            matching: Matching::parse(row)?,
            contract: Contract::parse(row)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_takes_in_what_can_be_matched() {
        let refused = |matching: Result<Matching, RowError>| matching.unwrap_err().to_string();
        assert_eq!(refused(Matching::new([64], None, [])), "DSCP 64 is out of range: 0 to 63");
        assert_eq!(refused(Matching::new([], Some(6), [0])), "port 0 is out of range: 1 to 65535");
        let without = "a class with ports needs protocol tcp, udp or sctp";
        assert_eq!(refused(Matching::new([], None, [80])), without);
        assert_eq!(refused(Matching::new([], Some(1), [80])), without);
        assert_eq!(refused(Matching::new([], Some(17), 1..=65)), "65 ports are too many: at most 64");
        assert!(Matching::new([1, 2], Some(17), 1..=64).is_ok() && Matching::new(0..64, None, []).is_ok());
        let wide = "258 combinations of a code point, a port and its end are too many: at most 256";
        assert_eq!(refused(Matching::new([1, 2, 3], Some(17), 1..=43)), wide);
        let voice = Matching::new([46], Some(17), [5060]).unwrap();
        assert_eq!(voice.columns()[1].1, Datum::set([Atom::from(17)]));
    }

    #[test]
    fn protocols_have_names_and_numbers() {
        assert_eq!((protocol("TCP").unwrap(), protocol("132").unwrap(), protocol("0").unwrap()), (6, 132, 0));
        assert_eq!((protocol_name(89), protocol_name(200)), ("ospf".to_owned(), "200".to_owned()));
        assert_eq!(
            protocol("tpc").unwrap_err().to_string(),
            "protocol \"tpc\" is neither a number from 0 to 255 nor one of tcp, udp, sctp, icmp, gre, esp, icmpv6, ospf"
        );
    }
}
