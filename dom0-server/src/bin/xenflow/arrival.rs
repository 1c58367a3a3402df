//! `xenflow arrival`: whether a guest may come to this node, for the hooks of toolstacks.
//!
//! Who has no daemon to ask, or one that knows nothing of such questions, is let through: a hook that is in the way because XenFlow
//! is away would make it worse.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use dom0_server::inspect::Request;
use xenflow_proto::MacAddr;

use crate::ask::Daemon;
use crate::{Failure, output};

/// How often it is looked at while something is in the way.
const POLL: Duration = Duration::from_millis(20);

/// `macs`: of the guest's interfaces; `is_plugged`: they are on the bridge by now, as the toolstack says.
pub(crate) fn run(socket: &Path, seconds: u32, macs: &[String], is_plugged: bool) -> Result<(), Failure> {
    for mac in macs {
        mac.parse::<MacAddr>()?;
    }
    Ok(wait(socket, seconds, macs, is_plugged)?)
}

/// Waits until nothing is in the way any more.
///
/// # Errors
/// What is in the way, after so many seconds; or at once, if it is there to stay.
pub(crate) fn wait(socket: &Path, seconds: u32, macs: &[String], is_plugged: bool) -> anyhow::Result<()> {
    let begin = Instant::now();
    let request = Request::Arrival { macs: macs.to_vec(), is_plugged };
    let passes = |error: &anyhow::Error| {
        output::error(&format!("{error:#}; the guest may come"));
        Ok(())
    };
    let mut daemon = match Daemon::open(socket, seconds) {
        Ok(daemon) => daemon,
        Err(error) => return passes(&error),
    };
    loop {
        let answer = match daemon.ask(&request) {
            Ok(answer) => answer,
            Err(error) => return passes(&error),
        };
        let Some(obstacle) = answer["obstacle"].as_str() else { return Ok(()) };
        if answer["is_for_now"] != true {
            return Err(anyhow!("{obstacle}"));
        }
        if begin.elapsed() >= Duration::from_secs(seconds.into()) {
            return Err(anyhow!("{obstacle}")).with_context(|| format!("waited {seconds} s"));
        }
        std::thread::sleep(POLL);
    }
}
