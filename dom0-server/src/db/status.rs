//! What a daemon reports about the routers it serves: rows of `Status`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ovsdb::{Atom, Condition, Datum, Operation, Row};
use xenflow_proto::Name;

use super::{RowError, table};

/// Longest message kept, in characters; the schema's limit.
pub(super) const MESSAGE_MAX: usize = 512;
/// Most reasons kept; the schema's limit.
const SLOW_MAX: usize = 64;

/// How a router's session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionState {
    /// No session; the host forwards with what it knows.
    Down,
    /// A session that has not reached end-of-RIB.
    Syncing,
    /// A session past end-of-RIB.
    Up,
}

impl SessionState {
    const ALL: [Self; 3] = [Self::Down, Self::Syncing, Self::Up];

    /// As the database writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Syncing => "syncing",
            Self::Up => "up",
        }
    }
}

impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How large a router's tables are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Routes in the router's FIB.
    pub routes: u64,
    /// Resolved neighbors.
    pub neighbors: u64,
    /// Next-hop objects.
    pub next_hops: u64,
    /// Prefixes by what becomes of them under the limit: `forwarded`, `punted`, `absent`; may be empty.
    pub prefixes: BTreeMap<String, u64>,
}

/// One router on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The node that reports.
    pub node: Name,
    /// The router.
    pub router: Name,
    /// Its session.
    pub state: SessionState,
    /// When `state` began: milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// Its tables.
    pub counts: Counts,
    /// The last sequence number acknowledged to the guest.
    pub acked_seq: u64,
    /// Why it is not as it should be; empty if it is. Cut at 512 characters.
    pub message: String,
    /// What the guest forwards itself, and why, in words; empty: the host forwards all it can. Untrusted text. At
    /// most 64 of at most 512 characters: see [`bounded`].
    pub slow: BTreeSet<String>,
    /// OVS interfaces that carry its vifs here, by vif.
    pub ports: BTreeMap<Name, String>,
    /// Those vifs whose interface has a link.
    pub up: BTreeSet<Name>,
    /// MTU in bytes of the guest's interface, by vif.
    pub vif_mtus: BTreeMap<Name, u32>,
    /// Gateways of its routes that no neighbor stands for.
    pub unresolved: Unresolved,
}

/// Gateways that routes name and that no resolved neighbor stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unresolved {
    /// How many.
    pub count: u64,
    /// The first of them, as `ADDRESS%VIF`. At most [`Unresolved::MAX`].
    pub gateways: BTreeSet<String>,
}

impl Unresolved {
    /// Most gateways that are named; the schema's limit.
    pub const MAX: usize = 8;
}

/// As many reasons as the schema takes, each as long as it takes; the last one says how many more there are.
#[must_use]
pub fn bounded(reasons: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    let cut = |text: String| text.chars().take(MESSAGE_MAX).collect::<String>();
    let mut all: BTreeSet<String> = reasons.into_iter().map(cut).filter(|text| !text.is_empty()).collect();
    let more = all.len().saturating_sub(SLOW_MAX);
    if more > 0 {
        all = all.into_iter().take(SLOW_MAX - 1).collect();
        all.insert(format!("~ and {} more", more + 1));
    }
    all
}

impl Status {
    /// The columns of a row, `node` first.
    pub const COLUMNS: [&'static str; 16] = [
        "node",
        "router",
        "state",
        "since_ms",
        "routes",
        "acked_seq",
        "message",
        "neighbors",
        "next_hops",
        "prefixes",
        "slow",
        "ports",
        "up",
        "vif_mtus",
        "unresolved",
        "unresolved_gateways",
    ];

