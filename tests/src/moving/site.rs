//! Three nodes on a learning bridge, a router that moves between them, and an end host behind each of them.
//!
//! Segment lanN is 10.N.0.0/24: r1 is .1, end host hN .10, on the node with that number. r1 starts on node a. Beside it is
//! a bystander, a machine without any meaning whose moves cost what bare moves cost. With [`By::Plain`] the same hosts
//! switch as everybody's do, and the guest forwards by itself.

use std::fmt::Write as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use dom0_server::db::location::{self, Located, Place};
use dom0_server::db::migration::{Migration, Phase};
use dom0_server::db::{DATABASE, table};
use ovsdb::{Connection, OpResult, Operation, Options, Remote, Row};
use serde_json::Value;
use xenflow_flow_app::pipeline;

use super::fdb::Watch;
use super::measure::Seen;
use super::vm::{self, Pace, Vif, Vm};
use crate::endhost::{EndHost, NIC};
use crate::host::{self, Host};
use crate::member::Member;
use crate::net::{self, Netns};
use crate::node::{BRIDGE, Node, Pki};
use crate::process::{self, wait_for};
use crate::routes::Writer;
use crate::scenario::Lab;
use crate::trunk::{Trunk, TrunkKind};
use crate::virtual_router::{CONTROL, VirtualRouter, vif_mac};

/// The nodes; the one with index N is where end host hN+1 is.
pub const NODES: [&str; 3] = ["a", "b", "c"];
/// For anything to come to be: 200,000 routes have taken 100 s to be flows on a busy machine.
const LIMIT: Duration = Duration::from_secs(600);
/// The first route of those that come and go.
const CHURNED: u32 = 1 << 20;
/// Where members of a cluster listen for daemons.
const CLIENTS: u16 = 6660;
/// At one time so many changes of routes.
const CHUNK: u32 = 10_000;

/// What the hosts' switches do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// XenFlow.
    XenFlow,
    /// XenFlow, and its daemons move routers themselves.
    Planned,
    /// `NORMAL`, with tags; packets go through the guest.
    Plain,
}

/// See the module.
#[derive(Debug)]
pub struct Site {
    // Dropped from top to bottom.
    /// Of the bridge between.
    pub watch: Watch,
    /// The router's machine.
    pub vm: Vm,
    /// The bystander's.
    pub bystander: Vm,
    /// h1, h2 and h3.
    pub h: Vec<EndHost>,
    /// The router.
    pub r1: VirtualRouter,
    /// The bridge between.
    pub trunk: Trunk,
    /// Of the database's cluster, if there is one.
    pub members: Vec<Member>,
    /// a, b and c.
    pub nodes: Vec<Node>,
    /// Who certifies them.
    pub pki: Pki,
    /// What they do.
    pub by: By,
    _bystander: Netns,
    _management: Netns,
    writer: Writer,
    routes: u32,
    has_standby: bool,
}

impl Site {
    /// Makes everything, and starts it; the router has no routes but those to its own segments.
    pub fn build(lab: &Lab, by: By, pace: Pace) -> Result<Self> {
        let pki = Pki::create(lab)?;
        let a = Node::create(lab, NODES[0], &pki)?;
        let b = Node::create_with(lab, NODES[1], &pki, &a)?;
        let c = Node::create_with(lab, NODES[2], &pki, &a)?;
        Self::with(lab, by, pace, pki, vec![a, b, c], false)
    }

    /// The same with [`By::Planned`] and a database of three members, one on each node. Operators use that of c.
    pub fn build_clustered(lab: &Lab, pace: Pace) -> Result<Self> {
        let pki = Pki::create(lab)?;
        let node = |(at, name): (usize, &str)| {
            // Each its own member first.
            let order = (0..NODES.len()).map(|step| (at + step) % NODES.len());
            let remotes: Vec<_> =
                order.map(|at| format!("ssl:{}:{CLIENTS}", management_address(at))).collect();
            Node::create_at(lab, name, &pki, Member::socket_of(lab, name), &remotes.join(","))
        };
        let nodes = NODES.into_iter().enumerate().map(node).collect::<Result<_>>()?;
        Self::with(lab, By::Planned, pace, pki, nodes, true)
    }

