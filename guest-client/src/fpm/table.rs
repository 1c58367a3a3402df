//! Zebra's routes and what was answered to each. Pure.
//!
//! A route is *offloaded* when the host's switch has confirmed it as the kernel has it now
//! ([`Mirror::is_confirmed`]) and the host has not rejected it, *failed* when it has rejected it. Otherwise it stays as
//! it is: an answer may be false in no moment, but may be late. Each answer is given once, and again when it changes.

use std::collections::{BTreeMap, BTreeSet};

use xenflow_proto::Key;
use xenflow_proto::table::{Link, RouteKey};

use super::wire::{Answer, Asked, Decoder, Prefix, WireError, Word, words};
use crate::mirror::Mirror;
use crate::session::Acked;

/// Most prefixes of zebra: more than the global tables of both families have, several times.
pub const MAX_PREFIXES: usize = 8 << 20;

const RT_TABLE_MAIN: u32 = 254;

#[derive(Debug)]
struct Entry {
    asked: Asked,
    /// What zebra was told last: offloaded or not.
    said: Option<bool>,
}

/// With each key, whether the rejection came before the confirmation of what it is about: where there are too many for
/// one message, the host tells them first and confirms with the last.
type Rejected = BTreeMap<RouteKey, bool>;

/// See the module.
#[derive(Debug, Default)]
pub struct Table {
    entries: BTreeMap<Prefix, Entry>,
    /// What the host, or the one before, said it rejects.
    rejected: Rejected,
    /// The same of a session that has yet to tell all; it replaces `rejected` then.
    fresh: Option<Rejected>,
    /// To be looked at: what decides about them may have changed.
    due: BTreeSet<Prefix>,
}

impl Table {
    /// Zebra is another, or tells all again.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.due.clear();
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
            }
        }
        Ok(())
    }

    /// A host took a session: what it rejects it tells by the end of the snapshot or resume.
    pub fn session_began(&mut self) {
        self.fresh = Some(Rejected::new());
    }

    /// A host acknowledged something, as the mirror knows already.
    pub fn acknowledged(&mut self, step: &Acked, mirror: &Mirror) {
        let Acked { confirmed, whole, rejected, accepted, .. } = step;
        let routes = |key: &Key| if let Key::Route(key) = key { Some(*key) } else { None };
        let all = self.fresh.as_mut().unwrap_or(&mut self.rejected);
        for key in confirmed.iter().filter_map(routes) {
            match all.get_mut(&key) {
                Some(early @ true) => *early = false,
                // It was rejected as it was before, and is not as it is now.
                Some(false) => drop(all.remove(&key)),
                None => {}
            }
        }
        for key in accepted.iter().filter_map(routes) {
            all.remove(&key);
        }
        for key in rejected.iter().filter_map(|(key, _)| routes(key)) {
            all.insert(key, !mirror.is_confirmed(&Key::Route(key)));
        }
        if *whole && let Some(mut fresh) = self.fresh.take() {
            fresh.values_mut().for_each(|early| *early = false);
            self.rejected = fresh;
        }
        if *whole {
            self.due.extend(self.entries.keys());
            return;
        }
        let named = confirmed.iter().chain(accepted).chain(rejected.iter().map(|(key, _)| key));
        let named = named.filter_map(routes).map(|key| (key.table, key.dst));
        self.due.extend(named.filter(|prefix| self.entries.contains_key(prefix)));
    }

    /// Some routes are to be looked at.
    #[must_use]
    pub fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The next answer to give, which then counts as given.
    pub fn answer(&mut self, mirror: &Mirror) -> Option<Answer> {
        while let Some(prefix) = self.due.pop_first() {
            let Some(entry) = self.entries.get_mut(&prefix) else { continue };
            let asked = entry.asked;
            if !mirror.is_confirmed(&Key::Route(asked.key)) {
                continue;
            }
            let offloaded = !self.rejected.contains_key(&asked.key);
            let Some(vrf) = vrf(asked.key.table, mirror.links()) else { continue };
            if entry.said != Some(offloaded) {
                entry.said = Some(offloaded);
                return Some(Answer { asked, vrf, offloaded });
            }
        }
        None
    }
}

/// Zebra's number of the VRF with this table. Of tables without a VRF it takes no answer.
fn vrf<'a>(table: u32, mut links: impl Iterator<Item = &'a Link>) -> Option<u32> {
    match table {
        RT_TABLE_MAIN => Some(0),
        table => links.find(|link| link.vrf_table == Some(table)).map(|link| link.ifindex),
    }
}
