//! Routes by the hundred thousand: the plan of what [`crate::routes::Writer`] writes into a guest's kernel.

pub mod plan;
