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
    about: "fails as its argument says: error, panic, hang, kill, off, crash or reboot",
    memory_mib: 128,
    limit: Duration::from_secs(10),
    needs_product: false,
    in_suite: false,
    targets: &[],
    run,
};

/// Every way to fail, with what the report must then say.
pub const WAYS: [(&str, &str); 7] = [
    ("error", "an error, as ordered"),
    ("panic", "the scenario panicked: as ordered"),
    ("hang", "not done within its 10 s"),
    ("kill", "ended by SIGKILL"),
    ("off", "went off without a result"),
    ("crash", "went off without a result"),
    ("reboot", "went off without a result"),
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
        [way] if way == "off" => kernel("o"),
        [way] if way == "crash" => kernel("c"),
        [way] if way == "reboot" => kernel("b"),
        other => bail!("broken does not know how to {other:?}"),
    }
}

/// Orders the kernel to do something after which it is not there any more (Documentation/admin-guide/sysrq.rst).
fn kernel(order: &str) -> Result<Value> {
    std::fs::write("/proc/sysrq-trigger", order)?;
    std::thread::sleep(Duration::from_secs(5));
    bail!("the kernel did not obey {order:?}");
}
