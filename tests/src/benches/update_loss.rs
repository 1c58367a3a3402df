//! `update-loss`: random route changes, as fast as all take them, beside a path that none of them changes.
//!
//! h1 – r1 – h2 on one host. A probe runs over the stable prefix while prefixes around it (longer, shorter, other
//! metrics) and prefixes far from it come and go. The plan of changes is in `churn`.

mod churn;

use std::collections::VecDeque;
use std::io::Write as _;
use std::process::{ChildStdin, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use self::churn::{Churn, STABLE, Scope};
use super::{Options, percentile, round};
use crate::cpu::Meter;
use crate::endhost::EndHost;
use crate::node::Node;
use crate::one_router::{H2, OneRouter};
use crate::oracle::random::Random;
use crate::probe::{Probe, ProbeReport};
use crate::process::{Process, wait_for};
use crate::scenario::{Lab, Scenario};
use crate::virtual_router::VirtualRouter;

/// The registry's entry.
pub(super) const BENCH: Scenario = Scenario {
    name: "update-loss",
    about: "packets lost while routes change: random changes under a probe (--seconds N, --window N, --rate N)",
    memory_mib: 1024,
    limit: Duration::from_secs(900),
    needs_product: true,
    in_suite: false,
    targets: &[
        ("changes_per_s", "at least 1000"),
        ("lost", "0"),
        ("duplicated", "0"),
        ("punted", "0"),
        ("control_lost_or_punted", "more than 0"),
    ],
    run,
};

/// Where the probe goes: h2 by the stable prefix.
const TARGET: &str = "10.99.1.1";
/// The gateway of the stable prefix: h2.
const GATEWAY: &str = H2;
const LIMIT: Duration = Duration::from_secs(30);
/// Changes written at once.
const BATCH: usize = 100;
/// What the control leaves out the stable route for.
const OUTAGE: Duration = Duration::from_millis(50);
/// The least rate of changes, per second.
const MIN_PER_S: u32 = 1000;
const CONTROL_SECONDS: u64 = 3;

struct Site {
    h: [EndHost; 2],
    r1: VirtualRouter,
    node: Node,
}

/// What was measured under changes.
struct Run {
    changes: u64,
    seconds: f64,
    ack_ms: Vec<f64>,
    probe: ProbeReport,
    punted: u64,
    cpu: serde_json::Map<String, Value>,
}

fn run(lab: &mut Lab) -> Result<Value> {
    let mut options = Options::parse(lab.args())?;
    let seconds: u64 = options.take("--seconds", 30)?;
    let window: u64 = options.take("--window", 1000)?;
    let rate: u32 = options.take("--rate", 1000)?;
    options.end()?;
    ensure!((1..=600).contains(&seconds), "{seconds} seconds is not 1 to 600");
    ensure!((1..=5000).contains(&window), "a window of {window} changes is not 1 to 5000");
    let mut site = build(lab)?;
    lab.ready()?;

    lab.step("control: the same with the stable route gone for moments");
    let mut random = Random::new(lab.seed(), 1);
    let mut churn = Churn::new(Scope::LeavesNothing, &mut random);
    let control = measure(lab, &mut site, &mut churn, &mut random, (CONTROL_SECONDS, window, rate), true)?;
    ensure!(control.probe.lost + control.punted > 0, "the stable route went and nothing shows: {control:?}");
    clear(&mut site, &mut churn)?;

    lab.step(format!("{seconds} s of random route changes under {rate} packets/s"));
    let mut churn = Churn::new(Scope::All, &mut random);
    let run = measure(lab, &mut site, &mut churn, &mut random, (seconds, window, rate), false)?;
    let state = site.r1.client_state()?;
    let present = churn.present_far();
    wait_for(&format!("flows of the {present} prefixes far off"), LIMIT, || {
        let flows = site.node.flows()?;
        let far = |flow: &&str| flow.contains("table=3,") && churn::is_far(flow);
        Ok((flows.lines().filter(far).count() == present).then_some(()))
    })?;

    let per_s = run.changes as f64 / run.seconds;
    let figures = json!({
        "changes": run.changes,
        "seconds": round(run.seconds),
        "changes_per_s": per_s.round(),
        "sent": run.probe.sent,
        "lost": run.probe.lost,
        "duplicated": run.probe.duplicated,
        "reordered": run.probe.reordered,
        "punted": run.punted,
        "longest_gap_ms": run.probe.longest_gap_ms,
        "ack_ms_p50": percentile(&run.ack_ms, 50).map(round),
        "ack_ms_p99": percentile(&run.ack_ms, 99).map(round),
        "acks": run.ack_ms.len(),
        "dumps": state.dumps,
        "overflows": state.overflows,
        "routes": state.routes,
        "cpu_percent": run.cpu,
        "control_changes": control.changes,
        "control_sent": control.probe.sent,
        "control_lost_or_punted": control.probe.lost + control.punted,
    });
    ensure!(
        run.probe.lost == 0 && run.probe.duplicated == 0 && run.punted == 0,
        "lost, duplicated and punted must be 0: {figures}"
    );
    ensure!(per_s >= f64::from(MIN_PER_S), "fewer than {MIN_PER_S} changes/s: {figures}");
    Ok(figures)
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} changes in {:.1} s, punted {}, {:?}",
            self.changes, self.seconds, self.punted, self.probe
        )
    }
}

