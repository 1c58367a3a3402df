//! What is flooded: one frame each, and which of its bytes are random.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use anyhow::Result;

use super::site::{ATTACKER_MAC, router_mac};
use crate::frame::{self, ethernet, udp4};

/// EtherType of IPv6.
const IPV6: u16 = 0x86dd;
const ATTACKER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 66);
const TTL: u8 = 64;
const PAYLOAD: [u8; 18] = [0; 18];
/// In an untagged frame: MAC addresses, the last bytes of IPv4's destination, IPv6's last half, UDP's ports.
const MAC_TO: Range<usize> = 2..6;
const MAC_FROM: Range<usize> = 8..12;
const IPV4_TO: usize = 34;
const PORTS: Range<usize> = 34..38;
const IPV6_TO: Range<usize> = 46..54;
const IPV6_PORTS: Range<usize> = 54..58;

/// A kind of flood.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) frame: Vec<u8>,
    pub(super) vary: Vec<Range<usize>>,
    /// The switch must get by with few flows.
    pub(super) few_flows: bool,
    /// Every frame asks the router's own kernel.
    pub(super) is_punted: bool,
}

/// All kinds. The first is the control: what it costs the machine to send, and to drop at once.
pub(super) fn all() -> Result<Vec<Kind>> {
    let own = frame::mac(ATTACKER_MAC)?;
    let router = frame::mac(&router_mac(0, 0))?;
    let to = |address: [u8; 4]| udp4((ATTACKER, 1), (address.into(), 9), TTL, &PAYLOAD);
    let routed = |destination, address| {
        Ok::<_, anyhow::Error>(ethernet(destination, own, &[], frame::IPV4, &to(address)?))
    };
    let kind = |name, about, frame, vary: &[Range<usize>]| Kind {
        name,
        about,
        frame,
        vary: vary.to_vec(),
        few_flows: false,
        is_punted: false,
    };
    let tagged = ethernet(router, own, &[77], frame::IPV4, &to([11, 0, 0, 1])?);
    let six = |address: Ipv6Addr| {
        ethernet(
            router,
            own,
            &[],
            IPV6,
            &udp6("2001:db8:1::66".parse::<Ipv6Addr>().unwrap_or(Ipv6Addr::LOCALHOST), address),
        )
    };
    Ok(vec![
        Kind {
            few_flows: true,
            ..kind("refused", "frames with a tag, which an access port drops", tagged, &[50..52, 52..54])
        },
        Kind {
            few_flows: true,
            ..kind(
                "routed",
                "random destinations under one route",
                routed(router, [11, 0, 0, 0])?,
                &[IPV4_TO - 3..IPV4_TO, PORTS],
            )
        },
        Kind {
            few_flows: true,
            ..kind(
                "routed6",
                "random IPv6 destinations under one route",
                six("2001:db8:99::".parse()?),
                &[IPV6_TO, IPV6_PORTS],
            )
        },
        Kind {
            is_punted: true,
            ..kind(
                "unrouted",
                "random destinations under no route",
                routed(router, [12, 0, 0, 0])?,
                &[IPV4_TO - 3..IPV4_TO, PORTS],
            )
        },
        Kind {
            is_punted: true,
            ..kind(
                "unresolved",
                "random neighbors that are not there",
                routed(router, [10, 64, 0, 0])?,
                &[IPV4_TO - 2..IPV4_TO, PORTS],
            )
        },
        kind(
            "unknown-mac",
            "random destination MAC addresses",
            routed([2, 0xee, 0, 0, 0, 0], [10, 1, 0, 99])?,
            &[MAC_TO],
        ),
        kind(
            "random-source",
            "random source MAC addresses",
            ethernet(router, [2, 0xed, 0, 0, 0, 0], &[], frame::IPV4, &to([11, 0, 0, 1])?),
            &[MAC_FROM],
        ),
    ])
}

/// An IPv6 packet (RFC 8200) with a UDP datagram whose checksum nobody on the way looks at.
fn udp6(from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let len = 8 + PAYLOAD.len() as u8;
    let mut packet = vec![0x60, 0, 0, 0, 0, len, 17, TTL];
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(&[0, 1, 0, 9, 0, len, 0xff, 0xff]);
    packet.extend_from_slice(&PAYLOAD);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_varies_is_what_it_should_be() {
        let all = all().unwrap();
        let frame = |name| &all.iter().find(|kind| kind.name == name).unwrap().frame;
        assert_eq!(frame("routed")[30..34], [11, 0, 0, 0]);
        assert_eq!(frame("routed")[PORTS], [0, 1, 0, 9]);
        let six = frame("routed6");
        assert_eq!((&six[38..44], &six[IPV6_PORTS]), (&[0x20, 1, 0xd, 0xb8, 0, 0x99][..], &[0, 1, 0, 9][..]));
        assert!(all.iter().all(|kind| kind.vary.iter().all(|range| range.end <= kind.frame.len())));
    }
}
