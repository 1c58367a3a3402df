//! What rows, ports and sessions say of routers at one moment, for the steps of those that move or may move.

use std::collections::{BTreeMap, BTreeSet};

use ovsdb::Uuid;
use xenflow_flow_app::{PortNo, RouterId, Topology};
use xenflow_proto::{Name, VlanId};

use super::{Session, SessionId};
use crate::db::Desired;
use crate::db::location::Place;
use crate::ports::{SwitchPort, SwitchPorts};

/// What is the same for all routers.
pub(super) struct Sight<'a> {
    pub(super) segments: BTreeMap<VlanId, &'a Name>,
    /// Ports that have a link.
    up: BTreeMap<PortNo, &'a SwitchPort>,
    /// Routers whose guests have a session.
    pub(super) guests: BTreeSet<RouterId>,
    /// Those whose tables another node tells.
    pub(super) sources: BTreeSet<RouterId>,
}

impl<'a> Sight<'a> {
    pub(super) fn of(
        desired: &'a Desired,
        ports: Option<&'a SwitchPorts>,
        sessions: &BTreeMap<SessionId, Session>,
    ) -> Self {
        let ports = ports.into_iter().flat_map(|ports| &ports.ports).filter(|port| port.is_up);
        let (guests, sources): (Vec<&Session>, Vec<&Session>) =
            sessions.values().partition(|session| session.source.is_none());
        Self {
            segments: desired.segments.values().map(|segment| (segment.vlan, &segment.name)).collect(),
            up: ports.map(|port| (port.number, port)).collect(),
            guests: guests.into_iter().map(|session| session.router).collect(),
            sources: sources.into_iter().map(|session| session.router).collect(),
        }
    }

    pub(super) fn seen(&self, router: RouterId, topology: &Topology) -> Seen {
        let mut seen = Seen { is_whole: true, ..Seen::default() };
        for (_, vif) in topology.vifs_of(router) {
            if let Some(port) = vif.port.and_then(|number| self.up.get(&number)) {
                seen.ports.insert(port.row);
                seen.was_home |= port.was_home;
            }
            let Some(vlan) = vif.vlan() else { continue };
            seen.is_plugged |= vif.port.is_some();
            seen.is_whole &= vif.port.is_some();
            let place =
                self.segments.get(&vlan).map(|segment| Place { segment: (*segment).clone(), mac: vif.mac });
            seen.places.extend(place);
        }
        seen
    }
}

/// What the rows and the ports say of one router.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) ports: BTreeSet<Uuid>,
    pub(super) was_home: bool,
    /// Some of its ports on segments is bound here.
    pub(super) is_plugged: bool,
    /// All are.
    pub(super) is_whole: bool,
    pub(super) places: BTreeSet<Place>,
}
