//! The topology of `chain`: lines of routers with an end host at every segment that is asked for.
//!
//! In line number N, segment k is 10.N.k.0/24. Router i joins segments i−1 (its link `left`, host part 2) and i
//! (its link `right`, host part 1); end hosts have host part 10. Static routes: everything to the right, segment 0
//! to the left.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::endhost::{EndHost, NIC};
use crate::host::Vif;
use crate::node::{BRIDGE, Node, Pki};
use crate::scenario::Lab;
use crate::trunk::{Trunk, TrunkKind};
use crate::virtual_router::{Link, VirtualRouter, vif_mac};

/// What a line is made of.
struct Plan {
    name: &'static str,
    number: u8,
    /// The node of each router, from left to right.
    homes: &'static [usize],
    /// Segments that have an end host, and its node.
    ends: &'static [(u8, usize)],
    /// More routes of single routers, as `ip -batch` takes them.
    routes: &'static [(usize, &'static str)],
}

const ALONE: Plan = Plan {
    name: "chain",
    number: 1,
    homes: &[0; 16],
    ends: &[(0, 0), (1, 0), (2, 0), (4, 0), (8, 0), (16, 0)],
    routes: &[
        (4, "route add blackhole 10.251.0.0/16\n"),
        (8, "route add unreachable 10.252.0.0/16\nroute add prohibit 10.253.0.0/16\n"),
    ],
};
const CROSS: Plan =
    Plan { name: "cross", number: 2, homes: &[0, 1, 0, 1], ends: &[(0, 0), (4, 1)], routes: &[] };
const STICK: Plan = Plan { name: "stick", number: 3, homes: &[0], ends: &[(0, 1), (1, 1)], routes: &[] };

impl Plan {
    fn router(&self, i: u8) -> String {
        format!("{}-r{i}", self.name)
    }

    /// A router's number: unique in the lab.
    fn number_of(&self, i: u8) -> u8 {
        self.number * 20 + i
    }

    /// What of it is on a node, as `xenflow apply` takes it.
    fn describe(&self, node: usize) -> String {
        let Self { name, number, homes, ends, .. } = *self;
        let mut text = format!("[networks.{name}]\n");
        for k in 0..=homes.len() {
            let vlan = usize::from(number) * 100 + k;
            let _ = writeln!(text, "segments.{name}-{k} = {{ vlan = {vlan} }}");
        }
        for (k, _) in ends.iter().filter(|(_, home)| *home == node) {
            let _ = writeln!(text, "access.{name}-h{k} = {{ segment = \"{name}-{k}\" }}");
        }
        for (i, _) in (1..).zip(homes).filter(|(_, home)| **home == node) {
            let (router, mac) = (self.router(i), |index| vif_mac(self.number_of(i).into(), index));
            let _ = writeln!(text, "[networks.{name}.routers.{router}]");
            for (index, (side, k)) in [("left", i - 1), ("right", i)].into_iter().enumerate() {
                let mac = mac(index);
                let _ =
                    writeln!(text, "vifs.{router}-{side} = {{ segment = \"{name}-{k}\", mac = \"{mac}\" }}");
            }
            let _ = writeln!(text, "vifs.{router}-ctl = {{ control = true, mac = \"{}\" }}", mac(99));
        }
        text
    }
}

/// All that is on a node.
fn describe(name: &str, node: usize) -> String {
    let mut text = format!("owner = \"lab\"\n[nodes.{name}]\nuplinks = [\"{}\"]\n", Trunk::PORT);
    for plan in [ALONE, CROSS, STICK] {
        if plan.homes.contains(&node) || plan.ends.iter().any(|(_, home)| *home == node) {
            text.push_str(&plan.describe(node));
        }
    }
    text
}

/// Routers in a line.
#[derive(Debug)]
pub(super) struct Line {
    number: u8,
    name: &'static str,
    /// From left to right.
    pub(super) routers: Vec<VirtualRouter>,
    /// The segment of each end host.
    ends: Vec<(u8, EndHost)>,
}

/// Everything.
#[derive(Debug)]
pub(super) struct Topology {
    /// Sixteen routers on host a.
    pub(super) alone: Line,
    /// Four routers on a, b, a, b.
    pub(super) cross: Line,
    /// One router on a between end hosts on b.
    pub(super) stick: Line,
    pub(super) trunk: Trunk,
    pub(super) nodes: [Node; 2],
}

