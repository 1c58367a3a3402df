//! OpenFlow 1.5 with the Open vSwitch extensions: a codec and a sans-I/O session.
//!
//! It owns the bytes of the protocol and the order of a conversation; sockets, clocks and what flows mean belong to its user.
//! See the crate's README for an example and its limits.

#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub mod action;
mod decoder;
mod error;
mod field;
pub mod flow;
pub mod group;
pub mod learn;
mod matching;
mod message;
pub mod meter;
mod packet;
mod session;
mod switch_port;
mod wire;

pub use action::Action;
pub use decoder::Decoder;
pub use error::{Error, ErrorCode};
pub use field::{Field, SubField, VLAN_PRESENT};
pub use flow::{Flow, FlowCommand, FlowCounters, FlowDesc, FlowFilter, FlowMod, FlowRemoved, Instruction};
pub use group::{Bucket, Group, GroupCommand, GroupMod, GroupType, Selection};
pub use learn::{Learn, LearnSpec, LearnSrc};
pub use matching::{Match, MatchBuilder, MatchField, mac_bits};
pub use message::{
    AsyncConfig, BundleAdd, BundleCtrl, BundleCtrlType, Features, HEADER_LEN, Hello, Message, MultipartReply,
    MultipartRequest, VERSION, bundle_flags, encode_bundle_add, encode_flow_mod,
};
pub use meter::{Band, Meter, MeterCommand, MeterFeatures, MeterMod, MeterStats};
pub use packet::{PacketIn, PacketOut};
pub use session::{BundleId, Config, Event, Session, SessionError};
pub use switch_port::{Port, PortReason, PortStats, PortStatus, QueueStats};
pub use wire::{DecodeError, EncodeError};

/// The README's examples are compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
