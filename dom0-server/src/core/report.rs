//! What the operator is shown of the routers.

use std::collections::{BTreeMap, BTreeSet};

use xenflow_flow_app::fast_path::{Slow, SlowReason};
use xenflow_flow_app::{PortNo, RouterId, RouterStatus, VifId};
use xenflow_proto::table::Family;
use xenflow_proto::{Name, Seq};

use super::{Core, Stage};
use crate::db::status::bounded;
use crate::ports::{SwitchBuild, SwitchPort};

/// A router as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What the flow app knows of it.
    pub status: RouterStatus,
    /// The last sequence number acknowledged to its guest, and whether its session is past end-of-RIB; none
    /// without a session.
    pub session: Option<(Seq, bool)>,
    /// It had no session for the hold time, and what was held of its tables is gone.
    pub is_over: bool,
    /// What its guest forwards itself, and why, in words; as the database takes it.
    pub slow: BTreeSet<String>,
    /// OVS interfaces that carry its vifs here, by vif.
    pub ports: BTreeMap<Name, String>,
    /// Those vifs whose interface has a link.
    pub up: BTreeSet<Name>,
}

impl Core {
    /// Whether both databases have spoken: until then it is not known which routers are here.
    #[must_use]
    pub fn knows_its_routers(&self) -> bool {
        self.desired.is_some() && self.ports.is_some()
    }

    /// What the switch is.
    #[must_use]
    pub fn build(&self) -> &SwitchBuild {
        &self.build
    }

    /// How many flows of the topology the switch refuses.
    #[must_use]
    pub fn left_out_flows(&self) -> usize {
        self.refused.len()
    }

    /// Rows of the database that break a rule, and which.
    pub fn left_out_rows(&self) -> impl Iterator<Item = &str> {
        self.desired.iter().flat_map(|desired| &desired.left_out).map(String::as_str)
    }

    /// The routers that are configured and have a vif.
    pub fn reports(&self) -> impl Iterator<Item = (&Name, Report)> {
        let ports = self.ports.iter().flat_map(|ports| &ports.ports);
        let ports: BTreeMap<PortNo, &SwitchPort> = ports.map(|port| (port.number, port)).collect();
        let mut names: BTreeMap<&Name, BTreeMap<u16, &Name>> = BTreeMap::new();
        for vif in self.desired.iter().flat_map(|desired| desired.vifs.values()) {
            names.entry(&vif.router).or_default().insert(vif.number.get(), &vif.name);
        }
        let sessions: BTreeMap<RouterId, _> = self
            .sessions
            .values()
            .map(|session| (session.router, (session.acked, session.stage == Stage::Live)))
            .collect();
        let routers = self.desired.iter().flat_map(|desired| desired.routers.values());
        routers.filter_map(move |router| {
            let id = RouterId(router.id.get());
            let status = self.app.router(id)?;
            let names = names.get(&router.name);
            let name_of = |vif: VifId| names.and_then(|names| names.get(&vif.number).copied());
            let plugged: Vec<(&Name, &SwitchPort)> = self
                .app
                .topology()
                .vifs_of(id)
                .filter_map(|(vif, place)| Some((name_of(vif)?, *ports.get(&place.port?)?)))
                .collect();
            let report = Report {
                session: sessions.get(&id).copied(),
                is_over: self.lone.get(&id).is_some_and(|lone| lone.is_over),
                slow: bounded(status.slow.iter().map(|slow| words(slow, name_of))),
                ports: plugged.iter().map(|(vif, port)| ((*vif).clone(), port.name.clone())).collect(),
                up: plugged.iter().filter(|(_, port)| port.is_up).map(|(vif, _)| (*vif).clone()).collect(),
                status,
            };
            Some((&router.name, report))
        })
    }
}

/// Which packets, and why: "r1-lan ipv4: rp_filter is on (net.ipv4.conf.eth1.rp_filter = 2)". What stands in
/// parentheses is the guest's, bounded and without control characters since it was decoded.
fn words<'a>(slow: &Slow, name_of: impl Fn(VifId) -> Option<&'a Name>) -> String {
    let family = slow.family.map(|family| match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    });
    let vif = slow.vif.map(|vif| name_of(vif).map_or_else(|| format!("vif {}", vif.number), Name::to_string));
    let which: Vec<&str> = vif.as_deref().into_iter().chain(family).collect();
    let is_of_routes = matches!(slow.reason, SlowReason::Routes(_));
    let which = match which.as_slice() {
        [] if is_of_routes => "some routes".to_owned(),
        [] => "all".to_owned(),
        which => which.join(" "),
    };
    let reason = slow.reason;
    match slow.detail.as_str() {
        "" => format!("{which}: {reason}"),
        detail => format!("{which}: {reason} ({detail})"),
    }
}

#[cfg(test)]
mod tests {
    use openflow::ErrorCode;
    use xenflow_proto::table::ObstacleKind;

    use super::*;

    #[test]
    fn words_say_which_packets_and_why() {
        let lan: Name = "r1-lan".parse().unwrap();
        let vif = |number| VifId { router: RouterId(1), number };
        let words = |vif, family, reason, detail: &str| {
            let slow = Slow { vif, family, reason, detail: detail.to_owned() };
            words(&slow, |vif| (vif.number == 1).then_some(&lan))
        };
        let filter = SlowReason::Obstacle(ObstacleKind::ReversePathFilter);
        assert_eq!(
            words(Some(vif(1)), Some(Family::V4), filter, "net.ipv4.conf.eth1.rp_filter = 2"),
            "r1-lan ipv4: rp_filter is on (net.ipv4.conf.eth1.rp_filter = 2)"
        );
        assert_eq!(words(Some(vif(7)), None, filter, ""), "vif 7: rp_filter is on");
        let rules = SlowReason::Obstacle(ObstacleKind::Rules);
        assert_eq!(
            words(None, Some(Family::V6), rules, "100: from all"),
            "ipv6: there are ip rules (100: from all)"
        );
        assert_eq!(words(None, None, SlowReason::Never, ""), "all: fastpath is never");
        let full = SlowReason::Routes(ErrorCode::TABLE_FULL);
        assert_eq!(words(None, None, full, ""), "some routes: the switch refused them: OFPFMFC_TABLE_FULL");
        let bad = SlowReason::Refused(ErrorCode::BAD_OUT_PORT);
        assert_eq!(words(None, None, bad, ""), "all: the switch refused its flows: OFPBAC_BAD_OUT_PORT");
    }
}
