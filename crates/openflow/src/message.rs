//! Whole messages: the header, every type, and what a bundle or a multipart wraps.

use crate::error::{Error, ErrorCode};
use crate::flow::{FlowCounters, FlowDesc, FlowFilter, FlowMod, FlowRemoved};
use crate::group::{Group, GroupMod};
use crate::meter::{Meter, MeterFeatures, MeterMod, MeterStats};
use crate::packet::{PacketIn, PacketOut};
use crate::switch_port::{Port, PortStats, PortStatus, QueueStats};
use crate::wire::{DecodeError, EncodeError, Reader, patch_len};
use bytes::{BufMut, Bytes, BytesMut};

/// OpenFlow 1.5 on the wire.
pub const VERSION: u8 = 0x06;
/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// A message. Requests and replies of one kind are separate variants.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// Greeting.
    Hello(Hello),
    /// A request failed; the xid is the request's.
    Error(Error),
    /// Are you there?
    EchoRequest(Bytes),
    /// Yes, with the request's bytes.
    EchoReply(Bytes),
    /// Ask for [`Features`].
    FeaturesRequest,
    /// What the switch is.
    FeaturesReply(Features),
    /// Set fragment handling (0 normal) and how much of a packet goes to the controller.
    SetConfig {
        /// `OFPC_*`.
        flags: u16,
        /// Bytes. Anything but 0 turns on the asynchronous messages of a service connection of Open vSwitch.
        miss_send_len: u16,
    },
    /// Which asynchronous messages to send.
    SetAsync(AsyncConfig),
    /// How packet-ins are sent (`NXT_SET_PACKET_IN_FORMAT`): true for `NXT_PACKET_IN2`, false for `OFPT_PACKET_IN`.
    SetPacketInFormat(bool),
    /// A packet for the controller.
    PacketIn(PacketIn),
    /// A packet from the controller.
    PacketOut(PacketOut),
    /// A flow went.
    FlowRemoved(FlowRemoved),
    /// A port came, went or changed.
    PortStatus(PortStatus),
    /// Change flows.
    FlowMod(FlowMod),
    /// Change groups.
    GroupMod(GroupMod),
    /// Change meters.
    MeterMod(MeterMod),
    /// Tell when everything before this is done.
    BarrierRequest,
    /// Everything before the request is done.
    BarrierReply,
    /// Open, close, commit or discard a bundle.
    BundleCtrl(BundleCtrl),
    /// Add a message to a bundle.
    BundleAdd(BundleAdd),
    /// Ask for a description or statistics.
    MultipartRequest(MultipartRequest),
    /// A part of the answer.
    MultipartReply {
        /// More parts follow.
        more: bool,
        /// This part.
        body: MultipartReply,
    },
    /// A type this crate does not know.
    Other {
        /// `OFPT_*`.
        kind: u8,
        /// Bytes after the header.
        body: Bytes,
    },
}

/// A greeting: the versions its sender speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Version in the header: the highest one the sender speaks.
    pub version: u8,
    /// Bitmap of versions 0..=31, if given.
    pub bitmap: Option<u32>,
}

impl Hello {
    /// Speaks OpenFlow 1.5 only.
    pub const V15: Hello = Hello { version: VERSION, bitmap: Some(1 << VERSION) };

    /// Whether the sender speaks OpenFlow 1.5.
    pub fn speaks_v15(self) -> bool {
        match self.bitmap {
            Some(bits) => bits & (1 << VERSION) != 0,
            // Without a bitmap every version up to the header's is meant.
            None => self.version >= VERSION,
        }
    }

    fn decode(version: u8, mut r: Reader<'_>) -> Result<Hello, DecodeError> {
        let mut hello = Hello { version, bitmap: None };
        while r.len() >= 4 {
            let (kind, mut p) = r.property()?;
            if kind == 1 && p.len() >= 4 {
                hello.bitmap = Some(p.u32()?);
            }
        }
        Ok(hello)
    }
}

