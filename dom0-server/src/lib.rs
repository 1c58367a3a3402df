//! The host daemon xenflow-dom0 and the operator's command xenflow.

#[cfg(test)]
mod captured;
pub mod chain;
pub mod clock;
pub mod config;
pub mod control_port;
pub mod core;
pub mod counters;
pub mod daemon;
pub mod db;
pub mod events;
pub mod guest;
pub mod inspect;
pub mod journal;
pub mod kept;
pub mod locations;
pub mod migration;
pub mod notify;
pub mod nudge;
pub mod ovs;
pub mod pki;
pub mod ports;
pub mod queues;
pub mod reporter;
pub mod shaper;
pub mod tls;
