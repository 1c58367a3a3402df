//! The lab: a real Linux kernel with a real Open vSwitch, booted as an ordinary process (User-Mode Linux), and
//! the parts from which end-to-end scenarios are built: hosts, router guests, end hosts, probes, captures.
//!
//! Two worlds share this crate. *Outside*, on the machine of whoever types `cargo lab`, live [`setup`]
//! (packages and builds), [`uml`] (boot one lab, watch it, end it) and [`suite`] (everything that must pass).
//! *Inside* the lab, where the same binary is process 1 and everything is root, live [`init`], [`scenario`] and
//! all the rest. A [`job`] travels in, events and a result travel out.
//!
//! It owns no product logic: it starts the product's programs and looks at them from outside.

pub mod bandwidth;
pub mod benches;
pub mod capture;
pub mod churn;
pub mod cpu;
pub mod drops;
pub mod endhost;
pub mod figures;
pub mod flood;
pub mod fpm;
pub mod frame;
pub mod fresh;
pub mod frr;
pub mod guest;
pub mod host;
pub mod hostile;
pub mod init;
pub mod inject;
pub mod iperf;
pub mod job;
pub mod kvm;
pub mod member;
pub mod moving;
pub mod net;
pub mod node;
pub mod one_router;
pub mod oracle;
pub mod ovn;
pub mod probe;
pub mod process;
pub mod progress;
pub mod routes;
pub mod scenario;
pub mod scenarios;
pub mod scratch;
pub mod second;
pub mod setup;
pub mod shell;
pub mod suite;
pub mod systemd;
pub mod trunk;
pub mod uml;
pub mod unit;
pub mod virtual_router;
pub mod vms;
pub mod xen;
