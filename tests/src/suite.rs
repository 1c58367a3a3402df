//! `lab test`: everything that must pass, one line each.
//!
//! Labs have one processor each, so two run at a time where that cannot change what they find ([`scenarios::BESIDE`]), and
//! what they leave of the processors goes to clippy and to the workspace's tests ([`unit`]). Whatever measures runs alone,
//! after all of that.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::job::{Job, Mode, Product};
use crate::progress::print;
use crate::scenario::Scenario;
use crate::scenarios;
use crate::uml::{Interrupted, Logs, Signals};
use crate::{kvm, process, setup, uml, unit};

/// Checks by cargo: arguments.
const FMT: &[&str] = &["fmt", "--all", "--check"];
const CLIPPY: &[&str] =
    &["clippy", "--quiet", "--profile", "lab", "--workspace", "--all-targets", "--", "-D", "warnings"];

/// Name of the check with real virtual machines.
const KVM: &str = "kvm";

/// Name of the check that the workspace's tests pass.
const UNIT: &str = "unit";

/// Name of the check that failures of a scenario are reported.
const HARNESS: &str = "harness";

/// Runs all checks and scenarios whose name contains `filter`; whether all passed.
pub fn run(filter: Option<&str>, seed: u64, lab: &Path) -> Result<bool> {
    let wanted = |name: &str| filter.is_none_or(|part| name.contains(part));
    let is_wanted = |scenario: &&Scenario| scenario.in_suite && wanted(scenario.name);
    let beside: Vec<_> = scenarios::BESIDE.iter().filter(is_wanted).collect();
    let is_beside = |name: &str| scenarios::BESIDE.iter().any(|scenario| scenario.name == name);
    let alone = scenarios::ALL.iter().filter(|scenario| !is_beside(scenario.name));
    let alone: Vec<_> = alone.filter(is_wanted).collect();
    let names = ["fmt", "clippy", UNIT, HARNESS, KVM];
    ensure!(
        names.into_iter().any(wanted) || !beside.is_empty() || !alone.is_empty(),
        "nothing has {filter:?} in its name"
    );

    let tally = Tally::default();
    if wanted("fmt") {
        tally.take("fmt", || setup::run(setup::cargo()?.args(FMT)))?;
    }
    let mut tests = None;
    if wanted(UNIT) {
        tally.take("build", || {
            tests = Some(unit::build()?);
            Ok(())
        })?;
    }
    // A binary of tests has as many threads as there are processors, and labs need most of these.
    let lanes_behind = if beside.is_empty() { processors().min(2) } else { 1 };
    let (signals, product) = std::thread::scope(|scope| {
        // These take signals as programs do: one ends this process, and with it the labs ([`uml`]).
        let behind = scope.spawn(|| self::behind(&tally, wanted("clippy"), tests.as_deref(), lanes_behind));
        let mut product = None;
        if beside.iter().chain(&alone).any(|scenario| scenario.needs_product) {
            tally.take("product", || {
                product = Some(setup::product(setup::Build::Checked)?);
                Ok(())
            })?;
        }
        let signals = Signals::block()?;
        let labs = beside.iter().map(|scenario| -> Work<'_> {
            Box::new(|| {
                tally.take(scenario.name, || self::scenario(scenario, seed, lab, product.as_ref(), &signals))
            })
        });
        let harness = || -> Work<'_> { Box::new(|| tally.take(HARNESS, || self::harness(lab, &signals))) };
        let ends = in_lanes(lanes(&beside), labs.chain(wanted(HARNESS).then(harness)).collect());
        behind.join().unwrap_or_else(|_| bail!("a lane panicked"))?;
        ends.map(|()| (signals, product))
    })?;
    for scenario in alone {
        tally.take(scenario.name, || self::scenario(scenario, seed, lab, product.as_ref(), &signals))?;
    }
    if wanted(KVM) {
        tally.take(KVM, || match kvm::run(lab, false)?.error {
            Some(error) => bail!("{error}"),
            None => Ok(()),
        })?;
    }
    print(format!("{} passed, {} failed", tally.passed(), tally.failed()));
    Ok(tally.failed() == 0)
}

/// What runs behind labs: clippy, and the tests, so many at a time.
fn behind(tally: &Tally, clippy: bool, tests: Option<&[unit::Tests]>, lanes: usize) -> Result<()> {
    let failures = Mutex::new(Vec::new());
    let mut work: Vec<Work<'_>> = Vec::new();
    if let Some(tests) = tests {
        for tests in tests {
            work.push(Box::new(|| note(&failures, tests.run())));
        }
        work.push(Box::new(|| note(&failures, unit::examples())));
    }
    if clippy {
        // Beside the tests that take longest.
        let check =
            || tally.take("clippy", || setup::run(&mut process::behind(setup::cargo()?.args(CLIPPY))));
        work.insert(work.len().min(1), Box::new(check));
    }
    let start = Instant::now();
    in_lanes(lanes, work)?;
    let mut failures = failures.into_inner().map_err(|_| anyhow!("a lane panicked"))?;
    if tests.is_some() {
        tally.take_since(UNIT, start, failures.pop().map_or(Ok(()), Err))?;
    }
    Ok(())
}

