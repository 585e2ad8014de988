//! One packet of a queue: the tables, the fragments and the answers put together. Pure but for the lock of the fragments.

use std::sync::{Mutex, PoisonError};

use martlet_clock::Instant;

use crate::counters::Reason;
use crate::engine::{Choice, FragmentMode, Tables};
use crate::fragment::{Fate, Fragments, Held, Key, Later};
use crate::icmp::{Cause, answer};
use crate::packet::{Packet, parse};

/// A packet as a queue hands it over.
#[derive(Clone, Copy, Debug)]
pub struct Queued<'a> {
    /// The queue.
    pub queue: u16,
    /// Its number there.
    pub id: u32,
    /// Its first octets.
    pub octets: &'a [u8],
    /// It is made of segments: its length is not what a link will see.
    pub gso: bool,
}

/// What is to be done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on with the mark of the choice. Its octets (0: unknown).
    Forward(Choice, u32),
    /// It is dropped.
    Drop(Reason),
    /// It waits.
    Hold,
}

/// A verdict and what comes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// On the packet itself.
    pub verdict: Verdict,
    /// On packets that waited for it.
    pub released: Vec<(Held, Verdict)>,
    /// A packet to send in place of an endpoint.
    pub answer: Option<Vec<u8>>,
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        Self { verdict, released: Vec::new(), answer: None }
    }
}

/// The verdict on a packet. `now` is asked for fragments only.
pub fn verdict(
    tables: &Tables,
    fragments: &Mutex<Fragments>,
    now: impl FnOnce() -> Instant,
    queued: Queued<'_>,
) -> Outcome {
    let packet = match parse(queued.octets) {
        Ok(packet) => packet,
        Err(malformed) => return Verdict::Drop(malformed.into()).into(),
    };
    let Some(fragment) = packet.fragment.filter(|_| tables.policy().fragments == FragmentMode::Table) else {
        return judged(tables, &packet, queued, tables.fate(&packet));
    };
    let key = Key::new(&packet, fragment);
    let lock = || fragments.lock().unwrap_or_else(PoisonError::into_inner);
    if fragment.offset > 0 {
        let held = Held { queue: queued.queue, id: queued.id, length: packet.length };
        return match lock().later(now(), key, held) {
            Later::Follow(fate) => forward(fate, packet.length).into(),
            Later::Hold => Verdict::Hold.into(),
        };
    }
    let fate = tables.fate(&packet);
    let released = lock().first(now(), key, fate);
    let released = released.into_iter().map(|held| (held, forward(fate, held.length))).collect();
    Outcome { released, ..judged(tables, &packet, queued, fate) }
}

/// The verdict on a later fragment: it has no port to be translated.
fn forward(fate: Fate, length: u32) -> Verdict {
    match fate {
        Ok(choice) => Verdict::Forward(Choice { target_port: None, ..choice }, length),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// A fate with what we have to say about it.
fn judged(tables: &Tables, packet: &Packet<'_>, queued: Queued<'_>, fate: Fate) -> Outcome {
    let answered = |reason, cause| {
        let answer = answer(queued.octets, packet, cause);
        Outcome { answer, ..Verdict::Drop(reason).into() }
    };
    match fate {
        Ok(choice) => {
            let mtu = tables.mtu(choice.mark);
            // An IPv6 packet that the kernel put together is longer than its fragments were: the kernel cuts it again.
            let is_whole = tables.policy().fragments == FragmentMode::Kernel && packet.source.is_ipv6();
            let is_too_big = packet.dont_fragment && !queued.gso && !is_whole && packet.length > mtu;
            if is_too_big {
                let outcome = answered(Reason::TooBig, Cause::TooBig(mtu));
                if outcome.answer.is_some() {
                    return outcome;
                }
            }
            Verdict::Forward(choice, packet.length).into()
        }
        Err(reason @ (Reason::NoRoute | Reason::NoEndpoint)) if tables.policy().reject => {
            answered(reason, Cause::Rejected)
        }
        Err(reason) => Verdict::Drop(reason).into(),
    }
}

#[cfg(test)]
mod tests;
