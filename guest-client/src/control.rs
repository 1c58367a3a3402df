//! Which interface is the control network's: the one that the configuration names, or else the one at which a host
//! is found. Pure; connecting is `connection`'s, and the driver says when.
//!
//! Every host has the same link-local address and MAC on the control network. Both can be had by anybody, so neither
//! proves anything: a node's certificate does, and that it takes the session. The client asks at all interfaces that
//! may be the one, side by side, and the first at which a node shows its certificate gets the `Hello`. Whoever answers
//! for the host at another interface, with garbage, silence or a foreign certificate, is told nothing, and holds up no
//! host that answers meanwhile; one that does not waits for the silent one's time to run out, three seconds. Who passes
//! the bytes on to a real host gets the session refused there, as it does not come from this router's control vif; that
//! interface then gives the others a head start. So a spoof can delay; it cannot capture.
//!
//! Where a session was, the next ones are looked for first, and alone; only if that fails a few times, or the
//! interface goes, all are asked again. Interfaces are never changed: one that is down stays down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use xenflow_proto::table::{IfIndex, Link, RouteKey, TABLE_LOCAL};
use xenflow_proto::{Key, MacAddr, control};

use crate::connection::{LinkError, Place};
use crate::mirror::Mirror;

/// So many attempts in a row go to the interface of the last session alone.
const LOYALTY: u32 = 3;

/// What of an interface matters for reaching the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    mac: Option<MacAddr>,
    up: bool,
    running: bool,
    /// The address that the host answers is there, and may be used: IPv6 has probed it.
    ready: bool,
}

/// Where nudges are to be heard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Listen {
    /// Nowhere: the interface is not there.
    #[default]
    Nowhere,
    /// At the one interface of this name and number.
    At(String, IfIndex),
    /// Wherever they come: it is not known yet which interface is the one.
    Anywhere,
}

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// There was no interface before.
    First,
    /// An interface came, went, or has other properties.
    Later,
    /// The one of the present session went: what is said there is not heard any more.
    Gone,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Control {
    configured: Option<String>,
    host: IpAddr,
    seen: BTreeMap<IfIndex, Seen>,
    /// Where the present connection is, or the last one was.
    asked: Option<IfIndex>,
    /// Where the last session was.
    chosen: Option<(IfIndex, String)>,
    /// Attempts that failed since then.
    failures: u32,
    /// Where somebody had a certificate of a node, and did not take the session.
    doubtful: BTreeSet<IfIndex>,
    listening: Listen,
}

impl Control {
    /// `configured` is the interface's name, if it is known.
    pub(crate) fn new(configured: Option<&str>, host: IpAddr) -> Self {
        Self {
            configured: configured.map(str::to_owned),
            host,
            seen: BTreeMap::new(),
            asked: None,
            chosen: None,
            failures: 0,
            doubtful: BTreeSet::new(),
            listening: Listen::Nowhere,
        }
    }

    /// The name of the interface, if it is known.
    pub(crate) fn name(&self) -> Option<&str> {
        self.configured.as_deref().or(self.chosen.as_ref().map(|(_, name)| name.as_str()))
    }

    /// Looks at the interfaces anew. A change may mean another host.
    pub(crate) fn look(&mut self, mirror: &Mirror) -> Option<Change> {
        let mut now = BTreeMap::new();
        for link in mirror.links().filter(|link| match &self.configured {
            Some(name) => link.name == *name,
            None => is_candidate(link),
        }) {
            let ready = link.mac.is_some_and(|mac| is_ready(mirror, source(self.host, mac)));
            let seen = Seen { mac: link.mac, up: link.up, running: link.running, ready };
            now.insert(link.ifindex, seen);
        }
        let before = std::mem::replace(&mut self.seen, now);
        self.doubtful
            .retain(|ifindex| before.get(ifindex).is_some_and(|seen| self.seen.get(ifindex) == Some(seen)));
        let changed = match self.home() {
            Some(home) => before.get(&home) != self.seen.get(&home),
            None => before != self.seen,
        };
        let has_gone = |asked: &IfIndex| before.contains_key(asked) && !self.seen.contains_key(asked);
        changed.then_some(match &self.asked {
            _ if before.is_empty() => Change::First,
            Some(asked) if has_gone(asked) => Change::Gone,
            _ => Change::Later,
        })
    }

    /// Where nudges are to be heard from now on, if that is another place than before.
    pub(crate) fn listen(&mut self, mirror: &Mirror) -> Option<&Listen> {
        let link = match (&self.configured, &self.chosen) {
            (Some(name), _) => mirror.link(name),
            (None, Some((ifindex, _))) => mirror.links().find(|link| link.ifindex == *ifindex),
            (None, None) => None,
        };
        let wanted = match (link, &self.configured) {
            (Some(link), _) => Listen::At(link.name.clone(), link.ifindex),
            (None, Some(_)) => Listen::Nowhere,
            (None, None) => Listen::Anywhere,
        };
        if self.listening == wanted {
            return None;
        }
        self.listening = wanted;
        Some(&self.listening)
    }

