//! Frames that a flow of the datapath would stand for, and that nobody takes in: their checksums are wrong, or they say that
//! nothing follows.

use std::net::{Ipv4Addr, Ipv6Addr};

use xenflow_proto::{MacAddr, VlanId};

use super::{attributes, value};

/// IANA protocol numbers.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
/// RFC 8200, 4.7: nobody answers.
const NO_NEXT_HEADER: u8 = 59;

/// A number, without its mask; 0 without a number.
fn number<T: TryFrom<u32> + Default>(list: &str, key: &str) -> T {
    let text = value(list, key).map(unmasked).unwrap_or_default();
    let number = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    number.ok().and_then(|number| number.try_into().ok()).unwrap_or_default()
}

fn unmasked(text: &str) -> &str {
    text.split('/').next().unwrap_or_default()
}

fn address<T: std::str::FromStr>(list: &str, key: &str) -> Option<T> {
    unmasked(value(list, key)?).parse().ok()
}

/// A frame with these fields; none if it would be of no protocol that is known here.
pub(super) fn frame(src: MacAddr, dst: MacAddr, vlan: Option<VlanId>, fields: &str) -> Option<Vec<u8>> {
    let all = attributes(fields)?;
    let of = |wanted: &str| all.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
    let mut out = [dst.0, src.0].concat();
    if let Some(vlan) = vlan {
        out.extend(0x8100_u16.to_be_bytes());
        out.extend(vlan.get().to_be_bytes());
    }
    let eth_type = u16::from_str_radix(of("eth_type")?.strip_prefix("0x")?, 16).ok()?;
    out.extend(eth_type.to_be_bytes());
    let ports = |list: &str| {
        [number::<u16>(list, "src").to_be_bytes(), number::<u16>(list, "dst").to_be_bytes()].concat()
    };
    let upper = |protocol: u8| -> Vec<u8> {
        let (name, length) = match protocol {
            TCP => ("tcp", 20),
            UDP => ("udp", 8),
            SCTP => ("sctp", 12),
            ICMP => ("icmp", 8),
            ICMPV6 => ("icmpv6", 8),
            _ => return Vec::new(),
        };
        let list = of(name).unwrap_or_default();
        let mut header = match protocol {
            ICMP | ICMPV6 => vec![number(list, "type"), number(list, "code")],
            _ => ports(list),
        };
        header.resize(length, 0);
        match protocol {
            TCP => header[12] = 5 << 4,
            UDP => header[5] = 8,
            _ => {}
        }
        header
    };
    match eth_type {
        0x0800 => {
            let list = of("ipv4")?;
            let protocol: u8 = number(list, "proto");
            let upper = upper(protocol);
            let length = u16::try_from(20 + upper.len()).ok()?;
            let mut header = vec![0x45, number(list, "tos")];
            header.extend(length.to_be_bytes());
            header.extend([0, 0, 0, 0, number(list, "ttl"), protocol, 0, 0]);
            header.extend(address::<Ipv4Addr>(list, "src")?.octets());
            header.extend(address::<Ipv4Addr>(list, "dst")?.octets());
            let wrong = checksum(&header) ^ 0x5555;
            header[10..12].copy_from_slice(&wrong.to_be_bytes());
            out.extend(header);
            out.extend(upper);
        }
        0x86dd => {
            let list = of("ipv6")?;
            // Masked out, it may be anything.
            let protocol =
                Some(number(list, "proto")).filter(|protocol| *protocol != 0).unwrap_or(NO_NEXT_HEADER);
            let upper = upper(protocol);
            let class: u8 = number(list, "tclass");
            let label: u32 = number(list, "label");
            out.extend((6_u32 << 28 | u32::from(class) << 20 | label & 0xf_ffff).to_be_bytes());
            out.extend(u16::try_from(upper.len()).ok()?.to_be_bytes());
            out.extend([protocol, number(list, "hlimit")]);
            out.extend(address::<Ipv6Addr>(list, "src")?.octets());
            out.extend(address::<Ipv6Addr>(list, "dst")?.octets());
            out.extend(upper);
        }
        _ => return None,
    }
    Some(out)
}

/// RFC 1071, of an IPv4 header.
fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(u16::MAX)
}
