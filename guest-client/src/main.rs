//! `xenflow-guest`: command line and log. Everything else is in the library.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use xenflow_guest_client::check::{self, Line, Verdict};
use xenflow_guest_client::config::{Config, ConfigError};
use xenflow_guest_client::{driver, tls};

/// Streams this router's routes and neighbors to the host that forwards for it. Without a command, it runs.
#[derive(Parser)]
#[command(name = "xenflow-guest", version)]
struct Cli {
    /// Configuration file; without it, /etc/xenflow/guest.toml if that is there.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run until stopped; the log goes to stderr.
    Run,
    /// Check the configuration and print its effective values.
    CheckConfig {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Look whether everything is there that a session needs; 1 if something is missing, 2 if the configuration is wrong.
    Check {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the state of the running client.
    Status {
        /// As one line of JSON.
        #[arg(long)]
        json: bool,
        /// Go on with acknowledgements and changes of state, in lines of JSON.
        #[arg(long)]
        follow: bool,
    },
    /// Print the completions of a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let Cli { config, command } = Cli::parse();
    let command = command.unwrap_or(Command::Run);
    if let Command::Completions { shell } = command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "xenflow-guest", &mut script);
        return match std::io::stdout().write_all(&script) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.into(), 1),
        };
    }
    let config = match Config::load(config.as_deref()) {
        Ok(config) => config,
        Err(error) => return unusable(error, &command),
    };
    let result = match command {
        Command::Run => run(config),
        Command::CheckConfig { json } => print_config(&config, json),
        Command::Check { json } => check(&config, json),
        Command::Status { json, follow } => status(&config, json, follow),
        Command::Completions { .. } => Ok(()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

/// A check says it in its own way too.
fn unusable(error: ConfigError, command: &Command) -> ExitCode {
    let remedy = if matches!(error, ConfigError::Certificate(_)) {
        "copy ca.pem, router.pem and router.key to /etc/xenflow, or name other files in guest.toml"
    } else {
        "correct the file: `xenflow-guest check-config` shows what is understood"
    };
    let error = anyhow::Error::from(error);
    if let Command::Check { json } = command {
        let line = Line::failure("configuration", format!("{error:#}"), remedy);
        if let Err(error) = print_lines(&[line], *json) {
            return fail(&error, 1);
        }
    }
    fail(&error, 2)
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
    tls::client_config(config, tls::Trust::read(config, None)?)?;
    let value = serde_json::to_value(config)?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{value}")?;
        return Ok(());
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        match value.is_null() {
            true => writeln!(out, "# {key} is not set")?,
            false => writeln!(out, "{key} = {value}")?,
        }
    }
    Ok(())
}

fn check(config: &Config, json: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let lines = runtime.block_on(check::check(config));
    print_lines(&lines, json)?;
    let failed = lines.iter().filter(|line| line.verdict == Verdict::Fail).count();
    if failed > 0 { anyhow::bail!("{failed} of {} checks failed", lines.len()) } else { Ok(()) }
}

fn print_lines(lines: &[Line], json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(lines)?)?;
        return Ok(());
    }
    for Line { check, verdict, detail, remedy } in lines {
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        writeln!(out, "{verdict:4} {check}: {detail}")?;
        if let Some(remedy) = remedy {
            writeln!(out, "     -> {remedy}")?;
        }
    }
    Ok(())
}

fn status(config: &Config, json: bool, follow: bool) -> anyhow::Result<()> {
    let path = &config.status_socket;
    let stream = UnixStream::connect(path)
        .with_context(|| format!("status socket {} (is xenflow-guest running?)", path.display()))?;
    let mut out = std::io::stdout().lock();
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if json || follow {
            writeln!(out, "{line}")?;
        } else {
            out.write_all(page(&serde_json::from_str(&line)?).as_bytes())?;
        }
        out.flush()?;
        if !follow {
            return Ok(());
        }
    }
    if follow { anyhow::bail!("the client has stopped") } else { anyhow::bail!("no answer") }
}

/// The state for people: what matters first, lists one to a line, what there is not left out.
fn page(state: &serde_json::Value) -> String {
    let mut fields: Vec<_> = state.as_object().into_iter().flatten().collect();
    let order =
        ["state", "node", "interface", "error", "routes", "neighbors", "seq", "acked", "backlog", "rejected"];
    fields.sort_by_key(|(key, _)| order.iter().position(|known| known == key).unwrap_or(order.len()));
    let mut text = String::new();
    for (key, value) in fields {
        let values = match value.as_array() {
            Some(values) => values.iter().collect(),
            None if value.is_null() => Vec::new(),
            None => vec![value],
        };
        for value in values {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text += &format!("{key:12} {value}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_has_what_matters_first_and_lists_line_by_line() {
        let state = serde_json::json!({
            "acked": 7, "error": null, "node": "a", "obstacles": ["eth1: one", "eth2: two"], "state": "up", "zebra": true,
        });
        let page = "state        up\nnode         a\nacked        7\nobstacles    eth1: one\nobstacles    eth2: two\nzebra        true\n";
        assert_eq!(super::page(&state), page);
    }
}
