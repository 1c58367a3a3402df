//! `bandwidth`: two networks share an uplink of 100 Mbit/s by their contracts of 20 and 40, as the daemon does by itself.
//!
//! The control comes first: nobody shapes. Then both want more than there is; one is away and comes back; a third one,
//! which had what they left, is promised 30; the daemon is killed, and the link stays divided; one that is not to shape
//! leaves nothing of it. TCP, as that is what a slow machine can send enough of. `cargo lab bench qos` measures all policies,
//! and longer.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::bandwidth::load::Kind;
use crate::bandwidth::site::{By, Contracts, MBIT, Site};
use crate::bandwidth::stage::{Division, PERIOD, SETTLE, Stage};
use crate::process::wait_for;
use crate::scenario::{Lab, Scenario};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "bandwidth",
    about: "networks share an uplink by contract: greedy, coming back, newly promised, without the daemon, without shaping",
    memory_mib: 512,
    limit: Duration::from_secs(240),
    needs_product: true,
    in_suite: true,
    targets: &[
        ("fitness", "at least 0.95"),
        ("fitness_promised", "at least 0.95"),
        ("fitness_killed", "at least 0.95"),
        ("minimum_after_periods", "at most 1"),
        ("share_after_periods", "at most 2"),
        ("promise_after_periods", "at most 3"),
        ("control_fitness", "less than 0.9"),
    ],
    run,
};

/// More than the law gives to either, and not much more than the link carries in all.
const WANTS: [(usize, u64); 2] = [(0, 60 * MBIT), (1, 90 * MBIT)];
/// The same of three.
const THREE: [(usize, u64); 3] = [(0, 40 * MBIT), (1, 60 * MBIT), (2, 50 * MBIT)];
const LOOK: Duration = Duration::from_secs(4);
const AWAY: Duration = Duration::from_secs(2);
const FITNESS: f64 = 0.95;
const LIMIT: Duration = Duration::from_secs(20);

fn run(lab: &mut Lab) -> Result<Value> {
    let mut site = Site::build(lab, By::Daemon)?;
    let section = |rest: &str| format!("[bandwidth]\nperiod_ms = {}\n{rest}", PERIOD.as_millis());
    site.begin(&section("driver = \"off\"\n"))?;
    let contracts = Contracts::of([20, 40, 0, 0, 0]);
    let of_three = Contracts::of([20, 40, 30, 0, 0]);
    site.contract(&contracts)?;
    lab.ready()?;
    site.wait_reachable()?;
    let witness = site.witness()?;
    let senders = site.senders(Kind::Tcp)?;
    let steady = |site: &Site, contracts, wants: &[(usize, u64)]| -> Result<Division> {
        let mut stage = Stage::new(site, &witness, Kind::Tcp, &senders, contracts)?;
        stage.want(wants)?;
        stage.steady(LOOK)
    };
    lab.step("control: nobody shapes");
    let control = steady(&site, contracts, &WANTS)?;
    lab.step("the daemon divides");
    site.begin(&section(""))?;
    let start = Instant::now();
    wait_for("the link to be divided", LIMIT, || Ok(site.is_divided()?.then_some(())))?;
    let divided_after_s = start.elapsed().as_secs_f64();

    let play = |site: &Site| -> Result<_> {
        let mut stage = Stage::new(site, &witness, Kind::Tcp, &senders, contracts)?;
        lab.step("both want more than there is");
        stage.want(&WANTS)?;
        let both = stage.steady(LOOK)?;
        lab.step("one is away, and comes back");
        stage.want(&WANTS[1..])?;
        std::thread::sleep(AWAY);
        stage.want(&WANTS)?;
        let start = Instant::now();
        std::thread::sleep(LOOK);
        let back = stage.between(start + SETTLE, start + LOOK)?;
        let minimum = stage.after(0, contracts.minima[0] as f64, start, LOOK)?;
        let share = stage.after(0, back.expected[0], start, LOOK)?;
        lab.step("a third one is promised its part");
        stage.want(&THREE)?;
        std::thread::sleep(SETTLE);
        stage.contract(of_three)?;
        let start = Instant::now();
        std::thread::sleep(LOOK);
        // How soon it has that is one question, and how fair the link is then another.
        let kept = stage.after(2, of_three.minima[2] as f64, start, LOOK)?;
        let promised = stage.steady(LOOK)?;
        Ok((both, minimum, share, kept, promised))
    };
    let (both, minimum, share, kept, promised) = play(&site)?;
    lab.step("the daemon is killed");
    site.node().kill_daemon()?;
    let killed = steady(&site, of_three, &THREE)?;
    lab.step("one begins that is not to shape");
    site.begin(&section("driver = \"off\"\n"))?;
    wait_for("the link to be nobody's", LIMIT, || Ok((!site.is_shaped()?).then_some(())))?;

    let [fitness, fitness_promised] = [both.fitness()?, promised.fitness()?];
    let [fitness_killed, fitness_control] = [killed.fitness()?, control.fitness()?];
    let mbit = |division: &Division| THREE.map(|(seat, _)| (division.obtained[seat] / 1e5).round() / 10.0);
    let digits = |value: f64| (value * 1000.0).round() / 1000.0;
    let figures = json!({
        "fitness": digits(fitness), "fitness_promised": digits(fitness_promised),
        "fitness_killed": digits(fitness_killed), "control_fitness": digits(fitness_control),
        "minimum_after_periods": minimum, "share_after_periods": share, "promise_after_periods": kept,
        "mbit": mbit(&both), "mbit_promised": mbit(&promised), "mbit_killed": mbit(&killed),
        "control_mbit": mbit(&control), "divided_after_s": digits(divided_after_s),
    });
    ensure!(
        fitness_control < 0.9,
        "without shaping it is by contract as well, so this shows nothing: {figures}"
    );
    let is_fair = [fitness, fitness_promised, fitness_killed].iter().all(|fitness| *fitness >= FITNESS);
    ensure!(is_fair && minimum <= 1.0 && share <= 2.0 && kept <= 3.0, "target missed: {figures}");
    Ok(figures)
}
