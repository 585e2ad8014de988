//! Maglev's lookup table (Eisenbud et al., NSDI 2016, section 3.4): a prime number of slots, each an endpoint's identifier.
//!
//! Every endpoint has a permutation of the slots of its own, made of its identifier and the seed; the endpoints take turns
//! to fill their next free slot. So all get the same share within one slot, and when one leaves, its slots are shared out
//! and nearly all others stay. The table is a pure function of (size, seed, identifiers): replicas agree without a word.
//! It knows nothing of packets: see [`crate::hash`] for what chooses a slot.

use std::collections::BTreeSet;

use crate::hash::{Seed, jhash_words, scale};
use crate::nfqlb;

/// The number of slots: a prime, so that every step through the table visits all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u32);

/// The largest table that is chosen by default; the paper's large one.
const LARGEST_BY_DEFAULT: u32 = 655_373;
/// Slots of the table of [`USUAL`] endpoints; fewer have fewer in proportion.
const SLOTS_OF_USUAL: u64 = 65_536;
/// So many endpoints may a Service have that does not say.
const USUAL: u64 = 100;
/// Slots for each endpoint that the paper wants at least: the parts of two endpoints differ by a hundredth then. More of them
/// only take memory and caches.
const SLOTS_EACH: u64 = 100;
/// The most slots that can be asked for.
const LARGEST: u32 = 1 << 24;

/// Why a number of slots is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It has divisors.
    #[error("a Maglev table of {0} slots: not a prime number (the next one is {1})")]
    NotPrime(u32, u32),
    /// It is too small or too large.
    #[error("a Maglev table of {0} slots: must lie in 3..=16777216")]
    OutOfRange(u32),
}

impl Size {
    /// `slots`, if that is a prime within 3 and 2^24.
    ///
    /// # Errors
    /// When it is not.
    pub fn new(slots: u32) -> Result<Self, SizeError> {
        match slots {
            ..3 | LARGEST.. => Err(SizeError::OutOfRange(slots)),
            _ if is_prime(slots) => Ok(Self(slots)),
            _ => Err(SizeError::NotPrime(slots, next_prime(slots))),
        }
    }

    /// The default for a service of at most `endpoints`: 65537 from 100 on, less in proportion below, a hundred for each
    /// where that is more, at most 655373.
    pub fn for_endpoints(endpoints: u32) -> Self {
        Self::part_for_endpoints(endpoints, 1)
    }

    /// The same divided by `part`, which is at least 1; but a hundred for each endpoint remain.
    pub fn part_for_endpoints(endpoints: u32, part: u32) -> Self {
        let endpoints = u64::from(endpoints.max(1));
        let least = endpoints * SLOTS_EACH;
        let whole = (endpoints.min(USUAL) * SLOTS_OF_USUAL / USUAL).max(least);
        let wanted = (whole / u64::from(part.max(1))).max(least);
        let wanted = u32::try_from(wanted).unwrap_or(LARGEST_BY_DEFAULT).min(LARGEST_BY_DEFAULT);
        Self(next_prime(wanted))
    }

    /// The number of slots.
    pub const fn slots(self) -> u32 {
        self.0
    }
}

/// The smallest prime that is not below `number`.
fn next_prime(number: u32) -> u32 {
    (number.max(2)..=u32::MAX).find(|candidate| is_prime(*candidate)).unwrap_or(LARGEST_BY_DEFAULT)
}

fn is_prime(number: u32) -> bool {
    number >= 2 && (2..=number.isqrt()).all(|divisor| !number.is_multiple_of(divisor))
}

/// Where the permutations of the endpoints come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permutation {
    /// From identifier and seed.
    Seeded(Seed),
    /// As nfqlb makes them: see [`crate::nfqlb`].
    Nfqlb,
}

impl From<Seed> for Permutation {
    fn from(seed: Seed) -> Self {
        Self::Seeded(seed)
    }
}

/// A lookup table: slot -> identifier of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    size: Size,
    permutation: Permutation,
    identifiers: BTreeSet<u16>,
    /// `size` entries, or none if there is no endpoint.
    slots: Vec<u16>,
}

/// What changes between two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Moves {
    /// Slots of endpoints that are no longer there: these must move.
    pub must: u32,
    /// Slots that were given to endpoints that are new.
    pub to_new: u32,
    /// Slots that moved between endpoints that are in both tables: the price of the algorithm.
    pub disturbed: u32,
    /// All slots.
    pub slots: u32,
}

impl std::fmt::Display for Moves {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { must, to_new, disturbed, slots } = self;
        write!(f, "{must} of {slots} slots must move, {disturbed} of others move too")?;
        if *to_new > 0 { write!(f, ", {to_new} go to new endpoints") } else { Ok(()) }
    }
}

/// Where an endpoint would like to be: first, and then always so many slots on.
struct Walk {
    identifier: u16,
    next: u32,
    skip: u32,
}

/// Set apart the two hashes of an identifier. Arbitrary, and part of the wire contract.
const OFFSET: u32 = 0x6d61_6731;
const SKIP: u32 = 0x6d61_6732;

