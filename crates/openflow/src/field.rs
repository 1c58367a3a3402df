//! Match fields: their OXM/NXM headers and widths. What a set of them means stands in `matching.rs`.

use crate::wire::{DecodeError, Reader};
use bytes::{BufMut, BytesMut};

/// Classes of OXM headers (`enum ofp12_oxm_class`).
const NXM_0: u16 = 0x0000;
const NXM_1: u16 = 0x0001;
const OPENFLOW_BASIC: u16 = 0x8000;
const PACKET_REGS: u16 = 0x8001;
const EXPERIMENTER: u16 = 0xffff;

/// A field of a packet or of its journey through the switch (`meta-flow.h` of Open vSwitch).
///
/// The order is the order on the wire: a field stands after the fields it requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Field {
    /// Packet type (namespace, type); 0 is Ethernet, the default, which a [`crate::Match`] does not hold.
    PacketType,
    /// Ingress port, 32 bits. Cannot be set: see [`Field::InPortNxm`].
    InPort,
    /// Ingress port as the 16 bits of NXM, the form that actions can write, copy and learn.
    InPortNxm,
    /// Output port of the action set.
    ActsetOutput,
    /// Metadata between tables.
    Metadata,
    /// Tunnel (logical port) id.
    TunnelId,
    /// `NXM_NX_REG0..15`, 32 bits. In a match it is kept as half of an [`Field::Xreg`].
    Reg(u8),
    /// `OXM_OF_PKT_REG0..7`, 64 bits: register 2n is its high half, 2n+1 its low half.
    Xreg(u8),
    /// `NXM_NX_XXREG0..3`, 128 bits: registers 4n..4n+3. In a match it is kept as two [`Field::Xreg`].
    Xxreg(u8),
    /// Packet mark (the skb's mark in Linux).
    PktMark,
    /// Connection tracking state.
    CtState,
    /// Connection tracking zone.
    CtZone,
    /// Connection tracking mark.
    CtMark,
    /// Ethernet destination.
    EthDst,
    /// Ethernet source.
    EthSrc,
    /// Ethernet type of the payload, after any VLAN tag.
    EthType,
    /// NXM's whole 802.1Q control word, for actions and learning only.
    VlanTci,
    /// VLAN id with [`VLAN_PRESENT`] in bit 12; 0 means no tag.
    VlanVid,
    /// VLAN priority.
    VlanPcp,
    /// MPLS label.
    MplsLabel,
    /// MPLS traffic class.
    MplsTc,
    /// MPLS bottom of stack.
    MplsBos,
    /// IPv4 or IPv6 protocol.
    IpProto,
    /// DSCP, 6 bits.
    IpDscp,
    /// ECN, 2 bits.
    IpEcn,
    /// TTL or hop limit.
    IpTtl,
    /// Fragment bits: 1 = any fragment, 2 = later fragment.
    IpFrag,
    /// IPv4 source.
    Ipv4Src,
    /// IPv4 destination.
    Ipv4Dst,
    /// IPv6 source.
    Ipv6Src,
    /// IPv6 destination.
    Ipv6Dst,
    /// IPv6 flow label.
    Ipv6Flabel,
    /// TCP source port.
    TcpSrc,
    /// TCP destination port.
    TcpDst,
    /// TCP flags, 12 bits.
    TcpFlags,
    /// UDP source port.
    UdpSrc,
    /// UDP destination port.
    UdpDst,
    /// SCTP source port.
    SctpSrc,
    /// SCTP destination port.
    SctpDst,
    /// ICMP type.
    Icmpv4Type,
    /// ICMP code.
    Icmpv4Code,
    /// ICMPv6 type.
    Icmpv6Type,
    /// ICMPv6 code.
    Icmpv6Code,
    /// ARP operation.
    ArpOp,
    /// ARP sender protocol address.
    ArpSpa,
    /// ARP target protocol address.
    ArpTpa,
    /// ARP sender hardware address.
    ArpSha,
    /// ARP target hardware address.
    ArpTha,
    /// Neighbor discovery target.
    NdTarget,
    /// Neighbor discovery source link-layer address.
    NdSll,
    /// Neighbor discovery target link-layer address.
    NdTll,
}

/// `OFPVID12_PRESENT`: the packet has a VLAN tag.
pub const VLAN_PRESENT: u16 = 0x1000;