    fn with(
        lab: &Lab,
        by: By,
        pace: Pace,
        pki: Pki,
        mut nodes: Vec<Node>,
        is_clustered: bool,
    ) -> Result<Self> {
        lab.step("making nodes a, b and c on a learning bridge, and r1 on a");
        packets_first()?;
        let hosts: Vec<_> = nodes.iter().map(Node::host).collect();
        let trunk = Trunk::connect(TrunkKind::Bridge, &hosts)?;
        let watch = Watch::start(lab, &trunk)?;
        let management = management(&hosts)?;
        let mut members: Vec<Member> = Vec::new();
        for (at, host) in hosts.iter().enumerate().filter(|_| is_clustered) {
            let mut member = Member::new(lab, &pki, host.name(), management_address(at))?;
            let first = members.first().map(|first| first.address().to_owned());
            member.found(host, first.as_deref(), CLIENTS)?;
            members.push(member);
        }
        let r1 = VirtualRouter::described(lab, &pki, ("r1", 1))?;
        let mut h = Vec::new();
        for (at, node) in nodes.iter().enumerate() {
            node.host().vsctl(&["add-br", BRIDGE])?;
            node.host().add_port(BRIDGE, Trunk::PORT, &[])?;
            if by == By::Planned {
                configure(lab, node, at)?;
            }
            h.push(end_host(node, at, by)?);
        }
        let vifs = |name: &str, number: u16, segments: usize| -> Vec<Vif> {
            let vif = |index: usize, interface: String| Vif {
                port: format!("v{number}-{interface}"),
                iface_id: format!("{name}-{interface}"),
                mac: vif_mac(number, index),
                tag: (by == By::Plain).then(|| if index == 99 { CONTROL_VLAN } else { vlan(index) }),
                interface,
            };
            let lans = (0..segments).map(|index| vif(index, format!("lan{}", index + 1)));
            lans.chain([vif(99, CONTROL.to_owned())]).collect()
        };
        let guest = r1.guest().netns();
        let vm = Vm::create(lab, guest, vifs("r1", 1, NODES.len()), &hosts, pace)?;
        let addresses = (1..=NODES.len()).map(|n| format!("address add 10.{n}.0.1/24 dev lan{n}\n"));
        guest.ip_batch(&addresses.collect::<String>())?;
        let writer = Writer::open(guest)?;
        let other = Netns::create("x1")?;
        let bystander = Vm::create(lab, &other, vifs("x1", 2, NODES.len()), &hosts, pace)?;
        if by == By::Plain {
            host::wait_uptime()?;
            nodes.iter_mut().try_for_each(|node| node.host_mut().start_vswitchd())?;
        } else {
            nodes.iter_mut().try_for_each(Node::start)?;
            let file = lab.work().join("site.toml");
            std::fs::write(&file, describe())?;
            nodes[2].xenflow(&["apply", "-f", &file.display().to_string()])?;
        }
        let mut site = Self {
            watch,
            vm,
            bystander,
            h,
            r1,
            trunk,
            members,
            nodes,
            pki,
            by,
            _bystander: other,
            _management: management,
            writer,
            routes: 0,
            has_standby: false,
        };
        if by != By::Plain {
            site.r1.start_client()?;
            site.nodes[0].wait_session("r1", LIMIT)?;
        }
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            site.h[from].wait_reachable(&address(to), LIMIT)?;
        }
        site.grow(lab, 1)?;
        site.watch.changes()?;
        Ok(site)
    }

    /// Gives the router routes until it has so many, by h3, and waits until its host has all of them.
    pub fn grow(&mut self, lab: &Lab, routes: u32) -> Result<()> {
        lab.step(format!("r1 gets {routes} routes"));
        while self.routes < routes {
            let until = routes.min(self.routes + CHUNK);
            let lines = (self.routes..until).map(|n| format!("route add {} via {}\n", prefix(n), address(2)));
            self.writer.write(&lines.collect::<String>())?;
            self.routes = until;
        }
        self.wait_told()
    }

    /// Has a and b keep r1's tables for one another from now on, and waits until the one has them that r1 is not on.
    pub fn keep_standby(&mut self, lab: &Lab) -> Result<()> {
        let standby = self.elsewhere()?;
        let before = self.standbys(standby)?;
        lab.step(format!("{standby} gets r1's tables to keep: it is its standby"));
        self.nodes[2].xenflow(&["router", "set", "r1", "--external-id", "standby=a,b"])?;
        self.has_standby = true;
        self.wait_standby(standby, before)
    }

    /// See [`keep_standby`](Self::keep_standby).
    #[must_use]
    pub fn has_standby(&self) -> bool {
        self.has_standby
    }

    /// Nobody keeps them any more; waits until their flows are gone.
    pub fn drop_standby(&mut self) -> Result<()> {
        self.has_standby = false;
        let standby = self.node(self.elsewhere()?)?.host();
        let routes = || -> Result<u64> {
            let said = standby.ofctl(&["dump-aggregate", BRIDGE, &format!("table={}", pipeline::ROUTE)])?;
            let count = said.split_once("flow_count=").and_then(|(_, count)| count.trim().parse().ok());
            count.with_context(|| format!("{said:?} counts no flows"))
        };
        let before = routes()?;
        self.nodes[2].xenflow(&["router", "set", "r1", "--external-id", "standby"])?;
        wait_for("the standby to have no flow of r1's routes", LIMIT, || {
            Ok((routes()? + u64::from(self.routes) <= before).then_some(()))
        })
    }

    /// How often a node has had all of r1's tables as its standby.
    fn standbys(&self, node: &str) -> Result<usize> {
        let node = self.node(node)?;
        let mut command = Command::new(node.program());
        command.args(["events", "--json", "--kind", "standby-ready", "--socket"]).arg(node.control_socket());
        Ok(process::output(&mut command)?.lines().count())
    }

    /// Waits until it has had them once more than so often.
    fn wait_standby(&self, node: &str, before: usize) -> Result<()> {
        wait_for("the standby to have r1's tables", LIMIT, || {
            Ok((self.standbys(node)? > before).then_some(()))
        })
    }

    /// Has the switches log each flow of their datapaths that comes, changes or goes.
    pub fn log_flows(&self) -> Result<()> {
        for node in &self.nodes {
            node.host().appctl(&["vlog/set", "pattern:console:%D{%Y-%m-%dT%H:%M:%S.###Z}|%c|%p|%m"])?;
            node.host().appctl(&["vlog/set", "dpif:console:dbg"])?;
            node.host().appctl(&["vlog/disable-rate-limit", "dpif"])?;
        }
        Ok(())
    }

    /// Waits until the host has in its switch what the router's client has to tell.
    pub fn wait_told(&self) -> Result<()> {
        if self.by == By::Plain {
            return Ok(());
        }
        self.r1.wait_told(LIMIT, |routes| routes >= u64::from(self.routes))
    }

    /// Changes routes of the router, so many a second, for as long as something happens: each comes and goes. With what it gave,
    /// how many changes a second there were.
    pub fn churn<T>(&self, per_second: u32, what: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
        const BEAT: Duration = Duration::from_millis(100);
        let each = per_second / 20;
        let lines = |verb: &str| -> String {
            let routes =
                (0..each).map(|n| format!("route {verb} {} via {}\n", prefix(CHURNED + n), address(2)));
            routes.collect()
        };
        let (add, delete) = (lines("add"), lines("del"));
        let mut writer = Writer::open(self.r1.guest().netns())?;
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let churning = scope.spawn(|| {
                let (begun, mut changes) = (Instant::now(), 0);
                for beat in 1.. {
                    writer.write(&add)?;
                    writer.write(&delete)?;
                    changes += 2 * u64::from(each);
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    std::thread::sleep((BEAT * beat).saturating_sub(begun.elapsed()));
                }
                Ok::<_, anyhow::Error>(changes * 1000 / u64::try_from(begun.elapsed().as_millis())?.max(1))
            });
            let done = what();
            is_over.store(true, Ordering::Relaxed);
            let changes = churning.join().map_err(|_| anyhow!("a thread panicked"))??;
            Ok((done?, changes))
        })
    }

    /// Has the daemons move r1 to a node, and waits for the end, and for the standby to be ready again; the row of it.
    pub fn migrate(&self, to: &str) -> Result<Migration> {
        let from = self.vm.node()?;
        let before = if self.has_standby { self.standbys(&from)? } else { 0 };
        let row = self.migrate_once(to)?;
        if self.has_standby {
            self.wait_standby(&from, before)?;
        }
        Ok(row)
    }

    fn migrate_once(&self, to: &str) -> Result<Migration> {
        let said =
            process::output(self.nodes[2].xenflow_command().args(["migrate", "r1", to, "--via", "lab"]));
        let last = || self.migrations()?.pop().context("there is no migration");
        let row = match said {
            Ok(_) => last()?,
            // It is busy, and goes on. Exit code 4: it is not followed any further.
            Err(error) if error.to_string().contains("is not followed any further") => {
                wait_for("the end of the move", LIMIT, || {
                    let row = last()?;
                    Ok(row.phase.is_over().then_some(row))
                })?
            }
            Err(error) => return Err(error),
        };
        ensure!(row.phase == Phase::Done && row.to.as_str() == to, "r1 did not move to {to}: {row:?}");
        Ok(row)
    }

    /// Ends everything, so that there may be another site ([`Lab::clear`]).
    pub fn end(self, lab: &Lab, name: &str) -> Result<()> {
        drop(self);
        lab.clear(name)
    }

    /// Cuts node c off for a moment: packets are lost.
    pub fn cut(&self) -> Result<()> {
        const CUT: Duration = Duration::from_millis(300);
        let host = self.nodes[2].host();
        self.trunk.set_link(host, false)?;
        std::thread::sleep(CUT);
        self.trunk.set_link(host, true)
    }

    /// The node with this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.host().name() == name).with_context(|| format!("no node {name}"))
    }

    /// The one of a and b where r1 is not.
    pub fn elsewhere(&self) -> Result<&'static str> {
        Ok(if self.vm.node()? == NODES[0] { NODES[1] } else { NODES[0] })
    }

    /// All migrations, by number.
    pub fn migrations(&self) -> Result<Vec<Migration>> {
        let rows = self.select(Operation::select(table::MIGRATION).columns(&Migration::COLUMNS))?;
        let mut all: Vec<_> = rows.iter().map(Migration::parse).collect::<Result<_, _>>()?;
        all.sort_by_key(|row| row.number);
        Ok(all)
    }

    /// Puts in a migration's report what numbered packets have met, and gives the report as people get it.
    pub fn report(&self, row: &Migration, seen: &Seen) -> Result<Value> {
        self.transact(&[row.tell(&seen.tally())])?;
        let said = self.nodes[2].xenflow(&["migrations", "show", &row.number.to_string(), "--json"])?;
        serde_json::from_str(&said).with_context(|| format!("{said:?} is no report"))
    }

    /// An error unless a node has all of r1's addresses, and no other one any.
    pub fn check_owner(&self, node: &str) -> Result<()> {
        self.check_owner_of(1, node)
    }

    /// The same of the router with this number.
    pub fn check_owner_of(&self, router: u16, node: &str) -> Result<()> {
        let rows = self.select(Operation::select(table::LOCATION).columns(&location::COLUMNS))?;
        let located = Located::of_rows(&rows);
        for index in 0..NODES.len() {
            let place = Place {
                segment: format!("lan{}", index + 1).parse()?,
                mac: vif_mac(router, index).parse().context("no MAC address")?,
            };
            let claims = located.claims(&place);
            let owners: Vec<_> =
                claims.into_iter().flat_map(|claims| claims.keys().map(|it| it.as_str())).collect();
            ensure!(owners == [node], "lan{} of r{router} is {owners:?}'s, not {node}'s", index + 1);
        }
        Ok(())
    }

    fn select(&self, operation: Operation) -> Result<Vec<Row>> {
        let results = self.transact(&[operation])?;
        Ok(results.first().map(|result| result.rows().to_vec()).unwrap_or_default())
    }

    fn transact(&self, operations: &[Operation]) -> Result<Vec<OpResult>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let remote = Remote::Unix(self.nodes[2].database().to_owned());
            let (connection, _notifications) = Connection::open(&remote, &Options::default()).await?;
            Ok(connection.transact(DATABASE, operations).await?)
        })
    }
}

