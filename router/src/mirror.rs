//! What the kernel should hold, what it holds, and the next batch of changes between the two.
//!
//! A set that peers can grow is never compared as a whole: whatever changes on either side *touches* its key, and a batch is
//! taken of the touched keys, additions first. The whole comparison is the same code with every key touched: at start and
//! after an overrun. It knows no socket; what adopted objects are kept, and when objects of ours that others delete are put
//! back, is decided here.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use martlet_clock::Instant;
use martlet_netlink::{Change, Family, Object, Rule};

/// The most changes in a batch.
pub const BATCH: usize = 500;
/// The most batches under way: while the kernel works on one the next waits beside it, so that it never pauses.
pub const DEPTH: usize = 2;
/// More foreign deletions of one object than this in a second are a conflict.
pub const CONFLICT_DELETIONS: usize = 10;
/// The first wait of a conflict, or after a refusal by the kernel.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// The longest wait.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// How long a wait that is over is remembered.
const MEMORY: Duration = Duration::from_mins(1);

/// What the kernel tells objects apart by. Small: a search among 100 000 of them is most of the work of a route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A rule is itself.
    Rule(Box<Rule>),
    /// A route.
    Route {
        /// Its table.
        table: u32,
        /// Its metric.
        metric: u32,
        /// Its destination.
        prefix: IpNet,
    },
}

impl Key {
    /// The key of `object`.
    pub fn of(object: &Object) -> Self {
        match object {
            Object::Rule(rule) => Self::Rule(Box::new(rule.clone())),
            Object::Route(route) => Self::Route { table: route.table, metric: route.metric, prefix: route.prefix },
        }
    }
}

/// The object that is there after `change`, or was before.
pub const fn object_of(change: &Change) -> &Object {
    match change {
        Change::Add(object) | Change::Replace { to: object, .. } | Change::Remove(object) => object,
    }
}

/// Where a change stands in its batch, as in `martlet_netlink::diff`: routes before the rules that lead to them, rules
/// that drop before the rule that forwards in front of them, and the other way round when they go.
const fn rank(change: &Change) -> (u8, u32) {
    match change {
        Change::Add(Object::Route(_)) => (0, 0),
        Change::Add(Object::Rule(rule)) => (1, u32::MAX - rule.priority),
        Change::Replace { .. } => (2, 0),
        Change::Remove(Object::Rule(rule)) => (3, rule.priority),
        Change::Remove(Object::Route(_)) => (4, 0),
    }
}

/// A change that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub change: Change,
    /// Why, in the words of the operating system.
    pub error: Arc<str>,
}

/// Why a key is left alone for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Until when.
    pub until: Instant,
    /// The next wait is twice this.
    pub length: Duration,
    /// Not over yet. What is over is remembered for a minute, for the length of the next.
    pub active: bool,
    /// The kernel's words; `None`: someone else keeps deleting it.
    pub error: Option<Arc<str>>,
}

/// Routes that a former router left and that are kept for a while: its learned ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learned {
    /// In this table..
    pub table: u32,
    /// ..with this metric.
    pub metric: u32,
}

/// What should be under a key, and what is there. Where both are equal they are one.
#[derive(Debug, Default)]
struct Slot {
    want: Option<Arc<Object>>,
    have: Option<Arc<Object>>,
}

/// Want and have, and the keys where they may differ.
#[derive(Debug)]
pub struct Mirror {
    learned: Learned,
    slots: BTreeMap<Key, Slot>,
    /// What is wanted besides learned routes.
    fixed: BTreeSet<Key>,
    /// Keys that are to be added or replaced.
    coming: BTreeSet<Key>,
    /// Keys that are to be removed.
    leaving: BTreeSet<Key>,
    /// Learned routes of a former router, not yet told again.
    adopted: BTreeSet<Key>,
    /// Whether anything may be removed: what should be is known.
    settled: bool,
    in_flight: VecDeque<Vec<Key>>,
    deletions: BTreeMap<Key, VecDeque<Instant>>,
    waits: BTreeMap<Key, Wait>,
    /// A dump is waited for: until it is here no batch leaves that it could cross.
    resync: bool,
    dumped: bool,
}

