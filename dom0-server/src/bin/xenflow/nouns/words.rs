//! The words of each kind of things, and the columns that they mean.

use std::collections::BTreeSet;

use clap::Args;
use dom0_server::db::class::{self, Matching, MatchingChange};
use dom0_server::db::contract::{ContractChange, rate_or_none};
use dom0_server::db::description::Column;
use dom0_server::db::edit::{Columns, Key};
use dom0_server::db::policy::PolicyChange;
use dom0_server::db::row::{mac, port_name};
use dom0_server::db::{Contract, Kind, RouterPolicy, RowError, capacity, external_ids};
use ovsdb::{Datum, Row};
use xenflow_proto::VlanId;

use super::{Change, Named};

#[derive(Debug, Args)]
pub(crate) struct OneName {
    /// Its name
    pub(crate) name: String,
}

impl Named for OneName {
    fn key(&self, kind: Kind) -> Key {
        Key { kind, network: None, name: self.name.clone() }
    }
}

#[derive(Debug, Args)]
pub(crate) struct NameInNetwork {
    /// The network
    network: String,
    /// Its name, unique within the network
    name: String,
}

impl Named for NameInNetwork {
    fn key(&self, kind: Kind) -> Key {
        Key { kind, network: Some(self.network.clone()), name: self.name.clone() }
    }
}

/// What other programs keep with it.
#[derive(Debug, Args)]
pub(crate) struct IdsArgs {
    /// What another program keeps with it; a KEY alone takes it away
    #[arg(long = "external-id", value_name = "KEY[=VALUE]")]
    external_ids: Vec<String>,
}

impl Change for IdsArgs {
    fn columns(&self, before: &Row) -> Result<Columns, RowError> {
        if self.external_ids.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![("external_ids", external_ids::changed(before, &self.external_ids)?.into())])
    }
}

/// A contract. Rates are whole numbers of bit, kbit, mbit, gbit or tbit a second, as 20mbit.
#[derive(Debug, Args)]
pub(crate) struct ContractArgs {
    /// What is promised; none takes it back
    #[arg(long, value_name = "RATE|none")]
    min: Option<String>,
    /// The most there is; none: no bound
    #[arg(long, value_name = "RATE|none")]
    max: Option<String>,
}

impl ContractArgs {
    /// By the rules of the product.
    fn parse(&self) -> Result<ContractChange, RowError> {
        ContractChange::parse(self.min.as_deref(), self.max.as_deref())
    }
}

impl Change for ContractArgs {
    fn columns(&self, before: &Row) -> Result<Columns, RowError> {
        let change = self.parse()?;
        if change.is_empty() {
            return Ok(Vec::new());
        }
        Ok(plain(change.applied(&Contract::parse(before)?)?.columns()))
    }
}

fn plain<const N: usize>(columns: [(&'static str, Datum); N]) -> Columns {
    columns.map(|(name, datum)| (name, Column::Is(datum))).into()
}

/// A reference to the thing of that name.
fn to(kind: Kind, name: &str) -> Result<Column, RowError> {
    Ok(Column::To(kind, name.parse()?))
}

#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    #[command(flatten)]
    contract: ContractArgs,
    #[command(flatten)]
    ids: IdsArgs,
}

impl Change for NetworkArgs {
    fn columns(&self, before: &Row) -> Result<Columns, RowError> {
        Ok([self.contract.columns(before)?, self.ids.columns(before)?].concat())
    }
}

#[derive(Debug, Args)]
pub(crate) struct SegmentAdd {
    /// The network it belongs to
    #[arg(long)]
    network: String,
    /// Its VLAN, 1 to 4094, on every uplink
    #[arg(long, allow_negative_numbers = true)]
    vlan: i64,
    #[command(flatten)]
    ids: IdsArgs,
}

fn vlan(number: i64) -> Result<Column, RowError> {
    Ok(i64::from(VlanId::try_from(number)?.get()).into())
}

impl Change for SegmentAdd {
    fn columns(&self, before: &Row) -> Result<Columns, RowError> {
        let own = vec![("network", to(Kind::Network, &self.network)?), ("vlan", vlan(self.vlan)?)];
        Ok([own, self.ids.columns(before)?].concat())
    }
}

#[derive(Debug, Args)]
pub(crate) struct SegmentSet {
    /// Its VLAN, 1 to 4094, on every uplink
    #[arg(long, allow_negative_numbers = true)]
    vlan: Option<i64>,
    #[command(flatten)]
    ids: IdsArgs,
}

impl Change for SegmentSet {
    fn columns(&self, before: &Row) -> Result<Columns, RowError> {
        let mut columns = self.ids.columns(before)?;
        if let Some(number) = self.vlan {
            columns.push(("vlan", vlan(number)?));
        }
        Ok(columns)
    }
}

/// How a router is treated.
#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    /// Whether the host forwards for it: auto (where flows decide as its kernel would), always or never
    #[arg(long, value_name = "POLICY", value_parser = ["auto", "always", "never"])]
    fastpath: Option<String>,
    /// Prefixes that the host forwards for it, at most; beyond them its guest forwards. A number or default
    #[arg(long, value_name = "N|default")]
    max_routes: Option<String>,
    /// Packets/s of a class that its guest gets at most: routing, resolution, host, exception or transit, = and a
    /// number or default
    #[arg(long = "punt-rate", value_name = "CLASS=PPS")]
    punt_rates: Vec<String>,
}

