//! The packets of these scenarios: UDP that says which one it is, and what comes back for it.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::frame::{self, View};

/// First bytes of every payload.
const MAGIC: [u8; 8] = *b"xf-plane";
/// EtherType of IPv6.
pub(super) const IPV6: u16 = 0x86dd;
/// Of IPv4 and UDP.
const HEADERS: usize = 20 + 8;

/// A UDP datagram in IPv4 in the making.
#[derive(Debug, Clone, Copy)]
pub(super) struct Udp {
    pub(super) to_mac: [u8; 6],
    pub(super) from_mac: [u8; 6],
    pub(super) from: (Ipv4Addr, u16),
    pub(super) to: (Ipv4Addr, u16),
    pub(super) ttl: u8,
    /// RFC 791: do not fragment.
    pub(super) df: bool,
    /// Bytes of the IP packet, at least 44.
    pub(super) len: usize,
}

impl Udp {
    /// The frame with these two numbers in its payload.
    pub(super) fn frame(&self, tags: &[u16], number: u32, seq: u32) -> Vec<u8> {
        frame::ethernet(self.to_mac, self.from_mac, tags, frame::IPV4, &self.packet(number, seq))
    }

    fn packet(&self, number: u32, seq: u32) -> Vec<u8> {
        let mut payload = mark(number, seq);
        payload.resize(self.len.saturating_sub(HEADERS).max(payload.len()), 0);
        let mut packet = frame::udp4(self.from, self.to, self.ttl, &payload).unwrap_or_default();
        if let Some(header) = packet.get_mut(..20) {
            header[6] = if self.df { 0x40 } else { 0 };
            // Fragments of one packet are told by it.
            header[4..6].copy_from_slice(&number.to_be_bytes()[2..]);
            header[10..12].fill(0);
            let sum = frame::checksum(header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
        }
        packet
    }
}

/// A UDP datagram in IPv6 whose packet has `len` bytes, at least 64.
pub(super) fn udp6(
    (to_mac, from_mac): ([u8; 6], [u8; 6]),
    (from, to): (Ipv6Addr, Ipv6Addr),
    len: usize,
    number: u32,
) -> Vec<u8> {
    let mut payload = mark(number, 0);
    payload.resize(len.saturating_sub(40 + 8).max(payload.len()), 0);
    let udp_len = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let mut udp = vec![0x23, 0x28, 0x23, 0x29];
    udp.extend_from_slice(&udp_len.to_be_bytes());
    udp.extend_from_slice(&[0, 0]);
    udp.extend(payload);
    // RFC 8200 8.1: the checksum covers addresses, length and next header.
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend_from_slice(&u32::from(udp_len).to_be_bytes());
    pseudo.extend_from_slice(&[0, 0, 0, 17]);
    pseudo.extend_from_slice(&udp);
    let sum = frame::checksum(&pseudo);
    udp[6..8].copy_from_slice(&(if sum == 0 { 0xffff } else { sum }).to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&udp_len.to_be_bytes());
    packet.extend_from_slice(&[17, 64]);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend(udp);
    frame::ethernet(to_mac, from_mac, &[], IPV6, &packet)
}

fn mark(number: u32, seq: u32) -> Vec<u8> {
    [&MAGIC[..], &number.to_be_bytes(), &seq.to_be_bytes()].concat()
}

/// The two numbers in a frame that carries our payload itself; none for ICMP errors that quote it, for later
/// fragments, for anything else.
pub(super) fn numbers(frame: &[u8]) -> Option<(u32, u32)> {
    let view = View(frame);
    let at = match view.ethertype()? {
        frame::IPV4 if *view.payload().get(9)? == 17 => HEADERS,
        IPV6 if *view.payload().get(6)? == 17 => 40 + 8,
        _ => return None,
    };
    numbers_at(view.payload(), at)
}

fn numbers_at(packet: &[u8], at: usize) -> Option<(u32, u32)> {
    let rest = packet.get(at..)?.strip_prefix(&MAGIC)?;
    let word = |at: usize| Some(u32::from_be_bytes(rest.get(at..at + 4)?.try_into().ok()?));
    Some((word(0)?, word(4)?))
}

/// An ICMP error about one of our packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IcmpError {
    pub(super) from: std::net::IpAddr,
    pub(super) kind: u8,
    pub(super) code: u8,
    /// The MTU, in "fragmentation needed" and "packet too big".
    pub(super) mtu: u32,
    /// Which packet.
    pub(super) number: u32,
}