impl Mirror {
    /// Nothing wanted, nothing known.
    pub const fn new(learned: Learned) -> Self {
        Self {
            learned,
            slots: BTreeMap::new(),
            fixed: BTreeSet::new(),
            coming: BTreeSet::new(),
            leaving: BTreeSet::new(),
            adopted: BTreeSet::new(),
            settled: false,
            in_flight: VecDeque::new(),
            deletions: BTreeMap::new(),
            waits: BTreeMap::new(),
            resync: false,
            dumped: false,
        }
    }

    /// What the kernel holds of ours, whole. The first time learned routes are adopted: returns how many. A dump that
    /// crossed a batch on its way is not believed: no more batches leave, and the end of the last ([`Mirror::done`]) asks for
    /// another one.
    pub fn dumped(&mut self, objects: &BTreeSet<Object>) -> usize {
        self.resync = !self.in_flight.is_empty();
        if self.resync {
            return 0;
        }
        for slot in self.slots.values_mut() {
            slot.have = None;
        }
        for object in objects {
            let slot = self.slots.entry(Key::of(object)).or_default();
            let same = slot.want.clone().filter(|want| **want == *object);
            slot.have = Some(same.unwrap_or_else(|| Arc::new(object.clone())));
        }
        if !self.dumped {
            self.dumped = true;
            self.adopted = self.slots.keys().filter(|key| self.is_learned(key)).cloned().collect();
            self.adopted.retain(|key| self.slots.get(key).is_some_and(|slot| slot.have.is_some()));
        }
        self.touch_all();
        self.adopted.len()
    }

    /// Whether the kernel's objects are known.
    pub const fn is_dumped(&self) -> bool {
        self.dumped
    }

    /// Someone else took an object of ours away. True if that is now a conflict.
    pub fn gone(&mut self, now: Instant, object: &Object) -> bool {
        let key = Key::of(object);
        let Some(slot) = self.slots.get_mut(&key) else { return false };
        if slot.have.as_deref() != Some(object) {
            return false;
        }
        slot.have = None;
        let wanted = slot.want.is_some();
        self.adopted.remove(&key);
        let conflict = wanted && self.count_deletion(now, &key);
        self.touch(key);
        conflict
    }

    /// An object of ours appeared that we did not put there.
    pub fn appeared(&mut self, object: &Object) {
        let key = Key::of(object);
        self.slots.entry(key.clone()).or_default().have = Some(Arc::new(object.clone()));
        self.touch(key);
    }

    /// Whether `object` should be there.
    pub fn is_wanted(&self, object: &Object) -> bool {
        self.slots.get(&Key::of(object)).is_some_and(|slot| slot.want.as_deref() == Some(object))
    }

    fn count_deletion(&mut self, now: Instant, key: &Key) -> bool {
        let deletions = self.deletions.entry(key.clone()).or_default();
        deletions.push_back(now);
        while deletions.front().is_some_and(|&at| now.since(at) > Duration::from_secs(1)) {
            deletions.pop_front();
        }
        if deletions.len() <= CONFLICT_DELETIONS {
            return false;
        }
        deletions.clear();
        self.wait(now, key.clone(), None);
        true
    }

    fn wait(&mut self, now: Instant, key: Key, error: Option<Arc<str>>) {
        let length = self.waits.get(&key).map_or(FIRST_WAIT, |wait| (wait.length * 2).min(MAX_WAIT));
        self.waits.insert(key, Wait { until: now + length, length, active: true, error });
    }

    /// From now on this is all that is wanted besides learned routes.
    pub fn want_fixed(&mut self, objects: &BTreeSet<Object>) {
        let wanted: BTreeMap<Key, &Object> = objects.iter().map(|object| (Key::of(object), object)).collect();
        for key in std::mem::replace(&mut self.fixed, wanted.keys().cloned().collect()) {
            if !wanted.contains_key(&key) {
                self.want_one(key, None);
            }
        }
        for (key, object) in wanted {
            self.want_one(key, Some(object.clone()));
        }
    }

