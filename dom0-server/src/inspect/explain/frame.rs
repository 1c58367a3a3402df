//! Frames as bytes: what is read of one is what Open vSwitch reads of it (`flow_extract`), and a frame that has gone through the
//! tables is the old one with other addresses, tags and TTL.

use std::net::IpAddr;

use openflow::{Field, mac_bits};
use xenflow_flow_app::pipeline::{ETH_ARP, ETH_IPV4, ETH_IPV6, ETH_LLC, ETH_SVLAN, ETH_VLAN};
use xenflow_flow_app::sim::{Packet, Tag};
use xenflow_proto::MacAddr;

/// Bytes of the shortest frame: its two addresses and its type.
pub const MIN: usize = 14;
/// Bytes of the longest.
pub const MAX: usize = 9216;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// Bytes that are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No hexadecimal digits.
    #[error("a frame is written in hexadecimal digits, two a byte, not \"{0}\"")]
    Digits(String),
    /// Too short or too long.
    #[error("a frame has {MIN} to {MAX} bytes, not {0}")]
    Length(usize),
    /// A header ends behind the frame.
    #[error("the frame ends in its {0} header")]
    Cut(&'static str),
}

/// A frame as it is on a wire, without its check sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    bytes: Vec<u8>,
    packet: Packet,
}

/// Kinds of packets that are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// UDP.
    Udp,
    /// A TCP connection's first packet.
    Tcp,
    /// An echo request, of IPv6 too.
    Icmp,
}

/// What a packet is made of.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    /// Its source and destination.
    pub macs: (MacAddr, MacAddr),
    /// Its source and destination, of one family.
    pub addresses: (IpAddr, IpAddr),
    /// Kind.
    pub protocol: Protocol,
    /// Source and destination port, where it has ports.
    pub ports: (u16, u16),
    /// TTL or hop limit.
    pub ttl: u8,
}

impl Frame {
    /// Reads hexadecimal digits; blanks and colons between them do not count.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn parse(text: &str) -> Result<Self, FrameError> {
        let digits: String = text.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
        let wrong = || FrameError::Digits(text.chars().take(40).collect());
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) || !digits.len().is_multiple_of(2) {
            return Err(wrong());
        }
        let bytes = digits.as_bytes().chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            u8::from_str_radix(pair, 16).map_err(|_| wrong())
        });
        Self::new(bytes.collect::<Result<_, _>>()?)
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn new(bytes: Vec<u8>) -> Result<Self, FrameError> {
        if !(MIN..=MAX).contains(&bytes.len()) {
            return Err(FrameError::Length(bytes.len()));
        }
        let packet = read(&bytes)?;
        Ok(Self { bytes, packet })
    }

    /// An untagged packet with 18 bytes of nothing as its payload, right down to its sums.
    ///
    /// # Errors
    /// None that a caller could cause; it is read back.
    pub fn make(recipe: &Recipe) -> Result<Self, FrameError> {
        let Recipe { macs: (source, destination), addresses, protocol, ports, ttl } = *recipe;
        let mut segment = Vec::new();
        let (sport, dport) = (ports.0.to_be_bytes(), ports.1.to_be_bytes());
        let (number, sum_at) = match protocol {
            Protocol::Udp => {
                segment.extend([sport[0], sport[1], dport[0], dport[1], 0, 26, 0, 0]);
                (UDP, 6)
            }
            Protocol::Tcp => {
                segment.extend([sport[0], sport[1], dport[0], dport[1], 0, 0, 0, 1, 0, 0, 0, 0]);
                segment.extend([0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
                (TCP, 16)
            }
            Protocol::Icmp if addresses.1.is_ipv4() => {
                segment.extend([8, 0, 0, 0, 0, 1, 0, 1]);
                (ICMP, 2)
            }
            Protocol::Icmp => {
                segment.extend([128, 0, 0, 0, 0, 1, 0, 1]);
                (ICMPV6, 2)
            }
        };
        segment.extend([0; 18]);
        let len = u16::try_from(segment.len()).unwrap_or(u16::MAX);
        let mut pseudo: Vec<u8> = Vec::new();
        let mut bytes: Vec<u8> = [destination.0, source.0].concat();
        match addresses {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                bytes.extend(ETH_IPV4.to_be_bytes());
                let mut header = vec![0x45, 0];
                header.extend((len + 20).to_be_bytes());
                header.extend([0, 0, 0x40, 0, ttl, number, 0, 0]);
                header.extend([src.octets(), dst.octets()].concat());
                let sum = checksum(&header);
                set(&mut header, 10, sum);
                bytes.extend(header);
                pseudo.extend([src.octets(), dst.octets()].concat());
            }
            (src, dst) => {
                let octets = |addr: IpAddr| match addr {
                    IpAddr::V4(addr) => addr.to_ipv6_mapped().octets(),
                    IpAddr::V6(addr) => addr.octets(),
                };
                bytes.extend(ETH_IPV6.to_be_bytes());
                bytes.extend([0x60, 0, 0, 0]);
                bytes.extend(len.to_be_bytes());
                bytes.extend([number, ttl]);
                bytes.extend([octets(src), octets(dst)].concat());
                pseudo.extend([octets(src), octets(dst)].concat());
            }
        }
        pseudo.extend([0, number]);
        pseudo.extend(len.to_be_bytes());
        // ICMP of IPv4 has no pseudo-header.
        let mut summed = if number == ICMP { Vec::new() } else { pseudo };
        summed.extend(&segment);
        let sum = checksum(&summed);
        set(&mut segment, sum_at, sum);
        bytes.extend(segment);
        Self::new(bytes)
    }

    /// What it says.
    #[must_use]
    pub fn packet(&self) -> &Packet {
        &self.packet
    }

    /// In hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> String {
        self.bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The frame that this one has become: with that packet's MAC addresses, tags and TTL.
    #[must_use]
    pub fn become_of(&self, packet: &Packet) -> Self {
        let mac = |field| {
            let [_, _, bytes @ ..] = u64::try_from(packet.header(field)).unwrap_or(0).to_be_bytes();
            bytes
        };
        let mut bytes = [mac(Field::EthDst), mac(Field::EthSrc)].concat();
        for tag in &packet.tags {
            bytes.extend(tag.tpid.to_be_bytes());
            bytes.extend((u16::from(tag.pcp) << 13 | tag.vid).to_be_bytes());
        }
        let rest = 12 + 4 * self.packet.tags.len();
        let at = bytes.len() + 2;
        bytes.extend(self.bytes.get(rest..).unwrap_or_default());
        let ttl = u8::try_from(packet.header(Field::IpTtl)).unwrap_or(0);
        match u16::try_from(packet.header(Field::EthType)).unwrap_or(0) {
            ETH_IPV4 => {
                let len = usize::from(bytes.get(at).copied().unwrap_or(0) & 0xf) * 4;
                if let Some(header) = bytes.get_mut(at..at + len).filter(|header| header.len() >= 20) {
                    header[8] = ttl;
                    set(header, 10, 0);
                    let sum = checksum(header);
                    set(header, 10, sum);
                }
            }
            ETH_IPV6 => bytes.iter_mut().skip(at + 7).take(1).for_each(|limit| *limit = ttl),
            _ => {}
        }
        Self { bytes, packet: packet.clone() }
    }
}

