//! The daemon's settings: a TOML file, checked once. Unknown keys are refused.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xenflow_proto::Name;

use crate::migration::toolstack;

/// Settings of `xenflow-dom0`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This host's name in the XenFlow database and in its certificate.
    pub node: String,
    /// Its certificate chain (PEM).
    pub cert: PathBuf,
    /// The key of its certificate (PEM).
    pub key: PathBuf,
    /// Certificates of the authorities that guests' certificates are checked against (PEM).
    pub ca: PathBuf,
    /// Revocation lists of these authorities (PEM); `crl.pem` beside `ca` by default, if it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl: Option<PathBuf>,
    /// Directory of the authority that renews guests' certificates, if this host has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer_dir: Option<PathBuf>,
    /// Remote of the OVSDB server that serves `Open_vSwitch`.
    #[serde(default = "default_db")]
    pub ovs_db: String,
    /// Remote of the OVSDB server that serves `XenFlow`; that of `ovs_db` by default.
    #[serde(default)]
    pub xenflow_db: Option<String>,
    /// Directory of `<bridge>.mgmt`.
    #[serde(default = "default_rundir")]
    pub ovs_rundir: PathBuf,
    /// The integration bridge; it belongs to XenFlow.
    #[serde(default = "default_bridge")]
    pub bridge: String,
    /// Where the daemon answers operators on this host: a unix socket.
    #[serde(default = "default_control_socket")]
    pub control_socket: PathBuf,
    /// Directory for what the daemon keeps over its restarts: the desired state, for a start while the XenFlow database is
    /// not to be reached. By default the one that systemd gives (`STATE_DIRECTORY`); without it nothing is kept.
    #[serde(default = "default_state_dir", skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// Most links, addresses, routes, next hops and neighbors kept of one guest.
    #[serde(default = "default_max_objects")]
    pub max_objects_per_router: usize,
    /// Most bytes that the daemon keeps of one guest's tables, by an estimate from above: a plain route is about 860, so
    /// that the default (2 GiB) has room for as many as `max_objects_per_router` by default. At least 1 MiB.
    #[serde(default = "default_max_bytes")]
    pub max_bytes_per_router: usize,
    /// Forward by as few flows as it takes, and not by one for each prefix of a router. What becomes of packets is the same.
    #[serde(default)]
    pub fib_aggregation: bool,
    /// Most changes a second that a router may send while others have sessions, after a burst of 50 seconds' worth; at
    /// least 1000, or 0: as many as it likes.
    #[serde(default = "default_max_change_rate")]
    pub max_change_rate: u32,
    /// Seconds for which a router's tables are held, and forwarded by, after its session was lost; 0: for ever.
    #[serde(default)]
    pub hold_time_s: u32,
    /// Whether `flow-restore-wait` is armed while the integration bridge is the only one of the switch: then the
    /// kernel forwards on while `ovs-vswitchd` restarts.
    #[serde(default = "default_true")]
    pub flow_restore_wait: bool,
    /// Seconds between two looks at the switch's counters; 0: they are not looked at.
    #[serde(default = "default_statistics")]
    pub statistics_interval_s: u32,
    /// What is logged: a level, and others for single modules, as `info,openflow=debug`.
    #[serde(default = "default_log")]
    pub log: String,
    /// How uplinks are shared.
    #[serde(default)]
    pub bandwidth: Bandwidth,
    /// How routers come and go.
    #[serde(default)]
    pub migration: Migration,
}

/// How routers come and go: section `[migration]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Migration {
    /// Where the daemon listens for nodes that a router leaves: `ADDRESS:PORT`, or `ADDRESS` with port 6642. Without it no move
    /// here can be planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Where these nodes reach it, if that is not where it listens: because something is between, or it listens at every
    /// address. In the same form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What moves guests from here.
    #[serde(default)]
    pub toolstack: toolstack::Config,
}

impl Migration {
    /// The port by default.
    pub const PORT: u16 = 6642;

    /// Where the daemon listens, if it takes planned moves.
    #[must_use]
    pub fn listen(&self) -> Option<SocketAddr> {
        self.listen.as_deref().and_then(endpoint)
    }

