//! Matches: a set of constraints on fields, in one canonical form so that equal matches are equal values.
//! It does not know which fields require which others: the switch says so.

use crate::field::{Field, Header, VLAN_PRESENT, put_entry};
use crate::wire::{DecodeError, Reader, patch_len, put_pad8};
use bytes::{BufMut, BytesMut};
use std::net::{Ipv4Addr, Ipv6Addr};

/// What a flow matches, as a set of masked fields.
///
/// It is kept as the bytes of its canonical form (16 bytes of memory and one allocation), so comparing, hashing and
/// encoding cost next to nothing:
/// fields in the order of [`Field`]; values without bits outside their mask; a mask of all bits left out; a field without
/// any masked bit left out; registers as 64-bit [`Field::Xreg`] (the form Open vSwitch gives back in OpenFlow 1.5);
/// packet type 0 (Ethernet) left out, because that is the default; fields unknown to this crate last, ordered by header.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Match {
    oxm: Box<[u8]>,
}

/// One constraint of a [`Match`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MatchField {
    /// The field.
    pub field: Field,
    /// The value its masked bits must have; other bits are 0.
    pub value: u128,
    /// The bits that count, never 0; [`Field::all_ones`] for an exact match.
    pub mask: u128,
}

impl Match {
    /// A builder.
    pub fn builder() -> MatchBuilder {
        MatchBuilder::default()
    }

    /// The match of every packet.
    pub fn any() -> Match {
        Match::default()
    }

    /// The constraints in canonical order, without fields this crate does not know.
    pub fn fields(&self) -> impl Iterator<Item = MatchField> + '_ {
        let mut r = Reader::new(&self.oxm, "match");
        std::iter::from_fn(move || {
            while !r.is_empty() {
                let h = Header::read(&mut r).ok()?;
                let Some(field) = h.field else {
                    r.skip(h.payload).ok()?;
                    continue;
                };
                let value = r.uint(field.bytes()).ok()?;
                let mask = if h.masked { r.uint(field.bytes()).ok()? } else { field.all_ones() };
                return Some(MatchField { field, value, mask });
            }
            None
        })
    }

    /// The constraint on a field. Ask for registers as [`Field::Xreg`].
    pub fn field(&self, field: Field) -> Option<MatchField> {
        self.fields().find(|f| f.field == field)
    }

    /// True if a field occurs that this crate does not know (it was decoded from a switch).
    pub fn has_unknown(&self) -> bool {
        let mut r = Reader::new(&self.oxm, "match");
        while !r.is_empty() {
            match Header::read(&mut r) {
                Ok(h) if h.field.is_some() => {
                    if r.skip(h.payload).is_err() {
                        return true;
                    }
                }
                _ => return true,
            }
        }
        false
    }

    /// The canonical OXM bytes, without the match header.
    pub fn as_oxm(&self) -> &[u8] {
        &self.oxm
    }

    /// A builder that starts from this match.
    pub fn to_builder(&self) -> MatchBuilder {
        let mut b = MatchBuilder::default();
        // Canonical bytes are readable by construction.
        let _ = b.read(Reader::new(&self.oxm, "match"));
        b
    }

    /// `struct ofp11_match_header`, the fields and the padding.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_u16(1);
        out.put_u16(0);
        out.put_slice(&self.oxm);
        let len = out.len().saturating_sub(start);
        patch_len(out, start, 2, len);
        put_pad8(out, start);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Match, DecodeError> {
        let kind = r.u16()?;
        if kind != 1 {
            return Err(DecodeError::BadValue { what: "match type", value: u64::from(kind) });
        }
        let len = r.u16()?;
        let body = r.body(len, 4, "match")?;
        r.skip_pad8(usize::from(len));
        Match::from_oxm(body)
    }

    /// Bare OXM or NXM entries, as packet-ins carry them.
    pub(crate) fn from_oxm(r: Reader<'_>) -> Result<Match, DecodeError> {
        let mut b = MatchBuilder::default();
        b.read(r)?;
        Ok(b.build())
    }
}

