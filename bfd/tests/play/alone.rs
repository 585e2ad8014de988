//! One end, and a test that plays the other.

use std::collections::BTreeMap;

use martlet_bfd::{Change, Discard, Input, Meta, Output, SessionConfig, SessionId, SessionStatus, Sessions, State};
use martlet_clock::Instant;

use crate::packet::{DOWN, INIT, POLL, Packet, UP, packet};
use crate::world::{at, meta, session};

/// One end with one session.
pub struct Alone {
    pub sessions: Sessions,
    pub id: SessionId,
    pub sent: Vec<(Instant, Packet)>,
    pub echoes: Vec<(Instant, Vec<u8>)>,
    pub changes: Vec<Change>,
}

impl Alone {
    pub fn new(config: &SessionConfig) -> Self {
        Self::with_seed(1, config)
    }

    pub fn with_seed(seed: u64, config: &SessionConfig) -> Self {
        let (sent, echoes, changes) = (Vec::new(), Vec::new(), Vec::new());
        let mut alone = Self { sessions: Sessions::new(seed), id: session(0), sent, echoes, changes };
        alone.configure(at(0), config);
        alone
    }

    /// One whose session is Up at `at(1000)`, all polls answered.
    pub fn up(config: &SessionConfig) -> Self {
        let mut alone = Self::new(config);
        alone.hears(at(0), &packet(DOWN, 0));
        alone.run(at(200));
        alone.tell_up(at(200), INIT);
        alone.run(at(400));
        alone.tell_up(at(400), UP);
        let mut answer = packet(UP, alone.ours());
        answer.flags = crate::packet::FINAL;
        alone.hears(at(500), &answer);
        for millis in (600..=1000).step_by(100) {
            alone.run(at(millis));
            alone.tell_up(at(millis), UP);
        }
        assert_eq!(alone.state(), State::Up);
        assert!(!alone.sent.last().expect("packets").1.has(POLL), "all polls are answered");
        alone.sent.clear();
        alone.changes.clear();
        alone
    }

    fn tell_up(&mut self, now: Instant, state: u8) {
        let packet = packet(state, self.ours());
        self.hears(now, &packet);
    }

    pub fn configure(&mut self, now: Instant, config: &SessionConfig) {
        let wanted = BTreeMap::from([(self.id.clone(), config.clone())]);
        self.handle(now, Input::SetSessions(&wanted));
    }

    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        self.sessions.handle(now, input);
        while let Some(output) = self.sessions.poll() {
            match output {
                Output::Transmit(_, octets) => self.sent.push((now, Packet::read(&octets))),
                Output::Echo(_, octets) => self.echoes.push((now, octets)),
                Output::Changed(change) => self.changes.push(change),
            }
        }
    }

    pub fn hears(&mut self, now: Instant, packet: &Packet) {
        self.hears_octets(now, &meta(0), &packet.octets());
    }

    pub fn hears_octets(&mut self, now: Instant, meta: &Meta, octets: &[u8]) {
        self.handle(now, Input::Received(meta, octets));
    }

    /// Lets time pass up to and including `end`.
    pub fn run(&mut self, end: Instant) {
        while let Some(deadline) = self.sessions.deadline().filter(|&deadline| deadline <= end) {
            self.handle(deadline, Input::Timeout);
            assert!(self.sessions.deadline().is_none_or(|next| next > deadline), "a deadline in the past remained");
        }
    }

    /// Our discriminator.
    pub fn ours(&self) -> u32 {
        self.status().local_discriminator
    }

    pub fn status(&self) -> SessionStatus {
        self.sessions.status()[&self.id].clone()
    }

    pub fn state(&self) -> State {
        self.status().state
    }

    /// How many packets broke this rule.
    pub fn discarded(&self, rule: Discard) -> u64 {
        self.sessions.discarded().get(&rule).copied().unwrap_or_default()
    }

    /// How many packets broke any.
    pub fn discarded_in_all(&self) -> u64 {
        self.sessions.discarded().values().sum()
    }
}