fn set(bytes: &mut [u8], at: usize, value: u16) {
    for (to, from) in bytes.iter_mut().skip(at).zip(value.to_be_bytes()) {
        *to = from;
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let [high, low] = [pair.first(), pair.get(1)].map(|byte| u32::from(byte.copied().unwrap_or(0)));
        high << 8 | low
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What is left to read of one, and of what.
struct Rest<'a> {
    bytes: &'a [u8],
    of: &'static str,
}

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.bytes.split_at_checked(len).ok_or(FrameError::Cut(self.of))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn number(&mut self, len: usize) -> Result<u128, FrameError> {
        Ok(self.take(len)?.iter().fold(0, |number, byte| number << 8 | u128::from(*byte)))
    }

    fn u16(&mut self) -> Result<u16, FrameError> {
        Ok(self.number(2)? as u16)
    }

    fn u8(&mut self) -> Result<u8, FrameError> {
        Ok(self.number(1)? as u8)
    }
}

fn read(bytes: &[u8]) -> Result<Packet, FrameError> {
    let mut rest = Rest { bytes, of: "Ethernet" };
    let mut packet = Packet::default();
    for field in [Field::EthDst, Field::EthSrc] {
        packet = packet.with(field, rest.number(6)?);
    }
    let mut kind = rest.u16()?;
    while matches!(kind, ETH_VLAN | ETH_SVLAN) {
        rest.of = "802.1Q";
        let tci = rest.u16()?;
        packet.tags.push(Tag { tpid: kind, vid: tci & 0xfff, pcp: (tci >> 13) as u8 });
        kind = rest.u16()?;
    }
    let kind = if kind < 0x600 { ETH_LLC } else { kind };
    packet = packet.with(Field::EthType, kind.into());
    match kind {
        ETH_IPV4 => ipv4(packet, rest),
        ETH_IPV6 => ipv6(packet, rest),
        ETH_ARP => arp(packet, rest),
        _ => Ok(packet),
    }
}

fn arp(mut packet: Packet, mut rest: Rest<'_>) -> Result<Packet, FrameError> {
    rest.of = "ARP";
    let _ = rest.take(6)?;
    for (field, len) in
        [(Field::ArpOp, 2), (Field::ArpSha, 6), (Field::ArpSpa, 4), (Field::ArpTha, 6), (Field::ArpTpa, 4)]
    {
        packet = packet.with(field, rest.number(len)?);
    }
    Ok(packet)
}

