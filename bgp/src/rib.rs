//! What we were told: every path to every prefix, the best one first (RFC 4271 section 9.1).
//!
//! A prefix, however many paths it has, is one small record found by a hash; its paths are a list of small records in one
//! long array. A path names its neighbour and its shared attributes (`intern`). Prefixes whose paths changed are kept in the
//! order of their change, default routes first, until somebody asks. The RIB knows nothing of sessions, of policies or of what
//! was announced.

use std::cmp::Ordering;
use std::collections::VecDeque;

use ipnet::IpNet;

use crate::Family;
use crate::intern::{AttributesId, Interner, NeighborIndex, SELF};
use crate::wire::prefix::{Prefix, Prefix4, Prefix6};

/// The number of a prefix in its table.
pub type Destination = u32;

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry<P> {
    prefix: P,
    /// The best path, or the next free entry.
    first: u32,
    /// Who still needs the number of this prefix: announcers, and the list of changes.
    holds: u16,
    changed: bool,
}

/// One path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    next: u32,
    /// Which of the neighbour's paths to the prefix (RFC 7911); 0 if it tells one only.
    pub id: u32,
    /// Its attributes.
    pub attributes: AttributesId,
    /// Who told.
    pub neighbor: NeighborIndex,
    /// In which life of the neighbour's session: an old one is stale.
    pub epoch: u16,
}

impl Path {
    const fn is(&self, neighbor: NeighborIndex, id: u32) -> bool {
        self.neighbor == neighbor && self.id == id
    }
}

fn at(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(NONE)
}

/// All prefixes of one family.
#[derive(Debug)]
pub struct Table<P> {
    entries: Vec<Entry<P>>,
    free: u32,
    used: usize,
    slots: Vec<u32>,
    paths: Vec<Path>,
    free_path: u32,
    changed: VecDeque<Destination>,
    seed: u64,
}

/// What an update did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// There is a path more.
    Added(Destination),
    /// A path is another.
    Replaced(Destination),
    /// There is a path less.
    Removed(Destination),
}

/// Whether a neighbour's paths may be used now; by its place.
pub type Usable<'a> = &'a dyn Fn(NeighborIndex) -> bool;