/// Has the kernel's thread for packets that have to wait go before all processes. The lab has one CPU: on hosts with more, what
/// daemons do keeps no packet waiting.
fn packets_first() -> Result<()> {
    const THREAD: &str = "ksoftirqd/0";
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        // One that has ended, or no process.
        let Ok(name) = std::fs::read_to_string(entry.path().join("comm")) else { continue };
        if name.trim() == THREAD {
            let pid = entry.file_name();
            process::output(Command::new("chrt").args(["--fifo", "--pid", "2"]).arg(pid))?;
            return Ok(());
        }
    }
    bail!("the lab's kernel has no thread {THREAD}")
}

/// Where the route with this number leads.
fn prefix(number: u32) -> String {
    let [_, high, middle, low] = number.to_be_bytes();
    format!("{}.{middle}.{low}.0/24", 100 + u32::from(high))
}

/// An address of h3 that one of the router's routes leads to.
pub const BY_ROUTE: &str = "100.0.0.1";

/// The address of an end host.
#[must_use]
pub fn address(at: usize) -> String {
    format!("10.{}.0.10", at + 1)
}

/// The router's address in the segment of an end host.
#[must_use]
pub fn gateway(at: usize) -> String {
    format!("10.{}.0.1", at + 1)
}

const CONTROL_VLAN: u16 = 99;

