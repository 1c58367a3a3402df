//! A look at everything that a session and the fast path need, before there is one: `xenflow-guest check`. I/O. Changes
//! nothing, and disturbs no client that runs: a session begins with a `Hello`, which is not said here.

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError};
use serde::Serialize;
use tokio::io::AsyncReadExt;
use xenflow_proto::table::Link;
use xenflow_proto::{MacAddr, control};

use crate::config::Config;
use crate::connection::{LinkError, Place, attempt, chain};
use crate::control::candidates;
use crate::obstacles::{describe, survey};
use crate::renew;
use crate::survey::Surveyor;
use crate::tls::{self, Lists, TlsError, Trust};

/// A host that refuses the certificate says so after the handshake (TLS 1.3), at once.
const OBJECTION: Duration = Duration::from_millis(500);
/// The running client answers at once, in one line.
const ANSWER: Duration = Duration::from_secs(2);
const ANSWER_BYTES: u64 = 1 << 20;
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
    /// What to do about it, where something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Line {
    /// Something without which nothing works.
    #[must_use]
    pub fn failure(check: &'static str, detail: String, remedy: &str) -> Self {
        Self { check, verdict: Verdict::Fail, detail, remedy: Some(remedy.to_owned()) }
    }
}

#[derive(Default)]
struct Report(Vec<Line>);

impl Report {
    fn ok(&mut self, check: &'static str, detail: impl Into<String>) {
        self.0.push(Line { check, verdict: Verdict::Ok, detail: detail.into(), remedy: None });
    }

    fn warn(&mut self, check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) {
        let (detail, remedy) = (detail.into(), Some(remedy.into()));
        self.0.push(Line { check, verdict: Verdict::Warn, detail, remedy });
    }

    fn fail(&mut self, check: &'static str, detail: impl Into<String>, remedy: impl AsRef<str>) {
        self.0.push(Line::failure(check, detail.into(), remedy.as_ref()));
    }
}

/// Looks at all of it, as the client would.
pub async fn check(config: &Config) -> Vec<Line> {
    let mut report = Report::default();
    let trust = credentials(config, &mut report);
    let facts = Surveyor::default().facts();
    let links = || facts.links.iter().map(|facts| &facts.link);
    let places = match &config.control_interface {
        Some(name) => named(config, name, links().find(|link| link.name == *name), &mut report),
        None => any(links(), &mut report),
    };
    if let Some((places, trust)) = places.zip(trust) {
        host(config, trust, places, &mut report).await;
    }
    let name = |ifindex| {
        let link = links().find(|link| link.ifindex == ifindex);
        link.map_or_else(|| format!("link {ifindex}"), |link| link.name.clone())
    };
    let obstacles = survey(&facts).obstacles;
    for obstacle in &obstacles {
        let detail = format!("left to this guest: {}", describe(obstacle, name));
        report.warn("forwarding", detail, "undo that if the host should forward such packets");
    }
    if obstacles.is_empty() {
        report.ok("forwarding", "nothing in this kernel is in the host's way");
    }
    redirects(&mut report);
    kernel(config, &mut report);
    client(config, &mut report);
    report.0
}

/// Whom to trust, if it makes sense to connect.
fn credentials(config: &Config, report: &mut Report) -> Option<Trust> {
    let key = &config.key;
    match std::fs::metadata(key).map(|found| found.permissions().mode() & 0o7777) {
        Ok(mode) if mode & 0o077 == 0 => {
            report.ok("key", format!("{} has mode {mode:04o}", key.display()));
        }
        Ok(mode) => {
            let text = format!("{} has mode {mode:04o}: others than its owner may read it", key.display());
            report.warn("key", text, format!("chmod 600 {}", key.display()));
        }
        // What follows names it.
        Err(_) => {}
    }
    let read = Trust::read(config, None).and_then(|trust| {
        tls::client_config(config, trust.clone())?;
        Ok((trust, renew::current(config)?))
    });
    let (trust, validity) = match read {
        Ok(read) => read,
        Err(error) => {
            let remedy = match &error {
                TlsError::Pem { .. } | TlsError::Empty(_) => {
                    "copy the three files that `xenflow pki issue router NAME` wrote at the host, and ca.pem among them"
                }
                TlsError::Ca { .. } => "copy ca.pem from the host anew",
                TlsError::Validity(_) => "use another certificate",
                TlsError::Own { .. } | TlsError::NoRouter { .. } => {
                    "use the certificate of this router, or correct `router`"
                }
                TlsError::NoList(_)
                | TlsError::List { .. }
                | TlsError::Forged { .. }
                | TlsError::ListsGone(_) => "copy crl.pem from the host anew",
                TlsError::Key(_) => "use the certificate and the key of the same `xenflow pki issue`",
            };
            report.fail("certificate", chain(&error), remedy);
            return None;
        }
    };
    let now = renew::now();
    let (whose, days) = (format!("that of router {}", config.router), |time: Duration| time.as_secs() / DAY);
    let again = format!("`xenflow pki renew router {}` at the host, and copy the files", config.router);
    if now < validity.not_before {
        let left = (validity.not_before - now).as_secs();
        report.fail("certificate", format!("{whose}, is not valid for another {left} s"), "set the clock");
    } else if now > validity.not_after {
        let text = format!("{whose}, expired {} days ago", days(now - validity.not_after));
        report.fail("certificate", text, again);
    } else {
        let left = format!("{whose}, ends in {} days", days(validity.not_after - now));
        match renew::due(validity, now).is_zero() {
            true => report.warn(
                "certificate",
                format!("{left}, and was not renewed yet"),
                format!("give the host's daemon an issuer_dir, or {again}"),
            ),
            false => report.ok("certificate", left),
        }
    }
    revocations(config, trust.lists(), report);
    Some(trust)
}

