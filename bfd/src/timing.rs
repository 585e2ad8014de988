//! Which intervals a session tells and which it goes by: RFC 5880 sections 6.5 (the Poll Sequence) and 6.8.3.
//!
//! Intervals are microseconds here, as on the wire. This file knows no clock but for the pause between two Poll Sequences.

use std::time::Duration;

use martlet_clock::Instant;

use crate::SessionConfig;
use crate::schedule::REORDERING;

/// The least bfd.DesiredMinTxInterval of a session that is not Up, and the least bfd.RequiredMinRxInterval of one that
/// echoes: one second.
pub(crate) const SLOW_US: u32 = 1_000_000;
/// The least interval that can be configured: one millisecond.
const LEAST_US: u32 = 1_000;

/// An interval on the wire as a duration.
pub(crate) fn interval(micros: u32) -> Duration {
    Duration::from_micros(u64::from(micros))
}

/// A configured interval as it goes onto the wire.
fn micros(interval: Duration) -> u32 {
    u32::try_from(interval.as_micros()).unwrap_or(u32::MAX).max(LEAST_US)
}

/// Where the Poll Sequence is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Poll {
    /// None runs.
    #[default]
    Idle,
    /// It is to begin: no packet with the P bit has left, so that no F bit can be its answer.
    Due,
    /// Packets carry the P bit until one with the F bit comes.
    Running,
    /// One has ended. The next may begin after a packet without the F bit (section 6.8.3), and not so soon that a
    /// duplicate of the old answer could end it.
    Resting(Instant),
}

/// The intervals of one session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timing {
    /// bfd.DesiredMinTxInterval: what we tell.
    desired_us: u32,
    /// bfd.RequiredMinRxInterval: what we tell.
    required_us: u32,
    /// The Desired Min TX Interval that we send by: not increased before the other end is known to know.
    pace_us: u32,
    /// The Required Min RX Interval that the Detection Time is computed from: not reduced before that either.
    in_force_us: u32,
    /// What we want to tell after the running Poll Sequence.
    wanted: Option<(u32, u32)>,
    poll: Poll,
}

impl Timing {
    /// What `config` asks for: Desired Min TX and Required Min RX Interval.
    pub fn wanted(config: &SessionConfig, up: bool, echoes: bool) -> (u32, u32) {
        let (min_tx, min_rx) = match config.echo {
            // RFC 9747: there is nobody else whose wishes count.
            Some(echo) if config.unaffiliated => (micros(echo), micros(echo)),
            _ => (micros(config.min_tx), micros(config.min_rx)),
        };
        let desired = if up { min_tx } else { min_tx.max(SLOW_US) };
        let required = if echoes { min_rx.max(SLOW_US) } else { min_rx };
        (desired, required)
    }

    /// The Required Min Echo RX Interval that we tell: 0 if our kernel does not send echo packets back.
    pub fn echo_rx(config: &SessionConfig) -> u32 {
        config.echo_rx.map_or(0, micros)
    }

    pub const fn desired_us(&self) -> u32 {
        self.desired_us
    }

    pub const fn required_us(&self) -> u32 {
        self.required_us
    }

    pub const fn pace_us(&self) -> u32 {
        self.pace_us
    }

    pub const fn required_in_force_us(&self) -> u32 {
        self.in_force_us
    }

    /// Whether packets carry the P bit.
    pub const fn polls(&self) -> bool {
        matches!(self.poll, Poll::Due | Poll::Running)
    }

    /// A packet with the P bit leaves.
    pub const fn polled(&mut self) {
        if matches!(self.poll, Poll::Due) {
            self.poll = Poll::Running;
        }
    }

    /// Starts a Poll Sequence; one that runs asks again.
    pub const fn start_poll(&mut self) {
        self.poll = Poll::Due;
    }

    /// The other end is unknown: there is nobody to poll, all that we tell holds at once.
    pub const fn nothing_to_tell(&mut self) {
        self.poll = Poll::Idle;
        self.pace_us = self.desired_us;
        self.in_force_us = self.required_us;
    }

    /// Wants to tell these intervals. `up`: the session is; `known`: the other end's discriminator is known.
    pub fn want(&mut self, desired_us: u32, required_us: u32, up: bool, known: bool) {
        if (desired_us, required_us) == (self.desired_us, self.required_us) {
            self.wanted = None;
            return;
        }
        // Section 6.8.3: changes must not be spread over the packets of one Poll Sequence. A session that is not Up goes
        // slow without asking: nothing is lost there if a Final is misunderstood.
        if up && known && self.poll != Poll::Idle {
            self.wanted = Some((desired_us, required_us));
            return;
        }
        self.tell(desired_us, required_us, up, known);
    }

