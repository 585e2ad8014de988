//! A kernel that is a set: routes, rules and links of one pod, and the messages about them that wait to be read.
//!
//! As `martlet_netlink::Kernel`: batches, dumps and events pass one after another; what is there already and what is gone
//! already is no failure. It can lose messages (overrun), refuse changes, and others can delete what is ours.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;

use ipnet::IpNet;
use martlet_netlink::{Change, Link, Object, RouteKind, Snapshot};
use martlet_router::mirror::{Failure, Key, object_of};

/// What waits to be done or told.
#[derive(Clone, Debug)]
pub enum Work {
    /// A batch.
    Apply(Vec<Change>),
    /// A dump was asked for, or links changed, or messages were lost.
    Dump,
    /// Others took objects away.
    Removed(BTreeSet<Object>),
}

/// The table and the metric of learned routes.
const LEARNED: (u32, u32) = (4096, 20);

/// Learned routes with their gateways.
pub type Learned = BTreeMap<IpNet, BTreeSet<IpAddr>>;

/// The kernel of a pod.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// The router's objects: one a key.
    objects: BTreeMap<Key, Object>,
    /// What [`Kernel::learned`] says, until the objects change.
    learned: OnceCell<Rc<Learned>>,
    /// The version of the operator's objects whose rules and blackholes were found whole, until the objects here change.
    pub whole: Option<usize>,
    /// All interfaces.
    pub links: BTreeMap<u32, Link>,
    /// What waits.
    pub work: VecDeque<Work>,
    /// Changes fail.
    pub refuses: bool,
    /// Since when the objects that drop and steer are not whole: a VIP could leak. `None`: they are.
    pub leaky_since: Option<u64>,
    /// The last time that anybody hurt it.
    pub hurt: Option<u64>,
}

impl Kernel {
    /// A kernel with these interfaces and nothing of ours.
    pub fn new(links: BTreeMap<u32, Link>) -> Self {
        Self { links, ..Self::default() }
    }

    /// Batches that are under way.
    pub fn batches(&self) -> usize {
        self.work.iter().filter(|work| matches!(work, Work::Apply(_))).count()
    }

    /// The router's objects.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    /// What a dump shows.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { links: self.links.clone(), objects: self.objects().cloned().collect(), ..Snapshot::default() }
    }

    /// The objects are about to change: what was derived from them is out of date.
    fn touched(&mut self) -> &mut BTreeMap<Key, Object> {
        self.learned.take();
        self.whole = None;
        &mut self.objects
    }

    /// All objects are gone.
    pub fn clear(&mut self) {
        self.touched().clear();
    }

    fn remove(&mut self, object: &Object) {
        let key = Key::of(object);
        if self.objects.get(&key) == Some(object) {
            self.touched().remove(&key);
        }
    }

    /// Makes a batch; what failed.
    pub fn apply(&mut self, changes: &[Change]) -> Vec<Failure> {
        let mut failures = Vec::new();
        for change in changes {
            if self.refuses {
                failures.push(Failure { change: change.clone(), error: "the simulated kernel refuses".into() });
                continue;
            }
            if let Err(error) = self.change(change) {
                failures.push(Failure { change: change.clone(), error: error.into() });
            }
        }
        failures
    }

    fn change(&mut self, change: &Change) -> Result<(), &'static str> {
        if let Change::Remove(object) = change {
            self.remove(object);
            return Ok(());
        }
        let object = object_of(change);
        if let Object::Route(route) = object
            && let RouteKind::Unicast(hops) = &route.kind
        {
            let reaches = |index: u32| self.links.get(&index).is_some_and(|link| link.up);
            if !hops.iter().all(|hop| hop.interface.is_none_or(reaches)) {
                return Err("Network is unreachable");
            }
        }
        if let Change::Replace { from, .. } = change {
            self.remove(from);
        }
        // One object a key: an equal one, or one of ours that the caller did not know, gives way.
        self.touched().insert(Key::of(object), object.clone());
        Ok(())
    }

    /// A link went down: its routes go with it, IPv4 ones without a word.
    pub fn flush_link(&mut self, index: u32) {
        self.touched().retain(|_, object| match object {
            Object::Route(route) => match &route.kind {
                RouteKind::Unicast(hops) => !hops.iter().any(|hop| hop.interface == Some(index)),
                RouteKind::Blackhole => true,
            },
            Object::Rule(_) => true,
        });
    }

    /// Every `nth` object is deleted by someone else; which.
    pub fn foreign_delete(&mut self, nth: usize) -> BTreeSet<Object> {
        let sorted: BTreeSet<&Object> = self.objects().collect();
        let removed: BTreeSet<Object> = sorted.into_iter().step_by(nth.max(1)).cloned().collect();
        self.touched().retain(|_, object| !removed.contains(object));
        removed
    }

    /// The routes of the learned table with their gateways.
    pub fn learned(&self) -> &Rc<Learned> {
        self.learned.get_or_init(|| Rc::new(self.read_learned()))
    }

    fn read_learned(&self) -> Learned {
        let learned = |object: &Object| match object {
            Object::Route(route) if (route.table, route.metric) == LEARNED => match &route.kind {
                RouteKind::Unicast(hops) => Some((route.prefix, hops.iter().filter_map(|hop| hop.gateway).collect())),
                RouteKind::Blackhole => None,
            },
            _ => None,
        };
        self.objects().filter_map(learned).collect()
    }
}
