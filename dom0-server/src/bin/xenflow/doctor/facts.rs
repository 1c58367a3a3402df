//! What is known of the host and of the database: what the checks look at. Reads rows into types, and judges nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dom0_server::db::{Desired, NodeStatus, Statistics, Status};
use dom0_server::shaper::report::Report;
use ovsdb::{OpResult, Operation, Row, Uuid};
use xenflow_proto::MacAddr;
use xenflow_proto::control::HOST_PORT_NAME;

/// Everything. A fact that could not be had is the reason why, in words.
pub(super) struct Facts {
    /// The host's clock: milliseconds since the Unix epoch.
    pub(super) now_ms: u64,
    /// Of the daemon's settings: the node's name; `None` if there is no such file.
    pub(super) node: Option<Result<String, String>>,
    /// The file of these settings.
    pub(super) config: PathBuf,
    /// Name of the integration bridge.
    pub(super) bridge: String,
    /// The host's kernel, as `uname -r`.
    pub(super) kernel: Option<String>,
    /// Whether its module `openvswitch` is there.
    pub(super) module: bool,
    pub(super) switch: Result<Switch, String>,
    /// Flows of the bridge: all, and those of XenFlow; `None`: no bridge to ask.
    pub(super) flows: Option<Result<(u64, u64), String>>,
    /// Whether the clock is synchronized, where somebody knows.
    pub(super) synchronized: Option<bool>,
    pub(super) disks: Vec<Disk>,
    pub(super) trust: Trust,
    /// The servers of the XenFlow database, by remote; none if only the host is looked at.
    pub(super) servers: Vec<(String, Result<Server, String>)>,
    /// What the database says; `None` if only the host is looked at.
    pub(super) fleet: Option<Result<Fleet, String>>,
    /// How its daemon says that its uplinks are shared; `None` if there are no settings that say where it answers.
    pub(super) shared: Option<Result<Report, String>>,
}

impl Facts {
    pub(super) const fn now_s(&self) -> i64 {
        (self.now_ms / 1000).cast_signed()
    }

    /// The database, if it is known.
    pub(super) fn known(&self) -> Option<&Fleet> {
        self.fleet.as_ref()?.as_ref().ok()
    }
}

/// Room in a directory.
pub(super) struct Disk {
    pub(super) dir: PathBuf,
    /// Bytes that are free for everybody.
    pub(super) free: u64,
    pub(super) total: u64,
}

/// A certificate or list and its time, in seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Life {
    /// Whose.
    pub(super) of: String,
    pub(super) begin: i64,
    pub(super) end: i64,
}

/// The files that decide who may speak. Empty where there are no settings.
#[derive(Default)]
pub(super) struct Trust {
    pub(super) own: Option<Result<Life, String>>,
    /// Who signed the own certificate.
    pub(super) issuer: Option<String>,
    pub(super) authorities: Option<Result<Vec<Life>, String>>,
    /// Times of the revocation lists; `None` if there is no such file.
    pub(super) lists: Option<Result<Vec<Life>, String>>,
}

/// What Open vSwitch says of itself.
#[derive(Debug, Default)]
pub(super) struct Switch {
    pub(super) version: Option<String>,
    /// `flow-restore-wait` is set.
    pub(super) restore_wait: bool,
    /// By XenFlow's daemon.
    pub(super) restore_is_ours: bool,
    /// Configurations that `ovs-vswitchd` has not realised yet.
    pub(super) behind: i64,
    pub(super) bridges: Vec<Bridge>,
}

#[derive(Debug, Default)]
pub(super) struct Bridge {
    pub(super) name: String,
    /// Empty: `system`.
    pub(super) datapath: String,
    pub(super) fail_mode: Option<String>,
    pub(super) protocols: Vec<String>,
    pub(super) ports: Vec<Port>,
}

/// An interface of a bridge, and what is set on its port.
#[derive(Debug, Clone, Default)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) iface_id: Option<String>,
    pub(super) attached_mac: Option<MacAddr>,
    /// The bridge's own, or XenFlow's.
    pub(super) is_own: bool,
    pub(super) mtu: Option<i64>,
    pub(super) has_link: bool,
    pub(super) error: Option<String>,
}