    /// From now on the learned route of `prefix` is this.
    pub fn want_learned(&mut self, prefix: IpNet, object: Option<Object>) {
        self.want_one(self.key(prefix), object);
    }

    const fn key(&self, prefix: IpNet) -> Key {
        Key::Route { table: self.learned.table, metric: self.learned.metric, prefix }
    }

    fn want_one(&mut self, key: Key, object: Option<Object>) {
        let slot = match self.slots.entry(key.clone()) {
            Entry::Vacant(_) if object.is_none() => return,
            Entry::Vacant(vacant) => vacant.insert(Slot::default()),
            Entry::Occupied(occupied) => occupied.into_mut(),
        };
        if slot.want.as_deref() == object.as_ref() {
            return;
        }
        slot.want = match (&slot.have, object) {
            (Some(have), Some(object)) if **have == object => Some(have.clone()),
            (_, object) => object.map(Arc::new),
        };
        let state = State::of(slot);
        self.note(key, state);
    }

    /// The prefixes of the learned routes that are wanted.
    pub fn learned(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.slots.iter().filter(|(_, slot)| slot.want.is_some()).filter_map(|(key, _)| match key {
            Key::Route { prefix, .. } if self.is_learned(key) => Some(*prefix),
            _ => None,
        })
    }

    /// The wanted learned route of `prefix`.
    pub fn learned_route(&self, prefix: IpNet) -> Option<&Object> {
        self.slots.get(&self.key(prefix))?.want.as_deref()
    }

    /// Whether the route of `prefix` is one that a former router left.
    pub fn is_adopted(&self, prefix: IpNet) -> bool {
        self.adopted.contains(&self.key(prefix))
    }

    /// How many adopted routes are left.
    pub fn adopted(&self) -> usize {
        self.adopted.len()
    }

    /// What should be is known now: what is not wanted may be removed.
    pub fn settle(&mut self) {
        if !std::mem::replace(&mut self.settled, true) {
            self.touch_all();
        }
    }

    /// The adopted routes of `family` that were not told again have to go; how many.
    pub fn end_adoption(&mut self, family: Family) -> usize {
        let of_family = |key: &Key| matches!(key, Key::Route { prefix, .. } if Family::of(prefix) == family);
        let (ended, rest) = std::mem::take(&mut self.adopted).into_iter().partition::<BTreeSet<_>, _>(of_family);
        self.adopted = rest;
        let count = ended.len();
        for key in ended {
            self.touch(key);
        }
        count
    }

    fn is_learned(&self, key: &Key) -> bool {
        matches!(key, Key::Route { table, metric, .. } if (*table, *metric) == (self.learned.table, self.learned.metric))
    }

    fn touch(&mut self, key: Key) {
        let state = self.slots.get(&key).map_or(State::Empty, State::of);
        self.note(key, state);
    }

    fn note(&mut self, key: Key, state: State) {
        self.coming.remove(&key);
        self.leaving.remove(&key);
        match state {
            State::Missing => drop(self.coming.insert(key)),
            State::Surplus if self.settled && !self.adopted.contains(&key) => drop(self.leaving.insert(key)),
            State::Surplus => {}
            State::Right => drop(self.adopted.remove(&key)),
            State::Empty => drop(self.slots.remove(&key)),
        }
    }

    fn touch_all(&mut self) {
        let keys: Vec<Key> = self.slots.keys().cloned().collect();
        for key in keys {
            self.touch(key);
        }
    }

