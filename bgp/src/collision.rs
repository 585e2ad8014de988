//! Two connections with one neighbour, and which of them stays (RFC 4271 section 6.8).
//!
//! The RFC decides when an OPEN arrives while the other connection is in `OpenConfirm`. That leaves a window: a speaker that
//! answered the OPEN of the connection that loses may find that the neighbour is Established on it already, and then both
//! connections go. So an OPEN is *held*, for a moment, before it is answered:
//!
//! - on the connection that would lose, while the other one still waits for its OPEN: the neighbour cannot become
//!   Established on it without our KEEPALIVE;
//! - on the connection that would win, while the other one is in `OpenConfirm`: there the neighbour may be Established, and
//!   what it does next (a KEEPALIVE, or a Cease) says which one it chose.
//!
//! While one connection is in `OpenConfirm` we send no OPEN on another, for the same moment. After it the RFC's letter holds.

use std::time::Duration;

use crate::connection::Held;
use crate::fsm::Event as Fsm;
use crate::neighbor::{Cause, Env, INCOMING, Neighbor, OUTGOING, collision};
use crate::session::{Negotiated, negotiate, our_open};
use crate::wire::notification::Notification;
use crate::wire::open::Open;
use crate::{NeighborState as State, wire};

/// How long an OPEN waits for the one of the better connection: TCP may have to send that again, three times.
const FOR_OPEN: Duration = Duration::from_secs(3);
/// How long it waits for what the neighbour makes of the connection in `OpenConfirm`.
const FOR_CHOICE: Duration = Duration::from_secs(1);

/// What an OPEN does on a connection beside another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is answered.
    Goes,
    /// It is answered, the other connection is closed.
    Wins,
    /// Its own connection is closed.
    Loses,
    /// It is held so long.
    Waits(Duration),
}

/// `this` got an OPEN; `wins`: it was opened by the side with the higher identifier. Of the other connection: its state, and
/// whether it holds an OPEN.
const fn verdict(wins: bool, other: State, holds: bool) -> Verdict {
    match (other, wins, holds) {
        (State::Established, ..) | (State::OpenConfirm, false, _) | (_, false, true) => Verdict::Loses,
        (State::OpenConfirm, true, _) => Verdict::Waits(FOR_CHOICE),
        (_, true, true) => Verdict::Wins,
        (State::OpenSent, false, false) => Verdict::Waits(FOR_OPEN),
        (_, _, false) => Verdict::Goes,
    }
}

/// The same without patience: the letter of RFC 4271 section 6.8.
const fn letter(wins: bool, other: State) -> Verdict {
    match (other, wins) {
        (State::Established, _) | (State::OpenConfirm, false) => Verdict::Loses,
        (State::OpenConfirm, true) => Verdict::Wins,
        _ => Verdict::Goes,
    }
}

impl Neighbor {
    /// How long our OPEN waits on a connection that begins, if it does.
    pub fn delay(&self, slot: usize) -> Option<Duration> {
        let chosen = self.connections[1 - slot].state == State::OpenConfirm;
        self.config.delay_open.max(chosen.then_some(FOR_CHOICE))
    }

    /// An OPEN came: is it valid, and which of two connections stays?
    pub fn opened(&mut self, env: &mut Env<'_>, slot: usize, body: &[u8]) {
        self.judge(env, slot, body, false);
    }

    /// The other connection moved, or (`late`) time is up: an OPEN that was held is judged again.
    pub fn release(&mut self, env: &mut Env<'_>, slot: usize, late: bool) {
        let Some(held) = self.connections[slot].held.take() else {
            let begins = self.connections[slot].delay_open.is_some();
            if begins && self.delay(slot).is_none() {
                self.step(env, slot, Fsm::DelayOpenTimerExpires, Cause::None);
            }
            return;
        };
        let id = self.connections[slot].id;
        self.judge(env, slot, &held.open, late);
        match &mut self.connections[slot].held {
            Some(again) => *again = Held { open: held.open, ..held },
            None if held.keepalive && self.connections[slot].id == id => {
                self.step(env, slot, Fsm::KeepAliveMsg, Cause::None);
            }
            None => (),
        }
    }

    fn judge(&mut self, env: &mut Env<'_>, slot: usize, body: &[u8], late: bool) {
        let connection = &self.connections[slot];
        let delayed = connection.delay_open.is_some();
        if connection.state != State::OpenSent && !delayed {
            return self.step(env, slot, Fsm::BgpOpen, Cause::None);
        }
        let negotiated = match self.read(env, slot, body) {
            Ok(Some(negotiated)) => negotiated,
            Ok(None) => return,
            Err((notification, text)) => {
                return self.step(env, slot, Fsm::BgpOpenMsgErr, Cause::Send(notification, text));
            }
        };
        let other = 1 - slot;
        // RFC 6286 section 2.3: equal identifiers are told apart by the AS.
        let ours = (env.local.router_id, self.config.local_as);
        let winner = if ours > (negotiated.router_id, negotiated.remote_as) { OUTGOING } else { INCOMING };
        let beside = &self.connections[other];
        let verdict = if late {
            letter(slot == winner, beside.state)
        } else {
            verdict(slot == winner, beside.state, beside.held.is_some())
        };
        match verdict {
            Verdict::Goes => (),
            Verdict::Loses => return self.step(env, slot, Fsm::OpenCollisionDump, collision()),
            Verdict::Waits(time) => {
                let held = Held { open: body.to_vec(), keepalive: false, until: env.now + time };
                self.connections[slot].held = Some(held);
                return;
            }
            Verdict::Wins => self.step(env, other, Fsm::OpenCollisionDump, collision()),
        }
        // With the other connection our own OPEN may have been waiting: then it has left by now.
        let delayed = self.connections[slot].delay_open.is_some();
        self.connections[slot].framer.extended = negotiated.extended_message;
        self.connections[slot].negotiated = Some(negotiated);
        self.step(env, slot, if delayed { Fsm::BgpOpenDelayed } else { Fsm::BgpOpen }, Cause::None);
    }

    /// What an OPEN and ours agree on, or why not; nothing if the connection is gone.
    fn read(&self, env: &Env<'_>, slot: usize, body: &[u8]) -> Result<Option<Negotiated>, (Notification, String)> {
        let connection = &self.connections[slot];
        let Some(endpoints) = &connection.endpoints else { return Ok(None) };
        let ours = connection.sent.clone();
        let ours = ours.unwrap_or_else(|| our_open(&self.config, env.local, endpoints, env.restarted, self.plain));
        let theirs = Open::parse(body).map_err(|error: wire::open::OpenError| {
            let (code, subcode) = error.notification();
            (Notification { code, subcode, data: error.data() }, error.to_string())
        })?;
        negotiate(&self.config, env.local, &ours, &theirs).map(Some)
    }
}
