//! Where objects come from: a folder of YAML, or a cluster. Both give the same whole value.
//!
//! What one object says is read by [`crate::read`]; here is what time adds: the last good value of each object, and when to
//! read again.

use crate::objects::Objects;

mod cluster;
mod folder;
mod pile;
mod shelf;

pub use cluster::cluster;
pub use folder::folder;
pub(crate) use folder::read as read_folder;
pub(crate) use shelf::FILE;
pub use shelf::Shelf;

/// New conditions, one line each, and that one is gone.
fn tell(before: &Objects, now: &Objects) {
    for condition in now.conditions.difference(&before.conditions) {
        let (kind, object, reason) = (&*condition.kind, &condition.object, &*condition.reason);
        tracing::warn!(kind, %object, reason, "{}", condition.message);
    }
    for condition in before.conditions.difference(&now.conditions) {
        let (kind, object, reason) = (&*condition.kind, &condition.object, &*condition.reason);
        tracing::info!(kind, %object, reason, "mended or removed");
    }
}
