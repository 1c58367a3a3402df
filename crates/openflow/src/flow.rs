//! Flows: instructions, flow-mods, and flows as a switch describes them.

use crate::action::{Action, decode_actions, encode_actions, port};
use crate::matching::Match;
use crate::wire::{DecodeError, Reader, patch_len};
use bytes::{BufMut, BytesMut};

/// Table number of "all tables".
pub const ALL_TABLES: u8 = 0xff;
/// Group number of "no group" or "no restriction".
pub const ANY_GROUP: u32 = 0xffff_ffff;

/// One instruction of a flow. The order of the variants is the canonical order: the one they are executed and given back in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Instruction {
    /// Run actions now.
    ApplyActions(Vec<Action>),
    /// Empty the action set.
    ClearActions,
    /// Add to the action set.
    WriteActions(Vec<Action>),
    /// Set bits of the metadata.
    WriteMetadata {
        /// New bits; those outside of `mask` are ignored and given back as 0 by [`Flow::with`].
        value: u64,
        /// Bits to set.
        mask: u64,
    },
    /// Go on in a later table.
    GotoTable(u8),
    /// An instruction this crate does not know, header included.
    Other(Box<[u8]>),
}

impl Instruction {
    fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        match self {
            Instruction::GotoTable(table) => {
                out.put_u32(0x0001_0008);
                out.put_u32(u32::from(*table) << 24);
            }
            Instruction::WriteMetadata { value, mask } => {
                out.put_u32(0x0002_0018);
                out.put_u32(0);
                out.put_u64(*value);
                out.put_u64(*mask);
            }
            Instruction::WriteActions(actions) => put_actions(out, start, 3, actions),
            Instruction::ApplyActions(actions) => put_actions(out, start, 4, actions),
            Instruction::ClearActions => put_actions(out, start, 5, &[]),
            Instruction::Other(raw) => out.put_slice(raw),
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Instruction, DecodeError> {
        let mut whole = *r;
        let kind = r.u16()?;
        let len = r.u16()?;
        if len < 8 || len % 8 != 0 {
            return Err(DecodeError::BadLength { what: "instruction", len: usize::from(len) });
        }
        let mut body = r.body(len, 4, "instruction")?;
        Ok(match kind {
            1 => Instruction::GotoTable(body.u8()?),
            2 => {
                body.skip(4)?;
                let value = body.u64()?;
                let mask = body.u64()?;
                Instruction::WriteMetadata { value: value & mask, mask }
            }
            3 | 4 => {
                body.skip(4)?;
                let actions = decode_actions(body, 0)?;
                if kind == 3 {
                    Instruction::WriteActions(actions)
                } else {
                    Instruction::ApplyActions(actions)
                }
            }
            5 => Instruction::ClearActions,
            _ => Instruction::Other(whole.take(usize::from(len))?.into()),
        })
    }
}

fn put_actions(out: &mut BytesMut, start: usize, kind: u16, actions: &[Action]) {
    out.put_u16(kind);
    out.put_u16(0);
    out.put_u32(0);
    encode_actions(actions, out);
    let len = out.len().saturating_sub(start);
    patch_len(out, start, 2, len);
}

/// Flags a flow keeps (`OFPFF_*`); flags of one request only are in [`FlowMod`].
pub mod flow_flags {
    /// Send flow-removed when the flow goes.
    pub const SEND_FLOW_REM: u16 = 1;
    /// Do not count packets.
    pub const NO_PKT_COUNTS: u16 = 1 << 3;
    /// Do not count bytes.
    pub const NO_BYT_COUNTS: u16 = 1 << 4;
    /// All flags that a flow keeps.
    pub const STATE: u16 = SEND_FLOW_REM | NO_PKT_COUNTS | NO_BYT_COUNTS;
}

/// A flow: where it stands, what it matches, what it does. A flow made with [`Flow::new`] and [`Flow::with`], sent to Open
/// vSwitch and dumped, decodes to an equal value.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Table, 0..=254.
    pub table: u8,
    /// Higher wins.
    pub priority: u16,
    /// Chosen by the controller.
    pub cookie: u64,
    /// Which packets.
    pub matching: Match,
    /// In canonical order, one of each kind; keep it so by using [`Flow::with`].
    pub instructions: Vec<Instruction>,
    /// Seconds without packets until the flow goes; 0 never.
    pub idle_timeout: u16,
    /// Seconds until the flow goes; 0 never.
    pub hard_timeout: u16,
    /// See [`flow_flags`].
    pub flags: u16,
    /// For eviction: less important flows go first.
    pub importance: u16,
}

