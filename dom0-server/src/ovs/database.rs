//! OVSDB: watches the ports of the integration bridge and the desired state, and makes the bridge and the control
//! port what they must be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ovsdb::{
    Condition, Datum, Event as Said, Monitor, Mutator, Operation, Remote, Row, RowChange, Session,
    SessionConfig, SessionHandle, Tls, Uuid,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use xenflow_flow_app::{MAX_QUEUE, pipeline};
use xenflow_proto::Name;
use xenflow_proto::control::{HOST_MAC, HOST_PORT_NAME};

use crate::chain::Chain;
use crate::clock::until;
use crate::core::{Event, Kept, kept_words};
use crate::db::location::Located;
use crate::db::{self, Desired};
use crate::kept::keeper::{Keeper, Source};
use crate::ovs::restore::{self, Restore, Stage, Step, View};
use crate::ports::{ControlPort, HOME_ID, SwitchBuild, SwitchPort, SwitchPorts};
use crate::shaper::plan::QueueOf;
use crate::shaper::rows::{CLASS_ID, NETWORK_ID};

const OPEN_VSWITCH: &str = "Open_vSwitch";
/// The versions that ovs-ofctl speaks by default, so that operators can look, and ours.
const PROTOCOLS: [&str; 4] = ["OpenFlow10", "OpenFlow13", "OpenFlow14", "OpenFlow15"];

/// Tables that look addresses up, and the fields that Open vSwitch keeps tries for there, at most three and in the
/// order of their names (`Flow_Table.prefixes`, ovs-vswitchd.conf.db(5)). A packet that finds a prefix then makes a
/// megaflow of that prefix; without its trie every address makes one of its own, since other flows of the table match
/// whole addresses.
const TRIES: [(u8, &[&str]); 3] = [
    (pipeline::ROUTE, &["ip_dst", "ipv6_dst"]),
    (pipeline::LOCAL, &["ip_dst", "ipv6_dst"]),
    (pipeline::SOURCE, &["ip_src", "ipv6_src"]),
];
/// In the `other_config` of the switch, where nobody has said otherwise: flows of the datapath stay that fewer packets a second come by,
/// also when the switch takes long to look at all of them (ovs-vswitchd.conf.db(5)). By default those of under five go then, and
/// come back with a packet that waits: the flows that a move has made ahead are such.
const KEEP_FLOWS: (&str, &str) = ("min-revalidate-pps", "0");
/// In the `external_ids` of rows that are XenFlow's.
const OWNER: (&str, &str) = ("created-by", "xenflow");

/// How long a start waits for the XenFlow database before it goes on with what was kept.
const PATIENCE: Duration = Duration::from_secs(3);

/// Watches the XenFlow database until the core is gone; `tls` is for `ssl:` remotes. What it says is kept, and a start
/// without it goes on with that. The handle is for writing status.
pub fn desired(
    remotes: Vec<Remote>,
    tls: Option<Tls>,
    node: Name,
    kept: Option<Keeper>,
    events: mpsc::Sender<Event>,
) -> SessionHandle {
    let mut config = SessionConfig::new(remotes).monitor(db::monitor());
    config.options.tls = tls;
    let mut session = Session::start(config);
    let handle = session.handle();
    tokio::spawn(async move {
        let mut rows = db::Rows::default();
        let mut left_out = BTreeSet::new();
        let mut known = None;
        let mut patience = kept.is_some().then(|| Instant::now() + PATIENCE);
        loop {
            let said = tokio::select! {
                said = session.next() => said,
                () = until(patience) => {
                    patience = None;
                    if let Some(kept) = &kept
                        && let Some((rows, saved_ms)) = kept.last().await
                    {
                        let kept = as_kept(&rows, saved_ms, &node);
                        if events.send(Event::Kept(kept)).await.is_err() {
                            return;
                        }
                    }
                    continue;
                }
            };
            let Some(said) = said else { return };
            let (changes, is_snapshot) = match said {
                Said::Snapshot { changes, .. } => (changes, true),
                Said::Update { changes, .. } => (changes, false),
                Said::Connected { remote } => {
                    tracing::info!(name: "database-up", database = "XenFlow", %remote, "XenFlow database connected");
                    continue;
                }
                Said::Disconnected { reason } => {
                    tracing::warn!(
                        name: "database-lost",
                        database = "XenFlow",
                        reason = %Chain(&reason),
                        "no XenFlow database: going on with what is known"
                    );
                    continue;
                }
            };
            patience = None;
            rows.apply(&changes);
            if let Some(kept) = &kept {
                kept.apply(Source::Desired, &changes);
            }
            let (desired, invalid) = Desired::assemble(&rows);
            let invalid: BTreeSet<String> = invalid.iter().map(ToString::to_string).collect();
            for row in invalid.difference(&left_out) {
                tracing::warn!(name: "problem", %row, "a row of the XenFlow database is left out");
            }
            for row in left_out.difference(&invalid) {
                tracing::info!(name: "problem-gone", %row, "a row of the XenFlow database is left out no more");
            }
            left_out = invalid;
            if (is_snapshot && known.is_none()) || known.as_ref() != Some(&desired) {
                known = Some(desired.clone());
                if events.send(Event::Desired(desired)).await.is_err() {
                    return;
                }
            }
        }
    });
    handle
}

