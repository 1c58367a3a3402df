//! One host, its uplink, and what hangs on both sides: five networks with a sender each, and their receivers.
//!
//! The far end of the uplink is no switch: a namespace with a VLAN interface for each segment, so that what a network
//! got is told by the kernel's counters of that interface. The first network has two segments, for two classes. Beside
//! the uplink there is another one of an ordinary bridge, with one queue of plain HTB: what a link carries, and where a
//! sender does not stand in the way of the others.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::law::Party;
use super::load::{Kind, Sender};
use super::witness::Witness;
use crate::host::Vif;
use crate::net::{self, Netns};
use crate::node::{BRIDGE, Node, Pki};
use crate::process::{output, wait_for};
use crate::scenario::Lab;
use crate::trunk::Trunk;

/// What the link carries, in bit/s of frames.
pub const LINK: u64 = 100_000_000;
/// Networks.
pub const NETWORKS: usize = 5;
/// Segments, and senders: one of each network, and a second of the first.
pub const SEATS: usize = 6;
/// The second sender of network 0.
pub const SECOND: usize = 5;
/// The DSCP of the two classes of network 0.
pub const DSCP: [u8; 2] = [10, 20];
/// A million bit/s.
pub const MBIT: u64 = 1_000_000;

const LIMIT: Duration = Duration::from_secs(20);
/// The other uplink and its bridge.
const PLAIN: &str = "br-plain";
const PLAIN_PORT: &str = "trunk2";
/// The far ends.
const FAR: [&str; 2] = ["t0", "t1"];
const FAR_MAC: [&str; 2] = ["02:51:00:00:01:00", "02:51:00:00:01:01"];
const PORT: u16 = 5100;
const DELAY_PORT: u16 = 5200;

/// Who divides the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The daemon.
    Daemon,
    /// Nobody but Open vSwitch, told by hand, without any part of the product.
    Hand,
}

/// What is promised, in bit/s; 0: nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Contracts {
    /// By network.
    pub minima: [u64; NETWORKS],
    /// The two classes of network 0, if it has any.
    pub classes: Option<[u64; 2]>,
}

impl Contracts {
    /// Of the networks alone, in Mbit/s.
    #[must_use]
    pub fn of(mbit: [u64; NETWORKS]) -> Self {
        Self { minima: mbit.map(|mbit| mbit * MBIT), classes: None }
    }

    /// What the law knows of a sender that wants so much.
    #[must_use]
    pub fn party(&self, seat: usize, demand: u64) -> Party {
        let network = network(seat);
        let class_weight = match self.classes {
            Some(classes) if network == 0 => classes[usize::from(seat == SECOND)],
            _ => 1,
        };
        Party { network, weight: self.minima[network], class_weight, demand }
    }
}

fn network(seat: usize) -> usize {
    if seat == SECOND { 0 } else { seat }
}

fn vlan(seat: usize) -> usize {
    101 + seat
}

fn mac(seat: usize) -> String {
    format!("02:51:00:00:00:{seat:02x}")
}

/// See the module.
#[derive(Debug)]
pub struct Site {
    // Dropped from top to bottom.
    sink: Netns,
    seats: Vec<Netns>,
    node: Node,
    by: By,
    is_running: bool,
}

