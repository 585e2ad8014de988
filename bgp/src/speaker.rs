//! All neighbours of one router.

use std::collections::BTreeMap;

use bytes::BytesMut;
use ipnet::IpNet;
use martlet_clock::Instant;

use crate::{ConnectionId, Counters, Input, Local, NeighborId, NeighborStatus, Output, Path};

/// A BGP speaker: everything that one router says and hears in BGP.
#[derive(Debug)]
pub struct Speaker {
    local: Local,
}

impl Speaker {
    /// A speaker without neighbours; `seed` decides its jitter.
    pub fn new(local: Local, seed: u64) -> Self {
        let _ = seed;
        Self { local }
    }

    /// Takes note of what happened at `now`; what follows from it is in [`Speaker::poll`].
    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        if let Input::SetLocal(local) = input {
            self.local = local.clone();
        }
        let _ = now;
    }

    /// The next thing to do or to tell; call it until it is `None`.
    pub fn poll(&mut self) -> Option<Output> {
        None
    }

    /// When [`Input::Timeout`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Appends what waits for `connection` to `buffer`: at least one message if one waits, then more while fewer than `room`
    /// octets were appended (so at most one message more than `room`). True while more waits.
    pub fn transmit(&mut self, now: Instant, connection: ConnectionId, buffer: &mut BytesMut, room: usize) -> bool {
        let _ = (now, connection, buffer, room);
        false
    }

    /// Takes at most `max` prefixes whose best paths changed; empty when there are no more.
    pub fn changed(&mut self, max: usize) -> Vec<IpNet> {
        let _ = max;
        Vec::new()
    }

    /// The best paths to `prefix`, equal-cost ones included, the best first; empty if there is none.
    pub fn paths(&self, prefix: &IpNet) -> Vec<Path> {
        let _ = prefix;
        Vec::new()
    }

    /// All prefixes with at least one path, for a full comparison.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> + '_ {
        std::iter::empty()
    }

    /// What is to be said of each neighbour.
    pub fn status(&self) -> BTreeMap<NeighborId, NeighborStatus> {
        BTreeMap::new()
    }

    /// What was counted of each neighbour since it was configured.
    pub fn counters(&self) -> BTreeMap<NeighborId, Counters> {
        BTreeMap::new()
    }
}