impl<P: Prefix> Table<P> {
    fn new(seed: u64) -> Self {
        Self {
            entries: Vec::new(),
            free: NONE,
            used: 0,
            slots: vec![NONE; 64],
            paths: Vec::new(),
            free_path: NONE,
            changed: VecDeque::new(),
            seed,
        }
    }

    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        reason = "a hash needs only the bits of the mask"
    )]
    fn home(&self, prefix: P) -> usize {
        let hash = prefix.hash(self.seed);
        (hash ^ (hash >> 32)) as usize & (self.slots.len() - 1)
    }

    /// The slot that holds `prefix`, or the one where it would be.
    fn slot(&self, prefix: P) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.home(prefix);
        loop {
            let index = self.slots[slot];
            if index == NONE || self.entries[at(index)].prefix == prefix {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    /// The number of `prefix`, if it is known.
    pub fn find(&self, prefix: P) -> Option<Destination> {
        Some(self.slots[self.slot(prefix)]).filter(|&index| index != NONE)
    }

    /// The prefix with this number.
    pub fn prefix(&self, destination: Destination) -> P {
        self.entries[at(destination)].prefix
    }

    /// All numbers are below it.
    pub fn bound(&self) -> usize {
        self.entries.len()
    }

    fn create(&mut self, prefix: P) -> Destination {
        let slot = self.slot(prefix);
        if self.slots[slot] != NONE {
            return self.slots[slot];
        }
        let entry = Entry { prefix, first: NONE, holds: 0, changed: false };
        let index = if self.free == NONE {
            self.entries.push(entry);
            number(self.entries.len() - 1)
        } else {
            let index = self.free;
            self.free = self.entries[at(index)].first;
            self.entries[at(index)] = entry;
            index
        };
        self.slots[slot] = index;
        self.used += 1;
        if self.used * 4 > self.slots.len() * 3 {
            let old = std::mem::take(&mut self.slots);
            self.slots = vec![NONE; old.len() * 2];
            for index in old.into_iter().filter(|&index| index != NONE) {
                let slot = self.slot(self.entries[at(index)].prefix);
                self.slots[slot] = index;
            }
        }
        index
    }

    /// Forgets a prefix that has no path and that nobody needs.
    fn reap(&mut self, index: Destination) {
        let entry = self.entries[at(index)];
        if entry.first != NONE || entry.holds != 0 {
            return;
        }
        let mask = self.slots.len() - 1;
        let mut hole = self.slot(entry.prefix);
        // Known to be in no slot: it was reaped before.
        if self.slots[hole] != index {
            return;
        }
        let mut slot = hole;
        loop {
            slot = (slot + 1) & mask;
            let moved = self.slots[slot];
            if moved == NONE {
                break;
            }
            let wish = self.home(self.entries[at(moved)].prefix);
            if (slot.wrapping_sub(wish) & mask) >= (slot.wrapping_sub(hole) & mask) {
                self.slots[hole] = moved;
                hole = slot;
            }
        }
        self.slots[hole] = NONE;
        self.used -= 1;
        self.entries[at(index)].first = self.free;
        self.entries[at(index)].holds = u16::MAX;
        self.free = index;
    }

    /// Somebody needs the number.
    pub fn hold(&mut self, index: Destination) {
        self.entries[at(index)].holds += 1;
    }

    /// Somebody needs it no more.
    pub fn release(&mut self, index: Destination) {
        self.entries[at(index)].holds -= 1;
        self.reap(index);
    }

    /// Notes that the paths of a prefix are not what they were.
    pub fn touch(&mut self, index: Destination) {
        let entry = &mut self.entries[at(index)];
        if !std::mem::replace(&mut entry.changed, true) {
            entry.holds += 1;
            // What leads everywhere does not wait behind 100 000 that lead somewhere.
            if entry.prefix.length() == 0 {
                self.changed.push_front(index);
            } else {
                self.changed.push_back(index);
            }
        }
    }

    fn take_changed(&mut self) -> Option<P> {
        let index = self.changed.pop_front()?;
        let prefix = self.prefix(index);
        self.entries[at(index)].changed = false;
        self.release(index);
        Some(prefix)
    }

    /// The paths of a prefix, the best first.
    pub fn paths(&self, index: Destination) -> impl Iterator<Item = Path> + '_ {
        let mut next = self.entries[at(index)].first;
        std::iter::from_fn(move || {
            if next == NONE {
                return None;
            }
            let path = self.paths[at(next)];
            next = path.next;
            Some(path)
        })
    }

    /// The best path that may be used.
    pub fn best(&self, index: Destination, usable: Usable<'_>) -> Option<Path> {
        self.paths(index).next().filter(|path| usable(path.neighbor))
    }

    /// Sets the path `id` of `neighbor`; takes over one reference to `attributes`.
    pub fn set(
        &mut self,
        prefix: P,
        (neighbor, id): (NeighborIndex, u32),
        epoch: u16,
        attributes: AttributesId,
        interner: &mut Interner,
        usable: Usable<'_>,
    ) -> Change {
        let index = self.create(prefix);
        let mut link = self.entries[at(index)].first;
        while link != NONE && !self.paths[at(link)].is(neighbor, id) {
            link = self.paths[at(link)].next;
        }
        let change = if link == NONE {
            let first = self.entries[at(index)].first;
            let path = Path { next: first, id, attributes, neighbor, epoch };
            let link = if self.free_path == NONE {
                self.paths.push(path);
                number(self.paths.len() - 1)
            } else {
                let link = self.free_path;
                self.free_path = self.paths[at(link)].next;
                self.paths[at(link)] = path;
                link
            };
            self.entries[at(index)].first = link;
            if first == NONE {
                self.touch(index);
                return Change::Added(index);
            }
            Change::Added(index)
        } else {
            let path = &mut self.paths[at(link)];
            let renewed = path.epoch != epoch;
            path.epoch = epoch;
            interner.release(path.attributes);
            if path.attributes == attributes {
                if renewed {
                    self.touch(index);
                }
                return Change::None;
            }
            path.attributes = attributes;
            Change::Replaced(index)
        };
        self.select(index, interner, usable);
        change
    }

    /// Removes the path `id` of `neighbor`, if there is one.
    pub fn remove(
        &mut self,
        index: Destination,
        (neighbor, id): (NeighborIndex, u32),
        interner: &mut Interner,
        usable: Usable<'_>,
    ) -> Change {
        let mut before = NONE;
        let mut link = self.entries[at(index)].first;
        while link != NONE && !self.paths[at(link)].is(neighbor, id) {
            before = link;
            link = self.paths[at(link)].next;
        }
        if link == NONE {
            return Change::None;
        }
        let path = self.paths[at(link)];
        if before == NONE {
            self.entries[at(index)].first = path.next;
        } else {
            self.paths[at(before)].next = path.next;
        }
        interner.release(path.attributes);
        self.paths[at(link)].next = self.free_path;
        self.free_path = link;
        self.select(index, interner, usable);
        Change::Removed(index)
    }

    /// Sorts the paths of a prefix anew: the best comes first.
    pub fn select(&mut self, index: Destination, interner: &Interner, usable: Usable<'_>) {
        self.touch(index);
        let first = self.entries[at(index)].first;
        if first == NONE || self.paths[at(first)].next == NONE {
            return;
        }
        let mut links = Vec::new();
        let mut link = first;
        while link != NONE {
            links.push(link);
            link = self.paths[at(link)].next;
        }
        let mut order: Vec<(u32, Path)> = links.iter().map(|&link| (link, self.paths[at(link)])).collect();
        rank(&mut order, interner, usable);
        let mut next = NONE;
        for &(link, _) in order.iter().rev() {
            self.paths[at(link)].next = next;
            next = link;
        }
        self.entries[at(index)].first = next;
    }

    /// All prefixes that have a path.
    pub fn destinations(&self) -> impl Iterator<Item = Destination> + '_ {
        (0..number(self.entries.len())).filter(|&index| self.live(index))
    }

    /// Whether a number stands for a prefix with a path.
    pub fn live(&self, index: Destination) -> bool {
        self.entries.get(at(index)).is_some_and(|entry| entry.first != NONE && entry.holds != u16::MAX)
    }
}