impl PolicyArgs {
    /// By the rules of the product.
    fn parse(&self) -> Result<PolicyChange, RowError> {
        PolicyChange::parse(self.fastpath.as_deref(), self.max_routes.as_deref(), &self.punt_rates)
    }
}

impl Change for PolicyArgs {
    fn columns(&self, before: &Row) -> Result<Columns, RowError> {
        let change = self.parse()?;
        if change == PolicyChange::default() {
            return Ok(Vec::new());
        }
        Ok(plain(change.applied(&RouterPolicy::parse(before)?).columns()))
    }
}

#[derive(Debug, Args)]
pub(crate) struct RouterAdd {
    /// The network it belongs to
    #[arg(long)]
    network: String,
    #[command(flatten)]
    what: RouterSet,
}

impl Change for RouterAdd {
    fn columns(&self, before: &Row) -> Result<Columns, RowError> {
        Ok([vec![("network", to(Kind::Network, &self.network)?)], self.what.columns(before)?].concat())
    }
}

#[derive(Debug, Args)]
pub(crate) struct RouterSet {
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    ids: IdsArgs,
}

impl Change for RouterSet {
    fn columns(&self, before: &Row) -> Result<Columns, RowError> {
        Ok([self.policy.columns(before)?, self.ids.columns(before)?].concat())
    }
}

/// On a segment of the router's network, or on the control network.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("attachment").required(true))]
pub(crate) struct VifAdd {
    /// The router it belongs to
    #[arg(long)]
    router: String,
    /// The segment it is on
    #[arg(long, group = "attachment")]
    segment: Option<String>,
    /// It is the router's control vif
    #[arg(long, group = "attachment")]
    control: bool,
    /// Its MAC address
    #[arg(long)]
    mac: String,
    #[command(flatten)]
    ids: IdsArgs,
}

impl Change for VifAdd {
    fn columns(&self, before: &Row) -> Result<Columns, RowError> {
        let (kind, segment) = match &self.segment {
            Some(segment) => ("data", to(Kind::Segment, segment)?),
            None => ("control", Datum::empty().into()),
        };
        let own = vec![
            ("router", to(Kind::Router, &self.router)?),
            ("kind", Datum::from(kind).into()),
            ("segment", segment),
            ("mac", Datum::from(mac(&self.mac)?.to_string()).into()),
        ];
        Ok([own, self.ids.columns(before)?].concat())
    }
}

#[derive(Debug, Args)]
pub(crate) struct VifSet {
    /// The segment it is on, of its router's network
    #[arg(long)]
    segment: Option<String>,
    /// Its MAC address
    #[arg(long)]
    mac: Option<String>,
    #[command(flatten)]
    ids: IdsArgs,
}

impl Change for VifSet {
    fn columns(&self, before: &Row) -> Result<Columns, RowError> {
        let mut columns = self.ids.columns(before)?;
        if let Some(segment) = &self.segment {
            columns.push(("segment", to(Kind::Segment, segment)?));
        }
        if let Some(text) = &self.mac {
            columns.push(("mac", Datum::from(mac(text)?.to_string()).into()));
        }
        Ok(columns)
    }
}

#[derive(Debug, Args)]
pub(crate) struct AccessAdd {
    /// The segment it is on
    #[arg(long)]
    segment: String,
    /// A source address its host may use, no vif's; any that is no vif's if none is given
    #[arg(long = "mac", value_name = "MAC")]
    macs: Vec<String>,
    #[command(flatten)]
    ids: IdsArgs,
}

fn macs(texts: &[String]) -> Result<Column, RowError> {
    let macs = texts.iter().map(|text| Ok(mac(text)?.to_string()));
    Ok(Datum::set(macs.collect::<Result<Vec<_>, RowError>>()?).into())
}

impl Change for AccessAdd {
    fn columns(&self, before: &Row) -> Result<Columns, RowError> {
        let own = vec![("segment", to(Kind::Segment, &self.segment)?), ("macs", macs(&self.macs)?)];
        Ok([own, self.ids.columns(before)?].concat())
    }
}

#[derive(Debug, Args)]
pub(crate) struct AccessSet {
    /// The segment it is on
    #[arg(long)]
    segment: Option<String>,
    /// A source address its host may use, no vif's; those given take the place of those before
    #[arg(long = "mac", value_name = "MAC")]
    macs: Vec<String>,
    /// Its host may use any source address that is no vif's
    #[arg(long, conflicts_with = "macs")]
    any_mac: bool,
    #[command(flatten)]
    ids: IdsArgs,
}

