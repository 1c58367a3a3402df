//! The client against a real kernel, each test in a network namespace of its own, talking over a veth pair to a
//! small TLS server that keeps the table it is told. Needs root, `unshare`, `setpriv`, `nsenter`, `perl`, `ip`, `tc`,
//! and `linux.uml` for what the machine's kernel may lack.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a test may fail, and says why"
)]

mod fpm;
mod neighbors;
mod obstacles;
mod search;
mod sessions;
mod support;
mod tables;
mod vrf;
