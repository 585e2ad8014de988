//! One session: the state variables and procedures of RFC 5880 section 6.8.
//!
//! Packets that were found to be for this session come in, with the time; packets and changes go out. A session does not
//! know how packets find it (`sessions`), how they are signed (`auth`) or what an echo packet looks like (`echo`). When its
//! control packets leave is the matter of `schedule`, which interval applies that of `timing`.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

use martlet_clock::{Dice, Instant};

use crate::auth::{Authenticator, with_section};
use crate::echo::Echo;
use crate::packet::Control;
use crate::schedule::{Permission, Schedule};
use crate::timing::{SLOW_US, Timing, interval};
use crate::{Change, Diagnostic, Discard, Output, SessionConfig, SessionId, SessionStatus, State};

impl State {
    /// The state after a packet that carries `remote` (RFC 5880 section 6.8.6).
    #[must_use]
    pub const fn after(self, remote: Self) -> Self {
        match (self, remote) {
            (Self::AdminDown, _) => Self::AdminDown,
            (Self::Down, Self::Down) => Self::Init,
            (Self::Down, Self::Init) | (Self::Init, Self::Init | Self::Up) => Self::Up,
            (Self::Init | Self::Up, Self::AdminDown) | (Self::Up, Self::Down) => Self::Down,
            (same, _) => same,
        }
    }
}

/// What the other end told last (section 6.8.1), as it is before it tells anything.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    /// bfd.RemoteDiscr, 0 while unknown.
    pub discriminator: u32,
    /// bfd.RemoteSessionState.
    pub state: State,
    /// Its diagnostic.
    pub diagnostic: Diagnostic,
    /// bfd.RemoteDemandMode.
    pub demand: bool,
    /// bfd.RemoteMinRxInterval.
    pub min_rx_us: u32,
    /// Its Desired Min TX Interval.
    pub min_tx_us: u32,
    /// Its Required Min Echo RX Interval.
    pub min_echo_rx_us: u32,
    /// Its Detect Mult.
    pub multiplier: u8,
}

impl Default for Remote {
    fn default() -> Self {
        Self {
            discriminator: 0,
            state: State::Down,
            diagnostic: Diagnostic::None,
            demand: false,
            min_rx_us: 1,
            min_tx_us: 0,
            min_echo_rx_us: 0,
            multiplier: 0,
        }
    }
}

/// Silence: until when a packet must have come.
#[derive(Clone, Debug, Default)]
struct Silence {
    /// When the last packet came.
    heard_at: Option<Instant>,
    /// When it becomes too long.
    ends_at: Option<Instant>,
    /// When bfd.AuthSeqKnown is reset: at twice the Detection Time (section 6.8.1).
    forget_at: Option<Instant>,
    /// Whether it was already prolonged because the machine stalled.
    prolonged: bool,
}

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    id: SessionId,
    config: SessionConfig,
    discriminator: NonZeroU32,
    state: State,
    since: Instant,
    diagnostic: Diagnostic,
    remote: Remote,
    timing: Timing,
    schedule: Schedule,
    silence: Silence,
    authenticator: Authenticator,
    echo: Echo,
    dice: Dice,
    /// Set when the session is no more wanted: until then it says AdminDown.
    leaves_at: Option<Instant>,
}

impl Session {
    /// A session in state Down that says so at once (or AdminDown, or nothing if it is passive).
    pub fn new(now: Instant, id: SessionId, config: SessionConfig, discriminator: NonZeroU32, mut dice: Dice) -> Self {
        let authenticator = Authenticator::new(u32::try_from(dice.roll() >> 32).unwrap_or_default());
        let echo = Echo::new(discriminator, dice.roll());
        let mut session = Self {
            id,
            config,
            discriminator,
            state: State::Down,
            since: now,
            diagnostic: Diagnostic::None,
            remote: Remote::default(),
            timing: Timing::default(),
            schedule: Schedule::default(),
            silence: Silence::default(),
            authenticator,
            echo,
            dice,
            leaves_at: None,
        };
        if session.config.admin_down {
            session.state = State::AdminDown;
            session.diagnostic = Diagnostic::AdministrativelyDown;
        }
        session.schedule.tell(now, session.state);
        session.apply_timing(now);
        session.timing.nothing_to_tell();
        session
    }

    pub const fn id(&self) -> &SessionId {
        &self.id
    }

    pub const fn config(&self) -> &SessionConfig {
        &self.config
    }

    pub const fn is_leaving(&self) -> bool {
        self.leaves_at.is_some()
    }

