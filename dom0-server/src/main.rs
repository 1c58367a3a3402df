//! Starting point.

fn main() {}