    /// The next batch, additions first; the kernel is taken to hold it unless [`Mirror::done`] says otherwise. What is wanted
    /// besides learned routes comes before them: however many these are, they keep no rule and no blackhole waiting. Removals
    /// have half of a batch for themselves, so that a dead route does not wait behind a full table.
    pub fn batch(&mut self) -> Vec<Change> {
        if self.is_busy() || !self.dumped {
            return Vec::new();
        }
        let free = |key: &&Key| !self.waits.get(*key).is_some_and(|wait| wait.active);
        let fixed = self.fixed.iter().filter(|key| self.coming.contains(key));
        let others = self.coming.iter().filter(|key| !self.fixed.contains(key));
        let mut coming: Vec<Key> = fixed.chain(others).filter(free).take(BATCH).cloned().collect();
        let leaving: Vec<Key> =
            self.leaving.iter().filter(free).take(BATCH - coming.len().min(BATCH / 2)).cloned().collect();
        coming.truncate(BATCH - leaving.len());
        let mut changes = Vec::with_capacity(coming.len() + leaving.len());
        for key in &coming {
            self.coming.remove(key);
            self.adopted.remove(key);
            let Some(slot) = self.slots.get_mut(key) else { continue };
            let Some(want) = &slot.want else { continue };
            let to = Object::clone(want);
            changes.push(match slot.have.replace(Arc::clone(want)) {
                Some(from) => Change::Replace { from: Arc::unwrap_or_clone(from), to },
                None => Change::Add(to),
            });
        }
        for key in &leaving {
            self.leaving.remove(key);
            let slot = self.slots.remove(key);
            changes.extend(slot.and_then(|slot| slot.have).map(|have| Change::Remove(Arc::unwrap_or_clone(have))));
        }
        changes.sort_by_key(rank);
        if !changes.is_empty() {
            coming.extend(leaving);
            self.in_flight.push_back(coming);
        }
        changes
    }

    /// The kernel is through with the oldest batch; these changes it refused. True if it is to be dumped anew: it holds what
    /// is not known, and nothing is under way that a dump could cross.
    pub fn done(&mut self, now: Instant, failures: &[Failure]) -> bool {
        let Some(keys) = self.in_flight.pop_front() else { return false };
        let errors: BTreeMap<Key, &Arc<str>> =
            failures.iter().map(|failure| (Key::of(object_of(&failure.change)), &failure.error)).collect();
        if errors.is_empty() && self.waits.is_empty() {
            return self.asks();
        }
        for key in keys {
            if let Some(&error) = errors.get(&key) {
                if let Some(slot) = self.slots.get_mut(&key) {
                    slot.have = None;
                }
                self.wait(now, key.clone(), Some(error.clone()));
                self.touch(key);
                self.resync = true;
            } else if self.waits.get(&key).is_some_and(|wait| wait.error.is_some()) {
                self.waits.remove(&key);
            }
        }
        self.asks()
    }

    /// Whether now is the time for a dump that is wanted.
    fn asks(&self) -> bool {
        self.resync && self.in_flight.is_empty()
    }

    /// Whether no batch may leave: as many as may be are under way, or a dump is waited for.
    pub fn is_busy(&self) -> bool {
        self.resync || self.in_flight.len() >= DEPTH
    }

    /// Whether a whole batch waits already.
    pub fn is_full(&self) -> bool {
        self.coming.len() + self.leaving.len() >= BATCH
    }

    /// Whether the kernel holds what it should, as far as we know.
    pub fn is_clean(&self) -> bool {
        self.dumped && self.coming.is_empty() && self.leaving.is_empty() && self.in_flight.is_empty()
    }

    /// When a wait ends.
    pub fn deadline(&self) -> Option<Instant> {
        self.waits.values().filter(|wait| wait.active).map(|wait| wait.until).min()
    }

    /// Ends the waits that are over: what waited is tried again.
    pub fn expire(&mut self, now: Instant) {
        self.waits.retain(|_, wait| {
            wait.active &= wait.until > now;
            wait.active || now.since(wait.until) < MEMORY
        });
    }

    /// What is left alone for a while, and why.
    pub const fn waits(&self) -> &BTreeMap<Key, Wait> {
        &self.waits
    }