/// Degree of preference and the tie breakers of RFC 4271 section 9.1.2.2 that say that two paths are equally good but for
/// the last: local preference, path length, origin, own AS or another's. MED is compared only within an AS, by who calls.
fn quality(one: &Path, two: &Path, interner: &Interner, usable: Usable<'_>) -> Ordering {
    let (first, second) = (interner.get(one.attributes), interner.get(two.attributes));
    usable(two.neighbor)
        .cmp(&usable(one.neighbor))
        .then((two.neighbor == SELF).cmp(&(one.neighbor == SELF)))
        // RFC 9494 section 4.3: the last resort.
        .then(first.last_resort.cmp(&second.last_resort))
        .then(second.local_pref.cmp(&first.local_pref))
        .then(first.path_length.cmp(&second.path_length))
        .then(first.origin.cmp(&second.origin))
}

/// The last tie breakers: RFC 4271 section 9.1.2.2 f, RFC 4456 section 9, then the order of the neighbours.
fn tie(one: &Path, two: &Path, interner: &Interner) -> Ordering {
    let (first, second) = (interner.get(one.attributes), interner.get(two.attributes));
    let key =
        |path: &Path, stored: &crate::intern::Stored| (stored.router_id, stored.cluster_length, path.neighbor, path.id);
    key(one, first).cmp(&key(two, second))
}

