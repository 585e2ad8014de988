//! Fragments of one datagram go to one endpoint, in whatever order they come.
//!
//! Only the first fragment has ports. Its fate is remembered for a while; later ones follow it, and those that came too
//! early are held (in the kernel's queue, without a verdict) until it comes or until it is too late. All queue threads
//! share one table. It knows no packet and no socket: what is held is a number in a queue.
//!
//! The table is bounded: at most [`MAX_DATAGRAMS`] at a time and [`MAX_HELD`] held fragments, [`MAX_HELD_EACH`] of one
//! datagram, so that neither memory nor the kernel's queue can be filled by half datagrams that nobody completes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use martlet_clock::Instant;

use crate::counters::Reason;
use crate::engine::Choice;
use crate::packet::{Fragment, Packet};

/// How long a first fragment is remembered. Short: an IPv4 sender at full speed uses an identification again soon.
pub const REMEMBERED: Duration = Duration::from_secs(1);
/// How long a later fragment waits for its first.
pub const HELD: Duration = Duration::from_millis(500);
/// Datagrams that are known at a time.
pub const MAX_DATAGRAMS: usize = 16_384;
/// Fragments that are held at a time.
pub const MAX_HELD: usize = 1024;
/// Fragments of one datagram that are held; 64 KiB in fragments of 1280 octets are 53.
pub const MAX_HELD_EACH: usize = 64;

/// What the fragments of one datagram have in common (RFC 791 and RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    source: IpAddr,
    destination: IpAddr,
    /// Of IPv4; of IPv6 it does not tell datagrams apart.
    protocol: u8,
    id: u32,
}

impl Key {
    /// The key of a fragment.
    pub const fn new(packet: &Packet<'_>, fragment: Fragment) -> Self {
        let Packet { source, destination, protocol, .. } = *packet;
        let protocol = if source.is_ipv4() { protocol } else { 0 };
        Self { source, destination, protocol, id: fragment.id }
    }
}

/// A packet that waits in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The queue.
    pub queue: u16,
    /// Its number there.
    pub id: u32,
    /// Its octets.
    pub length: u32,
}

/// What becomes of all fragments of a datagram.
pub type Fate = Result<Choice, Reason>;

/// What is to be done with a later fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Later {
    /// As with the first.
    Follow(Fate),
    /// No verdict yet.
    Hold,
}

#[derive(Clone, Debug)]
enum State {
    Known(Fate),
    Waiting(Vec<Held>),
}

/// The datagrams that are under way.
#[derive(Clone, Debug, Default)]
pub struct Fragments {
    datagrams: BTreeMap<Key, (Instant, State)>,
    /// When each of them is forgotten.
    deadlines: BTreeSet<(Instant, Key)>,
    held: usize,
}

impl Fragments {
    /// The first fragment of a datagram is here: those that waited for it, which share its fate.
    pub fn first(&mut self, now: Instant, key: Key, fate: Fate) -> Vec<Held> {
        let released = match self.forget(key) {
            Some(State::Waiting(held)) => held,
            _ => Vec::new(),
        };
        // A table that is full forgets the datagram that it would forget next.
        while self.datagrams.len() >= MAX_DATAGRAMS
            && let Some((_, oldest)) = self.deadlines.iter().find(|(_, key)| self.is_known(key)).copied()
        {
            self.forget(oldest);
        }
        if self.datagrams.len() < MAX_DATAGRAMS {
            self.remember(now + REMEMBERED, key, State::Known(fate));
        }
        released
    }

    /// A later fragment is here.
    pub fn later(&mut self, now: Instant, key: Key, held: Held) -> Later {
        let is_full = self.held >= MAX_HELD;
        match self.datagrams.get_mut(&key) {
            Some((until, State::Known(fate))) if *until > now => return Later::Follow(*fate),
            Some((_, State::Waiting(waiting))) => {
                if is_full || waiting.len() >= MAX_HELD_EACH {
                    return Later::Follow(Err(Reason::FragmentsTooMany));
                }
                waiting.push(held);
            }
            _ => {
                self.forget(key);
                if is_full || self.datagrams.len() >= MAX_DATAGRAMS {
                    return Later::Follow(Err(Reason::FragmentsTooMany));
                }
                self.remember(now + HELD, key, State::Waiting(vec![held]));
            }
        }
        self.held += 1;
        Later::Hold
    }

    /// What has waited too long, to be dropped.
    pub fn expire(&mut self, now: Instant) -> Vec<Held> {
        let mut late = Vec::new();
        while let Some((until, key)) = self.deadlines.first().copied()
            && until <= now
        {
            if let Some(State::Waiting(held)) = self.forget(key) {
                late.extend(held);
            }
        }
        late
    }

