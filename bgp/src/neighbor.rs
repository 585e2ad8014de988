//! One neighbour: up to two connections to it (which one stays: `collision`), retry, passive, BFD as a condition, graceful restart.
//!
//! The first connection is the one that we open, the second the one that it opens; both may live until their OPENs tell
//! which is to stay (RFC 4271 section 6.8). A neighbour knows when it may be tried and when again; of routes it knows only how
//! many there are, and for how long those of a broken session are kept. What follows for the RIB is told as [`Effect`]s.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ipnet::IpNet;
use martlet_clock::{Dice, Instant};

use crate::announce::AdjRibOut;
use crate::connection::{Connection, LARGE_HOLD};
use crate::fsm::{self, Action, Event as Fsm};
use crate::intern::NeighborIndex;
use crate::rib::place;
use crate::session::{Negotiated, our_open};
use crate::wire::notification::{self, Cease, Notification};
use crate::wire::put_keepalive;
use crate::{
    Bfd, BfdState, CloseReason, ConnectionId, Counters, Endpoints, Event, Family, Local, NeighborConfig, NeighborId,
    NeighborState as State, Output, Ticket,
};

/// The connection that we open.
pub const OUTGOING: usize = 0;
/// The connection that the neighbour opens.
pub const INCOMING: usize = 1;

/// The longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How long a neighbour that told more than we can hold is not tried.
const EXHAUSTED: Duration = Duration::from_mins(5);
/// A hold timer that is seen to expire this late says more of us than of the neighbour.
const STALL: Duration = Duration::from_millis(500);
/// How long the neighbour then has to be heard.
const GRACE: Duration = Duration::from_secs(1);
/// A session that lasted this long has not failed.
const LASTED: Duration = Duration::from_secs(30);
/// How long stale routes wait for End-of-RIB once the session is back (RFC 4724 section 4.2 leaves it open).
const STALE: Duration = Duration::from_mins(6);

/// What follows for the routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The session is up.
    Up,
    /// The session is down; routes of these families stay for a while.
    Down { keep: BTreeMap<Family, Keep> },
    /// Stale routes have outlived the restart time: now they are a last resort (RFC 9494).
    LastResort(Family),
    /// Stale routes have waited long enough.
    Flush(Family),
}

/// For how long routes of a broken session are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// As good as before (RFC 4724).
    pub restart: Duration,
    /// Then as a last resort (RFC 9494).
    pub long: Option<Duration>,
}

/// Why a connection moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The event says it all.
    None,
    /// We have something to say about it.
    Send(Notification, String),
    /// The neighbour said something about it.
    Got(Notification),
    /// The connection broke.
    Closed(CloseReason),
}

/// What a neighbour needs of the speaker.
pub struct Env<'a> {
    pub now: Instant,
    pub local: &'a Local,
    pub index: NeighborIndex,
    pub outputs: &'a mut VecDeque<Output>,
    pub connections: &'a mut BTreeMap<ConnectionId, (NeighborIndex, usize)>,
    pub closing: &'a mut BTreeMap<ConnectionId, Vec<u8>>,
    pub next_connection: &'a mut u64,
    pub dice: &'a mut Dice,
    pub stopping: bool,
    /// Whether what we announced before our start may still be in use (RFC 4724).
    pub restarted: bool,
}

