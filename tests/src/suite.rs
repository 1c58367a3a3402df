//! `lab test`: everything that must pass, one line each.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::job::{Job, Mode, Product};
use crate::progress::{print, say};
use crate::scenario::Scenario;
use crate::scenarios;
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

/// Runs all checks and scenarios whose name contains `filter`; whether all passed.
pub fn run(filter: Option<&str>, seed: u64, lab: &Path) -> Result<bool> {
    let wanted = |name: &str| filter.is_none_or(|part| name.contains(part));
    let checks: Vec<_> = CHECKS.iter().filter(|(name, _)| wanted(name)).collect();
    let scenarios: Vec<_> =
        scenarios::ALL.iter().filter(|scenario| scenario.in_suite && wanted(scenario.name)).collect();
    anyhow::ensure!(!checks.is_empty() || !scenarios.is_empty(), "nothing has {filter:?} in its name");

    let mut tally = Tally::default();
    for (name, args) in checks {
        tally.take(name, || setup::run(setup::cargo()?.args(*args)));
    }
    let mut product = None;
    if scenarios.iter().any(|scenario| scenario.needs_product) {
        tally.take("product", || {
            product = Some(setup::product()?);
            Ok(())
        });
    }
    for scenario in scenarios {
        tally.take(scenario.name, || self::scenario(scenario, seed, lab, product.as_ref()));
    }
    print(format!("{} passed, {} failed", tally.passed, tally.failed));
    Ok(tally.failed == 0)
}

fn scenario(scenario: &Scenario, seed: u64, lab: &Path, product: Option<&Product>) -> Result<()> {
    anyhow::ensure!(product.is_some() || !scenario.needs_product, "the product could not be built");
    let job = Job {
        scenario: scenario.name.to_owned(),
        mode: Mode::Run,
        seed,
        args: Vec::new(),
        limit_s: scenario.limit.as_secs(),
        lab: lab.to_owned(),
        product: product.cloned(),
    };
    let report = uml::run(scenario, &job, None, false)?;
    match report.outcome.error {
        None if report.outcome.ok => Ok(()),
        error => anyhow::bail!("{} (seed {seed})", error.unwrap_or_else(|| "it failed".to_owned())),
    }
}

#[derive(Debug, Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    fn take(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        let start = Instant::now();
        let end = check();
        let seconds = start.elapsed().as_secs_f64();
        match end {
            Ok(()) => {
                self.passed += 1;
                print(format!("ok    {name} ({seconds:.1} s)"));
            }
            Err(error) => {
                self.failed += 1;
                print(format!("FAIL  {name} ({seconds:.1} s): {error:#}"));
            }
        }
    }
}

/// The machine, for the head of a test log.
pub fn environment() {
    for (program, args) in [
        ("uname", &["-srm"][..]),
        ("rustc", &["--version"]),
        ("ovs-vswitchd", &["--version"]),
        ("nproc", &[]),
    ] {
        if let Ok(out) = Command::new(program).args(args).output() {
            let text = String::from_utf8_lossy(&out.stdout);
            say(format!("{program}: {}", text.lines().next().unwrap_or_default()));
        }
    }
}
