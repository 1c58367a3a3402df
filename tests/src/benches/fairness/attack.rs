//! A guest at its worst: `lab attack`, the program that runs in the attacker's namespace.
//!
//! It has a valid certificate and a vif, and does one thing as fast as it can until its standard input ends; told to be
//! quiet, it keeps its session and does nothing else. Owns what attacks are; that they are bounded and what they come to
//! is the bench's.

use std::collections::VecDeque;
use std::io::{BufRead as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV6, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use clap::{Args, ValueEnum};
use ipnet::Ipv4Net;
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};
use xenflow_proto::control::{HOST_IPV6, PORT};
use xenflow_proto::message::MAX_CHANGES;
use xenflow_proto::table::{
    Hop, HopFlags, Link, MAX_HOPS, Neighbor, NeighborKey, NextHop, NextHopKind, Route, RouteKey, RouteKind,
    RouteTarget, Settings, TABLE_MAIN,
};
use xenflow_proto::{Change, GuestMessage, HostMessage, MacAddr, Object, Seq};

use crate::hostile::{Client, Pair};
use crate::progress::print;
use crate::virtual_router::CONTROL;

/// What the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Kind {
    /// Changes all its routes, one after the other, again and again.
    Changes,
    /// Tells all its tables anew, again and again.
    Snapshots,
    /// Tells all its tables, and then that all of it is gone.
    Sweeps,
    /// Its link goes down and comes up, with all routes behind it.
    Flaps,
    /// The one next-hop object of all its routes becomes another one.
    NextHop,
    /// The route that covers all its neighbors becomes on-link, and then not.
    Cover,
    /// All its routes are of one prefix.
    OnePrefix,
    /// Connections that say nothing, or half of a word.
    HalfOpen,
    /// Asks, causes answers, and reads nothing.
    SlowReader,
    /// Garbage, before a session and in one.
    Garbage,
    /// Routes with as many next hops as there may be, other ones each, until the host refuses; then all of it again.
    Memory,
}

/// Does it until standard input ends, then reports. A line there says `quiet` or `go`.
#[derive(Debug, Args)]
pub struct AttackArgs {
    /// What to do.
    #[arg(long)]
    kind: Kind,
    /// The router it is.
    #[arg(long)]
    router: String,
    /// The folder with its certificate and `ca.pem`.
    #[arg(long)]
    pki: PathBuf,
    /// The MAC address of its vif.
    #[arg(long)]
    mac: MacAddr,
    /// How many routes it has.
    #[arg(long)]
    routes: u32,
}

/// What an attack came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Count {
    pub(super) connections: u64,
    pub(super) messages: u64,
    pub(super) changes: u64,
    pub(super) bytes: u64,
    /// Times that the host said it will have no more of it.
    pub(super) refusals: u64,
}

impl Count {
    fn now() -> Self {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            connections: of(&CONNECTIONS),
            messages: of(&MESSAGES),
            changes: of(&CHANGES),
            bytes: of(&BYTES),
            refusals: of(&REFUSALS),
        }
    }

    fn since(self, start: Self) -> Self {
        Self {
            connections: self.connections - start.connections,
            messages: self.messages - start.messages,
            changes: self.changes - start.changes,
            bytes: self.bytes - start.bytes,
            refusals: self.refusals - start.refusals,
        }
    }
}

impl std::ops::Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            connections: self.connections + other.connections,
            messages: self.messages + other.messages,
            changes: self.changes + other.changes,
            bytes: self.bytes + other.bytes,
            refusals: self.refusals + other.refusals,
        }
    }
}

/// The last line that the program prints.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) total: Count,
    /// From each [`GO`] to the [`QUIET`] or the end behind it.
    pub(super) attacked: Vec<Count>,
}

/// Said when all that it has is told, and the worst begins.
pub(super) const READY: &str = "now";

/// The line after which it keeps quiet, and the one after which it goes on.
pub(super) const QUIET: &str = "quiet";
/// See [`QUIET`].
pub(super) const GO: &str = "go";

static IS_QUIET: AtomicBool = AtomicBool::new(false);
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
static MESSAGES: AtomicU64 = AtomicU64::new(0);
static CHANGES: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static REFUSALS: AtomicU64 = AtomicU64::new(0);

