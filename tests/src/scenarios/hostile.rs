//! `hostile`: bad input, here and always. A guest gone bad tries the door to its host in every way at once known;
//! each try leaves one line in the log that names it, and another router of the host forwards on untouched.

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use xenflow_proto::message::{RefusalReason, VERSION};
use xenflow_proto::{Change, GuestMessage, HostMessage, Key, Seq, control};

use crate::capture::{self, Capture};
use crate::endhost::{self, EndHost};
use crate::frame;
use crate::hostile::{self, Client, Pair, hello};
use crate::inject;
use crate::net::Netns;
use crate::node::{Node, Pki};
use crate::one_router::{H1, H2, OneRouter};
use crate::probe::Probe;
use crate::process::{self, wait_for};
use crate::scenario::{Lab, Scenario};
use crate::virtual_router::{CONTROL, VirtualRouter};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "hostile",
    about: "bad input at the door of the host: refused by name, and the neighbor forwards on",
    memory_mib: 1024,
    limit: Duration::from_secs(360),
    needs_product: true,
    in_suite: true,
    targets: &[("probe_lost", "0"), ("control_frames_seen", "0")],
    run,
};

const LIMIT: Duration = Duration::from_secs(20);
const HALF_OPEN: usize = 100;
const ENDED: &str = "session ended";

/// h1 – r1 – h2 on host a, and the guest gone bad.
struct Site {
    h: [EndHost; 2],
    r1: VirtualRouter,
    evil: VirtualRouter,
    node: Node,
    pki: Pki,
}

/// A try, and what must come of it.
struct Try {
    name: &'static str,
    /// In the log's line.
    logged: &'static str,
    /// What the guest is told, where the protocol lets it be told.
    told: Option<RefusalReason>,
    act: Act,
}

type Act = Box<dyn Fn(&Door<'_>) -> Result<Option<Client>>>;

/// Where the guest gone bad knocks.
struct Door<'a> {
    ns: &'a Netns,
    ca: PathBuf,
    pki: &'a Path,
    foreign: PathBuf,
}

impl Door<'_> {
    fn open(&self, pair: &Pair) -> Result<Client> {
        Client::open(hostile::tcp(self.ns)?, &self.ca, Some(pair))
    }

    fn as_router(&self, name: &str) -> Result<Client> {
        self.open(&Pair::read(self.pki, name)?)
    }

    /// A session of the attacker's own, as it should be.
    fn welcomed(&self) -> Result<Client> {
        let mut client = self.as_router("evil")?;
        client.welcome("evil")?;
        Ok(client)
    }

    /// Shows a certificate that is refused; the alert may come at any time after.
    fn show(&self, pair: Option<&Pair>) -> Result<Option<Client>> {
        let mut client = Client::open(hostile::tcp(self.ns)?, &self.ca, pair)?;
        let heard = client.hear();
        ensure!(heard.is_err(), "the host answered {heard:?}");
        Ok(None)
    }
}

fn run(lab: &mut Lab) -> Result<Value> {
    let mut site = build(lab)?;
    lab.ready()?;
    let probe = start_probe(lab, &site)?;
    let before = flows(&site.node)?;
    ensure!(
        before.iter().any(|flow| flow.contains(&format!("nw_dst={H2} "))),
        "h2 is no neighbor: {before:#?}"
    );

    let tries = tries();
    // A nudge may have ended a handshake of r1's own, for a better one.
    let first = ended(&mut site.node)?.len();
    for (number, one) in tries.iter().enumerate() {
        lab.step(one.name);
        attempt(&mut site, first + number, one, &before).with_context(|| format!("in \"{}\"", one.name))?;
    }
    lab.step("a session by IPv4");
    by_ipv4(&mut site, first + tries.len())?;
    lab.step(format!("{HALF_OPEN} connections that say nothing, while r1's client starts anew"));
    let comeback = half_open(&mut site)?;
    untouched(&mut site, &before)?;
    lab.step("two with r1's key: the newest has the session");
    newest_wins(&mut site, &before)?;
    lab.step("r1's own session ends in garbage");
    own_garbage(&mut site, &before)?;
    lab.step("the control network leads to the host alone");
    let (sent, seen) = cross(lab, &site)?;
    let report = probe.stop()?;
    ensure!(report.lost == 0 && report.sent > 1000, "the probe h1 → h2: {report:?}");
    Ok(json!({
        "tries": tries.len(),
        "probe_sent": report.sent,
        "probe_lost": report.lost,
        "session_after_half_open_ms": u64::try_from(comeback.as_millis())?,
        "control_frames_tried": sent,
        "control_frames_seen": 0,
        "control_frames_of_host_seen": seen,
    }))
}

