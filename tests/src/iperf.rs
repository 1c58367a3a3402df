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
    parse(&run(lab, from, to, address, seconds, &[])?)
}

/// Sends UDP packets with 64 bytes each as fast as it can; how many came, a second.
pub fn small(lab: &Lab, from: &Netns, to: &Netns, address: &str, seconds: u32) -> Result<f64> {
    parse_small(&run(lab, from, to, address, seconds, &["--udp", "--length", "64", "--bitrate", "0"])?)
}

fn run(lab: &Lab, from: &Netns, to: &Netns, address: &str, seconds: u32, more: &[&str]) -> Result<String> {
    let log = lab.results().join(format!("{}-iperf3.log", to.name()));
    // A log of its own for each run, as its text is waited for.
    let _ = std::fs::remove_file(&log);
    let mut server = Process::spawn(
        "iperf3 server",
        to.command("iperf3").args(["--server", "--one-off", "--forceflush", "--bind", address]),
        &log,
    )?;
    server.wait_for_log("Server listening", Duration::from_secs(10))?;
    let seconds = seconds.to_string();
    let words = ["--json", "--connect-timeout", "5000", "--time", &seconds, "--client", address];
    process::output(from.command("iperf3").args(words).args(more))
}

fn parse(text: &str) -> Result<Throughput> {
    let report: serde_json::Value = serde_json::from_str(text)?;
    let bits = report.pointer("/end/sum_received/bits_per_second").and_then(serde_json::Value::as_f64);
    let again = report.pointer("/end/sum_sent/retransmits").and_then(serde_json::Value::as_u64);
    let gbit_s = bits.with_context(|| format!("iperf3 gave no result: {text}"))? / 1e9;
    Ok(Throughput { gbit_s: (gbit_s * 1000.0).round() / 1000.0, retransmits: again.unwrap_or(0) })
}

fn parse_small(text: &str) -> Result<f64> {
    let report: serde_json::Value = serde_json::from_str(text)?;
    let of = |key: &str| report.pointer(&format!("/end/sum/{key}")).and_then(serde_json::Value::as_f64);
    let rate = || Some((of("packets")? - of("lost_packets")?) / of("seconds")?);
    rate().with_context(|| format!("iperf3 gave no result: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_that_came_count() {
        let text = r#"{"end":{"sum":{"packets":900,"lost_packets":100,"seconds":2}}}"#;
        assert_eq!(parse_small(text).unwrap(), 400.0);
        assert!(parse_small("{}").is_err());
    }

    #[test]
    fn the_receivers_sum_counts() {
        let text = r#"{"end":{"sum_sent":{"bits_per_second":3e9,"retransmits":4},"sum_received":{"bits_per_second":2.5e9}}}"#;
        assert_eq!(parse(text).unwrap(), Throughput { gbit_s: 2.5, retransmits: 4 });
        assert!(parse(r#"{"error":"unable to connect"}"#).is_err());
    }
}