/// A neighbour.
#[derive(Debug)]
pub struct Neighbor {
    pub id: NeighborId,
    pub config: NeighborConfig,
    pub connections: [Connection; 2],
    pub effects: Vec<Effect>,
    pub counters: Counters,
    /// By family: what it heard.
    pub heard: [AdjRibOut; 2],
    /// By family: in which life its routes are; older ones are stale.
    pub epochs: [u16; 2],
    /// By family: how many routes it told.
    pub received: [u32; 2],
    /// By family: stale routes are dropped then, or become a last resort.
    pub stale: [Option<Instant>; 2],
    /// By family: for how long they are one, once the time above is over.
    pub long: [Option<Duration>; 2],
    /// By family: whether they are one.
    pub last_resort: [bool; 2],
    /// By family: whether the warning of too many prefixes was told.
    pub warned: [bool; 2],
    /// Faults that were found in this session's attributes.
    pub faults: u32,
    pub end_of_rib: BTreeSet<Family>,
    /// Prefixes that it told and that were ours: at most as many as we have.
    pub refused_own: BTreeSet<IpNet>,
    pub since: Instant,
    pub last_error: Option<String>,
    /// Whether BFD took its routes out (RFC 5882 section 4.3).
    pub out: bool,
    bfd: Option<BfdState>,
    /// `IdleHoldTimer`: the next attempt.
    start: Option<Instant>,
    /// Attempts that failed in a row.
    failures: u32,
    /// Too many prefixes: it is not tried..
    limited: bool,
    /// ..until then, or until an operator resets.
    limited_until: Option<Instant>,
    /// It refuses optional parameters.
    pub plain: bool,
    told: State,
    told_failure: Option<CloseReason>,
}

impl Neighbor {
    pub fn new(id: NeighborId, config: NeighborConfig, now: Instant) -> Self {
        Self {
            id,
            config,
            connections: <[Connection; 2]>::default(),
            effects: Vec::new(),
            counters: Counters::default(),
            heard: <[AdjRibOut; 2]>::default(),
            epochs: [0; 2],
            received: [0; 2],
            stale: [None; 2],
            long: [None; 2],
            last_resort: [false; 2],
            warned: [false; 2],
            faults: 0,
            end_of_rib: BTreeSet::new(),
            refused_own: BTreeSet::new(),
            since: now,
            last_error: None,
            out: false,
            bfd: None,
            start: None,
            failures: 0,
            limited: false,
            limited_until: None,
            plain: false,
            told: State::Idle,
            told_failure: None,
        }
    }

    /// The state of the more advanced connection.
    pub fn state(&self) -> State {
        self.connections[OUTGOING].state.max(self.connections[INCOMING].state)
    }

    /// The connection that is Established, if one is.
    pub fn established(&self) -> Option<usize> {
        [OUTGOING, INCOMING].into_iter().find(|&slot| self.connections[slot].state == State::Established)
    }

    /// What the session negotiated, and its ends, if there is one.
    pub fn session(&self) -> Option<(&Negotiated, &Endpoints)> {
        let connection = &self.connections[self.established()?];
        Some((connection.negotiated.as_ref()?, connection.endpoints.as_ref()?))
    }

    /// Whether a session of `family` is up.
    pub fn carries(&self, family: Family) -> bool {
        self.session().is_some_and(|(negotiated, _)| negotiated.families.contains(&family))
    }

    fn may_run(&self, env: &Env<'_>) -> bool {
        let waits_for_bfd =
            self.config.bfd == Bfd::Strict && !matches!(self.bfd, Some(BfdState::Up | BfdState::AdminDown));
        !env.stopping && self.config.shutdown.is_none() && !self.limited && !waits_for_bfd
    }

    /// The first of all deadlines.
    pub fn deadline(&self) -> Option<Instant> {
        let own = [self.start, self.limited_until, self.stale[0], self.stale[1]];
        own.into_iter().chain(self.connections.iter().map(Connection::deadline)).flatten().min()
    }

