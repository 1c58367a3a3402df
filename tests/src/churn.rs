//! Routes by the hundred thousand: a raw netlink writer into a guest's kernel, and the plan of what it writes.

pub mod plan;
pub mod writer;
