//! Who has that address? What a frozen router's node says in its place, so that neighbors do not give the router up.
//!
//! Says what the kernel of the guest would, and stays silent where that would: what is asked was taken from the kernel's sources, what
//! is said is compared with its frames in the tests. How often somebody is answered is the sender's business.
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::net::{IpAddr, Ipv6Addr};

use xenflow_proto::MacAddr;

use super::frame::{
    ALL_NODES, ALL_NODES_MAC, ARP, Advertisement, Arp, HOP_LIMIT, ICMPV6, IPV6, NEIGHBOR_SOLICITATION, REPLY,
    REQUEST, SOURCE_LINK_LAYER, checksum, solicited_node, take, take_u16,
};
use super::{Vif, is_neighbor};

/// The answer to a frame from the vif's segment, without its tag, if it is an ARP request or a neighbor solicitation for one of the
/// vif's addresses. The vif's MAC address is in the message only; the frame is from the node's own, so that switches do not learn
/// the router's from it.
#[must_use]
pub fn answer(vif: &Vif, node: MacAddr, frame: &[u8]) -> Option<Vec<u8>> {
    let mut rest = frame;
    let (dst, src) = (MacAddr(take(&mut rest)?), MacAddr(take(&mut rest)?));
    let is_for_it = dst == vif.mac || dst.is_multicast();
    if !is_for_it || !can_be_told(vif, src) {
        return None;
    }
    match take_u16(&mut rest)? {
        ARP => arp(vif, node, rest),
        IPV6 => neighbor(vif, node, src, rest),
        _ => None,
    }
}

/// An answer to it goes to one other interface, and not to the router.
fn can_be_told(vif: &Vif, mac: MacAddr) -> bool {
    mac.is_unicast() && mac != vif.mac
}

/// May be the address of who asks. Who says that it is the router's is in conflict with it, and not answered.
fn may_ask(vif: &Vif, address: impl Into<IpAddr>) -> bool {
    let address = address.into();
    is_neighbor(address) && !vif.owns(address)
}

/// RFC 826. A probe (RFC 5227), from nobody, is answered to where it came from like any other.
fn arp(vif: &Vif, node: MacAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let asked = Arp::parse(payload)?;
    let ((mac, sender), (_, target)) = (asked.sender, asked.target);
    let is_question = asked.operation == REQUEST && can_be_told(vif, mac) && may_ask(vif, sender);
    let reply = Arp { operation: REPLY, sender: (vif.mac, target), target: asked.sender };
    (is_question && vif.owns(target)).then(|| reply.frame(mac, node))
}

/// RFC 4861: 7.1.1 says what is valid, 7.2.4 what is answered. A message behind an extension header is not looked at.
fn neighbor(vif: &Vif, node: MacAddr, src: MacAddr, mut packet: &[u8]) -> Option<Vec<u8>> {
    let packet = &mut packet;
    let [version, ..] = take::<4>(packet)?;
    let length = take_u16(packet)?;
    let [next_header, hop_limit] = take(packet)?;
    let source = Ipv6Addr::from(take::<16>(packet)?);
    let destination = Ipv6Addr::from(take::<16>(packet)?);
    // Behind it may be padding.
    let mut message = packet.get(..usize::from(length))?;
    if version >> 4 != 6
        || next_header != ICMPV6
        || hop_limit != HOP_LIMIT
        || checksum(source, destination, message) != 0
    {
        return None;
    }
    let [kind, code, ..] = take::<8>(&mut message)?;
    let target = Ipv6Addr::from(take::<16>(&mut message)?);
    let asker = source_link_layer(message).ok()?;
    if kind != NEIGHBOR_SOLICITATION || code != 0 || !vif.owns(target) || !may_ask(vif, source) {
        return None;
    }
    let to_group = destination == solicited_node(target);
    if source.is_unspecified() {
        // Somebody wants to know whether the address is free: everybody hears that it is not.
        let all = Advertisement { target, mac: vif.mac, to: ALL_NODES, is_solicited: false };
        return (to_group && asker.is_none()).then(|| all.frame(ALL_NODES_MAC, node));
    }
    let to = asker.unwrap_or(src);
    let one = Advertisement { target, mac: vif.mac, to: source, is_solicited: true };
    let is_heard = to_group || vif.owns(destination);
    (is_heard && can_be_told(vif, to)).then(|| one.frame(to, node))
}

/// An option that makes its message invalid.
struct Malformed;

/// The first source link-layer address among options.
fn source_link_layer(mut options: &[u8]) -> Result<Option<MacAddr>, Malformed> {
    let mut found = None;
    while !options.is_empty() {
        let (&[kind, eights], _) = options.split_first_chunk().ok_or(Malformed)?;
        let (option, rest) = options.split_at_checked(usize::from(eights) * 8).ok_or(Malformed)?;
        let (_, value) = option.split_first_chunk::<2>().ok_or(Malformed)?;
        if kind == SOURCE_LINK_LAYER && found.is_none() {
            found = Some(MacAddr(value.try_into().map_err(|_| Malformed)?));
        }
        options = rest;
    }
    Ok(found)
}
