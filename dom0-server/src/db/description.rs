//! Descriptions: a topology in one TOML file, parsed once into the rows it asks for.
//!
//! Owns the file's words and the rules of single values. What the rows mean beside others is the business of
//! [`super::apply`].

use std::collections::{BTreeMap, BTreeSet};

use ovsdb::{Atom, Datum};
use serde::Deserialize;
use xenflow_proto::{Name, VlanId};

use super::RouterPolicy;
use super::capacity::{self, Capacities};
use super::class::{self, Matching};
use super::contract::{Contract, Rate};
use super::policy::PolicyChange;
use super::row::{Kind, RowError, mac, port_name};

/// Longest description, in bytes.
pub const MAX_BYTES: usize = 16 << 20;

/// Why a file is no description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptionError {
    /// It is too long.
    #[error("{0} bytes are too many: at most {MAX_BYTES}")]
    Long(usize),
    /// It is not the TOML it should be; the message has line and key.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// A value breaks a rule.
    #[error("{path}: {source}")]
    Value {
        /// Where, as `networks.red.segments.core`.
        path: String,
        /// The value and the rule.
        source: RowError,
    },
    /// A name stands in two places, but is unique in the whole system.
    #[error("{path}: the name of {kind} {name} is given twice")]
    Twice {
        /// The second place.
        path: String,
        /// Of which kind.
        kind: Kind,
        /// The name.
        name: Name,
    },
}

/// A topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Whose rows these are.
    pub owner: Name,
    /// What there is to be, referred to before it refers: nodes, networks, segments, routers, vifs, access ports, classes.
    pub wanted: Vec<Wanted>,
}

/// One row that is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its table.
    pub kind: Kind,
    /// The network within which its name is unique; none: it is so in the whole system.
    pub scope: Option<Name>,
    /// Its name.
    pub name: Name,
    /// What cannot be changed later, and then what can.
    pub fixed: Vec<(&'static str, Column)>,
    /// See `fixed`.
    pub open: Vec<(&'static str, Column)>,
}

/// What a column is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Column {
    /// This.
    Is(Datum),
    /// A reference to the thing of that kind and name.
    To(Kind, Name),
}