fn vlan(at: usize) -> u16 {
    11 + u16::try_from(at).unwrap_or_default()
}

fn end_mac(at: usize) -> String {
    format!("02:48:00:00:00:{at:02x}")
}

fn end_host(node: &Node, at: usize, by: By) -> Result<EndHost> {
    let name = format!("h{}", at + 1);
    let end = EndHost::create(&name)?;
    let (port, mac) = (name.as_str(), end_mac(at));
    node.plug(end.netns(), NIC, &host::Vif { port, iface_id: port, mac: &mac, vm_uuid: None })?;
    if by == By::Plain {
        node.host().vsctl(&["set", "Port", port, &format!("tag={}", vlan(at))])?;
    }
    end.configure(&format!("{}/24", address(at)), Some(&gateway(at)))?;
    if at == 2 {
        end.netns().ip_batch(&format!("address add {BY_ROUTE}/32 dev lo\n"))?;
    }
    Ok(end)
}

fn management_address(at: usize) -> String {
    format!("192.0.2.{}", at + 1)
}

/// A network between the hosts that has nothing to do with their guests.
fn management(hosts: &[&Host]) -> Result<Netns> {
    let wires = Netns::create("management")?;
    wires.sysctls(&[("net.ipv6.conf.default.disable_ipv6", "1")])?;
    wires.ip_batch("link add mgmt type bridge stp_state 0\nlink set mgmt up\n")?;
    for (at, host) in hosts.iter().enumerate() {
        net::veth((host.netns(), "mgmt"), (&wires, host.name()), None)?;
        wires.ip(&["link", "set", "dev", host.name(), "master", "mgmt", "up"])?;
        host.netns().configure("mgmt", &[&format!("{}/24", management_address(at))])?;
    }
    Ok(wires)
}

