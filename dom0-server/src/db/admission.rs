//! Admission: no more is promised than there is.
//!
//! Every uplink carries what all networks are promised, for each gets its minimum of every uplink; a network's classes share
//! what the network has. Owns these rules, and what of the database they depend on. What was broken before, because a port
//! came up with less or an earlier program wrote it, is no reason to refuse a change that makes it no worse. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use ovsdb::{Operation, Row, Until};
use xenflow_proto::Name;

use super::contract::{Contract, Rate, bits};
use super::{Desired, NodeStatus, Rows, capacity, table};

/// A promise that cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// More is promised than an uplink carries.
    #[error(
        "networks are promised {} in all, but uplink {port} of node {node} carries {carries} ({from}): {} too much; promise \
         less, or say what it carries if that is not so ('xenflow uplink set {node} {port} --capacity RATE')",
        bits(*.sum), bits(.sum - .carries.bps())
    )]
    Uplink {
        /// The node.
        node: Name,
        /// Its uplink.
        port: String,
        /// What it carries.
        carries: Rate,
        /// Who says so.
        from: Source,
        /// What is promised, in bit/s.
        sum: u64,
    },
    /// A class is promised something, its network nothing.
    #[error(
        "class {class} of network {network} is promised {min}, but the network nothing: 'xenflow sla set {network} --min RATE' \
         comes first"
    )]
    ClassAlone {
        /// The network.
        network: Name,
        /// The class.
        class: Name,
        /// What it is promised.
        min: Rate,
    },
    /// The classes of a network are promised more than the network is.
    #[error(
        "classes of network {network} are promised {} in all, but the network {min}: {} too much",
        bits(*.sum), bits(.sum - .min.bps())
    )]
    ClassMinima {
        /// The network.
        network: Name,
        /// What it is promised.
        min: Rate,
        /// What its classes are, in bit/s.
        sum: u64,
    },
    /// A class may have more than its network may.
    #[error(
        "class {class} of network {network} gets {max} at most, but the network {of}: {} too much",
        bits(.max.bps() - .of.bps())
    )]
    ClassMax {
        /// The network.
        network: Name,
        /// The class.
        class: Name,
        /// What it gets at most.
        max: Rate,
        /// What its network gets at most.
        of: Rate,
    },
}

impl AdmissionError {
    /// By how much, in bit/s.
    fn by(&self) -> u64 {
        match self {
            Self::Uplink { carries, sum, .. } => sum - carries.bps(),
            Self::ClassAlone { min, .. } => min.bps(),
            Self::ClassMinima { min, sum, .. } => sum - min.bps(),
            Self::ClassMax { max, of, .. } => max.bps() - of.bps(),
        }
    }

    /// Whether it is of the same things.
    fn is_of(&self, other: &Self) -> bool {
        let place = |error: &Self| match error {
            Self::Uplink { node, port, .. } => (0, node.clone(), port.clone()),
            Self::ClassMinima { network, .. } => (1, network.clone(), String::new()),
            Self::ClassAlone { network, class, .. } => (2, network.clone(), class.to_string()),
            Self::ClassMax { network, class, .. } => (3, network.clone(), class.to_string()),
        };
        place(self) == place(other)
    }
}

/// Who says what an uplink carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// An operator.
    Set,
    /// Its node, by the port's speed.
    Reported,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Set => "set",
            Self::Reported => "as the node reports",
        })
    }
}

/// What is promised, and what there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Contracts of networks that say something.
    networks: BTreeMap<Name, Contract>,
    /// The same of classes, by network and name.
    classes: BTreeMap<(Name, Name), Contract>,
    /// What uplinks carry, by node and port: of those of which it is known.
    uplinks: BTreeMap<(Name, String), (Rate, Source)>,
}