fn as_kept(rows: &db::Rows, saved_ms: u64, node: &Name) -> Kept {
    let (desired, _) = Desired::assemble(rows);
    tracing::warn!(
        name: "problem",
        networks = desired.networks.len(),
        routers = desired.routers.len(),
        "no XenFlow database within {} s: {}",
        PATIENCE.as_secs(),
        kept_words(saved_ms)
    );
    Kept { desired, elsewhere: Located::read(rows).elsewhere(node), saved_ms }
}

/// Watches the integration bridge until the core is gone or the daemon ends, and keeps it as it must be; arms
/// `flow-restore-wait` if `restore` says so.
pub async fn ports(
    remotes: Vec<Remote>,
    bridge: String,
    restore: bool,
    mut stage: watch::Receiver<Stage>,
    mut home: watch::Receiver<Arc<BTreeSet<Uuid>>>,
    events: mpsc::Sender<Event>,
) {
    let monitor = Monitor::new(OPEN_VSWITCH)
        .table("Open_vSwitch", &["bridges", "other_config", "external_ids", "cur_cfg", "ovs_version"])
        .table("Bridge", &["name", "ports", "fail_mode", "protocols", "flow_tables", "datapath_type"])
        .table("Flow_Table", &["prefixes", "external_ids"])
        .table("Port", &["name", "interfaces", "qos"])
        .table("QoS", &["queues"])
        .table("Queue", &["external_ids"])
        .table(
            "Interface",
            &["name", "ofport", "ifindex", "external_ids", "type", "mac", "link_state", "mtu"],
        );
    let mut session = Session::start(SessionConfig::new(remotes).monitor(monitor));
    let handle = session.handle();
    let mut rows = Tables::default();
    let mut known: Option<SwitchPorts> = None;
    let mut known_build = SwitchBuild::default();
    let mut restore = Restore::new(restore);
    loop {
        let said = tokio::select! {
            said = session.next() => said,
            changed = stage.changed() => {
                let stage = *stage.borrow_and_update();
                rows.restore(&handle, &bridge, &mut restore, stage).await;
                if changed.is_err() || stage == Stage::Stopping {
                    return;
                }
                continue;
            }
            Ok(()) = home.changed() => {
                let home = home.borrow_and_update().clone();
                mark_home(&handle, &rows, &home).await;
                continue;
            }
        };
        let Some(said) = said else { return };
        match said {
            Said::Snapshot { changes, .. } | Said::Update { changes, .. } => rows.apply(changes),
            Said::Connected { remote } => {
                tracing::info!(name: "database-up", database = OPEN_VSWITCH, %remote, "Open_vSwitch database connected");
                continue;
            }
            Said::Disconnected { reason } => {
                tracing::warn!(
                    name: "database-lost",
                    database = OPEN_VSWITCH,
                    %reason,
                    "no Open_vSwitch database: going on with what is known"
                );
                continue;
            }
        }
        let wrong = rows.repairs(&bridge);
        if !wrong.is_empty() {
            repair(&handle, &bridge, &wrong).await;
        }
        let now = *stage.borrow();
        rows.restore(&handle, &bridge, &mut restore, now).await;
        let build = rows.build(&bridge);
        if known_build != build {
            known_build.clone_from(&build);
            if events.send(Event::Build(build)).await.is_err() {
                return;
            }
        }
        let Some(ports) = rows.ports(&bridge) else { continue };
        if known.as_ref() != Some(&ports) {
            known = Some(ports.clone());
            if events.send(Event::Ports(ports)).await.is_err() {
                return;
            }
        }
    }
}

