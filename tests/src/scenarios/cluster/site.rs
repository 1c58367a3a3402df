//! Three hosts, each with a member of the cluster, a daemon that follows it over TLS, a router and two end hosts. Two
//! networks of their own join them beside the trunk: what members say to each other, and all else.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use dom0_server::kept;

use crate::endhost::{EndHost, NIC};
use crate::host::{Host, Vif};
use crate::member::{Member, shown};
use crate::net::Netns;
use crate::node::{BRIDGE, Node, Pki};
use crate::probe::Probe;
use crate::process::{output_with_input, wait_for};
use crate::scenario::Lab;
use crate::trunk::{Trunk, TrunkKind};
use crate::virtual_router::{Link, VirtualRouter};

/// The hosts.
pub(super) const NAMES: [&str; 3] = ["a", "b", "c"];
/// Where members listen for clients.
const CLIENTS: u16 = 6660;
const LIMIT: Duration = Duration::from_secs(30);
const RATE: u32 = 100;
/// Routes that a guest adds and withdraws at a time.
const ROUTES: usize = 20;

/// A network between the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// Between members.
    Raft,
    /// Between daemons and members.
    Clients,
}

impl Wire {
    fn name(self) -> &'static str {
        match self {
            Self::Raft => "raft",
            Self::Clients => "mgmt",
        }
    }

    pub(super) fn address(self, at: usize) -> String {
        let network = if self == Self::Raft { 254 } else { 253 };
        format!("10.{network}.0.{}", at + 1)
    }
}

/// A host with all that is on it.
pub(super) struct Seat {
    // Dropped from top to bottom.
    h: EndHost,
    g: EndHost,
    router: VirtualRouter,
    pub(super) member: Member,
    pub(super) node: Node,
}

impl Seat {
    /// Where its daemon keeps the desired state.
    pub(super) fn kept(&self) -> PathBuf {
        self.node.host().rundir().join(kept::FILE)
    }
}

pub(super) struct Site {
    // Dropped from top to bottom.
    pub(super) seats: Vec<Seat>,
    /// On host b, and without a client: nothing of it ever changes.
    _quiet: VirtualRouter,
    pub(super) trunk: Trunk,
    wires: Netns,
}

impl Site {
    pub(super) fn build(lab: &Lab) -> Result<Self> {
        lab.step("making hosts a, b and c with a member of the cluster each");
        let pki = Pki::create(lab)?;
        let mut nodes = Vec::new();
        for (at, name) in NAMES.into_iter().enumerate() {
            // Each its own member first.
            let order = (0..NAMES.len()).map(|step| (at + step) % NAMES.len());
            let remotes: Vec<_> =
                order.map(|at| format!("ssl:{}:{CLIENTS}", Wire::Clients.address(at))).collect();
            let socket = Member::socket_of(lab, name);
            let node = Node::create_at(lab, name, &pki, socket, &remotes.join(","))?;
            node.configure_daemon(&format!("state_dir = \"{}\"", shown(node.host().rundir())))?;
            nodes.push(node);
        }
        let hosts: Vec<_> = nodes.iter().map(Node::host).collect();
        let wires = connect(&hosts)?;
        let mut members: Vec<Member> = Vec::new();
        for (at, host) in hosts.iter().enumerate() {
            let mut member = Member::new(lab, &pki, host.name(), Wire::Raft.address(at))?;
            let first = members.first().map(|first| first.address().to_owned());
            member.found(host, first.as_deref(), CLIENTS)?;
            members.push(member);
        }
        lab.step("describing one network, whose routers meet across the trunk");
        let trunk = Trunk::connect(TrunkKind::Bridge, &hosts)?;
        let file = lab.work().join("topology.toml");
        std::fs::write(&file, describe())?;
        nodes[0].xenflow(&["apply", "-f", &file.display().to_string()])?;
        let mut quiet = None;
        let mut seats = Vec::new();
        for ((at, mut node), member) in nodes.into_iter().enumerate().zip(members) {
            let seat = |node: &Node| -> Result<_> {
                node.host().vsctl(&["add-br", BRIDGE])?;
                node.host().add_port(BRIDGE, Trunk::PORT, &[])?;
                let router = router(lab, &pki, node, at)?;
                let [h, g] = [("h", "end"), ("g", "alt")].map(|(kind, port)| end(node, kind, port, at));
                Ok((router, h?, g?))
            };
            let (router, h, g) = seat(&node)?;
            if at == 1 {
                let router = VirtualRouter::described(lab, &pki, ("q1", 9))?;
                router.plug(&node, &[Link { name: "core", segment: "", address: "10.9.0.9/24" }])?;
                quiet = Some(router);
            }
            node.start()?;
            seats.push(Seat { h, g, router, member, node });
        }
        for seat in &mut seats {
            seat.router.start_client()?;
        }
        for (at, seat) in seats.iter().enumerate() {
            seat.node.wait_session(&format!("r{at}"), LIMIT)?;
        }
        let quiet = quiet.ok_or_else(|| anyhow::anyhow!("there is no host b"))?;
        Ok(Self { seats, _quiet: quiet, trunk, wires })
    }

