//! How a router ends: withdraw, forward on for the drain time, say goodbye, take the learned routes along.
//!
//! Rules and blackholes stay for whoever comes next: without a router no packet of a VIP leaves by the main table.

use std::time::Duration;

use martlet_bgp::Input as BgpInput;
use martlet_clock::Instant;

use super::{Event, Output, Router};

/// What the neighbours are told at the end (RFC 9003).
const GOODBYE: &str = "shutdown";
/// How long the goodbye may take.
const GOODBYE_TIME: Duration = Duration::from_secs(2);

/// Where in its life a router is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It announces what may be announced.
    Running,
    /// It still announces, marked with `GRACEFUL_SHUTDOWN` (RFC 8326), so that traffic may move first; until then.
    Leaving(Instant),
    /// It has withdrawn its VIPs and forwards on until then.
    Draining(Instant),
    /// It has said goodbye and waits for the kernel, until then at most.
    Ending(Instant),
    /// It is through.
    Stopped,
}

impl Life {
    /// Whether VIPs may be announced.
    pub(super) const fn announces(self) -> bool {
        matches!(self, Self::Running | Self::Leaving(_))
    }

    pub(super) const fn deadline(self) -> Option<Instant> {
        match self {
            Self::Leaving(until) | Self::Draining(until) | Self::Ending(until) => Some(until),
            Self::Running | Self::Stopped => None,
        }
    }

    /// Whether learned routes are in the plan.
    pub(super) const fn has_routes(self) -> bool {
        matches!(self, Self::Running | Self::Leaving(_) | Self::Draining(_))
    }
}

impl Router {
    /// The process is to end. Asked a second time, it does not wait any more.
    pub(super) fn on_stop(&mut self, now: Instant) {
        match self.life {
            Life::Running if self.connectivity.ipv4 || self.connectivity.ipv6 => {
                if self.config.leave.is_zero() || self.announced.is_empty() {
                    self.drain(now);
                } else {
                    self.leave(now);
                }
            }
            // Nobody sends us anything, or somebody is impatient.
            Life::Running | Life::Leaving(_) | Life::Draining(_) => self.say_goodbye(now),
            Life::Ending(_) | Life::Stopped => {}
        }
    }

    pub(super) fn on_life_timeout(&mut self, now: Instant) {
        match self.life {
            Life::Leaving(until) if until <= now => self.drain(now),
            Life::Draining(until) if until <= now => self.say_goodbye(now),
            Life::Ending(until) if until <= now => self.stop(),
            _ => {}
        }
    }

    /// Every announcement is told again with `GRACEFUL_SHUTDOWN`: a neighbour that honours it prefers any other way.
    fn leave(&mut self, now: Instant) {
        self.life = Life::Leaving(now + self.config.leave);
        self.tell(Event::Leaving(self.config.leave));
        let Some(intent) = &self.intent else { return };
        let leaving = intent.neighbors.iter().map(|(id, neighbor)| {
            let mut config = neighbor.config.clone();
            config.export.graceful_shutdown = true;
            (id.clone(), config)
        });
        self.speaker.handle(now, BgpInput::SetNeighbors(&leaving.collect()));
    }

    fn drain(&mut self, now: Instant) {
        self.life = Life::Draining(now + self.config.drain);
        self.tell(Event::Draining(self.config.drain));
        self.reconsider = true;
    }

    fn say_goodbye(&mut self, now: Instant) {
        self.life = Life::Ending(now + GOODBYE_TIME);
        self.tell(Event::Stopping);
        self.speaker.handle(now, BgpInput::Stop(GOODBYE));
        self.replan();
        self.reconsider = true;
    }

    /// The end has come once every connection is closed and the kernel holds nothing learned.
    pub(super) fn end_if_done(&mut self, _now: Instant) {
        let kernel = !self.configured || self.mirror.is_clean();
        let planned = self.routes.prefixes.is_empty() && !self.routes.changed;
        if matches!(self.life, Life::Ending(_)) && self.connections.is_empty() && kernel && planned {
            self.stop();
        }
    }

    fn stop(&mut self) {
        self.life = Life::Stopped;
        self.outputs.push_back(Output::Stopped);
    }
}
