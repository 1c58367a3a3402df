//! The registry of scenarios. One file each below `scenarios/`, one line each in [`ALL`].

use crate::benches;
use crate::scenario::Scenario;

mod bandwidth;
mod boot;
pub mod broken;
mod chain;
mod churn;
mod cluster;
mod controls;
mod crossing;
mod demo;
mod fpm;
mod hostile;
mod identity;
mod kernel;
mod migrate;
mod moves;
mod neighbors;
mod oracle;
mod plain;
mod plane;
mod restart;
mod service;
mod topology;
mod twin;
mod upheaval;

/// Every scenario; `lab test` runs those of [`BESIDE`] first, the others in this order.
pub const ALL: &[Scenario] = &[
    plain::SCENARIO,
    demo::SCENARIO,
    controls::SCENARIO,
    hostile::SCENARIO,
    identity::SCENARIO,
    chain::SCENARIO,
    kernel::SCENARIO,
    churn::SCENARIO,
    oracle::SCENARIO,
    plane::ECMP,
    plane::PLANE,
    plane::PUNT,
    plane::POLICING,
    fpm::SCENARIO,
    boot::SCENARIO,
    moves::SCENARIO,
    migrate::SCENARIO,
    crossing::SCENARIO,
    neighbors::SCENARIO,
    upheaval::SCENARIO,
    restart::SCENARIO,
    service::SCENARIO,
    topology::SCENARIO,
    cluster::SCENARIO,
    bandwidth::SCENARIO,
    broken::SCENARIO,
];

/// Finds a scenario, or a bench ([`crate::benches::ALL`]), by name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().chain(benches::ALL).find(|scenario| scenario.name == name)
}

/// Those that `lab test` runs beside another of them and behind which it runs tests, the longest first: they check what
/// is, not how fast, and their bounds are many times what it takes.
pub const BESIDE: &[Scenario] = &[
    plane::ECMP,
    chain::SCENARIO,
    oracle::SCENARIO,
    cluster::SCENARIO,
    service::SCENARIO,
    plane::PLANE,
    restart::SCENARIO,
    controls::SCENARIO,
    plane::PUNT,
    topology::SCENARIO,
    moves::SCENARIO,
    kernel::SCENARIO,
    hostile::SCENARIO,
    boot::SCENARIO,
    identity::SCENARIO,
    fpm::SCENARIO,
    churn::SCENARIO,
];

/// Arguments with which `lab test` runs a scenario.
pub fn suite_args(name: &str) -> &'static [&'static str] {
    match name {
        name if name == churn::SCENARIO.name => churn::SUITE_ARGS,
        name if name == cluster::SCENARIO.name => cluster::SUITE_ARGS,
        name if name == migrate::SCENARIO.name => migrate::SUITE_ARGS,
        name if name == service::SCENARIO.name => service::SUITE_ARGS,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        let all = || ALL.iter().chain(benches::ALL);
        for scenario in all() {
            assert_eq!(all().filter(|other| other.name == scenario.name).count(), 1, "{}", scenario.name);
            assert_eq!(find(scenario.name).map(|found| found.about), Some(scenario.about));
        }
        assert!(find("no such scenario").is_none());
    }

    #[test]
    fn what_runs_beside_others_is_in_the_suite() {
        for (at, scenario) in BESIDE.iter().enumerate() {
            assert!(scenario.in_suite && find(scenario.name).is_some(), "{}", scenario.name);
            assert!(BESIDE.iter().take(at).all(|other| other.name != scenario.name), "{}", scenario.name);
        }
    }

    #[test]
    fn benches_are_not_in_the_suite() {
        assert!(benches::ALL.iter().all(|bench| !bench.in_suite));
    }
}
