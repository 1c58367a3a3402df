//! Two hosts, two networks with the same addresses, and what is measured on them. `demo` and its negative
//! controls share this, so that a control tries the very detector whose zero the demo reports.
//!
//! In each network: end host h1 – router r1 on host a – core segment – router r2 on host b – end host h2. FRR runs
//! OSPF between r1 and r2 through the data plane; `xenflow-guest` streams what OSPF learns.

pub(super) mod leaks;

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::endhost::{EndHost, NIC, Ping};
use crate::host::Vif;
use crate::node::{BRIDGE, Node, Pki};
use crate::process::wait_for;
use crate::scenario::Lab;
use crate::trunk::{Trunk, TrunkKind};
use crate::virtual_router::{Link, VirtualRouter};

/// Where h2 is, in both networks.
pub(super) const H2: &str = "10.2.0.10";
/// Prefixes behind h2, each a route of its own: 10.99.1.0/24 and so on.
pub(super) const FAR_PREFIXES: u8 = 16;
/// VLAN of the pair of end hosts that plain Open vSwitch joins, for comparison.
const PLAIN_VLAN: &str = "99";
/// The bound for OSPF and the sessions together.
const CONVERGE: Duration = Duration::from_secs(60);

/// One of the two networks.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) name: &'static str,
    /// VLANs of its segments: lan1, core, lan2.
    pub(super) vlans: [u16; 3],
    pub(super) h: [EndHost; 2],
    pub(super) r: [VirtualRouter; 2],
}

/// The whole topology.
#[derive(Debug)]
pub(super) struct Twin {
    pub(super) networks: [Network; 2],
    /// End hosts joined by `NORMAL` switching over the same bridges and the same trunk.
    pub(super) plain: [EndHost; 2],
    pub(super) trunk: Trunk,
    pub(super) nodes: [Node; 2],
}

/// MAC address of an end host.
pub(super) fn host_mac(network: usize, host: usize) -> String {
    format!("02:48:00:00:{network:02x}:{host:02x}")
}

impl Twin {
    /// Builds everything and starts FRR, switches, daemons and clients; does not wait for routes.
    pub(super) fn build(lab: &Lab) -> Result<Self> {
        lab.step("making hosts a and b with their databases, certificates and the trunk");
        let pki = Pki::create(lab)?;
        let mut nodes = [Node::create(lab, "a", &pki)?, Node::create(lab, "b", &pki)?];
        let trunk = Trunk::connect(TrunkKind::Bridge, &[nodes[0].host(), nodes[1].host()])?;
        // The switches start last: to plug a vif in costs several times as much while they run.
        for node in &nodes {
            node.host().vsctl(&["add-br", BRIDGE])?;
            node.add_trunk()?;
        }
        lab.step("configuring networks red and blue, plugging in routers and end hosts");
        let mut networks = [
            network(lab, &nodes, &pki, 0, "red", [11, 12, 13])?,
            network(lab, &nodes, &pki, 1, "blue", [21, 22, 23])?,
        ];
        let plain = [EndHost::create("plain1")?, EndHost::create("plain2")?];
        for (index, (end, node)) in plain.iter().zip(&nodes).enumerate() {
            node.host().plug("plain", end.netns(), NIC, &host_mac(9, index))?;
            node.host().add_port(BRIDGE, "plain", &[&format!("tag={PLAIN_VLAN}")])?;
            end.configure(&format!("10.3.0.{}/24", index + 1), None)?;
        }
        lab.step("starting FRR, the switches, the daemons, and xenflow-guest in four routers");
        for network in &mut networks {
            for (router, number) in network.r.iter_mut().zip(1..) {
                // Point to point: no election of a designated router, which takes its time. A machine that stands still
                // for seconds must not end an adjacency: neighbors are dead after 20 s.
                let ospf = format!(
                    "interface core\n ip ospf network point-to-point\n ip ospf hello-interval 1\n ip ospf dead-interval 20\n\
                     interface lan\n ip ospf passive\n\
                     router ospf\n ospf router-id 10.0.0.{number}\n redistribute kernel\n network 10.0.0.0/8 area 0\n"
                );
                router.guest_mut().start_frr(&[("ospfd", &ospf)])?;
            }
        }
        for node in &mut nodes {
            node.start()?;
            // Flows of an operator's own, without XenFlow's cookie: they are left alone.
            let port = node.host().ofport("plain")?;
            let from_port = format!("priority=500,in_port={port},actions=NORMAL");
            let from_trunk = format!("priority=500,dl_vlan={PLAIN_VLAN},actions=NORMAL");
            node.host().ofctl(&["add-flow", BRIDGE, &from_port])?;
            node.host().ofctl(&["add-flow", BRIDGE, &from_trunk])?;
        }
        for router in networks.iter_mut().flat_map(|network| &mut network.r) {
            router.start_client()?;
        }
        Ok(Self { networks, plain, trunk, nodes })
    }