/// Whether there is a list, and until when it is the latest.
fn revocations(config: &Config, lists: &Lists, report: &mut Report) {
    let again = "copy what `xenflow pki export` prints at the host to ca.pem";
    let count = lists.len();
    let Some(due) = lists.due() else {
        return match count {
            0 => report.warn(
                "revocations",
                format!(
                    "no list in {} or {}: a node that was revoked is trusted until its certificate ends",
                    config.ca.display(),
                    config.lists().display()
                ),
                again,
            ),
            _ => report.ok("revocations", format!("{count} lists, which do not say when they end")),
        };
    };
    let (now, text) = (renew::now(), format!("{count} {}", if count == 1 { "list" } else { "lists" }));
    match due.checked_sub(now) {
        Some(left) => {
            report.ok("revocations", format!("{text}, to be replaced in {} days", left.as_secs() / DAY))
        }
        None => report.warn(
            "revocations",
            format!(
                "{text}, should have been replaced {} days ago; what they revoke stays revoked",
                (now - due).as_secs() / DAY
            ),
            again,
        ),
    }
}

/// The interface that is configured, if it makes sense to connect by it.
fn named(config: &Config, name: &str, link: Option<&Link>, report: &mut Report) -> Option<Vec<Place>> {
    let place = match Place::named(name, link) {
        Ok(place) => place,
        Err(error) => {
            let remedy = if matches!(error, LinkError::InterfaceDown(_)) {
                format!("ip link set {name} up")
            } else {
                "plug in the control vif, or leave `control_interface` out: the client finds it".into()
            };
            report.fail("interface", error.to_string(), remedy);
            return None;
        }
    };
    if let (IpAddr::V6(_), Some((problem, remedy))) = (config.host, missing(name, place.mac)) {
        report.fail("interface", format!("{name} {problem}"), remedy);
        return None;
    }
    if link.is_some_and(|link| !link.running) {
        report.warn(
            "interface",
            format!("{name} has no carrier"),
            "plug its other end into the host's bridge",
        );
    } else {
        report.ok("interface", format!("{name} is up"));
    }
    Some(vec![place])
}

/// All interfaces that may be the one.
fn any<'a>(links: impl Iterator<Item = &'a Link>, report: &mut Report) -> Option<Vec<Place>> {
    match candidates(links, |_| false) {
        Ok(places) => Some(places),
        Err(error) => {
            let remedy = "plug in the control vif, and `ip link set NAME up`";
            report.fail("interface", error.to_string(), remedy);
            None
        }
    }
}

/// What is wrong with the one address that the host's switch lets through, and what to do about it.
fn missing(name: &str, mac: MacAddr) -> Option<(String, String)> {
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
        None => {
            let remedy = format!("ip address add {wanted}/64 dev {name}");
            Some((format!("has not the address {wanted}, the only one that the host answers"), remedy))
        }
        Some(flags) if flags & DAD_FAILED != 0 => {
            let remedy = "give the control vif a MAC address of its own".to_owned();
            Some((format!("may not use {wanted}: somebody else does"), remedy))
        }
        Some(flags) if flags & TENTATIVE != 0 => {
            Some((format!("may not use {wanted} yet: it is being probed"), "wait a second".to_owned()))
        }
        Some(_) => None,
    }
}