    /// Does what is due.
    pub fn timeout(&mut self, env: &mut Env<'_>) {
        let now = env.now;
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        for family in [Family::Ipv4, Family::Ipv6] {
            if due(self.stale[place(family)]) {
                // Who is back by now renews what it told, or not: there is no second wait.
                let long = self.long[place(family)].take().filter(|_| !self.carries(family));
                self.stale[place(family)] = long.map(|long| now + long);
                self.last_resort[place(family)] = long.is_some();
                self.effects.push(if long.is_some() { Effect::LastResort(family) } else { Effect::Flush(family) });
            }
        }
        if due(self.limited_until) {
            self.limited = false;
            self.limited_until = None;
        }
        for slot in [OUTGOING, INCOMING] {
            let connection = &mut self.connections[slot];
            if connection.hold.is_some_and(|at| now - at > STALL) {
                // It was we who slept: what the neighbour said meanwhile may still wait in the socket.
                connection.hold = Some(now + GRACE);
            }
            if connection.held.as_ref().is_some_and(|held| held.until <= now) {
                self.release(env, slot, true);
                continue;
            }
            let event = if due(connection.hold) {
                Fsm::HoldTimerExpires
            } else if due(connection.send_hold()) {
                Fsm::SendHoldTimerExpires
            } else if due(connection.keepalive) {
                Fsm::KeepaliveTimerExpires
            } else if connection.held.is_none() && due(connection.delay_open) {
                Fsm::DelayOpenTimerExpires
            } else if due(connection.retry) {
                Fsm::ConnectRetryTimerExpires
            } else {
                continue;
            };
            let cause = match event {
                Fsm::SendHoldTimerExpires => {
                    let notification = Notification::new(notification::SEND_HOLD_TIMER_EXPIRED, 0);
                    Cause::Send(notification, "the neighbour does not read".to_owned())
                }
                _ => Cause::None,
            };
            self.step(env, slot, event, cause);
        }
        self.schedule(env);
    }

    /// Starts what may be started, now or after the time that damping asks for.
    pub fn schedule(&mut self, env: &mut Env<'_>) {
        let busy = self.connections[INCOMING].state >= State::OpenSent;
        let outgoing = &self.connections[OUTGOING];
        if !self.may_run(env) || busy {
            self.start = None;
        } else if outgoing.state == State::Idle {
            if self.start.is_none_or(|at| at <= env.now) {
                self.start = None;
                let event = if self.config.passive { Fsm::StartPassive } else { Fsm::Start };
                self.step(env, OUTGOING, event, Cause::None);
            }
        } else if outgoing.state <= State::Active
            && outgoing.retry.is_none()
            && !outgoing.is_up()
            && !self.config.passive
        {
            // The other connection talked, and does no more.
            let at = self.start.take().filter(|&at| at > env.now).unwrap_or_else(|| env.now + self.pause(env));
            self.connections[OUTGOING].retry = Some(at);
        } else {
            self.start = None;
        }
        self.tell_state(env);
    }

    fn tell_state(&mut self, env: &mut Env<'_>) {
        // Connect and Active alternate several times a second while nobody answers: one line for both.
        let rank = |state: State| if state == State::Active { State::Connect } else { state };
        let (from, to) = (self.told, self.state());
        if from == to {
            return;
        }
        self.told = to;
        if rank(from) != rank(to) {
            self.since = env.now;
            env.outputs.push_back(Output::Event(Event::State { neighbor: self.id.clone(), from, to }));
        }
    }

    /// How long the next attempt waits while the path is silent.
    fn pause(&self, env: &mut Env<'_>) -> Duration {
        env.dice.shortened(self.config.connect_retry.max(Duration::from_millis(10)), 0, 10)
    }

    /// How long the next attempt waits after a failure: as `connect_retry`, doubled with each failure.
    fn wait(&self, env: &mut Env<'_>) -> Duration {
        let doubled = self.config.connect_retry.saturating_mul(1 << self.failures.saturating_sub(1).min(10));
        env.dice.shortened(doubled.clamp(Duration::from_millis(10), LONGEST_WAIT), 0, 10)
    }

