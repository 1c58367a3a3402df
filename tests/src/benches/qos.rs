//! `qos`: what networks get of a link, beside what the law says, by each policy in turn.
//!
//! One host with five networks on an uplink of 100 Mbit/s, of which the far end counts what arrives ([`site`]). The law is
//! weighted max-min of what the link carried (`xenflow_qos::share`), by contract, of what senders want (of UDP: what they
//! really sent, which on a slow machine is less): networks first, then
//! the classes of each. Scenes ([`scenes`]): (a) two greedy networks, as in figure 3 of the paper; (b) one of them is
//! idle; (c) it comes back; (d) five networks whose demand is drawn anew every few seconds; (e) classes of a network;
//! (f) contracts change under load. Each by UDP (1472 bytes, no GSO, sent at 1.3 times its share, so that it is
//! the queue that drops) and by TCP (one connection each, offloads as the kernel has them); the worse of both is the
//! figure.
//!
//! `fitness` is the mean over queues of 1 − |1 − obtained/expected|. `use` is what the link carried where demand exceeded
//! it, as a part of what it carries of the same protocol with one queue of Open vSwitch's own HTB, measured in the same run. `after_periods`
//! is when a whole period begins in which the network that came back has 95 % of it. `rewrite_loss` is how many
//! segments TCP at the contract loses more if contracts change by a little in every period than if they are only written
//! again. `light_p99_ratio` is the one-way delay of small packets beside a greedy network, less
//! a full packet's time for each of the two, over that beside the same sender on another uplink: the lab has one processor for
//! all.
//!
//! `--policies hand` measures Open vSwitch alone, told by hand: flows and queues without any part of the product.

mod scenes;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use self::scenes::Scene;
use super::{Options, percentile, round};
use crate::bandwidth::load::{GREEDY, Kind, Sender};
use crate::bandwidth::site::{By, Contracts, LINK, SEATS, Site};
use crate::bandwidth::stage::{PERIOD, SETTLE, Stage};
use crate::bandwidth::witness::Witness;
use crate::node::Node;
use crate::scenario::{Lab, Scenario};

/// The registry's entry.
pub(super) const BENCH: Scenario = Scenario {
    name: "qos",
    about: "what networks get of a link beside what the law says, by policy (--policies all|hand|static,…, --scenarios a,b,c,d,e,f,rewrite,light, --driver auto, --protocols udp,tcp, --seconds N)",
    memory_mib: 1 << 10,
    limit: Duration::from_secs(2400),
    needs_product: true,
    in_suite: false,
    targets: &[
        ("fitness_default_a", "at least 0.99"),
        ("use_default_a", "at least 0.97"),
        ("use_default_b", "at least 0.97"),
        ("use_default_d", "at least 0.97"),
        ("use_default_e", "at least 0.97"),
        ("use_default_f", "at least 0.97"),
        ("minimum_after_periods_default_c", "at most 1"),
        ("share_after_periods_default_c", "at most 2"),
        ("rewrite_loss_default", "0"),
        ("light_p99_ratio_default", "at most 2"),
    ],
    run,
};

const POLICIES: &str = "static,paper,weights,fair";
const ALL: &str = "a,b,c,d,e,f,rewrite,light";
/// Of plain HTB.
const PLAIN: Duration = Duration::from_secs(5);
const LIGHT: Duration = Duration::from_secs(15);
/// Times that contracts are written.
const REWRITES: u32 = 10;
/// The network of small packets.
const LIGHT_SEAT: usize = 4;