/// The number of the attacker's link, and its gateways.
const LINK: u32 = 7;
const GATEWAYS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 3, 0, 20), Ipv4Addr::new(10, 3, 0, 21)];
const NEXT_HOP: u32 = 1;
/// Where its routes lead: the blocks of 8 addresses from here on.
const ROUTES: u32 = 0x0a80_0000;
/// There is room for that many.
const MOST_ROUTES: u32 = 1 << 20;
/// Messages that are not acknowledged: fewer than the host bears.
const WINDOW: u64 = 250;
/// As many of these fit into a message with [`MAX_HOPS`] next hops each.
const WIDE_ROUTES: usize = 128;
/// Connections held open at once.
const OPEN: usize = 300;
/// The host makes who presses wait: that is not to end the session.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Between two signs of life while it is quiet.
const ALIVE: Duration = Duration::from_millis(500);

/// The program `lab attack`.
pub fn main(args: &AttackArgs) -> Result<()> {
    std::thread::spawn(|| {
        let mut attacked = Vec::new();
        let mut since = None;
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            IS_QUIET.store(line == QUIET, Ordering::Relaxed);
            attacked.extend(since.take().map(|start| Count::now().since(start)));
            since = (line == GO).then(Count::now);
        }
        let total = Count::now();
        attacked.extend(since.map(|start| total.since(start)));
        let report = Report { total, attacked };
        print(serde_json::to_string(&report).unwrap_or_default());
        std::process::exit(0);
    });
    let attacker = Attacker { args, pair: Pair::read(&args.pki, &args.router)? };
    let mut last = String::new();
    loop {
        // What the host does about it is the point; it is not to end the attack.
        if let Err(error) = attacker.attack() {
            let now = format!("{error:#}");
            if now != last {
                print(&now);
                last = now;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

struct Attacker<'a> {
    args: &'a AttackArgs,
    pair: Pair,
}

/// What a route leads to.
#[derive(Clone, Copy)]
enum Way {
    Via(usize),
    NextHop,
    /// It is the guest's own business, and the host says so.
    Encapsulated,
}

impl Attacker<'_> {
    fn attack(&self) -> Result<()> {
        let routes = self.args.routes;
        match self.args.kind {
            Kind::Changes => {
                let mut session = self.live(&routes_by(0..routes, Way::Via(0)))?;
                for way in (0..2).cycle() {
                    session.change(routes_by(0..routes, Way::Via(1 - way)))?;
                }
            }
            Kind::Snapshots => {
                for way in (0..2).cycle() {
                    let session = self.live(&routes_by(0..routes, Way::Via(way)))?;
                    session.client.close()?;
                }
            }
            Kind::Sweeps => loop {
                self.live(&routes_by(0..routes, Way::Via(0)))?.client.close()?;
                self.live(&[])?.client.close()?;
            },
            Kind::Flaps => {
                let mut session = self.live(&routes_by(0..routes, Way::Via(0)))?;
                for up in [false, true].into_iter().cycle() {
                    session.change(vec![self.link(up)])?;
                }
            }
            Kind::NextHop => {
                let mut session = self.live(&routes_by(0..routes, Way::NextHop))?;
                for way in (0..2).cycle() {
                    session.change(vec![next_hop(1 - way)])?;
                }
            }
            Kind::Cover => {
                let neighbors: Vec<Change> = (0..routes).map(|n| neighbor(block(n).network())).collect();
                let mut session = self.live(&neighbors)?;
                let default = Ipv4Net::default();
                for gateway in [None, Some(GATEWAYS[0])].into_iter().cycle() {
                    session.change(vec![route(default, 0, hops(gateway, false))])?;
                }
            }
            Kind::OnePrefix => {
                let of_one = |metric| route(block(0), metric, hops(Some(GATEWAYS[0]), false));
                let mut session = self.live(&(1..=routes).map(of_one).collect::<Vec<_>>())?;
                for way in (0..2).cycle() {
                    session.change(vec![route(block(0), 0, hops(Some(GATEWAYS[way]), false))])?;
                }
            }
            Kind::HalfOpen => self.half_open()?,
            Kind::SlowReader => self.read_nothing()?,
            Kind::Garbage => loop {
                ready();
                let request = b"GET / HTTP/1.1\r\n\r\n";
                self.connect()?.write_all(request)?;
                let garbage = vec![0xff; 1 << 20];
                BYTES.fetch_add((request.len() + garbage.len()) as u64, Ordering::Relaxed);
                // The connection of the last byte ends as it likes.
                let mut client = self.open()?;
                client.welcome(&self.args.router)?;
                let _ = client.frame(1 << 20, &garbage);
                while client.hear().is_ok() {}
            },
            Kind::Memory => self.wide()?,
        }
        Ok(())
    }

    fn connect(&self) -> Result<TcpStream> {
        while IS_QUIET.load(Ordering::Relaxed) {
            std::thread::sleep(ALIVE);
        }
        let address = SocketAddrV6::new(HOST_IPV6, PORT, 0, if_nametoindex(CONTROL)?);
        let stream = TcpStream::connect_timeout(&address.into(), TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        Ok(stream)
    }

    fn open(&self) -> Result<Client> {
        Client::open(self.connect()?, &self.args.pki.join("ca.pem"), Some(&self.pair))
    }

    /// A session that has told its tables, with these beside what they need, and was confirmed.
    fn live(&self, more: &[Change]) -> Result<Session> {
        let session = self.told(more)?;
        ready();
        Ok(session)
    }

    fn told(&self, more: &[Change]) -> Result<Session> {
        let mut client = self.open()?;
        client.welcome(&self.args.router)?;
        let mut session = Session { client, seq: 0, acked: 0 };
        session.say(GuestMessage::SnapshotBegin)?;
        let mut tables = vec![Change::Upsert(Object::Settings(Settings::default())), self.link(true)];
        tables.extend(GATEWAYS.map(neighbor));
        tables.push(next_hop(0));
        session.change(tables)?;
        session.change(more.to_vec())?;
        session.say(GuestMessage::SnapshotEnd)?;
        while session.acked < session.seq {
            session.hear()?;
        }
        Ok(session)
    }

    fn link(&self, up: bool) -> Change {
        Change::Upsert(Object::Link(Link {
            ifindex: LINK,
            name: "lan3".into(),
            mac: Some(self.args.mac),
            mtu: 1500,
            up,
            running: up,
            kind: String::new(),
            master: None,
            vrf_table: None,
            ipv6_mtu: None,
        }))
    }

    /// The first time it is a matter of loading; the worst is what follows a refusal.
    fn wide(&self) -> Result<()> {
        if REFUSALS.load(Ordering::Relaxed) > 0 {
            ready();
        }
        let mut session = self.told(&[])?;
        for from in (0..MOST_ROUTES).step_by(WIDE_ROUTES) {
            session.change((from..).take(WIDE_ROUTES).map(wide_route).collect())?;
            // One at a time: a refusal is heard before the connection is gone.
            while session.acked < session.seq {
                session.hear()?;
            }
        }
        bail!("the host takes {MOST_ROUTES} routes of {MAX_HOPS} next hops")
    }

    fn half_open(&self) -> Result<()> {
        ready();
        let mut open = VecDeque::new();
        for half in [false, true].into_iter().cycle() {
            let mut stream = self.connect()?;
            if half {
                // Record: handshake, TLS 1.0, 512 bytes; most of them do not come.
                stream.write_all(&[22, 3, 1, 2, 0, 1, 0])?;
                BYTES.fetch_add(7, Ordering::Relaxed);
            }
            open.push_back(stream);
            if open.len() > OPEN {
                open.pop_front();
            }
        }
        Ok(())
    }

    fn read_nothing(&self) -> Result<()> {
        let mut client = self.open()?;
        client.welcome(&self.args.router)?;
        ready();
        // Every second message takes back what the first one caused an answer to.
        let mut seq = 1;
        say(&mut client, GuestMessage::SnapshotBegin(Seq(1)))?;
        let settings = vec![Change::Upsert(Object::Settings(Settings::default())), self.link(true)];
        say(&mut client, GuestMessage::Changes { seq: Seq(2), changes: settings })?;
        say(&mut client, GuestMessage::SnapshotEnd(Seq(3)))?;
        seq += 2;
        let most = u32::try_from(MAX_CHANGES)?;
        for way in [Way::Encapsulated, Way::Via(0)].into_iter().cycle().take(usize::try_from(WINDOW)?) {
            seq += 1;
            let changes = routes_by(0..most, way);
            CHANGES.fetch_add(changes.len() as u64, Ordering::Relaxed);
            say(&mut client, GuestMessage::Changes { seq: Seq(seq), changes })?;
        }
        loop {
            // Where it reads nothing there is no sign of life either.
            if IS_QUIET.load(Ordering::Relaxed) {
                return Ok(());
            }
            say(&mut client, GuestMessage::Ping(seq))?;
        }
    }
}

/// A session that keeps to the protocol.
struct Session {
    client: Client,
    seq: u64,
    acked: u64,
}

impl Session {
    fn say(&mut self, message: impl FnOnce(Seq) -> GuestMessage) -> Result<()> {
        while IS_QUIET.load(Ordering::Relaxed) {
            self.client.say(&GuestMessage::Ping(0))?;
            self.hear()?;
            std::thread::sleep(ALIVE);
        }
        while self.seq - self.acked >= WINDOW {
            self.hear()?;
        }
        self.seq += 1;
        say(&mut self.client, message(Seq(self.seq)))
    }

    fn change(&mut self, changes: Vec<Change>) -> Result<()> {
        for part in changes.chunks(MAX_CHANGES) {
            CHANGES.fetch_add(part.len() as u64, Ordering::Relaxed);
            self.say(|seq| GuestMessage::Changes { seq, changes: part.to_vec() })?;
        }
        Ok(())
    }

    fn hear(&mut self) -> Result<()> {
        match self.client.hear()? {
            HostMessage::Ack { seq, .. } => self.acked = self.acked.max(seq.0),
            HostMessage::Ping(token) => self.client.say(&GuestMessage::Pong(token))?,
            HostMessage::Refusal { reason, detail } => {
                REFUSALS.fetch_add(1, Ordering::Relaxed);
                bail!("refused ({reason:?}): {detail}");
            }
            HostMessage::Welcome(_)
            | HostMessage::InUse(_)
            | HostMessage::Renewed(_)
            | HostMessage::Pong(_) => {}
        }
        Ok(())
    }
}

fn say(client: &mut Client, message: GuestMessage) -> Result<()> {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes);
    client.bytes(&bytes)?;
    MESSAGES.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    Ok(())
}

fn ready() {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        print(READY);
    }
}