/// Says in the rows of these interfaces that they have been here with their router's addresses.
async fn mark_home(handle: &SessionHandle, rows: &Tables, home: &BTreeSet<Uuid>) {
    let is_marked = |uuid: &Uuid| {
        let row = rows.0.get("Interface").and_then(|rows| rows.get(uuid));
        row.is_none_or(|row| row.map_get("external_ids", HOME_ID.0) == Ok(Some(HOME_ID.1)))
    };
    let mark = |uuid: &Uuid| {
        let row = Operation::mutate("Interface").filter(Condition::uuid(*uuid));
        row.mutation("external_ids", Mutator::Insert, Datum::map([HOME_ID]))
    };
    let operations: Vec<_> = home.iter().filter(|uuid| !is_marked(uuid)).map(mark).collect();
    if operations.is_empty() {
        return;
    }
    if let Err(error) = handle.transact(OPEN_VSWITCH, &operations).await {
        // A daemon that starts takes them for ports that have come.
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "ports are not marked as those of routers here"
        );
    }
}

async fn repair(handle: &SessionHandle, bridge: &str, operations: &[Operation]) {
    match handle.transact(OPEN_VSWITCH, operations).await {
        Ok(_) => tracing::info!(name: "bridge-repaired", bridge, "integration bridge set up"),
        // The next change of the database, or the next connection, is the next try.
        Err(error) => {
            tracing::error!(name: "problem", bridge, error = &error as &dyn std::error::Error, "the bridge cannot be set up");
        }
    }
}

/// The rows that are watched.
#[derive(Debug, Default)]
struct Tables(BTreeMap<Arc<str>, BTreeMap<Uuid, Arc<Row>>>);

impl Tables {
    fn apply(&mut self, changes: Vec<RowChange>) {
        for RowChange { table, uuid, old: _, new } in changes {
            let rows = self.0.entry(table).or_default();
            match new {
                Some(row) => rows.insert(uuid, row),
                None => rows.remove(&uuid),
            };
        }
    }

    fn rows(&self, table: &str) -> impl Iterator<Item = (Uuid, &Row)> {
        self.0.get(table).into_iter().flatten().map(|(uuid, row)| (*uuid, &**row))
    }

    fn named(&self, table: &str, name: &str) -> Option<(Uuid, &Row)> {
        self.rows(table).find(|(_, row)| row.str("name") == Ok(name))
    }

    /// The next step of `flow-restore-wait`, if one is due. What cannot be done is due again with the next change.
    async fn restore(&self, handle: &SessionHandle, bridge: &str, restore: &mut Restore, stage: Stage) {
        let Some((uuid, row)) = self.rows("Open_vSwitch").next() else { return };
        let integration = self.named("Bridge", bridge).map(|(uuid, _)| uuid);
        let Ok(view) = View::parse(uuid, row, integration) else { return };
        let Some(step) = restore.decide(&view, stage) else { return };
        match handle.transact(OPEN_VSWITCH, &restore::operations(step, &view)).await {
            Ok(results) => match step {
                Step::Release => {
                    let row = results.last().and_then(|result| result.rows().first());
                    if let Some(next_cfg) = row.and_then(|row| row.int("next_cfg").ok()) {
                        restore.released(next_cfg);
                    }
                }
                Step::Arm => {
                    restore.armed();
                    tracing::info!(name: "restore-armed", "flow-restore-wait is armed: a restart of the switch loses no packet");
                }
                Step::Disarm => tracing::info!(name: "restore-disarmed", "flow-restore-wait is disarmed"),
            },
            Err(error) => {
                tracing::warn!(
                    ?step,
                    error = &error as &dyn std::error::Error,
                    "flow-restore-wait stays as it is"
                );
            }
        }
    }

