//! What a node says of a router that moves: to everybody once the router is here, and to those who ask while it is on its way.
//!
//! Owns the frames, as bytes, and when each is due ([`Schedule`]). Sends none and has no clock; frames are without VLAN tags, whoever
//! sends them knows the segment.
//!
//! A move changes none of the router's MAC addresses. So what is told is for switches, which have to learn another port, and for
//! hosts that gave the router up meanwhile; it needs no more than each host's own rules for such news:
//! * RFC 5227 announcements: requests, twice, 2 s apart. Replies say no more: RFC 826 looks at the sender before the operation, and
//!   hosts that do not follow it heed requests rather than replies (RFC 5227, section 3).
//! * RFC 4861, 7.2.6: unsolicited neighbor advertisements to all nodes, three times, 1 s apart, with the router and the override flag.
//! * RARP, as QEMU sends it, for a vif without any address.
//! * The special ARP reply, for other nodes' switches. It says nothing that rows of `Location` do not: a hint, without a generation.

mod answer;
mod frame;
pub mod fuzz;
mod schedule;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;

use xenflow_proto::{MacAddr, VlanId};

pub use answer::answer;
pub(crate) use schedule::ANNOUNCEMENT;
pub use schedule::{PER_SECOND, Schedule, Telling};

/// A vif of the router, as others on its segment see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vif {
    vlan: VlanId,
    mac: MacAddr,
    addresses: BTreeSet<IpAddr>,
}

impl Vif {
    /// On this segment, with this MAC address. Of the addresses, as the guest tells them, those count that can be a neighbor's: a guest
    /// may tell any.
    #[must_use]
    pub fn new(vlan: VlanId, mac: MacAddr, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let addresses = addresses.into_iter().filter(|address| {
            !address.is_unspecified()
                && is_neighbor(*address)
                // Not for any wire (RFC 4038, 4.2).
                && !matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
        });
        Self { vlan, mac, addresses: addresses.collect() }
    }

    /// Its segment.
    #[must_use]
    pub const fn vlan(&self) -> VlanId {
        self.vlan
    }

    /// Its address on the segment.
    #[must_use]
    pub const fn mac(&self) -> MacAddr {
        self.mac
    }

    fn owns(&self, address: impl Into<IpAddr>) -> bool {
        self.addresses.contains(&address.into())
    }
}

/// May be somebody's on a wire; or nobody's, for who has none yet.
fn is_neighbor(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !address.is_multicast() && !address.is_loopback() && !is_broadcast
}
