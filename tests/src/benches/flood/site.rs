//! Who floods, who suffers, and what is between them: on XenFlow, or on a bridge as everybody has it with routers
//! that forward themselves.
//!
//! Two networks with the same addresses, red and blue: a victim's two end hosts with a router between them in each.
//! The attacker is on the segment of red's first victim host; red's router also leads to a sink.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::endhost::{EndHost, NIC};
use crate::guest::Guest;
use crate::host::{Host, Vif};
use crate::net::Netns;
use crate::node::{self, Node, Pki};
use crate::process::{self, wait_for};
use crate::scenario::Lab;
use crate::virtual_router::{Link, VirtualRouter, vif_mac};

const ATTACKER_PORT: &str = "red-evil";
/// The attacker's MAC address.
pub(super) const ATTACKER_MAC: &str = "02:48:00:00:00:66";
/// The victim's far end.
pub(super) const TARGET: &str = "10.2.0.10";
/// Addresses behind the victim's far end, each by a route of its own: the first, the step, how many.
pub(super) const FRESH: (Ipv4Addr, u32, u32) = (Ipv4Addr::new(10, 99, 0, 1), 256, 250);
const NETWORKS: [(&str, [u16; 2]); 2] = [("red", [11, 12]), ("blue", [21, 22])];
const SINK_MAC: &str = "02:48:00:00:00:20";
const PLAIN_BRIDGE: &str = "br0";
const LIMIT: Duration = Duration::from_secs(60);

/// Who wants to be served as if nothing were.
#[derive(Debug)]
pub(super) struct Victim {
    pub(super) network: &'static str,
    pub(super) near: EndHost,
    pub(super) far: EndHost,
}

#[derive(Debug)]
enum Routers {
    XenFlow(Vec<VirtualRouter>),
    Plain(Vec<Guest>),
}

#[derive(Debug)]
enum Switch {
    XenFlow(Box<Node>),
    Plain(Box<Host>),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Site {
    // Dropped from top to bottom: the switch last.
    pub(super) victims: Vec<Victim>,
    pub(super) attacker: EndHost,
    sink: EndHost,
    routers: Routers,
    switch: Switch,
}

/// The MAC address of a network's router on its first or second segment.
pub(super) fn router_mac(network: usize, link: usize) -> String {
    vif_mac(u16::try_from(network + 1).unwrap_or(u16::MAX), link)
}

impl Site {
    /// On XenFlow; with `macs`, access ports take only the addresses of their own hosts as sources.
    pub(super) fn xenflow(lab: &Lab, macs: bool) -> Result<Self> {
        let pki = Pki::create(lab)?;
        let mut node = Node::create(lab, "a", &pki)?;
        // Configured before the switch and the daemon run, which is faster.
        node.host().vsctl(&["add-br", node::BRIDGE])?;
        let mut routers = Vec::new();
        for ((network, vlans), number) in NETWORKS.into_iter().zip(1..) {
            node.configure(&format!(
                "network add {network}\n\
                 segment add {network}-lan1 --network {network} --vlan {}\n\
                 segment add {network}-lan2 --network {network} --vlan {}\n",
                vlans[0], vlans[1]
            ))?;
            let (lan1, lan2) = (format!("{network}-lan1"), format!("{network}-lan2"));
            let links = [
                Link { name: "lan1", segment: &lan1, address: "10.1.0.1/24" },
                Link { name: "lan2", segment: &lan2, address: "10.2.0.1/24" },
            ];
            let name = format!("{network}-r");
            routers.push(VirtualRouter::create(lab, &node, &pki, (network, &name, number), &links)?);
        }
        let plug = |port: &str, segment: &str, _, end: &EndHost, mac: &str| {
            let own = if macs { format!("--mac {mac}") } else { String::new() };
            node.configure(&format!("access add {port} --segment {segment} {own}"))?;
            node.plug(end.netns(), NIC, &Vif { port, iface_id: port, mac, vm_uuid: None })
        };
        let (victims, attacker, sink) = ends(plug)?;
        for router in &routers {
            routes(router.guest().netns(), router.name() == "red-r")?;
        }
        node.start()?;
        for router in &mut routers {
            router.start_client()?;
        }
        for router in &routers {
            node.wait_session(router.name(), LIMIT)?;
        }
        let (routers, switch) = (Routers::XenFlow(routers), Switch::XenFlow(Box::new(node)));
        Self { victims, attacker, sink, routers, switch }.converged()
    }

    /// On a bridge in plain `NORMAL` switching.
    pub(super) fn plain(lab: &Lab) -> Result<Self> {
        let mut host = Host::create(lab, "p")?;
        host.vsctl(&["add-br", PLAIN_BRIDGE])?;
        let mut routers = Vec::new();
        for (index, (network, vlans)) in NETWORKS.into_iter().enumerate() {
            let router = Guest::create(lab, &format!("{network}-r"))?;
            for (link, vlan) in vlans.into_iter().enumerate() {
                let (port, interface) = (format!("{network}-r{link}"), format!("lan{}", link + 1));
                host.plug(&port, router.netns(), &interface, &router_mac(index, link))?;
                host.add_port(PLAIN_BRIDGE, &port, &[&format!("tag={vlan}")])?;
                router.netns().configure(&interface, &[&format!("10.{}.0.1/24", link + 1)])?;
            }
            routes(router.netns(), index == 0)?;
            routers.push(router);
        }
        let plug = |port: &str, _: &str, vlan: u16, end: &EndHost, mac: &str| {
            host.plug(port, end.netns(), NIC, mac)?;
            host.add_port(PLAIN_BRIDGE, port, &[&format!("tag={vlan}")])
        };
        let (victims, attacker, sink) = ends(plug)?;
        host.start_vswitchd()?;
        // As an access list would: without it the victim's first packets would all go by one flow of the datapath.
        let (first, step, count) = FRESH;
        let flows: String = (0..count)
            .map(|k| Ipv4Addr::from(u32::from(first) + step * k))
            .map(|address| format!("priority=100,ip,nw_dst={address}/24,actions=NORMAL\n"))
            .collect();
        process::output_with_input(
            host.command("ovs-ofctl").args(["--bundle", "add-flows", PLAIN_BRIDGE, "-"]),
            &flows,
        )?;
        let (routers, switch) = (Routers::Plain(routers), Switch::Plain(Box::new(host)));
        Self { victims, attacker, sink, routers, switch }.converged()
    }