async fn host(config: &Config, trust: Trust, places: Vec<Place>, report: &mut Report) {
    let is_search = config.control_interface.is_none();
    let connected = match attempt(config, trust, places) {
        Ok(task) => task.await.unwrap_or_else(|error| Err(LinkError::Io(std::io::Error::other(error)))),
        Err(error) => Err(error),
    };
    let (mut stream, place) = match connected {
        Ok(found) => found,
        Err(error) => return report.fail("host", chain(&error), remedy(config, &error)),
    };
    let name = &place.name;
    if is_search {
        report.ok("interface", format!("{name}: a node of the authority answers there"));
    }
    let node = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|certs| tls::certificate_identity(certs.first()?).ok());
    let node = node.map_or_else(|| "the host".to_owned(), |node| node.to_string());
    match tokio::time::timeout(OBJECTION, stream.read_u8()).await {
        Ok(Err(error)) => {
            let remedy = refusal(config, &error);
            let error = tls::in_words(error);
            report.fail("host", format!("{node} closed the connection: {error}"), remedy);
        }
        Ok(Ok(_)) | Err(_) => report.ok("host", format!("{node} answers {} at {name}", config.host)),
    }
}

/// What to do where no node was found.
fn remedy(config: &Config, error: &LinkError) -> String {
    use std::io::ErrorKind;
    let vif = format!(
        "at the host: `xenflow show router {}` names the control vif, whose MAC is this interface's",
        config.router
    );
    if let LinkError::NoAddress { device, from } = error {
        return format!("ip address add {from}/64 dev {device}");
    }
    if let LinkError::Connect { source, .. } = error
        && source.kind() == ErrorKind::ConnectionRefused
    {
        return "start xenflow-dom0 at the host".into();
    }
    let LinkError::Handshake { source, .. } = error else { return vif };
    match tls::certificate_error(source) {
        Some(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "copy ca.pem from the host anew: its certificate is of another authority".into()
        }
        Some(CertificateError::Revoked) => {
            "the authority took this node's certificate back: move the router to another node, or issue the node's anew"
                .into()
        }
        Some(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => "set the clocks, or renew the certificate of the node".into(),
        _ => vif,
    }
}

/// What to do where the host does not take this router's certificate.
fn refusal(config: &Config, error: &std::io::Error) -> String {
    let renew = format!("`xenflow pki issue router {}` at the host, and copy the files", config.router);
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::AlertReceived(AlertDescription::UnknownCA)) => {
            format!("the certificate is of another authority than the host's: {renew}")
        }
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateRevoked)) => {
            format!("the certificate was revoked: {renew}")
        }
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)) => {
            format!("the certificate ended, or the clocks differ: {renew}")
        }
        _ => "the log of xenflow-dom0 at the host says why".into(),
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
        report.ok("redirects", "send_redirects is 0");
    } else {
        report.warn("redirects", format!("should be 0: {}", on.join(", ")), "set them to 0 with sysctl");
    }
}

fn kernel(config: &Config, report: &mut Report) {
    const CAP_NET_ADMIN: u32 = 12;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = capabilities.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    if capabilities >> CAP_NET_ADMIN & 1 == 0 {
        report.warn(
            "rights",
            "without CAP_NET_ADMIN, nftables and XFRM cannot be looked at, nor neighbors kept",
            "run it as root, or with that capability",
        );
    } else {
        report.ok("rights", "CAP_NET_ADMIN");
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if config.keep_neighbors && version < (5, 16) {
        let text =
            format!("Linux {release} cannot keep gateways resolved (5.16 can): they are asked instead");
        report.warn("kernel", text, "use Linux 5.16 or later");
    } else {
        report.ok("kernel", format!("Linux {release}"));
    }
}

/// The client that runs, and how it stands.
fn client(config: &Config, report: &mut Report) {
    let socket = &config.status_socket;
    let ask = || {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut line = String::new();
        BufReader::new(stream.take(ANSWER_BYTES)).read_line(&mut line)?;
        std::io::Result::Ok(line)
    };
    let line = match ask() {
        Ok(line) => line,
        Err(error) => {
            let text = format!("does not run ({}: {error})", socket.display());
            return report.warn("client", text, "start it: `xenflow-guest run`, or its systemd unit");
        }
    };
    let state: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
    let field = |key: &str| state.get(key).and_then(serde_json::Value::as_str);
    let is = field("state").unwrap_or("silent");
    let at = field("interface").map(|name| format!(" at {name}")).unwrap_or_default();
    match (is, field("node"), field("error")) {
        ("up", Some(node), _) => report.ok("client", format!("runs; its session with {node}{at} is up")),
        (_, _, Some(error)) => {
            report.warn("client", format!("runs and is {is}{at}: {error}"), "see the lines above")
        }
        (_, _, None) => report.warn("client", format!("runs and is {is}{at}"), "look again in a second"),
    }
}