/// Figures of a policy: what, and in which scene (or none).
type Figures = BTreeMap<(&'static str, String), f64>;

struct Wish {
    scenes: Vec<String>,
    kinds: Vec<Kind>,
    seconds: u64,
}

impl Wish {
    fn has(&self, scene: &str) -> bool {
        self.scenes.iter().any(|wanted| wanted == scene)
    }
}

fn run(lab: &mut Lab) -> Result<Value> {
    let mut options = Options::parse(lab.args())?;
    let list = |text: String| -> Vec<String> { text.split(',').map(str::to_owned).collect() };
    let policies: String = options.take("--policies", "all".to_owned())?;
    let policies = list(if policies == "all" { POLICIES.to_owned() } else { policies });
    let scenes = list(options.take("--scenarios", ALL.to_owned())?);
    let driver: String = options.take("--driver", "auto".to_owned())?;
    let kinds = list(options.take("--protocols", "udp,tcp".to_owned())?);
    let seconds: u64 = options.take("--seconds", 10)?;
    options.end()?;
    ensure!((1..=600).contains(&seconds), "{seconds} seconds is not 1 to 600");
    if let Some(scene) = scenes.iter().find(|scene| !list(ALL.to_owned()).contains(scene)) {
        bail!("{scene:?} is none of {ALL}");
    }
    let kind = |name: &String| match name.as_str() {
        "udp" => Ok(Kind::Udp),
        "tcp" => Ok(Kind::Tcp),
        other => bail!("{other:?} is neither udp nor tcp"),
    };
    let wish = Wish { scenes, kinds: kinds.iter().map(kind).collect::<Result<_>>()?, seconds };
    let by = if policies == ["hand"] { By::Hand } else { By::Daemon };
    let mut site = Site::build(lab, by)?;
    lab.ready()?;

    let witness = site.witness()?;
    let mut figures = Map::new();
    let mut plain = BTreeMap::new();
    for &kind in &wish.kinds {
        lab.step(format!("what plain HTB carries: {}", kind.name()));
        let carried = plain_htb(&site, &witness, kind)?;
        figures.insert(format!("plain_{}_mbit", kind.name()), round(carried / 1e6).into());
        plain.insert(kind.name(), carried);
    }
    let default = default_policy(site.node(), by)?;
    let mut of_default = Figures::new();
    for policy in &policies {
        if by == By::Daemon {
            let period = PERIOD.as_millis();
            site.begin(&format!(
                "[bandwidth]\npolicy = \"{policy}\"\ndriver = \"{driver}\"\nperiod_ms = {period}\n"
            ))?;
        }
        site.wait_reachable()?;
        let found = of_policy(lab, &site, &witness, policy, &plain, &wish)?;
        for ((what, scene), value) in &found {
            let key = [*what, policy.as_str(), scene].into_iter().filter(|word| !word.is_empty());
            figures.insert(key.collect::<Vec<_>>().join("_"), round(*value).into());
        }
        if default.as_deref() == Some(policy) {
            of_default = found;
        }
    }
    let missed = missed(&of_default);
    for ((what, scene), value) in of_default {
        let key = [what, "default", &scene].into_iter().filter(|word| !word.is_empty());
        figures.insert(key.collect::<Vec<_>>().join("_"), round(value).into());
    }
    figures.insert("default".to_owned(), default.into());
    figures.insert("driver".to_owned(), driver.into());
    let figures = Value::Object(figures);
    ensure!(missed.is_empty(), "targets missed by the default: {}; {figures}", missed.join(", "));
    Ok(figures)
}

/// What the daemon does if it is told nothing.
fn default_policy(node: &Node, by: By) -> Result<Option<String>> {
    if by == By::Hand {
        return Ok(None);
    }
    node.configure_section("")?;
    let settings = node.settings()?;
    let policy = settings.lines().find_map(|line| line.strip_prefix("policy = \"")?.strip_suffix('"'));
    Ok(Some(policy.with_context(|| format!("there is no policy in {settings}"))?.to_owned()))
}

/// Bit/s of one greedy sender on the uplink beside.
fn plain_htb(site: &Site, witness: &Witness, kind: Kind) -> Result<f64> {
    let sender = site.plain_sender(kind)?;
    sender.want(GREEDY);
    std::thread::sleep(SETTLE);
    let start = Instant::now();
    std::thread::sleep(PLAIN);
    let carried = witness.rates(kind, start, Instant::now())?.pop().context("nothing was looked at")?;
    sender.check()?;
    ensure!(carried > LINK as f64 / 4.0, "plain HTB carries {carried} bit/s: this lab is too slow");
    Ok(carried)
}

fn of_policy(
    lab: &Lab,
    site: &Site,
    witness: &Witness,
    policy: &str,
    plain: &BTreeMap<&str, f64>,
    wish: &Wish,
) -> Result<Figures> {
    let mut figures = Figures::new();
    for &kind in &wish.kinds {
        let senders = site.senders(kind)?;
        let mut stage = Stage::new(site, witness, kind, &senders, Contracts::default())?;
        let of_plain = plain[kind.name()];
        for name in wish.scenes.iter().filter(|name| name.len() == 1) {
            let Some(scene) = scenes::play(&mut stage, name, wish.seconds, lab.seed())? else { continue };
            let Scene { fitness, carried, minimum_after, share_after, .. } = scene;
            let carried = carried.map(|carried| carried.min(LINK as f64) / of_plain);
            lab.step(format!("{policy} {name} {}: {scene} ({carried:.3?} of plain)", kind.name()));
            worse("fitness", name, Some(fitness), f64::min, &mut figures);
            worse("use", name, carried, f64::min, &mut figures);
            worse("minimum_after_periods", name, minimum_after, f64::max, &mut figures);
            worse("share_after_periods", name, share_after, f64::max, &mut figures);
        }
    }
    if wish.has("rewrite") {
        let (steady, changed) = rewrite(site)?;
        lab.step(format!("{policy}: lost {steady} without changes, {changed} with them"));
        figures.insert(("rewrite_loss", String::new()), changed.saturating_sub(steady) as f64);
    }
    if wish.has("light") {
        let (beside, elsewhere) = light(site)?;
        lab.step(format!("{policy}: p99 {beside:.3} ms beside a greedy one, {elsewhere:.3} ms else"));
        let packets = 2.0 * 1514.0 * 8.0 * 1000.0 / LINK as f64;
        figures.insert(("light_p99_ratio", String::new()), (beside - packets).max(0.0) / elsewhere);
        figures.insert(("light_p99_ms", String::new()), beside);
    }
    Ok(figures)
}

fn worse(
    what: &'static str,
    scene: &str,
    value: Option<f64>,
    of: fn(f64, f64) -> f64,
    figures: &mut Figures,
) {
    if let Some(value) = value {
        figures.entry((what, scene.to_owned())).and_modify(|old| *old = of(*old, value)).or_insert(value);
    }
}

/// What is lost by TCP that sends what was promised: while contracts are written again as they are, and while they change.
fn rewrite(site: &Site) -> Result<(u64, u64)> {
    let [one, other] = [[20, 40], [21, 41]].map(|[n0, n1]| Contracts::of([n0, n1, 0, 0, 0]));
    site.contract(&one)?;
    site.offload(false)?;
    let senders = site.senders(Kind::Tcp)?;
    let want = |is_on: bool| {
        senders.iter().zip(one.minima).for_each(|(sender, min)| sender.want(if is_on { min } else { 0 }));
        std::thread::sleep(SETTLE);
    };
    let mut lost = [0, 0];
    for (lost, second) in lost.iter_mut().zip([one, other]) {
        let before = site.lost_segments()?;
        want(true);
        for round in 0..REWRITES {
            let start = Instant::now();
            site.contract(if round % 2 == 0 { &second } else { &one })?;
            std::thread::sleep(PERIOD.saturating_sub(start.elapsed()));
        }
        want(false);
        *lost = site.lost_segments()?.saturating_sub(before);
    }
    senders.iter().try_for_each(Sender::check)?;
    drop(senders);
    site.offload(true)?;
    Ok(lost.into())
}

/// The 99th percentile of the delay of small packets, in ms: beside a greedy network, and with that on another uplink.
fn light(site: &Site) -> Result<(f64, f64)> {
    site.contract(&Contracts::of([0, 40, 0, 0, 10]))?;
    let mut p99 = [0.0; 2];
    for (p99, sender) in p99.iter_mut().zip([1, SEATS]) {
        let sender = site.sender(Kind::Udp, sender)?;
        sender.want(GREEDY);
        std::thread::sleep(SETTLE);
        let delays = site.delays(LIGHT_SEAT, LIGHT)?;
        sender.check()?;
        *p99 = percentile(&delays, 99).context("no packet has arrived")?;
    }
    // What is lost there would make the other look better.
    let most = LIGHT.as_secs_f64() * 1e3;
    ensure!(
        p99[1] < most,
        "more than one of a hundred small packets is lost where no greedy network stands in the way"
    );
    Ok(p99.into())
}

/// Which targets these figures miss. What was not measured is not missed.
fn missed(figures: &Figures) -> Vec<String> {
    let is_missed = |what: &str, scene: &str, value: f64| match what {
        "fitness" => scene == "a" && value < 0.99,
        "use" => value < 0.97,
        "minimum_after_periods" => value > 1.0,
        "share_after_periods" | "light_p99_ratio" => value > 2.0,
        "rewrite_loss" => value > 0.0,
        _ => false,
    };
    let all = figures.iter().filter(|((what, scene), value)| is_missed(what, scene, **value));
    all.map(|((what, scene), value)| format!("{what} {scene} {}", json!(round(*value)))).collect()
}
