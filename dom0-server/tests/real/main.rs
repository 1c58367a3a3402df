//! The host's programs beside real parts: `ovsdb-server`, `ovs-vswitchd` on its dummy datapath, systemd's own checks. A
//! missing program fails the test that needs it. One binary, as each links all of the product.
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod apply;
mod away;
mod cli;
mod cluster;
#[path = "../../../crates/openflow/tests/common/mod.rs"]
mod common;
mod daemon;
mod doctor;
mod events;
mod explain;
mod inspect;
mod locations;
mod migrate;
mod migration;
mod nouns;
mod persist;
mod pki;
mod policy;
mod receive;
mod refusals;
mod shaper;
mod show;
mod sla;
mod status;
mod support;
mod switch;
mod tls;
mod toolstack;
mod top;
mod wait;