fn ipv4(packet: Packet, mut rest: Rest<'_>) -> Result<Packet, FrameError> {
    rest.of = "IPv4";
    let len = usize::from(rest.u8()? & 0xf) * 4;
    let tos = rest.u8()?;
    let total = rest.u16()?;
    let _id = rest.u16()?;
    let fragment = rest.u16()?;
    let (ttl, protocol) = (rest.u8()?, rest.u8()?);
    let _sum = rest.u16()?;
    let (src, dst) = (rest.number(4)?, rest.number(4)?);
    let _options = rest.take(len.checked_sub(20).ok_or(FrameError::Cut("IPv4"))?)?;
    // OVS: 1 says a fragment, 2 says not the first one.
    let is_later = fragment & 0x1fff != 0;
    let frag = u128::from(fragment & 0x3fff != 0) | u128::from(is_later) << 1;
    let packet = packet
        .with(Field::IpDscp, (tos >> 2).into())
        .with(Field::IpEcn, (tos & 3).into())
        .with(Field::IpTtl, ttl.into())
        .with(Field::IpProto, protocol.into())
        .with(Field::IpFrag, frag)
        .with(Field::Ipv4Src, src)
        .with(Field::Ipv4Dst, dst)
        .sized(total);
    if is_later { Ok(packet) } else { transport(packet, protocol, rest) }
}

fn ipv6(packet: Packet, mut rest: Rest<'_>) -> Result<Packet, FrameError> {
    rest.of = "IPv6";
    let first = rest.number(4)?;
    let (payload, mut next, limit) = (rest.u16()?, rest.u8()?, rest.u8()?);
    let (src, dst) = (rest.number(16)?, rest.number(16)?);
    let mut frag = 0;
    // Extension headers, of which a frame has no more than bytes.
    loop {
        match next {
            0 | 43 | 60 => {
                next = rest.u8()?;
                let len = usize::from(rest.u8()?);
                let _ = rest.take(6 + 8 * len)?;
            }
            44 if frag & 2 == 0 => {
                next = rest.u8()?;
                let _ = rest.u8()?;
                let offset = rest.u16()?;
                let _ = rest.take(4)?;
                frag = u128::from(offset & 0xfff9 != 0) | u128::from(offset & 0xfff8 != 0) << 1;
                if frag & 2 != 0 {
                    break;
                }
            }
            _ => break,
        }
    }
    let class = (first >> 20) & 0xff;
    let packet = packet
        .with(Field::IpDscp, class >> 2)
        .with(Field::IpEcn, class & 3)
        .with(Field::Ipv6Flabel, first & 0xf_ffff)
        .with(Field::IpTtl, limit.into())
        .with(Field::IpProto, next.into())
        .with(Field::IpFrag, frag)
        .with(Field::Ipv6Src, src)
        .with(Field::Ipv6Dst, dst)
        .sized(payload.saturating_add(40));
    if frag & 2 != 0 { Ok(packet) } else { transport(packet, next, rest) }
}

fn transport(mut packet: Packet, protocol: u8, mut rest: Rest<'_>) -> Result<Packet, FrameError> {
    let is_ipv4 = packet.header(Field::EthType) == ETH_IPV4.into();
    let ports = match protocol {
        TCP => ("TCP", Field::TcpSrc, Field::TcpDst),
        UDP => ("UDP", Field::UdpSrc, Field::UdpDst),
        SCTP => ("SCTP", Field::SctpSrc, Field::SctpDst),
        ICMP if is_ipv4 => {
            rest.of = "ICMP";
            return Ok(packet
                .with(Field::Icmpv4Type, rest.number(1)?)
                .with(Field::Icmpv4Code, rest.number(1)?));
        }
        ICMPV6 if !is_ipv4 => return icmpv6(packet, rest),
        _ => return Ok(packet),
    };
    let (of, source, destination) = ports;
    rest.of = of;
    packet = packet.with(source, rest.number(2)?).with(destination, rest.number(2)?);
    if protocol == TCP {
        let _ = rest.take(8)?;
        packet = packet.with(Field::TcpFlags, rest.number(2)? & 0xfff);
    }
    Ok(packet)
}

fn icmpv6(packet: Packet, mut rest: Rest<'_>) -> Result<Packet, FrameError> {
    rest.of = "ICMPv6";
    let kind = rest.number(1)?;
    let mut packet = packet.with(Field::Icmpv6Type, kind).with(Field::Icmpv6Code, rest.number(1)?);
    let option_field = match kind {
        135 => (1, Field::NdSll),
        136 => (2, Field::NdTll),
        _ => return Ok(packet),
    };
    let _ = rest.take(6)?;
    packet = packet.with(Field::NdTarget, rest.number(16)?);
    let none = mac_bits([0; 6]);
    packet = packet.with(option_field.1, none);
    while let [kind, len, ..] = *rest.bytes {
        let option = match usize::from(len) * 8 {
            0 => break,
            len => rest.take(len)?,
        };
        if let (true, Some(mac)) = (kind == option_field.0, option.get(2..8)) {
            let mac = mac.iter().fold(0, |mac, byte| mac << 8 | u128::from(*byte));
            packet = packet.with(option_field.1, mac);
        }
    }
    Ok(packet)
}
