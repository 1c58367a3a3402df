//! What makes a guest look at more than destinations, or not forward at all: switched on and off again while packets
//! are compared. The host must leave to the guest what comes in where it counts, and nothing else.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::Family;
use super::bench::Bench;
use super::plan::{DOWN, Plan, RED, VRF};
use super::questions::Destinations;
use super::random::Random;
use crate::net::Netns;
use crate::process::wait_for;
use crate::virtual_router::VirtualRouter;

/// The bound for a change to be a flow.
const SETTLE: Duration = Duration::from_secs(20);
/// Packets to compare with an obstacle, and without it again.
const PACKETS: usize = 160;
/// The reason that punts are counted by.
pub const OBSTACLE: &str = "obstacle";

/// One obstacle.
#[derive(Debug)]
struct Obstacle {
    on: Act,
    off: Act,
    /// In the words of the guest's client.
    says: &'static str,
    /// What comes in by these links.
    links: Vec<usize>,
    families: Vec<Family>,
    /// It looks at what leaves as well.
    is_both_ways: bool,
}

#[derive(Debug)]
enum Act {
    Sysctl(String, &'static str),
    Ip(String),
    Tc(Vec<String>),
}

impl Act {
    fn run(&self, ns: &Netns) -> Result<()> {
        match self {
            Self::Sysctl(key, value) => ns.sysctls(&[(key, value)]),
            Self::Ip(line) => {
                let words: Vec<&str> = line.split_whitespace().collect();
                ns.ip(&words).map(drop)
            }
            Self::Tc(lines) => lines.iter().try_for_each(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                ns.run("tc", &words).map(drop)
            }),
        }
    }
}

/// What a guest's client says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct State {
    state: String,
    seq: u64,
    acked: u64,
    backlog: usize,
    obstacles: Vec<String>,
}

/// What came of all obstacles.
#[derive(Debug, Default)]
pub struct Figures {
    /// How many there were.
    pub obstacles: usize,
    /// Packets left to the guest because of one.
    pub punted: usize,
    /// Packets forwarded although there was one, elsewhere.
    pub forwarded: usize,
    /// Neither.
    pub findings: Vec<String>,
}

/// Each obstacle in turn, in any order.
pub fn exercise(
    bench: &mut Bench<'_>,
    router: &VirtualRouter,
    destinations: &Destinations,
    random: &mut Random,
) -> Result<Figures> {
    let mut figures = Figures::default();
    let mut obstacles = draw(bench.facts.plan, random);
    random.shuffle(&mut obstacles);
    let free = settled(router, |_| true)?.obstacles;
    for obstacle in obstacles {
        let before = bench.facts.closed.clone();
        obstacle.on.run(bench.guest).with_context(|| format!("{obstacle:?}"))?;
        settled(router, |state| {
            let new = state.obstacles.iter().filter(|line| !free.contains(line));
            new.into_iter().any(|line| line.contains(obstacle.says))
        })
        .with_context(|| format!("{obstacle:?}"))?;
        for link in &obstacle.links {
            for family in &obstacle.families {
                bench.facts.closed.entry((*link, *family)).or_insert(OBSTACLE);
            }
            if obstacle.is_both_ways {
                bench.facts.watched.insert(*link);
            }
        }
        let with = bench.compare_any(PACKETS, destinations)?;
        bench.facts.closed = before;
        bench.facts.watched.clear();
        obstacle.off.run(bench.guest).with_context(|| format!("{obstacle:?}"))?;
        settled(router, |state| state.obstacles == free).with_context(|| format!("after {obstacle:?}"))?;
        // IPv6 that does not forward leaves its anycast addresses.
        bench.refresh()?;
        let without = bench.compare_any(PACKETS, destinations)?;

        let punted = with.reasons.get(OBSTACLE).copied().unwrap_or_default();
        ensure!(punted > 0, "{obstacle:?} concerned no packet");
        ensure!(without.forwarded() > 0, "nothing is forwarded after {obstacle:?}");
        figures.obstacles += 1;
        figures.punted += punted;
        figures.forwarded += with.forwarded();
        for (when, tally) in [("with", with), ("after", without)] {
            let finding = |text: String| format!("{when} {obstacle:?}: {text}");
            figures.findings.extend(tally.findings.into_iter().map(finding));
        }
    }
    Ok(figures)
}