/// A field as its header names it; `nxm` is the older name that `learn` and some actions are given back with.
struct Spec {
    field: Field,
    oxm: Option<(u16, u8)>,
    nxm: Option<(u16, u8)>,
    bits: u16,
}

impl Field {
    /// `(OXM name, NXM name, width in bits)`. OXM is preferred where both exist.
    const fn spec(self) -> Spec {
        let (oxm, nxm, bits) = match self {
            Field::PacketType => (Some(44), None, 32),
            Field::InPort => (Some(0), None, 32),
            Field::InPortNxm => (None, Some((NXM_0, 0)), 16),
            Field::ActsetOutput => (Some(43), None, 32),
            Field::Metadata => (Some(2), None, 64),
            Field::TunnelId => (Some(38), Some((NXM_1, 16)), 64),
            Field::Reg(n) => (None, Some((NXM_1, n)), 32),
            Field::Xreg(n) => {
                return Spec { field: self, oxm: Some((PACKET_REGS, n)), nxm: None, bits: 64 };
            }
            Field::Xxreg(n) => (None, Some((NXM_1, 111u8.wrapping_add(n))), 128),
            Field::PktMark => (None, Some((NXM_1, 33)), 32),
            Field::CtState => (None, Some((NXM_1, 105)), 32),
            Field::CtZone => (None, Some((NXM_1, 106)), 16),
            Field::CtMark => (None, Some((NXM_1, 107)), 32),
            Field::EthDst => (Some(3), Some((NXM_0, 1)), 48),
            Field::EthSrc => (Some(4), Some((NXM_0, 2)), 48),
            Field::EthType => (Some(5), Some((NXM_0, 3)), 16),
            Field::VlanTci => (None, Some((NXM_0, 4)), 16),
            Field::VlanVid => (Some(6), None, 13),
            Field::VlanPcp => (Some(7), None, 3),
            Field::MplsLabel => (Some(34), None, 20),
            Field::MplsTc => (Some(35), None, 3),
            Field::MplsBos => (Some(36), None, 1),
            Field::IpProto => (Some(10), Some((NXM_0, 6)), 8),
            Field::IpDscp => (Some(8), None, 6),
            Field::IpEcn => (Some(9), Some((NXM_1, 28)), 2),
            Field::IpTtl => (None, Some((NXM_1, 29)), 8),
            Field::IpFrag => (None, Some((NXM_1, 26)), 2),
            Field::Ipv4Src => (Some(11), Some((NXM_0, 7)), 32),
            Field::Ipv4Dst => (Some(12), Some((NXM_0, 8)), 32),
            Field::Ipv6Src => (Some(26), Some((NXM_1, 19)), 128),
            Field::Ipv6Dst => (Some(27), Some((NXM_1, 20)), 128),
            Field::Ipv6Flabel => (Some(28), Some((NXM_1, 27)), 20),
            Field::TcpSrc => (Some(13), Some((NXM_0, 9)), 16),
            Field::TcpDst => (Some(14), Some((NXM_0, 10)), 16),
            Field::TcpFlags => (Some(42), Some((NXM_1, 34)), 12),
            Field::UdpSrc => (Some(15), Some((NXM_0, 11)), 16),
            Field::UdpDst => (Some(16), Some((NXM_0, 12)), 16),
            Field::SctpSrc => (Some(17), None, 16),
            Field::SctpDst => (Some(18), None, 16),
            Field::Icmpv4Type => (Some(19), Some((NXM_0, 13)), 8),
            Field::Icmpv4Code => (Some(20), Some((NXM_0, 14)), 8),
            Field::Icmpv6Type => (Some(29), Some((NXM_1, 21)), 8),
            Field::Icmpv6Code => (Some(30), Some((NXM_1, 22)), 8),
            Field::ArpOp => (Some(21), Some((NXM_0, 15)), 16),
            Field::ArpSpa => (Some(22), Some((NXM_0, 16)), 32),
            Field::ArpTpa => (Some(23), Some((NXM_0, 17)), 32),
            Field::ArpSha => (Some(24), Some((NXM_1, 17)), 48),
            Field::ArpTha => (Some(25), Some((NXM_1, 18)), 48),
            Field::NdTarget => (Some(31), Some((NXM_1, 23)), 128),
            Field::NdSll => (Some(32), Some((NXM_1, 24)), 48),
            Field::NdTll => (Some(33), Some((NXM_1, 25)), 48),
        };
        let oxm = match oxm {
            Some(number) => Some((OPENFLOW_BASIC, number)),
            None => None,
        };
        Spec { field: self, oxm, nxm, bits }
    }

