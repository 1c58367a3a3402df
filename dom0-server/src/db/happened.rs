//! What happened on all nodes, as far as the database shows it: the difference between what its rows said and what they say.
//!
//! Owns which differences are worth a word, and the words. Pure: who watches the rows is `xenflow events --all`. The kinds are
//! those of [`crate::events`] where a daemon tells the same of itself, and [`KINDS`].

use std::collections::{BTreeMap, BTreeSet};

use ovsdb::{Monitor, RowChange};
use serde_json::{Map, Value};
use xenflow_proto::Name;

use super::location::{self, Located, Place};
use super::{DATABASE, Migration, NodeStatus, Rows, SessionState, Status, table};

/// Kinds that no daemon tells of itself.
pub const KINDS: [&str; 4] = ["migration", "node-back", "node-silent", "router-gone"];

/// What is watched.
#[must_use]
pub fn monitor() -> Monitor {
    Monitor::new(DATABASE)
        .table(table::XENFLOW, &["next_cfg"])
        .table(table::NODE_STATUS, &NodeStatus::COLUMNS)
        .table(table::STATUS, &Status::COLUMNS)
        .table(table::LOCATION, &location::COLUMNS)
        .table(table::MIGRATION, &Migration::COLUMNS)
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// Milliseconds since the Unix epoch, if a row says when.
    pub time_ms: Option<u64>,
    /// On which node, if on one.
    pub node: Option<Name>,
    /// Of which kind.
    pub kind: &'static str,
    /// What it is about.
    pub subject: Vec<(&'static str, String)>,
    /// A sentence.
    pub text: String,
}

impl Happened {
    fn new(kind: &'static str, node: Option<&Name>, text: impl Into<String>) -> Self {
        Self { time_ms: None, node: node.cloned(), kind, subject: Vec::new(), text: text.into() }
    }

    fn about(mut self, what: &'static str, name: impl ToString) -> Self {
        self.subject.push((what, name.to_string()));
        self
    }

    fn at(self, time_ms: u64) -> Self {
        Self { time_ms: Some(time_ms), ..self }
    }

    /// A node has written nothing for so long, or has again.
    #[must_use]
    pub fn silence(node: &Name, silent_s: Option<u64>) -> Self {
        match silent_s {
            Some(seconds) => {
                Self::new("node-silent", Some(node), format!("the node has reported nothing for {seconds} s"))
            }
            None => Self::new("node-back", Some(node), "the node reports again"),
        }
    }

    /// As an object, like those of a daemon but without a number; what no row says the time of happened at `now_ms`.
    #[must_use]
    pub fn json(&self, now_ms: Option<u64>) -> Value {
        let is_bad = ["session-lost", "problem", "node-silent"].contains(&self.kind);
        let mut all = Map::new();
        all.insert("time_ms".to_owned(), self.time_ms.or(now_ms).into());
        all.insert("node".to_owned(), self.node.as_ref().map(Name::as_str).into());
        all.insert("kind".to_owned(), self.kind.into());
        all.insert("severity".to_owned(), if is_bad { "warning" } else { "info" }.into());
        all.extend(self.subject.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())));
        all.insert("text".to_owned(), self.text.as_str().into());
        Value::Object(all)
    }
}

/// What the rows said last.
#[derive(Debug, Default)]
pub struct Known {
    rows: Rows,
    cfg: Option<i64>,
    nodes: BTreeMap<Name, NodeStatus>,
    status: BTreeMap<(Name, Name), Status>,
    located: Located,
    /// By number.
    migrations: BTreeMap<u64, Migration>,
}

impl Known {
    /// Takes in what a monitor of [`monitor`] reports; what happened comes back. Rows that do not parse say nothing.
    pub fn take(&mut self, changes: &[RowChange]) -> Vec<Happened> {
        self.rows.apply(changes);
        let touched: BTreeSet<&str> = changes.iter().map(|change| &*change.table).collect();
        let mut happened = Vec::new();
        if touched.contains(table::XENFLOW) {
            let cfg = self.rows.of(table::XENFLOW).find_map(|(_, row)| row.int("next_cfg").ok());
            if let Some(cfg) = cfg.filter(|cfg| self.cfg.is_some_and(|known| known != *cfg)) {
                let text = format!("the desired state changed (generation {cfg})");
                happened.push(Happened::new("desired-changed", None, text));
            }
            self.cfg = cfg;
        }
        if touched.contains(table::NODE_STATUS) {
            let rows = self.rows.of(table::NODE_STATUS).filter_map(|(_, row)| NodeStatus::parse(row).ok());
            let now: BTreeMap<Name, NodeStatus> = rows.map(|row| (row.node.clone(), row)).collect();
            now.values().for_each(|row| node(self.nodes.get(&row.node), row, &mut happened));
            self.nodes = now;
        }
        if touched.contains(table::STATUS) {
            let rows = self.rows.of(table::STATUS).filter_map(|(_, row)| Status::parse(row).ok());
            let now: BTreeMap<(Name, Name), Status> =
                rows.map(|row| ((row.node.clone(), row.router.clone()), row)).collect();
            for (key, row) in &now {
                router(self.status.get(key), row, &mut happened);
            }
            for (node, router) in self.status.keys().filter(|key| !now.contains_key(*key)) {
                let gone = Happened::new(
                    "router-gone",
                    Some(node),
                    "the node has nothing to do with the router any more",
                );
                happened.push(gone.about("router", router));
            }
            self.status = now;
        }
        if touched.contains(table::LOCATION) {
            let now = Located::read(&self.rows);
            places(&self.located, &now, &mut happened);
            self.located = now;
        }
        if touched.contains(table::MIGRATION) {
            let rows = Migration::read(&self.rows).into_iter();
            let now: BTreeMap<_, _> = rows.map(|row| (row.number, row)).collect();
            for (number, row) in &now {
                if self.migrations.get(number).map(phase) != Some(phase(row)) {
                    happened.push(migration(row, phase(row)));
                }
            }
            // Old ones that have ended are removed for good.
            let is_gone = |(key, row): &(&u64, &Migration)| !row.phase.is_over() && !now.contains_key(*key);
            for (_, row) in self.migrations.iter().filter(is_gone) {
                happened.push(migration(row, "its row is gone".to_owned()));
            }
            self.migrations = now;
        }
        happened
    }

