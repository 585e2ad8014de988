//! BFD hears from BGP that the other end of a session is there.
//!
//! A BFD session that is not Up speaks once a second, as does its other end (RFC 5880 section 6.8.3), and routes and VIPs wait
//! for it. BGP is back sooner, and soon after it is Established it tells the session, which is made anew then and asks at once
//! ([`SessionConfig::sightings`]). Not before: FRR makes its BFD session anew when BGP is Established, and one that was Up by
//! then would go Down for it and take BGP along. (In strict mode BGP waits for BFD, and has nothing to tell.)

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use martlet_bfd::{SessionConfig, SessionId};
use martlet_bgp::{BfdState, NeighborId, NeighborState};
use martlet_clock::Instant;

use super::Router;

/// After BGP is Established: soon, for who has its session and waits; and again when even a busy neighbour should have its own,
/// and an answer to what was said to one that is no more would have come.
const AFTER_ESTABLISHED: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(300)];

/// What BGP has seen of the other ends of BFD sessions.
#[derive(Debug, Default)]
pub(super) struct Sightings {
    /// How often, while BFD was Down.
    times: BTreeMap<SessionId, u32>,
    /// When a neighbour that is Established counts as seen again.
    due: BTreeSet<(Instant, NeighborId)>,
}

impl Sightings {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(super) fn retain(&mut self, wanted: &BTreeMap<SessionId, SessionConfig>) {
        self.times.retain(|id, _| wanted.contains_key(id));
    }

    /// The session as BFD is asked for it.
    pub(super) fn told(&self, id: &SessionId, config: &SessionConfig) -> SessionConfig {
        SessionConfig { sightings: self.times.get(id).copied().unwrap_or_default(), ..config.clone() }
    }
}

impl Router {
    /// A neighbour's BGP session is in `state` now.
    pub(super) fn look(&mut self, now: Instant, id: &NeighborId, state: NeighborState) {
        if state == NeighborState::Established {
            self.sightings.due.extend(AFTER_ESTABLISHED.map(|delay| (now + delay, id.clone())));
        } else {
            self.sightings.due.retain(|(_, other)| other != id);
        }
    }

    /// Neighbours that are Established since a moment.
    pub(super) fn look_again(&mut self, now: Instant) {
        while self.sightings.deadline().is_some_and(|at| at <= now) {
            if let Some((_, id)) = self.sightings.due.pop_first() {
                self.sighted(&id);
            }
        }
    }

    fn sighted(&mut self, id: &NeighborId) {
        let Some(session) = self.neighbor(id).and_then(|neighbor| neighbor.bfd.clone()) else { return };
        if self.bfd_state(&session) == BfdState::Down {
            let times = self.sightings.times.entry(session).or_default();
            *times = times.wrapping_add(1);
            self.supervise();
        }
    }
}
