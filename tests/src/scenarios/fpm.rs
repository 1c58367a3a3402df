//! `fpm`: a router with a limit advertises by BGP what its host forwards, and nothing else.
//!
//! h1 announces prefixes to r1, r1 to h2: all by FRR 10, with `bgp suppress-fib-pending` in r1. zebra asks
//! `xenflow-guest`, which knows from the host which of them the switch has. The limit lets only some of each family
//! through, then all, then some again. Whether the host forwards by a prefix, and since when, the switch itself says.
//! IPv4 prefixes come by two next hops, which are a group of the switch; IPv6 prefixes by one.
//!
//! VRFs are no part of it: zebra 10.3 drops what it is told of their routes, whoever tells it (FRRouting/frr#18712).

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
    limit: Duration::from_secs(300),
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
/// Of each of four kinds: IPv4 and IPv6, shorter and longer ones.
const PREFIXES: u32 = 10;
const ALL: usize = 4 * PREFIXES as usize;
/// Shorter prefixes come first, of one length IPv4 before IPv6: two connected networks, all shorter IPv4 prefixes, and
/// half of the shorter IPv6 ones.
const MAX_ROUTES: u32 = 2 + PREFIXES + PREFIXES / 2;
/// The route table of the switch, and what the flow of a prefix does that is forwarded by.
const ROUTE: u8 = 3;
const FORWARD: &[&str] = &["goto_table:4", SHARED];
/// Of several next hops.
const SHARED: &str = "group:";

/// Without the address, which is the default, zebra 10.3 does not connect.
const ZEBRA: &str = "log stdout debugging\ndebug zebra fpm\n\
    fpm address 127.0.0.1 port 2620\nno fpm use-next-hop-groups\n";
const R1: &str = "log stdout informational\n\
    router bgp 65002\n bgp router-id 10.9.9.2\n no bgp ebgp-requires-policy\n bgp suppress-fib-pending\n\
     neighbor 10.1.0.10 remote-as 65001\n neighbor 10.1.0.10 timers connect 1\n\
     neighbor 10.1.0.10 update-source 10.1.0.1\n\
     neighbor 10.1.0.11 remote-as 65001\n neighbor 10.1.0.11 timers connect 1\n\
     neighbor 10.1.0.11 update-source 10.1.0.2\n\
     neighbor fd00:1::10 remote-as 65001\n neighbor fd00:1::10 timers connect 1\n\
     neighbor 10.2.0.10 remote-as 65003\n neighbor 10.2.0.10 timers connect 1\n\
     neighbor 10.2.0.10 advertisement-interval 0\n\
     neighbor fd00:22::10 remote-as 65003\n neighbor fd00:22::10 timers connect 1\n\
     neighbor fd00:22::10 advertisement-interval 0\n neighbor fd00:22::10 ebgp-multihop 2\n\
     address-family ipv4 unicast\n\
      no neighbor fd00:1::10 activate\n no neighbor fd00:22::10 activate\n exit-address-family\n\
     address-family ipv6 unicast\n\
      neighbor fd00:1::10 activate\n neighbor fd00:22::10 activate\n exit-address-family\n";
const H2: &str = "log stdout debugging\ndebug bgp updates in\n\
    router bgp 65003\n bgp router-id 10.9.9.3\n no bgp ebgp-requires-policy\n\
     neighbor 10.2.0.1 remote-as 65002\n neighbor 10.2.0.1 timers connect 1\n\
     neighbor fd00:2::1 remote-as 65002\n neighbor fd00:2::1 timers connect 1\n\
     neighbor fd00:2::1 ebgp-multihop 2\n neighbor fd00:2::1 update-source fd00:22::10\n\
     address-family ipv4 unicast\n no neighbor fd00:2::1 activate\n exit-address-family\n\
     address-family ipv6 unicast\n neighbor fd00:2::1 activate\n exit-address-family\n";
