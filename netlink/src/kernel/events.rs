//! Hints that something changed in the kernel, coalesced: whoever is slow gets one hint for many changes.
//!
//! It knows no socket: who reads one puts changes in, [`Events::next`] takes them out.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::socket::Wire;
use crate::model::Object;

/// More changed objects than this are not worth a list: the reader takes a snapshot instead.
const OBJECTS_MAX: usize = 1024;

/// A hint that the kernel changed by another's hand; our own changes make none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An interface, an address or a route of the main table came, went or changed. When a link goes down its IPv4 routes vanish without a word
    /// of their own: take a snapshot, do not trust what you remember.
    LinksChanged,
    /// Somebody touched our objects, or routes in our tables.
    ObjectsChanged(ObjectsChanged),
    /// What changed cannot be told piece by piece: the kernel had more to say than the socket could hold, or another
    /// *replaced* a route in our tables, which says what came but not what went. Take a snapshot.
    Overrun,
}

/// Which objects changed by another's hand, in the end. Both sets are empty when another owner's route in one of our
/// tables changed: what was refused as [`Foreign`](crate::Error::Foreign) may be possible now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectsChanged {
    /// Ours, and no longer there.
    pub removed: BTreeSet<Object>,
    /// With our protocol number and in our range, put there by another (`ip route add .. proto 201`).
    pub appeared: BTreeSet<Object>,
}

/// The stream of hints.
#[derive(Debug)]
pub struct Events {
    wire: Arc<Wire>,
}

impl Events {
    /// The hints of `wire`.
    pub(super) const fn new(wire: Arc<Wire>) -> Self {
        Self { wire }
    }

    /// Waits for the next hint: an overrun before links before objects. Safe to drop at any time (`select!`).
    /// Should the socket break, it says so in the log and never returns.
    pub async fn next(&mut self) -> Event {
        self.wire.hint().await
    }
}

/// What waits for [`Events::next`].
#[derive(Debug, Default)]
pub(super) struct Hints {
    pending: Mutex<Pending>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    links: bool,
    objects: Option<ObjectsChanged>,
    overrun: bool,
}

impl Hints {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is put in.
    pub(super) async fn wait(&self) {
        self.notify.notified().await;
    }

    /// The next hint, if any waits.
    pub(super) fn take(&self) -> Option<Event> {
        let mut pending = self.pending();
        if std::mem::take(&mut pending.overrun) {
            // What else waits is part of what the snapshot will show.
            *pending = Pending::default();
            Some(Event::Overrun)
        } else if std::mem::take(&mut pending.links) {
            Some(Event::LinksChanged)
        } else {
            pending.objects.take().map(Event::ObjectsChanged)
        }
    }

    /// Drops whatever waits.
    pub(super) fn forget(&self) {
        *self.pending() = Pending::default();
    }

    fn put(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.pending());
        self.notify.notify_one();
    }

    /// An interface or address changed.
    pub(super) fn links(&self) {
        self.put(|pending| pending.links = true);
    }

    /// Messages were lost, or do not say enough.
    pub(super) fn overrun(&self) {
        self.put(|pending| pending.overrun = true);
    }

    /// Another owner's route in one of our tables changed.
    pub(super) fn foreign(&self) {
        self.put(|pending| {
            pending.objects.get_or_insert_default();
        });
    }

    /// Our object was removed (`gone`), or put there, by another.
    pub(super) fn object(&self, object: Object, gone: bool) {
        self.put(|pending| {
            let objects = pending.objects.get_or_insert_default();
            let (to, from) = if gone {
                (&mut objects.removed, &mut objects.appeared)
            } else {
                (&mut objects.appeared, &mut objects.removed)
            };
            from.remove(&object);
            to.insert(object);
            if objects.removed.len() + objects.appeared.len() > OBJECTS_MAX {
                pending.overrun = true;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Route, RouteKind};

    fn hole(metric: u32) -> Object {
        Route { table: 4096, prefix: "10.0.0.0/8".parse().unwrap(), metric, kind: RouteKind::Blackhole }.into()
    }

    #[test]
    fn many_changes_are_one_hint_and_the_last_word_counts() {
        let hints = Hints::default();
        hints.links();
        hints.links();
        hints.object(hole(1), true);
        hints.object(hole(2), true);
        hints.object(hole(2), false);
        assert_eq!(hints.take(), Some(Event::LinksChanged));
        let objects = ObjectsChanged { removed: [hole(1)].into(), appeared: [hole(2)].into() };
        assert_eq!(hints.take(), Some(Event::ObjectsChanged(objects)));
        assert_eq!(hints.take(), None);
    }

    #[test]
    fn an_overrun_swallows_the_other_hints() {
        let hints = Hints::default();
        hints.links();
        hints.object(hole(1), true);
        hints.overrun();
        assert_eq!(hints.take(), Some(Event::Overrun));
        assert_eq!(hints.take(), None);
    }

    #[test]
    fn too_many_changed_objects_are_an_overrun() {
        let hints = Hints::default();
        (0..=1024).for_each(|metric| hints.object(hole(metric), true));
        assert_eq!(hints.take(), Some(Event::Overrun));
    }
}
