//! A kernel that is a model, the real guest client and the real host core between it and a switch that is a model, under
//! random events, losses, breaks, restarts and moves, in virtual time and without I/O.
//!
//! The laws: whenever all is quiet and the tables were audited, the mirror has what the kernel has, and the switch what a host holds that was told
//! exactly that; a host that holds what the client once told, however long ago, is told the difference; nothing is
//! withdrawn but by the word of a session; the client knows which routes the host leaves to it; nobody breaks a rule of
//! the protocol.
//!
//! `XENFLOW_MODEL_SEED` and `XENFLOW_MODEL_STEPS` make other runs; each says its seed, its steps and what it was tried on.

#![allow(clippy::unwrap_used, reason = "a test may fail")]
#![allow(clippy::wildcard_enum_match_arm, reason = "some effects are no business of the model")]

mod guest;
mod host;
mod kernel;
mod world;

use std::io::Write as _;
use std::str::FromStr;

use host::Counts;
use world::{Faults, World};
use xenflow_tests::oracle::random::Random;

/// Steps of one world.
const LIFE: u64 = 2000;

fn from_environment<T: FromStr>(name: &str, default: T) -> T {
    std::env::var(name).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, which is no number"))
    })
}

/// Worlds one after another; what they counted, or how a law was broken.
fn run(seed: u64, steps: u64, faults: Faults) -> Result<Counts, String> {
    let mut total = Counts::default();
    for number in 0..steps.div_ceil(LIFE) {
        let mut world = World::new(Random::new(seed, number + 1), faults);
        let counts = world.live(LIFE.min(steps - number * LIFE));
        let counts = counts.map_err(|broken| {
            format!(
                "{broken}\n(XENFLOW_MODEL_SEED={seed}, world {number}; its last steps: {})",
                world.trace()
            )
        })?;
        total = total + counts;
    }
    Ok(total)
}

#[test]
fn the_host_ends_with_what_the_kernel_has() {
    let seed = from_environment("XENFLOW_MODEL_SEED", 1);
    let steps = from_environment("XENFLOW_MODEL_STEPS", 400_000);
    let counts = run(seed, steps, Faults::default()).unwrap_or_else(|broken| panic!("{broken}"));
    // Of a test that passes, libtest keeps what is printed, but not what is written.
    writeln!(std::io::stderr(), "session_model: seed {seed}, {steps} steps: {counts:?}").unwrap();
    assert!(counts.snapshots > steps / 500, "seed {seed}: {counts:?}");
    assert!(counts.resumes - counts.empty > steps / 1000, "seed {seed}: {counts:?}");
    assert!(counts.empty > steps / 1000, "seed {seed}: {counts:?}");
    assert!(counts.older > steps / 4000, "seed {seed}: {counts:?}");
    assert!(counts.copies > steps / 1000, "seed {seed}: {counts:?}");
    assert!(counts.watched > steps / 100, "seed {seed}: {counts:?}");
    assert!(counts.rejected > steps / 100, "seed {seed}: {counts:?}");
    assert!(counts.accepted > steps / 200, "seed {seed}: {counts:?}");
    assert!(counts.concealed > steps / 2000, "seed {seed}: {counts:?}");
    assert!(counts.audits > steps / 500, "seed {seed}: {counts:?}");
    assert!(counts.repaired > steps / 40_000, "seed {seed}: {counts:?}");
}

/// A control: the law sees what it is for.
fn is_found_out(faults: Faults, law: &str) {
    let seed = from_environment("XENFLOW_MODEL_SEED", 1);
    let broken = run(seed, 20_000, faults).expect_err("nothing was missed");
    assert!(broken.contains(law), "{broken}");
}

#[test]
fn a_client_that_trusts_silence_is_found_out() {
    // An audit would find it out before.
    is_found_out(Faults { trusts_silence: true, trusts_events: true, ..Faults::default() }, "the mirror");
}

#[test]
fn a_client_that_trusts_events_is_found_out() {
    is_found_out(Faults { trusts_events: true, ..Faults::default() }, "the mirror");
}

#[test]
fn a_client_that_takes_races_for_repairs_is_found_out() {
    is_found_out(Faults { is_hasty: true, ..Faults::default() }, "nothing was concealed");
}

#[test]
fn a_host_that_withdraws_is_found_out() {
    is_found_out(Faults { withdraws: true, ..Faults::default() }, "no session said so");
}

#[test]
fn a_client_that_forgets_is_found_out() {
    is_found_out(Faults { forgets: true, ..Faults::default() }, "that it knew");
}

#[test]
fn a_client_that_takes_no_rejection_back_is_found_out() {
    is_found_out(Faults { overlooks: true, ..Faults::default() }, "rejections differ");
}
