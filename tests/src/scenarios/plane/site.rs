//! The topology of `ecmp`, `plane`, `punt` and `policing`: one host with its uplink, a router r1 with four vifs, a router
//! r2 beside it, end hosts.
//!
//! Segment `lan` is 10.1.0.0/24: r1 .1, r2 .2, end hosts h .10 and h2 .12 on access ports, u .11 behind the uplink.
//! Segments `w1` to `w3` are 10.2N.0.0/24: r1 .1, end host nN .10; u is .11 in `w1`.

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::packet::Udp;
use super::wire::Wire;
use crate::endhost::NIC;
use crate::frame;
use crate::host::Vif;
use crate::net::{self, Netns};
use crate::node::{BRIDGE, Node, Pki};
use crate::process::wait_for;
use crate::scenario::Lab;
use crate::trunk::Trunk;
use crate::virtual_router::{Link, VirtualRouter, Watch};

/// The bound for anything to follow.
pub(super) const LIMIT: Duration = Duration::from_secs(20);
/// VLANs of `lan` and `w1`.
pub(super) const LAN: u16 = 11;
pub(super) const W1: u16 = 21;
/// Interface of u in `w1`; [`NIC`] is the one in `lan`.
pub(super) const FAR: &str = "eth1";
/// Interface of u that carries the tags.
pub(super) const TAGGED: &str = "tagged";
/// r1 in `lan`.
pub(super) const R1: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);

/// An end host.
#[derive(Debug)]
pub(super) struct End {
    pub(super) ns: Netns,
    /// Of [`NIC`].
    pub(super) wire: Wire,
    pub(super) mac: [u8; 6],
    pub(super) address: Ipv4Addr,
}

/// Everything.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) r1: VirtualRouter,
    pub(super) r2: VirtualRouter,
    pub(super) h: End,
    pub(super) h2: End,
    pub(super) u: End,
    /// u's [`FAR`].
    pub(super) far: Wire,
    /// n1 to n3.
    pub(super) n: Vec<End>,
    pub(super) node: Node,
    numbers: Cell<u32>,
}

const ENDS: [(&str, &str, [u8; 3]); 5] = [
    ("h", "lan", [10, 1, 10]),
    ("h2", "lan", [10, 1, 12]),
    ("n1", "w1", [10, 21, 10]),
    ("n2", "w2", [10, 22, 10]),
    ("n3", "w3", [10, 23, 10]),
];

impl Site {
    /// Builds it and waits for the sessions.
    pub(super) fn build(lab: &Lab) -> Result<Self> {
        lab.step("one host, routers r1 and r2, five end hosts and one behind the uplink");
        let pki = Pki::create(lab)?;
        let node = Node::create(lab, "a", &pki)?;
        node.host().vsctl(&["add-br", BRIDGE])?;
        let u = Netns::create("u")?;
        net::veth((node.host().netns(), Trunk::PORT), (&u, TAGGED), Some("02:48:00:00:00:0b"))?;
        node.host().quiet(Trunk::PORT)?;
        node.add_trunk()?;
        u.ip_batch(&format!(
            "link set {TAGGED} up\n\
             link add link {TAGGED} name {NIC} address 02:48:00:00:01:0b type vlan id {LAN}\n\
             link add link {TAGGED} name {FAR} address 02:48:00:00:02:0b type vlan id {W1}\n\
             address add 10.1.0.11/24 dev {NIC}\naddress add 10.21.0.11/24 dev {FAR}\n\
             link set {NIC} up\nlink set {FAR} up\nroute add default via {R1}\n"
        ))?;
        let mut lines = String::from("network add red\n");
        for (name, vlan) in [("lan", LAN), ("w1", W1), ("w2", 22), ("w3", 23)] {
            lines.push_str(&format!("segment add {name} --network red --vlan {vlan}\n"));
        }
        for (name, segment, _) in ENDS {
            lines.push_str(&format!("access add {name} --segment {segment}\n"));
        }
        node.configure(&lines)?;
        let link = |name, address| Link { name, segment: name, address };
        let links = [
            link("lan", "10.1.0.1/24"),
            link("w1", "10.21.0.1/24"),
            link("w2", "10.22.0.1/24"),
            link("w3", "10.23.0.1/24"),
        ];
        let r1 = VirtualRouter::create(lab, &node, &pki, ("red", "r1", 1), &links)?;
        let r2 = VirtualRouter::create(lab, &node, &pki, ("red", "r2", 2), &[link("lan", "10.1.0.2/24")])?;
        // An answer to each packet, not one a second to each host.
        r1.guest().netns().sysctls(&[("net.ipv4.icmp_ratelimit", "0")])?;
        r1.guest().netns().ip_batch("address add fd01::1/64 dev lan\naddress add fd21::1/64 dev w1\n")?;
        let mut ends = Vec::new();
        for (name, _, _) in ENDS {
            let ns = Netns::create(name)?;
            // What a scenario sends as frames is nobody's connection.
            ns.sysctls(&[("net.ipv4.icmp_ratelimit", "0")])?;
            ends.push(ns);
        }
        let macs: Vec<String> = (1..=ENDS.len()).map(|i| format!("02:48:00:00:00:{i:02x}")).collect();
        // `ip` takes h for a word of its own.
        let ports = ENDS.map(|(name, _, _)| format!("port-{name}"));
        let vifs: Vec<Vif<'_>> = ENDS
            .iter()
            .zip(&macs)
            .zip(&ports)
            .map(|(((name, _, _), mac), port)| Vif { port, iface_id: name, mac, vm_uuid: None })
            .collect();
        let plugs: Vec<_> = ends.iter().zip(&vifs).map(|(ns, vif)| (ns, NIC, vif)).collect();
        node.plug_all(&plugs)?;
        for (ns, (_, _, [a, b, c])) in ends.iter().zip(ENDS) {
            ns.ip_batch(&format!(
                "address add {a}.{b}.0.{c}/24 dev {NIC}\nlink set {NIC} up\nroute add default via {a}.{b}.0.1\n"
            ))?;
        }
        ends[0].ip_batch(&format!("address add fd01::10/64 dev {NIC}\nroute add default via fd01::1\n"))?;
        ends[2].ip_batch(&format!("address add fd21::10/64 dev {NIC}\nroute add default via fd21::1\n"))?;

        let mut made = Vec::new();
        for ((ns, mac), (_, _, [a, b, c])) in ends.into_iter().zip(&macs).zip(ENDS) {
            let wire = Wire::open(&ns, NIC)?;
            made.push(End { ns, wire, mac: frame::mac(mac)?, address: Ipv4Addr::new(a, b, 0, c) });
        }
        let n = made.split_off(2);
        let (Some(h2), Some(h)) = (made.pop(), made.pop()) else { anyhow::bail!("no end hosts") };
        let far = Wire::open(&u, FAR)?;
        let wire = Wire::open(&u, NIC)?;
        let mac = frame::mac("02:48:00:00:01:0b")?;
        let u = End { ns: u, wire, mac, address: Ipv4Addr::new(10, 1, 0, 11) };
        let mut site = Self { r1, r2, h, h2, u, far, n, node, numbers: Cell::new(1) };
        for router in [&site.r1, &site.r2] {
            // Settings that the kernel does not tell of are looked for often.
            router.configure("survey_interval_ms", 500)?;
        }
        lab.step("starting the switch, the daemon and xenflow-guest in both routers");
        site.node.start()?;
        site.r1.start_client()?;
        site.r2.start_client()?;
        site.node.wait_session("r1", LIMIT)?;
        site.node.wait_session("r2", LIMIT)?;
        site.resolve()?;
        Ok(site)
    }

