//! Ports and queues as the switch describes and counts them.

use crate::wire::{DecodeError, Reader};

/// A port (`struct ofp14_port`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// OpenFlow number.
    pub number: u32,
    /// MAC address.
    pub mac: [u8; 6],
    /// Name, at most 15 bytes. Open vSwitch cuts longer names and gives them without regard for UTF-8: bad bytes show as U+FFFD.
    pub name: String,
    /// `OFPPC_*`: 1 administratively down, 4 no receive, 32 no forward, 64 no packet-in.
    pub config: u32,
    /// `OFPPS_*`: 1 link down, 2 blocked, 4 live.
    pub state: u32,
    /// Current speed in kbit/s, if the port says.
    pub speed_kbps: Option<u32>,
}

impl Port {
    /// Administratively up and with a link.
    pub fn is_up(&self) -> bool {
        self.config & 1 == 0 && self.state & 1 == 0
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Port, DecodeError> {
        let number = r.u32()?;
        let len = r.u16()?;
        let mut b = r.body(len, 6, "port")?;
        b.skip(2)?;
        let mac = b.array()?;
        b.skip(2)?;
        let name: [u8; 16] = b.array()?;
        let end = name.iter().position(|&c| c == 0).unwrap_or(name.len());
        let name = String::from_utf8_lossy(name.get(..end).unwrap_or_default()).into_owned();
        let config = b.u32()?;
        let state = b.u32()?;
        let mut speed_kbps = None;
        while !b.is_empty() {
            let (kind, mut p) = b.property()?;
            if kind == 0 {
                p.skip(4 + 16)?;
                speed_kbps = Some(p.u32()?).filter(|&s| s != 0);
            }
        }
        Ok(Port { number, mac, name, config, state, speed_kbps })
    }
}

/// Why a port-status was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortReason {
    /// New port.
    Add,
    /// The port went.
    Delete,
    /// Something of it changed.
    Modify,
    /// Another reason.
    Other(u8),
}

/// A port came, went or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortStatus {
    /// What happened.
    pub reason: PortReason,
    /// The port.
    pub port: Port,
}

impl PortStatus {
    pub(crate) fn decode(mut r: Reader<'_>) -> Result<PortStatus, DecodeError> {
        let reason = match r.u8()? {
            0 => PortReason::Add,
            1 => PortReason::Delete,
            2 => PortReason::Modify,
            n => PortReason::Other(n),
        };
        r.skip(7)?;
        Ok(PortStatus { reason, port: Port::decode(&mut r)? })
    }
}

/// Counters of a port (`struct ofp14_port_stats`). A counter the switch does not have is all ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortStats {
    /// OpenFlow number.
    pub number: u32,
    /// Seconds and nanoseconds since the port is up.
    pub duration: (u32, u32),
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets dropped by the receiver.
    pub rx_dropped: u64,
    /// Packets dropped by the sender.
    pub tx_dropped: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Send errors.
    pub tx_errors: u64,
}

impl PortStats {
    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<PortStats, DecodeError> {
        let len = r.u16()?;
        let mut b = r.body(len, 2, "port statistics")?;
        b.skip(2)?;
        Ok(PortStats {
            number: b.u32()?,
            duration: (b.u32()?, b.u32()?),
            rx_packets: b.u64()?,
            tx_packets: b.u64()?,
            rx_bytes: b.u64()?,
            tx_bytes: b.u64()?,
            rx_dropped: b.u64()?,
            tx_dropped: b.u64()?,
            rx_errors: b.u64()?,
            tx_errors: b.u64()?,
        })
    }
}

/// Counters of a queue (`struct ofp14_queue_stats`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueStats {
    /// OpenFlow port.
    pub port: u32,
    /// Queue.
    pub queue: u32,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets dropped.
    pub tx_errors: u64,
    /// Seconds and nanoseconds since the queue exists.
    pub duration: (u32, u32),
}

impl QueueStats {
    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<QueueStats, DecodeError> {
        let len = r.u16()?;
        let mut b = r.body(len, 2, "queue statistics")?;
        b.skip(6)?;
        Ok(QueueStats {
            port: b.u32()?,
            queue: b.u32()?,
            tx_bytes: b.u64()?,
            tx_packets: b.u64()?,
            tx_errors: b.u64()?,
            duration: (b.u32()?, b.u32()?),
        })
    }
}