    /// Cuts or restores a host's end of a network.
    pub(super) fn set(&self, at: usize, wire: Wire, is_up: bool) -> Result<()> {
        let port = format!("{}-{}", wire.name(), NAMES[at]);
        self.wires.ip(&["link", "set", &port, if is_up { "up" } else { "down" }])?;
        Ok(())
    }

    /// The operators' sockets of these members, as `--db` takes them.
    pub(super) fn remotes(&self, of: &[usize]) -> String {
        let all: Vec<_> =
            of.iter().map(|at| format!("unix:{}", self.seats[*at].member.socket().display())).collect();
        all.join(",")
    }

    pub(super) fn sockets(&self) -> Vec<PathBuf> {
        self.seats.iter().map(|seat| seat.member.socket()).collect()
    }

    /// Starts a host's member again, and waits until it is in contact.
    pub(super) fn revive(&mut self, at: usize) -> Result<()> {
        let Seat { member, node, .. } = &mut self.seats[at];
        member.start(node.host())?;
        self.wait_contact(at, true)
    }

    /// Until a member is in contact with the cluster, or not.
    pub(super) fn wait_contact(&self, at: usize, wanted: bool) -> Result<()> {
        let member = &self.seats[at].member;
        wait_for(&format!("contact of the member {} to be {wanted}", NAMES[at]), LIMIT, || {
            Ok((member.status()?["in_contact"] == wanted).then_some(()))
        })
    }

    /// The member that leads.
    pub(super) fn leader(&self) -> Result<usize> {
        wait_for("a member that leads", LIMIT, || {
            for (at, seat) in self.seats.iter().enumerate() {
                if seat.member.status()?["role"] == "leader" {
                    return Ok(Some(at));
                }
            }
            Ok(None)
        })
    }

    /// Routed packets, from one host to the next and inside each.
    pub(super) fn probes(&self, lab: &Lab) -> Result<Vec<Probe>> {
        let across = [0, 1, 2].map(|at| (&self.seats[at].h, &self.seats[(at + 1) % 3].h, lan((at + 1) % 3)));
        let within = [0, 1, 2].map(|at| (&self.seats[at].h, &self.seats[at].g, alt(at)));
        let pairs = across.into_iter().take(1).chain(within);
        pairs.zip(7000..).map(|((from, to, address), port)| probe(lab, from, to, &address, port)).collect()
    }

    /// One of them, to be lost.
    pub(super) fn across(&self, lab: &Lab) -> Result<Probe> {
        probe(lab, &self.seats[0].h, &self.seats[1].h, &lan(1), 7100)
    }