impl Walk {
    fn new(identifier: u16, size: Size, seed: Seed) -> Self {
        let hash = |salt| jhash_words(&[u32::from(identifier), salt], seed.0);
        Self { identifier, next: scale(hash(OFFSET), size.0), skip: scale(hash(SKIP), size.0 - 1) + 1 }
    }

    /// The preferred slot that comes next.
    fn step(&mut self, size: Size) -> u32 {
        let slot = self.next;
        // Both are below 2^24: no overflow.
        self.next = slot + self.skip;
        if self.next >= size.0 {
            self.next -= size.0;
        }
        slot
    }
}

/// Stands in a slot that nobody took yet.
const FREE: u16 = u16::MAX;

impl Table {
    /// The table of these endpoints. An identifier of 65535 is left out.
    pub fn new(size: Size, permutation: impl Into<Permutation>, identifiers: impl IntoIterator<Item = u16>) -> Self {
        let permutation = permutation.into();
        let identifiers: BTreeSet<u16> = identifiers.into_iter().filter(|identifier| *identifier != FREE).collect();
        let slots = fill(size, permutation, &identifiers);
        Self { size, permutation, identifiers, slots }
    }

    /// The identifier of the endpoint that serves a flow of this hash; `None`: there is no endpoint.
    pub fn lookup(&self, hash: u32) -> Option<u16> {
        self.slots.get(usize::try_from(self.slot(hash)).ok()?).copied()
    }

    /// The slot of a hash.
    pub fn slot(&self, hash: u32) -> u32 {
        match self.permutation {
            Permutation::Seeded(_) => scale(hash, self.size.0),
            Permutation::Nfqlb => hash % self.size.0,
        }
    }

    /// Whether this is the table of these endpoints.
    pub fn is_of(&self, size: Size, permutation: Permutation, identifiers: &BTreeSet<u16>) -> bool {
        self.size == size && self.permutation == permutation && self.identifiers == *identifiers
    }

    /// Its number of slots.
    pub const fn size(&self) -> Size {
        self.size
    }

    /// The endpoints in it.
    pub const fn identifiers(&self) -> &BTreeSet<u16> {
        &self.identifiers
    }

    /// All slots in order; empty if there is no endpoint.
    pub fn slots(&self) -> &[u16] {
        &self.slots
    }

    /// The endpoint of a slot.
    pub fn owner(&self, slot: u32) -> Option<u16> {
        self.slots.get(usize::try_from(slot).ok()?).copied()
    }

    /// The slots of one endpoint.
    pub fn slots_of(&self, identifier: u16) -> impl Iterator<Item = u32> {
        (0_u32..).zip(&self.slots).filter(move |(_, owner)| **owner == identifier).map(|(slot, _)| slot)
    }

    /// The table that remains when `identifier` leaves.
    #[must_use]
    pub fn without(&self, identifier: u16) -> Self {
        Self::new(self.size, self.permutation, self.identifiers.iter().copied().filter(|other| *other != identifier))
    }

    /// What moves if `identifier` leaves.
    pub fn if_leaves(&self, identifier: u16) -> Moves {
        self.moves(&self.without(identifier))
    }

    /// What moves from `self` to `new`, which must be of the same size to be comparable (else all is counted as `must`).
    pub fn moves(&self, new: &Self) -> Moves {
        let mut moves = Moves { must: 0, to_new: 0, disturbed: 0, slots: self.size.0 };
        if self.size != new.size || new.slots.is_empty() {
            moves.must = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
            return moves;
        }
        for (before, after) in self.slots.iter().zip(&new.slots) {
            if !new.identifiers.contains(before) {
                moves.must += 1;
            } else if !self.identifiers.contains(after) {
                moves.to_new += 1;
            } else if before != after {
                moves.disturbed += 1;
            }
        }
        moves
    }
}

