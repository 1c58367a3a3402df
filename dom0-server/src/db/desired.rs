//! What a node is to realise, assembled from the rows.
//!
//! Pure and total: whatever the rows say, a consistent state comes out, and every row that had to be left out
//! is named with its reason. Rows are taken in the order of their names, so that of two that exclude each
//! other every host keeps the same one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ovsdb::{Row, Uuid};
use xenflow_proto::{MacAddr, Name};

use super::capacity::{self, Capacities};
use super::class::TrafficClass;
use super::contract::Rate;
use super::row::{Access, Attachment, Kind, Network, Router, RowError, Segment, Vif, port_name};
use super::{Rows, table};

/// A row that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidRow {
    /// Its table.
    pub kind: Kind,
    /// Its row.
    pub uuid: Uuid,
    /// Its name as it stands there, if any.
    pub name: String,
    /// The value and the rule.
    pub reason: RowError,
}

impl fmt::Display for InvalidRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\" ({}): {}", self.kind, self.name.escape_debug(), self.uuid, self.reason)
    }
}

/// The desired state. References are names of things that are in it too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// `XenFlow.next_cfg`: the number that nodes report when they are done with this state.
    pub cfg: i64,
    /// Rows that were left out, and why, in words.
    pub left_out: BTreeSet<String>,
    /// Virtual networks.
    pub networks: BTreeMap<Name, Network>,
    /// Virtual links, of a network in `networks`; no VLAN twice.
    pub segments: BTreeMap<Name, Segment>,
    /// Virtual routers, of a network in `networks`; no number twice.
    pub routers: BTreeMap<Name, Router>,
    /// Interfaces, of a router in `routers`, on a segment of its network; no MAC twice, one control vif per
    /// router at most.
    pub vifs: BTreeMap<Name, Vif>,
    /// Ports of end hosts, on a segment in `segments`; no name and no MAC of a vif.
    pub access: BTreeMap<Name, Access>,
    /// Parts of the networks' traffic, by network in `networks` and name; no priority twice in a network.
    pub classes: BTreeMap<(Name, Name), TrafficClass>,
    /// Names of the OVS ports that are trunks, by node.
    pub uplinks: BTreeMap<Name, BTreeSet<String>>,
    /// What uplinks in `uplinks` carry, by node: where somebody has said it.
    pub capacities: BTreeMap<Name, Capacities>,
}

impl Desired {
    /// Assembles the state of all nodes, and says which rows were left out.
    #[must_use]
    pub fn assemble(rows: &Rows) -> (Self, Vec<InvalidRow>) {
        let mut build = Build { rows, desired: Self::default(), invalid: Vec::new() };
        build.settings();
        build.nodes();
        build.networks();
        build.segments();
        build.routers();
        build.vifs();
        build.access();
        build.classes();
        build.desired.left_out = build.invalid.iter().map(ToString::to_string).collect();
        (build.desired, build.invalid)
    }

    /// Uplinks of one node; none if it is unknown.
    #[must_use]
    pub fn uplinks_of(&self, node: &Name) -> BTreeSet<String> {
        self.uplinks.get(node).cloned().unwrap_or_default()
    }

    /// What an uplink of a node carries, if somebody has said it.
    #[must_use]
    pub fn capacity_of(&self, node: &Name, port: &str) -> Option<Rate> {
        self.capacities.get(node)?.get(port).copied()
    }

    /// Vifs of a router, by number.
    #[must_use]
    pub fn vifs_of(&self, router: &Name) -> Vec<&Vif> {
        let mut vifs: Vec<_> = self.vifs.values().filter(|vif| vif.router == *router).collect();
        vifs.sort_by_key(|vif| vif.number);
        vifs
    }

    /// The control vif of a router.
    #[must_use]
    pub fn control_vif(&self, router: &Name) -> Option<&Vif> {
        self.vifs.values().find(|vif| vif.router == *router && vif.attachment == Attachment::Control)
    }
}

struct Build<'a> {
    rows: &'a Rows,
    desired: Desired,
    invalid: Vec<InvalidRow>,
}

fn taken(what: &'static str, value: impl fmt::Display, kind: Kind, by: &Name) -> RowError {
    RowError::Taken { what, value: value.to_string(), kind, by: by.clone() }
}