/// Says what has failed at once, and keeps it: all others are run all the same.
fn note(failures: &Mutex<Vec<anyhow::Error>>, end: Result<()>) -> Result<()> {
    if let Err(error) = end {
        print(format!("FAIL  {UNIT}: {error:#}"));
        failures.lock().map_err(|_| anyhow!("a lane panicked"))?.push(error);
    }
    Ok(())
}

/// What a lane does before it takes the next.
type Work<'a> = Box<dyn FnOnce() -> Result<()> + Send + 'a>;

/// How many labs may run at once: two if there are processors for both and memory for the two largest.
fn lanes(scenarios: &[&Scenario]) -> usize {
    let mut memory: Vec<u32> = scenarios.iter().map(|scenario| scenario.memory_mib).collect();
    memory.sort_unstable_by(|a, b| b.cmp(a));
    let needed: u32 = memory.iter().take(2).sum();
    let is_enough = available_mib().is_some_and(|available| available >= u64::from(needed));
    if processors() >= 2 && is_enough { 2 } else { 1 }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// `MemAvailable` of this machine.
fn available_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse().ok().map(|kib: u64| kib >> 10)
}

/// Runs all of these, so many at a time, begun in their order. The first error ends all lanes, each after what it is
/// at.
fn in_lanes(lanes: usize, work: Vec<Work<'_>>) -> Result<()> {
    let queue = Mutex::new(VecDeque::from(work));
    let next = || queue.lock().ok()?.pop_front();
    let lane = || {
        while let Some(work) = next() {
            if let Err(error) = work() {
                if let Ok(mut queue) = queue.lock() {
                    queue.clear();
                }
                return Err(error);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        let ends: Vec<Result<()>> =
            lanes.into_iter().map(|lane| lane.join().unwrap_or_else(|_| bail!("a lane panicked"))).collect();
        ends.into_iter().collect()
    })
}

fn scenario(
    scenario: &Scenario,
    seed: u64,
    lab: &Path,
    product: Option<&Product>,
    signals: &Signals,
) -> Result<()> {
    ensure!(product.is_some() || !scenario.needs_product, "the product could not be built");
    let args = scenarios::suite_args(scenario.name).iter().map(|arg| (*arg).to_owned()).collect();
    let job = job(scenario, seed, args, lab, product);
    let report = uml::run(scenario, &job, None, Logs::OnFailure, signals)?;
    match report.outcome.error {
        None if report.outcome.ok => Ok(()),
        error => anyhow::bail!("{} (seed {seed})", error.unwrap_or_else(|| "it failed".to_owned())),
    }
}

/// Runs scenarios that must fail, each in its way.
fn harness(lab: &Path, signals: &Signals) -> Result<()> {
    let broken = scenarios::find("broken").context("there is no scenario `broken`")?;
    for (way, expected) in scenarios::broken::WAYS {
        let job = job(broken, 0, vec![way.to_owned()], lab, None);
        let outcome = uml::run(broken, &job, None, Logs::Drop, signals)?.outcome;
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
    passed: AtomicU32,
    failed: AtomicU32,
}

impl Tally {
    fn passed(&self) -> u32 {
        self.passed.load(Ordering::Relaxed)
    }

    fn failed(&self) -> u32 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Runs a check and prints its line. Only an interruption is an error.
    fn take(&self, name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        self.take_since(name, start, check())
    }

    /// The same of a check that has begun then and ended so.
    fn take_since(&self, name: &str, start: Instant, end: Result<()>) -> Result<()> {
        let seconds = start.elapsed().as_secs_f64();
        match end {
            Ok(()) => {
                self.passed.fetch_add(1, Ordering::Relaxed);
                print(format!("ok    {name} ({seconds:.1} s)"));
            }
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                print(format!("FAIL  {name} ({seconds:.1} s): {error:#}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn work<'a>(function: impl FnOnce() -> Result<()> + Send + 'a) -> Work<'a> {
        Box::new(function)
    }

    #[test]
    fn two_run_at_once_and_no_more() {
        let (now, most) = (AtomicU32::new(0), AtomicU32::new(0));
        let one = || {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(50));
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        in_lanes(2, (0..6).map(|_| work(one)).collect()).unwrap();
        assert_eq!(most.load(Ordering::SeqCst), 2);
        in_lanes(
            1,
            (0..2)
                .map(|_| {
                    work(|| {
                        most.store(0, Ordering::SeqCst);
                        one()
                    })
                })
                .collect(),
        )
        .unwrap();
        assert_eq!(most.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn an_interruption_ends_all_lanes() {
        let done = AtomicU32::new(0);
        let mut all = vec![work(|| bail!("interrupted"))];
        for _ in 0..20 {
            all.push(work(|| {
                std::thread::sleep(Duration::from_millis(20));
                done.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }));
        }
        assert_eq!(in_lanes(2, all).unwrap_err().to_string(), "interrupted");
        assert!(done.load(Ordering::SeqCst) <= 2, "{done:?}");
    }
}
