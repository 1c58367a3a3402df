//! Contracts on a link, measured: senders, what arrives, and what the law says that should.
//!
//! The law is `xenflow_qos`'s; whether the product keeps it is found out here, from the far end of the link.

pub mod delay;
pub mod law;
pub mod load;
pub mod site;
pub mod stage;
pub mod witness;
