//! What must hold before somebody sends a router to another node, and the row that begins it: a pure function of the rows as they
//! are at one instant.
//!
//! Owns what is asked for and why it is refused. That the rows still are so when the new one is written, as far as it matters, its
//! transaction sees to ([`Wanted::create`]); what is not as the rows say is found by the two nodes, which abort.

use std::collections::{BTreeMap, BTreeSet};

use ovsdb::{OpResult, Operation};
use xenflow_proto::Name;

use super::toolstack::{GUEST_KEY, Guest, GuestError};
use crate::db::edit::{EditError, Key, Snapshot};
use crate::db::location::{self, Located, Place};
use crate::db::migration::{CreateError, Phase, Via, Wanted};
use crate::db::retire::SILENT_MS;
use crate::db::{Attachment, Kind, Migration, NodeStatus, SessionState, Vif, select_all, table};

/// The key of a router's `external_ids` that says what moves its guest; [`Via::Xl`] without it.
pub const TOOLSTACK_KEY: &str = "toolstack";
/// How long the move itself may take, if nobody says: seconds.
pub const MOVE_LIMIT_S: u32 = 600;
/// The longest that somebody may say; the schema's limit.
pub const MOVE_LIMIT_MAX_S: u32 = 1_000_000;

/// The database at one instant, with where everything is and what moves.
#[derive(Debug, Clone, Default)]
pub struct Now {
    /// What operators want, and nodes report.
    pub snapshot: Snapshot,
    /// Which node has which address.
    pub located: Located,
    /// All moves, by number.
    pub migrations: Vec<Migration>,
}

impl Now {
    /// Asks for it.
    #[must_use]
    pub fn select() -> Vec<Operation> {
        let mut all = select_all();
        all.extend([location::select(), Operation::select(table::MIGRATION)]);
        all
    }

    /// The results of [`select`](Self::select).
    #[must_use]
    pub fn from_select(results: &[OpResult]) -> Self {
        let mut last = results.iter().rev().map(OpResult::rows);
        let mut migrations: Vec<_> =
            last.next().into_iter().flatten().filter_map(|row| Migration::parse(row).ok()).collect();
        migrations.sort_by_key(|row| row.number);
        let located = Located::of_rows(last.next().unwrap_or_default());
        Self { snapshot: Snapshot::from_select(results), located, migrations }
    }
}

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Name of the router.
    pub router: String,
    /// Name of the node that it is to go to.
    pub to: String,
    /// What is to move it; none: what its `external_ids` say.
    pub via: Option<Via>,
    /// How long the move itself may take.
    pub move_limit_s: u32,
    /// Only by what is known to stop the guest no longer than a live migration does.
    pub live: bool,
}

/// A migration that can begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The new row.
    pub wanted: Wanted,
    /// The addresses that the router's node has, since which generation.
    pub held: Vec<(Place, u64)>,
    /// The router's guest, as its toolstack calls it.
    pub guest: Guest,
    /// Routes that it has, by the last report.
    pub routes: u64,
    /// Where the destination takes the tables.
    pub address: String,
}