    /// Where others reach it.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.listen().map(|listen| self.address.as_deref().and_then(endpoint).unwrap_or(listen))
    }

    /// The form that has everything in it; else the key, its value and the rule.
    fn whole(&mut self) -> Result<(), (&'static str, String, &'static str)> {
        for (key, text) in [("migration.listen", &mut self.listen), ("migration.address", &mut self.address)]
        {
            if let Some(text) = text {
                let rule = "an address as 10.0.0.1, 10.0.0.1:6642 or [2001:db8::1]:6642";
                *text = endpoint(text).ok_or_else(|| (key, text.clone(), rule))?.to_string();
            }
        }
        let refuse = |key, text: &str, rule| Err((key, text.to_owned(), rule));
        let is_nowhere =
            |text: &str| endpoint(text).is_none_or(|it| it.ip().is_unspecified() || it.port() == 0);
        match (self.listen.as_deref(), self.address.as_deref()) {
            (None, Some(address)) => {
                refuse("migration.address", address, "it is told to others only with migration.listen")
            }
            (Some(listen), _) if endpoint(listen).is_some_and(|it| it.port() == 0) => {
                refuse("migration.listen", listen, "the port is 1 to 65535")
            }
            (Some(listen), None) if is_nowhere(listen) => refuse(
                "migration.listen",
                listen,
                "nobody can connect to that: migration.address says where others reach this node",
            ),
            (Some(_), Some(address)) if is_nowhere(address) => {
                refuse("migration.address", address, "nobody can connect to that")
            }
            (Some(_) | None, _) => Ok(()),
        }
    }
}

fn endpoint(text: &str) -> Option<SocketAddr> {
    let address = || Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, Migration::PORT));
    text.parse().ok().or_else(address)
}

/// How uplinks are shared: section `[bandwidth]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bandwidth {
    /// Who shapes.
    pub driver: Driver,
    /// How a link is divided.
    pub policy: Policy,
    /// Milliseconds between two looks at the queues, 100 to 60,000.
    pub period_ms: u32,
    /// Looks that a load is the mean of, 1 to 60.
    pub samples: u8,
}

impl Default for Bandwidth {
    fn default() -> Self {
        Self { driver: Driver::Auto, policy: Policy::Weights, period_ms: 1000, samples: 3 }
    }
}

impl Bandwidth {
    /// Who shapes: `tc`, which can set turns and nest classes, unless the policy is what Open vSwitch does by itself or what
    /// the paper did with it. Never [`Driver::Auto`].
    #[must_use]
    pub const fn driver(&self) -> Driver {
        match (self.driver, self.policy) {
            (Driver::Auto, Policy::Static | Policy::Paper) => Driver::Ovs,
            (Driver::Auto, Policy::Weights | Policy::Fair) => Driver::Tc,
            (chosen, _) => chosen,
        }
    }
}

/// Who shapes an uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// What the policy is best off with: see [`Bandwidth::driver`].
    Auto,
    /// HTB as `tc` sets it, beside Open vSwitch.
    Tc,
    /// Open vSwitch's own linux-htb.
    Ovs,
    /// Nobody.
    Off,
}

/// How a link is divided; see [`xenflow_qos::law::Policy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Contracts, and what is left as HTB does it.
    Static,
    /// As the paper has it.
    Paper,
    /// Turns in proportion to the contracts.
    Weights,
    /// Ceilings in proportion to the contracts.
    Fair,
}

impl Policy {
    /// The law's.
    #[must_use]
    pub const fn law(self) -> xenflow_qos::law::Policy {
        use xenflow_qos::law::Policy;
        match self {
            Self::Static => Policy::Static,
            Self::Paper => Policy::Paper,
            Self::Weights => Policy::Weights,
            Self::Fair => Policy::Fair,
        }
    }
}

/// A slower router would be taken for one that is gone: it waits for its largest message.
const MIN_CHANGE_RATE: u32 = 1000;
/// A guest's own addresses and links need some: less would keep every router out.
const MIN_BYTES: usize = 1 << 20;

fn default_db() -> String {
    "unix:/var/run/openvswitch/db.sock".into()
}

fn default_rundir() -> PathBuf {
    "/var/run/openvswitch".into()
}

fn default_bridge() -> String {
    "br-xf".into()
}

/// Of `control_socket`.
pub const CONTROL_SOCKET: &str = "/run/xenflow/xenflow-dom0.sock";

fn default_control_socket() -> PathBuf {
    CONTROL_SOCKET.into()
}

fn default_state_dir() -> Option<PathBuf> {
    // systemd.exec(5): several are separated by colons.
    std::env::split_paths(&std::env::var_os("STATE_DIRECTORY")?)
        .next()
        .filter(|dir| !dir.as_os_str().is_empty())
}

fn default_max_objects() -> usize {
    2_500_000
}

fn default_max_bytes() -> usize {
    2 << 30
}

fn default_max_change_rate() -> u32 {
    20_000
}

fn default_true() -> bool {
    true
}

fn default_statistics() -> u32 {
    5
}

