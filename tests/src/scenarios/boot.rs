//! `boot`: the client in a root like that of a small initramfs, as process 1, with three files and no word of
//! configuration; and how soon a session is there again, by each of the ways in which the client can notice.
//!
//! The control interface comes late, and somebody on a segment of the router answers for the host meanwhile. A probe
//! crosses the router from when the host forwards for it to the end: nothing that happens at the control network may
//! cost a packet.

mod impostor;
mod initramfs;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};

use self::impostor::Impostor;
use self::initramfs::{Initramfs, Running};
use crate::endhost::EndHost;
use crate::host::Vif;
use crate::node::BRIDGE;
use crate::one_router::{H2, OneRouter};
use crate::probe::Probe;
use crate::process::wait_for;
use crate::scenario::{Lab, Scenario};
use crate::virtual_router::{CONTROL, Sessions};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "boot",
    about: "a client without configuration in an initramfs finds its host, and comes back by RST, link event and nudge",
    memory_mib: 512,
    limit: Duration::from_secs(360),
    needs_product: true,
    in_suite: true,
    targets: &[
        ("probe_lost", "0"),
        ("impostor_told_bytes", "0"),
        ("found_ms", "at most 2000"),
        ("rst_ms", "at most 2000"),
        ("link_event_ms", "at most 2000"),
        ("nudge_ms", "at most 3000"),
        ("no_nudge_ms", "more than 4000"),
        ("nudges_by_the_switch", "at least 1"),
        ("children", "0"),
    ],
    run,
};

const LIMIT: Duration = Duration::from_secs(30);
const RATE: u32 = 100;
/// What the client waits between attempts, where it is to be seen that something else than a timer woke it: half of
/// it to all.
const LONG_WAIT_MS: u64 = 16_000;
/// A session that a nudge brings back is there sooner, and one that a timer brings back later.
const NUDGED: Duration = Duration::from_secs(3);
const ALONE: Duration = Duration::from_secs(4);
/// What counts as at once: the machine may be busy.
const AT_ONCE: Duration = Duration::from_secs(2);
/// A client that has heard nothing for two seconds asks whether the host is there.
const ASKED: Duration = Duration::from_secs(3);
/// The table and fields of what lets nudges through to a guest, and of what stops them.
const NUDGES: &str = "table=0,udp6,tp_dst=6641";
const STOP_NUDGES: &str = "table=0,priority=65535,udp6,tp_dst=6641,actions=drop";

struct Site {
    // Dropped from top to bottom.
    probe: Option<Probe>,
    initramfs: Initramfs,
    impostor: Impostor,
    h: [EndHost; 2],
    site: OneRouter,
}

fn run(lab: &mut Lab) -> Result<Value> {
    let mut site = build(lab)?;
    let mut figures = Map::new();
    let mut client = site.initramfs.start(site.site.guest())?;
    lab.ready()?;
    found(lab, &mut site, &mut client, &mut figures)?;
    let forwarded = site.site.r1.guest().forwarded()?;
    words(lab, &site, &mut figures)?;
    returns(lab, &mut site, &mut client, &mut figures)?;

    lab.step("the client is asked to end");
    figures.insert("children".into(), client.children()?.into());
    ensure!(client.children()? == 0, "the client has children");
    figures.insert("stop_ms".into(), ms(client.stop()?));
    site.site.node.daemon()?.wait_for_log("the guest closed the connection", LIMIT)?;
    nudges(lab, &mut site, &mut figures)?;

    let report = site.probe.take().context("there is no probe")?.stop()?;
    ensure!(report.lost == 0 && report.sent > 500, "the probe h1 → h2: {report:?}");
    // Its neighbors are asked for now and then.
    let forwarded = site.site.r1.guest().forwarded()? - forwarded;
    ensure!(forwarded < 10, "the guest has forwarded {forwarded} packets itself");
    figures.insert("forwarded_by_guest".into(), forwarded.into());
    figures.insert("probe_sent".into(), report.sent.into());
    figures.insert("probe_lost".into(), report.lost.into());
    ensure!(site.impostor.asked() > 0, "nobody asked the impostor");
    ensure!(site.impostor.told() == 0, "the impostor was told {} bytes", site.impostor.told());
    figures.insert("impostor_asked".into(), site.impostor.asked().into());
    figures.insert("impostor_told_bytes".into(), 0.into());
    Ok(Value::Object(figures))
}

fn build(lab: &Lab) -> Result<Site> {
    lab.step("making host a with r1 between h1 and h2, and a root for r1's client");
    let mut site = OneRouter::create(lab)?;
    let h = site.end_hosts()?;
    let initramfs = Initramfs::create(lab, &site.pki, "r1")?;
    let files = initramfs.files()?;
    let wanted = ["etc/xenflow/ca.pem", "etc/xenflow/router.key", "etc/xenflow/router.pem", "init"];
    ensure!(files == wanted, "the root has {files:?}");
    unplug(&site)?;
    site.node.start()?;
    let impostor = Impostor::start(h[1].netns())?;
    Ok(Site { probe: None, initramfs, impostor, h, site })
}

