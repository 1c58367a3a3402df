//! `broken`: fails in the way its argument says. `lab test` runs it to see that failures are reported.

use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::scenario::{Lab, Scenario};

/// The registry's entry.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "broken",
    about: "fails as its argument says: error, panic, hang, kill or off",
    memory_mib: 128,
    limit: Duration::from_secs(10),
    needs_product: false,
    in_suite: false,
    run,
};

/// Every way to fail, with what the report must then say.
pub const WAYS: [(&str, &str); 5] = [
    ("error", "an error, as ordered"),
    ("panic", "the scenario panicked: as ordered"),
    ("hang", "not done within its 10 s"),
    ("kill", "ended by SIGKILL"),
    ("off", "went off without a result"),
];

#[expect(clippy::panic, reason = "panicking is its job")]
fn run(lab: &mut Lab) -> Result<Value> {
    lab.ready()?;
    match lab.args() {
        [way] if way == "error" => bail!("an error, as ordered"),
        [way] if way == "panic" => panic!("as ordered"),
        [way] if way == "hang" => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        [way] if way == "kill" => {
            kill(Pid::this(), Signal::SIGKILL)?;
            bail!("SIGKILL did not kill");
        }
        [way] if way == "off" => {
            std::fs::write("/proc/sysrq-trigger", "o")?;
            std::thread::sleep(Duration::from_secs(30));
            bail!("the kernel did not power off");
        }
        other => bail!("broken takes one of error, panic, hang, kill and off, not {other:?}"),
    }
}
