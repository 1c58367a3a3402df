//! `churn`: hundreds of thousands of routes come and are flushed past a receive buffer that cannot hold their events,
//! while a link flaps and next-hop objects go, each of which takes routes along without a word. In the end the host
//! has what the kernel has.
//!
//! `--routes N` says how many. The control is a client that is stopped: the comparison must see what it missed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::kernel::{Table, host_table, kernel_table};
use crate::benches::Options;
use crate::churn::plan::{NEXT_HOPS, Plan, STEADY, lines};
use crate::node::Node;
use crate::one_router::OneRouter;
use crate::process::wait_for;
use crate::routes::Writer;
use crate::scenario::{Lab, Scenario};
use crate::virtual_router::VirtualRouter;

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "churn",
    about: "routes added and flushed past a small receive buffer, with silent deletions (--routes N)",
    memory_mib: 4096,
    limit: Duration::from_secs(900),
    needs_product: true,
    in_suite: true,
    targets: &[
        ("missing", "0"),
        ("extra", "0"),
        ("overflows", "at least 1"),
        ("control_differences", "at least 1"),
    ],
    run,
};

/// With fewer routes in the suite: the rest takes time and shows the same.
pub(super) const SUITE_ARGS: &[&str] = &["--routes", "30000"];

/// The client's, which holds the events of about two hundred routes.
const RECEIVE_BUFFER: u32 = 64 << 10;
/// Routes between two looks at what else may happen.
const CHUNK: u32 = 2000;
/// The bound for the host to follow, for each thousand routes and at least: two to three times what it takes alone.
const FOLLOW_PER_THOUSAND: Duration = Duration::from_millis(1200);
const FOLLOW: Duration = Duration::from_secs(60);
/// What the client may take at its peak, whatever it holds, and for each route that the kernel had at one time.
const BASE_KIB: u64 = 24 << 10;
const ROUTE_BYTES: u64 = 1024;

struct Site {
    r1: VirtualRouter,
    node: Node,
    writer: Writer,
    plan: Plan,
    flaps: u32,
    deleted: u32,
}

fn run(lab: &mut Lab) -> Result<Value> {
    let mut options = Options::parse(lab.args())?;
    let routes: u32 = options.take("--routes", 500_000)?;
    options.end()?;
    let mut site = build(lab, routes)?;
    lab.ready()?;
    let limit = FOLLOW.max(FOLLOW_PER_THOUSAND * (routes / 1000));

    let start = Instant::now();
    let peak = fill(lab, &mut site, routes)?;
    let filled = start.elapsed();
    flush(lab, &mut site, routes as usize / 25)?;
    let flushed = start.elapsed();
    lab.step(format!("{} routes are left, and the host follows", site.plan.present()));
    site.follow(limit)?;
    let followed = start.elapsed();

    let state = site.r1.client_state()?;
    let peak_guest_kib = peak_kib(site.r1.client()?.id())?;
    let control = stopped(lab, &mut site, limit)?;
    let (kernel, host) = site.tables()?;
    let (missing, extra) = compare(&kernel, &host);
    let seconds = |time: Duration| (time.as_secs_f64() * 1000.0).round() / 1000.0;
    let figures = json!({
        "routes": routes,
        "peak_routes": peak,
        "left": site.plan.present(),
        "missing": missing,
        "extra": extra,
        "overflows": state.overflows,
        "dumps": state.dumps,
        "flaps": site.flaps,
        "next_hops_deleted": site.deleted,
        "peak_guest_kib": peak_guest_kib,
        "added_s": seconds(filled),
        "flushed_s": seconds(flushed - filled),
        "followed_s": seconds(followed - flushed),
        "control_differences": control,
    });
    ensure!(missing == 0 && extra == 0, "kernel and host differ: {figures}");
    ensure!(state.overflows > 0, "no event was lost, so nothing was tried: {figures}");
    let bound = BASE_KIB + peak as u64 * ROUTE_BYTES / 1024;
    ensure!(peak_guest_kib <= bound, "the client took more than {bound} KiB: {figures}");
    Ok(figures)
}

fn build(lab: &Lab, routes: u32) -> Result<Site> {
    lab.step("making host a with router r1");
    let plan = Plan::new(routes, lab.seed())?;
    let mut site = OneRouter::create(lab)?;
    site.r1.configure("receive_buffer_bytes", RECEIVE_BUFFER)?;
    let mut lines = String::new();
    for (at, gateway) in STEADY.iter().enumerate() {
        lines.push_str(&format!(
            "neigh add {gateway} lladdr 02:aa:00:00:00:{at:02x} dev lan1 nud permanent\n"
        ));
    }
    lines.extend(NEXT_HOPS.map(next_hop));
    site.guest().ip_batch(&lines)?;
    let writer = Writer::open(site.guest())?;
    site.start(FOLLOW)?;
    let OneRouter { r1, node, .. } = site;
    Ok(Site { r1, node, writer, plan, flaps: 0, deleted: 0 })
}

fn next_hop(id: u32) -> String {
    let gateway = STEADY[id as usize % STEADY.len()];
    format!("nexthop add id {id} via {gateway} dev lan1\n")
}