    /// Waits until OSPF's routes are flows on both hosts and the neighbors are resolved. Gives back how many
    /// packets the routers forwarded themselves meanwhile (gleans).
    pub(super) fn converge(&self, lab: &Lab) -> Result<u64> {
        lab.step("waiting for OSPF through the data plane, and for its routes as flows");
        for network in &self.networks {
            network.r[0].guest().wait_ospf_full(1, CONVERGE)?;
            for (router, prefix) in network.r.iter().zip(["10.2.0.0/24", "10.1.0.0/24"]) {
                router.guest().wait_route(prefix, CONVERGE)?;
            }
        }
        for (node, prefix) in self.nodes.iter().zip(["10.2.0.0/24", "10.1.0.0/24"]) {
            let name = node.host().name();
            wait_for(&format!("flows of both routers to {prefix} on {name}"), CONVERGE, || {
                let flows = node.flows()?;
                let routed = |line: &&str| {
                    line.contains(&format!("nw_dst={prefix} ")) || line.contains(&format!("nw_dst={prefix},"))
                };
                // A route by a next hop goes on to the next table; a punt goes to l2.
                let count = flows.lines().filter(routed).filter(|line| line.contains("goto_table:4")).count();
                Ok((count == 2).then_some(()))
            })?;
        }
        lab.step("first packets: the routers resolve their neighbors");
        let before = self.forwarded()?;
        for network in &self.networks {
            wait_for(&format!("{}'s routers to forward no more themselves", network.name), CONVERGE, || {
                let before = self.forwarded()?;
                let ping = network.h[0].ping(H2, 5, 50)?;
                Ok((ping.lost() == 0 && self.forwarded()? == before).then_some(()))
            })?;
        }
        Ok(self.forwarded()? - before)
    }

    /// Packets that the four routers' kernels have forwarded.
    pub(super) fn forwarded(&self) -> Result<u64> {
        let mut sum = 0;
        for router in self.networks.iter().flat_map(|network| &network.r) {
            sum += router.guest().forwarded()?;
        }
        Ok(sum)
    }
}

impl Network {
    /// h1 → h2.
    pub(super) fn ping(&self, count: u32, interval_ms: u32) -> Result<Ping> {
        let ping = self.h[0].ping(H2, count, interval_ms)?;
        ensure!(ping.sent == count, "ping sent {} of {count}", ping.sent);
        Ok(ping)
    }

    /// What the routers know of the way from one end host to the other, for the reader of a failure.
    fn state(&self) -> String {
        let mut text = format!("{}'s routers know:", self.name);
        for router in &self.r {
            let ns = router.guest().netns();
            for args in [["route", "show"], ["neigh", "show"]] {
                let known = ns.ip(&args).unwrap_or_else(|error| format!("{error:#}"));
                text.push_str(&format!("\n{} of {}:\n{known}", args[0], ns.name()));
            }
        }
        text
    }
}

fn network(
    lab: &Lab,
    nodes: &[Node; 2],
    pki: &Pki,
    index: usize,
    name: &'static str,
    vlans: [u16; 3],
) -> Result<Network> {
    let [a, b] = nodes;
    let [lan1, core, lan2] = ["lan1", "core", "lan2"].map(|segment| format!("{name}-{segment}"));
    for node in nodes {
        node.configure(&format!(
            "network add {name}\n\
             segment add {lan1} --network {name} --vlan {}\n\
             segment add {core} --network {name} --vlan {}\n\
             segment add {lan2} --network {name} --vlan {}\n",
            vlans[0], vlans[1], vlans[2]
        ))?;
    }
    let number = u16::try_from(index * 2 + 1)?;
    let make = |node, router: &str, number, [(lan, lan_address), (core, core_address)]: [(&str, &str); 2]| {
        let links = [
            Link { name: "lan", segment: lan, address: lan_address },
            Link { name: "core", segment: core, address: core_address },
        ];
        VirtualRouter::create(lab, node, pki, (name, &format!("{name}-{router}"), number), &links)
    };
    let r1 = make(a, "r1", number, [(&lan1, "10.1.0.1/24"), (&core, "10.0.0.1/24")])?;
    let r2 = make(b, "r2", number + 1, [(&lan2, "10.2.0.1/24"), (&core, "10.0.0.2/24")])?;

    let h = [EndHost::create(&format!("{name}-h1"))?, EndHost::create(&format!("{name}-h2"))?];
    for (side, (end, node)) in h.iter().zip(nodes).enumerate() {
        let id = format!("{name}-h{}", side + 1);
        let segment = if side == 0 { &lan1 } else { &lan2 };
        node.configure(&format!("access add {id} --segment {segment}"))?;
        let mac = host_mac(index, side);
        node.plug(
            end.netns(),
            NIC,
            &Vif { port: &format!("{name}-h"), iface_id: &id, mac: &mac, vm_uuid: None },
        )?;
        let net = side + 1;
        end.configure(&format!("10.{net}.0.10/24"), Some(&format!("10.{net}.0.1")))?;
    }
    let far: String = (1..=FAR_PREFIXES).map(|k| format!("addr add 10.99.{k}.1/32 dev lo\n")).collect();
    h[1].netns().ip_batch(&format!("link set lo up\n{far}"))?;
    let routes: String = (1..=FAR_PREFIXES).map(|k| format!("route add 10.99.{k}.0/24 via {H2}\n")).collect();
    r2.guest().netns().ip_batch(&routes)?;
    Ok(Network { name, vlans, h, r: [r1, r2] })
}
