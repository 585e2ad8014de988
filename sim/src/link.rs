//! The network: paths between pods and gateways, and TCP connections as pairs of ordered byte streams.
//!
//! Pure state: what a path does to what is sent now, and what waits in a stream. When things arrive is `world`'s business.
//! A lost segment is a late one; a cut stalls a stream, it never breaks it; who is gone answers with a reset, or not at all.

use std::collections::VecDeque;
use std::net::SocketAddr;

use martlet_clock::Dice;

/// Octets that may be under way in one direction of a stream before the sender has to wait.
pub const WINDOW: usize = 16 * 1024;
/// ..towards one that does not read.
pub const SMALL_WINDOW: usize = 1024;

/// Who.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// A load balancer pod.
    Pod(usize),
    /// A gateway.
    Gateway(usize),
}

/// One direction of the path between a pod and a gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// Microseconds more than usual.
    pub delay_us: u64,
    /// Microseconds of jitter.
    pub jitter_us: u64,
    /// Percent that is lost.
    pub loss: u64,
    /// Percent that comes twice.
    pub duplicate: u64,
    /// Percent that is held back until others have passed.
    pub reorder: u64,
    /// Nothing passes: it is lost.
    pub cut: bool,
    /// Nothing passes: it waits.
    pub clog: bool,
}

impl Path {
    /// How long something takes, nanoseconds.
    pub fn travel(&self, dice: &mut Dice) -> u64 {
        (40 + self.delay_us + dice.below(20 + self.jitter_us)) * 1000
    }

    /// Whether a datagram is lost.
    pub const fn loses(&self, dice: &mut Dice) -> bool {
        self.cut || (self.loss > 0 && dice.chance(self.loss, 100))
    }
}

/// What travels in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Octets.
    Data(Vec<u8>),
    /// The sender has closed in order.
    Fin,
    /// The sender is gone.
    Reset,
}

/// One end of a stream.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Whose.
    pub node: Node,
    /// Of which life of that process.
    pub epoch: u64,
    /// What the process calls it: a connection id, or the stream's number at the naive peer. `None`: not accepted yet.
    pub id: Option<u64>,
    /// Its address.
    pub address: SocketAddr,
    /// The process holds it.
    pub open: bool,
}

/// One direction.
#[derive(Clone, Debug, Default)]
pub struct Direction {
    /// What is under way, with the time of its arrival.
    pub queue: VecDeque<(u64, Segment)>,
    /// Octets under way.
    pub octets: usize,
    /// Nothing arrives earlier than what was sent before.
    pub last: u64,
}

/// A TCP connection.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Who connected, who accepted.
    pub ends: [End; 2],
    /// From the first to the second, and back.
    pub directions: [Direction; 2],
    /// One end signs its segments, the other does not: each drops what the other says.
    pub muted: bool,
}

impl Stream {
    /// Whether nobody holds it any more.
    pub const fn is_over(&self) -> bool {
        !self.ends[0].open && !self.ends[1].open
    }

    /// How many octets `side` may send now into a window of this size.
    pub fn room(&self, side: usize, window: usize) -> usize {
        window.saturating_sub(self.directions[side].octets)
    }

    /// Puts `segment` on its way; when it arrives.
    pub fn send(&mut self, side: usize, now: u64, path: &Path, dice: &mut Dice, segment: Segment) -> u64 {
        let direction = &mut self.directions[side];
        let mut at = now + path.travel(dice);
        while path.loss > 0 && dice.chance(path.loss, 100) {
            // Sent again after the least retransmission time.
            at += 200_000_000;
        }
        at = at.max(direction.last);
        direction.last = at;
        if let Segment::Data(octets) = &segment {
            direction.octets += octets.len();
        }
        direction.queue.push_back((at, segment));
        at
    }
}