fn build(lab: &Lab) -> Result<Site> {
    lab.step("making host a with r1 between h1 and h2, and the router of the attacker");
    let mut site = OneRouter::create(lab)?;
    let evil = VirtualRouter::create(lab, &site.node, &site.pki, ("red", "evil", 2), &[])?;
    let h = site.end_hosts()?;
    site.start(LIMIT)?;
    let OneRouter { r1, node, pki } = site;
    h[0].wait_reachable(H2, LIMIT)?;
    // The first packets resolved the neighbors; from then on the flows stay as they are.
    wait_for("flows to both end hosts", LIMIT, || {
        let flows = flows(&node)?;
        let routed = |addr: &str| flows.iter().any(|flow| flow.contains(&format!("nw_dst={addr} ")));
        Ok((routed(H1) && routed(H2)).then_some(()))
    })?;
    Ok(Site { h, r1, evil, node, pki })
}

fn start_probe(lab: &Lab, site: &Site) -> Result<Probe> {
    Probe::start(lab, site.h[0].netns(), site.h[1].netns(), format!("{H2}:7000").parse()?, 100)
}

/// The flows that do not depend on traffic: all but the learned ones.
fn flows(node: &Node) -> Result<Vec<String>> {
    let text = node.flows()?;
    let kept = text.lines().filter(|line| !line.contains("table=6,"));
    let mut flows: Vec<String> = kept.map(|line| line.trim().to_owned()).collect();
    flows.sort_unstable();
    Ok(flows)
}

fn ended(node: &mut Node) -> Result<Vec<String>> {
    let log = node.daemon()?.log();
    Ok(log.lines().filter(|line| line.contains(ENDED)).map(str::to_owned).collect())
}

/// Waits for one more line than `before`, and gives it.
fn next_end(node: &mut Node, before: usize) -> Result<String> {
    let lines = wait_for("the log's line", LIMIT, || {
        let lines = ended(node)?;
        Ok((lines.len() > before).then_some(lines))
    })?;
    ensure!(lines.len() == before + 1, "more than one line: {:#?}", lines.get(before..));
    lines.last().cloned().context("no line")
}

fn attempt(site: &mut Site, lines: usize, one: &Try, flows_before: &[String]) -> Result<()> {
    let lines_before = ended(&mut site.node)?.len();
    ensure!(lines_before == lines, "{lines_before} lines before, not {lines}");
    let foreign = foreign(site)?;
    let pki = site.pki.dir();
    let door = Door { ns: site.evil.guest().netns(), ca: pki.join("ca.pem"), pki, foreign };
    let client = (one.act)(&door)?;
    if let (Some(told), Some(mut client)) = (one.told, client) {
        let reason = refusal(&mut client)?;
        ensure!(reason == told, "told {reason:?} and not {told:?}");
    }
    let line = next_end(&mut site.node, lines_before)?;
    let peer = format!("[{}%", address(&site.evil)?);
    for wanted in ["WARN", &peer, one.logged] {
        ensure!(line.contains(wanted), "{wanted:?} is not in the line: {line}");
    }
    untouched(site, flows_before)
}

/// The next refusal; what else the host says before is passed over.
fn refusal(client: &mut Client) -> Result<RefusalReason> {
    loop {
        if let HostMessage::Refusal { reason, .. } = client.hear()? {
            return Ok(reason);
        }
    }
}

