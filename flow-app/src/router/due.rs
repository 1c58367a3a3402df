//! What is due for the switch, and in which order.
//!
//! What changes something that the switch has is not kept waiting by what it has not yet: a packet of a new route is the guest's until
//! then, one of an old route goes a way that may lead nowhere. So there are two lanes, and the second waits for the first. Each goes in
//! the order in which things were said. Only changes of places are in the first, each of which is whole by itself; what
//! counts on others being done before it is in the second: markers, gates, and routes that go, since new ones may take their place.

use std::collections::{BTreeMap, VecDeque};

use ipnet::IpNet;

use super::place::Place;
use super::walk::Walk;
use crate::aggregate::block_of;
use crate::flow::FlowChange;
use crate::limit::Prefix;

/// Something to do for the switch.
#[derive(Debug)]
pub(super) enum Due {
    /// Whatever the place holds when its turn comes, unless it had its turn meanwhile.
    Place(Place),
    /// The same of routes of a block: their flows may stand for one another. Their turn may be an early one.
    Routes(Vec<Prefix>, bool),
    /// The flow of an entry, as it is when its turn comes.
    Entry(Prefix),
    /// Links, vifs, obstacles or the policy changed.
    Rebind,
    /// The guest may hash by other fields now.
    Settings,
    /// A next-hop object changed: its routes are other ones, those that it has when its turn comes.
    NextHop(u32),
    /// Whether the neighbors in a prefix are on-link.
    Hosts(Prefix),
    /// What is left of a walk.
    Walk(Walk),
    /// As it was decided.
    Change(FlowChange),
    /// The group, as it is when its turn comes.
    Group(u32),
    /// A group that was found and is not used.
    Unused(u32),
    /// Everything that was due before is on its way.
    Marker(u64),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    soon: Lane,
    late: Lane,
}

#[derive(Debug, Default)]
struct Lane {
    items: VecDeque<Item>,
    /// Routes that wait, by block: each block stands once among the items.
    blocks: BTreeMap<(u32, IpNet), Vec<Prefix>>,
    /// How many these are.
    routes: usize,
}

#[derive(Debug)]
enum Item {
    Due(Due),
    Block((u32, IpNet)),
}

impl Lane {
    fn push_route(&mut self, prefix: Prefix) {
        let block = block_of(prefix);
        let waiting = self.blocks.entry(block).or_default();
        if waiting.is_empty() {
            self.items.push_back(Item::Block(block));
        }
        waiting.push(prefix);
        self.routes += 1;
    }

    fn pop(&mut self, is_early: bool) -> Option<Due> {
        match self.items.pop_front()? {
            Item::Due(due) => Some(due),
            Item::Block(block) => {
                let prefixes = self.blocks.remove(&block).unwrap_or_default();
                self.routes -= prefixes.len();
                Some(Due::Routes(prefixes, is_early))
            }
        }
    }

    fn len(&self) -> usize {
        self.items.len() + self.routes
    }
}

impl Queue {
    /// Behind all that is due.
    pub(super) fn push(&mut self, due: Due) {
        self.late.items.push_back(Item::Due(due));
    }

    /// Before all that is due but changes of what the switch has.
    pub(super) fn push_front(&mut self, due: Due) {
        self.late.items.push_front(Item::Due(due));
    }

    /// A place that is no route, or a route: one that is there, and of which the switch has something, need not wait.
    pub(super) fn push_place(&mut self, place: Place, may_overtake: bool) {
        match place {
            Place::Route(prefix) if may_overtake => self.soon.push_route(prefix),
            Place::Route(prefix) => self.late.push_route(prefix),
            Place::Local(..) | Place::NextHop(..) => self.soon.items.push_back(Item::Due(Due::Place(place))),
        }
    }

    /// A group, as it is when its turn comes: its routes have it already.
    pub(super) fn push_group(&mut self, id: u32) {
        self.soon.items.push_back(Item::Due(Due::Group(id)));
    }

    pub(super) fn extend(&mut self, due: impl IntoIterator<Item = Due>) {
        self.late.items.extend(due.into_iter().map(Item::Due));
    }

    pub(super) fn pop(&mut self) -> Option<Due> {
        self.soon.pop(true).or_else(|| self.late.pop(false))
    }

    /// What was pushed last.
    pub(super) fn last(&self) -> Option<&Due> {
        match self.late.items.back() {
            Some(Item::Due(due)) => Some(due),
            Some(Item::Block(_)) | None => None,
        }
    }

    /// The next marker, if nothing stands before it.
    pub(super) fn pop_marker(&mut self) -> Option<u64> {
        match self.late.items.front() {
            Some(Item::Due(Due::Marker(token))) if self.soon.items.is_empty() => {
                let token = *token;
                self.late.items.pop_front();
                Some(token)
            }
            _ => None,
        }
    }

    /// Nothing is due but what markers stand for: these, in their order.
    pub(super) fn take_markers(&mut self) -> Vec<Due> {
        let Self { soon: _, late } = std::mem::take(self);
        let dues = late
            .items
            .into_iter()
            .filter_map(|item| if let Item::Due(due) = item { Some(due) } else { None });
        dues.filter(|due| matches!(due, Due::Marker(_))).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.soon.len() + self.late.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
