//! What travels between the two worlds: the job (in), events (out, live) and the result (out, at the end).
//!
//! All three are JSON. The job and the result are files in the results folder; events are lines on the lab's
//! serial port. Nothing here does I/O beyond reading and writing those files.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What the lab does once its scenario's topology is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Run the scenario to its end.
    Run,
    /// Build the topology, then give the console to an interactive shell.
    Shell {
        /// Rows and columns of the terminal outside, if it told them.
        size: Option<(u16, u16)>,
        /// `TERM` of the terminal outside.
        term: String,
    },
    /// Build the topology, then run the commands in the file `commands` of the results folder.
    Commands,
}

/// The product's programs, as paths on the real machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Product {
    /// The host daemon, `xenflow-dom0`.
    pub dom0: PathBuf,
    /// The operator's command line, `xenflow`.
    pub xenflow: PathBuf,
    /// The static guest client, `xenflow-guest`.
    pub guest: PathBuf,
}

/// One order to the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Name of the scenario.
    pub scenario: String,
    /// What to do with it.
    pub mode: Mode,
    /// Seed for everything random in the scenario.
    pub seed: u64,
    /// Arguments of the scenario.
    pub args: Vec<String>,
    /// Seconds after which the lab gives up by itself, counted from its boot.
    pub limit_s: u64,
    /// The lab's own binary, as a path on the real machine.
    pub lab: PathBuf,
    /// The product's programs, for scenarios that need them.
    pub product: Option<Product>,
}

/// One line on the serial port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The scenario has come to a new step.
    Step {
        /// Seconds since the lab's boot.
        at_s: f64,
        /// What begins.
        text: String,
    },
    /// A line for standard output (shell commands).
    Out {
        /// The line, without its end.
        line: String,
    },
    /// A line for standard error (shell commands).
    Err {
        /// The line, without its end.
        line: String,
    },
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Whether the scenario held.
    pub ok: bool,
    /// Why not.
    pub error: Option<String>,
    /// The figures the scenario gave back; `null` if it did not come to that.
    pub figures: serde_json::Value,
    /// Seconds from boot to end, by the lab's clock.
    pub seconds: f64,
    /// Exit code of the shell, in the shell modes.
    pub exit_code: Option<i32>,
}

impl Outcome {
    /// A failure with no figures.
    pub fn failure(error: impl Into<String>, seconds: f64) -> Self {
        Self {
            ok: false,
            error: Some(error.into()),
            figures: serde_json::Value::Null,
            seconds,
            exit_code: None,
        }
    }
}

/// Name of the job's file in the results folder.
pub const JOB: &str = "job.json";
/// Name of the result's file in the results folder.
pub const RESULT: &str = "result.json";
/// Name of the file with the commands of [`Mode::Commands`].
pub const COMMANDS: &str = "commands";

/// Reads a JSON file.
pub fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not what it should be", path.display()))
}

/// Writes a JSON file and has it on the medium when it returns (inside, the medium is the real machine).
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    use std::io::Write as _;
    let mut file =
        std::fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all(&serde_json::to_vec_pretty(value)?)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    Ok(())
}