/// What the switch is (`struct ofp_switch_features`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Id of the switch; in Open vSwitch the low 48 bits are the bridge's MAC address unless it is configured.
    pub datapath_id: u64,
    /// Packets it buffers.
    pub n_buffers: u32,
    /// Tables it has.
    pub n_tables: u8,
    /// Auxiliary connection; 0 for the main one.
    pub auxiliary_id: u8,
    /// `OFPC_*`.
    pub capabilities: u32,
}

/// Which asynchronous messages to send, as bitmaps of their reasons. `None` leaves a kind as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AsyncConfig {
    /// Bits of [`PacketIn::reason`].
    pub packet_in: Option<u32>,
    /// Bits 0 add, 1 delete, 2 modify.
    pub port_status: Option<u32>,
    /// Bits of [`FlowRemoved::reason`].
    pub flow_removed: Option<u32>,
}

/// What a bundle control message says (`enum ofp14_bundle_ctrl_type`): requests are even, their replies one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
#[allow(missing_docs)]
pub enum BundleCtrlType {
    OpenRequest = 0,
    OpenReply = 1,
    CloseRequest = 2,
    CloseReply = 3,
    CommitRequest = 4,
    CommitReply = 5,
    DiscardRequest = 6,
    DiscardReply = 7,
}

/// Flags of a bundle.
pub mod bundle_flags {
    /// All or nothing, and no packet sees a part of it.
    pub const ATOMIC: u16 = 1;
    /// In the order given.
    pub const ORDERED: u16 = 2;
}

/// Bundle control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BundleCtrl {
    /// The bundle.
    pub id: u32,
    /// What to do or what was done.
    pub kind: BundleCtrlType,
    /// See [`bundle_flags`].
    pub flags: u16,
}

/// A message for a bundle. Open vSwitch takes flow-mods, group-mods, port-mods and packet-outs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleAdd {
    /// The bundle.
    pub id: u32,
    /// See [`bundle_flags`]; the same as when opened.
    pub flags: u16,
    /// The message; it goes out with the xid of this one.
    pub message: Box<Message>,
}

/// A request for a description or statistics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MultipartRequest {
    /// Flows with counters. In OpenFlow 1.5 Open vSwitch answers `OFPMP_FLOW_DESC` (type 1) with both.
    Flows(FlowFilter),
    /// The sum of counters over flows.
    Aggregate(FlowFilter),
    /// Ports; [`crate::action::port::ANY`] for all.
    Ports(u32),
    /// Counters of ports; [`crate::action::port::ANY`] for all.
    PortStats(u32),
    /// Counters of queues.
    QueueStats {
        /// Port, or [`crate::action::port::ANY`].
        port: u32,
        /// Queue, or 0xffff_ffff for all.
        queue: u32,
    },
    /// Groups; [`crate::group::ALL_GROUPS`] for all.
    Groups(u32),
    /// Meters; [`crate::meter::ALL_METERS`] for all.
    Meters(u32),
    /// Counters of meters; [`crate::meter::ALL_METERS`] for all.
    MeterStats(u32),
    /// What meters the switch can have.
    MeterFeatures,
}

/// One part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MultipartReply {
    /// Flows with counters.
    Flows(Vec<FlowDesc>),
    /// The sum of counters over flows.
    Aggregate(FlowCounters),
    /// Ports.
    Ports(Vec<Port>),
    /// Counters of ports.
    PortStats(Vec<PortStats>),
    /// Counters of queues.
    QueueStats(Vec<QueueStats>),
    /// Groups.
    Groups(Vec<Group>),
    /// Meters.
    Meters(Vec<Meter>),
    /// Counters of meters.
    MeterStats(Vec<MeterStats>),
    /// What meters the switch can have.
    MeterFeatures(MeterFeatures),
    /// A type this crate does not know.
    Other {
        /// `OFPMP_*`.
        kind: u16,
        /// This part, raw.
        body: Bytes,
    },
}

