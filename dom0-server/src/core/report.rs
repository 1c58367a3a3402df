//! What the operator is shown of the routers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use xenflow_flow_app::fast_path::{Slow, SlowReason};
use xenflow_flow_app::fib::Adjacency;
use xenflow_flow_app::{PortNo, RouterId, RouterStatus, VifId};
use xenflow_proto::table::Family;
use xenflow_proto::{Name, Seq};

use super::{Core, Stage};
use crate::clock::utc_of_ms;
use crate::db::status::{Unresolved, bounded};
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
    /// MTU in bytes of its guest's interface, by vif.
    pub vif_mtus: BTreeMap<Name, u32>,
    /// Gateways of its routes that no neighbor stands for; as the database takes it.
    pub unresolved: Unresolved,
}

/// How the daemon stands, in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What has not spoken yet, or the switch, if it is gone.
    pub missing: Vec<&'static str>,
    /// Routers that are configured.
    pub routers: usize,
    /// Sessions of guests.
    pub sessions: usize,
    /// The switch has confirmed all that is wanted of it.
    pub is_in_step: bool,
    /// Ports that are not used.
    pub dark: usize,
    /// The XenFlow database does not answer.
    pub is_away: bool,
    /// What is wanted is what was kept then: milliseconds since the Unix epoch.
    pub kept_ms: Option<u64>,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.missing.is_empty() {
            return write!(f, "waiting for {}", self.missing.join(", "));
        }
        let count = |number: usize, what| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
        write!(f, "{}, {}", count(self.routers, "router"), count(self.sessions, "session"))?;
        f.write_str(if self.is_in_step { ", the switch in step" } else { ", the switch being filled" })?;
        if self.dark > 0 {
            write!(f, ", {} dark", count(self.dark, "port"))?;
        }
        if self.is_away {
            f.write_str("; no XenFlow database")?;
        }
        self.kept_ms.map_or(Ok(()), |kept_ms| write!(f, "; {}", kept_words(kept_ms)))
    }
}

/// That the daemon works with what it was told so long ago.
#[must_use]
pub fn kept_words(kept_ms: u64) -> String {
    let when = utc_of_ms(kept_ms).unwrap_or_else(|| "an unknown time".to_owned());
    format!("works with the desired state of {when}")
}

impl Core {
    /// When what is wanted was kept, if the database has said nothing since the daemon began: milliseconds since the Unix
    /// epoch.
    #[must_use]
    pub fn kept_ms(&self) -> Option<u64> {
        self.kept_ms
    }

    /// How everything stands now; `has_database`: the XenFlow database answers.
    #[must_use]
    pub fn standing(&self, has_database: bool) -> Standing {
        let sources = [
            (self.is_connected(), "the switch"),
            (self.ports.is_some(), "the Open_vSwitch database"),
            (self.desired.is_some(), "the XenFlow database"),
        ];
        Standing {
            missing: sources.into_iter().filter(|(is_there, _)| !is_there).map(|(_, what)| what).collect(),
            routers: self.desired.as_ref().map_or(0, |desired| desired.routers.len()),
            sessions: self.sessions(),
            is_in_step: self.is_in_step(),
            dark: self.problems.len(),
            is_away: !has_database,
            kept_ms: self.kept_ms,
        }
    }

    /// A router's name, for the log; nothing if it is configured no more.
    pub(super) fn router_name(&self, id: RouterId) -> &str {
        let mut routers = self.desired.iter().flat_map(|desired| desired.routers.values());
        routers.find(|router| RouterId(router.id.get()) == id).map_or("", |router| router.name.as_str())
    }

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

    /// MTU in bytes of the node's uplinks that are on the bridge; those of which Open vSwitch does not say it are left out.
    #[must_use]
    pub fn uplink_mtus(&self) -> BTreeMap<String, u32> {
        let uplinks = self.desired.as_ref().and_then(|desired| desired.uplinks.get(&self.node));
        let ports = self.ports.iter().flat_map(|ports| &ports.ports);
        let own = ports.filter(|port| uplinks.is_some_and(|uplinks| uplinks.contains(&port.name)));
        own.filter(|port| port.mtu > 0).map(|port| (port.name.clone(), port.mtu)).collect()
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
            .filter(|session| session.source.is_none())
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
                vif_mtus: status
                    .mtus
                    .iter()
                    .filter_map(|(vif, mtu)| Some((name_of(*vif)?.clone(), *mtu)))
                    .collect(),
                unresolved: unresolved(&status.unresolved, name_of),
                status,
            };
            Some((&router.name, report))
        })
    }
}

fn unresolved<'a>(
    found: &xenflow_flow_app::Unresolved,
    name_of: impl Fn(VifId) -> Option<&'a Name>,
) -> Unresolved {
    let named = |to: &Adjacency| Some(format!("{}%{}", to.addr, name_of(to.vif)?));
    Unresolved { count: found.count as u64, gateways: found.some.iter().filter_map(named).collect() }
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
    fn a_standing_says_what_is_missing_before_anything_else() {
        let well = Standing {
            missing: vec![],
            routers: 1,
            sessions: 2,
            is_in_step: false,
            dark: 1,
            is_away: false,
            kept_ms: None,
        };
        let said = "1 router, 2 sessions, the switch being filled, 1 port dark";
        assert_eq!(well.to_string(), said);
        let away = Standing { is_away: true, ..well };
        assert_eq!(away.to_string(), format!("{said}; no XenFlow database"));
        let kept = Standing { kept_ms: Some(1_700_000_000_000), ..away };
        let kept_words = "works with the desired state of 2023-11-14T22:13:20Z";
        assert_eq!(kept.to_string(), format!("{said}; no XenFlow database; {kept_words}"));
        let new = Core::new("a".parse().unwrap(), 1).standing(false);
        let said = "waiting for the switch, the Open_vSwitch database, the XenFlow database";
        assert_eq!(new.to_string(), said);
    }

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
