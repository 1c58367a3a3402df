//! `cargo lab`: the command line of the lab, and process 1 inside it.

use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use xenflow_tests::benches::fairness::attack;
use xenflow_tests::job::{Job, Mode};
use xenflow_tests::moving::mover;
use xenflow_tests::progress::{print, say};
use xenflow_tests::scenario::Scenario;
use xenflow_tests::uml::{Logs, Signals};
use xenflow_tests::{
    benches, figures, flood, fresh, init, inject, kvm, probe, routes, scenarios, setup, suite, uml, vms, xen,
};

/// Runs XenFlow in a lab: a real Linux kernel with a real Open vSwitch, booted as an ordinary process.
///
/// Needs no root, except to install missing Debian packages. Exit codes: 0 all held, 1 something failed,
/// 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs everything that must pass: format, clippy, unit tests, every scenario
    Test {
        /// Only what has this in its name (fmt, clippy, unit, or a scenario)
        #[arg(long, value_name = "NAME")]
        filter: Option<String>,
        /// Seed for everything random
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Shows what XenFlow does, in figures: the scenario `demo`
    Demo {
        #[command(flatten)]
        options: RunOptions,
    },
    /// Runs one scenario and prints its figures
    Run {
        #[command(flatten)]
        options: RunOptions,
        /// The scenario; `cargo lab list` shows them
        #[arg(value_parser = scenario_name)]
        scenario: &'static Scenario,
        /// Arguments of the scenario
        args: Vec<String>,
    },
    /// Runs one bench and prints its figures; no bench is part of `test`
    Bench {
        #[command(flatten)]
        options: RunOptions,
        /// The bench; `cargo lab list` shows them
        #[arg(value_parser = bench_name)]
        bench: &'static Scenario,
        /// Options of the bench, behind those of all
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Moves a router's VM between two real libvirt hosts on this machine, there and back; needs root
    Kvm {
        /// Figures as one JSON object on the last line, with the outcome
        #[arg(long)]
        json: bool,
        /// Keep the logs, also if all went well
        #[arg(long)]
        keep: bool,
    },
    /// Moves a router's VM between two real Xen hosts on this machine, there and back; not in the suite, needs root
    Xen {
        /// Figures as one JSON object on the last line, with the outcome
        #[arg(long)]
        json: bool,
        /// Keep the logs, also if all went well
        #[arg(long)]
        keep: bool,
    },
    /// Lists the scenarios and the benches
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Boots a scenario's topology and gives a shell in it; without a terminal, runs the commands on standard input
    Shell {
        /// The scenario or bench whose topology comes up
        #[arg(value_parser = any_name, default_value = "plain")]
        scenario: &'static Scenario,
        /// Arguments of the scenario
        args: Vec<String>,
    },
    /// Sends or receives numbered packets (runs inside the lab)
    #[command(hide = true, subcommand)]
    Probe(probe::ProbeCommand),
    /// Sends raw frames (runs inside the lab)
    #[command(hide = true)]
    Inject(inject::InjectArgs),
    /// Sends one frame again and again, some of its bytes random (runs inside the lab)
    #[command(hide = true)]
    Flood(flood::FloodArgs),
    /// Sends first packets to one address after the other (runs inside the lab)
    #[command(hide = true)]
    Fresh(fresh::FreshArgs),
    /// Changes routes as `ip -batch` does, faster (runs inside the lab)
    #[command(hide = true)]
    Routes,
    /// Does to a host what a guest at its worst does (runs inside the lab)
    #[command(hide = true)]
    Attack(attack::AttackArgs),
    /// Moves machines: the toolstack of the lab's daemons (runs inside the lab)
    #[command(hide = true)]
    Mover(mover::MoverArgs),
    /// Kills a lab's process group when standard input ends
    #[command(hide = true)]
    Guard {
        /// The process group
        group: i32,
    },
    /// The part of `kvm` that is root
    #[command(hide = true)]
    KvmInside {
        /// What it is made of, as JSON
        parts: String,
        #[arg(long)]
        keep: bool,
    },
    /// The part of `xen` that is root
    #[command(hide = true)]
    XenInside {
        /// What it is made of, as JSON
        parts: String,
        #[arg(long)]
        keep: bool,
    },
    /// Runs the job (process 1 starts this inside the lab)
    #[command(hide = true)]
    Inside,
}

#[derive(Debug, clap::Args)]
struct RunOptions {
    /// Figures as one JSON object on the last line, with the seed and the outcome
    #[arg(long)]
    json: bool,
    /// Seed for everything random
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the logs, also if all went well
    #[arg(long)]
    keep: bool,
}

fn scenario_name(name: &str) -> Result<&'static Scenario, String> {
    pick("scenario", scenarios::ALL.iter(), name)
}

