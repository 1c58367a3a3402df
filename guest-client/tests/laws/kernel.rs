//! A model of the kernel's tables, and what it tells of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use xenflow_guest_client::obstacles::Survey;
use xenflow_guest_client::translate::{Event, Place};
use xenflow_proto::table::{
    Hop, HopFlags, Link, Obstacle, ObstacleKey, ObstacleKind, Route, RouteKey, RouteKind, RouteTarget,
    Settings, TABLE_MAIN,
};
use xenflow_proto::{Key, Object};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Verb {
    Add,
    Append,
    Prepend,
    Replace,
    Delete,
}

pub(crate) fn route(prefix: u8, hop: u32) -> Route {
    let dst = ipnet::Ipv4Net::new(Ipv4Addr::new(10, prefix, 0, 0), 16).unwrap().into();
    let gateway = Some(Ipv4Addr::new(192, 0, 2, u8::try_from(hop).unwrap()).into());
    let hop = Hop { gateway, oif: Some(hop), weight: 1, flags: HopFlags(0), encap: false };
    Route {
        key: RouteKey { table: TABLE_MAIN, dst, tos: 0, metric: 0 },
        kind: RouteKind::Unicast,
        protocol: 4,
        scope: 0,
        target: RouteTarget::Hops(vec![hop]),
        mtu: None,
    }
}

pub(crate) fn link(ifindex: u32) -> Object {
    let (name, kind) = (format!("p{ifindex}"), String::new());
    Object::Link(Link {
        ifindex,
        name,
        mac: None,
        mtu: 1500,
        up: true,
        running: true,
        kind,
        master: None,
        vrf_table: None,
        ipv6_mtu: None,
    })
}

/// A kernel: of several routes with one key the first counts.
#[derive(Default)]
pub(crate) struct Kernel {
    pub(crate) links: BTreeSet<u32>,
    routes: BTreeMap<u8, VecDeque<u32>>,
    /// Links with something on them.
    pub(crate) obstacles: BTreeSet<u32>,
}

impl Kernel {
    /// The event, if there is one.
    pub(crate) fn route(&mut self, prefix: u8, hop: u32, verb: Verb) -> Option<Event> {
        let hops = self.routes.entry(prefix).or_default();
        let at = hops.iter().position(|&other| other == hop);
        let route = route(prefix, hop);
        let place = match (verb, at, hops.is_empty()) {
            (Verb::Delete, at, _) => {
                hops.remove(at?);
                return Some(Event::RouteGone(route));
            }
            (_, Some(_), _) | (Verb::Add, None, false) => return None,
            (_, None, true) => {
                hops.push_back(hop);
                Place::Only
            }
            (Verb::Append, None, false) => {
                hops.push_back(hop);
                Place::Last
            }
            (Verb::Prepend, None, false) => {
                hops.push_front(hop);
                Place::First
            }
            (Verb::Replace, None, false) => {
                hops[0] = hop;
                Place::Replaced
            }
        };
        Some(Event::Route(route, place))
    }

    pub(crate) fn link(&mut self, index: u32, there: bool) -> Option<Event> {
        if there {
            return self.links.insert(index).then(|| Event::Upsert(link(index)));
        }
        if !self.links.remove(&index) {
            return None;
        }
        self.routes.values_mut().for_each(|hops| hops.retain(|&hop| hop != index));
        self.obstacles.remove(&index);
        Some(Event::Remove(Key::Link(index)))
    }

    /// What a dump tells of the keys from this one on.
    pub(crate) fn list(&self, from: usize, keys: usize) -> Vec<Event> {
        let links =
            (1..4u32).map(|i| self.links.get(&i).map(|&i| Event::Upsert(link(i))).into_iter().collect());
        let routes = (0..3u8).map(|prefix| {
            let hops = self.routes.get(&prefix).into_iter().flatten();
            hops.map(|&hop| Event::Route(route(prefix, hop), Place::First)).collect()
        });
        let all: Vec<Vec<Event>> = links.chain(routes).collect();
        all.into_iter().skip(from).take(keys).flatten().collect()
    }

    pub(crate) fn tables(&self) -> BTreeMap<Key, Object> {
        let links = self.links.iter().map(|&index| link(index));
        let firsts = self.routes.iter().filter_map(|(&prefix, hops)| Some((prefix, *hops.front()?)));
        let routes = firsts.map(|(prefix, hop)| Object::Route(route(prefix, hop)));
        let obstacles = self.obstacles.iter().map(|&index| Object::Obstacle(obstacle(index)));
        let settings = Object::Settings(Settings::default());
        let all = links.chain(routes).chain(obstacles).chain([settings]);
        all.map(|object| (object.key(), object)).collect()
    }

    pub(crate) fn survey(&self) -> Survey {
        Survey {
            settings: Settings::default(),
            obstacles: self.obstacles.iter().map(|&index| obstacle(index)).collect(),
            links: self.links.iter().map(|&index| (index, None)).collect(),
        }
    }
}

/// Those that dumps list.
pub(crate) const KEYS: usize = 6;

pub(crate) fn obstacle(index: u32) -> Obstacle {
    let key = ObstacleKey { ifindex: Some(index), family: None, kind: ObstacleKind::TrafficControl };
    Obstacle { key, detail: "qdisc clsact".into() }
}