impl Ledger {
    /// Of the desired state, and what nodes report.
    #[must_use]
    pub fn of(desired: &Desired, nodes: &[NodeStatus]) -> Self {
        let reported = |node: &Name, port: &str| {
            nodes.iter().find(|status| status.node == *node)?.uplink_capacity.get(port).copied()
        };
        let ports =
            desired.uplinks.iter().flat_map(|(node, ports)| ports.iter().map(move |port| (node, port)));
        let uplinks = ports.filter_map(|(node, port)| {
            let set = desired.capacity_of(node, port).map(|rate| (rate, Source::Set));
            let carries = set.or_else(|| Some((reported(node, port)?, Source::Reported)))?;
            Some(((node.clone(), port.clone()), carries))
        });
        let says = |contract: &Contract| *contract != Contract::default();
        let networks = desired.networks.values().filter(|network| says(&network.contract));
        let classes = desired.classes.iter().filter(|(_, class)| says(&class.contract));
        Self {
            networks: networks.map(|network| (network.name.clone(), network.contract)).collect(),
            classes: classes.map(|(key, class)| (key.clone(), class.contract)).collect(),
            uplinks: uplinks.collect(),
        }
    }

    /// All promises that cannot be kept.
    #[must_use]
    pub fn broken(&self) -> Vec<AdmissionError> {
        let mut broken = Vec::new();
        let of = |network: &Name| self.networks.get(network).copied().unwrap_or_default();
        let mut sums: BTreeMap<&Name, u64> = BTreeMap::new();
        for ((network, class), contract) in &self.classes {
            let (network, class) = (network.clone(), class.clone());
            if let (Some(min), None) = (contract.min(), of(&network).min()) {
                let (network, class) = (network.clone(), class.clone());
                broken.push(AdmissionError::ClassAlone { network, class, min });
            }
            if let (Some(max), Some(of)) = (contract.max(), of(&network).max())
                && max > of
            {
                broken.push(AdmissionError::ClassMax { network, class, max, of });
            }
        }
        for ((network, _), contract) in &self.classes {
            *sums.entry(network).or_default() += contract.min().map_or(0, Rate::bps);
        }
        for (network, sum) in sums {
            if let Some(min) = of(network).min().filter(|min| sum > min.bps()) {
                broken.push(AdmissionError::ClassMinima { network: network.clone(), min, sum });
            }
        }
        let sum = self.networks.values().filter_map(Contract::min).map(Rate::bps).sum();
        for ((node, port), (carries, from)) in &self.uplinks {
            if sum > carries.bps() {
                let (node, port, carries, from) = (node.clone(), port.clone(), *carries, *from);
                broken.push(AdmissionError::Uplink { node, port, carries, from, sum });
            }
        }
        broken
    }

    /// Refuses what would come after this, if it breaks a promise, or one more than it is broken already.
    ///
    /// # Errors
    /// [`AdmissionError`] has the figures.
    pub fn admits(&self, after: &Self) -> Result<(), AdmissionError> {
        let before = self.broken();
        let is_worse = |error: &AdmissionError| {
            !before.iter().any(|known| known.is_of(error) && known.by() >= error.by())
        };
        after.broken().into_iter().find(is_worse).map_or(Ok(()), Err)
    }
}

/// Fails the transaction if any of what a [`Ledger`] is made of has become other than it was read.
pub(super) fn unchanged(rows: &Rows) -> Vec<Operation> {
    let read: [(&str, &[&str]); 3] = [
        (table::NETWORK, &["name", "min_bps", "max_bps"]),
        (table::TRAFFIC_CLASS, &["name", "network", "min_bps", "max_bps"]),
        (table::NODE, &["name", "uplinks", capacity::COLUMN]),
    ];
    read.into_iter()
        .map(|(table, columns)| wait(rows, table, columns))
        .chain([reports_unchanged(rows)])
        .collect()
}

/// The same, of what nodes report.
pub(super) fn reports_unchanged(rows: &Rows) -> Operation {
    wait(rows, table::NODE_STATUS, &["node", capacity::COLUMN])
}