fn default_log() -> String {
    "info".into()
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not the TOML it should be; the message has line and key.
    #[error("{path}: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: toml::de::Error,
    },
    /// A value is out of its range.
    #[error("{path}: {key} = \"{value}\": {rule}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        rule: String,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the key and the rule.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(path, &text)
    }

    /// [`Config::load`] of a text; `path` is for the messages.
    ///
    /// # Errors
    /// See [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut config: Self =
            toml::from_str(text).map_err(|source| ConfigError::Syntax { path: path.into(), source })?;
        let refuse = |key, value: &str, rule: String| ConfigError::Value {
            path: path.into(),
            key,
            value: value.into(),
            rule,
        };
        if let Err(error) = config.node.parse::<Name>() {
            return Err(refuse("node", &config.node, error.to_string()));
        }
        for (key, remotes) in [("ovs_db", Some(&config.ovs_db)), ("xenflow_db", config.xenflow_db.as_ref())] {
            if let Some(remotes) = remotes
                && let Err(error) = parse_remotes(remotes)
            {
                return Err(refuse(key, remotes, error.to_string()));
            }
        }
        if config.bridge.is_empty() || config.bridge.len() > 15 || config.bridge.contains(['/', ' ']) {
            return Err(refuse(
                "bridge",
                &config.bridge,
                "a bridge name has 1 to 15 characters, no / or blank".into(),
            ));
        }
        if (1..MIN_CHANGE_RATE).contains(&config.max_change_rate) {
            let value = config.max_change_rate.to_string();
            return Err(refuse("max_change_rate", &value, format!("at least {MIN_CHANGE_RATE}, or 0")));
        }
        if config.max_bytes_per_router < MIN_BYTES {
            let value = config.max_bytes_per_router.to_string();
            return Err(refuse("max_bytes_per_router", &value, format!("at least {MIN_BYTES}")));
        }
        let Bandwidth { period_ms, samples, .. } = config.bandwidth;
        if !(100..=60_000).contains(&period_ms) {
            return Err(refuse("bandwidth.period_ms", &period_ms.to_string(), "100 to 60000".into()));
        }
        if !(1..=60).contains(&samples) {
            return Err(refuse("bandwidth.samples", &samples.to_string(), "1 to 60".into()));
        }
        if let Err((key, value, rule)) = config.migration.whole() {
            return Err(refuse(key, &value, rule.to_owned()));
        }
        if let Err(refused) = config.migration.toolstack.check() {
            return Err(refuse(refused.key, &refused.value, refused.rule.to_owned()));
        }
        if let Err(error) = config.log.parse::<tracing_subscriber::filter::Targets>() {
            return Err(refuse("log", &config.log, error.to_string()));
        }
        Ok(config)
    }

    /// The files that decide who may speak.
    #[must_use]
    pub fn credentials(&self) -> crate::tls::Files {
        let Self { ca, cert, key, crl, .. } = self.clone();
        crate::tls::Files { ca, cert, key, crl }
    }

    /// The remote of the XenFlow database.
    #[must_use]
    pub fn xenflow_db(&self) -> &str {
        self.xenflow_db.as_deref().unwrap_or(&self.ovs_db)
    }
}