    /// Moves one connection, and does what the state machine says.
    pub fn step(&mut self, env: &mut Env<'_>, slot: usize, event: Fsm, mut cause: Cause) {
        let was = self.connections[slot].state;
        let (next, actions) = fsm::step(was, event);
        let mut dropped = false;
        for action in actions {
            self.act(env, slot, was, event, *action, &mut cause);
            dropped |= *action == Action::Drop;
        }
        self.connections[slot].state = next;
        if next == State::Established && was != next {
            // The other connection, whatever it was about to become, is one too many.
            self.step(env, 1 - slot, Fsm::OpenCollisionDump, collision());
            self.start = None;
        }
        if next >= State::OpenSent && was < State::OpenSent {
            // While one connection talks we open no other (one that is under way may arrive: a collision).
            self.connections[1 - slot].retry = None;
            self.told_failure = None;
        }
        if dropped {
            self.schedule(env);
        }
        if next != was {
            // What waited for this one.
            self.release(env, 1 - slot, false);
        }
        self.tell_state(env);
    }

    fn act(&mut self, env: &mut Env<'_>, slot: usize, was: State, event: Fsm, action: Action, cause: &mut Cause) {
        let now = env.now;
        match action {
            Action::Connect => {
                let id = self.name(env, slot);
                self.counters.connects += 1;
                env.outputs.push_back(Output::Connect(self.id.clone(), id));
            }
            Action::StartConnectRetry => {
                let wait = self.pause(env);
                // Only who opens connections tries again; and not while the other one talks.
                let active =
                    slot == OUTGOING && !self.config.passive && self.connections[INCOMING].state < State::OpenSent;
                self.connections[slot].retry = active.then(|| now + wait);
            }
            Action::StopConnectRetry => self.connections[slot].retry = None,
            Action::StartDelayOpen => {
                self.connections[slot].delay_open = Some(now + self.delay(slot).unwrap_or_default());
            }
            Action::StopDelayOpen => self.connections[slot].delay_open = None,
            Action::SendOpen => self.send_open(env, slot),
            Action::SendKeepalive => self.send_keepalive(env, slot),
            Action::StartLargeHold => self.connections[slot].hold = Some(now + LARGE_HOLD),
            Action::StartHold => {
                let connection = &mut self.connections[slot];
                let hold = connection.hold_time();
                connection.hold = (!hold.is_zero()).then(|| now + hold);
            }
            Action::Notify => self.notify(env, slot, event, cause),
            Action::NotifyHold => {
                let hold = self.connections[slot].hold_time().as_secs();
                let text = if was < State::OpenConfirm {
                    "the neighbour sent no OPEN".to_owned()
                } else {
                    format!("nothing was heard from the neighbour for {hold} s")
                };
                *cause = Cause::Send(Notification::new(notification::HOLD_TIMER_EXPIRED, 0), text);
                self.notify(env, slot, event, cause);
            }
            Action::NotifyFsm => {
                let text = format!("{event:?} has no business in {was:?}");
                *cause = Cause::Send(Notification::new(notification::FSM, fsm::unexpected(was)), text);
                self.notify(env, slot, event, cause);
            }
            Action::Establish => {
                self.counters.established += 1;
                self.since = now;
                self.last_error = None;
                self.effects.push(Effect::Up);
            }
            Action::Handle => (),
            Action::Drop => self.drop(env, slot, was, event, cause),
            Action::Damp => {
                if was == State::Established && now - self.since >= LASTED {
                    self.failures = 0;
                }
                self.failures = self.failures.saturating_add(1);
                let wait = self.wait(env);
                if slot == OUTGOING && fsm::step(was, event).0 == State::Active {
                    self.connections[slot].retry = (!self.config.passive).then(|| now + wait);
                } else {
                    self.start = Some(now + wait);
                }
            }
        }
    }

    /// A new name for a connection.
    fn name(&mut self, env: &mut Env<'_>, slot: usize) -> ConnectionId {
        *env.next_connection += 1;
        let id = ConnectionId(*env.next_connection);
        env.connections.insert(id, (env.index, slot));
        self.connections[slot].id = Some(id);
        id
    }

    /// Tells the driver that something waits, unless it knows.
    pub fn ready(&mut self, env: &mut Env<'_>, slot: usize) {
        let connection = &mut self.connections[slot];
        if let Some(id) = connection.id.filter(|_| connection.waiting.is_none()) {
            connection.waiting = Some(env.now);
            env.outputs.push_back(Output::Ready(id));
        }
    }

