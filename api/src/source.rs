//! Where objects come from: a folder of YAML, or a cluster. Both give the same whole value.
//!
//! What one object says is read by [`crate::read`]; here is what time adds: the last good value of each object, and when to
//! read again.

mod folder;
mod shelf;

pub use folder::folder;
pub(crate) use folder::read as read_folder;
pub(crate) use shelf::FILE;
pub use shelf::Shelf;