impl Site {
    /// Everything but what divides the link: see [`Site::begin`].
    pub fn build(lab: &Lab, by: By) -> Result<Self> {
        lab.step("making a host with five networks, and the far end of its uplinks");
        let node = Node::create(lab, "a", &Pki::create(lab)?)?;
        let host = node.host();
        let sink = Netns::create("sink")?;
        sink.sysctls(&[("net.ipv6.conf.default.disable_ipv6", "1")])?;
        for (near, far) in [Trunk::PORT, PLAIN_PORT].into_iter().zip([0, 1]) {
            net::veth((host.netns(), near), (&sink, FAR[far]), Some(FAR_MAC[far]))?;
            host.quiet(near)?;
        }
        host.vsctl(&["add-br", BRIDGE, "--", "add-br", PLAIN])?;
        host.add_port(BRIDGE, Trunk::PORT, &[])?;
        host.add_port(PLAIN, PLAIN_PORT, &[])?;
        let mut far = format!("link set {} up\nlink set {} up\n", FAR[0], FAR[1]);
        let mut seats = Vec::new();
        // One more, of the plain bridge.
        for seat in 0..=SEATS {
            let ns = Netns::create(&format!("s{seat}"))?;
            ns.sysctls(&[("net.ipv6.conf.default.disable_ipv6", "1")])?;
            let (port, mac) = (format!("p{seat}"), mac(seat));
            if seat == SEATS {
                host.plug(&port, &ns, "eth0", &mac)?;
                host.add_port(PLAIN, &port, &[])?;
            } else {
                node.plug(&ns, "eth0", &Vif { port: &port, iface_id: &port, mac: &mac, vm_uuid: None })?;
                writeln!(
                    far,
                    "link add link {0} name {1} type vlan id {2}",
                    FAR[0],
                    device(seat),
                    vlan(seat)
                )?;
            }
            let side = usize::from(seat == SEATS);
            writeln!(far, "address add 10.51.{seat}.2/24 dev {}", device(seat))?;
            writeln!(far, "link set {} up", device(seat))?;
            // Told, not asked for: ARP would wait in the queues as well.
            writeln!(far, "neighbor add 10.51.{seat}.1 lladdr {mac} nud permanent dev {}", device(seat))?;
            ns.ip_batch(&format!(
                "link set eth0 up\naddress add 10.51.{seat}.1/24 dev eth0\nneighbor add 10.51.{seat}.2 lladdr {} nud permanent dev eth0\n",
                FAR_MAC[side]
            ))?;
            seats.push(ns);
        }
        sink.ip_batch(&far)?;
        let mut site = Self { sink, seats, node, by, is_running: false };
        site.node.host_mut().start_vswitchd()?;
        let rate = format!("other_config:max-rate={LINK}");
        site.node.host().vsctl(&[
            "--",
            "--id=@only",
            "create",
            "Queue",
            &rate,
            "--",
            "--id=@qos",
            "create",
            "QoS",
            "type=linux-htb",
            &rate,
            "queues:0=@only",
            "--",
            "set",
            "Port",
            PLAIN_PORT,
            "qos=@qos",
        ])?;
        match by {
            By::Hand => site.flows()?,
            By::Daemon => site.contract(&Contracts::default())?,
        }
        Ok(site)
    }

    /// The host.
    pub fn node(&mut self) -> &mut Node {
        &mut self.node
    }

    /// Starts the daemon with this as the only section of its configuration, in place of the one that runs. By hand there
    /// is none.
    pub fn begin(&mut self, section: &str) -> Result<()> {
        if self.by == By::Hand {
            return Ok(());
        }
        if self.node.daemon().is_ok() {
            self.node.kill_daemon()?;
        }
        self.node.configure_section(section)?;
        self.node.start_daemon()?;
        self.is_running = true;
        Ok(())
    }

    /// Makes these the contracts, and waits until the switch has them.
    pub fn contract(&self, contracts: &Contracts) -> Result<()> {
        match self.by {
            By::Hand => self.queues(contracts),
            By::Daemon => self.describe(contracts),
        }
    }

    /// Whether the uplink's qdisc divides.
    pub fn is_divided(&self) -> Result<bool> {
        let qdiscs = output(self.node.host().command("tc").args(["qdisc", "show", "dev", Trunk::PORT]))?;
        Ok(qdiscs.contains("htb"))
    }

    /// Whether the uplink's qdisc divides, or a row of Open vSwitch says something of it.
    pub fn is_shaped(&self) -> Result<bool> {
        let row = self.node.host().vsctl(&["get", "Port", Trunk::PORT, "qos"])?;
        Ok(self.is_divided()? || row.trim() != "[]")
    }

    /// Whether a network's classes can be told apart.
    pub fn has_classes(&self) -> bool {
        self.by == By::Daemon
    }

    fn describe(&self, contracts: &Contracts) -> Result<()> {
        let mut text = format!(
            "owner = \"lab\"\n[nodes.a]\nuplinks = [\"{0}\"]\ncapacity = {{ {0} = \"{LINK}bit\" }}\n",
            Trunk::PORT
        );
        for (at, min) in contracts.minima.iter().enumerate() {
            writeln!(text, "[networks.n{at}]")?;
            if *min > 0 {
                writeln!(text, "min = \"{min}bit\"")?;
            }
            for seat in (0..SEATS).filter(|seat| network(*seat) == at) {
                writeln!(text, "segments.g{seat} = {{ vlan = {} }}", vlan(seat))?;
                writeln!(text, "access.p{seat} = {{ segment = \"g{seat}\", macs = [\"{}\"] }}", mac(seat))?;
            }
            for (class, min) in contracts.classes.iter().flatten().enumerate().filter(|_| at == 0) {
                let (priority, dscp) = (10 + class, DSCP[class]);
                writeln!(
                    text,
                    "classes.c{class} = {{ priority = {priority}, dscp = [{dscp}], min = \"{min}bit\" }}"
                )?;
            }
        }
        let file = self.node.host().rundir().join("networks.toml");
        std::fs::write(&file, text)?;
        let wait: &[&str] = if self.is_running { &["--wait"] } else { &[] };
        self.node.xenflow(&[wait, &["apply", "-f", &file.display().to_string()]].concat())?;
        Ok(())
    }