impl Flow {
    /// A flow that drops what it matches.
    pub fn new(table: u8, priority: u16, cookie: u64, matching: Match) -> Flow {
        Flow { table, priority, cookie, matching, ..Flow::default() }
    }

    /// Adds an instruction in its canonical place. Empty lists of actions are left out, as Open vSwitch does.
    #[must_use]
    pub fn with(mut self, instruction: Instruction) -> Flow {
        self.instructions.push(instruction);
        canonical(&mut self.instructions);
        self
    }

    /// [`Flow::with`] for `ApplyActions`.
    #[must_use]
    pub fn apply(self, actions: impl Into<Vec<Action>>) -> Flow {
        self.with(Instruction::ApplyActions(actions.into()))
    }

    /// [`Flow::with`] for `GotoTable`.
    #[must_use]
    pub fn goto(self, table: u8) -> Flow {
        self.with(Instruction::GotoTable(table))
    }

    /// [`Flow::with`] for `WriteMetadata`.
    #[must_use]
    pub fn write_metadata(self, value: u64, mask: u64) -> Flow {
        self.with(Instruction::WriteMetadata { value, mask })
    }
}

fn canonical(instructions: &mut Vec<Instruction>) {
    instructions.retain_mut(|i| match i {
        Instruction::ApplyActions(actions) | Instruction::WriteActions(actions) => !actions.is_empty(),
        Instruction::WriteMetadata { value, mask } => {
            *value &= *mask;
            true
        }
        Instruction::ClearActions | Instruction::GotoTable(_) | Instruction::Other(_) => true,
    });
    let rank = |i: &Instruction| match i {
        Instruction::ApplyActions(_) => 0,
        Instruction::ClearActions => 1,
        Instruction::WriteActions(_) => 2,
        Instruction::WriteMetadata { .. } => 3,
        Instruction::GotoTable(_) => 4,
        Instruction::Other(_) => 5,
    };
    instructions.sort_by_key(rank);
}

fn decode_instructions(mut r: Reader<'_>) -> Result<Vec<Instruction>, DecodeError> {
    let mut out = Vec::new();
    while !r.is_empty() {
        out.push(Instruction::decode(&mut r)?);
    }
    canonical(&mut out);
    Ok(out)
}

/// What a flow-mod does (`enum ofp_flow_mod_command`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FlowCommand {
    /// Add, or replace the flow with the same match and priority.
    Add = 0,
    /// Change the instructions of all flows that the match covers.
    Modify = 1,
    /// Change the instructions of the flow with exactly this match and priority.
    ModifyStrict = 2,
    /// Delete all flows that the match covers.
    Delete = 3,
    /// Delete the flow with exactly this match and priority.
    DeleteStrict = 4,
}

/// A flow-mod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowMod {
    /// What to do.
    pub command: FlowCommand,
    /// The flow; for other commands than `Add` its cookie is what `cookie_mask` compares.
    pub flow: Flow,
    /// Only flows whose cookie has these bits equal; 0 for all. Not for `Add`.
    pub cookie_mask: u64,
    /// Deletes: only flows that send to this port; [`port::ANY`] for all.
    pub out_port: u32,
    /// Deletes: only flows that send to this group; [`ANY_GROUP`] for all.
    pub out_group: u32,
    /// `Add`: refuse a flow that overlaps another of the same priority.
    pub check_overlap: bool,
    /// Reset the counters of the flow.
    pub reset_counts: bool,
}

