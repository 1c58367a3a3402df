//! An end host: a namespace with one interface, one address per family and a default route.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::net::Netns;
use crate::process::wait_for;

/// Name of the one interface of every end host.
pub const NIC: &str = "eth0";

/// An end host. Its interface comes from [`crate::host::Host::plug`].
#[derive(Debug)]
pub struct EndHost {
    ns: Netns,
}

impl EndHost {
    /// Makes the namespace; no interface yet.
    pub fn create(name: &str) -> Result<Self> {
        let ns = Netns::create(name)?;
        // It is told its router. Asking for one, it would become a neighbor by its link-local address, some time.
        ns.sysctls(&[("net.ipv6.conf.default.router_solicitations", "0")])?;
        Ok(Self { ns })
    }

    /// The same, named as its port of a bridge of the host (with settings as of [`Host::add_port`]), with an address of 24 bits and
    /// perhaps a gateway.
    pub fn plug(
        host: &Host,
        bridge: &str,
        port: &str,
        mac: &str,
        (ip, gateway): (&str, Option<&str>),
        settings: &[&str],
    ) -> Result<Self> {
        let end = Self::create(port)?;
        host.plug(port, end.netns(), NIC, mac)?;
        host.add_port(bridge, port, settings)?;
        end.configure(&format!("{ip}/24"), gateway)?;
        Ok(end)
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.ns
    }

    /// Sets its address (`addr/len`), brings its interface up, and routes everything else to `gateway`.
    pub fn configure(&self, address: &str, gateway: Option<&str>) -> Result<()> {
        let mut lines = format!("address add {address} dev {NIC}\nlink set {NIC} up\n");
        if let Some(gateway) = gateway {
            lines.push_str(&format!("route replace default via {gateway}\n"));
        }
        self.ns.ip_batch(&lines)
    }

    /// Pings until a reply comes: right after a topology is up, the first packets may still be lost.
    pub fn wait_reachable(&self, target: &str, limit: Duration) -> Result<()> {
        let what = format!("{} to reach {target}", self.ns.name());
        wait_for(&what, limit, || Ok((ping(&self.ns, target, 1, 10)?.received > 0).then_some(())))
    }

    /// Sends `count` echo requests, one every `interval_ms` (at least 2 ms).
    pub fn ping(&self, target: &str, count: u32, interval_ms: u32) -> Result<Ping> {
        ping(&self.ns, target, count, interval_ms)
    }
}

/// What `ping` found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ping {
    /// Requests sent.
    pub sent: u32,
    /// Distinct replies.
    pub received: u32,
    /// Duplicate replies.
    pub duplicates: u32,
    /// Round trip of the first request, in ms, if it was answered.
    pub first_ms: Option<f64>,
    /// Median round trip of all but the first, in ms.
    pub steady_ms: Option<f64>,
}

impl Ping {
    /// Requests without a reply.
    pub fn lost(&self) -> u32 {
        self.sent.saturating_sub(self.received)
    }
}

/// Pings from a namespace; see [`EndHost::ping`]. Losing packets is a result, not an error.
pub fn ping(ns: &Netns, target: &str, count: u32, interval_ms: u32) -> Result<Ping> {
    let interval = format!("{:.3}", f64::from(interval_ms) / 1000.0);
    let out = ns
        .command("ping")
        .args(["-n", "-W", "1", "-i", &interval, "-c", &count.to_string(), target])
        .stdin(std::process::Stdio::null())
        .output()
        .context("cannot run ping")?;
    let text = String::from_utf8_lossy(&out.stdout);
    parse(&text).with_context(|| {
        format!("ping {target} in {} said: {text}{}", ns.name(), String::from_utf8_lossy(&out.stderr))
    })
}

/// Reads the output of iputils' `ping`.
fn parse(text: &str) -> Option<Ping> {
    let mut replies: Vec<(u32, f64)> = Vec::new();
    let mut duplicates = 0;
    for line in text.lines() {
        let Some((_, rest)) = line.split_once("icmp_seq=") else { continue };
        let Some((_, time)) = rest.split_once("time=") else { continue };
        let seq = rest.split(' ').next()?.parse().ok()?;
        if line.contains("DUP!") {
            duplicates += 1;
        } else {
            replies.push((seq, time.split(' ').next()?.parse().ok()?));
        }
    }
    let summary = text.lines().find(|line| line.contains("packets transmitted"))?;
    let sent = summary.split(' ').next()?.parse().ok()?;
    let received = u32::try_from(replies.len()).ok()?;
    let first_ms = replies.iter().find(|(seq, _)| *seq == 1).map(|(_, ms)| *ms);
    let mut rest: Vec<f64> = replies.iter().filter(|(seq, _)| *seq != 1).map(|(_, ms)| *ms).collect();
    rest.sort_by(f64::total_cmp);
    let steady_ms = rest.get(rest.len() / 2).copied();
    Some(Ping { sent, received, duplicates, first_ms, steady_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    // ping -n -c 3 127.0.0.1, with the second reply taken out and the third doubled.
    const TEXT: &str = "PING 127.0.0.1 (127.0.0.1) 56(84) bytes of data.\n\
        64 bytes from 127.0.0.1: icmp_seq=1 ttl=64 time=0.500 ms\n\
        64 bytes from 127.0.0.1: icmp_seq=3 ttl=64 time=0.051 ms\n\
        64 bytes from 127.0.0.1: icmp_seq=3 ttl=64 time=0.052 ms (DUP!)\n\n\
        --- 127.0.0.1 ping statistics ---\n\
        3 packets transmitted, 2 received, +1 duplicates, 33% packet loss, time 20ms\n";

    #[test]
    fn ping_output_is_read() {
        let ping = parse(TEXT).unwrap();
        assert_eq!((ping.sent, ping.received, ping.duplicates, ping.lost()), (3, 2, 1, 1));
        assert_eq!((ping.first_ms, ping.steady_ms), (Some(0.5), Some(0.051)));
    }

    #[test]
    fn output_without_a_summary_is_refused() {
        assert_eq!(parse("ping: connect: Network is unreachable"), None);
    }
}
