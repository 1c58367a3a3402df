//! Queues of the uplinks: a network has one, and each class of its traffic one of its own. What a queue gets is somebody
//! else's business; here is which packets have it.
//!
//! Later fragments of a packet have no ports, and in IPv6 no protocol: they are in no class that asks for these.

use std::collections::BTreeSet;

use openflow::Meter;

use crate::topology::{PortNo, Topology};

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

/// Meters' numbers from here on are of queues: below, [`crate::punt::meter_id`] gives them.
const FIRST_METER: u32 = 8 << 16;
/// Kilobits that may come at once, at least: a frame of any size.
const MIN_BURST: u32 = 128;

/// The number of the meter of a queue's packets at an uplink.
#[must_use]
pub fn meter_id(port: PortNo, queue: u32) -> u32 {
    (queue << 16 | port & 0xffff).saturating_add(FIRST_METER)
}

/// The uplink and the queue of a meter's number; none for a number that [`meter_id`] does not give.
#[must_use]
pub fn meter_of(id: u32) -> Option<(PortNo, u32)> {
    let id = id.checked_sub(FIRST_METER)?;
    let (port, queue) = (id & 0xffff, id >> 16);
    (port > 0 && (1..=MAX_QUEUE).contains(&queue)).then_some((port, queue))
}

/// The meters of all uplinks that cannot shape.
pub(crate) fn meters(topology: &Topology) -> impl Iterator<Item = Meter> {
    topology.metered.iter().flat_map(|port| {
        let meter = |(queue, kbps): (&u32, &u32)| {
            // A burst of a tenth of a second.
            Meter::drop_kbps(meter_id(*port, *queue), *kbps, (*kbps / 10).max(MIN_BURST))
        };
        topology.maxima.iter().map(meter)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::punt;
    use crate::topology::RouterId;

    #[test]
    fn a_meter_is_one_queues_at_one_port_and_no_routers() {
        for (port, queue) in [(1, 1), (0xfeff, 1), (1, MAX_QUEUE), (0xfeff, MAX_QUEUE)] {
            let id = meter_id(port, queue);
            // `OFPM_MAX`.
            assert!(id <= 0xffff_0000 && punt::meter_of(id).is_none(), "{id:#x}");
            assert_eq!(meter_of(id), Some((port, queue)));
        }
        for router in [1, 0xffff] {
            for class in punt::PuntClass::ALL {
                assert_eq!(meter_of(punt::meter_id(RouterId(router), class)), None);
            }
        }
        assert_eq!(
            [0, FIRST_METER, FIRST_METER | 1, FIRST_METER + (1 << 16), u32::MAX].map(meter_of),
            [None; 5]
        );
    }
}