/// Whether another path of the same neighbouring AS, equally good so far, has a lower `MULTI_EXIT_DISC` (section 9.1.2.2 c).
fn beaten(path: &Path, others: &[(u32, Path)], interner: &Interner, usable: Usable<'_>) -> bool {
    let stored = interner.get(path.attributes);
    others.iter().any(|(_, other)| {
        let rival = interner.get(other.attributes);
        rival.first_as == stored.first_as && rival.med < stored.med && quality(path, other, interner, usable).is_eq()
    })
}

/// Sorts paths: the best first, those equal to it next.
fn rank(paths: &mut [(u32, Path)], interner: &Interner, usable: Usable<'_>) {
    let all = paths.to_vec();
    paths.sort_by_cached_key(|(_, path)| path.neighbor);
    paths.sort_by(|(_, one), (_, two)| {
        quality(one, two, interner, usable)
            .then_with(|| beaten(one, &all, interner, usable).cmp(&beaten(two, &all, interner, usable)))
            .then_with(|| interner.get(two.attributes).external.cmp(&interner.get(one.attributes).external))
            .then_with(|| tie(one, two, interner))
    });
}

/// Of paths in their order, those as good as the first: equal-cost multipath. The neighbouring AS may differ.
pub fn multipath(paths: &[Path], interner: &Interner, usable: Usable<'_>) -> usize {
    let Some(best) = paths.first().filter(|path| usable(path.neighbor)) else { return 0 };
    let all: Vec<_> = paths.iter().map(|&path| (0, path)).collect();
    paths
        .iter()
        .take_while(|path| {
            quality(best, path, interner, usable).is_eq()
                && !beaten(path, &all, interner, usable)
                && interner.get(path.attributes).external == interner.get(best.attributes).external
        })
        .count()
}

/// The tables of both families and the attributes that they share.
#[derive(Debug)]
pub struct Rib {
    /// All attributes.
    pub interner: Interner,
    /// IPv4.
    pub ipv4: Table<Prefix4>,
    /// IPv6.
    pub ipv6: Table<Prefix6>,
}

impl Rib {
    /// An empty one.
    pub fn new(seed: u64) -> Self {
        Self { interner: Interner::new(seed), ipv4: Table::new(seed), ipv6: Table::new(seed.rotate_left(17)) }
    }

    /// Takes at most `max` prefixes whose paths changed.
    pub fn changed(&mut self, max: usize) -> Vec<IpNet> {
        let (ipv4, ipv6) = (&mut self.ipv4, &mut self.ipv6);
        std::iter::from_fn(|| ipv6.take_changed().map(Prefix::net).or_else(|| ipv4.take_changed().map(Prefix::net)))
            .take(max)
            .collect()
    }

    /// Whether a prefix changed that nobody asked for yet.
    pub fn has_changed(&self) -> bool {
        !self.ipv4.changed.is_empty() || !self.ipv6.changed.is_empty()
    }
}

/// A family's own table out of a [`Rib`].
pub trait Tables: Prefix + Sized {
    /// The table, and the attributes.
    fn tables(rib: &mut Rib) -> (&mut Table<Self>, &mut Interner);
    /// The table to look at.
    fn table(rib: &Rib) -> &Table<Self>;
}

impl Tables for Prefix4 {
    fn tables(rib: &mut Rib) -> (&mut Table<Self>, &mut Interner) {
        (&mut rib.ipv4, &mut rib.interner)
    }

    fn table(rib: &Rib) -> &Table<Self> {
        &rib.ipv4
    }
}

impl Tables for Prefix6 {
    fn tables(rib: &mut Rib) -> (&mut Table<Self>, &mut Interner) {
        (&mut rib.ipv6, &mut rib.interner)
    }

    fn table(rib: &Rib) -> &Table<Self> {
        &rib.ipv6
    }
}

/// The place of a family in arrays of two.
pub const fn place(family: Family) -> usize {
    match family {
        Family::Ipv4 => 0,
        Family::Ipv6 => 1,
    }
}
