//! A second host for the router of [`crate::one_router`]. The control vif moves between the two as in a migration; the other vifs are plugged in on both all
//! the time, as they are when a migration ends, so that the guest's links stay as they are and only the session moves.

use anyhow::Result;

use crate::host::Vif;
use crate::node::{BRIDGE, Node, Pki};
use crate::scenario::Lab;
use crate::virtual_router::{CONTROL, VirtualRouter};

/// Makes host b with its own database, which says of r1 what host a's says, and starts it.
pub fn create(lab: &Lab, pki: &Pki, r1: &VirtualRouter) -> Result<Node> {
    let mut node = Node::create(lab, "b", pki)?;
    let host = node.host();
    host.vsctl(&["add-br", BRIDGE])?;
    let mut lines = "network add red\n\
                     segment add lan1 --network red --vlan 11\n\
                     segment add lan2 --network red --vlan 12\n\
                     router add r1 --network red\n"
        .to_owned();
    for (index, lan) in ["lan1", "lan2"].into_iter().enumerate() {
        let (mac, port) = (r1.mac(index), r1.port(lan));
        lines.push_str(&format!("vif add r1-{lan} --router r1 --segment {lan} --mac {mac}\n"));
        host.vsctl(&[
            "add-port",
            BRIDGE,
            &port,
            "--",
            "set",
            "Interface",
            &port,
            "type=internal",
            &format!("external_ids:iface-id=r1-{lan}"),
            &format!("external_ids:attached-mac=\"{mac}\""),
            "external_ids:iface-status=active",
        ])?;
    }
    lines.push_str(&format!("vif add r1-{CONTROL} --router r1 --control --mac {}\n", r1.mac(99)));
    node.configure(&lines)?;
    node.start()?;
    let ups = ["lan1", "lan2"].map(|lan| format!("link set {} up\n", r1.port(lan)));
    node.host().netns().ip_batch(&ups.concat())?;
    Ok(node)
}

/// Takes the control vif from one host, and puts it into the other's namespace, down and not plugged in.
pub fn unplug(r1: &VirtualRouter, from: &Node, to: &Node) -> Result<()> {
    let port = r1.port(CONTROL);
    from.host().detach(BRIDGE, &port)?;
    from.host().netns().ip(&["link", "set", &port, "netns", to.host().netns().name()])?;
    to.host().quiet(&port)
}

/// Plugs the control vif in where [`unplug`] has put it.
pub fn plug(r1: &VirtualRouter, to: &Node) -> Result<()> {
    let (port, mac) = (r1.port(CONTROL), r1.mac(99));
    let iface_id = format!("r1-{CONTROL}");
    to.host().attach(BRIDGE, &Vif { port: &port, iface_id: &iface_id, mac: &mac, vm_uuid: None })
}
