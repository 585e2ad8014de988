//! All sessions of a machine: demultiplexing, and the whole value that says which there should be.

use std::collections::BTreeMap;

use martlet_clock::{Dice, Instant};

use crate::{Input, Output, SessionId, SessionStatus};

/// Every BFD session of a machine.
#[derive(Debug)]
pub struct Sessions {
    dice: Dice,
}

impl Sessions {
    /// No sessions yet. `seed` makes discriminators and jitter: unpredictable in production, fixed in a test.
    pub fn new(seed: u64) -> Self {
        Self { dice: Dice::new(seed) }
    }

    /// Takes one input. Never fails: a bad packet is discarded and counted.
    pub fn handle(&mut self, _now: Instant, _input: Input<'_>) {
        self.dice.roll();
    }

    /// The next thing to do, until `None`.
    pub fn poll(&mut self) -> Option<Output> {
        None
    }

    /// When [`Input::Timeout`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    /// What is to be said of every session.
    pub fn status(&self) -> BTreeMap<SessionId, SessionStatus> {
        BTreeMap::new()
    }
}
