//! Which neighbors are to be asked whether they are still there. Pure.
//!
//! What the host forwards does not pass this kernel, which therefore does not notice that it uses a neighbor: the
//! entry goes stale, and nobody sees that the neighbor has another MAC now, or is dead. So this guest asks:
//!
//! * Gateways of routes, and neighbors that the host says it sends to, become *managed* (`NTF_EXT_MANAGED`, Linux
//!   5.16): the kernel resolves them and keeps them resolved. An older kernel takes the same request as one to use the
//!   entry (`NTF_USE`), which resolves it.
//! * Any other neighbor that has gone stale is probed. It answers and is reachable again, or it fails and is gone.
//!
//! Entries of others are left alone: permanent ones, those that need no resolving, those that a control plane put
//! there (`NTF_EXT_LEARNED`), those that somebody else has managed. Ours carry [`PROTOCOL`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use xenflow_proto::table::{IfIndex, Link, NeighborKey};
use xenflow_proto::{Key, MacAddr, Object};

use crate::attribute::{Message, u16_at, u32_at};
use crate::mirror::Mirror;
use crate::questions::attribute;
use crate::translate::{AF_INET, AF_INET6, byte, header};

/// Who made an entry managed (`NDA_PROTOCOL`, a number of `linux/rtnetlink.h`'s `RTPROT_*` that is nobody's).
pub const PROTOCOL: u8 = 88;
/// A neighbor is asked at most so often.
pub const PAUSE: Duration = Duration::from_secs(30);
/// Most requests of one round.
pub const ROUND: usize = 64;
/// Most gateways that are managed.
pub const MAX_GATEWAYS: usize = 1024;

const NUD_STALE: u16 = 0x04;
const NUD_PROBE: u16 = 0x10;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_USE: u8 = 1;
const NTF_PROXY: u8 = 1 << 3;
const NTF_EXT_LEARNED: u8 = 1 << 4;
const NTF_EXT_MANAGED: u32 = 1;
const NDA_DST: u16 = 1;
const NDA_PROTOCOL: u16 = 12;
const NDA_FLAGS_EXT: u16 = 15;
/// `RTM_NEWNEIGH` makes an entry if there is none, and only then.
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_EXCL: u16 = 0x200;

/// An entry of the kernel's neighbor table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What it is found by.
    pub key: NeighborKey,
    /// `NUD_*` bits of `linux/neighbour.h`.
    pub state: u16,
    /// `NTF_*` bits.
    pub flags: u8,
    /// The kernel keeps it resolved.
    pub managed: bool,
    /// `NDA_PROTOCOL`.
    pub protocol: u8,
}

impl Entry {
    /// One of this family. `struct ndmsg`: family, pad (3), ifindex (4), state (2), flags, type.
    #[must_use]
    pub fn decode(message: &Message<'_>, family: u8) -> Option<Self> {
        let (header, attributes) = header(message.payload, "ndmsg", 12).ok()?;
        let (mut addr, mut managed, mut protocol) = (None, false, 0);
        for attribute in attributes {
            match attribute.kind {
                NDA_DST => addr = attribute.address().ok(),
                NDA_PROTOCOL => protocol = byte(attribute.value, 0),
                NDA_FLAGS_EXT => managed = attribute.u32().ok()? & NTF_EXT_MANAGED != 0,
                _ => {}
            }
        }
        let key = NeighborKey { ifindex: u32_at(header, 4)?, addr: addr? };
        let (state, flags) = (u16_at(header, 8)?, byte(header, 10));
        (byte(header, 0) == family).then_some(Self { key, state, flags, managed, protocol })
    }

    fn is_ours(&self) -> bool {
        self.managed && self.protocol == PROTOCOL
    }

    /// May be asked without taking anything from anybody.
    fn is_plain(&self) -> bool {
        self.state & (NUD_PERMANENT | NUD_NOARP) == 0
            && self.flags & (NTF_EXT_LEARNED | NTF_PROXY) == 0
            && (!self.managed || self.is_ours())
    }
}

/// A request to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Resolve it, and keep it resolved: there is no entry. One that an operator made meanwhile stays as it is.
    Add(NeighborKey),
    /// Keep it resolved.
    Manage(NeighborKey),
    /// Keep it no longer.
    Release(NeighborKey),
    /// See whether it is still there.
    Probe(NeighborKey),
}

impl Request {
    /// The neighbor.
    #[must_use]
    pub fn key(&self) -> NeighborKey {
        let (Self::Add(key) | Self::Manage(key) | Self::Release(key) | Self::Probe(key)) = self;
        *key
    }