    /// The interface of the last session, as long as it alone is asked.
    fn home(&self) -> Option<IfIndex> {
        let (home, _) = self.chosen.as_ref().filter(|_| self.configured.is_none())?;
        let is_there = self.seen.get(home).is_some_and(|seen| seen.up && seen.running);
        (is_there && self.failures < LOYALTY).then_some(*home)
    }

    /// Where to connect now.
    ///
    /// # Errors
    /// [`LinkError`] says why there is no such place.
    pub(crate) fn places(&self, mirror: &Mirror) -> Result<Vec<Place>, LinkError> {
        if let Some(name) = &self.configured {
            return Place::named(name, mirror.link(name)).map(|place| vec![place]);
        }
        let home = self.home();
        let addressed: BTreeSet<IfIndex> = mirror
            .addresses()
            .filter(|key| !is_link_local(key.address.addr()))
            .map(|key| key.ifindex)
            .collect();
        let links = mirror.links().filter(|link| home.is_none_or(|home| link.ifindex == home));
        let mut places = candidates(links, |ifindex| addressed.contains(&ifindex))?;
        let is_doubtful = |place: &Place| self.doubtful.contains(&place.ifindex);
        if !places.iter().all(is_doubtful) {
            for place in &mut places {
                place.late = is_doubtful(place);
            }
        }
        Ok(places)
    }

    /// There is a connection to a node.
    pub(crate) fn connected(&mut self, place: &Place) {
        self.asked = Some(place.ifindex);
    }

    /// The node took the session. True: it is at another interface than the last one was.
    pub(crate) fn up(&mut self, mirror: &Mirror) -> bool {
        let Some(ifindex) = self.asked else { return false };
        self.failures = 0;
        self.doubtful.remove(&ifindex);
        let is_other = self.chosen.as_ref().is_none_or(|(chosen, _)| *chosen != ifindex);
        let name = mirror.links().find(|link| link.ifindex == ifindex).map(|link| link.name.clone());
        self.chosen = Some((ifindex, name.unwrap_or_else(|| format!("link {ifindex}"))));
        is_other && self.configured.is_none()
    }

    /// The attempt or session is over; `was_up`: the node had taken the session.
    pub(crate) fn lost(&mut self, was_up: bool) {
        let asked = self.asked.take();
        if !was_up {
            self.failures = self.failures.saturating_add(1);
            self.doubtful.extend(asked);
        }
    }
}

/// Interfaces that may be the control network's, those first that have no address that is routed: the control vif
/// needs none.
///
/// # Errors
/// [`LinkError::NoCandidate`] if there is none.
pub(crate) fn candidates<'a>(
    links: impl Iterator<Item = &'a Link>,
    is_addressed: impl Fn(IfIndex) -> bool,
) -> Result<Vec<Place>, LinkError> {
    let (up, down): (Vec<&Link>, Vec<&Link>) =
        links.filter(|link| is_candidate(link)).partition(|link| link.up && link.running);
    let mut places: Vec<Place> =
        up.into_iter().filter_map(|link| Place::named(&link.name, Some(link)).ok()).collect();
    places.sort_by_key(|place| (is_addressed(place.ifindex), place.ifindex));
    if places.is_empty() {
        return Err(LinkError::NoCandidate(down.into_iter().map(|link| link.name.clone()).collect()));
    }
    Ok(places)
}

/// One that the hypervisor gave (no kind), or a container's. What this guest made for itself is not it, nor what it put
/// into a bridge, bond or VRF.
fn is_candidate(link: &Link) -> bool {
    link.mac.is_some_and(|mac| mac.0 != [0; 6])
        && link.master.is_none()
        && matches!(link.kind.as_str(), "" | "veth")
}

/// The one address from which the host's switch lets this MAC speak.
pub(crate) fn source(host: IpAddr, mac: MacAddr) -> IpAddr {
    match host {
        IpAddr::V6(_) => control::guest_ipv6(mac).into(),
        IpAddr::V4(_) => control::guest_ipv4(mac).into(),
    }
}

/// The kernel has a route to an address of its own from when on it may be used.
fn is_ready(mirror: &Mirror, own: IpAddr) -> bool {
    let key = RouteKey { table: TABLE_LOCAL, dst: IpNet::from(own), tos: 0, metric: 0 };
    mirror.contains(Key::Route(key))
}

/// IPv4 (RFC 3927) or IPv6 (RFC 4291, 2.5.6).
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;
