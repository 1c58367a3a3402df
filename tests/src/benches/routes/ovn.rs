//! OVN beside XenFlow: the same static routes in one logical router, with one hypervisor.
//!
//! A load is from the first command until `--wait=hv` returns behind the last one; a change is one more route, through an `ovn-nbctl`
//! that runs already. No packets: the lab's kernel has no zones of conntrack, so OVN's bridge has Open vSwitch's own datapath.

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::table::Table;
use super::{gateway, resident};
use crate::benches::{median, round};
use crate::host::Host;
use crate::ovn::{BRIDGE, Ovn};
use crate::process;
use crate::scenario::Lab;
use crate::trunk::{Trunk, TrunkKind};

/// It takes a second for a route beyond some ten thousands.
pub(super) const MOST: usize = 10_000;
/// Routes in one transaction.
const CHUNK: usize = 1000;
const CHANGES: usize = 10;
/// Of each segment: its switch, the router's port, and an address there.
const SEGMENTS: [(&str, &str, &str); 2] = [("ls1", "lrp1", "10.1.0.1/24"), ("ls2", "lrp2", "10.2.0.1/24")];
const WAIT: [&str; 2] = ["--wait=hv", "--timeout=900"];

/// With so many routes of the table.
pub(super) fn measure(lab: &Lab, table: &Table) -> Result<Map<String, Value>> {
    lab.step("OVN: one logical router between two segments");
    let mut hosts = [Host::create(lab, "c")?, Host::create(lab, "d")?];
    let both: Vec<&Host> = hosts.iter().collect();
    let _trunk = Trunk::connect(TrunkKind::Bridge, &both)?;
    let [host, _] = &mut hosts;
    let mut ovn = Ovn::create(lab, host)?;
    ovn.connect(host, 0)?;
    let mut words = vec!["lr-add".to_owned(), "lr".to_owned()];
    for (at, (switch, port, address)) in SEGMENTS.into_iter().enumerate() {
        let (vif, mac, peer) = (format!("p{at}"), format!("02:52:00:00:00:{at:02x}"), format!("{switch}-lr"));
        let more = format!(
            "-- ls-add {switch} -- lrp-add lr {port} {mac} {address} -- lsp-add {switch} {peer} -- lsp-set-type {peer} router \
             -- lsp-set-addresses {peer} router -- lsp-set-options {peer} router-port={port} -- lsp-add {switch} {vif} \
             -- lsp-set-addresses {vif} unknown"
        );
        words.extend(more.split_whitespace().map(str::to_owned));
        let id = format!("external_ids:iface-id={vif}");
        let (bridge, kind) = (BRIDGE, "type=internal");
        host.vsctl(&["add-port", bridge, &vif, "--", "set", "Interface", &vif, kind, &id])?;
    }
    process::output(ovn.nbctl().args(WAIT).args(&words))?;
    let base = memory(&ovn)?;

    lab.step(format!("OVN gets {} routes", table.routes.len()));
    let begun = Instant::now();
    for chunk in table.routes.chunks(CHUNK) {
        let mut command = ovn.nbctl();
        for (at, (addr, len, hop)) in chunk.iter().enumerate() {
            command.args(if at > 0 { &["--"][..] } else { &[] });
            command.args(["lr-route-add", "lr", &format!("{addr}/{len}"), &gateway(*hop, true).to_string()]);
        }
        process::output(&mut command)?;
    }
    process::output(ovn.nbctl().args(WAIT).arg("sync"))?;
    let load = begun.elapsed().as_secs_f64();
    let full = memory(&ovn)?;

    lab.step(format!("{CHANGES} routes more, one by one"));
    ovn.start_nbctl()?;
    let mut changes = Vec::new();
    for at in 0..CHANGES {
        let mut command = ovn.by_daemon(ovn.nbctl());
        let gateway = gateway(0, true).to_string();
        command.args(WAIT).args(["lr-route-add", "lr", &format!("198.51.100.{at}/32"), &gateway]);
        let begun = Instant::now();
        process::output(&mut command)?;
        changes.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    let routes = table.routes.len();
    let figures = json!({
        "ovn_routes": routes,
        "ovn_load_s": round(load),
        "ovn_change_ms_p50": round(median(&mut changes)?),
        "ovn_bytes_per_route": round((full - base) / routes as f64),
    });
    let Value::Object(figures) = figures else { unreachable!("it is one") };
    Ok(figures)
}

/// Bytes that all of its processes have in memory.
fn memory(ovn: &Ovn) -> Result<f64> {
    ovn.processes().map(resident).sum::<Result<f64>>().context("a process of OVN")
}