    fn send_open(&mut self, env: &mut Env<'_>, slot: usize) {
        let Some(endpoints) = self.connections[slot].endpoints else { return };
        let restarted = env.restarted && self.counters.established == 0;
        let open = our_open(&self.config, env.local, &endpoints, restarted, self.plain);
        open.put(&mut self.connections[slot].outbox);
        self.connections[slot].sent = Some(open);
        self.counters.messages_out += 1;
        self.ready(env, slot);
    }

    fn send_keepalive(&mut self, env: &mut Env<'_>, slot: usize) {
        let connection = &mut self.connections[slot];
        let hold = connection.hold_time();
        // RFC 4271 section 4.4 and 10: a third of the hold time, jittered.
        connection.keepalive = (!hold.is_zero()).then(|| env.now + env.dice.shortened(hold / 3, 0, 25));
        // One that still waits says the same.
        if connection.state != State::Established || connection.outbox.is_empty() {
            put_keepalive(&mut connection.outbox);
            self.counters.messages_out += 1;
        }
        self.ready(env, slot);
    }

    fn notify(&mut self, env: &mut Env<'_>, slot: usize, event: Fsm, cause: &mut Cause) {
        let connection = &mut self.connections[slot];
        if !connection.is_up() {
            return;
        }
        let Cause::Send(notification, _) = cause else { return };
        // RFC 8538 section 3: who keeps our routes over a NOTIFICATION is told when it shall not.
        let final_stop =
            matches!(event, Fsm::ManualStop | Fsm::AutomaticStop) && connection.state == State::Established;
        if final_stop && connection.negotiated.as_ref().is_some_and(|one| one.notification_restart) {
            *notification = notification.clone().hard();
        }
        notification.put(&mut connection.outbox);
        self.counters.messages_out += 1;
        self.counters.notifications_out += 1;
        self.ready(env, slot);
    }

    fn drop(&mut self, env: &mut Env<'_>, slot: usize, was: State, event: Fsm, cause: &Cause) {
        let connection = std::mem::take(&mut self.connections[slot]);
        let told = connection.is_up();
        if let Some(id) = connection.id {
            env.connections.remove(&id);
            if !matches!(cause, Cause::Closed(_)) {
                if !connection.outbox.is_empty() {
                    env.closing.insert(id, connection.outbox);
                }
                env.outputs.push_back(Output::Close(id));
            }
        }
        if was == State::Established {
            let most = self.config.long_lived;
            let keep = connection.negotiated.as_ref().map(|one| kept(one, event, cause, most)).unwrap_or_default();
            self.end_of_rib.clear();
            self.refused_own.clear();
            self.faults = 0;
            self.effects.push(Effect::Down { keep });
        }
        if event != Fsm::ConnectRetryTimerExpires {
            self.tell_closed(env, was, told, cause);
        }
    }

    fn tell_closed(&mut self, env: &mut Env<'_>, was: State, told: bool, cause: &Cause) {
        if !told && !matches!(cause, Cause::Closed(_)) {
            // There was no connection to end, and nobody to tell; but why it is not tried is worth knowing.
            if let Cause::Send(one, text) = cause
                && one.subcode != Cease::Collision.subcode()
            {
                self.last_error = Some(text.clone());
            }
            return;
        }
        let (code, sent, text) = match cause {
            Cause::None => (None, false, "closed".to_owned()),
            Cause::Send(one, text) => {
                let said = one.describe();
                let text = if text.is_empty() || said.contains(text) { said } else { format!("{said}: {text}") };
                (Some((one.code, one.subcode)), true, text)
            }
            Cause::Got(one) => (Some((one.code, one.subcode)), false, one.describe()),
            Cause::Closed(reason) => {
                // A connect that fails again as it failed before is no news.
                if !told && self.told_failure.as_ref() == Some(reason) {
                    return;
                }
                self.told_failure = (!told).then(|| reason.clone());
                (None, false, describe(reason))
            }
        };
        self.last_error = Some(text.clone());
        env.outputs.push_back(Output::Event(Event::Closed { neighbor: self.id.clone(), was, code, sent, text }));
    }