    /// Until the end hosts have all found each other.
    pub(super) fn wait_reachable(&self) -> Result<()> {
        for (at, seat) in self.seats.iter().enumerate() {
            seat.h.wait_reachable(&alt(at), LIMIT)?;
            seat.h.wait_reachable(&lan((at + 1) % 3), LIMIT)?;
        }
        Ok(())
    }

    /// Has a host's guest add routes and withdraw them again: each must become a flow and none. How many did.
    pub(super) fn updates(&self, at: usize) -> Result<usize> {
        self.add_routes(at)?;
        self.remove_routes(at)
    }

    /// Has a host's guest add routes.
    pub(super) fn add_routes(&self, at: usize) -> Result<()> {
        self.route("add", at)
    }

    /// Waits until they are flows, has the guest withdraw them, and waits until they are none. How many they are.
    pub(super) fn remove_routes(&self, at: usize) -> Result<usize> {
        self.wait_flows(at, ROUTES)?;
        self.route("del", at)?;
        self.wait_flows(at, 0)?;
        Ok(ROUTES)
    }

    fn route(&self, verb: &str, at: usize) -> Result<()> {
        let via = format!("10.9.0.{}", (at + 1) % 3 + 1);
        let lines = (0..ROUTES).map(|k| format!("route {verb} {} via {via}\n", prefix(at, k)));
        self.seats[at].router.guest().netns().ip_batch(&lines.collect::<String>())
    }

    fn wait_flows(&self, at: usize, wanted: usize) -> Result<()> {
        wait_for(&format!("flows of {wanted} routes on {}", NAMES[at]), LIMIT, || {
            Ok((self.flows(at)? == wanted).then_some(()))
        })
    }

    /// How many of a guest's routes are flows.
    pub(super) fn flows(&self, at: usize) -> Result<usize> {
        let table = format!("table=3,ip,nw_dst=10.{}.0.0/16", 60 + at);
        let flows = self.seats[at].node.host().ofctl(&["--no-stats", "dump-flows", BRIDGE, &table])?;
        Ok((0..ROUTES).filter(|k| flows.contains(&format!("nw_dst={} ", prefix(at, *k)))).count())
    }

    /// Until a host floods in that VLAN.
    pub(super) fn wait_vlan(&self, at: usize, vlan: u16) -> Result<()> {
        let host = self.seats[at].node.host();
        wait_for(&format!("flows of VLAN {vlan} on {}", NAMES[at]), LIMIT, || {
            let flows = host.ofctl(&["--no-stats", "dump-flows", BRIDGE, "table=7"])?;
            Ok(flows.contains(&format!("dl_vlan={vlan} ")).then_some(()))
        })
    }
}

/// One of the routes that the guest of a host adds and withdraws.
fn prefix(at: usize, route: usize) -> String {
    format!("10.{}.{route}.0/24", 60 + at)
}

fn probe(lab: &Lab, from: &EndHost, to: &EndHost, address: &str, port: u16) -> Result<Probe> {
    Probe::start(lab, from.netns(), to.netns(), format!("{address}:{port}").parse()?, RATE)
}

/// The address of end host h.
fn lan(at: usize) -> String {
    format!("10.{}.0.10", at + 1)
}

/// The address of end host g.
fn alt(at: usize) -> String {
    format!("10.{}.0.10", at + 11)
}

fn connect(hosts: &[&Host]) -> Result<Netns> {
    let wires = Netns::create("wires")?;
    let (mut pairs, mut ends) = (String::new(), String::new());
    for wire in [Wire::Raft, Wire::Clients] {
        let name = wire.name();
        let _ = writeln!(ends, "link add {name} type bridge stp_state 0\nlink set {name} up");
        for host in hosts {
            let (host, port) = (host.name(), format!("{name}-{}", host.name()));
            let _ = writeln!(pairs, "link add {name} netns {host} type veth peer name {port} netns wires");
            let _ = writeln!(ends, "link set {port} master {name} up");
        }
    }
    output_with_input(std::process::Command::new("ip").args(["-batch", "-"]), &pairs)?;
    wires.ip_batch(&ends)?;
    for (at, host) in hosts.iter().enumerate() {
        for wire in [Wire::Raft, Wire::Clients] {
            host.netns().configure(wire.name(), &[&format!("{}/24", wire.address(at))])?;
        }
    }
    Ok(wires)
}