    /// Everything: what the kernel should hold, and what it holds as far as we know.
    pub fn objects(&self) -> impl Iterator<Item = (&Key, Option<&Object>, Option<&Object>)> {
        self.slots.iter().map(|(key, slot)| (key, slot.want.as_deref(), slot.have.as_deref()))
    }
}

/// How want and have of a slot stand to each other.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Neither.
    Empty,
    /// Wanted, and not there or another.
    Missing,
    /// There, and not wanted.
    Surplus,
    /// There as wanted.
    Right,
}

impl State {
    fn of(slot: &Slot) -> Self {
        match (&slot.want, &slot.have) {
            (None, None) => Self::Empty,
            (None, Some(_)) => Self::Surplus,
            (want, have) if want == have => Self::Right,
            (Some(_), _) => Self::Missing,
        }
    }
}

#[cfg(test)]
mod tests {
    use martlet_netlink::{NextHop, Route, RouteKind};
    use proptest::prelude::*;

    use super::*;

    const LEARNED: Learned = Learned { table: 4096, metric: 20 };

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn route(prefix: u8, metric: u32, hop: u8) -> Object {
        let gateway = Some(format!("10.0.0.{hop}").parse().unwrap());
        let hops = vec![NextHop { gateway, interface: Some(1), weight: 1, onlink: false }];
        let prefix = format!("10.{prefix}.0.0/16").parse().unwrap();
        Object::Route(Route { table: 4096, prefix, metric, kind: RouteKind::Unicast(hops) })
    }

    fn prefix(of: u8) -> IpNet {
        format!("10.{of}.0.0/16").parse().unwrap()
    }

    fn apply(kernel: &mut BTreeMap<Key, Object>, changes: &[Change]) {
        for change in changes {
            let key = Key::of(object_of(change));
            let before = match change {
                Change::Remove(_) => kernel.remove(&key),
                Change::Add(object) | Change::Replace { to: object, .. } => kernel.insert(key, object.clone()),
            };
            let expected = match change {
                Change::Add(_) => None,
                Change::Replace { from: old, .. } | Change::Remove(old) => Some(old.clone()),
            };
            assert_eq!(before, expected, "{change:?}");
        }
    }

    fn settled(have: &BTreeSet<Object>) -> Mirror {
        let mut mirror = Mirror::new(LEARNED);
        mirror.dumped(have);
        mirror.settle();
        mirror
    }

    #[test]
    fn a_changed_next_hop_is_one_replace() {
        let mut mirror = settled(&[route(1, 20, 1)].into());
        mirror.want_learned(prefix(1), Some(route(1, 20, 2)));
        assert_eq!(mirror.batch(), [Change::Replace { from: route(1, 20, 1), to: route(1, 20, 2) }]);
    }

    #[test]
    fn nothing_is_removed_before_the_wish_is_known_and_adopted_routes_stay_until_their_family_has_spoken() {
        let mut mirror = Mirror::new(LEARNED);
        assert_eq!(mirror.dumped(&[route(1, 20, 1), route(2, 20, 1), route(9, 77, 1)].into()), 2);
        assert_eq!(mirror.batch(), []);
        mirror.want_fixed(&BTreeSet::new());
        mirror.settle();
        assert_eq!(mirror.batch(), [Change::Remove(route(9, 77, 1))], "what is not learned has no one to wait for");
        mirror.done(at(0), &[]);
        mirror.want_learned(prefix(1), Some(route(1, 20, 1)));
        assert_eq!(mirror.batch(), [], "told again: it just stays");
        assert_eq!(mirror.end_adoption(Family::Ipv6), 0);
        assert_eq!(mirror.end_adoption(Family::Ipv4), 1);
        assert_eq!(mirror.batch(), [Change::Remove(route(2, 20, 1))]);
    }

    #[test]
    fn a_route_learned_and_withdrawn_within_the_time_of_adoption_goes_at_once() {
        let mut mirror = settled(&BTreeSet::new());
        mirror.want_learned(prefix(1), Some(route(1, 20, 1)));
        assert_eq!(mirror.batch().len(), 1);
        mirror.done(at(0), &[]);
        mirror.want_learned(prefix(1), None);
        assert_eq!(mirror.batch(), [Change::Remove(route(1, 20, 1))]);
    }