/// Netfilter is missing: no tool for it is in the lab.
fn draw(plan: &Plan, random: &mut Random) -> Vec<Obstacle> {
    use Family::{V4, V6};
    let all: Vec<usize> = (0..plan.links.len()).collect();
    let up: Vec<usize> = all.iter().copied().filter(|link| *link != DOWN).collect();
    let mut link = || {
        let link = *random.pick(&up);
        (link, plan.links[link].name.clone())
    };
    let setting =
        |key: String, (on, off): (&'static str, &'static str), says, links: Vec<usize>, family| Obstacle {
            on: Act::Sysctl(key.clone(), on),
            off: Act::Sysctl(key, off),
            says,
            links,
            families: vec![family],
            is_both_ways: false,
        };
    let lines = |(on, off): (String, String), says, links: Vec<usize>, families: &[Family]| Obstacle {
        on: Act::Ip(on),
        off: Act::Ip(off),
        says,
        links,
        families: families.to_vec(),
        is_both_ways: false,
    };
    let (closed, strict) = (link(), link());
    let filtered = link();
    let forwarding = "forwarding is off";
    let filter = "rp_filter is on";
    vec![
        setting(format!("net.ipv4.conf.{}.forwarding", closed.1), ("0", "1"), forwarding, vec![closed.0], V4),
        setting(format!("net.ipv4.conf.{}.rp_filter", strict.1), ("2", "0"), filter, vec![strict.0], V4),
        setting("net.ipv4.conf.all.rp_filter".into(), ("1", "0"), filter, all.clone(), V4),
        setting(format!("net.ipv4.conf.{VRF}.forwarding"), ("0", "1"), forwarding, RED.to_vec(), V4),
        setting("net.ipv6.conf.all.forwarding".into(), ("0", "1"), forwarding, all.clone(), V6),
        lines(
            (format!("rule add {FROM} lookup 100"), format!("rule del {FROM} lookup 100")),
            "there are ip rules",
            all.clone(),
            &[V4],
        ),
        lines(
            (format!("-6 rule add {FROM6} lookup 100"), format!("-6 rule del {FROM6} lookup 100")),
            "there are ip rules",
            all.clone(),
            &[V6],
        ),
        lines(
            (format!("xfrm policy add {POLICY}"), format!("xfrm policy delete {POLICY}")),
            "there are XFRM policies",
            all,
            &[V4],
        ),
        Obstacle {
            on: Act::Tc(vec![
                format!("qdisc add dev {} clsact", filtered.1),
                format!("filter add dev {} ingress protocol all u32 match u32 0 0 action pass", filtered.1),
            ]),
            off: Act::Tc(vec![format!("qdisc del dev {} clsact", filtered.1)]),
            says: "there are tc filters",
            links: vec![filtered.0],
            families: vec![V4, V6],
            is_both_ways: true,
        },
    ]
}

const FROM: &str = "from 203.0.113.0/24 priority 500";
const FROM6: &str = "from 2001:db8:77::/48 priority 500";
const POLICY: &str = "src 203.0.113.0/24 dst 203.0.113.0/24 dir fwd";

/// Waits until the client says so and the switch has confirmed all that the host was told.
fn settled(router: &VirtualRouter, is_so: impl Fn(&State) -> bool) -> Result<State> {
    let mut last = None;
    wait_for("acknowledgement of an obstacle", SETTLE, || {
        let mut line = String::new();
        BufReader::new(UnixStream::connect(router.guest().dir().join("status.sock"))?)
            .read_line(&mut line)?;
        let state: State = serde_json::from_str(&line).with_context(|| format!("status line {line:?}"))?;
        let is_done = state.state == "up" && state.backlog == 0 && state.acked == state.seq && is_so(&state);
        // Twice the same: what is about to be sent has been.
        let is_settled = is_done && last.as_ref() == Some(&state);
        last = Some(state.clone());
        Ok(is_settled.then_some(state))
    })
}