/// How many routes there were at one time.
fn fill(lab: &Lab, site: &mut Site, routes: u32) -> Result<usize> {
    lab.step(format!("{routes} routes come, past a receive buffer of {RECEIVE_BUFFER} bytes"));
    // About a dozen disturbances, wherever they fall.
    let chunks = routes.div_ceil(CHUNK) as usize;
    let mut peak = 0;
    while site.plan.made() < routes {
        let some = site.plan.add(CHUNK.min(routes - site.plan.made()));
        site.writer.write(&lines("add", &some))?;
        peak = peak.max(site.plan.present());
        if site.plan.random().below(chunks) < 12 {
            site.disturb()?;
        }
    }
    Ok(peak)
}

fn flush(lab: &Lab, site: &mut Site, left: usize) -> Result<()> {
    lab.step(format!("{} of them are flushed", site.plan.present() - left));
    loop {
        let some = site.plan.remove(CHUNK as usize, left);
        if some.is_empty() {
            break;
        }
        site.writer.write(&lines("del", &some))?;
    }
    // What is lost last, nothing but a dump tells of.
    site.flap()?;
    site.delete_next_hop()
}

impl Site {
    fn disturb(&mut self) -> Result<()> {
        if self.plan.random().percent(50) { self.flap() } else { self.delete_next_hop() }
    }

    fn flap(&mut self) -> Result<()> {
        self.r1.guest().netns().ip_batch("link set lan2 down\nlink set lan2 up\n")?;
        self.plan.flapped();
        self.flaps += 1;
        Ok(())
    }

    fn delete_next_hop(&mut self) -> Result<()> {
        let ids: Vec<u32> = NEXT_HOPS.collect();
        let id = *self.plan.random().pick(&ids);
        self.r1.guest().netns().ip_batch(&format!("nexthop del id {id}\n{}", next_hop(id)))?;
        self.plan.next_hop_gone(id);
        self.deleted += 1;
        Ok(())
    }

    fn tables(&self) -> Result<(Table, Table)> {
        Ok((kernel_table(self.r1.guest().netns())?, host_table(&self.node.flows()?)?))
    }

    /// Waits until the client has told everything, and the host has what the kernel has.
    fn follow(&mut self, limit: Duration) -> Result<()> {
        let mut seen = String::new();
        let settled = wait_for("the client to have told everything", limit, || {
            self.r1.client()?.check()?;
            let state = self.r1.client_state()?;
            let (routes, backlog) = (state.routes as usize, state.backlog);
            let done = state.state == "up" && backlog == 0 && state.seq == state.acked;
            seen = format!("{state:?}");
            // The kernel has more than the plan: those of addresses.
            Ok((done && (self.plan.present()..self.plan.present() + 50).contains(&routes)).then_some(()))
        });
        settled.with_context(|| format!("{} are present; the client says {seen}", self.plan.present()))?;
        let mut differ = (0, 0);
        let equal = wait_for("the host to have what the kernel has", FOLLOW, || {
            let (kernel, host) = self.tables()?;
            differ = compare(&kernel, &host);
            let all = kernel.keys().filter(|prefix| is_planned(prefix)).count();
            ensure!(all == self.plan.present(), "the kernel has {all}, not {}", self.plan.present());
            Ok((differ == (0, 0)).then_some(()))
        });
        equal.with_context(|| format!("missing and extra: {differ:?}"))
    }
}

/// Prefixes that the host lacks, and that only it has. One with another gateway is both.
fn compare(kernel: &Table, host: &Table) -> (usize, usize) {
    let right = |prefix: &String| match (kernel.get(prefix), host.get(prefix)) {
        (Some(may), Some(does)) => does.is_subset(may),
        (_, _) => false,
    };
    (kernel.keys().filter(|it| !right(it)).count(), host.keys().filter(|it| !right(it)).count())
}

fn is_planned(prefix: &str) -> bool {
    let mut octets = prefix.split('.');
    let second = octets.nth(1).and_then(|octet| octet.parse::<u8>().ok());
    prefix.starts_with("10.") && second.is_some_and(|octet| octet >= 128)
}

/// The comparison must see what a client that is stopped does not tell.
fn stopped(lab: &Lab, site: &mut Site, limit: Duration) -> Result<usize> {
    lab.step("the client is stopped: the comparison must see it");
    site.r1.client()?.signal(Signal::SIGSTOP)?;
    let present = site.plan.present();
    let some = site.plan.remove(1, present - 1);
    site.writer.write(&lines("del", &some))?;
    std::thread::sleep(Duration::from_millis(500));
    let (kernel, host) = site.tables()?;
    let (missing, extra) = compare(&kernel, &host);
    ensure!(missing + extra > 0, "a removed route that nobody told of makes no difference");
    site.r1.client()?.signal(Signal::SIGCONT)?;
    site.follow(limit)?;
    Ok(missing + extra)
}

/// `VmHWM` of a process.
fn peak_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    line.split_whitespace().next().context("no value")?.parse().context("VmHWM")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn missing_extra_and_wrong_prefixes_are_counted() {
        let table = |routes: &[(&str, &str)]| -> Table {
            routes.iter().map(|(prefix, hop)| ((*prefix).into(), BTreeSet::from([(*hop).into()]))).collect()
        };
        let kernel = table(&[("10.128.0.0/28", "a"), ("10.128.0.16/28", "b"), ("10.128.0.32/28", "c")]);
        let host = table(&[("10.128.0.0/28", "a"), ("10.128.0.16/28", "x"), ("10.128.0.48/28", "d")]);
        assert_eq!(compare(&kernel, &host), (2, 2));
        assert_eq!(compare(&kernel, &kernel), (0, 0));
        assert!(is_planned("10.128.0.0/28") && !is_planned("10.1.0.20/32"));
    }
}