/// What the site of one router has not: addresses for two IPv4 sessions with h1, and for IPv6. That of h2 is not on
/// r1's link, as a bgpd without a zebra has no use for the link-local next hops that it would be told.
const ADDRESSES: [&str; 3] = [
    "address add 10.1.0.2/24 dev lan1\naddress add fd00:1::1/64 dev lan1 nodad\n\
     address add fd00:2::1/64 dev lan2 nodad\nroute add fd00:22::10/128 via fd00:2::10 dev lan2\n",
    "address add 10.1.0.11/24 dev eth0\naddress add fd00:1::10/64 dev eth0 nodad\n",
    "address add fd00:2::10/64 dev eth0 nodad\naddress add fd00:22::10/128 dev eth0 nodad\n",
];

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
    let of_family = [forwarded - limited.ipv6(), limited.ipv6()];
    let is_some = |count: usize| count > 0 && count < ALL / 2;
    ensure!(of_family.into_iter().all(is_some), "the host forwards by {:?}", limited.forwarded);
    limited.check()?;

    lab.step("the limit is raised");
    site.set_limit(1000)?;
    site.wait_held(ALL)?;
    let raised = site.settled()?;
    ensure!(raised.forwarded.len() == ALL, "raised, the host forwards by {:?}", raised.forwarded);
    ensure!(raised.shared == ALL / 2, "the host forwards by several hops for {} prefixes", raised.shared);
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
    site.wait_held(ALL)?;
    let control = site.settled()?;
    ensure!(!control.excess().is_empty(), "without answers from the host nothing was different");

    Ok(json!({
        "prefixes": ALL,
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
    r1.guest().netns().ip_batch(ADDRESSES[0])?;
    for (end, number) in h.iter().zip(1..) {
        end.netns().ip_batch(ADDRESSES[number])?;
        end.wait_reachable(&format!("10.{number}.0.1"), LIMIT)?;
    }

    lab.step("starting the speakers");
    let networks = |of: fn(u32) -> [String; 2]| -> String {
        (0..PREFIXES).flat_map(of).map(|prefix| format!("  network {prefix}\n")).collect()
    };
    let (v4, v6) = (networks(v4), networks(v6));
    let h1 = format!(
        "log stdout informational\n\
         router bgp 65001\n bgp router-id 10.9.9.1\n no bgp ebgp-requires-policy\n no bgp network import-check\n\
          neighbor 10.1.0.1 remote-as 65002\n neighbor 10.1.0.1 timers connect 1\n\
          neighbor 10.1.0.1 update-source 10.1.0.10\n\
          neighbor 10.1.0.2 remote-as 65002\n neighbor 10.1.0.2 timers connect 1\n\
          neighbor 10.1.0.2 update-source 10.1.0.11\n\
          neighbor fd00:1::1 remote-as 65002\n neighbor fd00:1::1 timers connect 1\n\
          address-family ipv4 unicast\n no neighbor fd00:1::1 activate\n{v4} exit-address-family\n\
          address-family ipv6 unicast\n neighbor fd00:1::1 activate\n{v6} exit-address-family\n"
    );
    let [one, two] = h;
    // Speakers alone: no zebra, no routes.
    let peers = [Speaker::start(lab, "h1", one, &h1)?, Speaker::start(lab, "h2", two, H2)?];
    let site = Site { monitor, peers, r1, node, forgotten: 0 };
    site.set_limit(MAX_ROUTES)?;
    Ok(site)
}

fn v4(k: u32) -> [String; 2] {
    [format!("10.100.{k}.0/24"), format!("10.101.{k}.0/28")]
}

fn v6(k: u32) -> [String; 2] {
    [format!("3fff:{}00::/24", k + 1), format!("2001:db8:{}::/48", k + 1)]
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
            let mut routes = 0;
            for family in ["-4", "-6"] {
                let text = self.r1.guest().netns().ip(&[family, "route", "show", "proto", "bgp"])?;
                // The hops of one stand in lines of their own.
                routes += text.lines().filter(|line| !line.starts_with(char::is_whitespace)).count();
            }
            Ok((routes == ALL).then_some(()))
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
                return Ok(Phase::new(&heard, &flows, &self.monitor.seen(ROUTE, &[SHARED])));
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
    /// Those of them that it forwards by several next hops.
    shared: usize,
    /// Prefixes that h2 holds.
    held: BTreeSet<String>,
    /// Prefixes that h2 heard of while the host did not forward by them.
    early: BTreeSet<String>,
}

impl Phase {
    fn new(heard: &[Seen], flows: &[Seen], shared: &[Seen]) -> Self {
        let announced: BTreeSet<String> = (0..PREFIXES).flat_map(|k| [v4(k), v6(k)]).flatten().collect();
        let forwarded = held(flows).into_iter().filter(|prefix| announced.contains(prefix)).collect();
        let early = |update: &&Seen| {
            let mut before = flows.iter().filter(|flow| flow.prefix == update.prefix && flow.at <= update.at);
            update.there && !before.next_back().is_some_and(|flow| flow.there)
        };
        Self {
            forwarded,
            shared: held(shared).len(),
            held: held(heard).into_iter().collect(),
            early: heard.iter().filter(early).map(|update| update.prefix.clone()).collect(),
        }
    }

    /// How many of those prefixes are IPv6.
    fn ipv6(&self) -> usize {
        self.forwarded.iter().filter(|prefix| prefix.contains(':')).count()
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
            "forwarded_ipv6": self.ipv6(),
            "forwarded_by_several_hops": self.shared,
            "advertised": self.held.len(),
            "rejected_but_advertised": self.excess().len(),
            "missing": self.missing().len(),
            "before_the_flow": self.early.len(),
        })
    }
}
