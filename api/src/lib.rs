//! The objects that users write, what is accepted of them, and the messages between the parts.

pub mod readiness;
pub mod view;
