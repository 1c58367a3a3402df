//! `instructions`: what one route's change costs the daemon, in instructions of its processor, as callgrind counts them: from the guest's
//! message to the switch's. Nearly the same in every run and on every machine, so a figure that grows is the program's.
//!
//! Counted are runs with and without changes, in a small and in a large table; what is left of the difference is the changes'.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::Options;
use crate::process;
use crate::scenario::{Lab, Scenario};
use crate::setup::{self, Build};

/// The registry's entry.
pub(super) const BENCH: Scenario = Scenario {
    name: "instructions",
    about: "instructions of the daemon for one route's change, in a small and in a large table",
    memory_mib: 2 << 10,
    limit: std::time::Duration::from_secs(900),
    needs_product: true,
    in_suite: false,
    targets: &[("per_change", "at most 20 % more than recorded"), ("large_over_small", "at most 1.5")],
    run,
};

/// What counts, and where Debian puts it.
const CALLGRIND: (&str, &str) = ("valgrind", "/usr/bin/valgrind");
const TABLES: [u64; 2] = [1000, 20_000];
const CHANGES: u64 = 1000;
/// Of one change in the large table, when it was measured last (Rust 1.95, x86-64).
const RECORDED: u64 = 63_000;

/// The program that is counted.
pub(super) fn prepare() -> Result<()> {
    setup::install(&[CALLGRIND])?;
    let args = ["build", "--quiet", "--profile", Build::Released.profile(), "-p", "xenflow-flow-app"];
    let status = setup::cargo()?.args(args).args(["--example", "change"]).status()?;
    ensure!(status.success(), "cargo builds no example change of xenflow-flow-app");
    Ok(())
}

fn run(lab: &mut Lab) -> Result<Value> {
    Options::parse(lab.args())?.end()?;
    let folder = lab.product()?.dom0.parent().context("the product is in no folder")?;
    let program = folder.join("examples/change");
    let mut of_change = Vec::new();
    let mut of_route = Vec::new();
    for routes in TABLES {
        lab.step(format!("{CHANGES} changes in a table of {routes} routes"));
        let without = count(&program, routes, 0)?;
        of_change.push((count(&program, routes, CHANGES)? - without) / CHANGES);
        of_route.push(without);
    }
    let ([small, large], [few, many]) = (of_change.as_slice(), of_route.as_slice()) else {
        bail!("there are two tables")
    };
    let per_route = (many - few) / (TABLES[1] - TABLES[0]);
    let figures = json!({
        "per_change": large,
        "per_change_1k": small,
        "large_over_small": super::round(*large as f64 / *small as f64),
        "per_route_of_a_load": per_route,
    });
    ensure!(*large <= RECORDED / 100 * 120, "more than {RECORDED} and 20 %: {figures}");
    ensure!(*large * 2 <= small * 3, "a change depends on the table: {figures}");
    Ok(figures)
}

fn count(program: &Path, routes: u64, changes: u64) -> Result<u64> {
    let (_, valgrind) = CALLGRIND;
    let mut command = Command::new(valgrind);
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--log-fd=1"]).arg(program);
    command.args([routes, changes].map(|number| number.to_string()));
    let said = process::output(&mut command)?;
    let count = said.lines().find_map(|line| line.split("Collected :").nth(1)?.trim().parse().ok());
    count.with_context(|| format!("callgrind has not counted: {said}"))
}
