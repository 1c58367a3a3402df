//! `fpm`: a router with a limit advertises by BGP what its host forwards, and nothing else.
//!
//! h1 announces prefixes to r1, r1 to h2: all by FRR 10, with `bgp suppress-fib-pending` in r1. zebra asks
//! `xenflow-guest`, which knows from the host which of them the switch has. The limit lets only some through, then
//! all, then some again. Whether the host forwards by a prefix, and since when, the switch itself says.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::endhost::EndHost;
use crate::fpm::{FlowMonitor, Frr, Seen, held, updates};
use crate::node::{BRIDGE, Node};
use crate::one_router::OneRouter;
use crate::process::wait_for;
use crate::scenario::{Lab, Scenario};
use crate::virtual_router::VirtualRouter;

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "fpm",
    about: "BGP advertises what the host forwards: FRR 10 asks through FPM, a limit rejects, is raised and lowered",
    memory_mib: 1024,
    limit: Duration::from_secs(150),
    needs_product: true,
    in_suite: true,
    targets: &[
        ("limited.rejected_but_advertised", "0"),
        ("limited.before_the_flow", "0"),
        ("raised.missing", "0"),
        ("raised.before_the_flow", "0"),
        ("lowered.rejected_but_advertised", "0"),
        ("control.rejected_but_advertised", "more than 0"),
    ],
    run,
};

const LIMIT: Duration = Duration::from_secs(30);
/// BGP gathers what it has to say for a second; what does not come for so long does not come.
const QUIET: Duration = Duration::from_secs(3);
const PREFIXES: u32 = 20;
/// Of a router with two connected networks, as shorter prefixes and lower addresses come first.
const MAX_ROUTES: u32 = 12;
/// The route table of the switch, and what the flow of a prefix does that is forwarded by.
const ROUTE: u8 = 3;
const FORWARD: &str = "goto_table:4";

/// Without the address, which is the default, zebra 10.3 does not connect.
const ZEBRA: &str = "log stdout debugging\ndebug zebra fpm\n\
    fpm address 127.0.0.1 port 2620\nno fpm use-next-hop-groups\n";
const R1: &str = "log stdout informational\n\
    router bgp 65002\n bgp router-id 10.9.9.2\n no bgp ebgp-requires-policy\n bgp suppress-fib-pending\n\
     neighbor 10.1.0.10 remote-as 65001\n neighbor 10.1.0.10 timers connect 1\n\
     neighbor 10.2.0.10 remote-as 65003\n neighbor 10.2.0.10 timers connect 1\n\
     neighbor 10.2.0.10 advertisement-interval 0\n";
const H2: &str = "log stdout debugging\ndebug bgp updates in\n\
    router bgp 65003\n bgp router-id 10.9.9.3\n no bgp ebgp-requires-policy\n\
     neighbor 10.2.0.1 remote-as 65002\n neighbor 10.2.0.1 timers connect 1\n";

struct Site {
    // Dropped from top to bottom.
    monitor: FlowMonitor,
    peers: [Speaker; 2],
    r1: VirtualRouter,
    node: Node,
    /// So many updates are of a session that h2 has no more.
    forgotten: usize,
}

fn run(lab: &mut Lab) -> Result<Value> {
    let mut site = build(lab)?;
    let router = start_router(lab, &site, "r1", &["--asic-offload=notify_on_offload"])?;
    lab.ready()?;

    lab.step(format!("a limit of {MAX_ROUTES} prefixes"));
    site.r1.client()?.wait_for_log("zebra wants to know", LIMIT)?;
    site.wait_routes()?;
    let limited = site.settled()?;
    let forwarded = limited.forwarded.len();
    ensure!(forwarded > 0 && forwarded < PREFIXES as usize, "the host forwards by {forwarded} prefixes");
    limited.check()?;

    lab.step("the limit is raised");
    site.set_limit(1000)?;
    site.wait_held(PREFIXES as usize)?;
    let raised = site.settled()?;
    ensure!(
        raised.forwarded.len() == PREFIXES as usize,
        "raised, the host forwards by {:?}",
        raised.forwarded
    );
    raised.check()?;

    lab.step("the limit is lowered");
    site.set_limit(MAX_ROUTES)?;
    site.wait_held(forwarded)?;
    let lowered = site.settled()?;
    ensure!(lowered.forwarded == limited.forwarded, "lowered, the host forwards by {:?}", lowered.forwarded);
    lowered.check()?;

    lab.step("the same without answers from the host");
    drop(router);
    // What h2 loses with its session is not in its log.
    site.forgotten = site.peers[1].updates()?.len();
    let _router = start_router(lab, &site, "r1-control", &[])?;
    site.wait_held(PREFIXES as usize)?;
    let control = site.settled()?;
    ensure!(!control.excess().is_empty(), "without answers from the host nothing was different");

    Ok(json!({
        "prefixes": PREFIXES,
        "limited": limited.figures(),
        "raised": raised.figures(),
        "lowered": lowered.figures(),
        "control": control.figures(),
    }))
}