/// Takes the control vif away, as when a VM is detached.
fn unplug(site: &OneRouter) -> Result<()> {
    let port = site.r1.port(CONTROL);
    site.node.host().detach(BRIDGE, &port)?;
    site.node.host().netns().ip(&["link", "del", &port])?;
    Ok(())
}

/// Puts the control vif there, all but the last step.
fn prepare(site: &OneRouter) -> Result<()> {
    let (port, mac) = (site.r1.port(CONTROL), site.r1.mac(99));
    site.node.host().plug(&port, site.guest(), CONTROL, &mac)?;
    add_port(site)?;
    site.guest().ip(&["link", "set", CONTROL, "up"])?;
    Ok(())
}

fn add_port(site: &OneRouter) -> Result<()> {
    let (port, mac) = (site.r1.port(CONTROL), site.r1.mac(99));
    site.node.host().declare(BRIDGE, &Vif { port: &port, iface_id: "r1-ctl", mac: &mac, vm_uuid: None })
}

/// The last step: from now on the vif is up.
fn vif_up(site: &OneRouter) -> Result<Instant> {
    let start = Instant::now();
    site.node.host().netns().ip(&["link", "set", &site.r1.port(CONTROL), "up"])?;
    Ok(start)
}

/// The client runs without a control interface, which then comes.
fn found(lab: &Lab, site: &mut Site, client: &mut Running, figures: &mut Map<String, Value>) -> Result<()> {
    lab.step("the client runs, there is no control interface, and an impostor answers at lan2");
    let asked = || Ok((site.impostor.asked() > 0).then_some(()));
    wait_for("the impostor to be asked", LIMIT, asked)?;
    client.wait_for_log("no session with the host", LIMIT)?;
    let watch = client.watch()?;
    lab.step("the control interface comes");
    prepare(&site.site)?;
    let start = vif_up(&site.site)?;
    let (up, state) = watch.session(true, LIMIT)?;
    ensure!(state.interface.as_deref() == Some(CONTROL), "the session is elsewhere: {state:?}");
    took("found_ms", start, up, figures)?;
    client.wait_for_log("the control interface: a node took the session there", LIMIT)?;
    site.site.node.wait_session("r1", LIMIT)?;

    site.h[0].wait_reachable(H2, LIMIT)?;
    let to = format!("{H2}:7000").parse()?;
    site.probe = Some(Probe::start(lab, site.h[0].netns(), site.h[1].netns(), to, RATE)?);
    Ok(())
}

/// What the program says of itself, in its root.
fn words(lab: &Lab, site: &Site, figures: &mut Map<String, Value>) -> Result<()> {
    lab.step("status and check");
    let ns = site.site.guest();
    let (code, status) = site.initramfs.run(ns, &["status"])?;
    ensure!(code == Some(0) && status.starts_with("state        up\n"), "status: {code:?}, {status}");
    ensure!(status.contains("\ninterface    ctl\n"), "status: {status}");
    let (code, text) = site.initramfs.run(ns, &["check", "--json"])?;
    ensure!(code == Some(0), "check: {code:?}, {text}");
    let lines: Vec<Value> = serde_json::from_str(&text).with_context(|| format!("check said {text:?}"))?;
    for (check, detail) in [
        ("key", "/etc/xenflow/router.key has mode 0600"),
        ("certificate", "that of router r1, ends in "),
        ("interface", "ctl: a node of the authority answers there"),
        ("host", "xenflow://node/a answers fe80::1 at ctl"),
        ("redirects", "send_redirects is 0"),
        ("rights", "CAP_NET_ADMIN"),
        ("kernel", "Linux "),
        ("client", "runs; its session with a at ctl is up"),
    ] {
        let line = lines.iter().find(|line| line["check"] == check);
        let line = line.with_context(|| format!("check says nothing of {check}: {text}"))?;
        let said = line["detail"].as_str().unwrap_or_default();
        ensure!(line["verdict"] == "ok" && said.starts_with(detail), "check: {line}");
    }
    // The lab's kernel makes a gre0 in every namespace, where IPv6 is not.
    let obstacles: Vec<&Value> = lines.iter().filter(|line| line["check"] == "forwarding").collect();
    let about = |line: &Value| line["detail"].as_str().is_some_and(|text| text.contains("gre0 IPv6"));
    ensure!(obstacles.iter().all(|line| line["verdict"] == "ok" || about(line)), "check: {obstacles:?}");
    figures.insert("check_lines".into(), lines.len().into());

    site.site.guest().ip(&["link", "set", CONTROL, "down"])?;
    let (code, text) = site.initramfs.run(ns, &["check"])?;
    site.site.guest().ip(&["link", "set", CONTROL, "up"])?;
    ensure!(code == Some(1) && text.contains("\nFAIL host: no host at any interface"), "check: {text}");
    ensure!(text.contains("     -> "), "check does not say what to do: {text}");
    Ok(())
}