fn block(number: u32) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::from(ROUTES + number * 8), 32)
}

fn routes_by(numbers: std::ops::Range<u32>, way: Way) -> Vec<Change> {
    let target = || match way {
        Way::Via(gateway) => hops(GATEWAYS.get(gateway).copied(), false),
        Way::NextHop => RouteTarget::NextHop(NEXT_HOP),
        Way::Encapsulated => hops(Some(GATEWAYS[0]), true),
    };
    numbers.map(|number| route(block(number), 0, target())).collect()
}

fn route(dst: Ipv4Net, metric: u32, target: RouteTarget) -> Change {
    let key = RouteKey { table: TABLE_MAIN, dst: dst.into(), tos: 0, metric };
    Change::Upsert(Object::Route(Route {
        key,
        kind: RouteKind::Unicast,
        protocol: 99,
        scope: 0,
        target,
        mtu: None,
    }))
}

/// No two of these share their next hops.
fn wide_route(number: u32) -> Change {
    let gateway = |n: u32| Ipv4Addr::from(0x0a03_0000 | (number.wrapping_mul(3) + n) & 0xffff);
    let hops = (0..MAX_HOPS as u32).map(|n| hop(Some(gateway(n)), false)).collect();
    route(block(number), 0, RouteTarget::Hops(hops))
}

fn hop(gateway: Option<Ipv4Addr>, encap: bool) -> Hop {
    Hop { gateway: gateway.map(IpAddr::V4), oif: Some(LINK), weight: 1, flags: HopFlags(0), encap }
}

fn hops(gateway: Option<Ipv4Addr>, encap: bool) -> RouteTarget {
    RouteTarget::Hops(vec![hop(gateway, encap)])
}

fn next_hop(gateway: usize) -> Change {
    let kind = NextHopKind::Single(hop(GATEWAYS.get(gateway).copied(), false));
    Change::Upsert(Object::NextHop(NextHop { id: NEXT_HOP, kind }))
}

fn neighbor(addr: Ipv4Addr) -> Change {
    let [a, b, c, d] = addr.octets();
    let key = NeighborKey { ifindex: LINK, addr: addr.into() };
    Change::Upsert(Object::Neighbor(Neighbor { key, mac: MacAddr([2, 0xaa, a, b, c, d]) }))
}

/// The report is the last line of the log.
pub(super) fn report(log: &str) -> Result<Report> {
    let last = log.lines().last().context("the attack said nothing")?;
    serde_json::from_str(last).with_context(|| format!("the attack said {last:?}"))
}
