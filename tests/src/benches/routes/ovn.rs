//! OVN beside XenFlow: the same static routes in one logical router, with one hypervisor.
//!
//! A load is from the first command until `--wait=hv` returns behind the last one; a change is one more route, through an `ovn-nbctl`
//! that runs already. The lab's kernel has no zones of conntrack, so OVN's bridge has Open vSwitch's own datapath; the bridge that its
//! first packets are compared with has that, too.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::forward::{self, FIRST};
use super::table::Table;
use super::{gateway, resident};
use crate::benches::{median, round};
use crate::endhost::EndHost;
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
/// Of each segment: its switch, the router's port and address there, and the end host's address.
const SEGMENTS: [(&str, &str, &str, &str); 2] =
    [("ls1", "lrp1", "10.1.0.1", "10.1.0.10"), ("ls2", "lrp2", "10.2.0.1", "10.2.0.10")];
const PLAIN: &str = "br-plain";
const PLAIN_ADDRESSES: [&str; 2] = ["10.9.0.1", "10.9.0.2"];
const LIMIT: Duration = Duration::from_secs(60);
const WAIT: [&str; 2] = ["--wait=hv", "--timeout=900"];

/// With the routes of a table by so many next hops.
pub(super) fn measure(lab: &Lab, table: &Table, hops: usize) -> Result<Map<String, Value>> {
    lab.step("OVN: one logical router between two segments");
    let mut hosts = [Host::create(lab, "c")?, Host::create(lab, "d")?];
    let both: Vec<&Host> = hosts.iter().collect();
    let _trunk = Trunk::connect(TrunkKind::Bridge, &both)?;
    let [host, _] = &mut hosts;
    let mut ovn = Ovn::create(lab, host)?;
    ovn.connect(host, 0)?;
    let mut words = vec!["lr-add".to_owned(), "lr".to_owned()];
    let mut ends = Vec::new();
    for (at, (switch, port, address, end)) in SEGMENTS.into_iter().enumerate() {
        let (vif, mac, peer) = (format!("p{at}"), format!("02:52:00:00:00:{at:02x}"), format!("{switch}-lr"));
        let own = mac_of(at);
        let more = format!(
            "-- ls-add {switch} -- lrp-add lr {port} {mac} {address}/24 -- lsp-add {switch} {peer} -- lsp-set-type {peer} router \
             -- lsp-set-addresses {peer} router -- lsp-set-options {peer} router-port={port} -- lsp-add {switch} {vif} \
             -- lsp-set-addresses {vif} {own} -- static-mac-binding-add {port} {end} {own}"
        );
        words.extend(more.split_whitespace().map(str::to_owned));
        let id = format!("external_ids:iface-id={vif}");
        ends.push(EndHost::plug(
            host,
            BRIDGE,
            &vif,
            &own,
            (end, Some(address)),
            &["--", "set", "Interface", &vif, &id],
        )?);
    }
    for hop in 0..hops {
        let (to, (_, port, ..)) = (gateway(hop, true).to_string(), SEGMENTS[1]);
        words.extend(["--", "static-mac-binding-add", port, &to, &mac_of(1)].map(str::to_owned));
    }
    host.vsctl(&["add-br", PLAIN, "--", "set", "Bridge", PLAIN, "datapath_type=netdev"])?;
    for (at, ip) in PLAIN_ADDRESSES.into_iter().enumerate() {
        ends.push(EndHost::plug(host, PLAIN, &format!("p{}", 2 + at), &mac_of(2 + at), (ip, None), &[])?);
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
    lab.step(format!("{FIRST} first packets by OVN, and by a bridge that learns"));
    let [from, to, plain, _other] = ends.as_slice() else { unreachable!("there are four") };
    let targets = forward::targets(table, to)?;
    plain.wait_reachable(PLAIN_ADDRESSES[1], LIMIT)?;
    from.wait_reachable(&targets[0], LIMIT)?;
    let (mut ratios, mut firsts) = (Vec::new(), Vec::new());
    for target in &targets {
        let learned = forward::first(host, plain, PLAIN_ADDRESSES[1])?;
        let routed = forward::first(host, from, target)?;
        ratios.push(routed / learned);
        firsts.push(routed);
    }
    let routes = table.routes.len();
    let figures = json!({
        "ovn_routes": routes,
        "ovn_load_s": round(load),
        "ovn_change_ms_p50": round(median(&mut changes)?),
        "ovn_first_packet_ms": round(median(&mut firsts)?),
        "ovn_first_packet_ratio": round(median(&mut ratios)?),
        "ovn_bytes_per_route": round((full - base) / routes as f64),
    });
    let Value::Object(figures) = figures else { unreachable!("it is one") };
    Ok(figures)
}

fn mac_of(end: usize) -> String {
    format!("02:48:00:00:00:{end:02x}")
}

/// Bytes that all of its processes have in memory.
fn memory(ovn: &Ovn) -> Result<f64> {
    ovn.processes().map(resident).sum::<Result<f64>>().context("a process of OVN")
}