    /// Has r1 resolve its neighbors, and waits until it forwards no more itself.
    pub(super) fn resolve(&self) -> Result<()> {
        let pings: String = self.n.iter().map(|n| format!("ping -n -c 1 -W 2 {} &\n", n.address)).collect();
        let script = format!(
            "{pings}ping -n -c 1 -W 2 10.1.0.11 &\nping -n -c 1 -W 2 10.1.0.10 &\nping -n -c 1 -W 2 10.21.0.11 &\nping -n -c 1 -W 2 fd21::10 &\nping -n -c 1 -W 2 fd01::10 &\nwait"
        );
        self.guest().run("sh", &["-c", &script])?;
        wait_for("the host to forward for r1", LIMIT, || {
            let before = self.r1.guest().forwarded()?;
            let ends: Vec<Ipv4Addr> = self.n.iter().map(|n| n.address).collect();
            let frames: Vec<_> = ends.iter().map(|end| self.udp(&self.h, *end).frame(&[], 0, 0)).collect();
            self.h.wire.send(&frames)?;
            std::thread::sleep(Duration::from_millis(100));
            Ok((self.r1.guest().forwarded()? == before).then_some(()))
        })
    }

    /// The namespace of r1.
    pub(super) fn guest(&self) -> &Netns {
        self.r1.guest().netns()
    }

    /// A number not given out before.
    pub(super) fn next_number(&self) -> u32 {
        self.numbers.replace(self.numbers.get() + 1)
    }

    /// Packets that r1's kernel forwards while `act` runs.
    pub(super) fn transit(&self, act: impl FnOnce() -> Result<()>) -> Result<u64> {
        let before = self.r1.guest().forwarded()?;
        act()?;
        Ok(self.r1.guest().forwarded()? - before)
    }

    /// A datagram of an end host in `lan` to r1.
    pub(super) fn udp(&self, from: &End, to: Ipv4Addr) -> Udp {
        Udp {
            to_mac: frame::mac(&self.r1.mac(0)).unwrap_or_default(),
            from_mac: from.mac,
            from: (from.address, 9000),
            to: (to, 9001),
            ttl: 64,
            df: false,
            len: 60,
        }
    }

    /// Runs `ip` in r1, one command a line, and waits until the host has acknowledged all of it.
    pub(super) fn change(&self, lines: &str) -> Result<()> {
        let watch = self.r1.watch()?;
        self.guest().ip_batch(lines)?;
        self.settle(watch).with_context(|| format!("after {lines:?}"))
    }

    /// Waits for an acknowledgement, and then until nothing more is under way.
    pub(super) fn settle(&self, mut watch: Watch) -> Result<()> {
        watch.acked(LIMIT)?;
        wait_for("client and host to agree", LIMIT, || {
            let state = self.r1.client_state()?;
            Ok((state.backlog == 0 && state.seq == state.acked).then_some(()))
        })
    }

    /// Waits until the datapath holds nothing from before: `revalidator/wait` waits for the round that is under way,
    /// which may have passed by what is looked for.
    pub(super) fn revalidated(&self) -> Result<()> {
        for _ in 0..2 {
            self.node.host().appctl(&["revalidator/wait"])?;
        }
        Ok(())
    }

    /// What `xenflow show router r1` says, as JSON.
    pub(super) fn shown(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.node.xenflow(&["show", "router", "r1", "--json"])?)?)
    }
}
