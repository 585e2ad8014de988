//! All sessions of a machine: which there should be, and which of them a packet is for (RFC 5880 sections 6.3 and 6.8.6).

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;

use martlet_clock::{Dice, Instant, Timers};
use sha1::{Digest, Sha1};

use crate::echo::Echo;
use crate::packet::Control;
use crate::session::Session;
use crate::{Discard, Input, Meta, Output, SessionConfig, SessionId, SessionStatus};

/// The least TTL or hop limit of an echo packet that came back: the other end took one off (RFC 9747).
const ECHO_TTL: u8 = 254;

/// Every BFD session of a machine.
#[derive(Debug)]
pub struct Sessions {
    /// By our discriminator.
    by_discriminator: BTreeMap<u32, Session>,
    /// Our discriminator, by name.
    names: BTreeMap<SessionId, u32>,
    timers: Timers<u32>,
    out: VecDeque<Output>,
    discarded: BTreeMap<Discard, u64>,
    seed: u64,
    made: u64,
}

impl Sessions {
    /// No sessions yet. `seed` makes discriminators and jitter: unpredictable in production, fixed in a test.
    pub fn new(seed: u64) -> Self {
        Self {
            by_discriminator: BTreeMap::new(),
            names: BTreeMap::new(),
            timers: Timers::new(),
            out: VecDeque::new(),
            discarded: BTreeMap::new(),
            seed,
            made: 0,
        }
    }

