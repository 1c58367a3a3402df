//! How the daemon is: one page.

use serde_json::{Map, Value, json};
use xenflow_proto::Name;

use crate::core::{Core, kept_words};

/// What `status` is answered with.
#[must_use]
pub fn status(core: &Core, has_database: bool) -> Value {
    let routers = core.reports().map(|(name, report)| {
        let port = |(vif, port): (&Name, &String)| {
            (vif.to_string(), json!({ "port": port, "up": report.up.contains(vif) }))
        };
        let ports: Map<String, Value> = report.ports.iter().map(port).collect();
        let session = match report.session {
            None => "down",
            Some((_, false)) => "syncing",
            Some((_, true)) => "up",
        };
        json!({
            "name": name.to_string(), "session": session, "acked_seq": report.session.map(|(seq, _)| seq.0),
            "is_over": report.is_over, "routes": report.status.rib.routes, "neighbors": report.status.rib.neighbors,
            "forwarded": report.status.routes.forwarded, "punted": report.status.routes.punted,
            "absent": report.status.routes.absent, "max_routes": report.status.routes.max,
            "slow": report.slow, "ports": ports,
        })
    });
    let surplus = core.surplus().map(|surplus| surplus.to_string());
    let problems = core.problems().iter().map(ToString::to_string).chain(surplus);
    let problems = problems.chain(core.kept_ms().map(kept_words));
    json!({
        "node": core.node().to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "switch": {
            "connected": core.is_connected(), "in_step": core.is_in_step(), "bundles_in_flight": core.in_flight(),
        },
        "databases": {
            "XenFlow": { "connected": has_database, "known": core.desired().is_some(), "kept_ms": core.kept_ms() },
            "Open_vSwitch": { "known": core.has_ports() },
        },
        "sessions": core.sessions(),
        "routers": routers.collect::<Vec<_>>(),
        "problems": problems.collect::<Vec<_>>(),
    })
}
