//! Path attributes, stored once and shared by all the routes that have them.
//!
//! A set of attributes is known by its octets in the order of `wire::emit`, its next hop and who told it. What the decision
//! process asks for is beside the octets, so that comparing two paths reads nothing else. The table is open addressing over
//! small numbers: its order never reaches an output.

use std::net::{IpAddr, Ipv4Addr};

use crate::wire::as_path::Width;
use crate::wire::attribute::{Attributes, Context, NextHop, Origin};
use crate::wire::prefix::fold;

/// The number of a stored set.
pub type AttributesId = u32;

/// The set that stands for "our own": it is made anew for each neighbour when it is announced.
pub const OWN: AttributesId = 0;

/// Which neighbour: its place in the speaker's list.
pub type NeighborIndex = u16;

/// The teller of our own routes.
pub const SELF: NeighborIndex = NeighborIndex::MAX;

const EMPTY: u32 = u32::MAX;

/// One set.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Who told.
    pub neighbor: NeighborIndex,
    /// Whether it is in another AS.
    pub external: bool,
    /// Whether the neighbour is our route reflector client (RFC 4456).
    pub client: bool,
    /// ORIGIN.
    pub origin: Origin,
    /// How far the route may go (RFC 1997): no further than us, or no further than our AS.
    pub scope: Scope,
    /// Whether its teller has been away for long (RFC 9494, `LLGR_STALE`).
    pub last_resort: bool,
    /// `LOCAL_PREF`, or what takes its place.
    pub local_pref: u32,
    /// `MULTI_EXIT_DISC`.
    pub med: u32,
    /// The length of the AS path, as the decision counts.
    pub path_length: u16,
    /// The length of the cluster list.
    pub cluster_length: u16,
    /// The neighbouring AS of the path.
    pub first_as: u32,
    /// The BGP identifier of the neighbour, or `ORIGINATOR_ID` (RFC 4456 section 9).
    pub router_id: Ipv4Addr,
    /// Octets a second of the link bandwidth community, 0 if there is none.
    pub bandwidth: f32,
    /// Where packets go.
    pub next_hop: NextHop,
    /// All attributes but the next hop, as `wire::emit` writes them.
    octets: Box<[u8]>,
    references: u32,
    hash: u32,
}

/// How far a route may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Anywhere.
    Anywhere,
    /// Not to another AS: `NO_EXPORT`, `NO_EXPORT_SUBCONFED`.
    As,
    /// Nowhere: `NO_ADVERTISE`.
    Here,
}

/// What the stored octets may be read with.
const STORED: Context = Context {
    width: Width::Four,
    external: false,
    extended_next_hop: true,
    ipv4: true,
    ipv6: true,
    paths_ipv4: false,
    paths_ipv6: false,
};

impl Stored {
    /// The attributes but the next hop.
    pub fn attributes(&self) -> Attributes<'_> {
        Attributes::parse(&self.octets, STORED).0
    }

    /// All attributes but the next hop, as on the wire.
    pub fn octets(&self) -> &[u8] {
        &self.octets
    }

    fn own() -> Self {
        Self {
            neighbor: SELF,
            external: false,
            client: false,
            origin: Origin::Igp,
            scope: Scope::Anywhere,
            last_resort: false,
            local_pref: u32::MAX,
            med: 0,
            path_length: 0,
            cluster_length: 0,
            first_as: 0,
            router_id: Ipv4Addr::UNSPECIFIED,
            bandwidth: 0.0,
            next_hop: NextHop { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), link_local: None },
            octets: Box::new([]),
            references: 1,
            hash: 0,
        }
    }
}

/// What is known of the teller of a set.
#[derive(Clone, Copy, Debug)]
pub struct Teller {
    /// Its place.
    pub neighbor: NeighborIndex,
    /// Whether it is in another AS.
    pub external: bool,
    /// Whether it is our route reflector client.
    pub client: bool,
    /// Its BGP identifier.
    pub router_id: Ipv4Addr,
}

/// The well-known communities that we act upon.
pub mod community {
    /// RFC 8326: the route is about to go.
    pub const GRACEFUL_SHUTDOWN: u32 = 0xffff_0000;
    /// RFC 9494: the route is stale for long.
    pub const LLGR_STALE: u32 = 0xffff_0006;
    /// RFC 9494: the route is not to be kept for long.
    pub const NO_LLGR: u32 = 0xffff_0007;
    /// RFC 1997: not to another AS.
    pub const NO_EXPORT: u32 = 0xffff_ff01;
    /// RFC 1997: to nobody.
    pub const NO_ADVERTISE: u32 = 0xffff_ff02;
    /// RFC 1997: not beyond this AS or sub-AS.
    pub const NO_EXPORT_SUBCONFED: u32 = 0xffff_ff03;
}

/// The bandwidth that the extended communities tell (draft-ietf-idr-link-bandwidth): type 0x40 or 0x00, subtype 4.
fn bandwidth(communities: &[u8]) -> f32 {
    let told = communities.chunks_exact(8).find_map(|one| match *one {
        [0x40 | 0x00, 4, _, _, a, b, c, d] => Some(f32::from_be_bytes([a, b, c, d])),
        _ => None,
    });
    told.filter(|told| told.is_finite() && *told > 0.0).unwrap_or(0.0)
}

