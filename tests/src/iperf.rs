//! TCP throughput, by `iperf3`.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::net::Netns;
use crate::process::{self, Process};
use crate::scenario::Lab;

/// What iperf3 measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// What the receiver got, in Gbit/s.
    pub gbit_s: f64,
    /// Segments sent again.
    pub retransmits: u64,
}

/// Sends TCP from one namespace to an address of another for `seconds`.
pub fn tcp(lab: &Lab, from: &Netns, to: &Netns, address: &str, seconds: u32) -> Result<Throughput> {
    let log = lab.results().join(format!("{}-iperf3.log", to.name()));
    // A log of its own for each run, as its text is waited for.
    let _ = std::fs::remove_file(&log);
    let mut server = Process::spawn(
        "iperf3 server",
        to.command("iperf3").args(["--server", "--one-off", "--forceflush", "--bind", address]),
        &log,
    )?;
    server.wait_for_log("Server listening", Duration::from_secs(10))?;
    let text = process::output(from.command("iperf3").args([
        "--json",
        "--connect-timeout",
        "5000",
        "--time",
        &seconds.to_string(),
        "--client",
        address,
    ]))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Throughput> {
    let report: serde_json::Value = serde_json::from_str(text)?;
    let bits = report.pointer("/end/sum_received/bits_per_second").and_then(serde_json::Value::as_f64);
    let again = report.pointer("/end/sum_sent/retransmits").and_then(serde_json::Value::as_u64);
    let gbit_s = bits.with_context(|| format!("iperf3 gave no result: {text}"))? / 1e9;
    Ok(Throughput { gbit_s: (gbit_s * 1000.0).round() / 1000.0, retransmits: again.unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receivers_sum_counts() {
        let text = r#"{"end":{"sum_sent":{"bits_per_second":3e9,"retransmits":4},"sum_received":{"bits_per_second":2.5e9}}}"#;
        assert_eq!(parse(text).unwrap(), Throughput { gbit_s: 2.5, retransmits: 4 });
        assert!(parse(r#"{"error":"unable to connect"}"#).is_err());
    }
}