    /// When each node has last reported, by its own clock: milliseconds since the Unix epoch.
    pub fn seen(&self) -> impl Iterator<Item = (&Name, u64)> {
        self.nodes.values().map(|row| (&row.node, row.seen_ms))
    }
}

fn node(before: Option<&NodeStatus>, now: &NodeStatus, happened: &mut Vec<Happened>) {
    let NodeStatus { node, version, started_ms, seen_ms, cfg, problems, .. } = now;
    if before.is_none_or(|before| before.started_ms != *started_ms) {
        let text = format!("the daemon begins (version {version})");
        happened.push(Happened::new("daemon-up", Some(node), text).at(*started_ms));
    }
    if let (Some(before), Some(cfg)) = (before.and_then(|before| before.cfg), cfg)
        && before != *cfg
    {
        let text = format!("the switch has the desired state (generation {cfg})");
        happened.push(Happened::new("desired-reached", Some(node), text).at(*seen_ms));
    }
    let none = BTreeSet::new();
    let known = before.map_or(&none, |before| &before.problems);
    for problem in problems.difference(known) {
        happened.push(Happened::new("problem", Some(node), problem).at(*seen_ms));
    }
    for problem in known.difference(problems) {
        happened.push(Happened::new("problem-gone", Some(node), format!("no more: {problem}")).at(*seen_ms));
    }
}

fn router(before: Option<&Status>, now: &Status, happened: &mut Vec<Happened>) {
    let Status { node, router, state, since_ms, counts, message, slow, ports, .. } = now;
    let told = |kind, text: &str| Happened::new(kind, Some(node), text).about("router", router);
    if before.is_none_or(|before| (before.state, before.since_ms) != (*state, *since_ms)) {
        let told = match state {
            SessionState::Down => told("session-lost", "the router has no session: its tables are held"),
            SessionState::Syncing => told("session-up", "the guest tells its tables"),
            SessionState::Up => told(
                "snapshot-complete",
                &format!("the guest has told its tables (routes {})", counts.routes),
            ),
        };
        happened.push(told.at(*since_ms));
    }
    let Some(before) = before else { return };
    // Its numbers change with every route.
    if before.message.is_empty() != message.is_empty() {
        happened.push(match message.as_str() {
            "" => told("problem-gone", &format!("no more: {}", before.message)),
            message => told("problem", message),
        });
    }
    if before.slow != *slow {
        let reasons: Vec<&str> = slow.iter().map(String::as_str).collect();
        happened.push(match reasons.as_slice() {
            [] => told("fastpath-on", "the host forwards for the router"),
            reasons => told("fastpath-off", &format!("the guest forwards itself: {}", reasons.join("; "))),
        });
    }
    for (vif, port) in before.ports.iter().filter(|(vif, _)| !ports.contains_key(*vif)) {
        happened.push(
            told("port-unbound", "the port is not bound any more").about("vif", vif).about("port", port),
        );
    }
    for (vif, port) in ports.iter().filter(|(vif, port)| before.ports.get(*vif) != Some(*port)) {
        happened.push(told("port-bound", "the port is bound").about("vif", vif).about("port", port));
    }
}

fn places(before: &Located, now: &Located, happened: &mut Vec<Happened>) {
    let is_about =
        |told: Happened, place: &Place| told.about("segment", &place.segment).about("mac", place.mac);
    for (place, node, generation) in now.winners() {
        let old = before.winner(place);
        if old != Some(node) {
            let from = old.map_or_else(String::new, |old| format!(", and was on {old}"));
            let text = format!("the address is here{from} (generation {generation})");
            happened.push(is_about(Happened::new("location-taken", Some(node), text), place));
        }
    }
    for (place, node, _) in before.winners().filter(|(place, ..)| now.winner(place).is_none()) {
        let told = Happened::new("location-given-up", Some(node), "the address is not here any more");
        happened.push(is_about(told, place));
    }
}

fn migration(row: &Migration, text: String) -> Happened {
    let told = Happened::new("migration", Some(&row.to), text);
    told.about("router", &row.router).about("migration", row.number)
}

fn phase(Migration { from, to, phase, generation, error, .. }: &Migration) -> String {
    let generation = if *generation == 0 { String::new() } else { format!(" (generation {generation})") };
    let error = if error.is_empty() { String::new() } else { format!(": {error}") };
    format!("from {from} to {to}: {phase}{generation}{error}")
}

#[cfg(test)]
mod tests;
