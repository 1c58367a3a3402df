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
mod demo;
mod fpm;
mod hostile;
mod identity;
mod kernel;
mod moves;
mod oracle;
mod plain;
mod plane;
mod restart;
mod service;
mod topology;
mod twin;

/// Every scenario, in the order `lab test` runs them.
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

/// Whether `lab test` may run a scenario beside another of this kind: it checks what is, not how fast, and its bounds
/// are many times what it takes.
pub fn may_run_beside(name: &str) -> bool {
    let all = [
        controls::SCENARIO,
        oracle::SCENARIO,
        plane::ECMP,
        plane::PLANE,
        plane::PUNT,
        hostile::SCENARIO,
        kernel::SCENARIO,
        fpm::SCENARIO,
        churn::SCENARIO,
        identity::SCENARIO,
        boot::SCENARIO,
        moves::SCENARIO,
        service::SCENARIO,
        topology::SCENARIO,
        cluster::SCENARIO,
        chain::SCENARIO,
        restart::SCENARIO,
    ];
    all.iter().any(|scenario| scenario.name == name)
}

/// Arguments with which `lab test` runs a scenario.
pub fn suite_args(name: &str) -> &'static [&'static str] {
    match name {
        name if name == churn::SCENARIO.name => churn::SUITE_ARGS,
        name if name == cluster::SCENARIO.name => cluster::SUITE_ARGS,
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
    fn benches_are_not_in_the_suite() {
        assert!(benches::ALL.iter().all(|bench| !bench.in_suite));
    }
}