fn router(lab: &Lab, pki: &Pki, node: &Node, at: usize) -> Result<VirtualRouter> {
    let router = VirtualRouter::described(lab, pki, (&format!("r{at}"), u16::try_from(at + 1)?))?;
    let (lan, alt) = (format!("10.{}.0.1/24", at + 1), format!("10.{}.0.1/24", at + 11));
    let core = format!("10.9.0.{}/24", at + 1);
    let links = [("lan", &lan), ("alt", &alt), ("core", &core)];
    router.plug(node, &links.map(|(name, address)| Link { name, segment: "", address }))?;
    let routes: String = (0..NAMES.len())
        .filter(|to| *to != at)
        .map(|to| format!("route add 10.{0}.0.0/24 via 10.9.0.{0}\n", to + 1))
        .collect();
    router.guest().netns().ip_batch(&routes)?;
    Ok(router)
}

fn end(node: &Node, kind: &str, port: &str, at: usize) -> Result<EndHost> {
    let name = format!("{kind}{at}");
    let end = EndHost::create(&name)?;
    let mac = end_mac(kind, at);
    node.plug(end.netns(), NIC, &Vif { port, iface_id: &name, mac: &mac, vm_uuid: None })?;
    let network = if kind == "h" { at + 1 } else { at + 11 };
    end.configure(&format!("10.{network}.0.10/24"), Some(&format!("10.{network}.0.1")))?;
    Ok(end)
}

fn end_mac(kind: &str, at: usize) -> String {
    format!("02:48:00:00:{}:{at:02x}", if kind == "h" { "00" } else { "01" })
}

/// What `xenflow apply` makes so.
fn describe() -> String {
    let mut text = "owner = \"lab\"\n".to_owned();
    for node in NAMES {
        let _ = writeln!(text, "[nodes.{node}]\nuplinks = [\"{}\"]", Trunk::PORT);
    }
    text.push_str("[networks.red]\nmin = \"20mbit\"\nsegments.core = { vlan = 100 }\n");
    for at in 0..NAMES.len() {
        for (segment, kind, vlan) in [("lan", "h", 101), ("alt", "g", 111)] {
            let (vlan, mac) = (vlan + at, end_mac(kind, at));
            let _ = writeln!(text, "segments.{segment}{at} = {{ vlan = {vlan} }}");
            let _ =
                writeln!(text, "access.{kind}{at} = {{ segment = \"{segment}{at}\", macs = [\"{mac}\"] }}");
        }
    }
    let mac = |number: usize, index: usize| format!("02:52:00:00:{number:02x}:{index:02x}");
    for at in 0..NAMES.len() {
        let _ = writeln!(text, "[networks.red.routers.r{at}]");
        let segments = [("lan", format!("lan{at}")), ("alt", format!("alt{at}")), ("core", "core".into())];
        for (index, (name, segment)) in segments.into_iter().enumerate() {
            let mac = mac(at + 1, index);
            let _ = writeln!(text, "vifs.r{at}-{name} = {{ segment = \"{segment}\", mac = \"{mac}\" }}");
        }
        let _ = writeln!(text, "vifs.r{at}-ctl = {{ control = true, mac = \"{}\" }}", mac(at + 1, 99));
    }
    let (core, control) = (mac(9, 0), mac(9, 99));
    let _ = writeln!(
        text,
        "[networks.red.routers.q1]\nvifs.q1-core = {{ segment = \"core\", mac = \"{core}\" }}\nvifs.q1-ctl = {{ control = true, mac = \"{control}\" }}"
    );
    text
}
