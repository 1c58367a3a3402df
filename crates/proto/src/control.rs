//! Constants of the control network, on which guests reach their host.
//!
//! Every host answers the same addresses with the same MAC, so that a migrated guest finds its new host where
//! the old one was. A guest's own control address follows from the MAC of its control vif; the host's switch
//! lets no other source through, which ties a session's peer address to one port.

use std::hash::Hasher as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use siphasher::sip::SipHasher24;

use crate::identity::Name;
use crate::types::MacAddr;

/// TCP port of the host daemon on the control network.
pub const PORT: u16 = 6641;

/// UDP port on which a guest hears nudges, on its control interface.
pub const NUDGE_PORT: u16 = PORT;

/// What a nudge says: look now whether this host is the one you speak with. It carries nothing else, so forging one
/// costs a guest a ping.
pub const NUDGE: &[u8] = b"xenflow nudge 1";

/// Name of the host's port on the control network.
pub const HOST_PORT_NAME: &str = "xf-ctl";

/// MAC address of [`HOST_PORT_NAME`] on every host (locally administered).
pub const HOST_MAC: MacAddr = MacAddr([0x0e, 0x58, 0x46, 0x00, 0x00, 0x01]);

/// Link-local IPv6 address of every host.
pub const HOST_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Link-local IPv4 address of every host (RFC 3927), for guests without IPv6.
pub const HOST_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);

/// The only IPv6 source that the control vif with this MAC may use: its modified EUI-64 address (RFC 4291,
/// appendix A), which Linux gives an interface by default.
#[must_use]
pub fn guest_ipv6(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let part = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, part(a ^ 2, b), part(c, 0xff), part(0xfe, d), part(e, f))
}

/// The only IPv4 source that the control vif with this MAC may use: 169.254 and the last two bytes of the MAC,
/// the first of them folded into 1..=254 as RFC 3927 reserves the others. Two vifs of a host may share one:
/// the daemon refuses both then, and IPv6 still tells them apart.
#[must_use]
pub fn guest_ipv4(mac: MacAddr) -> Ipv4Addr {
    let [.., high, low] = mac.0;
    let high = match high {
        0 => 1,
        255 => 254,
        other => other,
    };
    Ipv4Addr::new(169, 254, high, low)
}

/// The address that a node itself sends from on segments: made of its name (locally administered, of one interface), so that it is
/// the same in every life and on every uplink, and no two nodes have one.
#[must_use]
pub fn node_mac(node: &Name) -> MacAddr {
    let mut hasher = SipHasher24::new_with_key(b"xenflow node mac");
    hasher.write(node.as_str().as_bytes());
    let [_, _, _, b, c, d, e, f] = hasher.finish().to_be_bytes();
    MacAddr([0x0a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_addresses_of_their_own() {
        let mac = |name: &str| node_mac(&name.parse().unwrap());
        assert_eq!(mac("a"), mac("a"));
        assert_ne!(mac("a"), mac("b"));
        assert!(mac("a").is_unicast() && mac("a") != HOST_MAC);
    }

    #[test]
    fn guest_addresses_follow_the_mac() {
        let mac = MacAddr([0x52, 0x54, 0x00, 0x12, 0xff, 0x56]);
        assert_eq!(guest_ipv6(mac).to_string(), "fe80::5054:ff:fe12:ff56");
        assert_eq!(guest_ipv4(mac).to_string(), "169.254.254.86");
        // RFC 3927 2.1: the first and the last 256 addresses are reserved; the host's is one of them.
        assert_eq!(guest_ipv4(MacAddr([2, 0, 0, 0, 0, 1])).to_string(), "169.254.1.1");
    }
}