impl MultipartRequest {
    fn encode(&self, out: &mut BytesMut) {
        let mut head = |kind: u16| {
            out.put_u16(kind);
            out.put_u16(0);
            out.put_u32(0);
        };
        let mut number = |kind, number: u32| {
            head(kind);
            number
        };
        let (word, second) = match self {
            MultipartRequest::Flows(filter) => {
                head(1);
                return filter.encode(out);
            }
            MultipartRequest::Aggregate(filter) => {
                head(2);
                return filter.encode(out);
            }
            MultipartRequest::MeterFeatures => return head(11),
            MultipartRequest::Ports(port) => (number(13, *port), 0),
            MultipartRequest::PortStats(port) => (number(4, *port), 0),
            MultipartRequest::QueueStats { port, queue } => (number(5, *port), *queue),
            MultipartRequest::Groups(id) => (number(7, *id), 0),
            MultipartRequest::Meters(id) => (number(10, *id), 0),
            MultipartRequest::MeterStats(id) => (number(9, *id), 0),
        };
        out.put_u32(word);
        out.put_u32(second);
    }
}

impl MultipartReply {
    fn decode(kind: u16, mut r: Reader<'_>) -> Result<MultipartReply, DecodeError> {
        fn all<'a, T>(
            mut r: Reader<'a>,
            one: impl Fn(&mut Reader<'a>) -> Result<T, DecodeError>,
        ) -> Result<Vec<T>, DecodeError> {
            let mut out = Vec::new();
            while !r.is_empty() {
                out.push(one(&mut r)?);
            }
            Ok(out)
        }
        Ok(match kind {
            1 => MultipartReply::Flows(all(r, FlowDesc::decode)?),
            2 => MultipartReply::Aggregate(FlowCounters::decode(&mut r)?),
            13 => MultipartReply::Ports(all(r, Port::decode)?),
            4 => MultipartReply::PortStats(all(r, PortStats::decode)?),
            5 => MultipartReply::QueueStats(all(r, QueueStats::decode)?),
            7 => MultipartReply::Groups(all(r, Group::decode)?),
            10 => MultipartReply::Meters(all(r, Meter::decode)?),
            9 => MultipartReply::MeterStats(all(r, MeterStats::decode)?),
            11 => MultipartReply::MeterFeatures(MeterFeatures::decode(&mut r)?),
            kind => MultipartReply::Other { kind, body: Bytes::copy_from_slice(r.rest()) },
        })
    }
}

/// Numbers of message types (`OFPT_*`).
mod kind {
    pub(super) const HELLO: u8 = 0;
    pub(super) const ERROR: u8 = 1;
    pub(super) const ECHO_REQUEST: u8 = 2;
    pub(super) const ECHO_REPLY: u8 = 3;
    pub(super) const EXPERIMENTER: u8 = 4;
    pub(super) const FEATURES_REQUEST: u8 = 5;
    pub(super) const FEATURES_REPLY: u8 = 6;
    pub(super) const SET_CONFIG: u8 = 9;
    pub(super) const PACKET_IN: u8 = 10;
    pub(super) const FLOW_REMOVED: u8 = 11;
    pub(super) const PORT_STATUS: u8 = 12;
    pub(super) const PACKET_OUT: u8 = 13;
    pub(super) const FLOW_MOD: u8 = 14;
    pub(super) const GROUP_MOD: u8 = 15;
    pub(super) const MULTIPART_REQUEST: u8 = 18;
    pub(super) const MULTIPART_REPLY: u8 = 19;
    pub(super) const BARRIER_REQUEST: u8 = 20;
    pub(super) const BARRIER_REPLY: u8 = 21;
    pub(super) const SET_ASYNC: u8 = 28;
    pub(super) const METER_MOD: u8 = 29;
    pub(super) const BUNDLE_CONTROL: u8 = 33;
    pub(super) const BUNDLE_ADD: u8 = 34;
}

/// `NXT_SET_PACKET_IN_FORMAT` and `NXT_PACKET_IN2`.
const NXT_SET_PACKET_IN_FORMAT: u32 = 16;
const NXT_PACKET_IN2: u32 = 30;

