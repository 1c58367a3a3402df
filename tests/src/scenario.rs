//! What a scenario is, and the [`Lab`] it runs in.
//!
//! A scenario is a function that builds its topology, calls [`Lab::ready`], looks, and gives back figures as JSON.
//! Returning an error, or panicking, fails it. Everything it made is undone by dropping.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::job::{Job, Mode, Product};
use crate::progress::Events;
use crate::shell;

/// One entry of the registry ([`crate::scenarios::ALL`]).
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Name on the command line.
    pub name: &'static str,
    /// One line for `lab list`.
    pub about: &'static str,
    /// Memory of the lab, in MiB.
    pub memory_mib: u32,
    /// The scenario's bound, boot included, against one that hangs: several times what it takes on a quiet machine, as
    /// one whose host is busy has been seen to take three times as long.
    pub limit: Duration,
    /// Whether it needs the product's programs, which are then built before.
    pub needs_product: bool,
    /// Whether `lab test` runs it.
    pub in_suite: bool,
    /// What figures must be, for people to read beside them; the scenario itself checks it.
    pub targets: &'static [(&'static str, &'static str)],
    /// The scenario itself.
    pub run: fn(&mut Lab) -> Result<serde_json::Value>,
}

/// The shell that [`Lab::ready`] gave the console to has ended: not an error, but the scenario must not go on.
#[derive(Debug, thiserror::Error)]
#[error("the shell ended with exit code {exit_code}")]
pub struct ShellEnded {
    /// The shell's exit code.
    pub exit_code: i32,
}

/// The lab as a scenario sees it.
#[derive(Debug)]
pub struct Lab {
    job: Job,
    results: PathBuf,
    work: PathBuf,
    events: Events,
    next_id: AtomicU32,
}

impl Lab {
    /// A lab for `job`; both folders exist.
    pub fn new(job: Job, results: PathBuf, work: PathBuf, events: Events) -> Self {
        Self { job, results, work, events, next_id: AtomicU32::new(1) }
    }

    /// The folder that outlives the lab: logs, captures worth keeping.
    pub fn results(&self) -> &Path {
        &self.results
    }

    /// A folder in memory that goes with the lab.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The lab's own binary, which also holds the probe and the injector.
    pub fn binary(&self) -> &Path {
        &self.job.lab
    }

    /// The product's programs, as paths that work inside; an error in a scenario that does not ask for them.
    pub fn product(&self) -> Result<&Product> {
        self.job.product.as_ref().context("this scenario's entry does not say that it needs the product")
    }

    /// The arguments given after the scenario's name.
    pub fn args(&self) -> &[String] {
        &self.job.args
    }

    /// The seed for everything random.
    pub fn seed(&self) -> u64 {
        self.job.seed
    }

    /// Takes away what is in the work folder, where nobody needs it any more, so that there may be another site; what the last has
    /// logged goes to a folder of its own.
    pub fn clear(&self, name: &str) -> Result<()> {
        for entry in std::fs::read_dir(&self.work)? {
            let path = entry?.path();
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) }
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
        let logs = self.results.join(name);
        std::fs::create_dir(&logs)?;
        for entry in std::fs::read_dir(&self.results)? {
            let path = entry?.path();
            if let Some(file) = path.file_name().filter(|_| path.extension().is_some_and(|it| it == "log")) {
                std::fs::rename(&path, logs.join(file))?;
            }
        }
        Ok(())
    }

    /// A number not given out before.
    pub fn next_id(&self) -> u32 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells the people outside what begins now.
    pub fn step(&self, text: impl Into<String>) {
        self.events.step(text);
    }

    /// The topology is up. With `lab shell`, this is where the shell runs, and the error it ends with must be
    /// passed on with `?`; otherwise it does nothing.
    pub fn ready(&self) -> Result<()> {
        let exit_code = match &self.job.mode {
            Mode::Run => return Ok(()),
            Mode::Shell { size, term } => shell::interactive(&self.events, *size, term)?,
            Mode::Commands => shell::commands(&self.events, &self.results)?,
        };
        Err(ShellEnded { exit_code }.into())
    }
}