    /// When there is something to expire.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(until, _)| *until)
    }

    fn is_known(&self, key: &Key) -> bool {
        matches!(self.datagrams.get(key), Some((_, State::Known(_))))
    }

    fn remember(&mut self, until: Instant, key: Key, state: State) {
        self.datagrams.insert(key, (until, state));
        self.deadlines.insert((until, key));
    }

    fn forget(&mut self, key: Key) -> Option<State> {
        let (until, state) = self.datagrams.remove(&key)?;
        self.deadlines.remove(&(until, key));
        if let State::Waiting(held) = &state {
            self.held -= held.len();
        }
        Some(state)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn key(id: u32) -> Key {
        Key { source: "10.0.0.1".parse().unwrap(), destination: "20.0.0.1".parse().unwrap(), protocol: 17, id }
    }

    fn held(id: u32) -> Held {
        Held { queue: 0, id, length: 1000 }
    }

    const FATE: Fate = Ok(Choice { rank: 0, slot: 7, identifier: 3, mark: 5003, target_port: None });

    #[test]
    fn later_fragments_follow_the_first() {
        let mut fragments = Fragments::default();
        assert_eq!(fragments.first(at(0), key(1), FATE), []);
        assert_eq!(fragments.later(at(1), key(1), held(9)), Later::Follow(FATE));
        assert_eq!(fragments.later(at(2), key(1), held(10)), Later::Follow(FATE));
        assert_eq!(fragments.later(at(2), key(2), held(11)), Later::Hold, "another datagram");
    }

    #[test]
    fn what_came_before_the_first_is_released_by_it() {
        let mut fragments = Fragments::default();
        assert_eq!(fragments.later(at(0), key(1), held(8)), Later::Hold);
        assert_eq!(fragments.later(at(1), key(1), held(9)), Later::Hold);
        assert_eq!(fragments.first(at(2), key(1), FATE), [held(8), held(9)]);
        assert_eq!(fragments.later(at(3), key(1), held(10)), Later::Follow(FATE));
        assert_eq!(fragments.held, 0);
    }

    #[test]
    fn whoever_waits_too_long_is_dropped_and_a_first_is_forgotten() {
        let mut fragments = Fragments::default();
        fragments.later(at(0), key(1), held(8));
        fragments.first(at(0), key(2), FATE);
        assert_eq!(fragments.deadline(), Some(at(500)));
        assert_eq!(fragments.expire(at(499)), []);
        assert_eq!(fragments.expire(at(500)), [held(8)]);
        assert_eq!(fragments.later(at(1000), key(2), held(9)), Later::Hold, "forgotten after a second");
    }

    #[test]
    fn a_dropped_first_takes_the_others_with_it() {
        let mut fragments = Fragments::default();
        fragments.first(at(0), key(1), Err(Reason::NoRoute));
        assert_eq!(fragments.later(at(1), key(1), held(1)), Later::Follow(Err(Reason::NoRoute)));
    }

    #[test]
    fn a_flood_of_half_datagrams_is_bounded() {
        let mut fragments = Fragments::default();
        for id in 0..3000 {
            fragments.later(at(0), key(id % 1500), held(id));
        }
        assert_eq!(
            (fragments.held, fragments.later(at(0), key(9999), held(0))),
            (1024, Later::Follow(Err(Reason::FragmentsTooMany)))
        );
        let mut fragments = Fragments::default();
        for id in 0..20_000 {
            fragments.first(at(u64::from(id) / 100), key(id), FATE);
        }
        assert_eq!(fragments.datagrams.len(), MAX_DATAGRAMS);
        assert_eq!(fragments.later(at(200), key(19_999), held(0)), Later::Follow(FATE), "the newest are known");
        let mut fragments = Fragments::default();
        let held_of_one = (0..100).filter(|id| fragments.later(at(0), key(1), held(*id)) == Later::Hold).count();
        assert_eq!(held_of_one, MAX_HELD_EACH);
    }

    proptest! {
        /// Whatever happens, every held fragment comes out exactly once, and nothing stays behind.
        #[test]
        fn nothing_is_held_for_ever(steps in prop::collection::vec((0_u32..6, any::<bool>(), 0_u64..400), 0..80)) {
            let mut fragments = Fragments::default();
            let (mut now, mut inside, mut out) = (0, 0, 0);
            for (number, (id, first, pause)) in (0..).zip(steps) {
                now += pause;
                out += fragments.expire(at(now)).len();
                if first {
                    out += fragments.first(at(now), key(id), FATE).len();
                } else if fragments.later(at(now), key(id), held(number)) == Later::Hold {
                    inside += 1;
                }
                prop_assert_eq!(fragments.held, inside - out);
                prop_assert_eq!(fragments.deadlines.len(), fragments.datagrams.len());
                prop_assert!(fragments.deadline().is_none_or(|deadline| deadline > at(now)));
            }
            out += fragments.expire(at(now + 10_000)).len();
            prop_assert_eq!((inside, fragments.datagrams.len()), (out, 0));
        }
    }
}
