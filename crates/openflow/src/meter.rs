//! Meters: rate limits that flows send packets through.

use crate::wire::{DecodeError, Reader};
use bytes::{BufMut, BytesMut};

/// Meter number of "all meters".
pub const ALL_METERS: u32 = 0xffff_ffff;

/// Flags of a meter (`enum ofp13_meter_flags`).
pub mod meter_flags {
    /// Rates are in kbit/s.
    pub const KBPS: u16 = 1;
    /// Rates are in packets/s.
    pub const PKTPS: u16 = 2;
    /// Burst sizes are given.
    pub const BURST: u16 = 4;
    /// Count.
    pub const STATS: u16 = 8;
}

/// A limit of a meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Band {
    /// Above it, packets are dropped.
    Drop {
        /// kbit/s or packets/s, as the meter's flags say.
        rate: u32,
        /// kbit or packets.
        burst: u32,
    },
    /// Above it, the DSCP's drop precedence rises.
    DscpRemark {
        /// kbit/s or packets/s.
        rate: u32,
        /// kbit or packets.
        burst: u32,
        /// By how much.
        levels: u8,
    },
}

/// A meter.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Meter {
    /// Its number, 1..=0xffff_0000.
    pub id: u32,
    /// See [`meter_flags`].
    pub flags: u16,
    /// Its limits. Open vSwitch takes one.
    pub bands: Vec<Band>,
}

impl Meter {
    /// Drops above `rate` packets/s with bursts of `burst` packets.
    pub fn drop_pktps(id: u32, rate: u32, burst: u32) -> Meter {
        let flags = meter_flags::PKTPS | meter_flags::BURST | meter_flags::STATS;
        Meter { id, flags, bands: vec![Band::Drop { rate, burst }] }
    }

    /// Drops above `rate` kbit/s with bursts of `burst` kbit.
    pub fn drop_kbps(id: u32, rate: u32, burst: u32) -> Meter {
        let flags = meter_flags::KBPS | meter_flags::BURST | meter_flags::STATS;
        Meter { id, flags, bands: vec![Band::Drop { rate, burst }] }
    }

    fn put_bands(&self, out: &mut BytesMut) {
        for band in &self.bands {
            let (kind, rate, burst, levels) = match *band {
                Band::Drop { rate, burst } => (1, rate, burst, 0),
                Band::DscpRemark { rate, burst, levels } => (2, rate, burst, levels),
            };
            out.put_u16(kind);
            out.put_u16(16);
            out.put_u32(rate);
            out.put_u32(burst);
            out.put_u32(u32::from(levels) << 24);
        }
    }

    /// `struct ofp13_meter_config`.
    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Meter, DecodeError> {
        let len = r.u16()?;
        let mut b = r.body(len, 2, "meter configuration")?;
        let flags = b.u16()?;
        let id = b.u32()?;
        Ok(Meter { id, flags, bands: decode_bands(b)? })
    }
}

fn decode_bands(mut b: Reader<'_>) -> Result<Vec<Band>, DecodeError> {
    let mut bands = Vec::new();
    while !b.is_empty() {
        let kind = b.u16()?;
        let len = b.u16()?;
        let mut p = b.body(len, 4, "meter band")?;
        let rate = p.u32()?;
        let burst = p.u32()?;
        match kind {
            1 => bands.push(Band::Drop { rate, burst }),
            2 => bands.push(Band::DscpRemark { rate, burst, levels: p.u8()? }),
            other => return Err(DecodeError::BadValue { what: "meter band type", value: u64::from(other) }),
        }
    }
    Ok(bands)
}

/// What a meter-mod does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum MeterCommand {
    /// New meter.
    Add = 0,
    /// Replace a meter.
    Modify = 1,
    /// Delete a meter, or all of them.
    Delete = 2,
}

/// A meter-mod. Open vSwitch does not take it in a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterMod {
    /// What to do.
    pub command: MeterCommand,
    /// The meter.
    pub meter: Meter,
}

impl MeterMod {
    /// A meter-mod.
    pub fn new(command: MeterCommand, meter: Meter) -> MeterMod {
        MeterMod { command, meter }
    }

    /// Deletes a meter, or [`ALL_METERS`].
    pub fn delete(id: u32) -> MeterMod {
        MeterMod { command: MeterCommand::Delete, meter: Meter { id, ..Meter::default() } }
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u16(self.command as u16);
        out.put_u16(self.meter.flags);
        out.put_u32(self.meter.id);
        self.meter.put_bands(out);
    }

    pub(crate) fn decode(mut r: Reader<'_>) -> Result<MeterMod, DecodeError> {
        let command = match r.u16()? {
            0 => MeterCommand::Add,
            1 => MeterCommand::Modify,
            2 => MeterCommand::Delete,
            other => {
                return Err(DecodeError::BadValue { what: "meter-mod command", value: u64::from(other) });
            }
        };
        let flags = r.u16()?;
        let id = r.u32()?;
        Ok(MeterMod { command, meter: Meter { id, flags, bands: decode_bands(r)? } })
    }
}

/// What meters the switch can have (`struct ofp13_meter_features`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MeterFeatures {
    /// How many; 0: it has none.
    pub max_meters: u32,
    /// Kinds of bands, as bits by their number: 1 drop, 2 DSCP remark.
    pub band_types: u32,
    /// See [`meter_flags`].
    pub capabilities: u32,
    /// Bands of one meter, at most.
    pub max_bands: u8,
    /// Colors, at most.
    pub max_colors: u8,
}

impl MeterFeatures {
    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<MeterFeatures, DecodeError> {
        Ok(MeterFeatures {
            max_meters: r.u32()?,
            band_types: r.u32()?,
            capabilities: r.u32()?,
            max_bands: r.u8()?,
            max_colors: r.u8()?,
        })
    }
}

/// Counters of a meter (`struct ofp13_meter_stats`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterStats {
    /// The meter.
    pub id: u32,
    /// Flows that use it.
    pub flows: u32,
    /// Packets that came in.
    pub packets_in: u64,
    /// Bytes that came in.
    pub bytes_in: u64,
    /// For each band: packets and bytes over the limit.
    pub bands: Vec<(u64, u64)>,
}

impl MeterStats {
    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<MeterStats, DecodeError> {
        let id = r.u32()?;
        let len = r.u16()?;
        let mut b = r.body(len, 6, "meter statistics")?;
        b.skip(6)?;
        let mut stats =
            MeterStats { id, flows: b.u32()?, packets_in: b.u64()?, bytes_in: b.u64()?, bands: Vec::new() };
        b.skip(8)?;
        while !b.is_empty() {
            stats.bands.push((b.u64()?, b.u64()?));
        }
        Ok(stats)
    }
}