/// Reads an ICMP error (RFC 792, RFC 1191, RFC 4443).
pub(super) fn icmp_error(frame: &[u8]) -> Option<IcmpError> {
    let view = View(frame);
    let packet = view.payload();
    let (from, icmp, inner) = match view.ethertype()? {
        frame::IPV4 if *packet.get(9)? == 1 => (view.ipv4_src()?.into(), packet.get(20..)?, HEADERS),
        IPV6 if *packet.get(6)? == 58 => {
            let octets: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            (Ipv6Addr::from(octets).into(), packet.get(40..)?, 40 + 8)
        }
        _ => return None,
    };
    let (number, _) = numbers_at(icmp.get(8..)?, inner)?;
    let mtu = u32::from_be_bytes(icmp.get(4..8)?.try_into().ok()?);
    Some(IcmpError { from, kind: *icmp.first()?, code: *icmp.get(1)?, mtu, number })
}

/// Identification and whether it is a fragment of an IPv4 packet, and its bytes behind the header.
pub(super) fn fragment(frame: &[u8]) -> Option<(u32, usize)> {
    let view = View(frame);
    (view.ethertype()? == frame::IPV4).then_some(())?;
    let packet = view.payload();
    let field = u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?);
    // More fragments, or an offset.
    (field & 0x3fff != 0 && *packet.get(9)? == 17).then_some(())?;
    let total = u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?);
    let id = u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?);
    Some((id.into(), usize::from(total) - 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: Udp = Udp {
        to_mac: [2; 6],
        from_mac: [4; 6],
        from: (Ipv4Addr::new(10, 1, 0, 10), 7),
        to: (Ipv4Addr::new(10, 2, 0, 10), 9),
        ttl: 64,
        df: true,
        len: 1400,
    };

    #[test]
    fn packets_have_their_length_and_numbers() {
        let frame = UDP.frame(&[], 70_000, 3);
        assert_eq!((frame.len(), numbers(&frame)), (1414, Some((70_000, 3))));
        assert_eq!(frame::checksum(&frame[14..34]), 0);
        assert_eq!(numbers(&UDP.frame(&[11], 5, 6)), Some((5, 6)));
        assert_eq!(fragment(&frame), None, "DF is no fragment");
        let addresses = (Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        let frame = udp6(([2; 6], [4; 6]), addresses, 1401, 8);
        assert_eq!((frame.len(), numbers(&frame)), (1415, Some((8, 0))));
    }

    #[test]
    fn errors_name_the_packet() {
        // RFC 792: type 3, code 4; RFC 1191: the MTU in the lower half.
        let mut icmp = vec![3, 4, 0, 0, 0, 0, 0x05, 0x78];
        icmp.extend(UDP.packet(42, 0).into_iter().take(100));
        let mut packet = vec![0x45, 0, 0, 128, 0, 0, 0, 0, 64, 1, 0, 0, 10, 1, 0, 1, 10, 1, 0, 10];
        packet.extend(icmp);
        let frame = frame::ethernet([4; 6], [2; 6], &[], frame::IPV4, &packet);
        let from = Ipv4Addr::new(10, 1, 0, 1).into();
        assert_eq!(icmp_error(&frame), Some(IcmpError { from, kind: 3, code: 4, mtu: 1400, number: 42 }));
        assert_eq!(numbers(&frame), None);
        for len in 0..60 {
            assert_eq!(icmp_error(&frame[..len]), None);
        }
    }
}
