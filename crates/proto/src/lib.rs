//! What the guest client and the host daemon say to each other: types, messages, frames.
