//! Between the messages and the generated code of the frozen schema. Nothing else sees that code but `node::wire`, which has
//! the tables of this one in it.
//!
//! Towards the wire, every type is destructured: a new field does not compile until somebody decides about it.
//! From the wire, every field is checked here and nowhere else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::digest::Digest;
use crate::identity::{Name, NameError};
use crate::message::{
    GuestMessage, Hello, HostMessage, MAX_CERTIFICATE, MAX_CERTIFICATES, MAX_CHANGES, MAX_IN_USE,
    MAX_REJECTED, MAX_TEXT, RefusalReason, Renewed, Welcome,
};
use crate::node::MegaflowFieldsError;
use crate::table::{
    AddressKey, Change, Family, Hop, HopFlags, Key, Link, MAX_HOPS, MAX_LINK_NAME, Neighbor, NeighborKey,
    NextHop, NextHopKind, Object, Obstacle, ObstacleKey, ObstacleKind, Route, RouteKey, RouteKind,
    RouteTarget, Settings,
};
use crate::types::{MacAddr, Seq, VlanRangeError};

/// Generated from `schema/xenflow-v1.proto`; `tests/schema.rs` says how.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub(crate) mod pb {
    include!("../schema/xenflow-v1.rs");
}

/// A message that breaks the rules.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// Not even protobuf: truncated, or garbage.
    #[error("malformed message")]
    Protobuf(#[from] prost::DecodeError),
    /// A field that must be there is not, or a `oneof` is of an unknown kind.
    #[error("{0} is missing or of a kind unknown to this version")]
    Missing(&'static str),
    /// A field of the wrong length.
    #[error("{field} has {len} bytes, not {want}")]
    Length {
        /// Its name in the schema.
        field: &'static str,
        /// Its length.
        len: usize,
        /// The lengths it may have.
        want: &'static str,
    },
    /// A number outside its range.
    #[error("{field} is {value}, not {want}")]
    Range {
        /// Its name in the schema.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The range.
        want: &'static str,
    },
    /// A list that is too long.
    #[error("{count} {field}, more than {limit}")]
    TooMany {
        /// What they are.
        field: &'static str,
        /// How many.
        count: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// Not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Not a VLAN.
    #[error(transparent)]
    Vlan(#[from] VlanRangeError),
    /// Not fields of a megaflow.
    #[error(transparent)]
    MegaflowFields(#[from] MegaflowFieldsError),
    /// Bits set past the prefix length.
    #[error("{0} has bits set past its prefix length")]
    HostBits(IpNet),
}

pub(crate) type Decoded<T> = Result<T, DecodeError>;

pub(crate) fn need<T>(value: Option<T>, field: &'static str) -> Decoded<T> {
    value.ok_or(DecodeError::Missing(field))
}

pub(crate) fn at_most<T>(list: Vec<T>, limit: usize, field: &'static str) -> Decoded<Vec<T>> {
    if list.len() > limit { Err(DecodeError::TooMany { field, count: list.len(), limit }) } else { Ok(list) }
}

fn narrow<T: TryFrom<u32>>(value: u32, field: &'static str, want: &'static str) -> Decoded<T> {
    T::try_from(value).map_err(|_| DecodeError::Range { field, value: value.into(), want })
}

pub(crate) fn nonzero(value: u32, field: &'static str) -> Decoded<u32> {
    if value == 0 { Err(DecodeError::Range { field, value: 0, want: "1 or more" }) } else { Ok(value) }
}

fn optional(value: u32) -> Option<u32> {
    (value != 0).then_some(value)
}

fn weight(value: u32) -> Decoded<u32> {
    if (1..=65536).contains(&value) {
        Ok(value)
    } else {
        Err(DecodeError::Range { field: "weight", value: value.into(), want: "1 to 65536" })
    }
}

pub(crate) fn mac(bytes: &[u8]) -> Decoded<MacAddr> {
    match bytes.try_into() {
        Ok(mac) => Ok(MacAddr(mac)),
        Err(_) => Err(DecodeError::Length { field: "mac", len: bytes.len(), want: "6" }),
    }
}

fn addr(bytes: &[u8], field: &'static str) -> Decoded<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        Ok(Ipv4Addr::from(v4).into())
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        Ok(Ipv6Addr::from(v6).into())
    } else {
        Err(DecodeError::Length { field, len: bytes.len(), want: "4 or 16" })
    }
}

fn addr_bytes(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// For people only: cut, and without control characters, so that it can stand in a log line.
pub(crate) fn text(text: &str) -> String {
    let mut clean: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    clean.truncate(clean.floor_char_boundary(MAX_TEXT));
    clean
}

fn link_name(name: String, field: &'static str) -> Decoded<String> {
    if name.len() > MAX_LINK_NAME {
        return Err(DecodeError::Length { field, len: name.len(), want: "at most 15" });
    }
    Ok(text(&name))
}

pub(crate) fn guest_message(message: pb::GuestMessage) -> Decoded<GuestMessage> {
    use pb::guest_message::Body;
    Ok(match need(message.body, "body of the message")? {
        Body::Hello(pb::Hello { versions, router, boot_id, agent }) => GuestMessage::Hello(Hello {
            versions: at_most(versions, 16, "versions")?,
            router: router.parse::<Name>()?,
            boot_id: boot_id.as_slice().try_into().map_err(|_| DecodeError::Length {
                field: "boot_id",
                len: boot_id.len(),
                want: "16",
            })?,
            agent: text(&agent),
        }),
        Body::SnapshotBegin(pb::SnapshotBegin { seq }) => GuestMessage::SnapshotBegin(Seq(seq)),
        Body::Changes(pb::Changes { seq, changes }) => GuestMessage::Changes {
            seq: Seq(seq),
            changes: at_most(changes, MAX_CHANGES, "changes")?
                .into_iter()
                .map(change)
                .collect::<Decoded<_>>()?,
        },
        Body::SnapshotEnd(pb::SnapshotEnd { seq }) => GuestMessage::SnapshotEnd(Seq(seq)),
        Body::Resume(pb::Resume { seq }) => GuestMessage::Resume(Seq(seq)),
        Body::Renew(pb::Renew {}) => GuestMessage::Renew,
        Body::Ping(pb::Ping { token }) => GuestMessage::Ping(token),
        Body::Pong(pb::Pong { token }) => GuestMessage::Pong(token),
    })
}

pub(crate) fn guest_message_to_wire(message: &GuestMessage) -> pb::GuestMessage {
    use pb::guest_message::Body;
    let body = match message {
        GuestMessage::Hello(Hello { versions, router, boot_id, agent }) => Body::Hello(pb::Hello {
            versions: versions.clone(),
            router: router.to_string(),
            boot_id: boot_id.to_vec(),
            agent: text(agent),
        }),
        GuestMessage::SnapshotBegin(seq) => Body::SnapshotBegin(pb::SnapshotBegin { seq: seq.0 }),
        GuestMessage::Changes { seq, changes } => {
            Body::Changes(pb::Changes { seq: seq.0, changes: changes.iter().map(change_to_wire).collect() })
        }
        GuestMessage::SnapshotEnd(seq) => Body::SnapshotEnd(pb::SnapshotEnd { seq: seq.0 }),
        GuestMessage::Resume(seq) => Body::Resume(pb::Resume { seq: seq.0 }),
        GuestMessage::Renew => Body::Renew(pb::Renew {}),
        GuestMessage::Ping(token) => Body::Ping(pb::Ping { token: *token }),
        GuestMessage::Pong(token) => Body::Pong(pb::Pong { token: *token }),
    };
    pb::GuestMessage { body: Some(body) }
}

pub(crate) fn host_message(message: pb::HostMessage) -> Decoded<HostMessage> {
    use pb::host_message::Body;
    Ok(match need(message.body, "body of the message")? {
        Body::Welcome(pb::Welcome { version, node, max_frame_bytes, max_changes, window, held }) => {
            HostMessage::Welcome(Welcome {
                version,
                node: node.parse::<Name>()?,
                max_frame_bytes: nonzero(max_frame_bytes, "max_frame_bytes")?,
                max_changes: nonzero(max_changes, "max_changes")?,
                window: nonzero(window, "window")?,
                held: held.map(|pb::Digest { objects, sum }| Digest { objects, sum }),
            })
        }
        Body::Ack(pb::Ack { seq, rejected, accepted }) => HostMessage::Ack {
            seq: Seq(seq),
            rejected: at_most(rejected, MAX_REJECTED, "rejected keys")?
                .into_iter()
                .map(|pb::Rejected { key: rejected, reason }| {
                    Ok((key(need(rejected, "key")?)?, text(&reason)))
                })
                .collect::<Decoded<_>>()?,
            accepted: at_most(accepted, MAX_REJECTED, "accepted keys")?
                .into_iter()
                .map(key)
                .collect::<Decoded<_>>()?,
        },
        Body::InUse(pb::InUse { neighbors }) => HostMessage::InUse(
            at_most(neighbors, MAX_IN_USE, "neighbors")?.iter().map(neighbor_key).collect::<Decoded<_>>()?,
        ),
        Body::Renewed(pb::Renewed { chain, anchors }) => HostMessage::Renewed(Renewed {
            chain: certificates(chain, "chain")?,
            anchors: certificates(anchors, "anchors")?,
        }),
        Body::Refusal(pb::Refusal { reason, detail }) => {
            HostMessage::Refusal { reason: refusal_reason(reason), detail: text(&detail) }
        }
        Body::Ping(pb::Ping { token }) => HostMessage::Ping(token),
        Body::Pong(pb::Pong { token }) => HostMessage::Pong(token),
    })
}

pub(crate) fn host_message_to_wire(message: &HostMessage) -> pb::HostMessage {
    use pb::host_message::Body;
    let body = match message {
        HostMessage::Welcome(Welcome { version, node, max_frame_bytes, max_changes, window, held }) => {
            Body::Welcome(pb::Welcome {
                version: *version,
                node: node.to_string(),
                max_frame_bytes: *max_frame_bytes,
                max_changes: *max_changes,
                window: *window,
                held: held.map(|Digest { objects, sum }| pb::Digest { objects, sum }),
            })
        }
        HostMessage::Ack { seq, rejected, accepted } => Body::Ack(pb::Ack {
            seq: seq.0,
            rejected: rejected
                .iter()
                .map(|(key, reason)| pb::Rejected { key: Some(key_to_wire(key)), reason: text(reason) })
                .collect(),
            accepted: accepted.iter().map(key_to_wire).collect(),
        }),
        HostMessage::InUse(neighbors) => {
            Body::InUse(pb::InUse { neighbors: neighbors.iter().map(neighbor_key_to_wire).collect() })
        }
        HostMessage::Renewed(Renewed { chain, anchors }) => {
            Body::Renewed(pb::Renewed { chain: chain.clone(), anchors: anchors.clone() })
        }
        HostMessage::Refusal { reason, detail } => Body::Refusal(pb::Refusal {
            reason: refusal_reason_to_wire(*reason).into(),
            detail: text(detail),
        }),
        HostMessage::Ping(token) => Body::Ping(pb::Ping { token: *token }),
        HostMessage::Pong(token) => Body::Pong(pb::Pong { token: *token }),
    };
    pb::HostMessage { body: Some(body) }
}

fn certificates(list: Vec<Vec<u8>>, field: &'static str) -> Decoded<Vec<Vec<u8>>> {
    if list.is_empty() {
        return Err(DecodeError::Missing(field));
    }
    if let Some(long) = list.iter().find(|der| !(1..=MAX_CERTIFICATE).contains(&der.len())) {
        return Err(DecodeError::Length { field, len: long.len(), want: "1 to 8192" });
    }
    at_most(list, MAX_CERTIFICATES, field)
}

fn refusal_reason(reason: i32) -> RefusalReason {
    use pb::refusal::Reason;
    match Reason::try_from(reason) {
        Ok(Reason::Version) => RefusalReason::Version,
        Ok(Reason::Identity) => RefusalReason::Identity,
        Ok(Reason::UnknownRouter) => RefusalReason::UnknownRouter,
        Ok(Reason::Protocol) => RefusalReason::Protocol,
        Ok(Reason::Limit) => RefusalReason::Limit,
        Ok(Reason::Replaced) => RefusalReason::Replaced,
        Ok(Reason::Shutdown) => RefusalReason::Shutdown,
        Ok(Reason::Unspecified) | Err(_) => RefusalReason::Other,
    }
}

fn refusal_reason_to_wire(reason: RefusalReason) -> pb::refusal::Reason {
    use pb::refusal::Reason;
    match reason {
        RefusalReason::Other => Reason::Unspecified,
        RefusalReason::Version => Reason::Version,
        RefusalReason::Identity => Reason::Identity,
        RefusalReason::UnknownRouter => Reason::UnknownRouter,
        RefusalReason::Protocol => Reason::Protocol,
        RefusalReason::Limit => Reason::Limit,
        RefusalReason::Replaced => Reason::Replaced,
        RefusalReason::Shutdown => Reason::Shutdown,
    }
}

pub(crate) fn change(change: pb::Change) -> Decoded<Change> {
    use pb::change::Op;
    Ok(match need(change.op, "op of a change")? {
        Op::Upsert(upserted) => Change::Upsert(object(upserted)?),
        Op::Remove(removed) => Change::Remove(key(removed)?),
    })
}

pub(crate) fn change_to_wire(change: &Change) -> pb::Change {
    use pb::change::Op;
    let op = match change {
        Change::Upsert(object) => Op::Upsert(object_to_wire(object)),
        Change::Remove(key) => Op::Remove(key_to_wire(key)),
    };
    pb::Change { op: Some(op) }
}

fn object(object: pb::Object) -> Decoded<Object> {
    use pb::object::Kind;
    Ok(match need(object.kind, "kind of an object")? {
        Kind::Link(it) => Object::Link(link(it)?),
        Kind::Address(pb::Address { key }) => Object::Address(address_key(need(key, "key")?)?),
        Kind::Route(it) => Object::Route(route(it)?),
        Kind::NextHop(it) => Object::NextHop(next_hop(it)?),
        Kind::Neighbor(pb::Neighbor { key, mac: lladdr }) => {
            Object::Neighbor(Neighbor { key: neighbor_key(&need(key, "key")?)?, mac: mac(&lladdr)? })
        }
        Kind::Settings(pb::Settings { ipv4_hash_policy, ipv6_hash_policy }) => Object::Settings(Settings {
            ipv4_hash_policy: narrow(ipv4_hash_policy, "ipv4_hash_policy", "0 to 255")?,
            ipv6_hash_policy: narrow(ipv6_hash_policy, "ipv6_hash_policy", "0 to 255")?,
        }),
        Kind::Obstacle(pb::Obstacle { key, detail }) => {
            Object::Obstacle(Obstacle { key: obstacle_key(&need(key, "key")?)?, detail: text(&detail) })
        }
    })
}

pub(crate) fn object_to_wire(object: &Object) -> pb::Object {
    use pb::object::Kind;
    let kind = match object {
        Object::Link(link) => Kind::Link(link_to_wire(link)),
        Object::Address(key) => Kind::Address(pb::Address { key: Some(address_key_to_wire(key)) }),
        Object::Route(route) => Kind::Route(route_to_wire(route)),
        Object::NextHop(next_hop) => Kind::NextHop(next_hop_to_wire(next_hop)),
        Object::Neighbor(Neighbor { key, mac }) => {
            Kind::Neighbor(pb::Neighbor { key: Some(neighbor_key_to_wire(key)), mac: mac.0.to_vec() })
        }
        Object::Settings(Settings { ipv4_hash_policy, ipv6_hash_policy }) => Kind::Settings(pb::Settings {
            ipv4_hash_policy: (*ipv4_hash_policy).into(),
            ipv6_hash_policy: (*ipv6_hash_policy).into(),
        }),
        Object::Obstacle(Obstacle { key, detail }) => {
            Kind::Obstacle(pb::Obstacle { key: Some(obstacle_key_to_wire(key)), detail: text(detail) })
        }
    };
    pb::Object { kind: Some(kind) }
}

fn key(key: pb::Key) -> Decoded<Key> {
    use pb::key::Kind;
    Ok(match need(key.kind, "kind of a key")? {
        Kind::Link(ifindex) => Key::Link(nonzero(ifindex, "ifindex")?),
        Kind::Address(it) => Key::Address(address_key(it)?),
        Kind::Route(it) => Key::Route(route_key(it)?),
        Kind::NextHop(id) => Key::NextHop(nonzero(id, "next-hop id")?),
        Kind::Neighbor(it) => Key::Neighbor(neighbor_key(&it)?),
        Kind::Settings(_) => Key::Settings,
        Kind::Obstacle(it) => Key::Obstacle(obstacle_key(&it)?),
    })
}

fn key_to_wire(key: &Key) -> pb::Key {
    use pb::key::Kind;
    let kind = match key {
        Key::Link(ifindex) => Kind::Link(*ifindex),
        Key::Address(key) => Kind::Address(address_key_to_wire(key)),
        Key::Route(key) => Kind::Route(route_key_to_wire(key)),
        Key::NextHop(id) => Kind::NextHop(*id),
        Key::Neighbor(key) => Kind::Neighbor(neighbor_key_to_wire(key)),
        Key::Settings => Kind::Settings(true),
        Key::Obstacle(key) => Kind::Obstacle(obstacle_key_to_wire(key)),
    };
    pb::Key { kind: Some(kind) }
}

fn link(link: pb::Link) -> Decoded<Link> {
    let pb::Link { ifindex, name, mac: lladdr, mtu, up, running, kind, master, vrf_table, ipv6_mtu } = link;
    Ok(Link {
        ifindex: nonzero(ifindex, "ifindex")?,
        name: link_name(name, "link name")?,
        mac: if lladdr.is_empty() { None } else { Some(mac(&lladdr)?) },
        mtu,
        up,
        running,
        kind: link_name(kind, "link kind")?,
        master: optional(master),
        vrf_table: optional(vrf_table),
        ipv6_mtu: optional(ipv6_mtu),
    })
}

fn link_to_wire(link: &Link) -> pb::Link {
    let Link { ifindex, name, mac, mtu, up, running, kind, master, vrf_table, ipv6_mtu } = link;
    pb::Link {
        ifindex: *ifindex,
        name: name.clone(),
        mac: mac.map_or_else(Vec::new, |mac| mac.0.to_vec()),
        mtu: *mtu,
        up: *up,
        running: *running,
        kind: kind.clone(),
        master: master.unwrap_or(0),
        vrf_table: vrf_table.unwrap_or(0),
        ipv6_mtu: ipv6_mtu.unwrap_or(0),
    }
}

fn prefix(prefix: Option<pb::Prefix>) -> Decoded<IpNet> {
    let pb::Prefix { addr: bytes, len } = need(prefix, "prefix")?;
    let addr = addr(&bytes, "address of a prefix")?;
    let want = if addr.is_ipv4() { "0 to 32" } else { "0 to 128" };
    let range = || DecodeError::Range { field: "prefix length", value: len.into(), want };
    u8::try_from(len).ok().and_then(|len| IpNet::new(addr, len).ok()).ok_or_else(range)
}

fn prefix_to_wire(prefix: IpNet) -> pb::Prefix {
    pb::Prefix { addr: addr_bytes(prefix.addr()), len: prefix.prefix_len().into() }
}

fn address_key(key: pb::AddressKey) -> Decoded<AddressKey> {
    let pb::AddressKey { ifindex, prefix: address } = key;
    Ok(AddressKey { ifindex: nonzero(ifindex, "ifindex")?, address: prefix(address)? })
}

fn address_key_to_wire(key: &AddressKey) -> pb::AddressKey {
    let AddressKey { ifindex, address } = key;
    pb::AddressKey { ifindex: *ifindex, prefix: Some(prefix_to_wire(*address)) }
}

fn route_key(key: pb::RouteKey) -> Decoded<RouteKey> {
    let pb::RouteKey { table, dst, tos, metric } = key;
    let dst = prefix(dst)?;
    if dst != dst.trunc() {
        return Err(DecodeError::HostBits(dst));
    }
    Ok(RouteKey { table, dst, tos: narrow(tos, "tos", "0 to 255")?, metric })
}

fn route_key_to_wire(key: &RouteKey) -> pb::RouteKey {
    let RouteKey { table, dst, tos, metric } = key;
    pb::RouteKey { table: *table, dst: Some(prefix_to_wire(*dst)), tos: (*tos).into(), metric: *metric }
}

fn route(route: pb::Route) -> Decoded<Route> {
    let pb::Route { key, r#type, protocol, scope, next_hop_id, hops, mtu } = route;
    Ok(Route {
        key: route_key(need(key, "key")?)?,
        kind: RouteKind::from(narrow::<u8>(r#type, "route type", "0 to 255")?),
        protocol: narrow(protocol, "protocol", "0 to 255")?,
        scope: narrow(scope, "scope", "0 to 255")?,
        target: match optional(next_hop_id) {
            Some(id) => RouteTarget::NextHop(id),
            None => RouteTarget::Hops(
                at_most(hops, MAX_HOPS, "next hops")?.into_iter().map(hop).collect::<Decoded<_>>()?,
            ),
        },
        mtu: optional(mtu),
    })
}

fn route_to_wire(route: &Route) -> pb::Route {
    let Route { key, kind, protocol, scope, target, mtu } = route;
    let (next_hop_id, hops) = match target {
        RouteTarget::NextHop(id) => (*id, Vec::new()),
        RouteTarget::Hops(hops) => (0, hops.iter().map(hop_to_wire).collect()),
    };
    pb::Route {
        key: Some(route_key_to_wire(key)),
        r#type: u8::from(*kind).into(),
        protocol: (*protocol).into(),
        scope: (*scope).into(),
        next_hop_id,
        hops,
        mtu: mtu.unwrap_or(0),
    }
}

fn hop(hop: pb::Hop) -> Decoded<Hop> {
    let pb::Hop { gateway, oif, weight: share, flags, encap } = hop;
    Ok(Hop {
        gateway: if gateway.is_empty() { None } else { Some(addr(&gateway, "gateway")?) },
        oif: optional(oif),
        weight: weight(share)?,
        flags: HopFlags(narrow(flags, "next-hop flags", "0 to 255")?),
        encap,
    })
}

fn hop_to_wire(hop: &Hop) -> pb::Hop {
    let Hop { gateway, oif, weight, flags, encap } = hop;
    pb::Hop {
        gateway: gateway.map_or_else(Vec::new, addr_bytes),
        oif: oif.unwrap_or(0),
        weight: *weight,
        flags: flags.0.into(),
        encap: *encap,
    }
}

fn next_hop(next_hop: pb::NextHop) -> Decoded<NextHop> {
    use pb::next_hop::Kind;
    let pb::NextHop { id, kind } = next_hop;
    let kind = match need(kind, "kind of a next-hop object")? {
        Kind::Blackhole(_) => NextHopKind::Blackhole,
        Kind::Single(single) => NextHopKind::Single(hop(single)?),
        Kind::Group(pb::Group { members }) => NextHopKind::Group(
            at_most(members, MAX_HOPS, "members of a group")?
                .into_iter()
                .map(|pb::Member { id, weight: share }| Ok((nonzero(id, "next-hop id")?, weight(share)?)))
                .collect::<Decoded<_>>()?,
        ),
        Kind::Unsupported(_) => NextHopKind::Unsupported,
    };
    Ok(NextHop { id: nonzero(id, "next-hop id")?, kind })
}

fn next_hop_to_wire(next_hop: &NextHop) -> pb::NextHop {
    use pb::next_hop::Kind;
    let NextHop { id, kind } = next_hop;
    let kind = match kind {
        NextHopKind::Blackhole => Kind::Blackhole(true),
        NextHopKind::Single(hop) => Kind::Single(hop_to_wire(hop)),
        NextHopKind::Group(members) => Kind::Group(pb::Group {
            members: members.iter().map(|&(id, weight)| pb::Member { id, weight }).collect(),
        }),
        NextHopKind::Unsupported => Kind::Unsupported(true),
    };
    pb::NextHop { id: *id, kind: Some(kind) }
}

fn neighbor_key(key: &pb::NeighborKey) -> Decoded<NeighborKey> {
    let pb::NeighborKey { ifindex, addr: bytes } = key;
    Ok(NeighborKey { ifindex: nonzero(*ifindex, "ifindex")?, addr: addr(bytes, "neighbor address")? })
}

fn neighbor_key_to_wire(key: &NeighborKey) -> pb::NeighborKey {
    let NeighborKey { ifindex, addr } = key;
    pb::NeighborKey { ifindex: *ifindex, addr: addr_bytes(*addr) }
}

fn obstacle_key(key: &pb::ObstacleKey) -> Decoded<ObstacleKey> {
    let pb::ObstacleKey { ifindex, family, kind } = key;
    let family = match family {
        0 => None,
        4 => Some(Family::V4),
        6 => Some(Family::V6),
        other => {
            let value = u64::from(*other);
            return Err(DecodeError::Range { field: "family", value, want: "0, 4 or 6" });
        }
    };
    let kind = ObstacleKind::from(narrow::<u8>(*kind, "obstacle kind", "0 to 255")?);
    Ok(ObstacleKey { ifindex: optional(*ifindex), family, kind })
}

fn obstacle_key_to_wire(key: &ObstacleKey) -> pb::ObstacleKey {
    let ObstacleKey { ifindex, family, kind } = key;
    let family = match family {
        None => 0,
        Some(Family::V4) => 4,
        Some(Family::V6) => 6,
    };
    pb::ObstacleKey { ifindex: ifindex.unwrap_or(0), family, kind: u8::from(*kind).into() }
}
