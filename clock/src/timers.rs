//! A table of deadlines: what a core is waiting for.

use std::collections::{BTreeMap, BTreeSet};

use crate::Instant;

/// At most one deadline a key, the earliest first, ties in the order of the keys (so that a run is repeatable).
#[derive(Clone, Debug)]
pub struct Timers<K> {
    by_key: BTreeMap<K, Instant>,
    by_time: BTreeSet<(Instant, K)>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { by_key: BTreeMap::new(), by_time: BTreeSet::new() }
    }
}

impl<K: Copy + Ord> Timers<K> {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets, or moves, the deadline of `key`.
    pub fn set(&mut self, key: K, deadline: Instant) {
        let old = self.by_key.insert(key, deadline);
        // Most events of a session leave its deadline where it was.
        if old == Some(deadline) {
            return;
        }
        if let Some(old) = old {
            self.by_time.remove(&(old, key));
        }
        self.by_time.insert((deadline, key));
    }

    /// Forgets the deadline of `key`, if it has one.
    pub fn stop(&mut self, key: K) {
        if let Some(old) = self.by_key.remove(&key) {
            self.by_time.remove(&(old, key));
        }
    }

    /// The deadline of `key`.
    pub fn get(&self, key: K) -> Option<Instant> {
        self.by_key.get(&key).copied()
    }

    /// The earliest deadline.
    pub fn deadline(&self) -> Option<Instant> {
        self.by_time.first().map(|&(at, _)| at)
    }

    /// Takes the earliest timer that is due at `now`, if any.
    pub fn pop(&mut self, now: Instant) -> Option<K> {
        let &(at, key) = self.by_time.first()?;
        if at > now {
            return None;
        }
        self.stop(key);
        Some(key)
    }

    /// How many timers run.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether no timer runs.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn timers_come_due_in_the_order_of_time_then_key() {
        let mut timers = Timers::new();
        timers.set('b', at(20));
        timers.set('a', at(20));
        timers.set('c', at(10));
        timers.set('b', at(30));
        assert_eq!(timers.deadline(), Some(at(10)));
        assert_eq!(timers.pop(at(9)), None);
        assert_eq!(timers.pop(at(30)), Some('c'));
        assert_eq!(timers.pop(at(30)), Some('a'));
        assert_eq!(timers.pop(at(30)), Some('b'));
        assert!(timers.is_empty());
    }

    proptest! {
        #[test]
        fn a_table_is_a_map_that_knows_its_minimum(steps in prop::collection::vec((0u8..6, prop::option::of(0u64..50)), 0..60)) {
            let mut timers = Timers::new();
            let mut plain = BTreeMap::new();
            for (key, deadline) in steps {
                if let Some(millis) = deadline {
                    timers.set(key, at(millis));
                    plain.insert(key, at(millis));
                } else {
                    timers.stop(key);
                    plain.remove(&key);
                }
                prop_assert_eq!(timers.deadline(), plain.values().min().copied());
                prop_assert_eq!(timers.len(), plain.len());
            }
        }
    }
}