fn build(lab: &Lab) -> Result<Site> {
    lab.step("making host a with r1 between h1 and h2");
    let mut site = OneRouter::create(lab)?;
    let h = site.end_hosts()?;
    h[1].netns().ip_batch(&format!("address add {TARGET}/32 dev lo\n"))?;
    site.guest().ip_batch(&format!(
        "nexthop add id 1 via {GATEWAY} dev lan2\nnexthop add id 2 via {GATEWAY} dev lan2\n\
         route add {STABLE} nhid 1\n{}",
        churn::neighbor_lines()
    ))?;
    site.start(LIMIT)?;
    let OneRouter { r1, node, .. } = site;
    h[0].wait_reachable(TARGET, LIMIT)?;
    wait_for("r1 to forward no more itself", LIMIT, || {
        let before = r1.guest().forwarded()?;
        let ping = h[0].ping(TARGET, 5, 20)?;
        Ok((ping.lost() == 0 && r1.guest().forwarded()? == before).then_some(()))
    })?;
    Ok(Site { h, r1, node })
}

/// Changes routes in a closed loop: no more than `window` changes are unacknowledged at a time.
fn measure(
    lab: &Lab,
    site: &mut Site,
    churn: &mut Churn,
    random: &mut Random,
    (seconds, window, rate): (u64, u64, u32),
    outages: bool,
) -> Result<Run> {
    let acks = site.r1.watch()?.into_acks()?;
    let (mut routes, mut stdin) = writer(lab, site)?;
    let to = format!("{TARGET}:7000").parse()?;
    let probe = Probe::start(lab, site.h[0].netns(), site.h[1].netns(), to, rate)?;
    let punted = site.r1.guest().forwarded()?;
    let meter = Meter::start(&[
        ("xenflow-guest", site.r1.client()?.id()),
        ("xenflow-dom0", site.node.daemon()?.id()),
        ("ovs-vswitchd", site.node.host_mut().vswitchd()?.id()),
        ("routes", routes.id()),
        ("lab", std::process::id()),
    ])?;
    let start = Instant::now();
    let (mut made, mut acked, mut ack_ms) = (0, 0, Vec::new());
    let mut take = |acked: &mut u64, limit| match acks.recv_timeout(limit) {
        Ok(ack) => {
            *acked += ack.changes;
            ack_ms.extend(ack.took().map(|took| took.as_secs_f64() * 1000.0));
            Ok(true)
        }
        Err(RecvTimeoutError::Timeout) => Ok(false),
        Err(RecvTimeoutError::Disconnected) => bail!("the client says no more"),
    };
    let mut told = 0;
    // The keys of what is not acknowledged yet: to touch one twice would make two changes one.
    let mut recent = VecDeque::new();
    while start.elapsed() < Duration::from_secs(seconds) {
        let lines = churn.lines(BATCH, &mut recent, usize::try_from(window)? + BATCH, random);
        stdin.write_all(lines.text.as_bytes())?;
        made += lines.changes;
        if outages && told < start.elapsed().as_millis() / 500 {
            told += 1;
            // Not counted: a route that comes back at once may be no change to tell. So the host is told of what is
            // before first, and then has time to be told of this.
            stdin.write_all(format!("route del {STABLE}\n").as_bytes())?;
            while acked < made {
                ensure!(
                    take(&mut acked, LIMIT)?,
                    "{acked} of {made} changes were confirmed, and no more come"
                );
            }
            std::thread::sleep(OUTAGE);
            stdin.write_all(format!("route add {STABLE} nhid 1\n").as_bytes())?;
        } else if !outages && start.elapsed().as_secs() / 5 > u64::try_from(told)? {
            told += 1;
            lab.step(format!("{acked} changes confirmed"));
        }
        while acked + window < made {
            ensure!(take(&mut acked, LIMIT)?, "no acknowledgement; {acked} of {made} changes confirmed");
        }
        routes.check()?;
    }
    // There may be more: a neighbor that the guest looks for is a change as well.
    while acked < made {
        ensure!(take(&mut acked, LIMIT)?, "{acked} of {made} changes were confirmed, and no more come");
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu = meter.percent()?;
    drop(stdin);
    let status = routes.wait(LIMIT)?;
    ensure!(status.success(), "lab routes ended with {status}: {}", routes.log());
    let probe = probe.stop()?;
    let punted = site.r1.guest().forwarded()? - punted;
    ack_ms.sort_by(f64::total_cmp);
    Ok(Run { changes: made, seconds, ack_ms, probe, punted, cpu })
}

/// What changes the routes: one program for all changes, and cheap, as it shares the lab's one processor with what is
/// measured.
fn writer(lab: &Lab, site: &Site) -> Result<(Process, ChildStdin)> {
    let mut command = site.r1.guest().netns().command(lab.binary());
    command.arg("routes").stdin(Stdio::piped());
    let log = lab.results().join(format!("routes-{}.log", lab.next_id()));
    let mut routes = Process::spawn_with_stdin("lab routes", &mut command, &log)?;
    let stdin = routes.child().stdin.take().context("no pipe to the writer")?;
    Ok((routes, stdin))
}

/// Takes back what the control has left.
fn clear(site: &mut Site, churn: &mut Churn) -> Result<()> {
    site.r1.guest().netns().ip_batch(&churn.removals())?;
    wait_for("the client to have told everything", LIMIT, || {
        let state = site.r1.client_state()?;
        let flows = site.node.flows()?;
        let left = flows.lines().any(|flow| flow.contains("table=3,") && churn::is_far(flow));
        Ok((state.backlog == 0 && state.seq == state.acked && !left).then_some(()))
    })
}
