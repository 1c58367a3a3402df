//! Where a packet comes in, and what an end host there would send.

use std::net::IpAddr;

use xenflow_flow_app::{Attachment, OnSegment, PortNo, RouterId, VifId};
use xenflow_proto::{MacAddr, Name, VlanId};

use super::frame::{Frame, Recipe};
use super::words::Names;
use super::{Made, Plan, Wanted, What};
use crate::core::Core;

/// Of who has no address declared: locally administered, and no vif's.
const MADE_UP: MacAddr = MacAddr([0x02, 0x58, 0x46, 0, 0, 1]);

/// Who is behind a port.
enum Sender {
    /// An end host, with its address.
    Host(VlanId, Option<MacAddr>),
    /// A router's guest.
    Guest(VlanId, MacAddr, VifId),
    /// Other nodes, or nobody that sends packets of a segment.
    Others,
}

/// Finds the port and makes the frame.
///
/// # Errors
/// There is no such port, or no such packet can come from there; with the reason.
pub fn plan(core: &Core, wanted: &Wanted) -> Result<Plan, String> {
    let names = Names::new(core).ok_or("the daemon has not heard of the databases yet")?;
    let in_port = match &wanted.from {
        Some(from) => port(&names, from)?,
        None => {
            let mut uplinks = core.app().topology().uplinks.iter();
            *uplinks.next().ok_or_else(|| format!("node {} has no uplink", core.node()))?
        }
    };
    let mut notes = Vec::new();
    let frame = match &wanted.what {
        What::Frame(frame) => (**frame).clone(),
        What::Made(made) => make(core, &names, in_port, made, &mut notes)?,
    };
    Ok(Plan { in_port, frame, notes, bridge: None })
}

/// The port of an access port or vif, or that of this name.
fn port(names: &Names<'_>, from: &str) -> Result<PortNo, String> {
    let node = names.core.node();
    let topology = names.core.app().topology();
    let vif = from.parse::<Name>().ok().and_then(|name| names.vif_id(&name));
    let vif = vif.and_then(|id| topology.vifs.get(&id)?.port);
    let access = || names.hosts.iter().find(|(_, host)| host.as_str() == from).map(|(port, _)| *port);
    let named = || names.ports.ports.iter().find(|port| port.name == from).map(|port| port.number);
    if let Some(port) = vif.or_else(access).or_else(named) {
        return Ok(port);
    }
    let known =
        |name: &Name| names.desired.access.contains_key(name) || names.desired.vifs.contains_key(name);
    Err(match from.parse::<Name>().is_ok_and(|name| known(&name)) {
        true => format!("{from} has no port on node {node}"),
        false => format!("node {node} has no access port, vif or port of the switch named {from}"),
    })
}

fn sender(core: &Core, in_port: PortNo) -> Sender {
    let topology = core.app().topology();
    if let Some(vlan) = topology.access.get(&in_port) {
        let macs = topology.access_macs.get(&in_port);
        return Sender::Host(*vlan, macs.and_then(|macs| macs.first()).copied());
    }
    let vif = topology.bound_vifs().find(|(.., port)| *port == in_port);
    match vif {
        Some((id, vif, vlan, _)) => Sender::Guest(vlan, vif.mac, id),
        None => Sender::Others,
    }
}

fn make(
    core: &Core,
    names: &Names<'_>,
    in_port: PortNo,
    made: &Made,
    notes: &mut Vec<String>,
) -> Result<Frame, String> {
    let app = core.app();
    let (vlan, mac, own) = match sender(core, in_port) {
        Sender::Host(vlan, mac) => (vlan, mac, None),
        Sender::Guest(vlan, mac, id) => (vlan, Some(mac), Some(id)),
        Sender::Others => {
            return Err(format!(
                "{} is on no segment: say --frame HEX for what comes by it",
                names.port(in_port)
            ));
        }
    };
    let routers: Vec<OnSegment> = app.routers_on(vlan).filter(|router| Some(router.vif) != own).collect();
    let segment = names.segment(vlan);
    let router = match &made.router {
        Some(name) => {
            let row = names.desired.routers.get(name).ok_or_else(|| format!("there is no router {name}"))?;
            let id = RouterId(row.id.get());
            let found = routers.iter().find(|router| router.vif.router == id);
            Some(found.ok_or_else(|| format!("router {name} has no vif on {segment}"))?)
        }
        None => None,
    };
    let source = mac.unwrap_or_else(|| {
        notes.push(format!("{} declares no address: {MADE_UP} is made up as its own", names.port(in_port)));
        MADE_UP
    });
    // What the sender would resolve by ARP.
    let destination = match (made.dst_mac, router, routers.as_slice()) {
        (Some(mac), ..) => mac,
        (None, Some(router), _) => router.mac,
        (None, None, all) => match all.iter().find_map(|router| resolved(core, router, made.dst)) {
            Some(mac) => mac,
            None => match all {
                [only] => only.mac,
                [] => return Err(format!("no router has a vif on {segment}: say --dst-mac MAC")),
                [..] => {
                    let all: Vec<String> = all.iter().map(|router| names.router(router.vif.router)).collect();
                    return Err(format!(
                        "{segment} has several routers: say --router, one of {}",
                        all.join(", ")
                    ));
                }
            },
        },
    };
    let src = match made.src {
        Some(src) => src,
        None => source_of(core, own, &routers, router, source, made.dst, notes)
            .ok_or_else(|| format!("no address of {} is known: say --src ADDRESS", names.port(in_port)))?,
    };
    let recipe = Recipe {
        macs: (source, destination),
        addresses: (src, made.dst),
        protocol: made.protocol,
        ports: made.ports,
        ttl: made.ttl,
    };
    Frame::make(&recipe).map_err(|error| error.to_string())
}

/// Whoever has that address on the segment, as a router knows it.
fn resolved(core: &Core, router: &OnSegment, dst: IpAddr) -> Option<MacAddr> {
    if router.addresses.iter().any(|own| own.addr() == dst) {
        return Some(router.mac);
    }
    let is_on_link = router.addresses.iter().any(|own| own.contains(&dst));
    is_on_link.then(|| core.app().neighbor_on(router.vif, dst)).flatten()
}

/// An address that the sender has, as its routers know it; or one that it could have.
fn source_of(
    core: &Core,
    own: Option<VifId>,
    routers: &[OnSegment],
    router: Option<&OnSegment>,
    mac: MacAddr,
    dst: IpAddr,
    notes: &mut Vec<String>,
) -> Option<IpAddr> {
    let app = core.app();
    let of_family = |net: &&ipnet::IpNet| net.addr().is_ipv4() == dst.is_ipv4();
    if let Some(vif) = own {
        let vlan = match app.topology().vifs.get(&vif)?.attachment {
            Attachment::Segment(vlan) => vlan,
            Attachment::Control => return None,
        };
        let own = app.routers_on(vlan).find(|router| router.vif == vif)?;
        return own.addresses.iter().find(of_family).map(|net| net.addr());
    }
    let of = |router: &OnSegment| app.address_on(router.vif, mac, dst.is_ipv4());
    if let Some(known) = router.into_iter().chain(routers).find_map(of) {
        return Some(known);
    }
    let net = router.into_iter().chain(routers).find_map(|router| router.addresses.iter().find(of_family))?;
    let free =
        net.hosts().take(16).find(|addr| *addr != net.addr() && *addr != dst && *addr != net.network())?;
    notes.push(format!("the sender's address is not known: {free} is made up"));
    Some(free)
}
