//! A look at everything that a session and the fast path need, before there is one: `xenflow-guest check`. I/O. Changes
//! nothing, and disturbs no client that runs: a session begins with a `Hello`, which is not said here.

use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tokio::io::AsyncReadExt;
use xenflow_proto::table::Link;
use xenflow_proto::{MacAddr, control};

use crate::config::Config;
use crate::connection::{attempt, chain};
use crate::obstacles::{describe, survey};
use crate::renew;
use crate::survey::Surveyor;
use crate::tls;

/// A host that refuses the certificate says so after the handshake (TLS 1.3), at once.
const OBJECTION: Duration = Duration::from_millis(500);
const DAY: u64 = 86_400;

/// How something looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// There is or will be a session, and something is not as it could be.
    Warn,
    /// There is no session while this is so.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What.
    pub check: &'static str,
    /// How it looks.
    pub verdict: Verdict,
    /// In words.
    pub detail: String,
}

#[derive(Default)]
struct Report(Vec<Line>);

impl Report {
    fn add(&mut self, check: &'static str, verdict: Verdict, detail: impl Into<String>) {
        self.0.push(Line { check, verdict, detail: detail.into() });
    }
}

/// Looks at all of it, as the client would.
pub async fn check(config: &Config) -> Vec<Line> {
    let mut report = Report::default();
    credentials(config, &mut report);
    let facts = Surveyor::default().facts();
    let link = facts.links.iter().map(|facts| &facts.link).find(|link| link.name == config.control_interface);
    if interface(config, link, &mut report) {
        host(config, link, &mut report).await;
    }
    let name = |ifindex| {
        let link = facts.links.iter().map(|facts| &facts.link).find(|link| link.ifindex == ifindex);
        link.map_or_else(|| format!("link {ifindex}"), |link| link.name.clone())
    };
    let obstacles = survey(&facts).obstacles;
    for obstacle in &obstacles {
        report.add("forwarding", Verdict::Warn, format!("left to this guest: {}", describe(obstacle, name)));
    }
    if obstacles.is_empty() {
        report.add("forwarding", Verdict::Ok, "nothing in this kernel is in the host's way");
    }
    redirects(&mut report);
    kernel(config, &mut report);
    report.0
}

fn credentials(config: &Config, report: &mut Report) {
    let (ca, cert, key) = (&config.ca, &config.cert, &config.key);
    match std::fs::metadata(key).map(|found| found.permissions().mode() & 0o7777) {
        Ok(mode) if mode & 0o077 == 0 => {
            report.add("key", Verdict::Ok, format!("{} has mode {mode:04o}", key.display()))
        }
        Ok(mode) => {
            let text = format!("{} has mode {mode:04o}: others than its owner may read it", key.display());
            report.add("key", Verdict::Warn, text);
        }
        // What follows names it.
        Err(_) => {}
    }
    if let Err(error) = tls::client_config(ca, cert, key, &config.router) {
        report.add("certificate", Verdict::Fail, chain(&error));
        return;
    }
    let validity = match renew::current(config) {
        Ok(validity) => validity,
        Err(error) => {
            report.add("certificate", Verdict::Fail, chain(&error));
            return;
        }
    };
    let now = renew::now();
    let (whose, days) = (format!("that of router {}", config.router), |time: Duration| time.as_secs() / DAY);
    if now < validity.not_before {
        let text = format!(
            "{whose}, is not valid for another {} s: is the clock right?",
            (validity.not_before - now).as_secs()
        );
        report.add("certificate", Verdict::Fail, text);
    } else if now > validity.not_after {
        let text = format!("{whose}, expired {} days ago", days(now - validity.not_after));
        report.add("certificate", Verdict::Fail, text);
    } else {
        let left = format!("{whose}, ends in {} days", days(validity.not_after - now));
        match renew::due(validity, now).is_zero() {
            true => report.add("certificate", Verdict::Warn, format!("{left}, and was not renewed yet")),
            false => report.add("certificate", Verdict::Ok, left),
        }
    }
}