    /// Width in bits.
    pub const fn bits(self) -> u16 {
        self.spec().bits
    }

    /// Bytes of one value on the wire.
    pub(crate) const fn bytes(self) -> usize {
        match self.bits() {
            // MPLS and IPv6 labels stand in 4 bytes.
            20 => 4,
            bits => (bits as usize).div_ceil(8),
        }
    }

    /// All bits of the field set.
    pub const fn all_ones(self) -> u128 {
        u128::MAX >> (128 - self.bits() as u32)
    }

    /// The whole field as a part.
    pub const fn whole(self) -> SubField {
        SubField { field: self, start: 0, n_bits: self.bits() }
    }

    /// The `n_bits` bits from bit `start` on; bit 0 is the least significant.
    pub const fn slice(self, start: u16, n_bits: u16) -> SubField {
        SubField { field: self, start, n_bits }
    }

    const EVERY: &[Field] = &[
        Field::PacketType,
        Field::InPort,
        Field::InPortNxm,
        Field::ActsetOutput,
        Field::Metadata,
        Field::TunnelId,
        Field::PktMark,
        Field::CtState,
        Field::CtZone,
        Field::CtMark,
        Field::EthDst,
        Field::EthSrc,
        Field::EthType,
        Field::VlanTci,
        Field::VlanVid,
        Field::VlanPcp,
        Field::MplsLabel,
        Field::MplsTc,
        Field::MplsBos,
        Field::IpProto,
        Field::IpDscp,
        Field::IpEcn,
        Field::IpTtl,
        Field::IpFrag,
        Field::Ipv4Src,
        Field::Ipv4Dst,
        Field::Ipv6Src,
        Field::Ipv6Dst,
        Field::Ipv6Flabel,
        Field::TcpSrc,
        Field::TcpDst,
        Field::TcpFlags,
        Field::UdpSrc,
        Field::UdpDst,
        Field::SctpSrc,
        Field::SctpDst,
        Field::Icmpv4Type,
        Field::Icmpv4Code,
        Field::Icmpv6Type,
        Field::Icmpv6Code,
        Field::ArpOp,
        Field::ArpSpa,
        Field::ArpTpa,
        Field::ArpSha,
        Field::ArpTha,
        Field::NdTarget,
        Field::NdSll,
        Field::NdTll,
    ];

    /// Every field, each numbered register included.
    pub fn every() -> impl Iterator<Item = Field> {
        Self::EVERY
            .iter()
            .copied()
            .chain((0..16).map(Field::Reg))
            .chain((0..8).map(Field::Xreg))
            .chain((0..4).map(Field::Xxreg))
    }

    fn from_number(class: u16, number: u8) -> Option<Field> {
        match (class, number) {
            (PACKET_REGS, 0..8) => Some(Field::Xreg(number)),
            (NXM_1, 0..16) => Some(Field::Reg(number)),
            (NXM_1, 111..115) => Some(Field::Xxreg(number.wrapping_sub(111))),
            (OPENFLOW_BASIC, _) => BASIC.get(usize::from(number)).copied().flatten(),
            (NXM_0, _) => TABLE_NXM0.get(usize::from(number)).copied().flatten(),
            (NXM_1, _) => TABLE_NXM1.get(usize::from(number)).copied().flatten(),
            _ => None,
        }
    }

    /// The 4-byte header without mask, as OXM where the field has such a name.
    pub(crate) fn oxm_header(self, masked: bool) -> u32 {
        let spec = self.spec();
        header(spec.oxm.or(spec.nxm), self.bytes(), masked)
    }

    /// The 4-byte header without mask, as NXM where the field has such a name.
    pub(crate) fn nxm_header(self) -> u32 {
        let spec = self.spec();
        header(spec.nxm.or(spec.oxm), self.bytes(), false)
    }
}