/// Why a migration does not begin.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// There is no such thing, or its row is none.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// It moves, or is there.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Nobody knows how to move it.
    #[error(
        "router {router} has external_ids:{TOOLSTACK_KEY}=\"{value}\": guests move by xl, virsh or lab; 'xenflow router set {router} --external-id {TOOLSTACK_KEY}=xl' says so, --via for once"
    )]
    Toolstack {
        /// Which router.
        router: Name,
        /// What stands there.
        value: String,
    },
    /// It may not be live.
    #[error(
        "nobody knows for how long the command of lab stops the guest of router {router}: leave --live out, or move it --via xl or virsh, which do it live"
    )]
    NotLive {
        /// Which router.
        router: Name,
    },
    /// No toolstack can be told of it.
    #[error(
        "no toolstack can be told of router {router} by that name: 'xenflow router set {router} --external-id {GUEST_KEY}=NAME' says what its guest is called"
    )]
    Guest {
        /// Which router.
        router: Name,
        /// The name and the rule.
        #[source]
        source: GuestError,
    },
    /// It has no address that could move.
    #[error("router {router} has no vif on a segment: there is nothing to move; 'xenflow vif add' makes one")]
    NoVif {
        /// Which router.
        router: Name,
    },
    /// It is plugged in nowhere.
    #[error(
        "router {router} is on no node, as none of its addresses is ({places}): start its guest, and see 'xenflow show router {router}'"
    )]
    Nowhere {
        /// Which router.
        router: Name,
        /// Its addresses.
        places: Places,
    },
    /// The node's daemon has never said a word.
    #[error("node {node} has reported nothing: start xenflow-dom0 there")]
    NoReport {
        /// Which node.
        node: Name,
    },
    /// Nor for long.
    #[error(
        "node {node} was last seen {seconds} s ago, and reports every 20 s: see that xenflow-dom0 runs there and reaches the database, and that the clocks agree"
    )]
    Silent {
        /// Which node.
        node: Name,
        /// For how long.
        seconds: u64,
    },
    /// The destination does not listen.
    #[error("node {node} takes no planned moves: set listen in [migration] of its dom0.toml")]
    NoAddress {
        /// Which node.
        node: Name,
    },
    /// The destination is cut off from the router's segments.
    #[error(
        "node {node} has none of its uplinks ({}) on its bridge, by which it would reach the segments of router {router} ({}): 'xenflow uplink add {node} PORT', and the port must be there",
        list(.uplinks), list(.segments)
    )]
    NoUplink {
        /// Which node.
        node: Name,
        /// Those that it should have.
        uplinks: BTreeSet<String>,
        /// Which router.
        router: Name,
        /// Where it is.
        segments: BTreeSet<Name>,
    },
    /// The destination's trunk carries less than the guest sends.
    #[error(
        "vif {vif} of router {router} sends packets of up to {size} bytes, and uplink {port} of node {node} carries {carries}: have it carry as much, or lower the MTU of the guest's interface"
    )]
    Mtu {
        /// Which vif.
        vif: Name,
        /// Whose.
        router: Name,
        /// Bytes.
        size: u32,
        /// The destination's narrowest uplink.
        port: String,
        /// The destination.
        node: Name,
        /// Bytes.
        carries: u32,
    },
    /// The source does not know all of the router's tables.
    #[error(
        "router {router} has no whole session on node {node}, it is {state}: its tables cannot be handed over; see that xenflow-guest runs in its guest ('xenflow show router {router}' says since when)"
    )]
    NoSession {
        /// Which router.
        router: Name,
        /// Where it is.
        node: Name,
        /// How its session stands.
        state: SessionState,
    },
}

/// Addresses in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places(pub Vec<Place>);

impl std::fmt::Display for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = |Place { segment, mac }: &Place| format!("{mac} on {segment}");
        f.write_str(&list(&self.0.iter().map(place).collect::<Vec<_>>()))
    }
}

/// "a, b, c and 7 more".
fn list<'a, T: ToString + 'a>(all: impl IntoIterator<Item = &'a T>) -> String {
    const NAMED: usize = 4;
    let mut words: Vec<_> = all.into_iter().map(ToString::to_string).collect();
    let more = words.len().saturating_sub(NAMED);
    words.truncate(NAMED);
    match (words.as_slice(), more) {
        ([], _) => "it has none".to_owned(),
        (words, 0) => words.join(", "),
        (words, more) => format!("{} and {more} more", words.join(", ")),
    }
}

/// The migration that is asked for. `now_ms`: milliseconds since the Unix epoch.
///
/// # Errors
/// [`PlanError`] names what is in the way, the rule and what to do.
pub fn plan(now: &Now, asked: &Asked, now_ms: u64) -> Result<Plan, PlanError> {
    let Now { snapshot, located, migrations } = now;
    let desired = &snapshot.desired;
    let reports = snapshot.nodes();
    let router = known(desired.routers.keys(), Kind::Router, &asked.router, snapshot)?;
    let nodes: BTreeSet<_> =
        desired.uplinks.keys().chain(reports.iter().map(|report| &report.node)).collect();
    let to = known(nodes, Kind::Node, &asked.to, snapshot)?;
    let key = Key { kind: Kind::Router, network: None, name: asked.router.clone() };
    let external_ids = snapshot.row(&key)?.map_str_str("external_ids").unwrap_or_default();
    let via = match asked.via {
        Some(via) => via,
        None => external_ids.get(TOOLSTACK_KEY).map_or(Ok(Via::Xl), |word| toolstack(word, &router))?,
    };
    if asked.live && via == Via::Lab {
        return Err(PlanError::NotLive { router });
    }
    let guest = Guest::of(&router, external_ids)
        .map_err(|source| PlanError::Guest { router: router.clone(), source })?;

    let vifs = desired.vifs_of(&router);
    let (from, held) = whereabouts(&router, &vifs, located)?;
    let move_limit_s = asked.move_limit_s.into();
    let phase = Phase::Staging;
    let wanted =
        Wanted { router: router.clone(), from: from.clone(), to: to.clone(), via, move_limit_s, phase };
    wanted.is_possible(migrations)?;
    let source = seen(&reports, &from, now_ms)?;
    let destination = seen(&reports, &to, now_ms)?;
    if destination.address.is_empty() {
        return Err(PlanError::NoAddress { node: to });
    }
    let status = snapshot.status();
    let status = status.iter().find(|status| status.node == from && status.router == router);
    let state = status.map_or(SessionState::Down, |status| status.state);
    let Some(status) = status.filter(|_| state == SessionState::Up) else {
        return Err(PlanError::NoSession { router, node: from, state });
    };
    let sizes = vifs.iter().filter(|vif| vif.attachment != Attachment::Control);
    let sizes = sizes.filter_map(|vif| Some((*status.vif_mtus.get(&vif.name)?, &vif.name)));
    let segments = held.iter().map(|(place, _)| place.segment.clone()).collect();
    let uplinks = |node: &Name| desired.uplinks_of(node);
    let Some((port, carries)) = trunk(&uplinks(&to), destination) else {
        return Err(PlanError::NoUplink { uplinks: uplinks(&to), node: to, router, segments });
    };
    // What does not get through as it is, is not the move's business.
    let before = trunk(&uplinks(&from), source).map_or(0, |(_, carries)| carries);
    if let Some((size, vif)) = sizes.max().filter(|(size, _)| (carries + 1..=before).contains(size)) {
        return Err(PlanError::Mtu { vif: vif.clone(), router, size, port, node: to, carries });
    }
    let address = destination.address.clone();
    Ok(Plan { wanted, held, guest, routes: status.counts.routes, address })
}

