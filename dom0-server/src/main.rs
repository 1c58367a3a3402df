//! `xenflow-dom0`: the host daemon. Reads its settings and hands over to [`dom0_server::daemon`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dom0_server::chain::Chain;
use dom0_server::config::Config;
use dom0_server::daemon;
use dom0_server::events::Events;
use dom0_server::journal::Journal;
use dom0_server::migration::toolstack::supervise;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// The host daemon of XenFlow: keeps this host's Open vSwitch forwarding what its virtual routers decide.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run in the foreground until SIGTERM or SIGINT; flows stay when it ends. Logs go to stderr, or with
    /// fields to systemd's journal where that is what stderr is.
    Run {
        /// Settings.
        #[arg(long, default_value = "/etc/xenflow/dom0.toml")]
        config: PathBuf,
    },
    /// Read the settings, print the effective ones, and end.
    CheckConfig {
        /// Settings.
        #[arg(long, default_value = "/etc/xenflow/dom0.toml")]
        config: PathBuf,
    },
    /// Look after the move of a guest, in a folder of the daemon's. The daemon runs this by itself.
    #[command(hide = true)]
    Move {
        /// Become the command that moves it.
        #[arg(long)]
        command: bool,
        /// The folder.
        folder: PathBuf,
    },
}

/// Of a command that cannot be run, as shells have it.
const NOT_RUN: u8 = 127;

fn main() -> ExitCode {
    match Args::parse().command {
        Command::CheckConfig { config } => match Config::load(&config) {
            Ok(config) => {
                print_effective(&config);
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error, 2),
        },
        Command::Run { config } => match Config::load(&config) {
            Ok(config) => run(config),
            Err(error) => fail(&error, 2),
        },
        Command::Move { command: false, folder } => match supervise::supervise(&folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error, 1),
        },
        Command::Move { command: true, folder } => match supervise::command(&folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error, NOT_RUN),
        },
    }
}

fn run(config: Config) -> ExitCode {
    // Checked when the settings were read.
    let filter = config.log.parse::<Targets>().unwrap_or_default();
    // What happened is kept whatever goes to the log.
    let happened = Events::default();
    let registry = tracing_subscriber::registry().with(happened.layer());
    match Journal::behind_stderr() {
        Some(journal) => registry.with(journal.with_filter(filter)).init(),
        None => {
            let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
            registry.with(lines.with_filter(filter)).init();
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        // A task like those that it speaks with: they find it by their side, and wake no other thread for each word.
        anyhow::Ok(tokio::spawn(daemon::run(config, happened, stop)).await??)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error.as_ref(), 1),
    }
}

#[expect(clippy::print_stdout, reason = "the output of check-config")]
fn print_effective(config: &Config) {
    if let Ok(text) = toml::to_string(config) {
        print!("{text}");
    }
}

#[expect(clippy::print_stderr, reason = "before there is a log, and for people at a terminal")]
fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("xenflow-dom0: {}", Chain(error));
    ExitCode::from(code)
}
