//! `xenflow-guest`: command line and log. Everything else is in the library.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use xenflow_guest_client::{config::Config, driver};

const CONFIG: &str = "/etc/xenflow/guest.toml";

/// Streams this router's routes and neighbors to the host that forwards for it.
#[derive(Parser)]
#[command(name = "xenflow-guest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run until stopped; the log goes to stderr.
    Run {
        /// Configuration file.
        #[arg(long, default_value = CONFIG)]
        config: PathBuf,
    },
    /// Check the configuration and print its effective values.
    CheckConfig {
        /// Configuration file.
        #[arg(long, default_value = CONFIG)]
        config: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the state of the running client, one line of JSON.
    Status {
        /// Configuration file, for the status socket.
        #[arg(long, default_value = CONFIG)]
        config: PathBuf,
        /// Go on with acknowledgements and changes of state.
        #[arg(long)]
        follow: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (Command::Run { config: path }
    | Command::CheckConfig { config: path, .. }
    | Command::Status { config: path, .. }) = &cli.command;
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => return fail(&error.into(), 2),
    };
    let result = match cli.command {
        Command::Run { .. } => run(config),
        Command::CheckConfig { json, .. } => print_config(&config, json),
        Command::Status { follow, .. } => status(&config, follow),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    // Where stderr is gone there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "xenflow-guest: {error:#}");
    code.into()
}

fn run(config: Config) -> anyhow::Result<()> {
    let filter: Targets = config.log.parse().context("log")?;
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(filter).with(layer).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
    let socket = config.status_socket.clone();
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping; the host forwards on with what it knows");
        };
        driver::run(config, seed, stop).await?;
        // The next run replaces one that is left over.
        let _ = std::fs::remove_file(&socket);
        Ok(())
    })
}

fn print_config(config: &Config, json: bool) -> anyhow::Result<()> {
    let (ca, cert, key) = (&config.ca, &config.cert, &config.key);
    xenflow_guest_client::tls::client_config(ca, cert, key, &config.router)?;
    let value = serde_json::to_value(config)?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{value}")?;
        return Ok(());
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        writeln!(out, "{key} = {value}")?;
    }
    Ok(())
}

fn status(config: &Config, follow: bool) -> anyhow::Result<()> {
    let path = &config.status_socket;
    let stream = UnixStream::connect(path)
        .with_context(|| format!("status socket {} (is xenflow-guest running?)", path.display()))?;
    let mut out = std::io::stdout().lock();
    for line in BufReader::new(stream).lines() {
        writeln!(out, "{}", line?)?;
        out.flush()?;
        if !follow {
            return Ok(());
        }
    }
    if follow { anyhow::bail!("the client has stopped") } else { anyhow::bail!("no answer") }
}