    #[test]
    fn what_others_delete_is_back_at_once_and_after_ten_times_a_second_later() {
        let mut mirror = settled(&BTreeSet::new());
        mirror.want_learned(prefix(1), Some(route(1, 20, 1)));
        for millis in 0..10 {
            assert_eq!(mirror.batch(), [Change::Add(route(1, 20, 1))]);
            mirror.done(at(millis), &[]);
            assert!(!mirror.gone(at(millis), &route(1, 20, 1)));
        }
        assert_eq!(mirror.batch().len(), 1);
        mirror.done(at(10), &[]);
        assert!(mirror.gone(at(10), &route(1, 20, 1)), "a conflict");
        assert_eq!(mirror.batch(), []);
        assert_eq!(mirror.deadline(), Some(at(210)));
        mirror.expire(at(210));
        assert_eq!(mirror.batch(), [Change::Add(route(1, 20, 1))]);
    }

    #[test]
    fn what_the_kernel_refuses_is_tried_again_later_and_longer_later() {
        let mut mirror = settled(&BTreeSet::new());
        mirror.want_learned(prefix(1), Some(route(1, 20, 1)));
        let failure = |change: &Change| Failure { change: change.clone(), error: "Network is unreachable".into() };
        let batch = mirror.batch();
        assert!(mirror.done(at(0), &[failure(&batch[0])]), "the kernel is dumped anew");
        mirror.dumped(&BTreeSet::new());
        assert_eq!((mirror.batch(), mirror.deadline()), (vec![], Some(at(200))));
        mirror.expire(at(200));
        let batch = mirror.batch();
        mirror.done(at(200), &[failure(&batch[0])]);
        mirror.dumped(&BTreeSet::new());
        assert_eq!(mirror.deadline(), Some(at(600)));
        mirror.expire(at(600));
        assert_eq!(mirror.batch().len(), 1);
        mirror.done(at(600), &[]);
        assert!(mirror.waits().is_empty() && mirror.is_clean());
    }

    #[test]
    fn a_dump_that_crossed_a_batch_is_not_believed_and_the_next_crosses_none() {
        let mut mirror = settled(&BTreeSet::new());
        let under_way: BTreeSet<Object> = (1..).take(DEPTH).map(|number| route(number, 20, 1)).collect();
        for object in &under_way {
            let Object::Route(route) = object else { unreachable!() };
            mirror.want_learned(route.prefix, Some(object.clone()));
            assert_eq!(mirror.batch().len(), 1);
        }
        mirror.dumped(&BTreeSet::new());
        mirror.want_learned(prefix(9), Some(route(9, 20, 1)));
        assert!(!mirror.done(at(0), &[]), "the other batch is still under way");
        assert!(mirror.is_busy() && mirror.batch().is_empty(), "no other leaves before the dump");
        assert!(mirror.done(at(0), &[]), "dump again");
        assert!(mirror.is_busy() && mirror.batch().is_empty());
        mirror.dumped(&under_way);
        assert_eq!(mirror.batch(), [Change::Add(route(9, 20, 1))]);
        assert!(!mirror.done(at(0), &[]));
        assert!(mirror.is_clean());
    }

    #[test]
    fn what_is_wanted_besides_learned_routes_does_not_wait_behind_them() {
        let hole = Object::Route(Route {
            table: 4097,
            prefix: "0.0.0.0/0".parse().unwrap(),
            metric: u32::MAX,
            kind: RouteKind::Blackhole,
        });
        let mut mirror = settled(&[hole.clone()].into());
        mirror.want_fixed(&[hole.clone()].into());
        for number in (0..).take(2 * BATCH) {
            let prefix = IpNet::new(std::net::Ipv4Addr::from(0x6400_0000_u32 + (number << 8)).into(), 24).unwrap();
            let route = Route { table: 4096, prefix, metric: 20, kind: RouteKind::Blackhole };
            mirror.want_learned(prefix, Some(route.into()));
        }
        assert_eq!(mirror.batch().len(), BATCH);
        mirror.gone(at(0), &hole);
        assert!(mirror.batch().contains(&Change::Add(hole)));
    }