fn header(name: Option<(u16, u8)>, bytes: usize, masked: bool) -> u32 {
    let (class, number) = name.unwrap_or_default();
    let len = u32::try_from(bytes << usize::from(masked)).unwrap_or(0);
    (u32::from(class) << 16) | (u32::from(number) << 9) | (u32::from(masked) << 8) | len
}

const BASIC: [Option<Field>; 128] = table(OPENFLOW_BASIC);
const TABLE_NXM0: [Option<Field>; 128] = table(NXM_0);
const TABLE_NXM1: [Option<Field>; 128] = table(NXM_1);

/// The fields of a class by number, made at compile time from [`Field::spec`].
#[allow(clippy::indexing_slicing, reason = "evaluated at compile time, where a bad index is a build error")]
const fn table(class: u16) -> [Option<Field>; 128] {
    let mut out = [None; 128];
    let mut i = 0;
    while i < Field::EVERY.len() {
        let spec = Field::EVERY[i].spec();
        if let Some((c, n)) = spec.oxm
            && c == class
        {
            out[n as usize] = Some(spec.field);
        }
        if let Some((c, n)) = spec.nxm
            && c == class
        {
            out[n as usize] = Some(spec.field);
        }
        i += 1;
    }
    out
}

/// Some bits of a field: `n_bits` from bit `start` on, bit 0 being the least significant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubField {
    /// The field.
    pub field: Field,
    /// First bit, from the least significant.
    pub start: u16,
    /// Number of bits.
    pub n_bits: u16,
}

/// An OXM header as read: a field of ours or another one, kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// The field, if it is known and its length is right.
    pub(crate) field: Option<Field>,
    /// A mask follows the value.
    pub(crate) masked: bool,
    /// The first 4 bytes.
    pub(crate) raw: u32,
    /// The experimenter id that follows in class 0xffff.
    pub(crate) experimenter: Option<u32>,
    /// Bytes of value and mask.
    pub(crate) payload: usize,
}

impl Header {
    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Header, DecodeError> {
        let bytes: [u8; 4] = r.array()?;
        let raw = u32::from_be_bytes(bytes);
        let [c1, c2, fm, len] = bytes;
        let class = u16::from_be_bytes([c1, c2]);
        let masked = fm & 1 == 1;
        let mut payload = usize::from(len);
        let mut experimenter = None;
        if class == EXPERIMENTER {
            experimenter = Some(r.u32()?);
            payload =
                payload.checked_sub(4).ok_or(DecodeError::BadLength { what: "OXM header", len: payload })?;
        }
        let field = match experimenter {
            None => Field::from_number(class, fm >> 1)
                .filter(|f| payload == f.bytes() * (1 + usize::from(masked))),
            Some(_) => None,
        };
        Ok(Header { field, masked, raw, experimenter, payload })
    }

    /// A header that stands alone (in an action or a list of fields) and must name a field of ours.
    pub(crate) fn read_field(r: &mut Reader<'_>) -> Result<Option<Field>, DecodeError> {
        let h = Header::read(r)?;
        Ok(if h.masked { None } else { h.field })
    }
}

/// One OXM entry: header, value and, unless every bit counts, the mask.
pub(crate) fn put_entry(out: &mut BytesMut, field: Field, value: u128, mask: u128) {
    let masked = mask != field.all_ones();
    let n = field.bytes();
    out.put_u32(field.oxm_header(masked));
    crate::wire::put_uint(out, value, n);
    if masked {
        crate::wire::put_uint(out, mask, n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_names_its_field() {
        for field in Field::every() {
            for raw in [field.oxm_header(false), field.oxm_header(true), field.nxm_header()] {
                let bytes = raw.to_be_bytes();
                let header = Header::read(&mut Reader::new(&bytes, "test")).unwrap();
                assert_eq!(header.field, Some(field), "{raw:#010x}");
            }
        }
    }

    #[test]
    fn headers_as_in_the_header_files() {
        assert_eq!(Field::InPort.oxm_header(false), 0x8000_0004);
        assert_eq!(Field::EthDst.oxm_header(true), 0x8000_070c);
        assert_eq!(Field::Reg(3).oxm_header(false), 0x0001_0604);
        assert_eq!(Field::EthSrc.nxm_header(), 0x0000_0406);
        assert_eq!(Field::Xreg(1).nxm_header(), 0x8001_0208);
    }
}