impl<T: Into<Datum>> From<T> for Column {
    fn from(datum: T) -> Self {
        Self::Is(datum.into())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    owner: String,
    #[serde(default)]
    nodes: BTreeMap<String, NodeText>,
    #[serde(default)]
    networks: BTreeMap<String, NetworkText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeText {
    #[serde(default)]
    uplinks: Vec<String>,
    #[serde(default)]
    capacity: BTreeMap<String, RateText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkText {
    min: Option<RateText>,
    max: Option<RateText>,
    #[serde(default)]
    segments: BTreeMap<String, SegmentText>,
    #[serde(default)]
    routers: BTreeMap<String, RouterText>,
    #[serde(default)]
    access: BTreeMap<String, AccessText>,
    #[serde(default)]
    classes: BTreeMap<String, ClassText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SegmentText {
    vlan: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouterText {
    fastpath: Option<String>,
    max_routes: Option<i64>,
    #[serde(default)]
    punt_rate: BTreeMap<String, i64>,
    #[serde(default)]
    vifs: BTreeMap<String, VifText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VifText {
    segment: Option<String>,
    #[serde(default)]
    control: bool,
    mac: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccessText {
    segment: String,
    #[serde(default)]
    macs: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassText {
    priority: i64,
    #[serde(default)]
    dscp: Vec<i64>,
    protocol: Option<NumberText>,
    #[serde(default)]
    ports: Vec<i64>,
    min: Option<RateText>,
    max: Option<RateText>,
}

/// A number, or a word for one.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberText {
    Number(i64),
    Word(String),
}

/// bit/s, or a number with a unit.
type RateText = NumberText;

impl RateText {
    fn rate(&self) -> Result<Rate, RowError> {
        match self {
            Self::Number(number) => Rate::try_from(*number),
            Self::Word(word) => word.parse(),
        }
    }
}

impl Description {
    /// Reads a description.
    ///
    /// # Errors
    /// [`DescriptionError`] says where, and names the value and the rule.
    pub fn parse(text: &str) -> Result<Self, DescriptionError> {
        if text.len() > MAX_BYTES {
            return Err(DescriptionError::Long(text.len()));
        }
        let file: File = toml::from_str(text)?;
        let owner = at("owner", file.owner.parse().map_err(RowError::from))?;
        let mut reader = Reader::default();
        for (name, node) in file.nodes {
            let path = format!("nodes.{name}");
            at(&path, reader.node(&name, &node))?;
        }
        for (name, network) in file.networks {
            reader.whole_network(&name, network)?;
        }
        // What is referred to comes before what refers to it, whatever network it is of.
        let mut wanted = reader.wanted;
        wanted.sort_by_key(|(_, row)| ORDER.iter().position(|kind| *kind == row.kind));
        let mut known = BTreeSet::new();
        for (path, row) in &wanted {
            if !known.insert((row.kind, &row.scope, &row.name)) {
                let (path, kind, name) = (path.clone(), row.kind, row.name.clone());
                return Err(DescriptionError::Twice { path, kind, name });
            }
        }
        Ok(Self { owner, wanted: wanted.into_iter().map(|(_, row)| row).collect() })
    }
}

/// Kinds in the order in which they refer to each other.
pub(super) const ORDER: [Kind; 7] =
    [Kind::Node, Kind::Network, Kind::Segment, Kind::Router, Kind::Vif, Kind::Access, Kind::Class];

fn at<T>(path: &str, result: Result<T, RowError>) -> Result<T, DescriptionError> {
    result.map_err(|source| DescriptionError::Value { path: path.to_owned(), source })
}

fn contract(min: Option<&RateText>, max: Option<&RateText>) -> Result<Contract, RowError> {
    let rate = |text: Option<&RateText>| text.map(RateText::rate).transpose();
    Contract::new(rate(min)?, rate(max)?)
}

fn plain<const N: usize>(columns: [(&'static str, Datum); N]) -> Vec<(&'static str, Column)> {
    columns.map(|(name, datum)| (name, Column::Is(datum))).into()
}

#[derive(Default)]
struct Reader {
    wanted: Vec<(String, Wanted)>,
}

impl Reader {
    fn whole_network(&mut self, name: &str, network: NetworkText) -> Result<(), DescriptionError> {
        let NetworkText { min, max, segments, routers, access, classes } = network;
        let path = format!("networks.{name}");
        let owner = at(&path, self.network(&path, name, min.as_ref(), max.as_ref()))?;
        for (name, text) in segments {
            let path = format!("{path}.segments.{name}");
            at(&path, self.segment(&path, &owner, &name, &text))?;
        }
        for (name, text) in routers {
            let path = format!("{path}.routers.{name}");
            let router = at(&path, self.router(&path, &owner, &name, &text))?;
            for (name, text) in text.vifs {
                let path = format!("{path}.vifs.{name}");
                at(&path, self.vif(&path, &router, &name, &text))?;
            }
        }
        for (name, text) in access {
            let path = format!("{path}.access.{name}");
            at(&path, self.access(&path, &name, &text))?;
        }
        for (name, text) in classes {
            let path = format!("{path}.classes.{name}");
            at(&path, self.class(&path, &owner, &name, &text))?;
        }
        Ok(())
    }

    fn push(
        &mut self,
        path: &str,
        kind: Kind,
        name: &str,
        fixed: Vec<(&'static str, Column)>,
        open: Vec<(&'static str, Column)>,
    ) -> Result<Name, RowError> {
        let name: Name = name.parse()?;
        self.wanted.push((path.to_owned(), Wanted { kind, scope: None, name: name.clone(), fixed, open }));
        Ok(name)
    }

    fn node(&mut self, name: &str, node: &NodeText) -> Result<(), RowError> {
        let ports = node.uplinks.iter().map(|port| port_name(port)).collect::<Result<BTreeSet<_>, _>>()?;
        let rates = node.capacity.iter().map(|(port, text)| Ok((port.clone(), text.rate()?)));
        let rates = rates.collect::<Result<Capacities, RowError>>()?;
        capacity::only_of(rates.keys().map(String::as_str), &ports)?;
        let open = plain([("uplinks", Datum::set(ports)), (capacity::COLUMN, capacity::datum(&rates))]);
        self.push(&format!("nodes.{name}"), Kind::Node, name, Vec::new(), open)?;
        Ok(())
    }

    fn network(
        &mut self,
        path: &str,
        name: &str,
        min: Option<&RateText>,
        max: Option<&RateText>,
    ) -> Result<Name, RowError> {
        self.push(path, Kind::Network, name, Vec::new(), plain(contract(min, max)?.columns()))
    }

    fn segment(
        &mut self,
        path: &str,
        network: &Name,
        name: &str,
        text: &SegmentText,
    ) -> Result<(), RowError> {
        let vlan = i64::from(VlanId::try_from(text.vlan)?.get());
        let fixed = vec![("network", Column::To(Kind::Network, network.clone()))];
        self.push(path, Kind::Segment, name, fixed, plain([("vlan", vlan.into())]))?;
        Ok(())
    }

    fn router(
        &mut self,
        path: &str,
        network: &Name,
        name: &str,
        text: &RouterText,
    ) -> Result<Name, RowError> {
        let routes = text.max_routes.map(|max| max.to_string());
        let rates: Vec<_> = text.punt_rate.iter().map(|(class, rate)| format!("{class}={rate}")).collect();
        let change = PolicyChange::parse(text.fastpath.as_deref(), routes.as_deref(), &rates)?;
        let policy = change.applied(&RouterPolicy::default());
        let fixed = vec![("network", Column::To(Kind::Network, network.clone()))];
        self.push(path, Kind::Router, name, fixed, plain(policy.columns()))
    }

    fn vif(&mut self, path: &str, router: &Name, name: &str, text: &VifText) -> Result<(), RowError> {
        let (kind, segment) = match (&text.segment, text.control) {
            (Some(segment), false) => ("data", Column::To(Kind::Segment, segment.parse()?)),
            (None, true) => ("control", Column::Is(Datum::empty())),
            (None, false) => return Err(RowError::NoSegment),
            (Some(segment), true) => return Err(RowError::ControlSegment(segment.parse()?)),
        };
        let fixed = vec![("router", Column::To(Kind::Router, router.clone())), ("kind", kind.into())];
        let open = vec![("segment", segment), ("mac", mac(&text.mac)?.to_string().into())];
        self.push(path, Kind::Vif, name, fixed, open)?;
        Ok(())
    }

    fn access(&mut self, path: &str, name: &str, text: &AccessText) -> Result<(), RowError> {
        let macs = text.macs.iter().map(|text| Ok(mac(text)?.to_string()));
        let macs = macs.collect::<Result<Vec<_>, RowError>>()?;
        let segment = Column::To(Kind::Segment, text.segment.parse()?);
        let open = vec![("segment", segment), ("macs", Column::Is(Datum::set(macs)))];
        self.push(path, Kind::Access, name, Vec::new(), open)?;
        Ok(())
    }

    fn class(&mut self, path: &str, network: &Name, name: &str, text: &ClassText) -> Result<(), RowError> {
        let protocol = match &text.protocol {
            None => None,
            Some(NumberText::Word(word)) => Some(class::protocol(word)?),
            Some(NumberText::Number(number)) => Some(class::protocol(&number.to_string())?),
        };
        let matching = Matching::new(text.dscp.iter().copied(), protocol, text.ports.iter().copied())?;
        let priority = i64::from(class::priority(text.priority)?);
        let mut open = vec![("priority", Column::Is(Atom::from(priority).into()))];
        open.extend(plain(matching.columns()));
        open.extend(plain(contract(text.min.as_ref(), text.max.as_ref())?.columns()));
        let fixed = vec![("network", Column::To(Kind::Network, network.clone()))];
        self.push(path, Kind::Class, name, fixed, open)?;
        if let Some((_, row)) = self.wanted.last_mut() {
            row.scope = Some(network.clone());
        }
        Ok(())
    }
}
