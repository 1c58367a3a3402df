//! The registry of benches: scenarios that measure, and take their time. One file each below `benches/`, one line each
//! in [`ALL`].
//!
//! `lab bench` runs one; `lab test` runs none.

use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};

use crate::scenario::Scenario;
use crate::setup;

mod control;
pub mod fairness;
mod flood;
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
];

/// Fetches what a bench needs of this machine beyond what all need.
///
/// # Errors
/// Why it cannot be had.
pub fn prepare(bench: &Scenario) -> Result<()> {
    if bench.name == control::BENCH.name { setup::ovn::unpack() } else { Ok(()) }
}

/// The arguments of a bench or scenario: `--name value` pairs, as they stand after `--`.
#[derive(Debug)]
pub(crate) struct Options<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Options<'a> {
    pub(crate) fn parse(args: &'a [String]) -> Result<Self> {
        let pairs = args.chunks(2).map(|pair| match pair {
            [name, value] if name.starts_with("--") => Ok((name.as_str(), value.as_str())),
            _ => bail!("{pair:?} is not --name value"),
        });
        Ok(Self(pairs.collect::<Result<_>>()?))
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
        assert!(Options::parse(&words(&["--seconds"])).is_err());
        assert!(Options::parse(&words(&["seconds", "5"])).is_err());
    }

    #[test]
    fn percentiles_stay_inside() {
        let values = [1.0, 2.0, 3.0, 4.0];
        assert_eq!((percentile(&values, 50), percentile(&values, 100)), (Some(3.0), Some(4.0)));
        assert_eq!(percentile(&[], 50), None);
    }
}