    /// Operations that make the bridge what it must be; none if it is.
    fn repairs(&self, bridge: &str) -> Vec<Operation> {
        let mut operations = Vec::new();
        let root = self.rows(OPEN_VSWITCH).next();
        if root.is_some_and(|(_, row)| row.map_get("other_config", KEEP_FLOWS.0) == Ok(None)) {
            let keep = Datum::map([KEEP_FLOWS]);
            operations.push(Operation::mutate(OPEN_VSWITCH).mutation("other_config", Mutator::Insert, keep));
        }
        let protocols: BTreeSet<&str> = PROTOCOLS.into();
        let control_port = self.named("Interface", HOST_PORT_NAME);
        let mac = HOST_MAC.to_string();
        if let Some((uuid, interface)) = control_port
            && interface.opt_str("mac") != Ok(Some(&mac))
        {
            operations
                .push(Operation::update("Interface").filter(Condition::uuid(uuid)).set("mac", mac.as_str()));
        }
        let add_control_port = control_port.is_none();
        if add_control_port {
            operations.push(
                Operation::insert("Interface")
                    .uuid_name("control_interface")
                    .set("name", HOST_PORT_NAME)
                    .set("type", "internal")
                    .set("mac", mac.as_str()),
            );
            operations.push(
                Operation::insert("Port")
                    .uuid_name("control_port")
                    .set("name", HOST_PORT_NAME)
                    .set("interfaces", named("control_interface")),
            );
        }
        match self.named("Bridge", bridge) {
            Some((uuid, row)) => {
                let is = || Condition::uuid(uuid);
                if row.opt_str("fail_mode") != Ok(Some("secure")) {
                    operations.push(Operation::update("Bridge").filter(is()).set("fail_mode", "secure"));
                }
                if row.set_str("protocols").as_ref() != Ok(&protocols) {
                    operations
                        .push(Operation::update("Bridge").filter(is()).set("protocols", set(&PROTOCOLS)));
                }
                if add_control_port {
                    let ports = Operation::mutate("Bridge").filter(is());
                    operations.push(ports.mutation("ports", Mutator::Insert, named("control_port")));
                }
                for (table, prefixes) in TRIES {
                    operations.extend(self.trie_repairs(uuid, row, table, prefixes));
                }
            }
            None => {
                operations.push(
                    Operation::insert("Interface")
                        .uuid_name("local_interface")
                        .set("name", bridge)
                        .set("type", "internal"),
                );
                operations.push(
                    Operation::insert("Port")
                        .uuid_name("local_port")
                        .set("name", bridge)
                        .set("interfaces", named("local_interface")),
                );
                operations.extend(TRIES.map(|(table, prefixes)| new_trie(table, prefixes)));
                let mut ports = vec![named("local_port")];
                if add_control_port {
                    ports.push(named("control_port"));
                }
                operations.push(
                    Operation::insert("Bridge")
                        .uuid_name("bridge")
                        .set("name", bridge)
                        .set("fail_mode", "secure")
                        .set("protocols", set(&PROTOCOLS))
                        .set("flow_tables", Datum::map(TRIES.map(|(table, _)| place(table))))
                        .set("ports", Datum::Set(ports.into_iter().collect())),
                );
                operations.push(Operation::mutate("Open_vSwitch").mutation(
                    "bridges",
                    Mutator::Insert,
                    named("bridge"),
                ));
            }
        }
        operations
    }

    /// Operations that make a flow table of the bridge have its tries. What else its row says stays.
    fn trie_repairs(&self, bridge: Uuid, row: &Row, table: u8, prefixes: &[&str]) -> Vec<Operation> {
        let uuid = row.map_int_uuid("flow_tables").ok().and_then(|all| all.get(&i64::from(table)).copied());
        let known = uuid.and_then(|uuid| Some((uuid, self.0.get("Flow_Table")?.get(&uuid)?)));
        let Some((uuid, row)) = known else {
            let bridge = Operation::mutate("Bridge").filter(Condition::uuid(bridge));
            let place = Datum::map([place(table)]);
            return vec![new_trie(table, prefixes), bridge.mutation("flow_tables", Mutator::Insert, place)];
        };
        let has = row.set_str("prefixes").is_ok_and(|has| has.into_iter().eq(prefixes.iter().copied()));
        if has && row.map_get("external_ids", OWNER.0) == Ok(Some(OWNER.1)) {
            return Vec::new();
        }
        let is = || Condition::uuid(uuid);
        vec![
            Operation::update("Flow_Table").filter(is()).set("prefixes", set(prefixes)),
            Operation::mutate("Flow_Table").filter(is()).mutation(
                "external_ids",
                Mutator::Insert,
                Datum::map([OWNER]),
            ),
        ]
    }

    /// What the switch is; empty where the database does not say.
    fn build(&self, bridge: &str) -> SwitchBuild {
        let version = self.rows("Open_vSwitch").next().and_then(|(_, row)| row.opt_str("ovs_version").ok());
        let datapath = self.named("Bridge", bridge).and_then(|(_, row)| row.str("datapath_type").ok());
        // "The empty string is the same as system" (ovs-vswitchd.conf.db(5)).
        let datapath = datapath.map(|kind| if kind.is_empty() { "system" } else { kind });
        SwitchBuild {
            version: version.flatten().unwrap_or_default().to_owned(),
            datapath: datapath.unwrap_or_default().to_owned(),
        }
    }