impl FlowMod {
    /// A flow-mod without restrictions.
    pub fn new(command: FlowCommand, flow: Flow) -> FlowMod {
        FlowMod {
            command,
            flow,
            cookie_mask: 0,
            out_port: port::ANY,
            out_group: ANY_GROUP,
            check_overlap: false,
            reset_counts: false,
        }
    }

    /// Adds the flow.
    pub fn add(flow: Flow) -> FlowMod {
        FlowMod::new(FlowCommand::Add, flow)
    }

    /// Deletes the flow with exactly this table, match and priority, whatever its cookie.
    pub fn delete_strict(table: u8, priority: u16, matching: Match) -> FlowMod {
        FlowMod::new(FlowCommand::DeleteStrict, Flow::new(table, priority, 0, matching))
    }

    /// Deletes all flows of a table ([`ALL_TABLES`] for all) whose cookie has the bits of `mask` equal.
    pub fn delete_by_cookie(table: u8, cookie: u64, mask: u64) -> FlowMod {
        FlowMod {
            cookie_mask: mask,
            ..FlowMod::new(FlowCommand::Delete, Flow::new(table, 0, cookie, Match::any()))
        }
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        encode_flow_mod(self, &self.flow, out);
    }

    pub(crate) fn decode(mut r: Reader<'_>) -> Result<FlowMod, DecodeError> {
        let cookie = r.u64()?;
        let cookie_mask = r.u64()?;
        let table = r.u8()?;
        let command = match r.u8()? {
            0 => FlowCommand::Add,
            1 => FlowCommand::Modify,
            2 => FlowCommand::ModifyStrict,
            3 => FlowCommand::Delete,
            4 => FlowCommand::DeleteStrict,
            other => return Err(DecodeError::BadValue { what: "flow-mod command", value: u64::from(other) }),
        };
        let idle_timeout = r.u16()?;
        let hard_timeout = r.u16()?;
        let priority = r.u16()?;
        r.skip(4)?;
        let out_port = r.u32()?;
        let out_group = r.u32()?;
        let flags = r.u16()?;
        let importance = r.u16()?;
        let matching = Match::decode(&mut r)?;
        let instructions = decode_instructions(r)?;
        Ok(FlowMod {
            command,
            flow: Flow {
                table,
                priority,
                cookie,
                matching,
                instructions,
                idle_timeout,
                hard_timeout,
                flags: flags & flow_flags::STATE,
                importance,
            },
            cookie_mask,
            out_port,
            out_group,
            check_overlap: flags & 2 != 0,
            reset_counts: flags & 4 != 0,
        })
    }
}

fn encode_flow_mod(m: &FlowMod, flow: &Flow, out: &mut BytesMut) {
    out.reserve(48 + flow.matching.as_oxm().len() + 64);
    out.put_u64(flow.cookie);
    out.put_u64(m.cookie_mask);
    out.put_u8(flow.table);
    out.put_u8(m.command as u8);
    out.put_u16(flow.idle_timeout);
    out.put_u16(flow.hard_timeout);
    out.put_u16(flow.priority);
    out.put_u32(u32::MAX);
    out.put_u32(m.out_port);
    out.put_u32(m.out_group);
    out.put_u16(
        (flow.flags & flow_flags::STATE)
            | (u16::from(m.check_overlap) << 1)
            | (u16::from(m.reset_counts) << 2),
    );
    out.put_u16(flow.importance);
    flow.matching.encode(out);
    for instruction in &flow.instructions {
        instruction.encode(out);
    }
}

/// Which flows to describe or to count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowFilter {
    /// Table, or [`ALL_TABLES`].
    pub table: u8,
    /// Only flows that send to this port; [`port::ANY`] for all.
    pub out_port: u32,
    /// Only flows that send to this group; [`ANY_GROUP`] for all.
    pub out_group: u32,
    /// Compared under `cookie_mask`.
    pub cookie: u64,
    /// Bits of the cookie that must be equal; 0 for all flows.
    pub cookie_mask: u64,
    /// Only flows that this match covers.
    pub matching: Match,
}

impl Default for FlowFilter {
    fn default() -> Self {
        FlowFilter {
            table: ALL_TABLES,
            out_port: port::ANY,
            out_group: ANY_GROUP,
            cookie: 0,
            cookie_mask: 0,
            matching: Match::any(),
        }
    }
}