/// Appends a message; on an error nothing was appended.
fn put_message(
    out: &mut BytesMut,
    version: u8,
    kind: u8,
    xid: u32,
    body: impl FnOnce(&mut BytesMut) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    let start = out.len();
    out.put_u8(version);
    out.put_u8(kind);
    out.put_u16(0);
    out.put_u32(xid);
    let done = body(out);
    let len = out.len().saturating_sub(start);
    let done = match done {
        Ok(()) if len > usize::from(u16::MAX) => Err(EncodeError::TooLong(len)),
        done => done,
    };
    match done {
        Ok(()) => patch_len(out, start, 2, len),
        Err(_) => out.truncate(start),
    }
    done
}

/// Appends a flow-mod without a copy of it. See [`Message::encode`].
pub fn encode_flow_mod(m: &FlowMod, xid: u32, out: &mut BytesMut) -> Result<(), EncodeError> {
    put_message(out, VERSION, kind::FLOW_MOD, xid, |out| {
        m.encode(out);
        Ok(())
    })
}

/// Appends a message wrapped for a bundle, without a copy of it. See [`Message::encode`].
pub fn encode_bundle_add(
    id: u32,
    flags: u16,
    message: &Message,
    xid: u32,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    put_message(out, VERSION, kind::BUNDLE_ADD, xid, |out| {
        out.put_u32(id);
        out.put_u16(0);
        out.put_u16(flags);
        message.encode(xid, out)
    })
}

impl Message {
    /// Appends the message. A message that does not fit into 65,535 bytes is an error, and nothing is appended.
    pub fn encode(&self, xid: u32, out: &mut BytesMut) -> Result<(), EncodeError> {
        let version = if let Message::Hello(h) = self { h.version } else { VERSION };
        put_message(out, version, self.kind(), xid, |out| {
            match self {
                Message::Hello(h) => {
                    if let Some(bits) = h.bitmap {
                        out.put_u32(0x0001_0008);
                        out.put_u32(bits);
                    }
                }
                Message::Error(e) => encode_error(e, out),
                Message::EchoRequest(data) | Message::EchoReply(data) => out.put_slice(data),
                Message::FeaturesReply(f) => {
                    out.put_u64(f.datapath_id);
                    out.put_u32(f.n_buffers);
                    out.put_u8(f.n_tables);
                    out.put_u8(f.auxiliary_id);
                    out.put_u16(0);
                    out.put_u32(f.capabilities);
                    out.put_u32(0);
                }
                Message::SetConfig { flags, miss_send_len } => {
                    out.put_u16(*flags);
                    out.put_u16(*miss_send_len);
                }
                Message::SetAsync(a) => {
                    // enum ofp14_async_config_prop_type: odd numbers are for the master role, which every service connection has.
                    for (kind, mask) in [(1u16, a.packet_in), (3, a.port_status), (5, a.flow_removed)] {
                        if let Some(mask) = mask {
                            out.put_u16(kind);
                            out.put_u16(8);
                            out.put_u32(mask);
                        }
                    }
                }
                Message::SetPacketInFormat(second) => {
                    out.put_u32(crate::action::NX);
                    out.put_u32(NXT_SET_PACKET_IN_FORMAT);
                    // enum ofputil_packet_in_format: 0 standard, 2 NXT_PACKET_IN2.
                    out.put_u32(if *second { 2 } else { 0 });
                }
                Message::PacketOut(p) => p.encode(out),
                Message::FlowMod(m) => m.encode(out),
                Message::GroupMod(m) => m.encode(out),
                Message::MeterMod(m) => m.encode(out),
                Message::BundleCtrl(b) => {
                    out.put_u32(b.id);
                    out.put_u16(b.kind as u16);
                    out.put_u16(b.flags);
                }
                Message::BundleAdd(b) => {
                    out.put_u32(b.id);
                    out.put_u16(0);
                    out.put_u16(b.flags);
                    b.message.encode(xid, out)?;
                }
                Message::MultipartRequest(m) => m.encode(out),
                Message::Other { body, .. } => out.put_slice(body),
                Message::FeaturesRequest | Message::BarrierRequest | Message::BarrierReply => {}
                // Only a switch sends these.
                Message::PacketIn(_)
                | Message::FlowRemoved(_)
                | Message::PortStatus(_)
                | Message::MultipartReply { .. } => return Err(EncodeError::SwitchOnly(self.kind())),
            }
            Ok(())
        })
    }