impl<'a> Build<'a> {
    /// Rows of a kind in the order of their names; those of one name in the order of their UUIDs.
    fn sorted(&self, kind: Kind) -> Vec<(Uuid, &'a Row)> {
        let mut rows: Vec<_> = self.rows.of(kind.table()).collect();
        rows.sort_by_key(|(uuid, row)| (row.str("name").unwrap_or_default(), *uuid));
        rows
    }

    fn leave_out(&mut self, kind: Kind, uuid: Uuid, row: &Row, reason: RowError) {
        let name = row.str("name").unwrap_or_default().chars().take(80).collect();
        self.invalid.push(InvalidRow { kind, uuid, name, reason });
    }

    fn each<T>(
        &mut self,
        kind: Kind,
        check: impl Fn(&Self, Uuid, &Row) -> Result<T, RowError>,
        keep: impl Fn(&mut Desired, T),
    ) {
        for (uuid, row) in self.sorted(kind) {
            match check(self, uuid, row) {
                Ok(value) => keep(&mut self.desired, value),
                Err(reason) => self.leave_out(kind, uuid, row, reason),
            }
        }
    }

    /// A database without its one row asks for no number.
    fn settings(&mut self) {
        let row = self.rows.of(table::XENFLOW).next();
        self.desired.cfg = row.and_then(|(_, row)| row.int("next_cfg").ok()).unwrap_or_default();
    }

    fn nodes(&mut self) {
        let check = |build: &Self, _: Uuid, row: &Row| {
            let name: Name = row.str("name")?.parse()?;
            if build.desired.uplinks.contains_key(&name) {
                return Err(taken("name", &name, Kind::Node, &name));
            }
            let ports = row.set_str("uplinks")?.into_iter();
            let ports = ports.map(|port| port_name(port).map(str::to_owned));
            let ports = ports.collect::<Result<BTreeSet<_>, _>>()?;
            let mut capacities = capacity::parse(row)?;
            capacities.retain(|port, _| ports.contains(port));
            Ok((name, ports, capacities))
        };
        self.each(Kind::Node, check, |desired, (name, ports, capacities)| {
            desired.uplinks.insert(name.clone(), ports);
            desired.capacities.insert(name, capacities);
        });
    }

    fn networks(&mut self) {
        let check = |build: &Self, uuid: Uuid, row: &Row| {
            let network = Network::parse(uuid, row)?;
            if build.desired.networks.contains_key(&network.name) {
                return Err(taken("name", &network.name, Kind::Network, &network.name));
            }
            Ok(network)
        };
        self.each(Kind::Network, check, |desired, network| {
            desired.networks.insert(network.name.clone(), network);
        });
    }

    fn network(&self, name: &Name, uuid: Uuid) -> Result<(), RowError> {
        let same = self.desired.networks.get(name).is_some_and(|network| network.uuid == uuid);
        if same { Ok(()) } else { Err(RowError::Dangling { kind: Kind::Network }) }
    }

    fn segments(&mut self) {
        let check = |build: &Self, uuid: Uuid, row: &Row| {
            let segment = Segment::parse(build.rows, uuid, row)?;
            build.network(&segment.network, row.uuid("network")?)?;
            if build.desired.segments.contains_key(&segment.name) {
                return Err(taken("name", &segment.name, Kind::Segment, &segment.name));
            }
            match build.desired.segments.values().find(|other| other.vlan == segment.vlan) {
                Some(other) => Err(taken("VLAN", segment.vlan, Kind::Segment, &other.name)),
                None => Ok(segment),
            }
        };
        self.each(Kind::Segment, check, |desired, segment| {
            desired.segments.insert(segment.name.clone(), segment);
        });
    }

    fn routers(&mut self) {
        let mut ids = BTreeMap::new();
        for (uuid, row) in self.sorted(Kind::Router) {
            let parsed = Router::parse(self.rows, uuid, row).and_then(|router| {
                self.network(&router.network, row.uuid("network")?)?;
                if self.desired.routers.contains_key(&router.name) {
                    return Err(taken("name", &router.name, Kind::Router, &router.name));
                }
                match ids.get(&router.id) {
                    Some(other) => Err(taken("router id", router.id, Kind::Router, other)),
                    None => Ok(router),
                }
            });
            match parsed {
                Ok(router) => {
                    ids.insert(router.id, router.name.clone());
                    self.desired.routers.insert(router.name.clone(), router);
                }
                Err(reason) => self.leave_out(Kind::Router, uuid, row, reason),
            }
        }
    }