/// Reads what [`Switch::parse`] takes.
pub(super) fn select_switch() -> Vec<Operation> {
    ["Open_vSwitch", "Bridge", "Port", "Interface"].map(Operation::select).into()
}

impl Switch {
    /// The results of [`select_switch`].
    pub(super) fn parse(results: &[OpResult]) -> Result<Self, ovsdb::ColumnError> {
        let rows = |at: usize| results.get(at).map(OpResult::rows).unwrap_or_default();
        let by_uuid = |at: usize| -> BTreeMap<Uuid, &Row> {
            rows(at).iter().filter_map(|row| Some((row.uuid("_uuid").ok()?, row))).collect()
        };
        let (bridges, all_ports, interfaces) = (by_uuid(1), by_uuid(2), by_uuid(3));
        let mut switch = Self::default();
        let Some(root) = rows(0).first() else { return Ok(switch) };
        switch.version = root.opt_str("ovs_version")?.map(str::to_owned);
        switch.restore_wait = root.map_get("other_config", "flow-restore-wait")? == Some("true");
        switch.restore_is_ours = root.map_get("external_ids", "xenflow-flow-restore-wait")? == Some("armed");
        switch.behind = root.int("next_cfg")? - root.int("cur_cfg")?;
        for bridge in root.set_uuid("bridges")?.into_iter().filter_map(|uuid| bridges.get(&uuid)) {
            let mut ports = Vec::new();
            for port in bridge.set_uuid("ports")?.into_iter().filter_map(|uuid| all_ports.get(&uuid)) {
                for interface in
                    port.set_uuid("interfaces")?.into_iter().filter_map(|uuid| interfaces.get(&uuid))
                {
                    ports.push(Port::parse(bridge, port, interface)?);
                }
            }
            ports.sort_by(|a, b| a.name.cmp(&b.name));
            switch.bridges.push(Bridge {
                name: bridge.str("name")?.to_owned(),
                datapath: bridge.str("datapath_type")?.to_owned(),
                fail_mode: bridge.opt_str("fail_mode")?.map(str::to_owned),
                protocols: bridge.set_str("protocols")?.into_iter().map(str::to_owned).collect(),
                ports,
            });
        }
        switch.bridges.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(switch)
    }

    pub(super) fn bridge(&self, name: &str) -> Option<&Bridge> {
        self.bridges.iter().find(|bridge| bridge.name == name)
    }
}

impl Port {
    fn parse(bridge: &Row, port: &Row, interface: &Row) -> Result<Self, ovsdb::ColumnError> {
        let name = interface.str("name")?;
        let is_ours = |row: &Row| Ok(row.map_get("external_ids", "created-by")? == Some("xenflow"));
        let mac = interface.map_get("external_ids", "attached-mac")?;
        Ok(Self {
            name: name.to_owned(),
            iface_id: interface.map_get("external_ids", "iface-id")?.map(str::to_owned),
            attached_mac: mac.and_then(|mac| mac.to_ascii_lowercase().parse().ok()),
            is_own: [bridge.str("name")?, HOST_PORT_NAME].contains(&name)
                || is_ours(port)?
                || is_ours(interface)?,
            mtu: interface.opt_int("mtu")?,
            has_link: interface.opt_str("link_state")? == Some("up"),
            error: interface.opt_str("error")?.map(str::to_owned),
        })
    }
}

/// How a server serves the XenFlow database: its row in `_Server`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    /// `standalone` or `clustered`.
    pub(super) model: String,
    /// It has contact with most of its cluster.
    pub(super) connected: bool,
    pub(super) leader: bool,
}

impl Server {
    pub(super) const COLUMNS: [&'static str; 3] = ["model", "connected", "leader"];

    pub(super) fn parse(row: &Row) -> Result<Self, ovsdb::ColumnError> {
        Ok(Self {
            model: row.str("model")?.to_owned(),
            connected: row.bool("connected")?,
            leader: row.bool("leader")?,
        })
    }
}

/// What the XenFlow database says.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    pub(super) desired: Desired,
    /// Rows that were left out, with the reason.
    pub(super) invalid: Vec<String>,
    pub(super) status: Vec<Status>,
    pub(super) statistics: Vec<Statistics>,
    /// A second look at them; none was needed.
    pub(super) later: Option<Result<Vec<Statistics>, String>>,
    pub(super) nodes: Vec<NodeStatus>,
}