    /// `OFPT_*`.
    pub fn kind(&self) -> u8 {
        match self {
            Message::Hello(_) => kind::HELLO,
            Message::Error(_) => kind::ERROR,
            Message::EchoRequest(_) => kind::ECHO_REQUEST,
            Message::EchoReply(_) => kind::ECHO_REPLY,
            Message::FeaturesRequest => kind::FEATURES_REQUEST,
            Message::FeaturesReply(_) => kind::FEATURES_REPLY,
            Message::SetConfig { .. } => kind::SET_CONFIG,
            Message::SetAsync(_) => kind::SET_ASYNC,
            Message::SetPacketInFormat(_) => kind::EXPERIMENTER,
            Message::PacketIn(_) => kind::PACKET_IN,
            Message::PacketOut(_) => kind::PACKET_OUT,
            Message::FlowRemoved(_) => kind::FLOW_REMOVED,
            Message::PortStatus(_) => kind::PORT_STATUS,
            Message::FlowMod(_) => kind::FLOW_MOD,
            Message::GroupMod(_) => kind::GROUP_MOD,
            Message::MeterMod(_) => kind::METER_MOD,
            Message::BarrierRequest => kind::BARRIER_REQUEST,
            Message::BarrierReply => kind::BARRIER_REPLY,
            Message::BundleCtrl(_) => kind::BUNDLE_CONTROL,
            Message::BundleAdd(_) => kind::BUNDLE_ADD,
            Message::MultipartRequest(_) => kind::MULTIPART_REQUEST,
            Message::MultipartReply { .. } => kind::MULTIPART_REPLY,
            Message::Other { kind, .. } => *kind,
        }
    }

    /// Reads exactly one message, as [`crate::Decoder`] yields them. Gives its xid too.
    pub fn decode(bytes: &[u8]) -> Result<(u32, Message), DecodeError> {
        Message::decode_at(bytes, 0)
    }