fn wait(rows: &Rows, table: &str, columns: &[&str]) -> Operation {
    let as_is = rows.of(table).map(|(_, row)| {
        let columns = columns.iter().filter_map(|name| Some((*name, row.get(name)?.clone())));
        columns.collect::<Row>()
    });
    Operation::wait(table, columns, Until::Equal, as_is, Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Option<Rate> {
        (text != "-").then(|| text.parse().unwrap())
    }

    /// Networks and classes as `NAME MIN MAX`, a class's name with its network's before a slash; uplinks as `NODE/PORT RATE`.
    fn ledger(networks: &[&str], classes: &[&str], uplinks: &[&str]) -> Ledger {
        let contract = |line: &&str| {
            let words: Vec<_> = line.split(' ').collect();
            (words[0].to_owned(), Contract::new(rate(words[1]), rate(words[2])).unwrap())
        };
        let pair = |name: &str| {
            let (first, second) = name.split_once('/').unwrap();
            (first.parse().unwrap(), second.to_owned())
        };
        let class = |line: &&str| {
            let (name, contract) = contract(line);
            let (network, class) = pair(&name);
            ((network, class.parse().unwrap()), contract)
        };
        let uplink = |line: &&str| {
            let (name, carries) = line.split_once(' ').unwrap();
            (pair(name), (carries.parse().unwrap(), Source::Set))
        };
        let network = |line: &&str| {
            let (name, contract) = contract(line);
            (name.parse().unwrap(), contract)
        };
        Ledger {
            networks: networks.iter().map(network).collect(),
            classes: classes.iter().map(class).collect(),
            uplinks: uplinks.iter().map(uplink).collect(),
        }
    }

    #[test]
    fn every_uplink_carries_all_minima() {
        let uplinks = ["a/eth0 100mbit", "b/eth0 60mbit"];
        assert_eq!(ledger(&["red 20mbit -", "blue 40mbit 50mbit"], &[], &uplinks).broken(), []);
        let broken = ledger(&["red 20mbit -", "blue 41mbit -", "green - 1gbit"], &[], &uplinks).broken();
        let [AdmissionError::Uplink { node, carries, sum: 61_000_000, .. }] = &broken[..] else {
            panic!("{broken:?}")
        };
        assert_eq!((node.as_str(), carries.bps()), ("b", 60_000_000));
        assert_eq!(
            ledger(&["red 1tbit -", "blue 1tbit -"], &[], &[]).broken(),
            [],
            "nobody knows what there is"
        );
    }

    #[test]
    fn classes_share_what_their_network_has() {
        let said = |networks: &[&str], classes: &[&str]| {
            let broken = ledger(networks, classes, &[]).broken();
            broken.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let red = ["red 20mbit 80mbit"];
        assert_eq!(
            said(&red, &["red/voice 5mbit 80mbit", "red/video 15mbit -", "red/bulk - 10mbit"]),
            [""; 0]
        );
        assert_eq!(
            said(&red, &["red/voice 5mbit -", "red/video 16mbit -"]),
            ["classes of network red are promised 21mbit in all, but the network 20mbit: 1mbit too much"]
        );
        assert_eq!(
            said(&red, &["red/bulk - 81mbit"]),
            ["class bulk of network red gets 81mbit at most, but the network 80mbit: 1mbit too much"]
        );
        let alone = "class voice of network blue is promised 5mbit, but the network nothing: 'xenflow sla set blue --min RATE' \
                     comes first";
        assert_eq!(said(&red, &["blue/voice 5mbit -"]), [alone]);
        assert_eq!(said(&["blue - 10mbit"], &["blue/voice 5mbit -"]), [alone]);
        assert_eq!(
            said(&["blue 10mbit -"], &["blue/voice 5mbit 1gbit"]),
            [""; 0],
            "a network without a bound"
        );
    }

    #[test]
    fn what_was_broken_before_may_become_better_and_nothing_worse() {
        let now = |red: &str, blue: &str, carries: &str| {
            let uplink = format!("a/eth0 {carries}");
            ledger(&[&format!("red {red} -"), &format!("blue {blue} -")], &[], &[&uplink, "b/eth0 1gbit"])
        };
        let broken = now("60mbit", "60mbit", "100mbit");
        assert!(broken.admits(&now("60mbit", "50mbit", "100mbit")).is_ok(), "less");
        assert!(broken.admits(&now("60mbit", "60mbit", "100mbit")).is_ok(), "the same");
        assert!(broken.admits(&now("60mbit", "60mbit", "110mbit")).is_ok(), "more of it");
        assert!(broken.admits(&now("60mbit", "61mbit", "100mbit")).is_err());
        assert!(broken.admits(&now("60mbit", "60mbit", "99mbit")).is_err());
        assert!(broken.admits(&now("60mbit", "950mbit", "950mbit")).is_err(), "another uplink");
        let well = now("10mbit", "20mbit", "30mbit");
        assert!(well.admits(&now("10mbit", "20mbit", "29mbit")).is_err());
    }
}
