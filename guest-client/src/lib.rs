//! Streams the kernel's routes and neighbors of a virtual router to its host.
//!
//! [`netlink`] reads the kernel, [`translate`] (with [`link`], [`nexthop`] and [`attribute`]) understands it,
//! [`mirror`] remembers it, [`session`] tells the host; [`driver`] moves bytes between them. [`nudge`] hears when the
//! host may be another one; [`control`] says at which interface it is; [`rejected`] keeps what it leaves to this
//! guest. What else decides about packets is for [`survey`] to ask ([`facts`] understands the answers), for
//! [`obstacles`] to judge, and for [`watch`] to know when.
//! [`neighbors`] says which neighbors to ask whether they are still there, and [`refresh`] asks them.
//! [`renew`] has the certificate renewed in time ([`validity`] says when that is).
//! [`check`] looks at all that a session needs, without one.
//! Netlink types do not leave `netlink`, `questions`, `survey` and the decoders.

pub mod attribute;
pub mod backoff;
pub mod check;
pub mod config;
mod connection;
pub mod control;
pub mod driver;
pub mod facts;
pub mod fpm;
pub mod fuzz;
pub mod gateways;
pub mod link;
pub mod mirror;
pub mod neighbors;
pub mod netlink;
pub mod nexthop;
pub mod nudge;
pub mod obstacles;
mod questions;
pub mod refresh;
pub mod rejected;
pub mod renew;
pub mod session;
pub mod status;
pub mod survey;
pub mod tls;
pub mod translate;
pub mod validity;
pub mod watch;
