//! Streams the kernel's routes and neighbors of a virtual router to its host.
//!
//! [`netlink`] reads the kernel, [`translate`] (with [`nexthop`] and [`attribute`]) understands it, [`mirror`]
//! remembers it, [`session`] tells the host; [`driver`] moves bytes between them. Netlink types do not leave
//! `netlink`, `attribute`, `translate` and `nexthop`.

pub mod attribute;
pub mod backoff;
pub mod config;
mod connection;
pub mod driver;
pub mod fuzz;
pub mod mirror;
pub mod netlink;
pub mod nexthop;
pub mod session;
pub mod status;
pub mod tls;
pub mod translate;
