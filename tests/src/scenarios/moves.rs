//! `move`: the control vif of a router goes from host a to host b and back, and the session goes with it, by each of the
//! ways in which the guest can notice: the new host resets what it says, its link goes and comes, or the new host
//! nudges it; and by none of them. Then the guest starts anew with a smaller table (`reboot`).
//!
//! Only the session moves: the other vifs stay plugged in, and a probe crosses the router on host a from the beginning
//! to the end.

mod reboot;
mod wire;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use self::wire::Wire;
use crate::endhost::EndHost;
use crate::node::{BRIDGE, Node};
use crate::one_router::{H2, OneRouter};
use crate::probe::Probe;
use crate::process::wait_for;
use crate::routes::Writer;
use crate::scenario::{Lab, Scenario};
use crate::second;
use crate::virtual_router::{SessionLine, Sessions, VirtualRouter};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "move",
    about: "the session follows the control vif to another host and back: RST, link event, nudge, and a reboot",
    memory_mib: 1024,
    limit: Duration::from_secs(360),
    needs_product: true,
    in_suite: true,
    targets: &[
        ("probe_lost", "0"),
        ("rst.ms", "at most 2000"),
        ("rst.changes", "more than 6000: a snapshot"),
        ("nudge.ms", "at most 2000"),
        ("nudge.changes", "at most 30"),
        ("link_event.ms", "at most 2000"),
        ("link_event.changes", "at most 30"),
        ("silence.ms", "more than 4000"),
        ("silence.changes", "at most 30"),
        ("reboot.gone_before_end", "0"),
        ("reboot.gone_after_end", "reboot.stale"),
    ],
    run,
};

const LIMIT: Duration = Duration::from_secs(30);
/// More than one message holds, so that a snapshot has a middle.
const ROUTES: u32 = 6000;
/// Routes that change at each host while the other one holds what was before.
const CHANGES: u32 = 10;
/// And what else may be told: a link that was seen to go and come, the neighbors.
const BESIDE: u64 = 20;
const RATE: u32 = 100;
/// What counts as at once: the machine may be busy.
const AT_ONCE: Duration = Duration::from_secs(2);
/// A client that nothing tells asks after two seconds of silence, and waits four for the answer.
const ALONE: Duration = Duration::from_secs(4);
/// A session that has lived for so long is a good one.
const GOOD: Duration = Duration::from_millis(1100);
/// Flows of ours in the switch: one stops nudges, the other resets.
const NO_NUDGE: &str = "cookie=0x51,table=0,priority=65535,udp6,tp_dst=6641,actions=drop";
const NO_RST: &str = "cookie=0x51,table=0,priority=65535,tcp6,tp_src=6641,tcp_flags=+rst,actions=drop";
const OURS: &str = "cookie=0x51/-1";

struct Site {
    // Dropped from top to bottom.
    probe: Option<Probe>,
    _h: [EndHost; 2],
    r1: VirtualRouter,
    wire: Wire,
    nodes: [Node; 2],
    writer: Writer,
    changed: u32,
}

/// What tells the guest that it is elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Silence,
    Rst,
    LinkEvent,
    Nudge,
}

/// Where to, the name of it, what tells the guest, and whether that host holds the tables as they were. The second host is
/// one that does not know yet that the session it has with the guest is over.
const MOVES: [(usize, &str, Way, bool); 4] = [
    (1, "rst", Way::Rst, false),
    (0, "nudge", Way::Nudge, true),
    (1, "link_event", Way::LinkEvent, true),
    (0, "silence", Way::Silence, true),
];

fn run(lab: &mut Lab) -> Result<Value> {
    let mut site = build(lab)?;
    lab.ready()?;
    let sessions = site.r1.watch()?.sessions()?;
    sessions.session(true, LIMIT)?;
    let forwarded = site.r1.guest().forwarded()?;
    let mut figures = Map::new();
    for (to, name, way, is_held) in MOVES {
        lab.step(format!("the control vif moves to host {}: {name}", ["a", "b"][to]));
        let (took, line) = site.go(&sessions, to, way).with_context(|| format!("in {name}"))?;
        let changes = line.changes.unwrap_or_default();
        let seen = json!({ "ms": ms(took), "resumed": line.resumed, "changes": changes });
        if way == Way::Silence {
            ensure!(took > ALONE, "nothing told the guest, and the session was back: {seen}");
        } else {
            ensure!(took <= AT_ONCE, "{name}: at most {AT_ONCE:?} is wanted: {seen}");
        }
        ensure!(line.resumed == Some(is_held), "{name}: the session did not begin as it should: {seen}");
        let few = u64::from(CHANGES)..=u64::from(CHANGES) + BESIDE;
        let is_right = if is_held { few.contains(&changes) } else { changes > u64::from(ROUTES) };
        ensure!(is_right, "{name}: not what had changed was told: {seen}");
        figures.insert(name.into(), seen);
    }
    drop(sessions);
    figures.insert("reboot".into(), reboot::reboot(lab, &mut site)?);

    let report = site.probe.take().context("there is no probe")?.stop()?;
    ensure!(report.lost == 0 && report.sent > 500, "the probe h1 → h2: {report:?}");
    // Its neighbors are asked for now and then.
    let forwarded = site.r1.guest().forwarded()? - forwarded;
    ensure!(forwarded < 10, "the guest has forwarded {forwarded} packets itself");
    figures.insert("forwarded_by_guest".into(), forwarded.into());
    figures.insert("probe_sent".into(), report.sent.into());
    figures.insert("probe_lost".into(), report.lost.into());
    Ok(Value::Object(figures))
}

