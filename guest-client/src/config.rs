//! The configuration file: TOML, unknown keys refused. Reads files; opens nothing else.
//!
//! It may be empty, or missing: the certificate tells the router, and the control interface is found.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xenflow_proto::{Name, control};

use crate::control::is_link_local;
use crate::tls::{self, TlsError};

/// Where the file is looked for. Without one, everything has its default.
pub const PATH: &str = "/etc/xenflow/guest.toml";

/// Effective values of the configuration.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// The router this guest is: the one in its certificate, which tells it by default.
    pub router: String,
    /// Link-local address of the host.
    pub host: IpAddr,
    /// The interface on the control network; without it, the one at which a host is found.
    pub control_interface: Option<String>,
    /// TCP port of the host.
    pub port: u16,
    /// PEM file with the certificates of the CA.
    pub ca: PathBuf,
    /// PEM file with the revocation lists of the CA; by default `crl.pem` beside `ca`, if it is there. Lists in `ca`
    /// count as well.
    pub crl: Option<PathBuf>,
    /// PEM file with this router's certificate.
    pub cert: PathBuf,
    /// PEM file with its key.
    pub key: PathBuf,
    /// Unix socket that tells the state.
    pub status_socket: PathBuf,
    /// Filter of the log, as "info" or "warn,xenflow_guest_client=debug".
    pub log: String,
    /// First wait before another try to reach the host, in milliseconds.
    pub reconnect_min_ms: u64,
    /// Longest wait, in milliseconds.
    pub reconnect_max_ms: u64,
    /// Bytes that the kernel may queue on the netlink socket.
    pub receive_buffer_bytes: usize,
    /// Longest time, in milliseconds, that a change may go unseen of which the kernel tells nothing: some of
    /// `/proc/sys`, tables of iptables-legacy, an XDP program attached through a link of BPF.
    pub survey_interval_ms: u64,
    /// From one audit of the kernel's tables to the next, in seconds, and at least 20 times what a dump of them takes:
    /// what no event told of is found then.
    pub audit_interval_s: u64,
    /// Have the kernel keep gateways resolved and ask stale neighbors whether they are still there. Without it,
    /// the host goes on sending to a neighbor that died or got another MAC.
    pub keep_neighbors: bool,
    /// Where FRR's zebra (`-M dplane_fpm_nl`) may ask which routes the host forwards, as 127.0.0.1:2620; by default
    /// nowhere. Only on the loopback: whoever connects is told.
    pub fpm_listen: Option<SocketAddr>,
}

/// As written in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    router: Option<String>,
    #[serde(default = "default_host")]
    host: String,
    control_interface: Option<String>,
    #[serde(default = "default_port")]
    port: u16,
    #[serde(default = "default_ca")]
    ca: PathBuf,
    crl: Option<PathBuf>,
    #[serde(default = "default_cert")]
    cert: PathBuf,
    #[serde(default = "default_key")]
    key: PathBuf,
    #[serde(default = "default_status_socket")]
    status_socket: PathBuf,
    #[serde(default = "default_log")]
    log: String,
    #[serde(default = "default_reconnect_min")]
    reconnect_min_ms: u64,
    #[serde(default = "default_reconnect_max")]
    reconnect_max_ms: u64,
    #[serde(default = "default_receive_buffer")]
    receive_buffer_bytes: usize,
    #[serde(default = "default_survey_interval")]
    survey_interval_ms: u64,
    #[serde(default = "default_audit_interval")]
    audit_interval_s: u64,
    #[serde(default = "default_keep_neighbors")]
    keep_neighbors: bool,
    fpm_listen: Option<SocketAddr>,
}

fn default_host() -> String {
    control::HOST_IPV6.to_string()
}

fn default_ca() -> PathBuf {
    "/etc/xenflow/ca.pem".into()
}

fn default_cert() -> PathBuf {
    "/etc/xenflow/router.pem".into()
}

fn default_key() -> PathBuf {
    "/etc/xenflow/router.key".into()
}

fn default_port() -> u16 {
    control::PORT
}

fn default_status_socket() -> PathBuf {
    "/run/xenflow-guest.sock".into()
}

fn default_log() -> String {
    "info".into()
}

fn default_reconnect_min() -> u64 {
    200
}

fn default_reconnect_max() -> u64 {
    5000
}

fn default_receive_buffer() -> usize {
    16 << 20
}

fn default_survey_interval() -> u64 {
    5000
}

fn default_audit_interval() -> u64 {
    60
}