/// A list of OVSDB remotes, separated by commas.
///
/// # Errors
/// The first that is none.
pub fn parse_remotes(text: &str) -> Result<Vec<ovsdb::Remote>, ovsdb::RemoteParseError> {
    ovsdb::Remote::parse_list(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "node = \"a\"\ncert = \"a.pem\"\nkey = \"a.key\"\nca = \"ca.pem\"\n";

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("x.toml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.bridge, "br-xf");
        assert_eq!(config.control_socket, Path::new(CONTROL_SOCKET));
        assert!(config.flow_restore_wait);
        assert_eq!(config.statistics_interval_s, 5);
        assert_eq!((config.max_objects_per_router, config.max_bytes_per_router), (2_500_000, 2 << 30));
        assert_eq!((config.max_change_rate, config.hold_time_s), (20_000, 0));
        assert_eq!(config.xenflow_db(), "unix:/var/run/openvswitch/db.sock");
    }

    #[test]
    fn refusals_name_key_value_and_rule() {
        let unknown = parse(&format!("{GOOD}nod = 1\n")).unwrap_err();
        assert!(unknown.contains("line 5") && unknown.contains("unknown field `nod`"), "{unknown}");
        let node = parse(&GOOD.replace("\"a\"", "\"A b\"")).unwrap_err();
        assert!(node.starts_with("x.toml: node = \"A b\": \"A b\" is not a name"), "{node}");
        let remote = parse(&format!("{GOOD}ovs_db = \"udp:1\"\n")).unwrap_err();
        assert!(remote.starts_with("x.toml: ovs_db = \"udp:1\": "), "{remote}");
        let bridge = parse(&format!("{GOOD}bridge = \"a/b\"\n")).unwrap_err();
        assert!(bridge.contains("1 to 15 characters"), "{bridge}");
        let rate = parse(&format!("{GOOD}max_change_rate = 999\n")).unwrap_err();
        assert_eq!(rate, "x.toml: max_change_rate = \"999\": at least 1000, or 0");
        let bytes = parse(&format!("{GOOD}max_bytes_per_router = 1000\n")).unwrap_err();
        assert_eq!(bytes, "x.toml: max_bytes_per_router = \"1000\": at least 1048576");
        let driver =
            |section: &str| parse(&format!("{GOOD}[bandwidth]\n{section}")).unwrap().bandwidth.driver();
        assert_eq!(driver(""), Driver::Tc);
        assert_eq!(driver("policy = \"static\""), Driver::Ovs);
        assert_eq!(driver("policy = \"static\"\ndriver = \"tc\""), Driver::Tc);
        let period = parse(&format!("{GOOD}[bandwidth]\nperiod_ms = 99\n")).unwrap_err();
        assert_eq!(period, "x.toml: bandwidth.period_ms = \"99\": 100 to 60000");
        let samples = parse(&format!("{GOOD}[bandwidth]\nsamples = 0\n")).unwrap_err();
        assert_eq!(samples, "x.toml: bandwidth.samples = \"0\": 1 to 60");
        let driver = parse(&format!("{GOOD}[bandwidth]\ndriver = \"htb\"\n")).unwrap_err();
        assert!(driver.contains("unknown variant `htb`, expected one of `auto`"), "{driver}");
        assert!(parse(&format!("{GOOD}max_change_rate = 0\nhold_time_s = 60\n")).is_ok());
    }

    #[test]
    fn moves_come_in_at_an_address_that_others_can_reach() {
        let migration = |section: &str| {
            let config = parse(&format!("{GOOD}[migration]\n{section}"))?;
            // What is printed says the same.
            let printed = toml::to_string(&config).unwrap();
            assert_eq!(parse(&printed).as_ref(), Ok(&config), "{printed}");
            Ok::<_, String>([config.migration.listen(), config.migration.address()])
        };
        let at = |text: &str| Some(text.parse().unwrap());
        assert_eq!(parse(GOOD).unwrap().migration.address(), None);
        assert_eq!(migration(""), Ok([None, None]));
        let whole = Ok([at("10.0.0.1:6642"), at("10.0.0.1:6642")]);
        assert_eq!(migration("listen = \"10.0.0.1\""), whole);
        assert_eq!(migration("listen = \"10.0.0.1:6642\""), whole);
        assert_eq!(
            migration("listen = \"[::]:7000\"\naddress = \"2001:db8::1\""),
            Ok([at("[::]:7000"), at("[2001:db8::1]:6642")])
        );
        let refused = |section: &str, key: &str, value: &str, rule: &str| {
            let said = migration(section).unwrap_err();
            assert_eq!(said, format!("x.toml: migration.{key} = \"{value}\": {rule}"));
        };
        let form = "an address as 10.0.0.1, 10.0.0.1:6642 or [2001:db8::1]:6642";
        refused("listen = \"host-a:6642\"", "listen", "host-a:6642", form);
        refused("listen = \"10.0.0.1\"\naddress = \"10.0.0.1:66420\"", "address", "10.0.0.1:66420", form);
        refused("listen = \"10.0.0.1:0\"", "listen", "10.0.0.1:0", "the port is 1 to 65535");
        let everywhere = "nobody can connect to that: migration.address says where others reach this node";
        refused("listen = \"0.0.0.0\"", "listen", "0.0.0.0:6642", everywhere);
        let nowhere = "nobody can connect to that";
        refused("listen = \"0.0.0.0\"\naddress = \"::\"", "address", "[::]:6642", nowhere);
        let alone = "it is told to others only with migration.listen";
        refused("address = \"10.0.0.1\"", "address", "10.0.0.1:6642", alone);
        let unknown = migration("port = 1").unwrap_err();
        let known = "unknown field `port`, expected one of `listen`, `address`, `toolstack`";
        assert!(unknown.contains(known), "{unknown}");
    }

    #[test]
    fn what_moves_guests_is_set_and_checked() {
        let text = format!(
            "{GOOD}[migration.toolstack]\nhosts = {{ b = \"10.0.0.2\" }}\n[migration.toolstack.xl]\ntransport = \"ssh -q\"\n"
        );
        let config = parse(&text).unwrap();
        let toolstack = &config.migration.toolstack;
        assert_eq!(toolstack.host(&"b".parse().unwrap()).as_str(), "10.0.0.2");
        assert_eq!(
            (toolstack.xl.command.as_str(), toolstack.xl.transport.as_deref()),
            ("xl", Some("ssh -q"))
        );
        // Moves go from here, though none comes.
        assert_eq!(config.migration.listen(), None);
        let printed = toml::to_string(&config).unwrap();
        assert_eq!(parse(&printed), Ok(config), "{printed}");
        let refused = parse(&text.replace("ssh -q", "-q")).unwrap_err();
        assert!(
            refused.starts_with("x.toml: migration.toolstack.xl.transport = \"-q\": a command"),
            "{refused}"
        );
    }
}