    /// Flags and body of an `RTM_NEWNEIGH`. None replaces anything, so that a link-layer address stays as it is.
    pub(crate) fn message(&self) -> (u16, Vec<u8>) {
        let key = self.key();
        // Without NTF_USE, a kernel that does not know NDA_FLAGS_EXT would take it for the state "none". What is
        // told without NTF_EXT_MANAGED is managed no more.
        let (create, state, flags, ext) = match self {
            Self::Add(_) => (NLM_F_CREATE | NLM_F_EXCL, 0, NTF_USE, NTF_EXT_MANAGED),
            Self::Manage(_) => (0, 0, NTF_USE, NTF_EXT_MANAGED),
            Self::Release(_) => (0, 0, NTF_USE, 0),
            Self::Probe(_) => (0, NUD_PROBE, 0, 0),
        };
        let family = if key.addr.is_ipv4() { AF_INET } else { AF_INET6 };
        let mut body = vec![family, 0, 0, 0];
        body.extend_from_slice(&key.ifindex.to_ne_bytes());
        body.extend_from_slice(&state.to_ne_bytes());
        body.extend_from_slice(&[flags, 0]);
        match key.addr {
            IpAddr::V4(addr) => attribute(&mut body, NDA_DST, &addr.octets()),
            IpAddr::V6(addr) => attribute(&mut body, NDA_DST, &addr.octets()),
        }
        if ext != 0 {
            attribute(&mut body, NDA_PROTOCOL, &[PROTOCOL]);
            attribute(&mut body, NDA_FLAGS_EXT, &ext.to_ne_bytes());
        }
        (create, body)
    }
}

/// What a round goes by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Gateways of routes, and what else the host sends to.
    pub gateways: BTreeSet<NeighborKey>,
    /// Links whose neighbors the host uses. No other link is touched.
    pub links: BTreeSet<IfIndex>,
}

/// What the tables say is wanted: the neighbors of links that the host may bind, which are plain, in use and belong
/// to nothing but a VRF. The control network has no other neighbor than the host. Of the neighbors that the host says
/// are `in_use`, those count that are there: one that is gone is resolved again by packets that the host hands to
/// this guest, not by asking for ever.
#[must_use]
pub fn wanted(mirror: &Mirror, control_interface: &str, in_use: &[NeighborKey]) -> Wanted {
    let is_vrf = |master| match mirror.object(Key::Link(master)).as_deref() {
        Some(Object::Link(link)) => link.kind == "vrf",
        _ => false,
    };
    let bindable = |link: &&Link| {
        matches!(link.kind.as_str(), "" | "veth")
            && link.master.is_none_or(is_vrf)
            && link.mac.is_some_and(MacAddr::is_unicast)
            && link.up
            && link.running
            && link.name != control_interface
    };
    let in_use = in_use.iter().filter(|key| mirror.contains(Key::Neighbor(**key))).copied();
    Wanted {
        gateways: mirror.gateways().iter().take(MAX_GATEWAYS).chain(in_use).collect(),
        links: mirror.links().filter(bindable).map(|link| link.ifindex).collect(),
    }
}

/// Who was asked when.
#[derive(Debug, Default)]
pub struct Pace(BTreeMap<NeighborKey, Duration>);

impl Pace {
    /// The requests of this round, in view of all entries of the kernel.
    pub fn plan(&mut self, now: Duration, entries: &[Entry], wanted: &Wanted) -> Vec<Request> {
        let there: BTreeMap<NeighborKey, &Entry> = entries.iter().map(|entry| (entry.key, entry)).collect();
        let gateways: BTreeSet<NeighborKey> =
            wanted.gateways.iter().filter(|key| wanted.links.contains(&key.ifindex)).copied().collect();
        self.0.retain(|key, _| there.contains_key(key) || gateways.contains(key));

        let ours = entries.iter().filter(|entry| entry.is_ours());
        let released = ours.filter(|entry| !gateways.contains(&entry.key)).map(|e| Request::Release(e.key));
        let managed = gateways.iter().filter_map(|key| match there.get(key) {
            Some(entry) => (!entry.managed && entry.is_plain()).then_some(Request::Manage(*key)),
            None => Some(Request::Add(*key)),
        });
        let stale = entries.iter().filter(|entry| {
            let known = wanted.links.contains(&entry.key.ifindex) && !gateways.contains(&entry.key);
            known && entry.is_plain() && !entry.managed && entry.state & NUD_STALE != 0
        });
        let probed = stale.map(|entry| Request::Probe(entry.key));

        // Those that waited longest go first, or the first ones would keep all others waiting for ever.
        let mut due: Vec<(Option<Duration>, Request)> =
            managed.chain(probed).map(|request| (self.0.get(&request.key()).copied(), request)).collect();
        due.retain(|(asked, _)| asked.is_none_or(|asked| asked + PAUSE <= now));
        due.sort_by_key(|(asked, _)| *asked);
        let asked = due.into_iter().map(|(_, request)| request);
        let requests: Vec<Request> = released.chain(asked).take(ROUND).collect();
        self.0.extend(requests.iter().map(|request| (request.key(), now)));
        requests
    }
}