    /// What is plugged into the bridge; none while there is no bridge.
    fn ports(&self, bridge: &str) -> Option<SwitchPorts> {
        let (_, bridge) = self.named("Bridge", bridge)?;
        let ports = bridge.set_uuid("ports").ok()?;
        let ports = || ports.iter().filter_map(|uuid| self.0.get("Port")?.get(uuid));
        let interfaces = ports().filter_map(|port| port.set_uuid("interfaces").ok()).flatten();
        let mut all = SwitchPorts { queues: self.queues(ports()), ..SwitchPorts::default() };
        for (row, interface) in
            interfaces.filter_map(|uuid| Some((uuid, self.0.get("Interface")?.get(&uuid)?)))
        {
            let Ok(name) = interface.str("name") else { continue };
            // Numbers from 0xff00 on are reserved; -1 says that the port could not be made.
            let number = interface.opt_int("ofport").ok().flatten();
            let Some(number) = number.and_then(|n| u32::try_from(n).ok()).filter(|n| (1..0xff00).contains(n))
            else {
                continue;
            };
            if name == HOST_PORT_NAME {
                let ifindex = interface.opt_int("ifindex").ok().flatten();
                let ifindex = ifindex.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
                all.control = ifindex.map(|ifindex| ControlPort { number, ifindex });
                continue;
            }
            let id = |key| interface.map_get("external_ids", key).ok().flatten();
            all.ports.push(SwitchPort {
                row,
                name: name.to_owned(),
                number,
                iface_id: id("iface-id").map(str::to_owned),
                attached_mac: id("attached-mac").and_then(|mac| mac.to_ascii_lowercase().parse().ok()),
                is_up: interface.opt_str("link_state") == Ok(Some("up")),
                was_home: id(HOME_ID.0) == Some(HOME_ID.1),
                mtu: interface.opt_int("mtu").ok().flatten().and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            });
        }
        all.ports.sort_by(|a, b| a.name.cmp(&b.name));
        Some(all)
    }

    /// Queues of ports that say whose they are. Where ports differ, the first by name says what a number is.
    fn queues<'a>(&'a self, ports: impl Iterator<Item = &'a Arc<Row>>) -> BTreeMap<u32, QueueOf> {
        let mut ports: Vec<&Row> = ports.map(|port| &**port).collect();
        ports.sort_by_key(|port| port.str("name").unwrap_or_default());
        let queues = |port: &Row| {
            let qos = self.0.get("QoS")?.get(&port.opt_uuid("qos").ok()??)?;
            qos.map_int_uuid("queues").ok()
        };
        let mut all = BTreeMap::new();
        for (number, uuid) in ports.into_iter().filter_map(queues).flatten() {
            let number = u32::try_from(number).ok().filter(|number| (1..=MAX_QUEUE).contains(number));
            let row = || self.0.get("Queue")?.get(&uuid);
            if let (Some(number), Some(queue)) = (number, row().and_then(|row| queue_of(row))) {
                all.entry(number).or_insert(queue);
            }
        }
        all
    }
}

/// Whose a queue is; none: not XenFlow's.
fn queue_of(row: &Row) -> Option<QueueOf> {
    let [network, class] = [NETWORK_ID, CLASS_ID].map(|key| row.map_get("external_ids", key).ok().flatten());
    let class = class.map(str::parse).transpose().ok()?;
    Some(QueueOf { network: network?.parse().ok()?, class })
}

fn named(name: &str) -> ovsdb::Atom {
    ovsdb::Atom::NamedUuid(name.into())
}

fn set(values: &[&str]) -> Datum {
    Datum::set(values.iter().copied())
}

fn new_trie(table: u8, prefixes: &[&str]) -> Operation {
    Operation::insert("Flow_Table")
        .uuid_name(format!("flow_table_{table}"))
        .set("prefixes", set(prefixes))
        .set("external_ids", Datum::map([OWNER]))
}

/// An element of `Bridge.flow_tables` for a row of [`new_trie`].
fn place(table: u8) -> (i64, ovsdb::Atom) {
    (table.into(), named(&format!("flow_table_{table}")))
}