fn default_keep_neighbors() -> bool {
    true
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not TOML, a key that is unknown, missing, or of the wrong type; the cause names line and key.
    #[error("{}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Line, key, expectation.
        source: Box<toml::de::Error>,
    },
    /// `router` is no name.
    #[error("router")]
    Router(#[source] xenflow_proto::identity::NameError),
    /// `router` is not said, and the certificate does not say it either.
    #[error("router is not given, and the certificate does not tell it")]
    Certificate(#[source] TlsError),
    /// `host` is no address.
    #[error(
        "host \"{0}\" is not an address, as fe80::1, fe80::1%eth0 or 169.254.0.1 (names are not looked up)"
    )]
    Host(String),
    /// `host` is routable.
    #[error("host {0} is not link-local: the control network has no other addresses")]
    HostScope(IpAddr),
    /// Two interfaces.
    #[error("host names interface \"{host}\", control_interface \"{key}\"")]
    TwoInterfaces {
        /// After the `%`.
        host: String,
        /// The key's value.
        key: String,
    },
    /// Not an interface name.
    #[error("control_interface \"{0}\" is not an interface name: 1 to 15 bytes, no space or slash")]
    Interface(String),
    /// Waits that make no sense.
    #[error("reconnect_min_ms is {min}, reconnect_max_ms {max}: 10 <= min <= max <= 3600000 is needed")]
    Reconnect {
        /// `reconnect_min_ms`.
        min: u64,
        /// `reconnect_max_ms`.
        max: u64,
    },
    /// Too often, or hardly ever.
    #[error("survey_interval_ms is {0}, not 100 to 3600000")]
    SurveyInterval(u64),
    /// All the time, or hardly ever. There is no way to have none: a table would go stale in silence.
    #[error("audit_interval_s is {0}, not 1 to 3600")]
    AuditInterval(u64),
    /// Others than this machine's could connect, or nobody.
    #[error("fpm_listen {0} is not a loopback address with a port, as 127.0.0.1:2620")]
    FpmListen(SocketAddr),
    /// `port` is 0.
    #[error("port is 0, not 1 to 65535")]
    Port,
    /// `log` is no filter.
    #[error("log \"{value}\" is not a filter, as \"info\" or \"warn,xenflow_guest_client=debug\"")]
    Log {
        /// Its value.
        value: String,
        /// Why.
        source: tracing_subscriber::filter::ParseError,
    },
}

impl Config {
    /// Reads and checks a file; without a name, the one at [`PATH`], if there is one.
    ///
    /// # Errors
    /// [`ConfigError`] names the key and the rule.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let is_optional = path.is_none();
        let path = path.unwrap_or(Path::new(PATH));
        let text = match std::fs::read_to_string(path) {
            Err(error) if is_optional && error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other.map_err(|source| ConfigError::Read { path: path.into(), source })?,
        };
        Self::parse(&text, path)
    }

    /// Checks the contents of a file; `path` is for errors.
    ///
    /// # Errors
    /// [`ConfigError`] names the key and the rule.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.into(), source: Box::new(source) })?;
        let router: Name = match &file.router {
            Some(router) => router.parse().map_err(ConfigError::Router)?,
            None => tls::router_of(&file.cert).map_err(ConfigError::Certificate)?,
        };
        let (address, zone) = match file.host.split_once('%') {
            Some((address, zone)) => (address, Some(zone.to_owned())),
            None => (file.host.as_str(), None),
        };
        let host: IpAddr = address.parse().map_err(|_| ConfigError::Host(file.host.clone()))?;
        if !is_link_local(host) {
            return Err(ConfigError::HostScope(host));
        }
        let control_interface = match (zone, file.control_interface) {
            (Some(host), Some(key)) if host != key => return Err(ConfigError::TwoInterfaces { host, key }),
            (zone, key) => zone.or(key),
        };
        let is_name = |name: &String| {
            matches!(name.len(), 1..=15)
                && !name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control())
        };
        if let Some(other) = control_interface.as_ref().filter(|name| !is_name(name)) {
            return Err(ConfigError::Interface(other.clone()));
        }
        let (min, max) = (file.reconnect_min_ms, file.reconnect_max_ms);
        if !(10..=max).contains(&min) || max > 3_600_000 {
            return Err(ConfigError::Reconnect { min, max });
        }
        if !(100..=3_600_000).contains(&file.survey_interval_ms) {
            return Err(ConfigError::SurveyInterval(file.survey_interval_ms));
        }
        if !(1..=3600).contains(&file.audit_interval_s) {
            return Err(ConfigError::AuditInterval(file.audit_interval_s));
        }
        if let Some(address) = file.fpm_listen.filter(|at| !at.ip().is_loopback() || at.port() == 0) {
            return Err(ConfigError::FpmListen(address));
        }
        if file.port == 0 {
            return Err(ConfigError::Port);
        }
        if let Err(source) = file.log.parse::<tracing_subscriber::filter::Targets>() {
            return Err(ConfigError::Log { value: file.log, source });
        }
        Ok(Self {
            router: router.to_string(),
            host,
            control_interface,
            port: file.port,
            ca: file.ca,
            crl: file.crl,
            cert: file.cert,
            key: file.key,
            status_socket: file.status_socket,
            log: file.log,
            reconnect_min_ms: min,
            reconnect_max_ms: max,
            receive_buffer_bytes: file.receive_buffer_bytes,
            survey_interval_ms: file.survey_interval_ms,
            audit_interval_s: file.audit_interval_s,
            keep_neighbors: file.keep_neighbors,
            fpm_listen: file.fpm_listen,
        })
    }

    /// Where revocation lists may be, besides `ca`.
    #[must_use]
    pub fn lists(&self) -> PathBuf {
        self.crl.clone().unwrap_or_else(|| self.ca.with_file_name("crl.pem"))
    }

    /// See the field.
    #[must_use]
    pub fn survey_interval(&self) -> Duration {
        Duration::from_millis(self.survey_interval_ms)
    }

    /// See the field.
    #[must_use]
    pub fn audit_interval(&self) -> Duration {
        Duration::from_secs(self.audit_interval_s)
    }

    /// First and longest wait before another try to reach the host.
    #[must_use]
    pub fn reconnect(&self) -> (Duration, Duration) {
        (Duration::from_millis(self.reconnect_min_ms), Duration::from_millis(self.reconnect_max_ms))
    }
}