/// The session ends in several ways, and is there again.
fn returns(lab: &Lab, site: &mut Site, client: &mut Running, figures: &mut Map<String, Value>) -> Result<()> {
    lab.step("RST: the daemon dies with words of the guest unread, and another one runs in its place");
    let watch = settled(client)?;
    site.site.node.daemon()?.signal(Signal::SIGSTOP)?;
    std::thread::sleep(ASKED);
    site.site.node.kill_daemon()?;
    watch.session(false, LIMIT)?;
    site.site.node.start_daemon()?;
    let start = Instant::now();
    let (up, _) = watch.session(true, LIMIT)?;
    took("rst_ms", start, up, figures)?;
    client.wait_for_log("Connection reset by peer", LIMIT)?;

    lab.step("link event: the vif is unplugged, and comes back as another one");
    let watch = settled(client)?;
    unplug(&site.site)?;
    watch.session(false, LIMIT)?;
    prepare(&site.site)?;
    let start = vif_up(&site.site)?;
    let (up, state) = watch.session(true, LIMIT)?;
    ensure!(state.resumed == Some(true), "the session began anew: {state:?}");
    took("link_event_ms", start, up, figures)
}

/// Waits until the session has been up for a while: one that ends at once does not count as a good one. From then on
/// it is watched.
fn settled(client: &Running) -> Result<Sessions> {
    client.watch()?.session(true, LIMIT)?;
    std::thread::sleep(Duration::from_millis(1500));
    let watch = client.watch()?;
    watch.session(true, LIMIT)?;
    Ok(watch)
}

/// The way to the host was shut, and opens, where nothing tells the guest but the host's nudge; and not even that.
fn nudges(lab: &Lab, site: &mut Site, figures: &mut Map<String, Value>) -> Result<()> {
    let wait = format!("reconnect_min_ms = {LONG_WAIT_MS}\nreconnect_max_ms = {LONG_WAIT_MS}\n");
    site.initramfs.configure(&format!("{wait}log = \"debug\"\n"))?;
    let port = site.site.r1.port(CONTROL);
    let opened = |site: &mut Site| -> Result<Duration> {
        site.site.node.host().detach(BRIDGE, &port)?;
        let mut client = site.initramfs.start(site.site.guest())?;
        client.wait_for_log("no session with the host", LIMIT)?;
        let watch = client.watch()?;
        let start = Instant::now();
        add_port(&site.site)?;
        let (up, _) = watch.session(true, LIMIT)?;
        client.stop()?;
        Ok(up - start)
    };
    lab.step("a client that waits for long is nudged");
    let nudged = opened(site)?;
    figures.insert("nudge_ms".into(), ms(nudged));
    figures.insert("nudges_by_the_switch".into(), wait_packets(site, NUDGES)?.into());
    ensure!(nudged < NUDGED, "nudged, the session took {nudged:?}");

    lab.step("the same, and the switch lets no nudge through");
    site.site.node.host().ofctl(&["add-flow", BRIDGE, STOP_NUDGES])?;
    let alone = opened(site)?;
    figures.insert("no_nudge_ms".into(), ms(alone));
    figures.insert("nudges_stopped".into(), wait_packets(site, "priority=65535")?.into());
    ensure!(alone > ALONE, "without a nudge, the session took {alone:?} only");
    Ok(())
}

/// Packets that the flows with these words have matched, at least one. The switch adds up what its datapath has counted
/// every half second or so.
fn wait_packets(site: &Site, words: &str) -> Result<u64> {
    wait_for(&format!("a packet by the flow {words}"), LIMIT, || {
        let text = site.site.node.host().ofctl(&["dump-flows", BRIDGE])?;
        let flows = text.lines().filter(|line| words.split(',').all(|word| line.contains(word)));
        let count = |line: &str| line.split_once("n_packets=")?.1.split(',').next()?.parse::<u64>().ok();
        let packets: u64 = flows.filter_map(count).sum();
        Ok((packets > 0).then_some(packets))
    })
}

/// Notes a time, which is to be short.
fn took(name: &str, start: Instant, end: Instant, figures: &mut Map<String, Value>) -> Result<()> {
    let took = end.saturating_duration_since(start);
    figures.insert(name.into(), ms(took));
    ensure!(took <= AT_ONCE, "{name}: {took:?}, and at most {AT_ONCE:?} is wanted");
    Ok(())
}

fn ms(time: Duration) -> Value {
    json!(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
