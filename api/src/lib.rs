//! The objects that users write, what is accepted of them, and the messages between the parts.

pub mod accept;
pub mod crd;
pub mod duration;
pub mod lint;
pub mod objects;
pub mod parse;
pub mod read;
pub mod readiness;
pub mod serve;
pub mod source;
pub mod view;

pub use lint::lint;
pub use objects::Objects;
