//! `resume`: what a session costs that goes on where the last one ended, beside one that tells everything.
//!
//! All of it is real: the kernel's routes, the client, TLS, the daemon and the switch in the lab. Bytes are those of the
//! guest's control interface, all headers included, both ways apart. Time is from the connecting of the attempt that
//! succeeds to the acknowledgement of end-of-RIB, so with the switch's part.
//!
//! * resumed: the host's address leads nowhere for a while, and routes change meanwhile;
//! * resumed without a change: the control interface goes down and comes up, which the guest must notice;
//! * elsewhere: the control vif moves to host b, which holds nothing, and gets a snapshot;
//! * older: it moves back to host a after routes changed at b: a holds the tables as they were when the guest left;
//! * snapshot: the daemon of a is killed and started, and knows nothing any more.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xenflow_proto::control;

use super::{Options, round};
use crate::churn::plan::{self, FLAPPING, NEXT_HOPS, Plan, STEADY};
use crate::node::Node;
use crate::one_router::OneRouter;
use crate::process::wait_for;
use crate::routes::Writer;
use crate::scenario::{Lab, Scenario};
use crate::second;
use crate::virtual_router::{CONTROL, Sessions, VirtualRouter};

/// The registry's entry.
pub(super) const BENCH: Scenario = Scenario {
    name: "resume",
    about: "bytes and time of a session that resumes, beside a snapshot (--routes N, --changes N)",
    memory_mib: 12 << 10,
    limit: Duration::from_secs(3600),
    needs_product: true,
    in_suite: false,
    targets: &[("bytes_ratio", "at least 20"), ("older_bytes_ratio", "at least 20")],
    run,
};

/// For a session to end, or to begin without much to tell.
const LIMIT: Duration = Duration::from_secs(60);
/// For everything that a million routes take part in.
const LONG: Duration = Duration::from_secs(1800);
const CHUNK: u32 = 10_000;

struct Site {
    r1: VirtualRouter,
    node: Node,
    second: Node,
    writer: Writer,
    plan: Plan,
}

/// What a session cost.
#[derive(Debug)]
struct Cost {
    connected: Duration,
    restored: Duration,
    sent: u64,
    received: u64,
    resumed: bool,
    changes: u64,
}

impl Cost {
    fn figures(&self) -> Value {
        let ms = |time: Duration| round(time.as_secs_f64() * 1000.0);
        json!({
            "changes_told": self.changes,
            "sent_bytes": self.sent,
            "received_bytes": self.received,
            "connect_to_acked_ms": ms(self.connected),
            "restored_to_acked_ms": ms(self.restored),
        })
    }
}

fn run(lab: &mut Lab) -> Result<Value> {
    let mut options = Options::parse(lab.args())?;
    let routes: u32 = options.take("--routes", 1_000_000)?;
    let changes: u32 = options.take("--changes", 1000)?;
    options.end()?;
    ensure!((2..=routes).contains(&changes), "{changes} changes is not 2 to {routes}");
    let mut site = build(lab, routes)?;
    lab.ready()?;
    lab.step(format!("the first snapshot of {routes} routes, into an empty switch"));
    let lines = start(&mut site)?;
    let first = await_session(&mut site, &lines, LONG, |_| Ok(()))?;

    lab.step(format!("the host is out of reach, and {changes} routes change"));
    let (host, mac) = (control::HOST_IPV6, "02:00:00:00:00:99");
    let lead = |site: &Site, verb: &str| site.r1.guest().netns().ip_batch(verb);
    lead(&site, &format!("neigh replace {host} lladdr {mac} dev {CONTROL} nud permanent\n"))?;
    await_loss(&lines)?;
    change(&mut site, changes)?;
    let resumed = await_session(&mut site, &lines, LONG, |site| {
        lead(site, &format!("neigh del {host} dev {CONTROL}\n"))
    })?;

    lab.step("the control interface goes down, and comes up");
    lead(&site, &format!("link set {CONTROL} down\n"))?;
    await_loss(&lines)?;
    let unchanged =
        await_session(&mut site, &lines, LONG, |site| lead(site, &format!("link set {CONTROL} up\n")))?;

    lab.step("the control vif moves to host b, which holds nothing");
    second::unplug(&site.r1, &site.node, &site.second)?;
    await_loss(&lines)?;
    let elsewhere = await_session(&mut site, &lines, LONG, |site| second::plug(&site.r1, &site.second))?;

    lab.step(format!("{changes} routes change at host b, and the control vif moves back"));
    change(&mut site, changes)?;
    wait_for("host b to have all changes", LIMIT, || {
        let state = site.r1.client_state()?;
        Ok((state.backlog == 0 && state.acked == state.seq).then_some(()))
    })?;
    second::unplug(&site.r1, &site.second, &site.node)?;
    await_loss(&lines)?;
    let older = await_session(&mut site, &lines, LONG, |site| second::plug(&site.r1, &site.node))?;

    lab.step("the daemon is killed, and started without a memory");
    site.node.kill_daemon()?;
    await_loss(&lines)?;
    let snapshot = await_session(&mut site, &lines, LONG, |site| site.node.start_daemon())?;

    let bytes = |cost: &Cost| (cost.sent + cost.received) as f64;
    let ratio = bytes(&snapshot) / bytes(&resumed).max(1.0);
    let older_ratio = bytes(&snapshot) / bytes(&older).max(1.0);
    let figures = json!({
        "routes": routes,
        "changes": changes,
        "first": first.figures(),
        "resumed": resumed.figures(),
        "unchanged": unchanged.figures(),
        "elsewhere": elsewhere.figures(),
        "older": older.figures(),
        "snapshot": snapshot.figures(),
        "bytes_ratio": round(ratio),
        "older_bytes_ratio": round(older_ratio),
        "time_ratio": round(snapshot.connected.as_secs_f64() / resumed.connected.as_secs_f64()),
    });
    ensure!(unchanged.sent < resumed.sent, "to tell nothing costs more than to tell changes: {figures}");
    for (cost, is_resumed) in [
        (&first, false),
        (&resumed, true),
        (&unchanged, true),
        (&elsewhere, false),
        (&older, true),
        (&snapshot, false),
    ] {
        ensure!(cost.resumed == is_resumed, "a session did not begin as it should: {figures}");
    }
    // A link that the guest saw go and come may be told of, too.
    ensure!(older.changes < u64::from(changes) + 10, "more was told than had changed: {figures}");
    for ratio in [ratio, older_ratio] {
        ensure!(ratio >= 20.0, "resuming costs more than a twentieth of a snapshot: {figures}");
    }
    Ok(figures)
}