    fn vifs(&mut self) {
        let mut macs: BTreeMap<MacAddr, Name> = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        let mut control: BTreeMap<Name, Name> = BTreeMap::new();
        for (uuid, row) in self.sorted(Kind::Vif) {
            let parsed = Vif::parse(self.rows, uuid, row).and_then(|vif| {
                let router = self.desired.routers.get(&vif.router);
                let router = router.ok_or(RowError::Dangling { kind: Kind::Router })?;
                match &vif.attachment {
                    Attachment::Segment(name) => {
                        let segment = self.desired.segments.get(name);
                        let segment = segment.ok_or(RowError::Dangling { kind: Kind::Segment })?;
                        same_network(segment, router)?;
                    }
                    Attachment::Control => {
                        if let Some(by) = control.get(&vif.router) {
                            return Err(taken(
                                "the place of the control vif of router",
                                &vif.router,
                                Kind::Vif,
                                by,
                            ));
                        }
                    }
                }
                if self.desired.vifs.contains_key(&vif.name) {
                    return Err(taken("name", &vif.name, Kind::Vif, &vif.name));
                }
                if let Some(by) = macs.get(&vif.mac) {
                    return Err(taken("MAC address", vif.mac, Kind::Vif, by));
                }
                match numbers.get(&(vif.router.clone(), vif.number)) {
                    Some(by) => Err(taken("vif number", vif.number, Kind::Vif, by)),
                    None => Ok(vif),
                }
            });
            match parsed {
                Ok(vif) => {
                    macs.insert(vif.mac, vif.name.clone());
                    numbers.insert((vif.router.clone(), vif.number), vif.name.clone());
                    if vif.attachment == Attachment::Control {
                        control.insert(vif.router.clone(), vif.name.clone());
                    }
                    self.desired.vifs.insert(vif.name.clone(), vif);
                }
                Err(reason) => self.leave_out(Kind::Vif, uuid, row, reason),
            }
        }
    }

    fn access(&mut self) {
        let vif_macs: BTreeMap<_, _> =
            self.desired.vifs.values().map(|vif| (vif.mac, vif.name.clone())).collect();
        let check = |build: &Self, uuid: Uuid, row: &Row| {
            let access = Access::parse(build.rows, uuid, row)?;
            if !build.desired.segments.contains_key(&access.segment) {
                return Err(RowError::Dangling { kind: Kind::Segment });
            }
            // A vif of that name, valid or not, is what the interface of that name belongs to.
            if build.rows.named(table::VIF, access.name.as_str()).is_some() {
                return Err(taken("name", &access.name, Kind::Vif, &access.name));
            }
            if build.desired.access.contains_key(&access.name) {
                return Err(taken("name", &access.name, Kind::Access, &access.name));
            }
            match access.macs.iter().find_map(|mac| Some((mac, vif_macs.get(mac)?))) {
                Some((mac, by)) => Err(taken("MAC address", mac, Kind::Vif, by)),
                None => Ok(access),
            }
        };
        self.each(Kind::Access, check, |desired, access| {
            desired.access.insert(access.name.clone(), access);
        });
    }
}

impl Build<'_> {
    fn classes(&mut self) {
        let check = |build: &Self, uuid: Uuid, row: &Row| {
            let class = TrafficClass::parse(build.rows, uuid, row)?;
            build.network(&class.network, row.uuid("network")?)?;
            let others = || build.desired.classes.values().filter(|other| other.network == class.network);
            if others().any(|other| other.name == class.name) {
                return Err(taken("name", &class.name, Kind::Class, &class.name));
            }
            match others().find(|other| other.priority == class.priority) {
                Some(other) => Err(taken("priority", class.priority, Kind::Class, &other.name)),
                None => Ok(class),
            }
        };
        self.each(Kind::Class, check, |desired, class| {
            desired.classes.insert((class.network.clone(), class.name.clone()), class);
        });
    }
}

/// A router reaches segments of its own network only.
pub(super) fn same_network(segment: &Segment, router: &Router) -> Result<(), RowError> {
    if segment.network == router.network {
        return Ok(());
    }
    Err(RowError::OtherNetwork {
        segment: segment.name.clone(),
        segment_network: segment.network.clone(),
        router: router.name.clone(),
        router_network: router.network.clone(),
    })
}