/// All sets.
#[derive(Debug)]
pub struct Interner {
    stored: Vec<Stored>,
    free: Vec<u32>,
    slots: Vec<u32>,
    scratch: Vec<u8>,
    seed: u64,
    octets: usize,
}

#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "folds a hash to the bits that a slot needs"
)]
fn hash(teller: NeighborIndex, hop: &NextHop, octets: &[u8], seed: u64) -> u32 {
    let mut state = seed ^ u64::from(teller);
    let mut mix = |word: u64| state = fold(state ^ word, 0x9e37_79b9_7f4a_7c15);
    match hop.address {
        IpAddr::V4(address) => mix(u64::from(address.to_bits())),
        IpAddr::V6(address) => mix(fold(address.to_bits() as u64, (address.to_bits() >> 64) as u64 | 1)),
    }
    let mut words = octets.chunks_exact(8);
    for word in words.by_ref() {
        mix(u64::from_be_bytes(word.try_into().unwrap_or_default()));
    }
    let mut last = [0; 8];
    last.iter_mut().zip(words.remainder()).for_each(|(to, from)| *to = *from);
    mix(u64::from_be_bytes(last));
    mix(octets.len() as u64);
    (state ^ (state >> 32)) as u32
}

fn at(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

impl Interner {
    /// An empty one; `seed` keeps a neighbour from choosing where its routes collide.
    pub fn new(seed: u64) -> Self {
        Self {
            stored: vec![Stored::own()],
            free: Vec::new(),
            slots: vec![EMPTY; 64],
            scratch: Vec::new(),
            seed,
            octets: 0,
        }
    }

    /// The set with this number.
    pub fn get(&self, id: AttributesId) -> &Stored {
        &self.stored[at(id)]
    }

    /// How many sets there are.
    pub fn len(&self) -> usize {
        self.stored.len() - self.free.len() - 1
    }

    /// Octets that all sets take, but for what is beside them.
    pub const fn octets(&self) -> usize {
        self.octets
    }

    /// One route more has this set.
    pub fn retain(&mut self, id: AttributesId) {
        self.stored[at(id)].references += 1;
    }

    /// One route less has this set.
    pub fn release(&mut self, id: AttributesId) {
        let stored = &mut self.stored[at(id)];
        stored.references -= 1;
        if stored.references == 0 {
            let hash = stored.hash;
            self.octets -= stored.octets.len();
            stored.octets = Box::new([]);
            self.remove(id, hash);
            self.free.push(id);
        }
    }

    /// The number of a set, with one reference for the caller.
    pub fn intern(&mut self, attributes: &Attributes<'_>, hop: NextHop, teller: Teller) -> AttributesId {
        let mut octets = std::mem::take(&mut self.scratch);
        octets.clear();
        let known =
            Attributes { next_hop: None, mp_reach: None, mp_unreach: None, foreign: false, ..attributes.clone() };
        known.put(Width::Four, &mut octets);
        let hash = hash(teller.neighbor, &hop, &octets, self.seed);
        let mask = self.slots.len() - 1;
        let mut slot = at(hash) & mask;
        let id = loop {
            let id = self.slots[slot];
            if id == EMPTY {
                break self.insert(slot, hash, &octets, &known, hop, teller);
            }
            let stored = &mut self.stored[at(id)];
            if stored.hash == hash
                && *stored.octets == *octets
                && stored.neighbor == teller.neighbor
                && stored.next_hop == hop
                && (stored.external, stored.client) == (teller.external, teller.client)
                && (stored.router_id == teller.router_id || known.originator_id.is_some())
            {
                stored.references += 1;
                break id;
            }
            slot = (slot + 1) & mask;
        };
        self.scratch = octets;
        id
    }

    /// The same set as a last resort (RFC 9494 section 4.2), with one reference for the caller; `None`: it is not to be kept.
    pub fn as_last_resort(&mut self, id: AttributesId) -> Option<AttributesId> {
        let Stored { neighbor, external, client, router_id, next_hop, .. } = *self.get(id);
        let octets = self.get(id).octets.clone();
        let (mut known, _) = Attributes::parse(&octets, STORED);
        let mut communities: std::collections::BTreeSet<u32> = known.communities().collect();
        if communities.contains(&community::NO_LLGR) {
            return None;
        }
        communities.insert(community::LLGR_STALE);
        let communities: Vec<u8> = communities.into_iter().flat_map(u32::to_be_bytes).collect();
        known.communities = &communities;
        Some(self.intern(&known, next_hop, Teller { neighbor, external, client, router_id }))
    }

    fn insert(
        &mut self,
        slot: usize,
        hash: u32,
        octets: &[u8],
        known: &Attributes<'_>,
        hop: NextHop,
        teller: Teller,
    ) -> AttributesId {
        let said = |community| known.communities().any(|one| one == community);
        let scope = if said(community::NO_ADVERTISE) {
            Scope::Here
        } else if said(community::NO_EXPORT) || said(community::NO_EXPORT_SUBCONFED) {
            Scope::As
        } else {
            Scope::Anywhere
        };
        let path = known.as_path.as_ref();
        // RFC 8326 section 4.2: a route that is about to go is the last choice.
        let local_pref = if said(community::GRACEFUL_SHUTDOWN) { 0 } else { known.local_pref.unwrap_or(100) };
        let stored = Stored {
            neighbor: teller.neighbor,
            external: teller.external,
            client: teller.client,
            origin: known.origin.unwrap_or_default(),
            scope,
            last_resort: said(community::LLGR_STALE),
            local_pref,
            med: known.multi_exit_disc.unwrap_or(0),
            path_length: path.map_or(0, |path| u16::try_from(path.length()).unwrap_or(u16::MAX)),
            cluster_length: u16::try_from(known.cluster_list.len() / 4).unwrap_or(u16::MAX),
            first_as: path.and_then(crate::wire::as_path::AsPath::first).unwrap_or(0),
            router_id: known.originator_id.unwrap_or(teller.router_id),
            bandwidth: bandwidth(known.extended_communities),
            next_hop: hop,
            octets: octets.into(),
            references: 1,
            hash,
        };
        self.octets += octets.len();
        let id = if let Some(id) = self.free.pop() {
            self.stored[at(id)] = stored;
            id
        } else {
            self.stored.push(stored);
            u32::try_from(self.stored.len() - 1).unwrap_or(EMPTY)
        };
        self.slots[slot] = id;
        if self.len() * 4 > self.slots.len() * 3 {
            self.grow();
        }
        id
    }

    fn grow(&mut self) {
        let old = std::mem::take(&mut self.slots);
        self.slots = vec![EMPTY; old.len() * 2];
        let mask = self.slots.len() - 1;
        for id in old.into_iter().filter(|&id| id != EMPTY) {
            let mut slot = at(self.stored[at(id)].hash) & mask;
            while self.slots[slot] != EMPTY {
                slot = (slot + 1) & mask;
            }
            self.slots[slot] = id;
        }
    }

    /// Takes `id` out of the slots; what was pushed behind it moves up, so no tombstones gather.
    fn remove(&mut self, id: AttributesId, hash: u32) {
        let mask = self.slots.len() - 1;
        let mut hole = at(hash) & mask;
        while self.slots[hole] != id {
            hole = (hole + 1) & mask;
        }
        let mut slot = hole;
        loop {
            slot = (slot + 1) & mask;
            let moved = self.slots[slot];
            if moved == EMPTY {
                break;
            }
            let wish = at(self.stored[at(moved)].hash) & mask;
            if (slot.wrapping_sub(wish) & mask) >= (slot.wrapping_sub(hole) & mask) {
                self.slots[hole] = moved;
                hole = slot;
            }
        }
        self.slots[hole] = EMPTY;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::as_path::AsPath;

    fn teller(neighbor: NeighborIndex) -> Teller {
        Teller { neighbor, external: true, client: false, router_id: Ipv4Addr::LOCALHOST }
    }

    fn hop(last: u8) -> NextHop {
        NextHop { address: Ipv4Addr::new(10, 0, 0, last).into(), link_local: None }
    }

    proptest! {
        #[test]
        fn equal_sets_have_one_number_as_long_as_a_route_has_them(steps in prop::collection::vec((any::<bool>(), 0u32..300), 1..600)) {
            let mut interner = Interner::new(5);
            let mut held: std::collections::BTreeMap<u32, Vec<AttributesId>> = std::collections::BTreeMap::new();
            for (add, med) in steps {
                let ids = held.entry(med).or_default();
                if add {
                    let attributes = Attributes { multi_exit_disc: Some(med), as_path: Some(AsPath::sequence(&[med + 1])), ..Attributes::default() };
                    let id = interner.intern(&attributes, hop(1), teller(3));
                    prop_assert!(ids.iter().all(|&other| other == id));
                    ids.push(id);
                } else if let Some(id) = ids.pop() {
                    interner.release(id);
                }
                prop_assert_eq!(interner.len(), held.values().filter(|ids| !ids.is_empty()).count());
                for (med, ids) in &held {
                    prop_assert!(ids.iter().all(|&id| interner.get(id).attributes().multi_exit_disc == Some(*med)));
                }
            }
        }
    }

    #[test]
    fn sets_that_differ_in_teller_or_next_hop_are_two() {
        let mut interner = Interner::new(5);
        let attributes = Attributes::default();
        let ids = [(1, 1), (1, 2), (2, 1)].map(|(who, last)| interner.intern(&attributes, hop(last), teller(who)));
        assert_eq!(ids, [1, 2, 3]);
    }

    #[test]
    fn the_bandwidth_community_tells_a_share() {
        let mut communities = vec![0x40, 4, 0, 1];
        communities.extend(125_000.0f32.to_be_bytes());
        assert!((bandwidth(&communities) - 125_000.0).abs() < f32::EPSILON);
        assert!(bandwidth(&[0x40, 4, 0, 1, 0xff, 0xff, 0xff, 0xff]).abs() < f32::EPSILON);
    }
}