/// Whether it makes sense to connect.
fn interface(config: &Config, link: Option<&Link>, report: &mut Report) -> bool {
    let name = &config.control_interface;
    let refusal = match link {
        None => Some("is not there".to_owned()),
        Some(link) if !link.up => Some("is not up".to_owned()),
        Some(link) => match (link.mac, config.host) {
            (None, _) => Some("has no MAC address of six bytes".to_owned()),
            (Some(mac), IpAddr::V6(_)) => missing(name, mac),
            (Some(_), IpAddr::V4(_)) => None,
        },
    };
    match refusal {
        Some(refusal) => report.add("interface", Verdict::Fail, format!("{name} {refusal}")),
        None if link.is_some_and(|link| !link.running) => {
            report.add("interface", Verdict::Warn, format!("{name} has no carrier"));
            return true;
        }
        None => {
            report.add("interface", Verdict::Ok, format!("{name} is up"));
            return true;
        }
    }
    false
}

/// What is wrong with the one address that the host's switch lets through.
fn missing(name: &str, mac: MacAddr) -> Option<String> {
    const TENTATIVE: u32 = 0x40;
    const DAD_FAILED: u32 = 0x08;
    let wanted = control::guest_ipv6(mac);
    let table = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let flags = table.lines().find_map(|line| {
        // Address, number of the link, length, scope, flags, name.
        let fields: Vec<_> = line.split_whitespace().collect();
        let [address, _, _, _, flags, link] = fields.as_slice() else { return None };
        let address = Ipv6Addr::from_bits(u128::from_str_radix(address, 16).ok()?);
        (*link == name && address == wanted).then(|| u32::from_str_radix(flags, 16).ok())?
    });
    match flags {
        None => Some(format!("has not the address {wanted}, the only one that the host answers")),
        Some(flags) if flags & DAD_FAILED != 0 => Some(format!("may not use {wanted}: somebody else does")),
        Some(flags) if flags & TENTATIVE != 0 => {
            Some(format!("may not use {wanted} yet: it is being probed"))
        }
        Some(_) => None,
    }
}

async fn host(config: &Config, link: Option<&Link>, report: &mut Report) {
    let connected = match attempt(config, link) {
        Ok(task) => task.await,
        Err(error) => return report.add("host", Verdict::Fail, chain(&error)),
    };
    let mut stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return report.add("host", Verdict::Fail, chain(&error)),
        Err(error) => return report.add("host", Verdict::Fail, error.to_string()),
    };
    let node = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|certs| tls::certificate_identity(certs.first()?).ok());
    let node = node.map_or_else(|| "the host".to_owned(), |node| node.to_string());
    match tokio::time::timeout(OBJECTION, stream.read_u8()).await {
        Ok(Err(error)) => {
            report.add(
                "host",
                Verdict::Fail,
                format!("{node} closed the connection: {}", tls::in_words(error)),
            );
        }
        Ok(Ok(_)) | Err(_) => report.add("host", Verdict::Ok, format!("{node} answers at {}", config.host)),
    }
}

/// The VM forwards what it is handed; a redirect would tell the sender of a better way that there is not.
fn redirects(report: &mut Report) {
    let mut on = Vec::new();
    for entry in std::fs::read_dir("/proc/sys/net/ipv4/conf").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let value = std::fs::read_to_string(entry.path().join("send_redirects"));
        // What "default" says is copied to links that come.
        if name != "lo" && value.is_ok_and(|value| value.trim() != "0") {
            on.push(format!("net.ipv4.conf.{name}.send_redirects"));
        }
    }
    on.sort();
    if on.is_empty() {
        report.add("redirects", Verdict::Ok, "send_redirects is 0");
    } else {
        report.add("redirects", Verdict::Warn, format!("should be 0: {}", on.join(", ")));
    }
}

fn kernel(config: &Config, report: &mut Report) {
    const CAP_NET_ADMIN: u32 = 12;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = capabilities.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    if capabilities >> CAP_NET_ADMIN & 1 == 0 {
        report.add(
            "rights",
            Verdict::Warn,
            "without CAP_NET_ADMIN, nftables and XFRM cannot be looked at, nor neighbors kept",
        );
    } else {
        report.add("rights", Verdict::Ok, "CAP_NET_ADMIN");
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if config.keep_neighbors && version < (5, 16) {
        let text =
            format!("Linux {release} cannot keep gateways resolved (5.16 can): they are asked instead");
        report.add("kernel", Verdict::Warn, text);
    } else {
        report.add("kernel", Verdict::Ok, format!("Linux {release}"));
    }
    let socket: &Path = &config.status_socket;
    match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => report.add("client", Verdict::Ok, "runs"),
        Err(error) => {
            report.add("client", Verdict::Warn, format!("does not run ({}: {error})", socket.display()))
        }
    }
}
