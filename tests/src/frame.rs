//! Ethernet frames as tests need them: build one, look into one.
//!
//! Not a packet library: only what leaks, spoofs and counts are made of. Reading never fails; what is not there is
//! `None`.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of an IEEE 802.1Q tag.
pub const VLAN: u16 = 0x8100;

/// Reads `aa:bb:cc:dd:ee:ff`.
pub fn mac(text: &str) -> Result<[u8; 6]> {
    let mut bytes = [0; 6];
    let parts: Vec<&str> = text.split(':').collect();
    ensure!(parts.len() == 6, "MAC {text:?} does not have 6 parts");
    for (byte, part) in bytes.iter_mut().zip(parts) {
        *byte = u8::from_str_radix(part, 16)?;
    }
    Ok(bytes)
}

/// An Ethernet frame: addresses, tags from the outside in, type, payload.
pub fn ethernet(dst: [u8; 6], src: [u8; 6], tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(60.max(14 + 4 * tags.len() + payload.len()));
    frame.extend_from_slice(&dst);
    frame.extend_from_slice(&src);
    for tag in tags {
        frame.extend_from_slice(&VLAN.to_be_bytes());
        frame.extend_from_slice(&tag.to_be_bytes());
    }
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(payload);
    // IEEE 802.3: 64 bytes at least, 4 of them the check sequence.
    if frame.len() < 60 {
        frame.resize(60, 0);
    }
    frame
}

/// An IPv4 packet with a UDP datagram (no UDP checksum, RFC 768 allows it).
pub fn udp4(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16), ttl: u8, payload: &[u8]) -> Result<Vec<u8>> {
    let udp_len = u16::try_from(8 + payload.len())?;
    let total =
        udp_len.checked_add(20).ok_or_else(|| anyhow::anyhow!("payload of {} bytes", payload.len()))?;
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&total.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 0, ttl, 17, 0, 0]);
    packet.extend_from_slice(&src.0.octets());
    packet.extend_from_slice(&dst.0.octets());
    let sum = checksum(&packet).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    packet.extend_from_slice(&src.1.to_be_bytes());
    packet.extend_from_slice(&dst.1.to_be_bytes());
    packet.extend_from_slice(&udp_len.to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    Ok(packet)
}

/// An ARP packet for IPv4 over Ethernet (RFC 826); `operation` 1 asks, 2 answers.
pub fn arp(operation: u16, sender: ([u8; 6], Ipv4Addr), target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend_from_slice(&operation.to_be_bytes());
    packet.extend_from_slice(&sender.0);
    packet.extend_from_slice(&sender.1.octets());
    packet.extend_from_slice(&target.0);
    packet.extend_from_slice(&target.1.octets());
    packet
}

/// The Internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([
                pair.first().copied().unwrap_or(0),
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// A look into a captured frame.
#[derive(Debug, Clone, Copy)]
pub struct View<'a>(pub &'a [u8]);

impl View<'_> {
    /// Destination MAC.
    pub fn dst(&self) -> Option<[u8; 6]> {
        self.0.get(0..6)?.try_into().ok()
    }

    /// Source MAC.
    pub fn src(&self) -> Option<[u8; 6]> {
        self.0.get(6..12)?.try_into().ok()
    }

    /// VLAN ids from the outside in; empty if untagged.
    pub fn vlans(&self) -> Vec<u16> {
        let mut at = 12;
        let mut tags = Vec::new();
        while self.u16(at) == Some(VLAN) {
            let Some(tag) = self.u16(at + 2) else { break };
            tags.push(tag & 0xfff);
            at += 4;
        }
        tags
    }

    /// The EtherType behind all tags.
    pub fn ethertype(&self) -> Option<u16> {
        self.u16(self.type_offset())
    }

    /// What stands behind the EtherType.
    pub fn payload(&self) -> &[u8] {
        self.0.get(self.type_offset() + 2..).unwrap_or_default()
    }

    /// Source address, if this is IPv4.
    pub fn ipv4_src(&self) -> Option<Ipv4Addr> {
        self.ipv4(12)
    }

    /// Destination address, if this is IPv4.
    pub fn ipv4_dst(&self) -> Option<Ipv4Addr> {
        self.ipv4(16)
    }

    /// Time to live, if this is IPv4.
    pub fn ttl(&self) -> Option<u8> {
        if self.ethertype() != Some(IPV4) {
            return None;
        }
        self.payload().get(8).copied()
    }

    /// Whether the frame holds these bytes anywhere: the sure way to find a marked payload.
    pub fn contains(&self, needle: &[u8]) -> bool {
        !needle.is_empty() && self.0.windows(needle.len()).any(|window| window == needle)
    }

    fn type_offset(&self) -> usize {
        12 + 4 * self.vlans().len()
    }

    fn ipv4(&self, at: usize) -> Option<Ipv4Addr> {
        if self.ethertype() != Some(IPV4) {
            return None;
        }
        let octets: [u8; 4] = self.payload().get(at..at + 4)?.try_into().ok()?;
        Some(octets.into())
    }

    fn u16(&self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(self.0.get(at..at + 2)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_found_again() {
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let packet = udp4((a, 7), (b, 9), 63, b"marked").unwrap();
        let (dst, src) = (mac("02:00:00:00:00:02").unwrap(), mac("02:00:00:00:00:01").unwrap());
        let frame = ethernet(dst, src, &[10, 20], IPV4, &packet);
        let view = View(&frame);
        assert_eq!((view.dst(), view.src()), (Some(dst), Some(src)));
        assert_eq!(view.vlans(), [10, 20]);
        assert_eq!((view.ipv4_src(), view.ipv4_dst(), view.ttl()), (Some(a), Some(b), Some(63)));
        assert!(view.contains(b"marked") && !view.contains(b"other"));
        // A header with its checksum sums to zero.
        assert_eq!(checksum(&packet[..20]), 0);
        assert_eq!(frame.len(), 60);
    }

    #[test]
    fn short_frames_have_nothing() {
        for len in 0..18 {
            let bytes = vec![0x81; len];
            let view = View(&bytes);
            assert_eq!(view.ipv4_src(), None);
            let _ = (view.vlans(), view.payload());
        }
    }

    #[test]
    fn macs_are_checked() {
        assert!(mac("02:00:00:00:00").is_err());
        assert!(mac("02:00:00:00:00:zz").is_err());
    }
}