/// Has a node's daemon move routers, by the lab's toolstack.
fn configure(lab: &Lab, node: &Node, at: usize) -> Result<()> {
    let state = node.host().rundir().join("state");
    std::fs::create_dir_all(&state)?;
    node.configure_daemon(&format!("state_dir = \"{}\"", state.display()))?;
    let words = serde_json::to_string(&vm::toolstack(lab, node.host().name()))?;
    node.configure_section(&format!(
        "[migration]\nlisten = \"{}\"\n[migration.toolstack.lab]\ncommand = {words}\n",
        management_address(at)
    ))
}

fn describe() -> String {
    let mut text = "owner = \"lab\"\n".to_owned();
    for node in NODES {
        let _ = writeln!(text, "[nodes.{node}]\nuplinks = [\"{}\"]", Trunk::PORT);
    }
    text.push_str("[networks.red]\n");
    for at in 0..NODES.len() {
        let (n, mac) = (at + 1, end_mac(at));
        let _ = writeln!(text, "segments.lan{n} = {{ vlan = {} }}", vlan(at));
        let _ = writeln!(text, "access.h{n} = {{ segment = \"lan{n}\", macs = [\"{mac}\"] }}");
    }
    text.push_str("[networks.red.routers.r1]\n");
    for at in 0..NODES.len() {
        let (n, mac) = (at + 1, vif_mac(1, at));
        let _ = writeln!(text, "vifs.r1-lan{n} = {{ segment = \"lan{n}\", mac = \"{mac}\" }}");
    }
    let _ = writeln!(text, "vifs.r1-{CONTROL} = {{ control = true, mac = \"{}\" }}", vif_mac(1, 99));
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn routes_are_many_and_none_is_a_segment() {
        let all: BTreeSet<String> = (0..200_000).map(prefix).collect();
        assert_eq!(all.len(), 200_000);
        assert!(all.iter().all(|prefix| prefix.starts_with("100.")
            || prefix.starts_with("101.")
            || prefix.starts_with("102.")
            || prefix.starts_with("103.")));
        assert_eq!(prefix(0), "100.0.0.0/24");
    }
}