/// The paper's "populate".
fn fill(size: Size, permutation: Permutation, identifiers: &BTreeSet<u16>) -> Vec<u16> {
    if identifiers.is_empty() {
        return Vec::new();
    }
    let mut walks: Vec<Walk> = match permutation {
        Permutation::Seeded(seed) => identifiers.iter().map(|identifier| Walk::new(*identifier, size, seed)).collect(),
        Permutation::Nfqlb => {
            let all = nfqlb::walks(size.0, identifiers.last().map_or(0, |last| usize::from(*last) + 1));
            let chosen = (0_u16..).zip(all).filter(|(identifier, _)| identifiers.contains(identifier));
            chosen.map(|(identifier, (next, skip))| Walk { identifier, next, skip }).collect()
        }
    };
    let mut slots = vec![FREE; usize::try_from(size.0).unwrap_or_default()];
    let mut free = slots.len();
    while free > 0 {
        for walk in &mut walks {
            if free == 0 {
                break;
            }
            // Ends: the step is coprime to the prime size, so that a walk visits every slot, and one is free.
            loop {
                let slot = usize::try_from(walk.step(size)).unwrap_or_default();
                if let Some(slot) = slots.get_mut(slot).filter(|slot| **slot == FREE) {
                    *slot = walk.identifier;
                    break;
                }
            }
            free -= 1;
        }
    }
    slots
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEED: Seed = Seed(0x1234_5678);

    fn size(slots: u32) -> Size {
        Size::new(slots).unwrap()
    }

    #[test]
    fn a_hundred_endpoints_get_65537_slots() {
        assert_eq!(Size::for_endpoints(100).slots(), 65537);
        let of = |endpoints| Size::for_endpoints(endpoints).slots();
        assert_eq!([of(10), of(500), of(1000), of(10_000)], [6553, 65537, 100_003, 655_373]);
        assert_eq!([of(0), of(u32::MAX)], [of(1), 655_373]);
        for endpoints in [1, 10, 99, 100, 101, 655, 656, 1000, 6000] {
            for part in 1..=6 {
                assert!(Size::part_for_endpoints(endpoints, part).slots() >= endpoints * 100);
            }
        }
    }

    #[test]
    fn a_size_that_is_not_prime_is_refused_with_the_next_that_is() {
        assert_eq!(Size::new(65_536), Err(SizeError::NotPrime(65_536, 65_537)));
        assert_eq!(Size::new(2), Err(SizeError::OutOfRange(2)));
        assert_eq!(Size::new(LARGEST), Err(SizeError::OutOfRange(LARGEST)));
    }

    #[test]
    fn without_endpoints_there_is_no_choice() {
        let table = Table::new(size(251), SEED, []);
        assert_eq!((table.lookup(0), table.lookup(u32::MAX), table.slots().len()), (None, None, 0));
    }

    #[test]
    fn golden_vectors_hold_for_ever() {
        let table = Table::new(size(65_537), Seed::of_gateway("default", "sllb-a"), 0..3);
        let chosen: Vec<u16> = (0..16).map(|part| table.lookup(part << 28 | 0x0123_4567).unwrap()).collect();
        assert_eq!(chosen, GOLDEN);
    }

    /// Computed by another implementation too.
    const GOLDEN: [u16; 16] = [2, 2, 2, 1, 0, 1, 1, 0, 2, 2, 0, 0, 1, 0, 1, 1];

    /// The paper, section 5.3: with M > 100 N few slots move between endpoints that stay.
    #[test]
    fn one_of_a_hundred_leaves_and_few_others_move() {
        let table = Table::new(size(65_537), SEED, 0..100);
        for leaving in [0, 17, 99] {
            let moves = table.if_leaves(leaving);
            assert!((655..=656).contains(&moves.must), "{moves:?}");
            assert!(moves.disturbed < 65_537 / 50, "{moves:?}");
            assert_eq!(moves.to_new, 0);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_endpoint_has_its_share_within_one_slot(identifiers in prop::collection::btree_set(0_u16..1000, 1..60), seed: u32) {
            let table = Table::new(size(4099), Seed(seed), identifiers.iter().copied());
            let shares: Vec<usize> = identifiers.iter().map(|identifier| table.slots_of(*identifier).count()).collect();
            prop_assert_eq!(shares.iter().sum::<usize>(), 4099);
            prop_assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
        }

        #[test]
        fn the_order_of_arrival_does_not_matter(mut identifiers in prop::collection::vec(0_u16..1000, 1..40), seed: u32) {
            let one = Table::new(size(1009), Seed(seed), identifiers.iter().copied());
            identifiers.reverse();
            prop_assert_eq!(one, Table::new(size(1009), Seed(seed), identifiers));
        }

        #[test]
        fn who_leaves_and_returns_finds_the_same_table(identifiers in prop::collection::btree_set(0_u16..1000, 2..40), seed: u32) {
            let table = Table::new(size(1009), Seed(seed), identifiers.iter().copied());
            let leaving = *identifiers.first().unwrap();
            let without = table.without(leaving);
            prop_assert!(without.slots().iter().all(|owner| *owner != leaving));
            prop_assert_eq!(table.moves(&without).must, u32::try_from(table.slots_of(leaving).count()).unwrap());
            let back = Table::new(size(1009), Seed(seed), without.identifiers().iter().copied().chain([leaving]));
            prop_assert_eq!(back, table);
        }

        /// Few of the slots of those that stay move: far below what a plain modulus would move (nearly all).
        #[test]
        fn disruption_is_small(count in 3_u16..50, seed: u32) {
            let table = Table::new(size(10_007), Seed(seed), 0..count);
            let moves = table.if_leaves(count / 2);
            prop_assert!(moves.disturbed < 10_007 / 8, "{:?}", moves);
        }

        #[test]
        fn the_last_endpoint_takes_all_its_slots_with_it(identifier in 0_u16..1000) {
            let moves = Table::new(size(251), SEED, [identifier]).if_leaves(identifier);
            prop_assert_eq!(moves, Moves { must: 251, to_new: 0, disturbed: 0, slots: 251 });
        }
    }
}