/// The thing of that name, if its row says anything.
fn known<'a>(
    names: impl IntoIterator<Item = &'a Name>,
    kind: Kind,
    name: &str,
    snapshot: &Snapshot,
) -> Result<Name, EditError> {
    if let Some(known) = names.into_iter().find(|known| known.as_str() == name) {
        return Ok(known.clone());
    }
    // Its row may be there, and break a rule.
    let key = Key { kind, network: None, name: name.to_owned() };
    snapshot.row(&key)?;
    Err(EditError::Unknown { kind, name: key.name })
}

fn toolstack(word: &str, router: &Name) -> Result<Via, PlanError> {
    let mut ways = Via::ALL.into_iter().filter(|(via, _)| *via != Via::Other);
    let found = ways.find(|(_, known)| *known == word).map(|(via, _)| via);
    let value = || word.chars().take(40).map(|c| if c.is_control() { '?' } else { c }).collect();
    found.ok_or_else(|| PlanError::Toolstack { router: router.clone(), value: value() })
}

/// The node that has most of a router's addresses, of several the first by name; and those.
fn whereabouts(
    router: &Name,
    vifs: &[&Vif],
    located: &Located,
) -> Result<(Name, Vec<(Place, u64)>), PlanError> {
    let place = |vif: &&Vif| match &vif.attachment {
        Attachment::Segment(segment) => Some(Place { segment: segment.clone(), mac: vif.mac }),
        Attachment::Control => None,
    };
    let places: Vec<_> = vifs.iter().filter_map(place).collect();
    if places.is_empty() {
        return Err(PlanError::NoVif { router: router.clone() });
    }
    let mut held: BTreeMap<Name, Vec<(Place, u64)>> = BTreeMap::new();
    for place in &places {
        let claims = located.claims(place);
        if let Some((node, generation)) =
            located.winner(place).and_then(|node| Some((node, *claims?.get(node)?)))
        {
            held.entry(node.clone()).or_default().push((place.clone(), generation));
        }
    }
    let most = held.into_iter().rev().max_by_key(|(_, places)| places.len());
    most.ok_or_else(|| PlanError::Nowhere { router: router.clone(), places: Places(places) })
}

/// What a node reports that is not silent.
fn seen<'a>(reports: &'a [NodeStatus], node: &Name, now_ms: u64) -> Result<&'a NodeStatus, PlanError> {
    let report = reports.iter().find(|report| report.node == *node);
    let report = report.ok_or_else(|| PlanError::NoReport { node: node.clone() })?;
    let silent_ms = now_ms.saturating_sub(report.seen_ms);
    if silent_ms < SILENT_MS {
        return Ok(report);
    }
    Err(PlanError::Silent { node: node.clone(), seconds: silent_ms / 1000 })
}

/// Of a node's uplinks on its bridge the one that carries the smallest packets: its name and bytes.
fn trunk(uplinks: &BTreeSet<String>, node: &NodeStatus) -> Option<(String, u32)> {
    // The kernel's datapath does not count a tag in the MTU of a device; user space does.
    let tag = if node.datapath == "netdev" { 4 } else { 0 };
    let carries = uplinks.iter().filter_map(|port| Some((port, node.uplink_mtus.get(port)?)));
    carries.min_by_key(|(_, mtu)| **mtu).map(|(port, mtu)| (port.clone(), mtu.saturating_sub(tag)))
}