fn bench_name(name: &str) -> Result<&'static Scenario, String> {
    pick("bench", benches::ALL.iter(), name)
}

fn any_name(name: &str) -> Result<&'static Scenario, String> {
    pick("scenario", scenarios::ALL.iter().chain(benches::ALL), name)
}

fn pick(
    kind: &str,
    mut all: impl Iterator<Item = &'static Scenario> + Clone,
    name: &str,
) -> Result<&'static Scenario, String> {
    let names: Vec<&str> = all.clone().map(|scenario| scenario.name).collect();
    all.find(|scenario| scenario.name == name)
        .ok_or_else(|| format!("there is no such {kind}; there are: {}", names.join(", ")))
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::process_one();
    }
    // Asked before anything is built: cargo may replace the file, and its name would then be no name any more.
    let binary = std::env::current_exe();
    let end =
        binary.context("cannot find my own binary").and_then(|binary| run(Cli::parse().command, &binary));
    match end {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(format!("lab: {error:#}"));
            ExitCode::from(1)
        }
    }
}

fn run(command: Command, binary: &Path) -> Result<u8> {
    match command {
        Command::Test { filter, seed } => {
            setup::packages()?;
            let passed = suite::run(filter.as_deref(), seed.unwrap_or_else(random_seed), binary)?;
            Ok(u8::from(!passed))
        }
        Command::Demo { options } => {
            let demo = scenarios::find("demo").context("this build has no scenario `demo`")?;
            run_scenario(demo, &options, Vec::new(), binary)
        }
        Command::Run { options, scenario, args } => run_scenario(scenario, &options, args, binary),
        Command::Bench { options, bench, args } => run_scenario(bench, &options, args, binary),
        Command::Kvm { json, keep } => {
            let report = kvm::run(binary, keep)?;
            Ok(virtual_machines("kvm", report, json))
        }
        Command::Xen { json, keep } => {
            let report = xen::run(binary, keep)?;
            Ok(virtual_machines("xen", report, json))
        }
        Command::List { json } => {
            list(json)?;
            Ok(0)
        }
        Command::Shell { scenario, args } => shell(scenario, args, binary),
        Command::Probe(command) => probe::main(&command).map(|()| 0),
        Command::Inject(args) => inject::main(&args).map(|()| 0),
        Command::Flood(args) => flood::main(&args).map(|()| 0),
        Command::Fresh(args) => fresh::main(&args).map(|()| 0),
        Command::Routes => routes::main().map(|()| 0),
        Command::Attack(args) => attack::main(&args).map(|()| 0),
        Command::Mover(args) => mover::main(&args).map(|()| 0),
        Command::Guard { group } => uml::guard(group).map(|()| 0),
        Command::KvmInside { parts, keep } => kvm::main(&parts, binary, keep).map(|()| 0),
        Command::XenInside { parts, keep } => xen::main(&parts, binary, keep).map(|()| 0),
        Command::Inside => init::inside().map(|()| 0),
    }
}