    fn decode_at(bytes: &[u8], depth: u8) -> Result<(u32, Message), DecodeError> {
        let mut r = Reader::new(bytes, "message");
        let version = r.u8()?;
        let kind = r.u8()?;
        let len = r.u16()?;
        if usize::from(len) != bytes.len() {
            return Err(DecodeError::BadLength { what: "message", len: usize::from(len) });
        }
        let xid = r.u32()?;
        if version != VERSION && kind != kind::HELLO && kind != kind::ERROR {
            return Err(DecodeError::BadVersion(version));
        }
        let message = match kind {
            kind::HELLO => Message::Hello(Hello::decode(version, r)?),
            kind::ERROR => Message::Error(Error::decode(r)?),
            kind::ECHO_REQUEST => Message::EchoRequest(Bytes::copy_from_slice(r.rest())),
            kind::ECHO_REPLY => Message::EchoReply(Bytes::copy_from_slice(r.rest())),
            kind::FEATURES_REQUEST => Message::FeaturesRequest,
            kind::FEATURES_REPLY => {
                let mut f = Features {
                    datapath_id: r.u64()?,
                    n_buffers: r.u32()?,
                    n_tables: r.u8()?,
                    auxiliary_id: r.u8()?,
                    capabilities: 0,
                };
                r.skip(2)?;
                f.capabilities = r.u32()?;
                Message::FeaturesReply(f)
            }
            kind::SET_CONFIG => Message::SetConfig { flags: r.u16()?, miss_send_len: r.u16()? },
            kind::SET_ASYNC => {
                let mut a = AsyncConfig::default();
                while !r.is_empty() {
                    let (kind, mut p) = r.property()?;
                    match kind {
                        1 => a.packet_in = Some(p.u32()?),
                        3 => a.port_status = Some(p.u32()?),
                        5 => a.flow_removed = Some(p.u32()?),
                        _ => {}
                    }
                }
                Message::SetAsync(a)
            }
            kind::EXPERIMENTER => decode_experimenter(r)?,
            kind::PACKET_IN => Message::PacketIn(PacketIn::decode(r)?),
            kind::PACKET_OUT => Message::PacketOut(PacketOut::decode(r)?),
            kind::FLOW_REMOVED => Message::FlowRemoved(FlowRemoved::decode(r)?),
            kind::PORT_STATUS => Message::PortStatus(PortStatus::decode(r)?),
            kind::FLOW_MOD => Message::FlowMod(FlowMod::decode(r)?),
            kind::GROUP_MOD => Message::GroupMod(GroupMod::decode(r)?),
            kind::METER_MOD => Message::MeterMod(MeterMod::decode(r)?),
            kind::BARRIER_REQUEST => Message::BarrierRequest,
            kind::BARRIER_REPLY => Message::BarrierReply,
            kind::BUNDLE_CONTROL => {
                let id = r.u32()?;
                let kind = bundle_ctrl_type(r.u16()?)?;
                Message::BundleCtrl(BundleCtrl { id, kind, flags: r.u16()? })
            }
            kind::BUNDLE_ADD if depth == 0 => {
                let id = r.u32()?;
                r.skip(2)?;
                let flags = r.u16()?;
                // The inner message says its own length; properties may follow.
                let mut peek = r;
                peek.skip(2)?;
                let len = usize::from(peek.u16()?);
                let (_, message) = Message::decode_at(r.take(len)?, 1)?;
                Message::BundleAdd(BundleAdd { id, flags, message: Box::new(message) })
            }
            kind::MULTIPART_REPLY => {
                let kind = r.u16()?;
                let more = r.u16()? & 1 == 1;
                r.skip(4)?;
                Message::MultipartReply { more, body: MultipartReply::decode(kind, r)? }
            }
            kind => Message::Other { kind, body: Bytes::copy_from_slice(r.rest()) },
        };
        Ok((xid, message))
    }
}

fn decode_experimenter(r: Reader<'_>) -> Result<Message, DecodeError> {
    let mut b = r;
    if b.u32()? == crate::action::NX {
        match b.u32()? {
            NXT_PACKET_IN2 => return Ok(Message::PacketIn(PacketIn::decode_nxt2(b)?)),
            NXT_SET_PACKET_IN_FORMAT => return Ok(Message::SetPacketInFormat(b.u32()? == 2)),
            _ => {}
        }
    }
    Ok(Message::Other { kind: kind::EXPERIMENTER, body: Bytes::copy_from_slice(r.rest()) })
}

fn bundle_ctrl_type(n: u16) -> Result<BundleCtrlType, DecodeError> {
    Ok(match n {
        0 => BundleCtrlType::OpenRequest,
        1 => BundleCtrlType::OpenReply,
        2 => BundleCtrlType::CloseRequest,
        3 => BundleCtrlType::CloseReply,
        4 => BundleCtrlType::CommitRequest,
        5 => BundleCtrlType::CommitReply,
        6 => BundleCtrlType::DiscardRequest,
        7 => BundleCtrlType::DiscardReply,
        n => return Err(DecodeError::BadValue { what: "bundle control type", value: u64::from(n) }),
    })
}

fn encode_error(e: &Error, out: &mut BytesMut) {
    match e.code {
        ErrorCode::OpenFlow { kind, code } => {
            out.put_u16(kind);
            out.put_u16(code);
        }
        ErrorCode::Nicira(code) => {
            out.put_u16(u16::MAX);
            out.put_u16(code);
            out.put_u32(crate::action::NX);
        }
        ErrorCode::Experimenter { experimenter, code } => {
            out.put_u16(u16::MAX);
            out.put_u16(code);
            out.put_u32(experimenter);
        }
    }
    out.put_slice(&e.data);
}