    /// What Open vSwitch does by itself: a queue for each network with its minimum, borrowing up to the link's rate.
    fn queues(&self, contracts: &Contracts) -> Result<()> {
        ensure!(contracts.classes.is_none(), "Open vSwitch has no classes within a queue");
        let host = self.node.host();
        let mut args: Vec<String> = Vec::new();
        let mut queues = Vec::new();
        for (at, min) in contracts.minima.iter().enumerate() {
            // 0 is the default of `linux-htb` as well: 12 kbit/s.
            let min = (*min).max(12_000);
            let rates = [format!("other_config:min-rate={min}"), format!("other_config:max-rate={LINK}")];
            args.extend(["--".to_owned(), format!("--id=@q{at}"), "create".to_owned(), "Queue".to_owned()]);
            args.extend(rates);
            queues.push(format!("queues:{}=@q{at}", at + 1));
        }
        args.extend(["--", "--id=@qos", "create", "QoS", "type=linux-htb"].map(str::to_owned));
        args.push(format!("other_config:max-rate={LINK}"));
        args.append(&mut queues);
        args.extend(["--", "set", "Port", Trunk::PORT, "qos=@qos"].map(str::to_owned));
        host.vsctl(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(())
    }

    fn flows(&self) -> Result<()> {
        let host = self.node.host();
        let trunk = host.ofport(Trunk::PORT)?;
        let mut flows = "table=0 priority=0 actions=drop\n".to_owned();
        for seat in 0..SEATS {
            let port = host.ofport(&format!("p{seat}"))?;
            let (vid, queue) = (vlan(seat) | 0x1000, network(seat) + 1);
            writeln!(
                flows,
                "in_port={port} actions=push_vlan:0x8100,set_field:{vid}->vlan_vid,set_queue:{queue},output:{trunk}"
            )?;
            writeln!(flows, "in_port={trunk},dl_vlan={} actions=pop_vlan,output:{port}", vlan(seat))?;
        }
        let file = host.rundir().join("flows.txt");
        std::fs::write(&file, flows)?;
        host.ofctl(&["replace-flows", BRIDGE, &file.display().to_string()])?;
        Ok(())
    }

    /// A sender of each seat, marked for its class; none wants anything yet.
    pub fn senders(&self, kind: Kind) -> Result<Vec<Sender>> {
        (0..SEATS).map(|seat| self.sender(kind, seat)).collect()
    }

    /// A sender of the plain bridge.
    pub fn plain_sender(&self, kind: Kind) -> Result<Sender> {
        self.sender(kind, SEATS)
    }

    /// The sender of a seat; [`SEATS`] is the plain bridge's.
    pub fn sender(&self, kind: Kind, seat: usize) -> Result<Sender> {
        let dscp = if network(seat) == 0 { DSCP[usize::from(seat == SECOND)] } else { 0 };
        Sender::start(kind, &self.seats[seat], &self.sink, far(seat, PORT), dscp)
    }

    /// What arrives of each seat, and as the last of what the plain bridge has sent.
    pub fn witness(&self) -> Result<Witness> {
        Witness::start(&self.sink, (0..=SEATS).map(device).collect())
    }

    /// Delays of small packets of a seat, in ms.
    pub fn delays(&self, seat: usize, time: Duration) -> Result<Vec<f64>> {
        super::delay::measure(&self.seats[seat], &self.sink, far(seat, DELAY_PORT), time)
    }

    /// Until packets of each seat arrive.
    pub fn wait_reachable(&self) -> Result<()> {
        for seat in 0..=SEATS {
            let target = far(seat, 0).ip().to_string();
            wait_for(&format!("seat {seat} to reach {target}"), LIMIT, || {
                Ok((crate::endhost::ping(&self.seats[seat], &target, 1, 10)?.received > 0).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Segments of TCP that senders have sent and that have not arrived, so far. Only while none are under way, and none
    /// has been sent since the start that [`Site::offload`] would have put together.
    pub fn lost_segments(&self) -> Result<u64> {
        let mut sent = 0;
        for seat in &self.seats {
            // What is sent again is not among the first (RFC 4022, tcpOutSegs).
            sent += seat.snmp("Tcp", "OutSegs")? + seat.snmp("Tcp", "RetransSegs")?;
        }
        Ok(sent.saturating_sub(self.sink.snmp("Tcp", "InSegs")?))
    }

    /// Whether senders of TCP leave segmentation to later, as they usually do, or send each segment as a packet.
    pub fn offload(&self, is_on: bool) -> Result<()> {
        let segments = if is_on { "65535" } else { "1" };
        self.seats.iter().try_for_each(|ns| {
            ns.ip(&["link", "set", "eth0", "gso_max_segs", segments])?;
            Ok(())
        })
    }
}

fn device(seat: usize) -> String {
    if seat == SEATS { FAR[1].to_owned() } else { format!("{}.{}", FAR[0], vlan(seat)) }
}

fn far(seat: usize, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 51, seat as u8, 2), port)
}