impl Topology {
    /// Builds everything and starts switches, daemons and clients; does not wait for flows.
    pub(super) fn build(lab: &Lab) -> Result<Self> {
        lab.step("making hosts a and b with their databases, certificates and the trunk");
        let pki = Pki::create(lab)?;
        let mut nodes = [Node::create(lab, "a", &pki)?, Node::create(lab, "b", &pki)?];
        let trunk = Trunk::connect(TrunkKind::Bridge, &[nodes[0].host(), nodes[1].host()])?;
        // The switches start last: to plug a vif in costs several times as much while they run.
        for (index, node) in nodes.iter().enumerate() {
            node.host().vsctl(&["add-br", BRIDGE])?;
            node.host().add_port(BRIDGE, Trunk::PORT, &[])?;
            // In one command: there are about a hundred things, and processes are slow in a lab.
            let file = lab.work().join(format!("{}.toml", node.host().name()));
            std::fs::write(&file, describe(node.host().name(), index))?;
            node.xenflow(&["apply", "-f", &file.display().to_string()])?;
        }
        lab.step("plugging in 21 routers and their end hosts");
        let mut alone = Line::build(lab, &nodes, &pki, &ALONE)?;
        let mut cross = Line::build(lab, &nodes, &pki, &CROSS)?;
        let mut stick = Line::build(lab, &nodes, &pki, &STICK)?;
        lab.step("starting the switches, the daemons and xenflow-guest in every router");
        for node in &mut nodes {
            node.start()?;
        }
        for line in [&mut alone, &mut cross, &mut stick] {
            for router in &mut line.routers {
                router.start_client()?;
            }
        }
        Ok(Self { alone, cross, stick, trunk, nodes })
    }
}

impl Line {
    fn build(lab: &Lab, nodes: &[Node; 2], pki: &Pki, plan: &Plan) -> Result<Self> {
        let Plan { name, number, homes, ends, routes: more } = *plan;
        let mut routers = Vec::new();
        for (i, home) in (1..).zip(homes) {
            let address = |k: usize, host: u8| format!("10.{number}.{k}.{host}");
            let (left, right) = (format!("{}/24", address(i - 1, 2)), format!("{}/24", address(i, 1)));
            let links = [
                Link { name: "left", segment: "", address: &left },
                Link { name: "right", segment: "", address: &right },
            ];
            let (id, node) = (u8::try_from(i)?, nodes.get(*home).context("no such node")?);
            let router = VirtualRouter::described(lab, pki, (&plan.router(id), plan.number_of(id).into()))?;
            router.plug(node, &links)?;
            let mut routes = String::new();
            if i < homes.len() {
                routes.push_str(&format!("route add default via {}\n", address(i, 2)));
            }
            if i > 1 {
                routes.push_str(&format!("route add 10.{number}.0.0/24 via {}\n", address(i - 1, 1)));
            }
            routes.extend(more.iter().filter(|(at, _)| *at == i).map(|(_, lines)| *lines));
            router.guest().netns().ip_batch(&routes)?;
            routers.push(router);
        }
        let mut line = Self { number, name, routers, ends: Vec::new() };
        for (k, home) in ends {
            let node = nodes.get(*home).context("no such node")?;
            let end = EndHost::create(&format!("{name}-h{k}"))?;
            let id = line.port(*k);
            let mac = format!("02:48:00:00:{number:02x}:{k:02x}");
            node.plug(end.netns(), NIC, &Vif { port: &id, iface_id: &id, mac: &mac, vm_uuid: None })?;
            let gateway = if *k == 0 { line.left(1) } else { Ipv4Addr::new(10, number, *k, 1) };
            end.configure(&format!("{}/24", line.address(*k)), Some(&gateway.to_string()))?;
            line.ends.push((*k, end));
        }
        Ok(line)
    }

    /// The end host of a segment.
    pub(super) fn end(&self, segment: u8) -> Result<&EndHost> {
        let end = self.ends.iter().find(|(k, _)| *k == segment);
        end.map(|(_, end)| end).with_context(|| format!("{} has no end host at segment {segment}", self.name))
    }

    /// Segments with an end host that the one of segment 0 can send to, nearest first.
    pub(super) fn targets(&self) -> impl Iterator<Item = u8> {
        self.ends.iter().map(|(segment, _)| *segment).filter(|segment| *segment != 0)
    }

    /// The switch port of a segment's end host.
    pub(super) fn port(&self, segment: u8) -> String {
        format!("{}-h{segment}", self.name)
    }

    /// The address of a segment's end host.
    pub(super) fn address(&self, segment: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, segment, 10)
    }

    /// The address of router `i`, counted from 1, toward segment 0: the one it speaks with to the end host there.
    pub(super) fn left(&self, i: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, i - 1, 2)
    }

    /// Its name.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// The VLAN of a segment.
    pub(super) fn vlan(&self, segment: u8) -> u16 {
        u16::from(self.number) * 100 + u16::from(segment)
    }

    /// Packets that the routers' kernels have forwarded.
    pub(super) fn forwarded(&self) -> Result<u64> {
        self.routers.iter().map(|router| router.guest().forwarded()).sum()
    }
}
