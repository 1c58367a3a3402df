//! What the peer was told, as text to compare with.

use std::collections::{BTreeMap, BTreeSet};

use xenflow_proto::digest::{Digest, Keyed};
use xenflow_proto::message::Renewed;
use xenflow_proto::table::RouteTarget;
use xenflow_proto::{Change, Key, Object};

/// What the peer was told.
#[derive(Debug, Default, Clone)]
pub struct Table {
    pub objects: BTreeMap<Key, Object>,
    pub(super) fresh: Option<BTreeSet<Key>>,
    pub snapshots: usize,
    pub resumes: usize,
    pub sessions: usize,
    /// Changes in the session that runs, or ran last.
    pub changes: usize,
    /// The guest asked for this.
    pub renewed: Option<Renewed>,
    pub(super) boot_id: [u8; 16],
    pub unacked: usize,
    pub messages: u64,
    pub(super) watch_links: bool,
    pub(super) forbidden: Option<String>,
}

impl Table {
    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Upsert(object) => {
                if let Object::Link(link) = &object
                    && self.watch_links
                    && !self.objects.contains_key(&object.key())
                {
                    let about =
                        |key: &Key| matches!(key, Key::Obstacle(o) if o.ifindex == Some(link.ifindex));
                    assert!(self.objects.keys().any(about), "nobody looked at {}", link.name);
                }
                if let Some(fresh) = &mut self.fresh {
                    fresh.insert(object.key());
                }
                self.objects.insert(object.key(), object);
            }
            Change::Remove(key) => {
                if let Some(fresh) = &mut self.fresh {
                    fresh.remove(&key);
                }
                let gone = self.objects.remove(&key).map(|object| self.line(&object));
                if let (Some(gone), Some(forbidden)) = (gone, &self.forbidden) {
                    assert!(!gone.starts_with(forbidden), "{gone} was removed");
                }
            }
        }
    }

    /// As [`Welcome::held`].
    pub(super) fn held(&self) -> Option<Digest> {
        let (mut keyed, mut digest) = (Keyed::new(&self.boot_id), Digest::default());
        self.objects.values().for_each(|object| digest.add(keyed.hash(object)));
        (digest.objects > 0).then_some(digest)
    }

    fn name(&self, ifindex: u32) -> String {
        match self.objects.get(&Key::Link(ifindex)) {
            Some(Object::Link(link)) => link.name.clone(),
            _ => format!("if{ifindex}"),
        }
    }

    pub fn lines(&self) -> Vec<String> {
        self.objects.values().map(|object| self.line(object)).collect()
    }

    fn line(&self, object: &Object) -> String {
        match object {
            Object::Link(link) => format!("link {} up={} running={}", link.name, link.up, link.running),
            Object::Address(key) => format!("address {} {}", key.address, self.name(key.ifindex)),
            Object::NextHop(next_hop) => format!("nexthop {} {:?}", next_hop.id, next_hop.kind),
            Object::Neighbor(n) => format!("neighbor {} {} {}", n.key.addr, self.name(n.key.ifindex), n.mac),
            Object::Settings(settings) => format!("settings {settings:?}"),
            Object::Obstacle(it) => format!(
                "obstacle {:?} {} {}: {}",
                it.key.kind,
                it.key.family.map_or_else(|| "both".into(), |family| format!("{family:?}")),
                it.key.ifindex.map_or_else(|| "all".into(), |ifindex| self.name(ifindex)),
                it.detail
            ),
            Object::Route(route) => {
                let table = match route.key.table {
                    254 => "main".into(),
                    255 => "local".into(),
                    other => format!("table{other}"),
                };
                let target = match &route.target {
                    RouteTarget::NextHop(id) => format!(" nhid {id}"),
                    RouteTarget::Hops(hops) => hops.iter().fold(String::new(), |text, hop| {
                        let oif = self.name(hop.oif.unwrap_or(0));
                        match hop.gateway {
                            Some(gateway) => format!("{text} via {gateway} {oif}"),
                            None => format!("{text} dev {oif}"),
                        }
                    }),
                };
                format!("{table} {} m{}{target}", route.key.dst, route.key.metric)
            }
        }
    }
}