fn build(lab: &Lab, routes: u32) -> Result<Site> {
    lab.step(format!("making hosts a and b, and router r1 with {routes} routes"));
    let mut site = OneRouter::create(lab)?;
    site.node.start()?;
    let OneRouter { r1, node, pki } = site;
    let second = second::create(lab, &pki, &r1)?;
    let mut lines = String::new();
    for (dev, gateways) in [("lan1", STEADY), ("lan2", FLAPPING)] {
        for gateway in gateways {
            let last = gateway.octets()[3];
            lines.push_str(&format!(
                "neigh add {gateway} lladdr 02:aa:00:00:00:{last:02x} dev {dev} nud permanent\n"
            ));
        }
    }
    for id in NEXT_HOPS {
        lines.push_str(&format!("nexthop add id {id} via {} dev lan1\n", STEADY[0]));
    }
    r1.guest().netns().ip_batch(&lines)?;
    let mut writer = Writer::open(r1.guest().netns())?;
    let mut plan = Plan::new(routes, lab.seed())?;
    while plan.made() < routes {
        writer.write(&plan::lines("add", &plan.add(CHUNK.min(routes - plan.made()))))?;
    }
    Ok(Site { r1, node, second, writer, plan })
}

/// Starts the client, and reads what it says from then on.
fn start(site: &mut Site) -> Result<Sessions> {
    site.r1.start_client()?;
    site.r1.watch()?.sessions()
}

/// Half of them come, half of them go.
fn change(site: &mut Site, changes: u32) -> Result<()> {
    let half = (changes / 2) as usize;
    let left = site.plan.present() - half;
    let mut routes = site.plan.remove(half, left);
    site.writer.write(&plan::lines("del", &routes))?;
    for route in &mut routes {
        route.len = if route.len == 32 { 29 } else { route.len + 1 };
    }
    site.writer.write(&plan::lines("add", &routes))?;
    let known = site.r1.client_state()?.routes;
    ensure!(known as usize >= left, "the client knows {known} routes of {left}");
    Ok(())
}

/// Until the session is over.
fn await_loss(lines: &Sessions) -> Result<()> {
    let is_over = |state: &str| state != "up" && state != "syncing";
    lines.wait("the session's end", LIMIT, |line| line.state.as_deref().is_some_and(is_over))?;
    Ok(())
}

/// Lets the client reach the host, and waits until the host acknowledged end-of-RIB.
fn await_session(
    site: &mut Site,
    lines: &Sessions,
    limit: Duration,
    restore: impl FnOnce(&mut Site) -> Result<()>,
) -> Result<Cost> {
    let before = bytes(site)?;
    let restored = Instant::now();
    restore(site)?;
    let mut connecting = restored;
    let mut end = None;
    let (mut resumed, mut changes) = (false, 0);
    let deadline = restored + limit;
    let acked = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let (at, line) = lines.next(left).context("no session, or no end of it")?;
        match line.state.as_deref() {
            Some("connecting") => connecting = at.max(restored),
            Some("up") => {
                end = line.seq;
                (resumed, changes) = (line.resumed == Some(true), line.changes.unwrap_or_default());
            }
            Some(_) => {}
            None if line.acked.is_some() && end.is_some() && line.acked >= end => break at,
            None => {}
        }
    };
    let after = bytes(site)?;
    Ok(Cost {
        connected: acked - connecting,
        restored: acked - restored,
        sent: after.1 - before.1,
        received: after.0 - before.0,
        resumed,
        changes,
    })
}

/// Received and sent by the control interface.
fn bytes(site: &Site) -> Result<(u64, u64)> {
    let text = site.r1.guest().netns().proc_net("dev")?;
    let numbers = text.lines().find_map(|line| line.trim_start().strip_prefix(CONTROL)?.strip_prefix(':'));
    let numbers: Vec<&str> = numbers.context("no control interface")?.split_whitespace().collect();
    let column = |at: usize| numbers.get(at).and_then(|text| text.parse().ok()).context("/proc/net/dev");
    Ok((column(0)?, column(8)?))
}