fn build(lab: &Lab) -> Result<Site> {
    lab.step("making host a with r1 between the speakers h1 and h2");
    let mut site = OneRouter::create(lab)?;
    let h = site.end_hosts()?;
    site.r1.configure("fpm_listen", "\"127.0.0.1:2620\"")?;
    site.start(LIMIT)?;
    let OneRouter { r1, node, .. } = site;
    let monitor = FlowMonitor::start(lab, node.host(), BRIDGE)?;
    for (end, number) in h.iter().zip(1..) {
        end.wait_reachable(&format!("10.{number}.0.1"), LIMIT)?;
    }

    lab.step("starting the speakers");
    let networks: String = (0..PREFIXES).map(|k| format!("  network {}\n", prefix(k))).collect();
    let h1 = format!(
        "log stdout informational\n\
         router bgp 65001\n bgp router-id 10.9.9.1\n no bgp ebgp-requires-policy\n no bgp network import-check\n\
          neighbor 10.1.0.1 remote-as 65002\n neighbor 10.1.0.1 timers connect 1\n\
          address-family ipv4 unicast\n{networks}"
    );
    let [one, two] = h;
    // Speakers alone: no zebra, no routes.
    let peers = [Speaker::start(lab, "h1", one, &h1)?, Speaker::start(lab, "h2", two, H2)?];
    let site = Site { monitor, peers, r1, node, forgotten: 0 };
    site.set_limit(MAX_ROUTES)?;
    Ok(site)
}

fn prefix(k: u32) -> String {
    format!("10.100.{k}.0/24")
}

/// FRR in r1. Zebra 10.3 finds the routes of notifications in table 0 only, so the main table is called that.
fn start_router(lab: &Lab, site: &Site, name: &str, args: &[&str]) -> Result<Frr> {
    lab.step(format!("starting FRR in {name}"));
    let mut frr = Frr::create(lab, name)?;
    let ns = site.r1.guest().netns();
    frr.start(ns, "mgmtd", "", &[])?;
    let args = [&["-M", "dplane_fpm_nl", "--routing-table=0"], args].concat();
    frr.start(ns, "zebra", ZEBRA, &args)?;
    frr.start(ns, "bgpd", R1, &[])?;
    Ok(frr)
}

impl Site {
    fn set_limit(&self, max: u32) -> Result<()> {
        self.node.configure(&format!("router set r1 --max-routes {max}"))
    }

    /// Waits until r1's kernel has all prefixes.
    fn wait_routes(&self) -> Result<()> {
        wait_for("all prefixes in r1", LIMIT, || {
            let text = self.r1.guest().netns().ip(&["route", "show", "proto", "bgp"])?;
            Ok((text.lines().count() == PREFIXES as usize).then_some(()))
        })
    }

    fn heard(&self) -> Result<Vec<Seen>> {
        let [_, h2] = &self.peers;
        Ok(h2.updates()?.split_off(self.forgotten))
    }

    /// Waits until h2 holds so many prefixes.
    fn wait_held(&self, count: usize) -> Result<()> {
        wait_for(&format!("h2 to hold {count} prefixes"), LIMIT, || {
            Ok((held(&self.heard()?).len() == count).then_some(()))
        })
    }

    /// Waits until nothing new is heard for a while.
    fn settled(&self) -> Result<Phase> {
        let (mut before, mut since) = ((0, 0), Instant::now());
        loop {
            let (heard, flows) = (self.heard()?, self.monitor.seen(ROUTE, FORWARD));
            let now = (heard.len(), flows.len());
            if now != before {
                (before, since) = (now, Instant::now());
            } else if since.elapsed() >= QUIET {
                return Ok(Phase::new(&heard, &flows));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// A BGP speaker in an end host.
struct Speaker {
    // Dropped from top to bottom.
    frr: Frr,
    _end: EndHost,
}

impl Speaker {
    fn start(lab: &Lab, name: &str, end: EndHost, config: &str) -> Result<Self> {
        let mut frr = Frr::create(lab, name)?;
        frr.start(end.netns(), "bgpd", config, &["-Z"])?;
        Ok(Self { frr, _end: end })
    }

    fn updates(&self) -> Result<Vec<Seen>> {
        Ok(updates(&self.frr.log("bgpd")?))
    }
}

/// What was seen by the end of a phase.
#[derive(Debug)]
struct Phase {
    /// Prefixes that the host forwards by.
    forwarded: BTreeSet<String>,
    /// Prefixes that h2 holds.
    held: BTreeSet<String>,
    /// Prefixes that h2 heard of while the host did not forward by them.
    early: BTreeSet<String>,
}

impl Phase {
    fn new(heard: &[Seen], flows: &[Seen]) -> Self {
        let announced: BTreeSet<String> = (0..PREFIXES).map(prefix).collect();
        let forwarded = held(flows).into_iter().filter(|prefix| announced.contains(prefix)).collect();
        let early = |update: &&Seen| {
            let mut before = flows.iter().filter(|flow| flow.prefix == update.prefix && flow.at <= update.at);
            update.there && !before.next_back().is_some_and(|flow| flow.there)
        };
        Self {
            forwarded,
            held: held(heard).into_iter().collect(),
            early: heard.iter().filter(early).map(|update| update.prefix.clone()).collect(),
        }
    }

    /// What h2 should not hold.
    fn excess(&self) -> BTreeSet<&String> {
        self.held.difference(&self.forwarded).collect()
    }

    /// What h2 should hold.
    fn missing(&self) -> BTreeSet<&String> {
        self.forwarded.difference(&self.held).collect()
    }

    fn check(&self) -> Result<()> {
        ensure!(self.excess().is_empty(), "advertised, and not forwarded by the host: {:?}", self.excess());
        ensure!(self.missing().is_empty(), "forwarded by the host, and not advertised: {:?}", self.missing());
        ensure!(self.early.is_empty(), "advertised while the switch had no such flow: {:?}", self.early);
        Ok(())
    }

    fn figures(&self) -> Value {
        json!({
            "forwarded": self.forwarded.len(),
            "advertised": self.held.len(),
            "rejected_but_advertised": self.excess().len(),
            "missing": self.missing().len(),
            "before_the_flow": self.early.len(),
        })
    }
}
