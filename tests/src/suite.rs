//! `lab test`: everything that must pass, one line each.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::job::{Job, Mode, Product};
use crate::progress::print;
use crate::scenario::Scenario;
use crate::scenarios;
use crate::uml::{Interrupted, Logs};
use crate::{setup, uml};

/// A check by cargo: name and arguments.
const CHECKS: &[(&str, &[&str])] = &[
    ("fmt", &["fmt", "--all", "--check"]),
    (
        "clippy",
        &["clippy", "--quiet", "--profile", "lab", "--workspace", "--all-targets", "--", "-D", "warnings"],
    ),
    ("unit", &["test", "--quiet", "--profile", "lab", "--workspace"]),
];

/// Name of the check that failures of a scenario are reported.
const HARNESS: &str = "harness";

/// Runs all checks and scenarios whose name contains `filter`; whether all passed.
pub fn run(filter: Option<&str>, seed: u64, lab: &Path) -> Result<bool> {
    let wanted = |name: &str| filter.is_none_or(|part| name.contains(part));
    let checks: Vec<_> = CHECKS.iter().filter(|(name, _)| wanted(name)).collect();
    let scenarios: Vec<_> =
        scenarios::ALL.iter().filter(|scenario| scenario.in_suite && wanted(scenario.name)).collect();
    let harness = wanted(HARNESS);
    ensure!(!checks.is_empty() || !scenarios.is_empty() || harness, "nothing has {filter:?} in its name");

    let mut tally = Tally::default();
    for (name, args) in checks {
        tally.take(name, || setup::run(setup::cargo()?.args(*args)))?;
    }
    if harness {
        tally.take(HARNESS, || self::harness(lab))?;
    }
    let mut product = None;
    if scenarios.iter().any(|scenario| scenario.needs_product) {
        tally.take("product", || {
            product = Some(setup::product()?);
            Ok(())
        })?;
    }
    for scenario in scenarios {
        tally.take(scenario.name, || self::scenario(scenario, seed, lab, product.as_ref()))?;
    }
    print(format!("{} passed, {} failed", tally.passed, tally.failed));
    Ok(tally.failed == 0)
}

fn scenario(scenario: &Scenario, seed: u64, lab: &Path, product: Option<&Product>) -> Result<()> {
    ensure!(product.is_some() || !scenario.needs_product, "the product could not be built");
    let args = scenarios::suite_args(scenario.name).iter().map(|arg| (*arg).to_owned()).collect();
    let job = job(scenario, seed, args, lab, product);
    let report = uml::run(scenario, &job, None, Logs::OnFailure)?;
    match report.outcome.error {
        None if report.outcome.ok => Ok(()),
        error => anyhow::bail!("{} (seed {seed})", error.unwrap_or_else(|| "it failed".to_owned())),
    }
}

/// Runs scenarios that must fail, each in its way.
fn harness(lab: &Path) -> Result<()> {
    let broken = scenarios::find("broken").context("there is no scenario `broken`")?;
    for (way, expected) in scenarios::broken::WAYS {
        let job = job(broken, 0, vec![way.to_owned()], lab, None);
        let outcome = uml::run(broken, &job, None, Logs::Drop)?.outcome;
        let error = outcome.error.unwrap_or_default();
        ensure!(!outcome.ok && error.contains(expected), "`broken {way}` was reported as {error:?}");
    }
    Ok(())
}

fn job(scenario: &Scenario, seed: u64, args: Vec<String>, lab: &Path, product: Option<&Product>) -> Job {
    Job {
        scenario: scenario.name.to_owned(),
        mode: Mode::Run,
        seed,
        args,
        limit_s: scenario.limit.as_secs(),
        lab: lab.to_owned(),
        product: product.cloned(),
    }
}

#[derive(Debug, Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    /// Runs a check and prints its line. Only an interruption is an error.
    fn take(&mut self, name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        let end = check();
        let seconds = start.elapsed().as_secs_f64();
        match end {
            Ok(()) => {
                self.passed += 1;
                print(format!("ok    {name} ({seconds:.1} s)"));
            }
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                self.failed += 1;
                print(format!("FAIL  {name} ({seconds:.1} s): {error:#}"));
            }
        }
        Ok(())
    }
}