impl std::fmt::Debug for Match {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut map = f.debug_map();
        for m in self.fields() {
            if m.mask == m.field.all_ones() {
                map.entry(&m.field, &format_args!("{:#x}", m.value));
            } else {
                map.entry(&m.field, &format_args!("{:#x}/{:#x}", m.value, m.mask));
            }
        }
        if self.has_unknown() {
            map.entry(&"oxm", &format_args!("{:02x?}", &self.oxm));
        }
        map.finish()
    }
}

/// Collects constraints. Later constraints on the same field add to the earlier ones; where the same bit is given twice, the
/// later value stands.
#[derive(Debug, Clone, Default)]
pub struct MatchBuilder {
    /// Sorted by field, masks never 0.
    fields: Vec<MatchField>,
    /// Raw entries of unknown fields, header included.
    unknown: Vec<Box<[u8]>>,
}

macro_rules! exact {
    ($($(#[$doc:meta])* $name:ident: $ty:ty => $field:expr;)*) => {$(
        $(#[$doc])*
        pub fn $name(self, value: $ty) -> Self {
            self.exact($field, u128::from(value))
        }
    )*};
}

macro_rules! masked {
    ($($(#[$doc:meta])* $name:ident, $masked:ident: $ty:ty => $field:expr;)*) => {$(
        $(#[$doc])*
        pub fn $name(self, value: $ty) -> Self {
            self.exact($field, Bits::bits(value))
        }
        #[doc = concat!("[`MatchBuilder::", stringify!($name), "`] where only the bits of `mask` count.")]
        pub fn $masked(self, value: $ty, mask: $ty) -> Self {
            self.masked($field, Bits::bits(value), Bits::bits(mask))
        }
    )*};
}

/// Types whose bits are a field's value.
trait Bits {
    fn bits(self) -> u128;
}

macro_rules! bits {
    ($($ty:ty => |$v:ident| $e:expr;)*) => {$(
        impl Bits for $ty {
            fn bits(self) -> u128 { let $v = self; $e }
        }
    )*};
}

bits! {
    u16 => |v| v.into();
    u32 => |v| v.into();
    u64 => |v| v.into();
    u128 => |v| v;
    Ipv4Addr => |v| v.to_bits().into();
    Ipv6Addr => |v| v.to_bits();
    [u8; 6] => |v| mac_bits(v);
}

/// A MAC address as a field value.
pub fn mac_bits(mac: [u8; 6]) -> u128 {
    mac.iter().fold(0, |acc, &b| (acc << 8) | u128::from(b))
}

impl MatchBuilder {
    /// Any field, exactly.
    pub fn exact(self, field: Field, value: u128) -> Self {
        self.masked(field, value, field.all_ones())
    }

    /// Any field under a mask. A mask of 0 adds nothing; bits beyond the field's width are dropped.
    pub fn masked(mut self, field: Field, value: u128, mask: u128) -> Self {
        self.insert(field, value, mask);
        self
    }

    exact! {
        /// The port the packet came in by.
        in_port: u32 => Field::InPort;
        /// Ethernet type of the payload, after any VLAN tag.
        eth_type: u16 => Field::EthType;
        /// VLAN priority, 0..=7. Requires `vlan` or `vlan_tagged`.
        vlan_pcp: u8 => Field::VlanPcp;
        /// IP protocol. Requires an IP `eth_type`.
        ip_proto: u8 => Field::IpProto;
        /// DSCP, 0..=63.
        ip_dscp: u8 => Field::IpDscp;
        /// ECN, 0..=3.
        ip_ecn: u8 => Field::IpEcn;
        /// TTL or hop limit.
        ip_ttl: u8 => Field::IpTtl;
        /// ICMP type.
        icmpv4_type: u8 => Field::Icmpv4Type;
        /// ICMP code.
        icmpv4_code: u8 => Field::Icmpv4Code;
        /// ICMPv6 type.
        icmpv6_type: u8 => Field::Icmpv6Type;
        /// ICMPv6 code.
        icmpv6_code: u8 => Field::Icmpv6Code;
        /// ARP operation. Open vSwitch accepts 0..=255.
        arp_op: u16 => Field::ArpOp;
    }

    masked! {
        /// Metadata between tables.
        metadata, metadata_masked: u64 => Field::Metadata;
        /// Tunnel id.
        tunnel_id, tunnel_id_masked: u64 => Field::TunnelId;
        /// Packet mark.
        pkt_mark, pkt_mark_masked: u32 => Field::PktMark;
        /// Ethernet destination.
        eth_dst, eth_dst_masked: [u8; 6] => Field::EthDst;
        /// Ethernet source.
        eth_src, eth_src_masked: [u8; 6] => Field::EthSrc;
        /// VLAN id as OpenFlow has it: bit 12 ([`VLAN_PRESENT`]) says that there is a tag. See `vlan`, `vlan_tagged`, `untagged`.
        vlan_vid, vlan_vid_masked: u16 => Field::VlanVid;
        /// IPv4 source.
        ipv4_src, ipv4_src_masked: Ipv4Addr => Field::Ipv4Src;
        /// IPv4 destination.
        ipv4_dst, ipv4_dst_masked: Ipv4Addr => Field::Ipv4Dst;
        /// IPv6 source.
        ipv6_src, ipv6_src_masked: Ipv6Addr => Field::Ipv6Src;
        /// IPv6 destination.
        ipv6_dst, ipv6_dst_masked: Ipv6Addr => Field::Ipv6Dst;
        /// IPv6 flow label.
        ipv6_flabel, ipv6_flabel_masked: u32 => Field::Ipv6Flabel;
        /// Fragment bits: 1 any fragment, 2 later fragment.
        ip_frag, ip_frag_masked: u16 => Field::IpFrag;
        /// TCP source port.
        tcp_src, tcp_src_masked: u16 => Field::TcpSrc;
        /// TCP destination port.
        tcp_dst, tcp_dst_masked: u16 => Field::TcpDst;
        /// TCP flags, 12 bits.
        tcp_flags, tcp_flags_masked: u16 => Field::TcpFlags;
        /// UDP source port.
        udp_src, udp_src_masked: u16 => Field::UdpSrc;
        /// UDP destination port.
        udp_dst, udp_dst_masked: u16 => Field::UdpDst;
        /// ARP sender address.
        arp_spa, arp_spa_masked: Ipv4Addr => Field::ArpSpa;
        /// ARP target address.
        arp_tpa, arp_tpa_masked: Ipv4Addr => Field::ArpTpa;
        /// ARP sender MAC.
        arp_sha, arp_sha_masked: [u8; 6] => Field::ArpSha;
        /// ARP target MAC.
        arp_tha, arp_tha_masked: [u8; 6] => Field::ArpTha;
        /// Neighbor discovery target.
        nd_target, nd_target_masked: Ipv6Addr => Field::NdTarget;
        /// Neighbor discovery source link-layer address. Requires `icmpv6_type` 135.
        nd_sll, nd_sll_masked: [u8; 6] => Field::NdSll;
        /// Neighbor discovery target link-layer address. Requires `icmpv6_type` 136.
        nd_tll, nd_tll_masked: [u8; 6] => Field::NdTll;
    }

    /// A tag with this VLAN id, 0..=4095.
    pub fn vlan(self, vid: u16) -> Self {
        self.vlan_vid(vid | VLAN_PRESENT)
    }

    /// Any VLAN tag.
    pub fn vlan_tagged(self) -> Self {
        self.vlan_vid_masked(VLAN_PRESENT, VLAN_PRESENT)
    }

    /// No VLAN tag.
    pub fn untagged(self) -> Self {
        self.vlan_vid(0)
    }

    /// An IPv4 destination prefix; sets the Ethernet type.
    pub fn ipv4_dst_prefix(self, addr: Ipv4Addr, len: u8) -> Self {
        self.eth_type(0x0800).masked(Field::Ipv4Dst, addr.bits(), prefix_mask(32, len))
    }

    /// An IPv6 destination prefix; sets the Ethernet type.
    pub fn ipv6_dst_prefix(self, addr: Ipv6Addr, len: u8) -> Self {
        self.eth_type(0x86dd).masked(Field::Ipv6Dst, addr.bits(), prefix_mask(128, len))
    }

    /// Register `NXM_NX_REG<n>`, n in 0..16 (others wrap).
    pub fn reg(self, n: u8, value: u32) -> Self {
        self.reg_masked(n, value, u32::MAX)
    }

    /// Register `NXM_NX_REG<n>` where only the bits of `mask` count.
    pub fn reg_masked(self, n: u8, value: u32, mask: u32) -> Self {
        self.masked(Field::Reg(n & 15), value.into(), mask.into())
    }

    /// 64-bit register n in 0..8 (others wrap).
    pub fn xreg_masked(self, n: u8, value: u64, mask: u64) -> Self {
        self.masked(Field::Xreg(n & 7), value.into(), mask.into())
    }

    /// 128-bit register n in 0..4 (others wrap).
    pub fn xxreg_masked(self, n: u8, value: u128, mask: u128) -> Self {
        self.masked(Field::Xxreg(n & 3), value, mask)
    }

    /// The canonical match.
    pub fn build(mut self) -> Match {
        let len = self.fields.iter().map(|f| 4 + 2 * f.field.bytes()).sum::<usize>()
            + self.unknown.iter().map(|u| u.len()).sum::<usize>();
        let mut out = BytesMut::with_capacity(len);
        for f in &self.fields {
            put_entry(&mut out, f.field, f.value, f.mask);
        }
        self.unknown.sort();
        self.unknown.dedup();
        for raw in &self.unknown {
            out.put_slice(raw);
        }
        Match { oxm: out.as_ref().into() }
    }

    /// Adds a constraint; tells whether it contradicts an earlier one on the same bits.
    fn insert(&mut self, field: Field, value: u128, mask: u128) -> bool {
        let mask = mask & field.all_ones();
        let value = value & mask;
        #[allow(clippy::wildcard_enum_match_arm, reason = "every other field is kept as it is")]
        match field {
            // Open vSwitch in_port of NXM and OXM are one field.
            Field::InPortNxm => {
                return self.insert(Field::InPort, widen_port(value), Field::InPort.all_ones());
            }
            Field::Reg(n) => {
                let shift = if n % 2 == 0 { 32 } else { 0 };
                return self.insert(Field::Xreg(n / 2), value << shift, mask << shift);
            }
            Field::Xxreg(n) => {
                let high = self.insert(Field::Xreg(n * 2), value >> 64, mask >> 64);
                let low = u128::from(u64::MAX);
                return self.insert(Field::Xreg(n * 2 + 1), value & low, mask & low) | high;
            }
            Field::PacketType if value == 0 && mask == field.all_ones() => return false,
            _ => {}
        }
        if mask == 0 {
            return false;
        }
        match self.fields.binary_search_by_key(&field, |f| f.field) {
            Ok(at) => match self.fields.get_mut(at) {
                Some(old) => {
                    let conflict = (old.value ^ value) & old.mask & mask != 0;
                    old.value = (old.value & !mask) | value;
                    old.mask |= mask;
                    conflict
                }
                None => false,
            },
            Err(at) => {
                if self.fields.capacity() == 0 {
                    self.fields.reserve(8);
                }
                self.fields.insert(at, MatchField { field, value, mask });
                false
            }
        }
    }

    fn read(&mut self, mut r: Reader<'_>) -> Result<(), DecodeError> {
        while !r.is_empty() {
            let h = Header::read(&mut r)?;
            match h.field {
                Some(field) if field != Field::VlanTci => {
                    let value = r.uint(field.bytes())?;
                    let mask = if h.masked { r.uint(field.bytes())? } else { field.all_ones() };
                    if self.insert(field, value, mask) {
                        return Err(DecodeError::Conflict(field));
                    }
                }
                _ => {
                    let mut raw = Vec::with_capacity(8 + h.payload);
                    raw.extend_from_slice(&h.raw.to_be_bytes());
                    if let Some(experimenter) = h.experimenter {
                        raw.extend_from_slice(&experimenter.to_be_bytes());
                    }
                    raw.extend_from_slice(r.take(h.payload)?);
                    self.unknown.push(raw.into_boxed_slice());
                }
            }
        }
        Ok(())
    }
}

fn prefix_mask(bits: u32, len: u8) -> u128 {
    let ones = u128::MAX >> (128 - bits);
    let host = bits.saturating_sub(u32::from(len));
    ones.checked_shr(host).map_or(0, |_| ones.checked_shl(host).unwrap_or(0) & ones)
}

/// A 16-bit port number of NXM as 32 bits: the reserved ports 0xff00.. keep their meaning.
fn widen_port(port: u128) -> u128 {
    if port >= 0xff00 { port | 0xffff_0000 } else { port }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(m: &Match) -> Match {
        let mut out = BytesMut::new();
        m.encode(&mut out);
        assert_eq!(out.len() % 8, 0);
        let mut r = Reader::new(&out, "test");
        let back = Match::decode(&mut r).unwrap();
        assert!(r.is_empty());
        back
    }

    #[test]
    fn order_and_masks_do_not_matter() {
        let a = Match::builder()
            .reg(1, 7)
            .ipv4_dst_prefix(Ipv4Addr::new(10, 1, 2, 3), 8)
            .in_port(3)
            .ipv4_src_masked(Ipv4Addr::new(1, 2, 3, 4), Ipv4Addr::UNSPECIFIED)
            .reg_masked(0, 0xff, 0x0f)
            .build();
        let b = Match::builder()
            .in_port(3)
            .eth_type(0x800)
            .xreg_masked(0, 0x0000_000f_0000_0007, 0x0000_000f_ffff_ffff)
            .ipv4_dst_masked(Ipv4Addr::new(10, 0, 0, 0), Ipv4Addr::new(255, 0, 0, 0))
            .build();
        assert_eq!(a, b);
        assert_eq!(a, round(&a));
        assert_eq!(a, a.to_builder().build());
    }

    #[test]
    fn prefix_masks() {
        for (len, mask) in [(0, 0u32), (1, 0x8000_0000), (24, 0xffff_ff00), (32, u32::MAX), (99, u32::MAX)] {
            assert_eq!(prefix_mask(32, len), u128::from(mask), "/{len}");
        }
        assert_eq!(prefix_mask(128, 0), 0);
        assert_eq!(prefix_mask(128, 64), u128::from(u64::MAX) << 64);
        assert_eq!(prefix_mask(128, 128), u128::MAX);
    }

    #[test]
    fn unknown_fields_survive() {
        // class 0x8000, field 37 (PBB I-SID, 3 bytes), then eth_type.
        let raw = [0x80, 0x00, 0x4a, 3, 1, 2, 3, 0x80, 0x00, 0x0a, 2, 0x08, 0x00];
        let m = Match::from_oxm(Reader::new(&raw, "test")).unwrap();
        assert!(m.has_unknown());
        assert_eq!(m.field(Field::EthType).unwrap().value, 0x800);
        assert_eq!(round(&m), m);
        assert_ne!(m, Match::builder().eth_type(0x800).build());
    }

    #[test]
    fn contradictions_are_refused() {
        // NXM_NX_REG0 = 1 and XREG0 high half = 2.
        let raw = [0, 1, 0, 4, 0, 0, 0, 1, 0x80, 0x01, 0, 8, 0, 0, 0, 2, 0, 0, 0, 0];
        assert_eq!(Match::from_oxm(Reader::new(&raw, "test")), Err(DecodeError::Conflict(Field::Xreg(0))));
    }
}
