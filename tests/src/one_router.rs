//! The smallest site with a router: host a, network red with segments lan1 and lan2, router r1 in both, and where they
//! are wanted an end host in each.
//!
//! Segment lanN is 10.N.0.0/24: r1 is .1, end host hN .10. Owns how all of it is made; what is tried on it belongs to
//! the scenarios and benches.

use std::time::Duration;

use anyhow::Result;

use crate::endhost::{EndHost, NIC};
use crate::host::Vif;
use crate::net::Netns;
use crate::node::{BRIDGE, Node, Pki};
use crate::scenario::Lab;
use crate::virtual_router::{Link, VirtualRouter};

/// The end host in lan1.
pub const H1: &str = "10.1.0.10";
/// Its gateway: r1 there.
pub const GATEWAY: &str = "10.1.0.1";
/// The end host in lan2.
pub const H2: &str = "10.2.0.10";

/// The host and the router.
#[derive(Debug)]
pub struct OneRouter {
    // Dropped from top to bottom.
    /// Its router.
    pub r1: VirtualRouter,
    /// Its host.
    pub node: Node,
    /// Who certifies both.
    pub pki: Pki,
}

impl OneRouter {
    /// Makes and configures the host and the router. Nothing runs yet: to plug a vif in costs several times as much
    /// once the switch does.
    pub fn create(lab: &Lab) -> Result<Self> {
        let pki = Pki::create(lab)?;
        let node = Node::create(lab, "a", &pki)?;
        node.host().vsctl(&["add-br", BRIDGE])?;
        node.configure(
            "network add red\n\
             segment add lan1 --network red --vlan 11\n\
             segment add lan2 --network red --vlan 12\n",
        )?;
        let links = [
            Link { name: "lan1", segment: "lan1", address: "10.1.0.1/24" },
            Link { name: "lan2", segment: "lan2", address: "10.2.0.1/24" },
        ];
        let r1 = VirtualRouter::create(lab, &node, &pki, ("red", "r1", 1), &links)?;
        Ok(Self { r1, node, pki })
    }

    /// Makes h1 and h2, with r1 as their gateway.
    pub fn end_hosts(&self) -> Result<[EndHost; 2]> {
        self.node.configure("access add h1 --segment lan1\naccess add h2 --segment lan2\n")?;
        let h = [EndHost::create("h1")?, EndHost::create("h2")?];
        let vif = |port, mac| Vif { port, iface_id: port, mac, vm_uuid: None };
        let (h1, h2) = (vif("h1", "02:48:00:00:00:01"), vif("h2", "02:48:00:00:00:02"));
        self.node.plug_all(&[(h[0].netns(), NIC, &h1), (h[1].netns(), NIC, &h2)])?;
        h[0].configure(&format!("{H1}/24"), Some(GATEWAY))?;
        h[1].configure(&format!("{H2}/24"), Some("10.2.0.1"))?;
        Ok(h)
    }

    /// Starts the switch, the daemon and r1's client, and waits for the session.
    pub fn start(&mut self, limit: Duration) -> Result<()> {
        self.node.start()?;
        self.r1.start_client()?;
        self.node.wait_session("r1", limit)
    }

    /// The namespace of r1.
    pub fn guest(&self) -> &Netns {
        self.r1.guest().netns()
    }
}
