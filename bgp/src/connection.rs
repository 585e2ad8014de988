//! One TCP connection, or the want of one: its state, its deadlines, its octets.
//!
//! What happens in which state is in `fsm`; who does it, with the neighbour's configuration at hand, is `neighbor`.

use std::time::Duration;

use martlet_clock::Instant;

use crate::framer::Framer;
use crate::session::Negotiated;
use crate::wire::open::Open;
use crate::{ConnectionId, Endpoints, NeighborState as State};

/// RFC 4271 section 8.2.2 suggests four minutes until an OPEN must have come.
pub const LARGE_HOLD: Duration = Duration::from_mins(4);
/// RFC 9687: at least eight minutes, and twice the hold time.
const SEND_HOLD: Duration = Duration::from_mins(8);

/// A connection.
#[derive(Debug, Default)]
pub struct Connection {
    /// Where it is in the state machine.
    pub state: State,
    /// Its name, once one was asked for or accepted.
    pub id: Option<ConnectionId>,
    /// Its ends, once it exists.
    pub endpoints: Option<Endpoints>,
    /// What is held of a cut message.
    pub framer: Framer,
    /// Messages that wait before any UPDATE: small, few.
    pub outbox: Vec<u8>,
    /// The OPEN that we sent.
    pub sent: Option<Open>,
    /// What both agreed on.
    pub negotiated: Option<Negotiated>,
    /// `ConnectRetryTimer`.
    pub retry: Option<Instant>,
    /// `HoldTimer`.
    pub hold: Option<Instant>,
    /// `KeepaliveTimer`.
    pub keepalive: Option<Instant>,
    /// `DelayOpenTimer`.
    pub delay_open: Option<Instant>,
    /// Its OPEN, while the other connection decides (see `collision`).
    pub held: Option<Held>,
    /// Since when the driver was told that something waits, or last took some of it.
    pub waiting: Option<Instant>,
}

/// A valid OPEN that is not answered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The body of the message.
    pub open: Vec<u8>,
    /// Whether a KEEPALIVE followed it.
    pub keepalive: bool,
    /// Then it is answered, whatever the other connection does.
    pub until: Instant,
}

impl Connection {
    /// The negotiated hold time; zero: none.
    pub fn hold_time(&self) -> Duration {
        self.negotiated.as_ref().map_or(Duration::ZERO, |one| Duration::from_secs(one.hold_time_s.into()))
    }

    /// When the neighbour has read nothing for too long (RFC 9687), if it is made to wait.
    pub fn send_hold(&self) -> Option<Instant> {
        let hold = self.hold_time();
        let since = self.waiting.filter(|_| self.state == State::Established && !hold.is_zero())?;
        Some(since + SEND_HOLD.max(hold * 2))
    }

    /// The first of all deadlines.
    pub fn deadline(&self) -> Option<Instant> {
        let waits = self.held.as_ref().map_or(self.delay_open, |held| Some(held.until));
        [self.retry, self.hold, self.keepalive, waits, self.send_hold()].into_iter().flatten().min()
    }

    /// Whether both ends talk, or could.
    pub fn is_up(&self) -> bool {
        self.endpoints.is_some()
    }
}
