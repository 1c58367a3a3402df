//! Routers without a session: which of them to nudge, and how long their tables are held.

use std::collections::BTreeMap;
use std::time::Duration;

use xenflow_flow_app::{Attachment, PortNo, RouterId};
use xenflow_proto::MacAddr;

use super::{Core, Effect, Lone};

impl Core {
    /// Nudges the guests whose control vif was plugged in or came up. One that has a session here may have been elsewhere
    /// meanwhile, and this session be one that nobody speaks in any more; where it is not, a nudge costs a ping.
    pub(super) fn nudge_plugged(&mut self) {
        let up: BTreeMap<PortNo, bool> =
            self.ports.iter().flat_map(|ports| &ports.ports).map(|port| (port.number, port.is_up)).collect();
        let mut plugged = BTreeMap::new();
        let mut come: Vec<(RouterId, MacAddr)> = Vec::new();
        for (id, vif) in &self.app.topology().vifs {
            let Some(port) = vif.port.filter(|_| vif.attachment == Attachment::Control) else { continue };
            let is_up = up.get(&port).copied().unwrap_or_default();
            plugged.insert(id.router, (port, is_up));
            let is_old = |(old, was_up): &(PortNo, bool)| *old == port && (*was_up || !is_up);
            if !self.plugged.get(&id.router).is_some_and(is_old) {
                come.push((id.router, vif.mac));
            }
        }
        self.plugged = plugged;
        for (router, mac) in come {
            let name = self.router_name(router);
            tracing::debug!(name: "nudge", router = name, %mac, "its control vif has come: the guest is asked to connect");
            self.effects.push(Effect::Nudge(router, mac));
        }
    }

    /// Sweeps the tables of routers that have had no session for too long, as an empty snapshot would.
    pub(super) fn sweep_lone(&mut self, now: Duration) {
        let Some(hold) = self.hold else { return };
        let mut lone = BTreeMap::new();
        for id in self.app.topology().routers() {
            if self.has_session(id) || self.is_on_its_way(id) || self.moves.standbys.contains_key(&id) {
                continue;
            }
            let before = self.lone.get(&id).copied();
            let mut it = before.unwrap_or(Lone { since: now, is_over: false });
            if !it.is_over && now.saturating_sub(it.since) >= hold {
                it.is_over = true;
                tracing::warn!(
                    name: "router-withdrawn",
                    router = self.router_name(id),
                    hold_time_s = hold.as_secs(),
                    "no session for the hold time: the router is swept"
                );
                self.app.begin_snapshot(id);
                self.app.begin_sweep(id);
                self.sweeps.push_back(id);
            }
            lone.insert(id, it);
        }
        self.lone = lone;
    }
}
