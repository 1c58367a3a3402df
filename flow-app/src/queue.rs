//! Queues of the uplinks: a network has one, and each class of its traffic one of its own. What a queue gets is somebody
//! else's business; here is which packets have it.
//!
//! Later fragments of a packet have no ports, and in IPv6 no protocol: they are in no class that asks for these.

use std::collections::BTreeSet;

/// The greatest number that Open vSwitch has on the kernel's datapath (`dpif_netlink_queue_to_priority`). Packets without a
/// queue are in queue 0, which is nobody's.
pub const MAX_QUEUE: u32 = 0xefff;
/// A class has at most so many flows for IPv4, and as many for IPv6.
pub const MAX_CLASS_FLOWS: usize = 256;

/// A part of a network's traffic. A packet is in it if it meets all of `dscp`, `protocol` and `ports`; what is empty is met
/// by every IP packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueClass {
    /// RFC 2474 code points.
    pub dscp: BTreeSet<u8>,
    /// The IP protocol.
    pub protocol: Option<u8>,
    /// Ports of TCP, UDP or SCTP at either end. Other protocols have none: then no packet is in it.
    pub ports: BTreeSet<u16>,
    /// The number of its queue, 1 to [`MAX_QUEUE`].
    pub queue: u32,
}

/// How many flows a class with so many code points and ports has for IPv4, and for IPv6.
#[must_use]
pub fn class_flows(code_points: usize, ports: usize) -> usize {
    code_points.max(1).saturating_mul(ports.saturating_mul(2).max(1))
}