impl Change for AccessSet {
    fn columns(&self, before: &Row) -> Result<Columns, RowError> {
        let mut columns = self.ids.columns(before)?;
        if let Some(segment) = &self.segment {
            columns.push(("segment", to(Kind::Segment, segment)?));
        }
        if self.any_mac || !self.macs.is_empty() {
            columns.push(("macs", macs(&self.macs)?));
        }
        Ok(columns)
    }
}

/// Packets that meet all that is given.
#[derive(Debug, Args)]
pub(crate) struct MatchingArgs {
    /// A code point, 0 to 63 (RFC 2474); none: any
    #[arg(long, value_delimiter = ',', allow_negative_numbers = true, value_name = "DSCP|none")]
    dscp: Vec<String>,
    /// IP protocol: a number, or tcp, udp, sctp, icmp, gre, esp, icmpv6, ospf; none: any
    #[arg(long, value_name = "PROTOCOL|none")]
    protocol: Option<String>,
    /// A TCP, UDP or SCTP port, as source or destination; none: any
    #[arg(long = "port", value_delimiter = ',', allow_negative_numbers = true, value_name = "PORT|none")]
    ports: Vec<String>,
}

impl Change for MatchingArgs {
    fn columns(&self, before: &Row) -> Result<Columns, RowError> {
        let change = MatchingChange::parse(&self.dscp, self.protocol.as_deref(), &self.ports)?;
        if change.is_empty() {
            return Ok(Vec::new());
        }
        Ok(plain(change.applied(&Matching::parse(before)?)?.columns()))
    }
}

fn priority(number: i64) -> Result<Column, RowError> {
    Ok(i64::from(class::priority(number)?).into())
}

#[derive(Debug, Args)]
pub(crate) struct ClassAdd {
    /// 1 to 1000: of two classes that a packet is in, the one of the greater priority gets it
    #[arg(long, allow_negative_numbers = true)]
    priority: i64,
    #[command(flatten)]
    matching: MatchingArgs,
    #[command(flatten)]
    what: NetworkArgs,
}

impl Change for ClassAdd {
    fn columns(&self, before: &Row) -> Result<Columns, RowError> {
        let own = vec![("priority", priority(self.priority)?)];
        Ok([own, self.matching.columns(before)?, self.what.columns(before)?].concat())
    }
}

#[derive(Debug, Args)]
pub(crate) struct ClassSet {
    /// 1 to 1000: of two classes that a packet is in, the one of the greater priority gets it
    #[arg(long, allow_negative_numbers = true)]
    priority: Option<i64>,
    #[command(flatten)]
    matching: MatchingArgs,
    #[command(flatten)]
    what: NetworkArgs,
}

impl Change for ClassSet {
    fn columns(&self, before: &Row) -> Result<Columns, RowError> {
        let mut columns = [self.matching.columns(before)?, self.what.columns(before)?].concat();
        if let Some(number) = self.priority {
            columns.push(("priority", priority(number)?));
        }
        Ok(columns)
    }
}

#[derive(Debug, Args)]
pub(crate) struct UplinkSet {
    /// One of its uplinks, whose capacity is to change
    #[arg(requires = "capacity")]
    port: Option<String>,
    /// What that uplink carries, as 10gbit: say it where the way beyond the port is narrower than the port, or the port
    /// has no speed; none: by the port's speed
    #[arg(long, value_name = "RATE|none", requires = "port")]
    capacity: Option<String>,
    /// Name of an OVS port; those given take the place of those before
    #[arg(long = "port", value_name = "PORT")]
    ports: Vec<String>,
    #[command(flatten)]
    ids: IdsArgs,
}

impl Change for UplinkSet {
    fn columns(&self, before: &Row) -> Result<Columns, RowError> {
        let mut columns = self.ids.columns(before)?;
        let ports = self.ports.iter().map(|port| port_name(port)).collect::<Result<BTreeSet<_>, _>>()?;
        let mut carry = capacity::parse(before)?;
        let uplinks = if ports.is_empty() { before.set_str("uplinks")?.into_iter().collect() } else { ports };
        carry.retain(|port, _| uplinks.contains(port.as_str()));
        if let (Some(port), Some(text)) = (&self.port, &self.capacity) {
            match rate_or_none(text)? {
                Some(rate) => carry.insert(port.clone(), rate),
                None => carry.remove(port),
            };
            // Also of one whose capacity is taken back.
            capacity::only_of([port.as_str()], &uplinks)?;
        }
        if !self.ports.is_empty() {
            columns.push(("uplinks", Datum::set(uplinks).into()));
        }
        if self.capacity.is_some() || !self.ports.is_empty() {
            columns.push((capacity::COLUMN, capacity::datum(&carry).into()));
        }
        Ok(columns)
    }
}