/// Where the route with this number leads.
fn prefix(number: u32) -> String {
    format!("10.{}.{}.0/24", 100 + number / 250, number % 250)
}

fn build(lab: &Lab) -> Result<Site> {
    lab.step(format!("making hosts a and b, and r1 with {ROUTES} routes between h1 and h2"));
    let mut site = OneRouter::create(lab)?;
    let h = site.end_hosts()?;
    // The probe goes by one of the routes.
    let target = "10.100.1.1";
    h[1].netns().ip(&["address", "add", &format!("{target}/32"), "dev", "lo"])?;
    let mut writer = Writer::open(site.guest())?;
    let routes: String = (0..ROUTES).map(|n| format!("route add {} via {H2}\n", prefix(n))).collect();
    writer.write(&routes)?;
    let b = second::create(lab, &site.pki, &site.r1)?;
    let wire = Wire::create(&site.r1, [&site.node, &b])?;
    wire.prepare(&site.node)?;
    site.node.start()?;
    wire.up(&site.node)?;
    site.r1.start_client()?;
    site.node.wait_session("r1", LIMIT)?;
    h[0].wait_reachable(H2, LIMIT)?;
    wait_for("flows of all routes", LIMIT, || {
        let flows = site.node.flows()?;
        let routed = flows.lines().filter(|flow| flow.contains("table=3,")).count() > ROUTES as usize;
        Ok((routed && flows.contains(&format!("nw_dst={H2} "))).then_some(()))
    })?;
    let to = format!("{target}:7000").parse()?;
    let probe = Some(Probe::start(lab, h[0].netns(), h[1].netns(), to, RATE)?);
    let OneRouter { r1, node, .. } = site;
    Ok(Site { probe, _h: h, r1, wire, nodes: [node, b], writer, changed: 0 })
}

impl Site {
    /// Moves the control vif to that host from the other one; from when it is up there until the session is, and what
    /// the client says of it then.
    fn go(&mut self, sessions: &Sessions, to: usize, way: Way) -> Result<(Duration, SessionLine)> {
        std::thread::sleep(GOOD);
        let (old, new) = (&self.nodes[1 - to], &self.nodes[to]);
        for (flow, is_stopped) in [(NO_NUDGE, way != Way::Nudge), (NO_RST, way == Way::Silence)] {
            if is_stopped {
                new.host().ofctl(&["add-flow", BRIDGE, flow])?;
            }
        }
        self.wire.prepare(new)?;
        let log = self.r1.client()?.log().len();
        // What the guest says last before the move is answered: it has nothing to repeat.
        for _ in 0..CHANGES {
            change(&mut self.writer, &mut self.changed)?;
        }
        self.wait_told()?;
        let old_name = old.host().name();
        if way == Way::LinkEvent {
            self.wire.set_carrier(false)?;
        }
        self.wire.leave(old)?;
        let start = Instant::now();
        self.wire.up(new)?;
        match way {
            Way::LinkEvent => self.wire.set_carrier(true)?,
            Way::Rst => change(&mut self.writer, &mut self.changed)?,
            Way::Silence | Way::Nudge => {}
        }
        let name = new.host().name();
        let is_there = |line: &SessionLine| line.is_up() == Some(true) && line.node.as_deref() == Some(name);
        let (up, line) = sessions.wait(&format!("the session at {name}"), LIMIT, is_there)?;
        let seq = line.seq;
        let is_end = |line: &SessionLine| line.state.is_none() && line.acked >= seq;
        sessions.wait("the acknowledgement of end-of-RIB", LIMIT, is_end)?;
        let log = self.r1.client()?.log().split_off(log);
        let (is_reset, is_nudged) = (log.contains("Connection reset by peer"), log.contains("nudged"));
        ensure!(is_nudged == (way == Way::Nudge), "nudged: {is_nudged}");
        ensure!(is_reset == (way != Way::Silence), "reset: {is_reset}");
        new.host().ofctl(&["del-flows", BRIDGE, OURS])?;
        ensure!(old_name != name, "the vif stays at {name}");
        Ok((up.saturating_duration_since(start), line))
    }

    /// Waits until the host has all that the client has to tell.
    fn wait_told(&self) -> Result<()> {
        self.r1.wait_told(LIMIT, |_| true)
    }
}

/// One more route.
fn change(writer: &mut Writer, changed: &mut u32) -> Result<()> {
    let number = *changed;
    *changed += 1;
    writer.write(&format!("route add 10.200.{number}.0/24 via {H2}\n"))
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