    /// Takes one input. Never fails: a bad packet is discarded and counted.
    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        match input {
            Input::SetSessions(wanted) => self.set_sessions(now, wanted),
            Input::Received(meta, payload) => {
                let outcome = self.received(now, meta, payload, now);
                self.count(outcome);
            }
            Input::ReceivedLate(meta, payload, waited) => {
                let outcome = self.received(now, meta, payload, now.before(waited));
                self.count(outcome);
            }
            Input::EchoReceived(meta, payload) => {
                let outcome = self.echo_received(now, meta, payload);
                self.count(outcome);
            }
            Input::Path(id, diagnostic) => {
                if let Some(&discriminator) = self.names.get(id) {
                    self.with(now, discriminator, |session, out| session.path(now, diagnostic, out));
                }
            }
            Input::Stalled(gap) => {
                let all: Vec<u32> = self.by_discriminator.keys().copied().collect();
                for discriminator in all {
                    self.with(now, discriminator, |session, _| session.stalled(now, gap));
                }
            }
            Input::Timeout => {
                while let Some(discriminator) = self.timers.pop(now) {
                    self.with(now, discriminator, |session, out| session.timeout(now, out));
                }
            }
        }
    }

    /// The next thing to do, until `None`.
    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When [`Input::Timeout`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.deadline()
    }

    /// What is to be said of every session.
    pub fn status(&self) -> BTreeMap<SessionId, SessionStatus> {
        let status = |(id, discriminator): (&SessionId, &u32)| {
            let session = self.by_discriminator.get(discriminator).filter(|session| !session.is_leaving())?;
            Some((id.clone(), session.status()))
        };
        self.names.iter().filter_map(status).collect()
    }

    /// Every session that may still send: those that should be, and those that are just leaving.
    pub fn ids(&self) -> impl Iterator<Item = &SessionId> {
        self.names.keys()
    }

    /// How many packets were discarded, by the rule that they broke.
    pub const fn discarded(&self) -> &BTreeMap<Discard, u64> {
        &self.discarded
    }

    fn set_sessions(&mut self, now: Instant, wanted: &BTreeMap<SessionId, SessionConfig>) {
        // Of the same path as one that is wanted: only our address differs, and the other end takes both for one.
        let has_heir =
            |id: &SessionId| wanted.keys().any(|other| (other.remote, &other.interface) == (id.remote, &id.interface));
        let gone: Vec<(u32, bool)> = self
            .names
            .iter()
            .filter(|(id, _)| !wanted.contains_key(*id))
            .map(|(id, &discriminator)| (discriminator, has_heir(id)))
            .collect();
        for (discriminator, has_heir) in gone {
            self.with(now, discriminator, |session, out| session.leave(now, has_heir, out));
        }
        for (id, config) in wanted {
            let discriminator = match self.names.get(id) {
                Some(&discriminator) => self.renewed(now, discriminator, config),
                None => self.make(now, id, config),
            };
            self.with(now, discriminator, |session, out| {
                if session.is_leaving() || session.config() != config {
                    session.configure(now, config.clone(), out);
                }
            });
        }
    }

    fn make(&mut self, now: Instant, id: &SessionId, config: &SessionConfig) -> u32 {
        let (discriminator, dice) = self.chance();
        let session = Session::new(now, id.clone(), config.clone(), discriminator, dice);
        self.by_discriminator.insert(discriminator.get(), session);
        self.names.insert(id.clone(), discriminator.get());
        discriminator.get()
    }

    /// A session whose other end was sighted while it waited for it goes by another discriminator from now on.
    fn renewed(&mut self, now: Instant, before: u32, config: &SessionConfig) -> u32 {
        let sighted = |session: &Session| session.awaits(now) && session.config().sightings != config.sightings;
        if !self.by_discriminator.get(&before).is_some_and(sighted) {
            return before;
        }
        let (discriminator, _) = self.chance();
        if let Some(mut session) = self.by_discriminator.remove(&before) {
            session.renew(now, discriminator, &mut self.out);
            self.timers.stop(before);
            self.names.insert(session.id().clone(), discriminator.get());
            self.by_discriminator.insert(discriminator.get(), session);
        }
        discriminator.get()
    }

    /// A discriminator that is unique here and that nobody guesses who knows others (section 6.8.1), and dice.
    fn chance(&mut self) -> (NonZeroU32, Dice) {
        loop {
            self.made += 1;
            let digest =
                Sha1::new().chain_update(self.seed.to_be_bytes()).chain_update(self.made.to_be_bytes()).finalize();
            let number = |octets: &[u8]| octets.iter().fold(0, |number, &octet| number << 8 | u64::from(octet));
            let (first, rest) = digest.split_at(4);
            let discriminator = u32::try_from(number(first)).ok().and_then(NonZeroU32::new);
            let unused = |found: &NonZeroU32| !self.by_discriminator.contains_key(&found.get());
            if let Some(discriminator) = discriminator.filter(unused) {
                return (discriminator, Dice::new(number(rest.split_at(8).0)));
            }
        }
    }

    /// Section 6.8.6 up to the choice of the session, for a packet that arrived at `arrived`.
    fn received(&mut self, now: Instant, meta: &Meta, payload: &[u8], arrived: Instant) -> Result<(), Discard> {
        let (packet, octets) = Control::parse(payload)?;
        let discriminator = match packet.yours {
            0 => self.by_address(meta).ok_or(Discard::NoSession)?,
            yours => yours,
        };
        let (id, config) = self.named(discriminator).ok_or(Discard::UnknownDiscriminator)?;
        if meta.multihop != id.interface.is_none() {
            return Err(Discard::WrongPort);
        }
        if meta.ttl < config.min_ttl {
            return Err(Discard::Ttl);
        }
        let receive = |session: &mut Session, out: &mut _| session.receive(now, &packet, octets, arrived, out);
        self.with(now, discriminator, receive).unwrap_or(Ok(()))
    }

    /// An echo packet names our discriminator; what a neighbour without BFD sends back is a control packet of ours.
    fn echo_received(&mut self, now: Instant, meta: &Meta, payload: &[u8]) -> Result<(), Discard> {
        if meta.ttl < ECHO_TTL {
            return Err(Discard::Ttl);
        }
        if let Some(discriminator) = Echo::discriminator(payload) {
            let outcome = self.with(now, discriminator, |session, _| session.echo_received(now, payload));
            return outcome.unwrap_or(Err(Discard::Echo));
        }
        let (packet, octets) = Control::parse(payload)?;
        let mine = packet.mine.get();
        let ours = self.named(mine).is_some_and(|(_, config)| config.unaffiliated) && [0, mine].contains(&packet.yours);
        if !ours {
            return Err(Discard::Echo);
        }
        self.with(now, mine, |session, out| session.receive(now, &packet, octets, now, out)).unwrap_or(Ok(()))
    }

    fn named(&self, discriminator: u32) -> Option<(&SessionId, &SessionConfig)> {
        self.by_discriminator.get(&discriminator).map(|session| (session.id(), session.config()))
    }

    /// The session with this sender: on its interface (RFC 5881 section 3), or by both addresses (RFC 5883 section 4).
    fn by_address(&self, meta: &Meta) -> Option<u32> {
        let interface = if meta.multihop { None } else { Some(meta.interface.clone()?) };
        let mut name = SessionId { remote: meta.remote, interface, local: Some(meta.local) };
        let exact = self.names.get(&name);
        name.local = None;
        exact.or_else(|| self.names.get(&name)).copied()
    }

    fn count(&mut self, outcome: Result<(), Discard>) {
        if let Err(discard) = outcome {
            *self.discarded.entry(discard).or_default() += 1;
        }
    }

    /// Lets a session act, then sets its timer, or forgets it when it has left.
    fn with<T>(
        &mut self,
        now: Instant,
        discriminator: u32,
        act: impl FnOnce(&mut Session, &mut VecDeque<Output>) -> T,
    ) -> Option<T> {
        let session = self.by_discriminator.get_mut(&discriminator)?;
        let result = act(session, &mut self.out);
        session.send_due(now, &mut self.out);
        if session.has_left(now) {
            self.names.remove(session.id());
            self.by_discriminator.remove(&discriminator);
            self.timers.stop(discriminator);
            return Some(result);
        }
        match session.deadline() {
            Some(deadline) => self.timers.set(discriminator, deadline),
            None => self.timers.stop(discriminator),
        }
        Some(result)
    }
}