    fn tell(&mut self, desired_us: u32, required_us: u32, up: bool, known: bool) {
        self.wanted = None;
        (self.desired_us, self.required_us) = (desired_us, required_us);
        self.poll = if known { Poll::Due } else { Poll::Idle };
        self.pace_us = if up && known { self.pace_us.min(desired_us) } else { desired_us };
        self.in_force_us = if up && known { self.in_force_us.max(required_us) } else { required_us };
    }

    /// A packet came, with or without the F bit.
    pub fn heard(&mut self, now: Instant, last: bool) {
        match (self.poll, last) {
            (Poll::Running, true) => {
                self.poll = Poll::Resting(now + REORDERING);
                self.pace_us = self.desired_us;
                self.in_force_us = self.required_us;
            }
            (Poll::Resting(until), false) if until <= now => {
                self.poll = Poll::Idle;
                if let Some((desired_us, required_us)) = self.wanted.take() {
                    self.tell(desired_us, required_us, true, true);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    /// A session that is Up at 50 ms both ways, no Poll Sequence running.
    fn settled() -> Timing {
        let mut timing = Timing::default();
        timing.want(50_000, 50_000, true, true);
        timing.polled();
        timing.heard(at(0), true);
        timing.heard(at(1000), false);
        assert!(!timing.polls());
        timing
    }

    #[test]
    fn a_slower_pace_waits_for_the_final_and_a_faster_one_does_not() {
        let mut timing = settled();
        timing.want(300_000, 50_000, true, true);
        assert_eq!((timing.polls(), timing.desired_us(), timing.pace_us()), (true, 300_000, 50_000));
        timing.polled();
        timing.heard(at(1010), false);
        assert_eq!(timing.pace_us(), 50_000);
        timing.heard(at(1020), true);
        assert_eq!((timing.polls(), timing.pace_us()), (false, 300_000));
        timing.heard(at(1200), false);
        timing.want(10_000, 50_000, true, true);
        assert_eq!((timing.polls(), timing.pace_us()), (true, 10_000));
    }

    #[test]
    fn a_shorter_detection_waits_for_the_final_and_a_longer_one_does_not() {
        let mut timing = settled();
        timing.want(50_000, 10_000, true, true);
        timing.polled();
        assert_eq!((timing.required_us(), timing.required_in_force_us()), (10_000, 50_000));
        timing.heard(at(1020), true);
        assert_eq!(timing.required_in_force_us(), 10_000);
        timing.heard(at(1200), false);
        timing.want(50_000, 300_000, true, true);
        assert_eq!(timing.required_in_force_us(), 300_000);
    }

    #[test]
    fn a_second_change_waits_until_the_first_poll_has_ended_beyond_doubt() {
        let mut timing = settled();
        timing.want(300_000, 50_000, true, true);
        timing.polled();
        timing.want(900_000, 50_000, true, true);
        assert_eq!(timing.desired_us(), 300_000);
        timing.heard(at(1020), true);
        timing.heard(at(1030), false);
        timing.heard(at(1040), true);
        timing.heard(at(1130), true);
        assert_eq!((timing.polls(), timing.desired_us()), (false, 300_000));
        timing.heard(at(1140), false);
        assert_eq!((timing.polls(), timing.desired_us(), timing.pace_us()), (true, 900_000, 300_000));
    }

    #[test]
    fn a_change_that_is_taken_back_in_time_is_never_told() {
        let mut timing = settled();
        timing.want(300_000, 50_000, true, true);
        timing.polled();
        timing.want(900_000, 50_000, true, true);
        timing.want(300_000, 50_000, true, true);
        timing.heard(at(1020), true);
        timing.heard(at(2000), false);
        assert_eq!((timing.polls(), timing.desired_us()), (false, 300_000));
    }

    #[test]
    fn an_answer_that_comes_before_the_question_was_sent_is_none() {
        let mut timing = settled();
        timing.want(300_000, 50_000, true, true);
        timing.heard(at(1010), true);
        assert_eq!((timing.polls(), timing.pace_us()), (true, 50_000), "the change has not been told yet");
        timing.polled();
        timing.heard(at(1020), true);
        assert_eq!((timing.polls(), timing.pace_us()), (false, 300_000));
    }
}