    #[test]
    fn a_refusal_that_is_told_after_the_next_batch_left_ends_with_what_the_kernel_holds() {
        let mut mirror = settled(&BTreeSet::new());
        mirror.want_learned(prefix(1), Some(route(1, 20, 1)));
        let first = mirror.batch();
        mirror.want_learned(prefix(1), Some(route(1, 20, 2)));
        assert_eq!(mirror.batch(), [Change::Replace { from: route(1, 20, 1), to: route(1, 20, 2) }]);
        mirror.want_learned(prefix(1), Some(route(1, 20, 3)));
        assert!(mirror.is_busy() && mirror.batch().is_empty(), "enough is under way");
        let failure = Failure { change: first[0].clone(), error: "Network is unreachable".into() };
        assert!(!mirror.done(at(0), &[failure]), "a dump would cross the other");
        assert!(mirror.done(at(0), &[]), "the kernel is dumped anew");
        mirror.dumped(&[route(1, 20, 2)].into());
        mirror.expire(at(200));
        assert_eq!(mirror.batch(), [Change::Replace { from: route(1, 20, 2), to: route(1, 20, 3) }]);
        mirror.done(at(200), &[]);
        assert!(mirror.is_clean());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Learn(u8, Option<u8>),
        Fix(BTreeSet<u8>),
        Delete(u8),
        Batch,
        Done,
        Dump,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..6, prop::option::of(1u8..4)).prop_map(|(prefix, hop)| Step::Learn(prefix, hop)),
            prop::collection::btree_set(10u8..14, 0..4).prop_map(Step::Fix),
            (0u8..6).prop_map(Step::Delete),
            Just(Step::Batch),
            Just(Step::Done),
            Just(Step::Dump),
        ]
    }

    proptest! {
        /// The incremental way and the whole comparison end in the same set, whatever came in between.
        #[test]
        fn both_ways_give_the_same_set(steps in prop::collection::vec(step(), 0..60)) {
            let mut mirror = settled(&BTreeSet::new());
            let mut kernel = BTreeMap::new();
            let (mut learned, mut fixed) = (BTreeMap::new(), BTreeSet::new());
            for step in steps.into_iter().chain([Step::Done, Step::Done, Step::Batch, Step::Done]) {
                match step {
                    Step::Learn(p, hop) => {
                        let object = hop.map(|hop| route(p, 20, hop));
                        mirror.want_learned(prefix(p), object.clone());
                        learned.insert(p, object);
                    }
                    Step::Fix(prefixes) => {
                        fixed = prefixes.iter().map(|&p| route(p, 99, 1)).collect();
                        mirror.want_fixed(&fixed);
                    }
                    Step::Delete(p) => {
                        let key = Key::of(&route(p, 20, 1));
                        if let Some(object) = kernel.remove(&key) {
                            mirror.gone(at(0), &object);
                            // A conflict would only delay it: not what this test is about.
                            mirror.expire(at(1_000_000));
                        }
                    }
                    Step::Dump => { mirror.dumped(&kernel.values().cloned().collect()); }
                    Step::Batch => {
                        let changes = mirror.batch();
                        apply(&mut kernel, &changes);
                    }
                    Step::Done => {
                        if mirror.done(at(0), &[]) {
                            mirror.dumped(&kernel.values().cloned().collect());
                        }
                    }
                }
            }
            let whole: BTreeSet<Object> = learned.into_values().flatten().chain(fixed).collect();
            prop_assert!(mirror.is_clean());
            prop_assert_eq!(kernel.into_values().collect::<BTreeSet<_>>(), whole);
        }
    }
}
