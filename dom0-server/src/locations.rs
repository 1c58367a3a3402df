//! Says which MAC addresses this node has, and learns which ones others have.
//!
//! A node claims an address when its port comes (is bound and has a link), with a generation above all that it knows, and
//! takes its row back when the port leaves. While a port stays, nothing makes the node claim again: one that was passed
//! over is fenced until its port comes anew. A restart of the daemon is no coming: a row that is there stays as it is.
//!
//! [`Claims`] decides and is pure; [`watch`] has the connection. Which row counts is in [`crate::db::location`].

pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ovsdb::Operation;
use xenflow_proto::Name;

use crate::db::location::{self, GENERATION_MAX, Located, Place};
use crate::db::migration::Migration;
use crate::db::node_status::NodeStatus;
use crate::db::{Rows, table};
use crate::migration::standby;
use crate::migration::toolstack::GUEST_KEY;

/// What the rows say at one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// Addresses that other nodes have.
    pub elsewhere: BTreeSet<Place>,
    /// Addresses that this node has.
    pub own: BTreeSet<Place>,
    /// Open moves of routers from this node or to it, by router.
    pub moves: BTreeMap<Name, Migration>,
    /// Those between other nodes: from where, and where to.
    pub others: BTreeMap<Name, (u64, Name, Name)>,
    /// Numbers of those to this node that some third node's datapath is not prepared for yet.
    pub unprepared: BTreeSet<u64>,
    /// Where their destinations take moves, as far as they say so.
    pub addresses: BTreeMap<Name, SocketAddr>,
    /// What their guests are called, where that is not the router's name.
    pub guests: BTreeMap<Name, String>,
    /// The nodes that routers name as their standbys.
    pub standbys: BTreeMap<Name, Vec<Name>>,
    /// Who has which of [`elsewhere`](Self::elsewhere), where any router has a standby.
    pub hosts: BTreeMap<Place, Name>,
    /// For people: what is no list of standbys.
    pub problems: Vec<String>,
}

impl Whereabouts {
    /// As a node reads them.
    #[must_use]
    pub fn read(rows: &Rows, located: &Located, node: &Name) -> Self {
        let open = Migration::read(rows).into_iter().filter(|row| !row.phase.is_over());
        let (ours, others): (Vec<_>, Vec<_>) = open.partition(|row| row.from == *node || row.to == *node);
        let moves: BTreeMap<Name, Migration> =
            ours.into_iter().map(|row| (row.router.clone(), row)).collect();
        let others = others.into_iter().map(|row| (row.router, (row.number, row.from, row.to))).collect();
        let addresses = rows.of(table::NODE_STATUS).filter_map(|(_, row)| {
            Some((row.str("node").ok()?.parse::<Name>().ok()?, row.str("address").ok()?.parse().ok()?))
        });
        let guests = rows.of(table::ROUTER).filter_map(|(_, row)| {
            let guest = row.map_get("external_ids", GUEST_KEY).ok()??.to_owned();
            Some((row.str("name").ok()?.parse::<Name>().ok()?, guest))
        });
        let reports = rows.of(table::NODE_STATUS).filter_map(|(_, row)| NodeStatus::prepared(row).ok());
        let reports: Vec<(Name, BTreeSet<u64>)> = reports.collect();
        let to_here = moves.values().filter(|row| row.to == *node);
        let unprepared = to_here.filter(|row| !are_prepared(row.number, [&row.from, &row.to], &reports));
        let unprepared = unprepared.map(|row| row.number);
        let (standbys, problems) = standby::read(rows);
        let is_wanted = |node: &Name| {
            moves.values().any(|row| row.to == *node) || standbys.values().any(|named| named.contains(node))
        };
        let elsewhere = located.winners().filter(|(_, winner, _)| *winner != node && !standbys.is_empty());
        Self {
            hosts: elsewhere.map(|(place, winner, _)| (place.clone(), winner.clone())).collect(),
            elsewhere: located.elsewhere(node),
            own: located.of(node),
            unprepared: unprepared.collect(),
            addresses: addresses.filter(|(node, _)| is_wanted(node)).collect(),
            guests: guests.filter(|(router, _)| moves.contains_key(router)).collect(),
            moves,
            others,
            standbys,
            problems,
        }
    }
}

/// All nodes that report, but the two that it is between, say that their datapaths are prepared for a migration.
fn are_prepared(number: u64, between: [&Name; 2], reports: &[(Name, BTreeSet<u64>)]) -> bool {
    let mut others = reports.iter().filter(|(node, _)| !between.contains(&node));
    others.all(|(_, prepared)| prepared.contains(&number))
}

/// How it stands with something that is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It was here when the daemon began.
    Found,
    /// It has come since.
    Came {
        /// Greatest generation that was tried before it came.
        above: u64,
        /// The first that was tried since.
        first: Option<u64>,
    },
    /// The row is there, or was.
    Held(u64),
}

