//! The registry of benches: scenarios that measure, and take their time. One file each below `benches/`, one line each
//! in [`ALL`].
//!
//! `lab bench` runs one; `lab test` runs none.

use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::scenario::Scenario;
use crate::setup;

mod control;
pub mod fairness;
mod flood;
mod instructions;
mod migration;
mod qos;
mod resume;
mod routes;
mod update_loss;

/// Every bench.
pub const ALL: &[Scenario] = &[
    update_loss::BENCH,
    flood::BENCH,
    resume::BENCH,
    fairness::BENCH,
    control::BENCH,
    qos::BENCH,
    migration::BENCH,
    routes::BENCH,
    instructions::BENCH,
];

/// Fetches what a bench needs of this machine beyond what all need.
///
/// # Errors
/// Why it cannot be had.
pub fn prepare(bench: &Scenario, args: &[String]) -> Result<()> {
    if bench.name == instructions::BENCH.name {
        return instructions::prepare();
    }
    if bench.name == routes::BENCH.name && args.iter().any(|arg| arg == routes::PEERS) {
        routes::prepare();
    }
    if bench.name == control::BENCH.name { setup::ovn::unpack() } else { Ok(()) }
}

/// The arguments of a bench or scenario: `--name value` pairs, and names without a value.
#[derive(Debug)]
pub(crate) struct Options<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Options<'a> {
    pub(crate) fn parse(args: &'a [String]) -> Result<Self> {
        let mut pairs = Vec::new();
        let mut args = args.iter().map(String::as_str).peekable();
        while let Some(name) = args.next() {
            ensure!(name.starts_with("--"), "{name:?} is not --name value");
            pairs.push((name, args.next_if(|value| !value.starts_with("--")).unwrap_or_default()));
        }
        Ok(Self(pairs))
    }

    /// Takes an option that has no value: whether it was given.
    pub(crate) fn take_flag(&mut self, name: &str) -> bool {
        let at = self.0.iter().position(|given| *given == (name, ""));
        at.map(|at| self.0.remove(at)).is_some()
    }

    /// Takes the value of an option, as `--seconds`; `default` if it was not given.
    pub(crate) fn take<T: FromStr>(&mut self, name: &str, default: T) -> Result<T> {
        let Some(at) = self.0.iter().position(|(given, _)| *given == name) else { return Ok(default) };
        let (_, value) = self.0.remove(at);
        value.parse().map_err(|_| anyhow!("{value:?} is no value of {name}"))
    }

    /// An error if an option is left that nobody took.
    pub(crate) fn end(self) -> Result<()> {
        match self.0.first() {
            Some((name, _)) => bail!("there is no option {name} here"),
            None => Ok(()),
        }
    }
}

/// The value at `percent` of sorted values.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let at = sorted.len() * percent / 100;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied()
}

/// Of values that need not be sorted.
fn median(values: &mut [f64]) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    percentile(values, 50).context("nothing was measured")
}

/// Three digits after the point.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn options_are_taken_and_leftovers_refused() {
        let args = words(&["--seconds", "5", "--rate", "x"]);
        let mut options = Options::parse(&args).unwrap();
        assert_eq!(options.take("--seconds", 30).unwrap(), 5);
        assert_eq!(options.take("--window", 7).unwrap(), 7);
        assert!(options.take("--rate", 1).is_err());
        options.end().unwrap();
        let args = words(&["--secnods", "5"]);
        assert!(Options::parse(&args).unwrap().end().is_err());
        let args = words(&["--peers", "--seconds", "5", "--rate"]);
        let mut options = Options::parse(&args).unwrap();
        assert!(
            options.take_flag("--peers") && !options.take_flag("--peers") && !options.take_flag("--seconds")
        );
        assert_eq!(options.take("--seconds", 30).unwrap(), 5);
        assert!(options.take("--rate", 1).is_err());
        assert!(Options::parse(&words(&["seconds", "5"])).is_err());
    }

    #[test]
    fn percentiles_stay_inside() {
        let values = [1.0, 2.0, 3.0, 4.0];
        assert_eq!((percentile(&values, 50), percentile(&values, 100)), (Some(3.0), Some(4.0)));
        assert_eq!(percentile(&[], 50), None);
    }
}