fn run_scenario(scenario: &Scenario, options: &RunOptions, args: Vec<String>, binary: &Path) -> Result<u8> {
    setup::packages()?;
    let seed = options.seed.unwrap_or_else(random_seed);
    let job = job(scenario, Mode::Run, seed, args, binary)?;
    let logs = if options.keep { Logs::Keep } else { Logs::OnFailure };
    let report = uml::run(scenario, &job, None, logs, &Signals::block()?)?;
    if options.json {
        let mut object = serde_json::json!({
            "scenario": scenario.name,
            "ok": report.outcome.ok,
            "error": report.outcome.error,
            "seed": seed,
            "seconds": report.wall_s,
            "logs": report.kept,
        });
        if let (Some(object), Some(figures)) = (object.as_object_mut(), report.outcome.figures.as_object()) {
            object.extend(figures.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        // One line, and the last one.
        print(object.to_string());
    } else {
        for (name, value) in figures::flatten(&report.outcome.figures) {
            let target = scenario.targets.iter().find(|(of, _)| *of == name);
            let target = target.map(|(_, must)| format!("   must be {must}")).unwrap_or_default();
            print(format!("{name:32} {value:>12}{target}").trim_end());
        }
        if let Some(kept) = report.kept.as_deref().filter(|_| report.outcome.ok) {
            say(format!("lab: the logs are in {}", kept.display()));
        }
        let word = if report.outcome.ok { "passed" } else { "failed" };
        say(format!("lab: {} {word} in {:.1} s (seed {seed})", scenario.name, report.wall_s));
    }
    Ok(u8::from(!report.outcome.ok))
}

/// Prints what came of real virtual machines; the exit code.
fn virtual_machines(name: &str, report: vms::Report, json: bool) -> u8 {
    let is_ok = report.error.is_none();
    if json {
        let mut object = serde_json::json!({
            "scenario": name, "ok": is_ok, "error": report.error, "logs": report.kept,
        });
        if let (Some(object), Some(figures)) = (object.as_object_mut(), report.figures.as_object()) {
            object.extend(figures.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        print(object.to_string());
    } else {
        figures::beside(&report.figures, &report.moves).into_iter().for_each(print);
    }
    if let Some(kept) = report.kept {
        say(format!("lab: the logs are in {}", kept.display()));
    }
    match report.error {
        Some(error) => say(format!("lab: {name} failed: {error}")),
        None => say(format!("lab: {name} passed")),
    }
    u8::from(!is_ok)
}

fn shell(scenario: &Scenario, args: Vec<String>, binary: &Path) -> Result<u8> {
    setup::packages()?;
    let (mode, commands) = match uml::terminal() {
        Some((size, term)) => (Mode::Shell { size, term }, None),
        None => {
            let mut commands = Vec::new();
            std::io::stdin().read_to_end(&mut commands)?;
            (Mode::Commands, Some(commands))
        }
    };
    let mut job = job(scenario, mode, random_seed(), args, binary)?;
    // A person has no time limit; commands may take longer than the scenario.
    job.limit_s = if commands.is_some() { 1800 } else { 86_400 };
    let report = uml::run(scenario, &job, commands.as_deref(), Logs::OnFailure, &Signals::block()?)?;
    let failed = u8::from(!report.outcome.ok);
    Ok(report.outcome.exit_code.and_then(|code| u8::try_from(code).ok()).unwrap_or(failed))
}

fn list(json: bool) -> Result<()> {
    let kinds = [("scenario", scenarios::ALL), ("bench", benches::ALL)];
    let all = kinds.iter().flat_map(|(kind, list)| list.iter().map(move |entry| (*kind, entry)));
    if json {
        let list: Vec<_> = all
            .map(
                |(kind, entry)| serde_json::json!({ "name": entry.name, "kind": kind, "about": entry.about }),
            )
            .collect();
        print(serde_json::to_string_pretty(&list)?);
    } else {
        for (kind, entry) in all {
            print(format!("{:12} {kind:9} {}", entry.name, entry.about));
        }
    }
    Ok(())
}

/// The job, with the product built if the scenario needs it.
fn job(scenario: &Scenario, mode: Mode, seed: u64, args: Vec<String>, binary: &Path) -> Result<Job> {
    let is_bench = benches::ALL.iter().any(|bench| bench.name == scenario.name);
    let build = if is_bench && std::env::var_os("MB_DEV").is_none() {
        setup::Build::Released
    } else {
        setup::Build::Checked
    };
    let product = scenario.needs_product.then(|| setup::product(build)).transpose()?;
    benches::prepare(scenario, &args)?;
    let limit_s = scenario.limit.as_secs();
    Ok(Job { scenario: scenario.name.to_owned(), mode, seed, args, limit_s, lab: binary.to_owned(), product })
}

fn random_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // Six digits are easy to type again.
    now.map_or(0, |now| u64::from(now.subsec_nanos()) % 1_000_000)
}