impl FlowFilter {
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u32(u32::from(self.table) << 24);
        out.put_u32(self.out_port);
        out.put_u32(self.out_group);
        out.put_u32(0);
        out.put_u64(self.cookie);
        out.put_u64(self.cookie_mask);
        self.matching.encode(out);
    }
}

/// Counters of a flow, or of the flows a filter covers (`OXS_OF_*`). `None` where the switch does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowCounters {
    /// Age: seconds and nanoseconds.
    pub duration: Option<(u32, u32)>,
    /// Seconds since the last packet.
    pub idle_secs: Option<u32>,
    /// Flows counted together.
    pub flows: Option<u32>,
    /// Packets.
    pub packets: Option<u64>,
    /// Bytes.
    pub bytes: Option<u64>,
}

impl FlowCounters {
    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<FlowCounters, DecodeError> {
        // struct ofp_oxs_stat: reserved, length (header included), entries; padded outside of the length.
        r.skip(2)?;
        let len = r.u16()?;
        let mut body = r.body(len, 4, "statistics")?;
        r.skip_pad8(usize::from(len));
        let mut c = FlowCounters::default();
        while !body.is_empty() {
            let class = body.u16()?;
            let number = body.u8()? >> 1;
            let len = body.u8()?;
            let mut p = body.sub(usize::from(len), "statistic")?;
            match (class, number) {
                (0x8002, 0) => c.duration = Some((p.u32()?, p.u32()?)),
                (0x8002, 1) => c.idle_secs = Some(p.u32()?),
                (0x8002, 3) => c.flows = Some(p.u32()?),
                (0x8002, 4) => c.packets = Some(p.u64()?),
                (0x8002, 5) => c.bytes = Some(p.u64()?),
                _ => {}
            }
        }
        Ok(c)
    }
}

/// A flow of the switch with its counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowDesc {
    /// The flow.
    pub flow: Flow,
    /// Its counters.
    pub counters: FlowCounters,
}

impl FlowDesc {
    /// `struct ofp15_flow_desc`.
    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<FlowDesc, DecodeError> {
        let len = r.u16()?;
        let mut b = r.body(len, 2, "flow description")?;
        b.skip(2)?;
        let table = b.u8()?;
        b.skip(1)?;
        let priority = b.u16()?;
        let idle_timeout = b.u16()?;
        let hard_timeout = b.u16()?;
        let flags = b.u16()?;
        let importance = b.u16()?;
        let cookie = b.u64()?;
        let matching = Match::decode(&mut b)?;
        let counters = FlowCounters::decode(&mut b)?;
        let instructions = decode_instructions(b)?;
        let flow = Flow {
            table,
            priority,
            cookie,
            matching,
            instructions,
            idle_timeout,
            hard_timeout,
            flags: flags & flow_flags::STATE,
            importance,
        };
        Ok(FlowDesc { flow, counters })
    }
}

/// A flow went (`struct ofp15_flow_removed`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowRemoved {
    /// Its table.
    pub table: u8,
    /// 0 idle timeout, 1 hard timeout, 2 deleted, 3 its group went, 4 its meter went, 5 evicted.
    pub reason: u8,
    /// Its priority.
    pub priority: u16,
    /// Its cookie.
    pub cookie: u64,
    /// Its idle timeout in seconds.
    pub idle_timeout: u16,
    /// Its hard timeout in seconds.
    pub hard_timeout: u16,
    /// Its match.
    pub matching: Match,
    /// Its last counters.
    pub counters: FlowCounters,
}

impl FlowRemoved {
    pub(crate) fn decode(mut r: Reader<'_>) -> Result<FlowRemoved, DecodeError> {
        Ok(FlowRemoved {
            table: r.u8()?,
            reason: r.u8()?,
            priority: r.u16()?,
            idle_timeout: r.u16()?,
            hard_timeout: r.u16()?,
            cookie: r.u64()?,
            matching: Match::decode(&mut r)?,
            counters: FlowCounters::decode(&mut r)?,
        })
    }
}
