//! Laws of the flow app, on random hosts, guests and packets; and for each law a thing broken on purpose that it
//! finds.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test fails by panicking")]
#![allow(missing_docs, unreachable_pub, reason = "nobody else sees a test's modules")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

mod answers;
mod buckets;
mod forwarding;
mod isolation;
mod limits;
mod meters;
mod model;
mod moves;
mod oracle;
mod order;
mod police;
mod queues;
mod rest;
mod stances;
mod state;
mod view;
mod world;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

/// Checks a law on that many random values, the same in every run.
fn law<S: Strategy>(cases: u32, strategy: S, check: impl Fn(S::Value) -> Result<(), String>) {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&strategy, |value| check(value).map_err(TestCaseError::fail));
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// Something is broken: a check must say so for one of that many values.
fn finds<S: Strategy>(cases: u32, strategy: S, check: impl Fn(S::Value) -> Result<(), String>) {
    let found = std::cell::Cell::new(false);
    law(cases, strategy, |value| {
        found.set(found.get() || check(value).is_err());
        Ok(())
    });
    assert!(found.get(), "nothing was noticed in {cases} cases");
}
