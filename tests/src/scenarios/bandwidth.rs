//! `bandwidth`: two networks share an uplink of 100 Mbit/s by their contracts of 20 and 40, as the daemon does by itself.
//!
//! The control comes first: nobody shapes. Then both want more than there is; one is away and comes back; the daemon is
//! killed, and the link stays divided. `cargo lab bench qos` measures all policies, and longer.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::bandwidth::load::Kind;
use crate::bandwidth::site::{By, Contracts, MBIT, Site};
use crate::bandwidth::stage::{Division, PERIOD, SETTLE, Stage};
use crate::scenario::{Lab, Scenario};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "bandwidth",
    about: "two networks share an uplink by contract: greedy, coming back, without the daemon, without shaping",
    memory_mib: 512,
    limit: Duration::from_secs(120),
    needs_product: true,
    in_suite: true,
    targets: &[
        ("fitness", "at least 0.95"),
        ("fitness_killed", "at least 0.95"),
        ("minimum_after_periods", "at most 1"),
        ("share_after_periods", "at most 2"),
        ("control_fitness", "less than 0.9"),
    ],
    run,
};

/// More than the law gives to either, and not much more than the link carries in all.
const WANTS: [(usize, u64); 2] = [(0, 60 * MBIT), (1, 90 * MBIT)];
const LOOK: Duration = Duration::from_secs(4);
const AWAY: Duration = Duration::from_secs(2);
const FITNESS: f64 = 0.95;

fn run(lab: &mut Lab) -> Result<Value> {
    let mut site = Site::build(lab, By::Daemon)?;
    let section = |rest: &str| format!("[bandwidth]\nperiod_ms = {}\n{rest}", PERIOD.as_millis());
    site.begin(&section("driver = \"off\"\n"))?;
    let contracts = Contracts::of([20, 40, 0, 0, 0]);
    site.contract(&contracts)?;
    lab.ready()?;
    site.wait_reachable()?;
    let witness = site.witness()?;
    let senders = site.senders(Kind::Udp)?;
    let steady = |site: &Site| -> Result<Division> {
        let mut stage = Stage::new(site, &witness, Kind::Udp, &senders, contracts);
        stage.want(&WANTS)?;
        stage.steady(LOOK)
    };
    lab.step("control: nobody shapes");
    let control = steady(&site)?;
    site.begin(&section(""))?;

    let play = |site: &Site| -> Result<_> {
        let mut stage = Stage::new(site, &witness, Kind::Udp, &senders, contracts);
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
        Ok((both, minimum, share))
    };
    let (both, minimum, share) = play(&site)?;
    lab.step("the daemon is killed");
    site.node().kill_daemon()?;
    let killed = steady(&site)?;

    let [fitness, fitness_killed, fitness_control] = [both.fitness()?, killed.fitness()?, control.fitness()?];
    let mbit = |division: &Division| WANTS.map(|(seat, _)| (division.obtained[seat] / 1e5).round() / 10.0);
    let digits = |value: f64| (value * 1000.0).round() / 1000.0;
    let figures = json!({
        "fitness": digits(fitness), "fitness_killed": digits(fitness_killed),
        "control_fitness": digits(fitness_control),
        "minimum_after_periods": minimum, "share_after_periods": share,
        "mbit": mbit(&both), "mbit_killed": mbit(&killed), "control_mbit": mbit(&control),
    });
    ensure!(
        fitness_control < 0.9,
        "without shaping it is by contract as well, so this shows nothing: {figures}"
    );
    let is_fair = fitness >= FITNESS && fitness_killed >= FITNESS;
    ensure!(is_fair && minimum <= 1.0 && share <= 2.0, "target missed: {figures}");
    Ok(figures)
}