    fn converged(self) -> Result<Self> {
        self.sink.wait_reachable("10.2.0.1", LIMIT)?;
        self.attacker.wait_reachable("10.1.0.1", LIMIT)?;
        for victim in &self.victims {
            wait_for(&format!("{}'s routes to work", victim.network), LIMIT, || {
                let (first, step, count) = FRESH;
                let last = Ipv4Addr::from(u32::from(first) + step * (count - 1));
                let ping = victim.near.ping(&last.to_string(), 3, 20)?;
                Ok((ping.lost() == 0).then_some(()))
            })?;
        }
        Ok(self)
    }

    /// The host.
    pub(super) fn host(&self) -> &Host {
        match &self.switch {
            Switch::XenFlow(node) => node.host(),
            Switch::Plain(host) => host,
        }
    }

    /// The bridge, where it is XenFlow's.
    pub(super) fn xenflow_bridge(&self) -> Option<&'static str> {
        matches!(self.switch, Switch::XenFlow(_)).then_some(node::BRIDGE)
    }

    /// Names and ids of the processes whose load is of interest.
    pub(super) fn processes(&mut self) -> Result<Vec<(&'static str, u32)>> {
        let mut processes = match &mut self.switch {
            Switch::XenFlow(node) => vec![
                ("xenflow-dom0", node.daemon()?.id()),
                ("ovs-vswitchd", node.host_mut().vswitchd()?.id()),
            ],
            Switch::Plain(host) => vec![("ovs-vswitchd", host.vswitchd()?.id())],
        };
        if let Routers::XenFlow(routers) = &mut self.routers {
            processes.push(("xenflow-guest", routers.first_mut().context("no router")?.client()?.id()));
        }
        Ok(processes)
    }

    /// The namespace of red's router.
    pub(super) fn router(&self) -> Result<&Netns> {
        match &self.routers {
            Routers::XenFlow(routers) => routers.first().map(|router| router.guest().netns()),
            Routers::Plain(routers) => routers.first().map(Guest::netns),
        }
        .context("no router")
    }
}

/// End hosts, plugged in by `plug` (port, segment, VLAN, end host, MAC address): victims, attacker, sink.
fn ends(
    plug: impl Fn(&str, &str, u16, &EndHost, &str) -> Result<()>,
) -> Result<(Vec<Victim>, EndHost, EndHost)> {
    let end = |port: &str, segment: &str, vlan, mac: &str, net: u8, host: u8| {
        let end = EndHost::create(port)?;
        plug(port, segment, vlan, &end, mac)?;
        end.configure(&format!("10.{net}.0.{host}/24"), Some(&format!("10.{net}.0.1")))?;
        anyhow::Ok(end)
    };
    let mut victims = Vec::new();
    for (index, (network, vlans)) in NETWORKS.into_iter().enumerate() {
        let mac = |host| format!("02:48:00:00:{:02x}:{host:02x}", index + 1);
        let near = end(&format!("{network}-h1"), &format!("{network}-lan1"), vlans[0], &mac(1), 1, 10)?;
        let far = end(&format!("{network}-h2"), &format!("{network}-lan2"), vlans[1], &mac(2), 2, 10)?;
        let (first, step, count) = FRESH;
        let addresses: String = (0..count)
            .map(|k| format!("address add {}/32 dev lo\n", Ipv4Addr::from(u32::from(first) + step * k)))
            .collect();
        far.netns().ip_batch(&addresses)?;
        victims.push(Victim { network, near, far });
    }
    let (_, vlans) = NETWORKS[0];
    let attacker = end(ATTACKER_PORT, "red-lan1", vlans[0], ATTACKER_MAC, 1, 66)?;
    let sink = end("red-sink", "red-lan2", vlans[1], SINK_MAC, 2, 20)?;
    Ok((victims, attacker, sink))
}

/// Routes of a router: to the victim's fresh addresses, and for red to what the attacker floods.
fn routes(ns: &Netns, floods: bool) -> Result<()> {
    let (first, step, count) = FRESH;
    let mut lines: String = (0..count)
        .map(|k| {
            format!("route add {}/24 via {TARGET}\n", Ipv4Addr::from((u32::from(first) & !255) + step * k))
        })
        .collect();
    if floods {
        // 11/8 and 2001:db8:99::/48 lead to the sink; 10.64/16 is on the link and empty; 12/8 leads nowhere.
        lines.push_str(&format!(
            "neigh add 10.2.0.20 lladdr {SINK_MAC} dev lan2 nud permanent\n\
             route add 11.0.0.0/8 via 10.2.0.20\n\
             address add 10.64.0.1/16 dev lan2\n\
             address add 2001:db8:2::1/64 dev lan2\n\
             neigh add 2001:db8:2::20 lladdr {SINK_MAC} dev lan2 nud permanent\n\
             route add 2001:db8:99::/48 via 2001:db8:2::20\n"
        ));
    }
    ns.ip_batch(&lines)
}
