//! Two ends and a network between them that delays, reorders, doubles and loses: what the plays of these tests run in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use martlet_bfd::{Change, Input, Meta, Output, SessionConfig, SessionId, SessionStatus, Sessions, State};
use martlet_clock::{Dice, Instant};

pub fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

pub const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The address of an end.
pub fn address(end: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, if end == 0 { 1 } else { 2 }))
}

/// The session of `end` with the other end.
pub fn session(end: usize) -> SessionId {
    SessionId { remote: address(1 - end), interface: Some(Arc::from("eth0")), local: None }
}

/// How a packet from the other end arrives at `end`.
pub fn meta(end: usize) -> Meta {
    Meta {
        remote: address(1 - end),
        local: address(end),
        interface: Some(Arc::from("eth0")),
        ttl: 255,
        multihop: false,
    }
}

pub fn config(interval_ms: u64, multiplier: u8) -> SessionConfig {
    SessionConfig { min_tx: ms(interval_ms), min_rx: ms(interval_ms), multiplier, ..SessionConfig::default() }
}

/// What the network does to packets.
#[derive(Clone, Debug)]
pub struct Network {
    /// Every packet takes between these.
    pub delay_us: std::ops::Range<u64>,
    /// Of a hundred packets so many arrive twice.
    pub doubled_percent: u64,
    /// Of a hundred packets so many are lost.
    pub lost_percent: u64,
    /// Nothing from this end arrives.
    pub cut: [bool; 2],
}

impl Default for Network {
    fn default() -> Self {
        Self { delay_us: 100..101, doubled_percent: 0, lost_percent: 0, cut: [false, false] }
    }
}

/// Two ends and what is between them.
pub struct World {
    pub now: Instant,
    pub ends: [Sessions; 2],
    pub network: Network,
    /// What changed, at which end, when.
    pub story: Vec<(Instant, usize, Change)>,
    /// What was sent, by which end, when.
    pub sent: Vec<(Instant, usize, Vec<u8>)>,
    flying: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    count: u64,
    dice: Dice,
}

impl World {
    pub fn new(seed: u64, network: Network) -> Self {
        Self {
            now: Instant::ORIGIN,
            ends: [Sessions::new(seed), Sessions::new(seed ^ 0xffff)],
            network,
            story: Vec::new(),
            sent: Vec::new(),
            flying: BTreeMap::new(),
            count: 0,
            dice: Dice::new(seed),
        }
    }

    /// Two ends of these configurations.
    pub fn of(seed: u64, network: Network, configs: [&SessionConfig; 2]) -> Self {
        let mut world = Self::new(seed, network);
        world.configure(0, configs[0]);
        world.configure(1, configs[1]);
        world
    }

    pub fn configure(&mut self, end: usize, config: &SessionConfig) {
        let wanted = BTreeMap::from([(session(end), config.clone())]);
        self.handle(end, Input::SetSessions(&wanted));
    }

    pub fn handle(&mut self, end: usize, input: Input<'_>) {
        self.ends[end].handle(self.now, input);
        self.flush(end);
    }

    fn flush(&mut self, end: usize) {
        while let Some(output) = self.ends[end].poll() {
            match output {
                Output::Transmit(_, octets) => {
                    self.fly(end, &octets);
                    self.sent.push((self.now, end, octets));
                }
                Output::Echo(..) => {}
                Output::Changed(change) => self.story.push((self.now, end, change)),
            }
        }
    }

    fn fly(&mut self, from: usize, octets: &[u8]) {
        if self.network.cut[from] || self.dice.chance(self.network.lost_percent, 100) {
            return;
        }
        let copies = 1 + u64::from(self.dice.chance(self.network.doubled_percent, 100));
        let range = self.network.delay_us.clone();
        for _ in 0..copies {
            let delay = Duration::from_micros(range.start + self.dice.below(range.end - range.start));
            self.count += 1;
            self.flying.insert((self.now + delay, self.count), (1 - from, octets.to_vec()));
        }
    }

    /// Lets time pass until `end`.
    pub fn run(&mut self, end: Instant) {
        loop {
            let deadlines = self.ends.iter().filter_map(Sessions::deadline);
            let arrival = self.flying.keys().next().map(|&(at, _)| at);
            let Some(next) = deadlines.chain(arrival).min().filter(|&next| next <= end) else { break };
            assert!(next >= self.now, "a deadline in the past remained");
            self.now = next;
            let later = self.flying.split_off(&(next, u64::MAX));
            for (to, octets) in std::mem::replace(&mut self.flying, later).into_values() {
                self.handle(to, Input::Received(&meta(to), &octets));
            }
            for to in [0, 1] {
                if self.ends[to].deadline().is_some_and(|deadline| deadline <= next) {
                    self.handle(to, Input::Timeout);
                }
            }
        }
        self.now = end;
    }

    pub fn status(&self, end: usize) -> SessionStatus {
        self.ends[end].status()[&session(end)].clone()
    }

    pub fn states(&self) -> [State; 2] {
        [self.status(0).state, self.status(1).state]
    }

    /// How often an end left Up.
    pub fn flaps(&self) -> usize {
        self.story.iter().filter(|(_, _, change)| change.from == State::Up).count()
    }

    /// When `end` reached `state` first.
    pub fn reached(&self, end: usize, state: State) -> Option<Instant> {
        self.story.iter().find(|(_, who, change)| *who == end && change.to == state).map(|&(at, ..)| at)
    }
}