/// The daemon lives, r1's session is up, its flows are what they were, and h1 reaches h2.
fn untouched(site: &mut Site, before: &[String]) -> Result<()> {
    site.node.daemon()?.check()?;
    site.node.wait_session("r1", Duration::from_millis(1))?;
    let now = flows(&site.node)?;
    ensure!(now == before, "other flows than before: {before:#?} {now:#?}");
    let ping = site.h[0].ping(H2, 5, 10)?;
    ensure!(ping.lost() == 0, "h1 → h2: {ping:?}");
    Ok(())
}

fn address(router: &VirtualRouter) -> Result<Ipv6Addr> {
    Ok(control::guest_ipv6(router.mac(99).parse()?))
}

/// Another authority, with a certificate of the same name.
fn foreign(site: &Site) -> Result<PathBuf> {
    let dir = site.pki.dir().join("foreign");
    if !dir.exists() {
        let xenflow = |args: &[&str]| {
            let mut command = site.node.xenflow_command();
            process::output(command.args(args).arg(&dir))
        };
        xenflow(&["pki", "init"])?;
        xenflow(&["pki", "issue", "router", "evil", "--ca"])?;
        site.pki.issue("node", "b", &[])?;
    }
    Ok(dir)
}

fn tries() -> Vec<Try> {
    use RefusalReason::{Identity, Limit, Protocol, Version};
    fn one(
        name: &'static str,
        logged: &'static str,
        told: Option<RefusalReason>,
        act: impl Fn(&Door<'_>) -> Result<Option<Client>> + 'static,
    ) -> Try {
        Try { name, logged, told, act: Box::new(act) }
    }
    /// Says one thing in a session that was welcomed.
    fn after(message: GuestMessage) -> impl Fn(&Door<'_>) -> Result<Option<Client>> {
        move |door| {
            let mut client = door.welcomed()?;
            client.say(&message)?;
            Ok(Some(client))
        }
    }
    let change =
        |seq| GuestMessage::Changes { seq: Seq(seq), changes: vec![Change::Remove(Key::NextHop(7))] };
    vec![
        one("no certificate", "it showed no certificate", None, |door| door.show(None)),
        one("a certificate of another authority", "of an unknown authority", None, |door| {
            door.show(Some(&Pair::read(&door.foreign, "evil")?))
        }),
        one("an expired certificate", "its certificate has expired", None, |door| {
            door.show(Some(&Pair::issue(door.pki, "evil", (2020, 2021))?))
        }),
        one("a certificate of the future", "its certificate is not valid yet", None, |door| {
            door.show(Some(&Pair::issue(door.pki, "evil", (2090, 2091))?))
        }),
        one("TLS 1.2", "it does not offer what TLS 1.3 here needs", None, |door| {
            let mut tcp = hostile::tcp(door.ns)?;
            std::io::Write::write_all(&mut tcp, &hostile::tls12_hello())?;
            let mut answer = Vec::new();
            std::io::Read::read_to_end(&mut tcp, &mut answer)?;
            // RFC 8446 6: alert, fatal, protocol_version or handshake_failure.
            ensure!(matches!(answer.as_slice(), [21, _, _, 0, 2, 2, 70 | 40]), "answered {answer:?}");
            Ok(None)
        }),
        one("no TLS at all", "it broke the protocol", None, |door| {
            std::io::Write::write_all(&mut hostile::tcp(door.ns)?, b"GET / HTTP/1.1\r\n\r\n")?;
            Ok(None)
        }),
        one("a node's certificate", "xenflow://node/b, not of a router", Some(Identity), |door| {
            let mut client = door.as_router("b")?;
            client.say(&hello("evil", VERSION)?)?;
            Ok(Some(client))
        }),
        one("a hello for another router", "router r1 is not the certificate's", Some(Identity), |door| {
            let mut client = door.as_router("evil")?;
            client.say(&hello("r1", VERSION)?)?;
            Ok(Some(client))
        }),
        one("a stolen key", "is not the address of router r1's control vif", Some(Identity), |door| {
            let mut client = door.as_router("r1")?;
            client.say(&hello("r1", VERSION)?)?;
            Ok(Some(client))
        }),
        one("an unknown version", "protocol versions [99], this host speaks 1", Some(Version), |door| {
            let mut client = door.as_router("evil")?;
            client.say(&hello("evil", 99)?)?;
            Ok(Some(client))
        }),
        one("a long hello", "frame of 4097 bytes is over the limit of 4096", Some(Limit), |door| {
            let mut client = door.as_router("evil")?;
            client.frame(4097, &[0; 4097])?;
            Ok(Some(client))
        }),
        one("no hello", "the first message is no hello", Some(Protocol), |door| {
            let mut client = door.as_router("evil")?;
            client.say(&GuestMessage::Ping(1))?;
            Ok(Some(client))
        }),
        one("garbage for a hello", "refused message", Some(Protocol), |door| {
            let mut client = door.as_router("evil")?;
            client.frame(20, &[0xff; 20])?;
            Ok(Some(client))
        }),
        one("a long frame", "frame of 1048577 bytes is over the limit of 1048576", Some(Limit), |door| {
            let mut client = door.welcomed()?;
            client.frame(1_048_577, &[0; 30_000])?;
            Ok(Some(client))
        }),
        one("an empty frame", "frame of 0 bytes", Some(Protocol), |door| {
            let mut client = door.welcomed()?;
            client.frame(0, &[])?;
            Ok(Some(client))
        }),
        one(
            "half a message",
            "xenflow://router/evil: the guest closed the connection in the middle",
            None,
            |door| {
                let mut client = door.welcomed()?;
                client.frame(100, &[1; 10])?;
                client.close()?;
                Ok(None)
            },
        ),
        one("garbage", "xenflow://router/evil: refused message", Some(Protocol), |door| {
            let mut client = door.welcomed()?;
            client.frame(20, &[0xff; 20])?;
            Ok(Some(client))
        }),
        one("a change before the snapshot", "message 1 is out of place", Some(Protocol), after(change(1))),
        one(
            "a wrong number",
            "sequence number 5 after 0",
            Some(Protocol),
            after(GuestMessage::SnapshotBegin(Seq(5))),
        ),
        one("a second hello", "a second hello", Some(Protocol), |door| {
            let mut client = door.welcomed()?;
            client.say(&hello("evil", VERSION)?)?;
            Ok(Some(client))
        }),
    ]
}

/// A guest without IPv6 has a session too; it ends with a line that is no warning.
fn by_ipv4(site: &mut Site, lines: usize) -> Result<()> {
    let ns = site.evil.guest().netns();
    let address = control::guest_ipv4(site.evil.mac(99).parse()?);
    ns.ip(&["address", "add", &format!("{address}/16"), "dev", CONTROL])?;
    let pki = site.pki.dir();
    let mut client = Client::open(hostile::tcp4(ns)?, &pki.join("ca.pem"), Some(&Pair::read(pki, "evil")?))?;
    client.welcome("evil")?;
    client.close()?;
    let line = next_end(&mut site.node, lines)?;
    let peer = address.to_string();
    for wanted in ["INFO", &peer, "xenflow://router/evil: the guest closed the connection"] {
        ensure!(line.contains(wanted), "{wanted:?} is not in the line: {line}");
    }
    Ok(())
}

/// How long r1's client takes for a new session while the attacker holds connections that say nothing.
fn half_open(site: &mut Site) -> Result<Duration> {
    let lines = ended(&mut site.node)?.len();
    let ns = site.evil.guest().netns();
    let silent = (0..HALF_OPEN).map(|_| hostile::tcp(ns)).collect::<Result<Vec<_>>>()?;
    site.r1.client()?.kill()?;
    let start = Instant::now();
    site.r1.start_client()?;
    site.r1.client()?.wait_for_log("session is up", Duration::from_secs(5))?;
    let took = start.elapsed();
    drop(silent);
    let all = wait_for("a line for each connection", LIMIT, || {
        let now = ended(&mut site.node)?;
        // One is r1's own.
        Ok((now.len() > lines + HALF_OPEN).then_some(now))
    })?;
    let evil = format!("[{}%", address(&site.evil)?);
    let of_evil = all.iter().skip(lines).filter(|line| line.contains(&evil)).count();
    ensure!(of_evil == HALF_OPEN && all.len() == lines + HALF_OPEN + 1, "{of_evil} lines of {HALF_OPEN}");
    site.node.wait_session("r1", LIMIT)?;
    Ok(took)
}

/// Another client with r1's key, where r1's own is: it takes the session, r1's is told so, and has it back when it comes
/// again; then the other is told.
fn newest_wins(site: &mut Site, before: &[String]) -> Result<()> {
    // Time to look before r1's client comes again: it waits for half of this at least.
    site.r1.configure("reconnect_min_ms", 4000)?;
    site.r1.stop_client()?;
    site.r1.start_client()?;
    site.r1.client()?.wait_for_log("session is up", LIMIT)?;
    site.node.wait_session("r1", LIMIT)?;
    let lines = ended(&mut site.node)?.len();
    let watch = site.r1.watch()?.sessions()?;
    watch.session(true, LIMIT)?;

    let pki = site.pki.dir();
    let pair = Pair::read(pki, "r1")?;
    let mut other = Client::open(hostile::tcp(site.r1.guest().netns())?, &pki.join("ca.pem"), Some(&pair))?;
    other.welcome("r1")?;
    watch.session(false, LIMIT)?;
    site.r1.client()?.wait_for_log("a newer session came from", LIMIT)?;
    let line = next_end(&mut site.node, lines)?;
    ensure!(line.contains("xenflow://router/r1: ") && line.contains("a newer session came from"), "{line}");
    other.say(&GuestMessage::Ping(77))?;
    wait_for_pong(&mut other, 77)?;

    let reason = refusal(&mut other)?;
    ensure!(reason == RefusalReason::Replaced, "the older one is told {reason:?}");
    watch.session(true, LIMIT)?;
    let line = next_end(&mut site.node, lines + 1)?;
    ensure!(line.contains("a newer session came from"), "{line}");
    site.node.wait_session("r1", LIMIT)?;
    untouched(site, before)
}

/// The host answers, so it serves this session; what else it says before is passed over.
fn wait_for_pong(client: &mut Client, token: u64) -> Result<()> {
    loop {
        match client.hear()? {
            HostMessage::Pong(answer) if answer == token => return Ok(()),
            HostMessage::Refusal { reason, detail } => bail!("refused: {reason:?}, {detail}"),
            HostMessage::Welcome(_)
            | HostMessage::Ack { .. }
            | HostMessage::InUse(_)
            | HostMessage::Renewed(_)
            | HostMessage::Ping(_)
            | HostMessage::Pong(_) => {}
        }
    }
}

/// The same garbage from r1 itself: what it had said before stays, and a new client takes over.
fn own_garbage(site: &mut Site, before: &[String]) -> Result<()> {
    let lines = ended(&mut site.node)?.len();
    site.r1.stop_client()?;
    let line = next_end(&mut site.node, lines)?;
    ensure!(line.contains("INFO") && line.contains("xenflow://router/r1: "), "r1's client stopped: {line}");
    let pki = site.pki.dir();
    let pair = Pair::read(pki, "r1")?;
    let mut client = Client::open(hostile::tcp(site.r1.guest().netns())?, &pki.join("ca.pem"), Some(&pair))?;
    client.welcome("r1")?;
    client.frame(20, &[0xff; 20])?;
    ensure!(refusal(&mut client)? == RefusalReason::Protocol, "garbage is told to be something else");
    let line = next_end(&mut site.node, lines + 1)?;
    ensure!(line.contains("WARN") && line.contains("xenflow://router/r1: refused message"), "{line}");
    let now = flows(&site.node)?;
    ensure!(now == before, "other flows than before: {before:#?} {now:#?}");
    let ping = site.h[0].ping(H2, 20, 10)?;
    ensure!(ping.lost() == 0, "h1 → h2: {ping:?}");
    site.r1.start_client()?;
    site.r1.client()?.wait_for_log("session is up", LIMIT)?;
    site.node.wait_session("r1", LIMIT)?;
    untouched(site, before)
}

/// From the attacker's control vif to the other guest: by its address, and by frames with every address it might
/// have. Gives back how many frames were tried and how many of the host's own the captures saw.
fn cross(lab: &Lab, site: &Site) -> Result<(usize, usize)> {
    const MARK: &[u8] = b"marked by evil";
    let (evil, r1, host) = (site.evil.guest().netns(), site.r1.guest().netns(), site.node.host().netns());
    let at_r1 = Capture::start(lab, r1, CONTROL, "")?;
    let at_host = Capture::start(lab, host, control::HOST_PORT_NAME, "")?;
    let victim = address(&site.r1)?;
    let ping = endhost::ping(evil, &format!("{victim}%{CONTROL}"), 3, 100)?;
    ensure!(ping.received == 0, "the attacker reaches r1: {ping:?}");
    ensure!(!hostile::reaches(evil, victim, 22)?, "the attacker connects to r1");

    let own = frame::mac(&site.evil.mac(99))?;
    let other = frame::mac(&site.r1.mac(99))?;
    let host_mac = control::HOST_MAC.0;
    let broadcast = frame::mac("ff:ff:ff:ff:ff:ff")?;
    let groups = [frame::mac("33:33:00:00:00:01")?, frame::mac("01:00:5e:00:00:01")?];
    let (of_r1, of_host) = (control::guest_ipv4(site.r1.mac(99).parse()?), control::HOST_IPV4);
    let mut payloads = vec![(frame::IPV4, frame::udp4((of_r1, 6641), (of_host, 6641), 64, MARK)?)];
    payloads.push((0x86dd, udp6(victim, control::HOST_IPV6, MARK)?));
    let mut arp = frame::arp(2, (own, of_r1), (host_mac, of_host));
    arp.extend_from_slice(MARK);
    payloads.push((frame::ARP, arp));
    let mut frames = Vec::new();
    for destination in [other, host_mac, broadcast, groups[0], groups[1]] {
        for source in [own, other, host_mac] {
            for (ethertype, payload) in &payloads {
                frames.push(frame::ethernet(destination, source, &[], *ethertype, payload));
            }
        }
    }
    inject::inject(lab, evil, CONTROL, &frames, u32::try_from(frames.len())?, 2000)?;
    // The host's answer to r1 comes through, after all of them.
    drop(hostile::tcp(r1)?);
    let at_r1 = at_r1.stop()?;
    let foreign = capture::count(&at_r1, |view| view.src() == Some(own) || view.contains(MARK));
    let spoofed = capture::count(&at_host.stop()?, |view| view.contains(MARK));
    if foreign + spoofed > 0 {
        bail!("{foreign} frames of the attacker at r1, {spoofed} with r1's address at the host");
    }
    let seen = capture::count(&at_r1, |view| view.src() == Some(host_mac));
    ensure!(seen > 0, "the capture at r1 does not see the host");
    Ok((frames.len(), seen))
}

/// A UDP packet over IPv6 (RFC 8200) whose checksum is wrong: nobody is to look at it.
fn udp6(from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Result<Vec<u8>> {
    let len = u16::try_from(8 + payload.len())?;
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([17, 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend([0x19, 0xf1, 0x19, 0xf1]);
    packet.extend(len.to_be_bytes());
    packet.extend([0, 1]);
    packet.extend_from_slice(payload);
    Ok(packet)
}