    /// Whether the session has said AdminDown for long enough after it was no more wanted.
    pub fn has_left(&self, now: Instant) -> bool {
        self.leaves_at.is_some_and(|at| at <= now)
    }

    pub fn status(&self) -> SessionStatus {
        SessionStatus {
            state: self.state,
            since: self.since,
            diagnostic: self.diagnostic,
            remote_state: self.remote.state,
            remote_diagnostic: self.remote.diagnostic,
            local_discriminator: self.discriminator.get(),
            remote_discriminator: self.remote.discriminator,
            transmit_interval: self.transmit_interval(),
            detection_time: self.detection_time(),
        }
    }

    /// The earliest of all that waits.
    pub fn deadline(&self) -> Option<Instant> {
        [
            self.schedule.deadline(self.permission()),
            self.silence.ends_at,
            self.silence.forget_at,
            self.echo.deadline(),
            self.leaves_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The session as it should be from now on.
    pub fn configure(&mut self, now: Instant, config: SessionConfig, out: &mut VecDeque<Output>) {
        if config.auth.as_ref().map(|auth| auth.kind) != self.config.auth.as_ref().map(|auth| auth.kind) {
            self.authenticator.forget();
        }
        // Section 6.6: who need not listen to us must be asked whether it heard.
        if config.multiplier != self.config.multiplier && self.remote_demand_active() {
            self.timing.start_poll();
        }
        self.leaves_at = None;
        self.config = config;
        if self.config.admin_down {
            self.enter(now, State::AdminDown, Diagnostic::AdministrativelyDown, out);
        } else if self.state == State::AdminDown {
            self.enter(now, State::Down, Diagnostic::None, out);
        }
        self.apply_timing(now);
    }

    /// Whether a sighting of the other end is news: we may speak first, nothing that it said keeps the session Down, and no
    /// answer to our Init can be under way. (FRR makes its session anew when BGP is Established: Init was told to one that is
    /// no more.)
    pub fn awaits(&self, now: Instant) -> bool {
        let is_open = match self.state {
            State::Down => true,
            State::Init => self.schedule.is_unanswered(now),
            State::AdminDown | State::Up => false,
        };
        is_open && !self.config.passive && self.remote.state != State::AdminDown
    }

    /// The other end was sighted: a session that waits for it is made anew, under another discriminator. What a packet says
    /// is new then, so that it need not wait (section 6.8.7); and it polls, because the other end may be as slow as we were
    /// and answers a poll at once, in whatever state (section 6.5).
    pub fn renew(&mut self, now: Instant, discriminator: NonZeroU32, out: &mut VecDeque<Output>) {
        self.discriminator = discriminator;
        self.echo = Echo::new(discriminator, self.dice.roll());
        self.remote = Remote::default();
        self.enter(now, State::Down, self.diagnostic, out);
        self.apply_timing(now);
        if !self.config.unaffiliated {
            self.timing.start_poll();
        }
        self.schedule.tell(now, self.state);
    }

    /// The session is no more wanted: it says AdminDown for a Detection Time (section 6.8.16), so that the other end does
    /// not take our leaving for a failure of the path; but only once if another session takes its place, which the other end
    /// would go on taking down for it.
    pub fn leave(&mut self, now: Instant, has_heir: bool, out: &mut VecDeque<Output>) {
        if let Some(at) = &mut self.leaves_at {
            if has_heir {
                *at = now;
            }
            return;
        }
        let heard = self.remote.discriminator != 0;
        self.enter(now, State::AdminDown, Diagnostic::AdministrativelyDown, out);
        let told_every = self.transmit_interval().max(interval(SLOW_US));
        let wait = told_every * u32::from(self.config.multiplier.max(1));
        self.leaves_at = Some(if heard && !has_heir { now + wait } else { now });
    }

    /// Something other than BFD is known of the path (sections 6.8.15 and 6.8.17).
    pub fn path(&mut self, now: Instant, diagnostic: Diagnostic, out: &mut VecDeque<Output>) {
        match diagnostic {
            Diagnostic::ForwardingPlaneReset | Diagnostic::PathDown => {
                if matches!(self.state, State::Init | State::Up) {
                    self.enter(now, State::Down, diagnostic, out);
                }
            }
            _ if self.state == State::AdminDown || self.diagnostic == diagnostic => {}
            _ => {
                self.diagnostic = diagnostic;
                self.schedule.tell(now, self.state);
                if self.remote_demand_active() {
                    self.timing.start_poll();
                }
            }
        }
    }

    /// The driver slept through `gap`: silence meanwhile proves nothing. Once a silence, one interval more is given.
    pub fn stalled(&mut self, now: Instant, gap: Duration) {
        let one_more = now + self.receive_interval().min(gap);
        let silence = &mut self.silence;
        if silence.ends_at.is_some_and(|at| at <= now) && !silence.prolonged {
            silence.ends_at = Some(one_more);
            silence.prolonged = true;
        }
        self.echo.stalled(now, gap);
    }

    /// A control packet that was demultiplexed to this session: section 6.8.6 from authentication on, in its order. It is read
    /// now, but arrived at `arrived`: the silence is counted from there.
    pub fn receive(
        &mut self,
        now: Instant,
        packet: &Control,
        octets: &[u8],
        arrived: Instant,
        out: &mut VecDeque<Output>,
    ) -> Result<(), Discard> {
        match (&self.config.auth, &packet.auth) {
            (None, None) => {}
            (None, Some(_)) => return Err(Discard::AuthUnexpected),
            (Some(_), None) => return Err(Discard::AuthMissing),
            (Some(auth), Some(section)) => {
                self.authenticator.check(auth, section, octets, packet.multiplier.get())?;
            }
        }
        let is_renamed = self.remote.discriminator != packet.mine.get();
        self.remote = Remote {
            discriminator: packet.mine.get(),
            state: packet.state,
            diagnostic: packet.diagnostic,
            demand: packet.demand,
            min_rx_us: packet.required_min_rx_us,
            min_tx_us: packet.desired_min_tx_us,
            min_echo_rx_us: packet.required_min_echo_rx_us,
            multiplier: packet.multiplier.get(),
        };
        self.timing.heard(now, packet.last);
        if self.state == State::AdminDown {
            self.heard(arrived);
            self.apply_timing(now);
            return Err(Discard::AdminDown);
        }
        match self.state.after(packet.state) {
            // The other end was made anew and knows nothing of what it was told (section 6.8.7: other contents need not wait).
            same if same == self.state && is_renamed && same != State::Up => self.schedule.tell(now, same),
            same if same == self.state => {}
            State::Down => self.enter(now, State::Down, Diagnostic::NeighborSignaledDown, out),
            up => self.enter(now, up, self.diagnostic, out),
        }
        self.heard(arrived);
        self.apply_timing(now);
        if packet.poll {
            self.schedule.owe_final(now);
        }
        Ok(())
    }

    /// An echo packet came back (section 6.8.8).
    pub fn echo_received(&mut self, now: Instant, octets: &[u8]) -> Result<(), Discard> {
        if self.echo.received(now, octets, self.config.multiplier) { Ok(()) } else { Err(Discard::Echo) }
    }

    /// Whatever is due at `now`: silence first (the driver has read what waited), then packets.
    pub fn timeout(&mut self, now: Instant, out: &mut VecDeque<Output>) {
        if self.silence.forget_at.is_some_and(|at| at <= now) {
            self.silence.forget_at = None;
            self.authenticator.forget();
        }
        if self.silence.ends_at.is_some_and(|at| at <= now) {
            self.silence.ends_at = None;
            // Section 6.8.1: RemoteDiscr is forgotten after a Detection Time without a packet, in any state.
            // That it was taken down on purpose stays known: who said so need not repeat it for ever (section 6.8.16), and its
            // silence then is no failure (RFC 5882 section 3.2).
            let state = if self.remote.state == State::AdminDown { State::AdminDown } else { State::Down };
            self.remote = Remote { state, ..Remote::default() };
            self.timing.nothing_to_tell();
            if matches!(self.state, State::Init | State::Up) {
                let unaffiliated = self.config.unaffiliated;
                let why = if unaffiliated { Diagnostic::EchoFailed } else { Diagnostic::DetectionTimeExpired };
                self.enter(now, State::Down, why, out);
            }
            self.apply_timing(now);
        }
        if self.echo.is_silent(now) {
            self.enter(now, State::Down, Diagnostic::EchoFailed, out);
            self.apply_timing(now);
        }
    }

    /// Moves to `state` and tells: at once, unless that could be overtaken by what it contradicts.
    fn enter(&mut self, now: Instant, state: State, diagnostic: Diagnostic, out: &mut VecDeque<Output>) {
        if self.state == state {
            return;
        }
        let from = std::mem::replace(&mut self.state, state);
        self.since = now;
        self.diagnostic = diagnostic;
        self.schedule.tell(now, self.state);
        self.apply_timing(now);
        let remote_state = self.remote.state;
        out.push_back(Output::Changed(Change { session: self.id.clone(), from, to: state, diagnostic, remote_state }));
    }

    /// Brings bfd.DesiredMinTxInterval, bfd.RequiredMinRxInterval and what follows from them up to date.
    fn apply_timing(&mut self, now: Instant) {
        let up = self.state == State::Up;
        let echoes = self.echo_interval();
        self.echo.run(now, echoes, self.config.multiplier);
        let (desired, required) = Timing::wanted(&self.config, up, self.echo.is_active());
        // A neighbour that only sends our packets back has nothing to be asked.
        let known = self.remote.discriminator != 0 && !self.config.unaffiliated;
        self.timing.want(desired, required, up, known);
        let longest = self.transmit_interval();
        self.schedule.no_later_than(longest);
        if let Some(heard_at) = self.silence.heard_at {
            let detection = self.detection_time();
            let alive = self.remote.discriminator != 0 && !detection.is_zero();
            if !self.silence.prolonged {
                self.silence.ends_at = alive.then_some((heard_at + detection).max(now));
            }
            if alive && self.config.auth.is_some() {
                self.silence.forget_at = Some((heard_at + detection * 2).max(now));
            }
        }
    }

    /// A valid packet came: the silence begins anew.
    fn heard(&mut self, arrived: Instant) {
        self.silence.heard_at = self.silence.heard_at.max(Some(arrived));
        self.silence.prolonged = false;
    }

    /// The echo interval, if the echo function is active (section 6.8.9).
    fn echo_interval(&self) -> Option<Duration> {
        let wanted = self.config.echo?;
        let allowed = self.remote.min_echo_rx_us != 0 && self.id.interface.is_some() && !self.config.unaffiliated;
        (allowed && self.state == State::Up).then(|| wanted.max(interval(self.remote.min_echo_rx_us)))
    }

    /// The interval between our packets, before jitter (section 6.8.2).
    fn transmit_interval(&self) -> Duration {
        interval(self.timing.pace_us().max(self.remote.min_rx_us))
    }

    /// The interval between the other end's packets (section 6.8.4).
    fn receive_interval(&self) -> Duration {
        interval(self.timing.required_in_force_us().max(self.remote.min_tx_us))
    }

    fn detection_time(&self) -> Duration {
        self.receive_interval() * u32::from(self.remote.multiplier)
    }

    /// Whether the other end wants no periodic packets, and may have that wish (section 6.6).
    const fn remote_demand_active(&self) -> bool {
        self.remote.demand && matches!((self.state, self.remote.state), (State::Up, State::Up))
    }

    /// Which packets may leave (section 6.8.7).
    const fn permission(&self) -> Permission {
        if self.config.passive && self.remote.discriminator == 0 {
            Permission::Nothing
        } else if self.remote.min_rx_us == 0 || self.remote_demand_active() && !self.timing.polls() {
            Permission::Changes
        } else {
            Permission::Periodic
        }
    }

    /// Sends what is due: a periodic packet, one that tells a change, one that answers a poll.
    pub fn send_due(&mut self, now: Instant, out: &mut VecDeque<Output>) {
        while let Some(due) = self.schedule.due(now, self.permission()) {
            let packet = self.control(due.answers_poll);
            let transmit = if self.config.unaffiliated { Output::Echo } else { Output::Transmit };
            out.push_back(transmit(self.id.clone(), packet));
            let longest = self.transmit_interval();
            let jittered = match self.config.multiplier {
                0 | 1 => self.dice.shortened(longest, 10, 25),
                _ => self.dice.shortened(longest, 0, 25),
            };
            self.schedule.sent(now, self.state, due, longest, jittered);
        }
        while let Some(octets) = self.echo.due(now, &mut self.dice) {
            out.push_back(Output::Echo(self.id.clone(), octets));
        }
    }

    /// The packet that says what holds now (section 6.8.7).
    fn control(&mut self, answers_poll: bool) -> Vec<u8> {
        let poll = self.timing.polls() && !answers_poll;
        if poll {
            self.timing.polled();
        }
        let bare = Control {
            diagnostic: self.diagnostic,
            state: self.state,
            poll,
            last: answers_poll,
            independent: false,
            demand: false,
            multiplier: self.config.multiplier.try_into().unwrap_or(std::num::NonZeroU8::MIN),
            mine: self.discriminator,
            yours: self.remote.discriminator,
            desired_min_tx_us: self.timing.desired_us(),
            required_min_rx_us: self.timing.required_us(),
            required_min_echo_rx_us: if self.config.unaffiliated { 0 } else { Timing::echo_rx(&self.config) },
            auth: None,
        }
        .emit();
        let section = self.config.auth.as_ref().and_then(|auth| self.authenticator.sign(auth, &bare));
        section.map_or_else(|| bare.clone(), |section| with_section(&bare, &section))
    }
}