/// A transaction that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// The address has come here.
    Claim(Place, u64),
    /// Its row is gone, but it is still here.
    Restore(Place, u64),
    /// It is not here any more.
    Withdraw(Place, u64),
}

impl Write {
    /// All of them or none.
    #[must_use]
    pub fn operations(&self, node: &Name) -> Vec<Operation> {
        match self {
            Self::Claim(place, generation) => location::claim(place, node, *generation),
            Self::Restore(place, generation) => location::restore(place, node, *generation),
            Self::Withdraw(place, generation) => vec![location::withdraw(place, node, *generation)],
        }
    }
}

/// What one node claims.
#[derive(Debug)]
pub struct Claims {
    node: Name,
    /// None: nobody knows yet what is here.
    here: Option<BTreeMap<Place, Standing>>,
    /// The greatest generation tried of each place.
    tried: BTreeMap<Place, u64>,
    /// What a router's move has brought here, or is about to, and nobody has said yet that it is: its rows are no leftovers.
    announced: BTreeSet<Place>,
}

impl Claims {
    /// Those of a node whose daemon has just begun.
    #[must_use]
    pub fn new(node: Name) -> Self {
        Self { node, here: None, tried: BTreeMap::new(), announced: BTreeSet::new() }
    }

    /// These places have a port here that has a link.
    pub fn follow(&mut self, places: &BTreeSet<Place>) {
        let Some(here) = &mut self.here else {
            self.here = Some(places.iter().map(|place| (place.clone(), Standing::Found)).collect());
            return;
        };
        here.retain(|place, _| places.contains(place));
        self.announced.retain(|place| !places.contains(place));
        for place in places {
            let above = self.tried.get(place).copied().unwrap_or(0);
            here.entry(place.clone()).or_insert(Standing::Came { above, first: None });
        }
    }

    /// These are to be announced with a router's move.
    pub fn announce(&mut self, places: &BTreeSet<Place>) {
        self.announced.extend(places.iter().cloned());
    }

    /// What is here and had its row, but another node has by now: fenced until it comes anew.
    #[must_use]
    pub fn passed_over(&self, located: &Located) -> BTreeSet<Place> {
        let is_lost = |place: &Place| located.winner(place).is_some_and(|winner| *winner != self.node);
        let held = self.here.iter().flatten().filter(|(_, it)| matches!(it, Standing::Held(_)));
        held.map(|(place, _)| place).filter(|place| is_lost(place)).cloned().collect()
    }

    /// Whether other nodes can know all that is here.
    #[must_use]
    pub fn are_written(&self, located: &Located) -> bool {
        self.here.iter().flatten().all(|(place, standing)| {
            let own = located.claims(place).and_then(|claims| claims.get(&self.node));
            match (standing, own) {
                (Standing::Found | Standing::Held(_), own) => own.is_some(),
                (Standing::Came { first, .. }, Some(own)) => first.is_some_and(|first| *own >= first),
                (Standing::Came { .. }, None) => false,
            }
        })
    }

    /// What is to be written, as far as the rows are known. What fails, or nobody knows of whether it was done, is due
    /// again with the next look at the rows.
    pub fn due(&mut self, located: &Located) -> Vec<Write> {
        let Some(here) = &mut self.here else { return Vec::new() };
        let mut writes = Vec::new();
        for (place, standing) in here.iter_mut() {
            let claims = located.claims(place);
            let own = claims.and_then(|claims| claims.get(&self.node)).copied();
            let greatest = claims.into_iter().flat_map(BTreeMap::values).copied().max().unwrap_or(0);
            if *standing == Standing::Found && own.is_none() {
                *standing = Standing::Came { above: 0, first: None };
            }
            match (&mut *standing, own) {
                (Standing::Found | Standing::Held(_), Some(own)) => *standing = Standing::Held(own),
                (Standing::Came { first: Some(first), .. }, Some(own)) if own >= *first => {
                    *standing = Standing::Held(own);
                }
                // Announced with the router's move.
                (Standing::Came { above, first: None }, Some(own)) if own == greatest && own > *above => {
                    *standing = Standing::Held(own);
                }
                (Standing::Came { above, first }, _) => {
                    let generation = greatest.max(*above).saturating_add(1);
                    if generation <= GENERATION_MAX {
                        first.get_or_insert(generation);
                        let tried = self.tried.entry(place.clone()).or_default();
                        *tried = generation.max(*tried);
                        writes.push(Write::Claim(place.clone(), generation));
                    }
                }
                (Standing::Held(generation), None) => {
                    writes.push(Write::Restore(place.clone(), *generation));
                }
                (Standing::Found, None) => {}
            }
        }
        for (place, generation) in located.claimed_by(&self.node) {
            if !here.contains_key(place) && !self.announced.contains(place) {
                writes.push(Write::Withdraw(place.clone(), generation));
            }
        }
        self.tried.retain(|place, _| here.contains_key(place) || located.claims(place).is_some());
        writes
    }
}

#[cfg(test)]
mod tests;
