//! Zebra's routes and what was answered to each. Pure.
//!
//! A route is *offloaded* when the host's switch has confirmed it as the kernel has it now
//! ([`Mirror::is_confirmed`]), with its next-hop objects, and the host does not reject it ([`Rejected`]), *failed* when it is confirmed and the host
//! rejects it. Otherwise it stays as it is: an answer may be late. Each is given once, and again when it changes.

use std::collections::{BTreeMap, BTreeSet};

use xenflow_proto::table::{Link, NextHop, NextHopKind, Route, RouteKey, RouteTarget};
use xenflow_proto::{Key, Object};

use super::wire::{Answer, Asked, Decoder, Prefix, WireError, Word, words};
use crate::mirror::Mirror;
use crate::rejected::Rejected;
use crate::session::Acked;

/// Most prefixes of zebra, about 130 bytes each: more than the global tables of both families have, half as many again.
pub const MAX_PREFIXES: usize = 2 << 20;

const RT_TABLE_MAIN: u32 = 254;

#[derive(Debug)]
struct Entry {
    asked: Asked,
    /// What zebra was told last: offloaded or not.
    said: Option<bool>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Table {
    entries: BTreeMap<Prefix, Entry>,
    /// To be looked at: what decides about them may have changed.
    due: BTreeSet<Prefix>,
    /// Those of which only the next-hop object is still to be confirmed.
    waiting: BTreeSet<Prefix>,
}

impl Table {
    /// Zebra is another, or tells all again.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.due.clear();
        self.waiting.clear();
    }

    /// Takes in the frames that are whole.
    ///
    /// # Errors
    /// [`WireError`]: the connection is of no use any more.
    pub fn hear(&mut self, decoder: &mut Decoder) -> Result<(), WireError> {
        while let Some(frame) = decoder.next_frame()? {
            for word in words(&frame) {
                self.take(word?)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, word: Word) -> Result<(), WireError> {
        match word {
            Word::Put(asked) => {
                let prefix = asked.prefix();
                if self.entries.len() >= MAX_PREFIXES && !self.entries.contains_key(&prefix) {
                    return Err(WireError::TooMany(MAX_PREFIXES));
                }
                // Zebra forgot what it was told of the one before.
                self.entries.insert(prefix, Entry { asked, said: None });
                self.due.insert(prefix);
            }
            Word::Gone(prefix) => {
                self.entries.remove(&prefix);
                self.due.remove(&prefix);
                self.waiting.remove(&prefix);
            }
        }
        Ok(())
    }

    /// A host acknowledged something, which decides about these routes.
    pub fn acknowledged(&mut self, step: &Acked) {
        let Acked { confirmed, whole, rejected, accepted, .. } = step;
        if *whole {
            self.due.extend(self.entries.keys());
            return;
        }
        if confirmed.iter().any(|key| matches!(key, Key::NextHop(_))) {
            self.due.append(&mut self.waiting);
        }
        let named = confirmed.iter().chain(accepted).chain(rejected.iter().map(|(key, _)| key));
        let prefix = |key: &Key| if let Key::Route(key) = key { Some((key.table, key.dst)) } else { None };
        self.due.extend(named.filter_map(prefix).filter(|prefix| self.entries.contains_key(prefix)));
    }

    /// Some routes are to be looked at.
    #[must_use]
    pub fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The next answer to give, which then counts as given. The mirror and what is rejected must know all that was
    /// acknowledged.
    pub fn answer(&mut self, mirror: &Mirror, rejected: &Rejected) -> Option<Answer> {
        while let Some(prefix) = self.due.pop_first() {
            let Some(entry) = self.entries.get_mut(&prefix) else { continue };
            let asked = entry.asked;
            let key = Key::Route(asked.key);
            if !mirror.is_confirmed(&key) {
                continue;
            }
            if !is_hop_confirmed(mirror, asked.key) {
                self.waiting.insert(prefix);
                continue;
            }
            let offloaded = !rejected.contains(&key);
            let Some(vrf) = vrf(asked.key.table, mirror.links()) else { continue };
            if entry.said != Some(offloaded) {
                entry.said = Some(offloaded);
                return Some(Answer { asked, vrf, offloaded });
            }
        }
        None
    }
}

/// The switch has the next-hop object of a route as the kernel has it now: zebra changes these without the route.
fn is_hop_confirmed(mirror: &Mirror, route: RouteKey) -> bool {
    let object = mirror.object(Key::Route(route));
    let Some(Object::Route(Route { target: RouteTarget::NextHop(id), .. })) = object.as_deref() else {
        return true;
    };
    let is_confirmed = |id: u32| mirror.is_confirmed(&Key::NextHop(id));
    let next_hop = mirror.object(Key::NextHop(*id));
    let members = match next_hop.as_deref() {
        Some(Object::NextHop(NextHop { kind: NextHopKind::Group(members), .. })) => members.as_slice(),
        _ => &[],
    };
    is_confirmed(*id) && members.iter().all(|(id, _)| is_confirmed(*id))
}

/// Zebra's number of the VRF with this table. Of tables without a VRF it takes no answer.
fn vrf<'a>(table: u32, mut links: impl Iterator<Item = &'a Link>) -> Option<u32> {
    match table {
        RT_TABLE_MAIN => Some(0),
        table => links.find(|link| link.vrf_table == Some(table)).map(|link| link.ifindex),
    }
}