    /// A connection that we asked for is there.
    pub fn connected(&mut self, env: &mut Env<'_>, slot: usize, endpoints: Endpoints) {
        self.connections[slot].endpoints = Some(endpoints);
        let delayed = self.delay(slot).is_some();
        self.step(env, slot, if delayed { Fsm::TcpConnectedDelayOpen } else { Fsm::TcpConnected }, Cause::None);
    }

    /// The neighbour opened a connection.
    pub fn incoming(&mut self, env: &mut Env<'_>, ticket: Ticket, endpoints: Endpoints) {
        if !self.may_run(env) || self.established().is_some() {
            // A neighbour that connects again may have lost the session: ask, and its kernel tells (RFC 4724 section 4.2).
            if let Some(slot) = self.established() {
                self.send_keepalive(env, slot);
            }
            env.outputs.push_back(Output::Refuse(ticket));
            return;
        }
        // One that it opened before is one that it gave up.
        self.step(env, INCOMING, Fsm::OpenCollisionDump, collision());
        self.step(env, INCOMING, Fsm::StartPassive, Cause::None);
        let id = self.name(env, INCOMING);
        env.outputs.push_back(Output::Accept(ticket, id));
        self.start = None;
        self.connected(env, INCOMING, endpoints);
    }

    /// A connection is gone.
    pub fn closed(&mut self, env: &mut Env<'_>, slot: usize, reason: CloseReason) {
        self.step(env, slot, Fsm::TcpConnectionFails, Cause::Closed(reason));
        // An incoming connection that failed is not waited for: the next one is another.
        if slot == INCOMING && matches!(self.connections[slot].state, State::Connect | State::Active) {
            self.connections[slot].state = State::Idle;
            self.connections[slot].retry = None;
        }
        self.schedule(env);
    }

    /// A NOTIFICATION came.
    pub fn notified(&mut self, env: &mut Env<'_>, slot: usize, notification: Notification) {
        self.counters.notifications_in += 1;
        let event = match (notification.code, notification.subcode) {
            (notification::OPEN, 1) => Fsm::NotifMsgVerErr,
            _ => Fsm::NotifMsg,
        };
        // RFC 5492 section 3: try without capabilities, if that is enough.
        if (notification.code, notification.subcode) == (notification::OPEN, 4) {
            self.plain = self.config.families == BTreeSet::from([Family::Ipv4]);
        }
        let lost_collision =
            (notification.code, notification.subcode) == (notification::CEASE, Cease::Collision.subcode());
        let failures = self.failures;
        self.step(env, slot, event, Cause::Got(notification));
        if lost_collision {
            // Not a failure (design: back-off only after one other than collision).
            self.failures = failures;
            if self.start.is_some() {
                self.start = Some(env.now + self.pause(env));
            }
        }
    }

    /// Ends all connections with a NOTIFICATION.
    pub fn stop(&mut self, env: &mut Env<'_>, event: Fsm, notification: &Notification, text: &str) {
        for slot in [OUTGOING, INCOMING] {
            self.step(env, slot, event, Cause::Send(notification.clone(), text.to_owned()));
        }
        self.schedule(env);
    }

    /// What BFD says now.
    pub fn set_bfd(&mut self, env: &mut Env<'_>, state: Option<BfdState>) {
        let before = std::mem::replace(&mut self.bfd, state);
        if self.config.bfd == Bfd::Off {
            self.out = false;
        } else if (before, state) == (Some(BfdState::Up), Some(BfdState::Down)) {
            self.out = true;
            let notification = Notification::cease(Cease::BfdDown, "");
            // The path failed, not the neighbour: it is tried again at once.
            let failures = self.failures;
            self.stop(env, Fsm::AutomaticStop, &notification, "BFD went down");
            self.failures = failures;
            self.start = self.start.map(|_| env.now);
        } else if matches!(state, Some(BfdState::Up | BfdState::AdminDown) | None) {
            self.out = false;
        }
        if !self.may_run(env) && self.config.bfd == Bfd::Strict && self.state() > State::Idle {
            self.stop(env, Fsm::AutomaticStop, &Notification::cease(Cease::BfdDown, ""), "BFD is not up");
        }
        self.schedule(env);
    }

