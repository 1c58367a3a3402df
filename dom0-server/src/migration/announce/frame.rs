//! ARP packets and neighbor discovery messages as bytes, with the Ethernet header.
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::net::{Ipv4Addr, Ipv6Addr};

use xenflow_proto::MacAddr;

pub(super) const ARP: u16 = 0x0806;
pub(super) const RARP: u16 = 0x8035;
pub(super) const IPV6: u16 = 0x86dd;

/// RFC 826.
pub(super) const REQUEST: u16 = 1;
/// RFC 826.
pub(super) const REPLY: u16 = 2;
/// RFC 903.
pub(super) const REVERSE_REQUEST: u16 = 3;

pub(super) const ICMPV6: u8 = 58;
/// RFC 4861: who got it from further away than this segment would see less.
pub(super) const HOP_LIMIT: u8 = 255;
pub(super) const NEIGHBOR_SOLICITATION: u8 = 135;
pub(super) const NEIGHBOR_ADVERTISEMENT: u8 = 136;
pub(super) const SOURCE_LINK_LAYER: u8 = 1;
pub(super) const TARGET_LINK_LAYER: u8 = 2;

/// ff02::1.
pub(super) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Of [`ALL_NODES`] (RFC 2464, 7).
pub(super) const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);

/// Cuts the next bytes off.
pub(super) fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

/// Cuts a number off.
pub(super) fn take_u16(bytes: &mut &[u8]) -> Option<u16> {
    take(bytes).map(u16::from_be_bytes)
}

/// Where solicitations for an address go (RFC 4291, 2.7.1).
pub(super) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let low = u16::from_be_bytes([b, c]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), low)
}

/// The checksum of an ICMPv6 message (RFC 4443, 2.3); 0 if the message has a right one in it.
pub(super) fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u64 {
        let word = |pair: &[u8]| match *pair {
            [high, low] => u64::from(u16::from_be_bytes([high, low])),
            [high] => u64::from(high) << 8,
            _ => 0,
        };
        bytes.chunks(2).map(word).sum()
    };
    let mut sum = words(&source.octets()) + words(&destination.octets()) + words(message);
    sum += message.len() as u64 + u64::from(ICMPV6);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

fn ethernet(dst: MacAddr, src: MacAddr, ethertype: u16) -> Vec<u8> {
    [&dst.0[..], &src.0, &ethertype.to_be_bytes()].concat()
}

/// An ARP or RARP packet, for IPv4 over Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arp {
    pub(super) operation: u16,
    pub(super) sender: (MacAddr, Ipv4Addr),
    pub(super) target: (MacAddr, Ipv4Addr),
}

impl Arp {
    const HEADER: [u8; 6] = [0, 1, 8, 0, 6, 4];

    /// Of an Ethernet payload, which may be padded.
    pub(super) fn parse(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        if take(bytes)? != Self::HEADER {
            return None;
        }
        let operation = take_u16(bytes)?;
        let mut party = || Some((MacAddr(take(bytes)?), Ipv4Addr::from(take::<4>(bytes)?)));
        Some(Self { operation, sender: party()?, target: party()? })
    }

    /// On its way.
    pub(super) fn frame(&self, dst: MacAddr, src: MacAddr) -> Vec<u8> {
        let mut frame = ethernet(dst, src, if self.operation == REVERSE_REQUEST { RARP } else { ARP });
        frame.extend(Self::HEADER);
        frame.extend(self.operation.to_be_bytes());
        for (mac, address) in [self.sender, self.target] {
            frame.extend(mac.0);
            frame.extend(address.octets());
        }
        frame
    }
}

/// A neighbor advertisement of a router about itself (RFC 4861, 4.4).
#[derive(Debug, Clone, Copy)]
pub(super) struct Advertisement {
    /// The address, from which it also comes.
    pub(super) target: Ipv6Addr,
    /// Who has it.
    pub(super) mac: MacAddr,
    /// To whom.
    pub(super) to: Ipv6Addr,
    /// Somebody has asked, and is told alone.
    pub(super) is_solicited: bool,
}

impl Advertisement {
    const ROUTER: u8 = 0x80;
    const SOLICITED: u8 = 0x40;
    const OVERRIDE: u8 = 0x20;

    /// On its way.
    pub(super) fn frame(&self, dst: MacAddr, src: MacAddr) -> Vec<u8> {
        let solicited = if self.is_solicited { Self::SOLICITED } else { 0 };
        let flags = Self::ROUTER | solicited | Self::OVERRIDE;
        let message = |sum: u16| {
            let mut message = vec![NEIGHBOR_ADVERTISEMENT, 0];
            message.extend(sum.to_be_bytes());
            message.extend([flags, 0, 0, 0]);
            message.extend(self.target.octets());
            message.extend([TARGET_LINK_LAYER, 1]);
            message.extend(self.mac.0);
            message
        };
        let message = message(checksum(self.target, self.to, &message(0)));
        let mut frame = ethernet(dst, src, IPV6);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(u16::try_from(message.len()).unwrap_or_default().to_be_bytes());
        frame.extend([ICMPV6, HOP_LIMIT]);
        frame.extend(self.target.octets());
        frame.extend(self.to.octets());
        frame.extend(message);
        frame
    }
}
