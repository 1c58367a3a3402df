//! Groups: sets of buckets, and how one is chosen.

use crate::action::{Action, decode_actions, encode_actions, port};
use crate::field::{Field, Header};
use crate::flow::ANY_GROUP;
use crate::wire::{DecodeError, Reader, end_property, patch_len};
use bytes::{BufMut, BytesMut};

/// Netronome's experimenter id: Open vSwitch names selection methods under it (`netronome-ext.h`).
const NTR: u32 = 0x0000_154d;
/// Group number of "all groups".
pub const ALL_GROUPS: u32 = 0xffff_fffc;
/// Bucket number of "the first bucket" in insert and remove.
pub const BUCKET_FIRST: u32 = 0xffff_fffd;
/// Bucket number of "the last bucket" in insert and remove.
pub const BUCKET_LAST: u32 = 0xffff_fffe;
/// Bucket number of "all buckets" in remove.
pub const BUCKET_ALL: u32 = 0xffff_ffff;

/// How a group uses its buckets (`enum ofp11_group_type`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupType {
    /// Every bucket.
    #[default]
    All,
    /// One bucket, chosen by the selection method.
    Select,
    /// The only bucket.
    Indirect,
    /// The first live bucket.
    FastFailover,
    /// Another type.
    Other(u8),
}

impl GroupType {
    fn number(self) -> u8 {
        match self {
            GroupType::All => 0,
            GroupType::Select => 1,
            GroupType::Indirect => 2,
            GroupType::FastFailover => 3,
            GroupType::Other(n) => n,
        }
    }

    fn from_number(n: u8) -> GroupType {
        match n {
            0 => GroupType::All,
            1 => GroupType::Select,
            2 => GroupType::Indirect,
            3 => GroupType::FastFailover,
            n => GroupType::Other(n),
        }
    }
}

/// One bucket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket {
    /// Its number in the group, at most 0xffff_ff00.
    pub id: u32,
    /// Share in a select group; 0 in other groups, where Open vSwitch refuses a weight.
    pub weight: u16,
    /// Live while this port is up.
    pub watch_port: Option<u32>,
    /// Live while this group is.
    pub watch_group: Option<u32>,
    /// What it does.
    pub actions: Vec<Action>,
}

impl Bucket {
    /// A bucket of a select group.
    pub fn weighted(id: u32, weight: u16, actions: impl Into<Vec<Action>>) -> Bucket {
        Bucket { id, weight, watch_port: None, watch_group: None, actions: actions.into() }
    }

    /// A bucket of another group.
    pub fn new(id: u32, actions: impl Into<Vec<Action>>) -> Bucket {
        Bucket::weighted(id, 0, actions)
    }

    fn encode(&self, select: bool, out: &mut BytesMut) {
        let start = out.len();
        out.put_u32(0);
        out.put_u32(self.id);
        let at = out.len();
        encode_actions(&self.actions, out);
        let actions_len = out.len().saturating_sub(at);
        if select || self.weight != 0 {
            out.put_u32(6);
            out.put_u32(u32::from(self.weight) << 16);
        }
        for (kind, watch) in [(1u16, self.watch_port), (2, self.watch_group)] {
            if let Some(number) = watch {
                out.put_u16(kind);
                out.put_u16(8);
                out.put_u32(number);
            }
        }
        let len = out.len().saturating_sub(start);
        patch_len(out, start, 0, len);
        patch_len(out, start, 2, actions_len);
    }

    fn decode(r: &mut Reader<'_>, select: bool) -> Result<Bucket, DecodeError> {
        let len = r.u16()?;
        let mut b = r.body(len, 2, "bucket")?;
        let actions_len = b.u16()?;
        let id = b.u32()?;
        let actions = decode_actions(b.sub(usize::from(actions_len), "bucket actions")?, 0)?;
        let mut bucket = Bucket::weighted(id, u16::from(select), actions);
        while !b.is_empty() {
            let (kind, mut p) = b.property()?;
            match kind {
                0 => bucket.weight = p.u16()?,
                1 => bucket.watch_port = Some(p.u32()?).filter(|&n| n != port::ANY),
                2 => bucket.watch_group = Some(p.u32()?).filter(|&n| n != ANY_GROUP),
                _ => {}
            }
        }
        Ok(bucket)
    }
}

/// How a select group chooses (`struct ntr_group_prop_selection_method`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selection {
    /// `hash`: a hash over these fields under these masks, sorted by field; empty for the switch's default fields.
    Hash {
        /// Start of the hash.
        param: u64,
        /// Fields and masks.
        fields: Vec<(Field, u128)>,
    },
    /// `dp_hash`: the datapath's hash.
    DpHash {
        /// Bits 0..32: the algorithm; bits 32..64: the basis.
        param: u64,
    },
    /// Another method, with the bytes after its name.
    Other {
        /// Its name, 16 bytes padded with 0.
        name: [u8; 16],
        /// Parameter and fields, raw.
        data: Box<[u8]>,
    },
}

impl Selection {
    /// `hash` over whole fields.
    pub fn hash(fields: impl IntoIterator<Item = Field>) -> Selection {
        let mut fields: Vec<_> = fields.into_iter().map(|f| (f, f.all_ones())).collect();
        fields.sort_unstable();
        fields.dedup();
        Selection::Hash { param: 0, fields }
    }

    fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_u32(0xffff_0000);
        out.put_u32(NTR);
        out.put_u32(1);
        out.put_u32(0);
        match self {
            Selection::Hash { param, fields } => {
                out.put_slice(b"hash\0\0\0\0\0\0\0\0\0\0\0\0");
                out.put_u64(*param);
                for (field, mask) in fields {
                    // As OVS has it: the header without mask bit, then the mask in the place of a value.
                    out.put_u32(field.oxm_header(false));
                    crate::wire::put_uint(out, *mask, field.bytes());
                }
            }
            Selection::DpHash { param } => {
                out.put_slice(b"dp_hash\0\0\0\0\0\0\0\0\0");
                out.put_u64(*param);
            }
            Selection::Other { name, data } => {
                out.put_slice(name);
                out.put_slice(data);
            }
        }
        end_property(out, start);
    }

    fn decode(mut p: Reader<'_>) -> Result<Option<Selection>, DecodeError> {
        if p.u32()? != NTR || p.u32()? != 1 {
            return Ok(None);
        }
        p.skip(4)?;
        let name: [u8; 16] = p.array()?;
        let data = p.rest();
        let end = name.iter().position(|&b| b == 0).unwrap_or(16);
        let other = Some(Selection::Other { name, data: data.into() });
        match name.get(..end) {
            Some(b"dp_hash") => Ok(Some(Selection::DpHash { param: p.u64()? })),
            Some(b"hash") => {
                let param = p.u64()?;
                let mut fields = Vec::new();
                while !p.is_empty() {
                    let h = Header::read(&mut p)?;
                    let Some(field) = h.field.filter(|_| !h.masked) else { return Ok(other) };
                    fields.push((field, p.uint(field.bytes())? & field.all_ones()));
                }
                fields.sort_unstable();
                Ok(Some(Selection::Hash { param, fields }))
            }
            _ => Ok(other),
        }
    }
}

/// A group.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    /// Its number, at most 0xffff_ff00.
    pub id: u32,
    /// Its type.
    pub kind: GroupType,
    /// Its buckets.
    pub buckets: Vec<Bucket>,
    /// How to choose, in a select group. `None` leaves it to the switch (Open vSwitch: `dp_hash`), which gives back none.
    pub selection: Option<Selection>,
}

/// What a group-mod does (`enum ofp15_group_mod_command`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum GroupCommand {
    /// New group.
    Add = 0,
    /// Replace a group.
    Modify = 1,
    /// Delete a group, or all of them; flows that send to it go too.
    Delete = 2,
    /// Add buckets to a group.
    InsertBucket = 3,
    /// Remove buckets from a group.
    RemoveBucket = 5,
    /// New group or replace it (Open vSwitch).
    AddOrModify = 0x8000,
}

/// A group-mod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMod {
    /// What to do.
    pub command: GroupCommand,
    /// The group, or the buckets to insert.
    pub group: Group,
    /// Insert: after which bucket; remove: which one. See [`BUCKET_FIRST`], [`BUCKET_LAST`], [`BUCKET_ALL`].
    pub bucket_id: u32,
}

impl GroupMod {
    /// A group-mod on a whole group.
    pub fn new(command: GroupCommand, group: Group) -> GroupMod {
        GroupMod { command, group, bucket_id: BUCKET_ALL }
    }

    /// Deletes a group, or [`ALL_GROUPS`].
    pub fn delete(id: u32) -> GroupMod {
        GroupMod::new(GroupCommand::Delete, Group { id, ..Group::default() })
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        let select = self.group.kind == GroupType::Select;
        out.put_u16(self.command as u16);
        out.put_u8(self.group.kind.number());
        out.put_u8(0);
        out.put_u32(self.group.id);
        out.put_u32(0);
        out.put_u32(self.bucket_id);
        let at = out.len();
        for bucket in &self.group.buckets {
            bucket.encode(select, out);
        }
        let len = out.len().saturating_sub(at);
        patch_len(out, start, 8, len);
        if let Some(selection) = &self.group.selection {
            selection.encode(out);
        }
    }

    pub(crate) fn decode(mut r: Reader<'_>) -> Result<GroupMod, DecodeError> {
        let command = match r.u16()? {
            0 => GroupCommand::Add,
            1 => GroupCommand::Modify,
            2 => GroupCommand::Delete,
            3 => GroupCommand::InsertBucket,
            5 => GroupCommand::RemoveBucket,
            0x8000 => GroupCommand::AddOrModify,
            other => {
                return Err(DecodeError::BadValue { what: "group-mod command", value: u64::from(other) });
            }
        };
        let kind = GroupType::from_number(r.u8()?);
        r.skip(1)?;
        let id = r.u32()?;
        let len = r.u16()?;
        r.skip(2)?;
        let bucket_id = r.u32()?;
        let group = decode_group(r, id, kind, len)?;
        Ok(GroupMod { command, group, bucket_id })
    }
}

impl Group {
    /// `struct ofp15_group_desc_stats`.
    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Group, DecodeError> {
        let len = r.u16()?;
        let mut b = r.body(len, 2, "group description")?;
        let kind = GroupType::from_number(b.u8()?);
        b.skip(1)?;
        let id = b.u32()?;
        let len = b.u16()?;
        b.skip(6)?;
        decode_group(b, id, kind, len)
    }
}

fn decode_group(mut r: Reader<'_>, id: u32, kind: GroupType, len: u16) -> Result<Group, DecodeError> {
    let mut b = r.sub(usize::from(len), "buckets")?;
    let mut buckets = Vec::new();
    while !b.is_empty() {
        buckets.push(Bucket::decode(&mut b, kind == GroupType::Select)?);
    }
    let mut selection = None;
    while !r.is_empty() {
        let (kind, p) = r.property()?;
        if kind == 0xffff {
            selection = Selection::decode(p)?.or(selection);
        }
    }
    Ok(Group { id, kind, buckets, selection })
}