    /// There are more prefixes than allowed (RFC 4486 section 4).
    pub fn limit(&mut self, env: &mut Env<'_>, family: Family, maximum: u32, restart_after: Option<Duration>) {
        let mut data = crate::wire::capability::afi(family).to_be_bytes().to_vec();
        data.push(1);
        data.extend(maximum.to_be_bytes());
        let notification = Notification { data, ..Notification::cease(Cease::MaximumPrefixes, "") };
        self.limited = true;
        self.limited_until = restart_after.map(|after| env.now + after);
        self.stop(env, Fsm::AutomaticStop, &notification, &format!("more than {maximum} {family:?} prefixes"));
    }

    /// It tells more than we can hold.
    pub fn exhaust(&mut self, env: &mut Env<'_>) {
        self.limited = true;
        self.limited_until = Some(env.now + EXHAUSTED);
        let text = "its routes take more memory than we give";
        self.stop(env, Fsm::AutomaticStop, &Notification::cease(Cease::Resources, ""), text);
    }

    /// An operator wants it to be tried now.
    pub fn forgive(&mut self) {
        self.limited = false;
        self.limited_until = None;
        self.failures = 0;
        self.start = None;
        self.plain = false;
    }

    /// The session is up: how long stale routes of `family` may wait for their renewal. RFC 9494 section 4.2: the time of a
    /// last resort goes on.
    pub fn renew_stale(&mut self, now: Instant, family: Family) {
        let last_resort = self.last_resort[place(family)];
        if let Some(stale) = self.stale[place(family)].as_mut().filter(|_| !last_resort) {
            *stale = now + STALE;
        }
    }

    /// No stale route of `family` is left.
    pub fn fresh(&mut self, family: Family) {
        self.stale[place(family)] = None;
        self.long[place(family)] = None;
        self.last_resort[place(family)] = false;
    }
}

/// The families whose routes outlive this end of a session (RFC 4724 section 4.2, RFC 8538 section 4).
fn kept(negotiated: &Negotiated, event: Fsm, cause: &Cause, most: Option<Duration>) -> BTreeMap<Family, Keep> {
    let graceful = match (event, cause) {
        (Fsm::ManualStop | Fsm::AutomaticStop | Fsm::OpenCollisionDump, _) => false,
        (Fsm::TcpConnectionFails, _) => true,
        (_, Cause::Got(notification)) => negotiated.notification_restart && !notification.is_hard(),
        (_, Cause::Send(..)) => negotiated.notification_restart,
        _ => false,
    };
    let keep = |family: Family| {
        let (restart, long) = (negotiated.keeps(family), negotiated.keeps_long(family, most));
        (restart.is_some() || long.is_some()).then(|| Keep { restart: restart.unwrap_or_default(), long })
    };
    let families = negotiated.families.iter().filter(|_| graceful);
    families.filter_map(|&family| Some((family, keep(family)?))).collect()
}

pub fn collision() -> Cause {
    Cause::Send(Notification::cease(Cease::Collision, ""), "the other connection stays".to_owned())
}

fn describe(reason: &CloseReason) -> String {
    match reason {
        CloseReason::EndOfFile => "the neighbour closed the connection".to_owned(),
        CloseReason::Reset => "the neighbour reset the connection".to_owned(),
        CloseReason::Refused => "connection refused: nobody listens at that address and port".to_owned(),
        CloseReason::NoAnswer => {
            "no answer: check address, port, filters, and that both sides have the same password".to_owned()
        }
        CloseReason::Other(text) => text.to_string(),
    }
}
