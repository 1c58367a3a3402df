//! The control network between a guest and two hosts: a bridge with the guest's control interface at one port and a
//! vif of each host at the others. So the guest's link is up whichever host its vif is plugged in at, and no link
//! event tells it of a move unless one is wanted.

use anyhow::Result;

use crate::host::Vif;
use crate::net::{self, Netns};
use crate::node::{BRIDGE, Node};
use crate::process;
use crate::virtual_router::{CONTROL, VirtualRouter};

const GUEST: &str = "guest";
/// Bits a second while the way is slow.
const SLOW: &str = "400kbit";

/// See the module.
pub(super) struct Wire {
    ns: Netns,
    port: String,
    mac: String,
}

impl Wire {
    /// In the place of the vif that leads from the router to the first host directly. Neither host has one after it.
    pub(super) fn create(r1: &VirtualRouter, nodes: [&Node; 2]) -> Result<Self> {
        let (port, mac) = (r1.port(CONTROL), r1.mac(99));
        nodes[0].host().detach(BRIDGE, &port)?;
        nodes[0].host().netns().ip(&["link", "del", &port])?;
        let ns = Netns::create("wire")?;
        ns.sysctls(&[("net.ipv6.conf.default.disable_ipv6", "1")])?;
        // It learns nothing: the hosts have one MAC, and a guest finds the other one without its having said a word.
        ns.ip_batch(
            "link add wire type bridge stp_state 0 mcast_snooping 0 ageing_time 0\nlink set wire up\n",
        )?;
        net::veth((&ns, GUEST), (r1.guest().netns(), CONTROL), Some(&mac))?;
        let mut lines = format!("link set dev {GUEST} master wire up\n");
        for node in nodes {
            let name = node.host().name();
            net::veth((node.host().netns(), &port), (&ns, name), None)?;
            node.host().quiet(&port)?;
            lines.push_str(&format!("link set dev {name} master wire up\n"));
        }
        ns.ip_batch(&lines)?;
        r1.guest().netns().ip(&["link", "set", CONTROL, "up"])?;
        Ok(Self { ns, port, mac })
    }

    /// Puts the vif there at a host, all but the last step.
    pub(super) fn prepare(&self, at: &Node) -> Result<()> {
        let iface_id = format!("r1-{CONTROL}");
        let vif = Vif { port: &self.port, iface_id: &iface_id, mac: &self.mac, vm_uuid: None };
        at.host().declare(BRIDGE, &vif)
    }

    /// The last step: from now on the vif is up there.
    pub(super) fn up(&self, at: &Node) -> Result<()> {
        at.host().netns().ip(&["link", "set", &self.port, "up"])?;
        Ok(())
    }

    /// Takes the vif away from a host.
    pub(super) fn leave(&self, from: &Node) -> Result<()> {
        from.host().netns().ip(&["link", "set", &self.port, "down"])?;
        from.host().detach(BRIDGE, &self.port)
    }

    /// Has the guest see its link go, or come.
    pub(super) fn set_carrier(&self, up: bool) -> Result<()> {
        self.ns.ip(&["link", "set", GUEST, if up { "up" } else { "down" }])?;
        Ok(())
    }

    /// From now on what is said to a host takes its time.
    pub(super) fn slow(&self, r1: &VirtualRouter, to: &Node) -> Result<()> {
        // One frame at a time: a burst of many would pass at once.
        r1.guest().netns().ip(&["link", "set", "dev", CONTROL, "gso_max_segs", "1"])?;
        self.queue(&["replace", "dev", to.host().name(), "root", "handle", "1:", "netem", "rate", SLOW])
    }

    /// From now on nothing gets to a host, nor what is under way to it.
    pub(super) fn cut(&self, to: &Node) -> Result<()> {
        self.queue(&["replace", "dev", to.host().name(), "root", "handle", "2:", "netem", "loss", "100%"])
    }

    /// From now on everything gets to it at once.
    pub(super) fn mend(&self, to: &Node) -> Result<()> {
        self.queue(&["del", "dev", to.host().name(), "root"])
    }

    fn queue(&self, args: &[&str]) -> Result<()> {
        process::output(std::process::Command::new("tc").args(["-n", self.ns.name(), "qdisc"]).args(args))?;
        Ok(())
    }
}
