//! Decoder of next-hop objects (`RTM_NEWNEXTHOP`, `linux/nexthop.h`). Pure.

use xenflow_proto::table::{Hop, HopFlags, MAX_HOPS, NextHop, NextHopKind};

use crate::attribute::{Attributes, NetlinkError, u16_at, u32_at};

/// Bytes of `struct nhmsg`.
const HEADER: usize = 8;
/// Bytes of `struct nexthop_grp`.
const MEMBER: usize = 8;

const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_GROUP_TYPE: u16 = 3;
const NHA_BLACKHOLE: u16 = 4;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_ENCAP_TYPE: u16 = 7;
const NHA_ENCAP: u16 = 8;
const NHA_FDB: u16 = 11;

/// Multipath (0) and resilient (1) groups share out by weight; others are unknown.
const GROUP_TYPE_MAX: u16 = 1;

/// The object in the payload of an `RTM_NEWNEXTHOP` or `RTM_DELNEXTHOP`. What cannot be described is
/// [`NextHopKind::Unsupported`].
///
/// # Errors
/// [`NetlinkError`] if the message is cut or has no id.
pub fn next_hop(payload: &[u8]) -> Result<NextHop, NetlinkError> {
    let short = NetlinkError::Short { what: "nhmsg", len: payload.len(), want: HEADER };
    let flags = u32_at(payload, 4).ok_or(short)?;
    let mut id = 0;
    let mut hop = Hop { gateway: None, oif: None, weight: 1, flags: hop_flags(flags), encap: false };
    let (mut group, mut blackhole, mut unsupported) = (None, false, false);
    for attribute in Attributes::new(payload.get(HEADER..).unwrap_or_default()) {
        match attribute.kind {
            NHA_ID => id = attribute.u32()?,
            NHA_GROUP => group = Some(members(attribute.value)),
            NHA_GROUP_TYPE => {
                unsupported |= u16_at(attribute.value, 0).is_none_or(|kind| kind > GROUP_TYPE_MAX);
            }
            NHA_BLACKHOLE => blackhole = true,
            NHA_OIF => hop.oif = Some(attribute.u32()?).filter(|&oif| oif != 0),
            NHA_GATEWAY => hop.gateway = Some(attribute.address()?),
            NHA_ENCAP_TYPE | NHA_ENCAP => hop.encap = true,
            NHA_FDB => unsupported = true,
            _ => {}
        }
    }
    if id == 0 {
        return Err(NetlinkError::Missing("NHA_ID"));
    }
    let kind = match group {
        _ if unsupported => NextHopKind::Unsupported,
        Some(members) => members.map_or(NextHopKind::Unsupported, NextHopKind::Group),
        None if blackhole => NextHopKind::Blackhole,
        None => NextHopKind::Single(hop),
    };
    Ok(NextHop { id, kind })
}

/// `struct nexthop_grp`: id, weight − 1 in 8 bits, and 8 higher ones since Linux 6.12.
fn members(bytes: &[u8]) -> Option<Vec<(u32, u32)>> {
    let chunks = bytes.chunks_exact(MEMBER);
    if chunks.len() > MAX_HOPS || !chunks.remainder().is_empty() {
        return None;
    }
    chunks
        .map(|member| {
            let [low, high] = *member.get(4..)?.first_chunk()?;
            let weight = u32::from(u16::from_le_bytes([low, high])) + 1;
            u32_at(member, 0).filter(|&id| id != 0).map(|id| (id, weight))
        })
        .collect()
}

/// Keeps the `RTNH_F_*` bits that change where packets go; others would only make noise.
#[must_use]
pub fn hop_flags(flags: u32) -> HopFlags {
    let [low, ..] = flags.to_le_bytes();
    HopFlags(low & (HopFlags::DEAD | HopFlags::ONLINK | HopFlags::LINKDOWN))
}