    /// Reads a row of `Status`.
    pub fn parse(row: &Row) -> Result<Self, RowError> {
        let count = |column: &str| Ok::<_, RowError>(u64::try_from(row.int(column)?).unwrap_or_default());
        let state = row.str("state")?;
        let ports = row.map_str_str("ports")?.into_iter();
        let prefixes = row.map_str_int("prefixes")?.into_iter();
        let counts = Counts {
            routes: count("routes")?,
            neighbors: count("neighbors")?,
            next_hops: count("next_hops")?,
            prefixes: prefixes
                .map(|(kind, n)| (kind.to_owned(), u64::try_from(n).unwrap_or_default()))
                .collect(),
        };
        Ok(Self {
            node: row.str("node")?.parse()?,
            router: row.str("router")?.parse()?,
            state: SessionState::ALL
                .into_iter()
                .find(|known| known.as_str() == state)
                .ok_or_else(|| RowError::State(state.chars().take(40).collect()))?,
            since_ms: count("since_ms")?,
            counts,
            acked_seq: count("acked_seq")?,
            message: row.str("message")?.to_owned(),
            slow: row.set_str("slow")?.into_iter().map(str::to_owned).collect(),
            ports: ports
                .map(|(vif, port)| Ok((vif.parse()?, port.to_owned())))
                .collect::<Result<_, RowError>>()?,
            up: row.set_str("up")?.into_iter().map(str::parse).collect::<Result<_, _>>()?,
            vif_mtus: row
                .map_str_int("vif_mtus")?
                .into_iter()
                .map(|(vif, mtu)| Ok((vif.parse()?, u32::try_from(mtu).unwrap_or_default())))
                .collect::<Result<_, RowError>>()?,
            unresolved: Unresolved {
                count: count("unresolved")?,
                gateways: row.set_str("unresolved_gateways")?.into_iter().map(str::to_owned).collect(),
            },
        })
    }

    /// Operations that put this report in the place of the one before, if there is one.
    #[must_use]
    pub fn upsert(&self) -> Vec<Operation> {
        let insert = Operation::insert(table::STATUS)
            .set("node", self.node.as_str())
            .set("router", self.router.as_str());
        vec![clear_router(&self.node, &self.router), self.columns(insert)]
    }

    /// Changes the row of the report before, if there is one; the count of the result says so. What is the same already
    /// is no change for a server.
    #[must_use]
    pub fn update(&self) -> Operation {
        let update = Operation::update(table::STATUS)
            .filter(Condition::eq("node", self.node.as_str()))
            .filter(Condition::eq("router", self.router.as_str()));
        self.columns(update)
    }

    /// All but those that say of what the report is.
    fn columns(&self, operation: Operation) -> Operation {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let prefixes = self.counts.prefixes.iter().map(|(kind, n)| (kind.as_str(), Atom::from(number(*n))));
        operation
            .set("state", self.state.as_str())
            .set("since_ms", number(self.since_ms))
            .set("routes", number(self.counts.routes))
            .set("neighbors", number(self.counts.neighbors))
            .set("next_hops", number(self.counts.next_hops))
            .set("prefixes", Datum::map(prefixes))
            .set("acked_seq", number(self.acked_seq))
            .set("message", self.message.chars().take(MESSAGE_MAX).collect::<String>())
            .set("slow", Datum::set(&self.slow))
            .set("ports", Datum::map(self.ports.iter().map(|(vif, port)| (vif.as_str(), port.as_str()))))
            .set("up", Datum::set(self.up.iter().map(Name::as_str)))
            .set(
                "vif_mtus",
                Datum::map(self.vif_mtus.iter().map(|(vif, mtu)| (vif.as_str(), i64::from(*mtu)))),
            )
            .set("unresolved", number(self.unresolved.count))
            .set("unresolved_gateways", Datum::set(self.unresolved.gateways.iter().take(Unresolved::MAX)))
    }
}

/// Reads the reports of a node: for a daemon that starts.
#[must_use]
pub fn select(node: &Name) -> Operation {
    Operation::select(table::STATUS).filter(Condition::eq("node", node.as_str()))
}

/// Forgets every report of a node: for a daemon that cannot read what is there.
#[must_use]
pub fn clear_node(node: &Name) -> Operation {
    Operation::delete(table::STATUS).filter(Condition::eq("node", node.as_str()))
}

/// Forgets a node's report about one router that it no longer serves.
#[must_use]
pub fn clear_router(node: &Name, router: &Name) -> Operation {
    clear_node(node).filter(Condition::eq("router", router.as_str()))
}
