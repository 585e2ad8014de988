//! When the control packets of one session leave: RFC 5880 sections 6.8.3 and 6.8.7.
//!
//! Periodic packets do not drift: the next is due an interval after the last was *due*, unless the driver came very late.
//! Besides them a packet leaves when its contents change, and one that answers a poll.
//!
//! A network may reorder packets. An old one that says Down, overtaken by a newer one that says Init or Up, would take the
//! other end down again just after it came up. So what says Init or Up for the first time leaves no sooner than
//! [`REORDERING`] after what said Down. Bad news never waits. (The rate of answers to polls may be limited, section 6.8.7.)

use std::time::Duration;

use martlet_clock::Instant;

use crate::State;

/// How long a packet may be overtaken by later ones without taking a session down.
pub(crate) const REORDERING: Duration = Duration::from_millis(100);

/// Which packets may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permission {
    /// None: we are passive, and nobody was heard.
    Nothing,
    /// Those that tell a change or answer a poll.
    Changes,
    /// All.
    Periodic,
}

/// A packet that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// Whether it answers a poll.
    pub answers_poll: bool,
    /// Whether it is the periodic one.
    periodic: bool,
}

/// When packets leave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Schedule {
    /// The next periodic packet.
    periodic_at: Instant,
    /// A change is to be told.
    change_at: Option<Instant>,
    /// A poll is to be answered.
    final_at: Option<Instant>,
    /// Nothing leaves before.
    not_before: Instant,
    /// What was sent last, and when.
    last: Option<(Instant, State)>,
}

impl Schedule {
    /// A change that is to be told at once: the state is `state` now.
    pub fn tell(&mut self, now: Instant, state: State) {
        self.change_at = Some(now);
        self.not_before = match (state, self.last) {
            (State::Init | State::Up, Some((at, State::Down | State::AdminDown))) => at + REORDERING,
            _ => now,
        };
    }

    /// Whether no answer to what was said last can be under way any more, nor anything wait to be said.
    pub fn is_unanswered(&self, now: Instant) -> bool {
        self.change_at.is_none() && self.last.is_some_and(|(at, _)| now >= at + 2 * REORDERING)
    }

    /// A poll came.
    pub const fn owe_final(&mut self, now: Instant) {
        self.final_at = Some(now);
    }

    /// No more than `longest` between the last packet and the next.
    pub fn no_later_than(&mut self, longest: Duration) {
        if let Some((at, _)) = self.last {
            self.periodic_at = self.periodic_at.min(at + longest);
        }
    }

    /// When the next packet leaves.
    pub fn deadline(&self, permission: Permission) -> Option<Instant> {
        let change_at = self.change_at.filter(|_| permission != Permission::Nothing);
        let periodic_at = (permission == Permission::Periodic).then_some(self.periodic_at);
        let earliest = [self.final_at, change_at, periodic_at].into_iter().flatten().min()?;
        Some(earliest.max(self.not_before))
    }

    /// What is due at `now`, if anything.
    pub fn due(&self, now: Instant, permission: Permission) -> Option<Due> {
        if self.deadline(permission)? > now {
            return None;
        }
        let answers_poll = self.final_at.is_some();
        let periodic = !answers_poll && permission == Permission::Periodic && self.periodic_at <= now;
        Some(Due { answers_poll, periodic })
    }

    /// What was due was sent, and said `state`. The next periodic packet follows after `jittered`, which is at most `longest`.
    pub fn sent(&mut self, now: Instant, state: State, due: Due, longest: Duration, jittered: Duration) {
        self.last = Some((now, state));
        self.change_at = None;
        self.not_before = now;
        if due.answers_poll {
            self.final_at = None;
            return;
        }
        let on_time = due.periodic && now.since(self.periodic_at) < longest / 4;
        self.periodic_at = if on_time { self.periodic_at } else { now } + jittered;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(50);

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn send(schedule: &mut Schedule, now: Instant, state: State) {
        let due = schedule.due(now, Permission::Periodic).unwrap();
        schedule.sent(now, state, due, INTERVAL, INTERVAL);
    }

    #[test]
    fn periodic_packets_do_not_drift_though_the_driver_is_a_little_late() {
        let mut schedule = Schedule::default();
        send(&mut schedule, at(0), State::Up);
        for late in [53, 108, 150, 212] {
            send(&mut schedule, at(late), State::Up);
        }
        assert_eq!(schedule.deadline(Permission::Periodic), Some(at(250)));
        send(&mut schedule, at(400), State::Up);
        assert_eq!(schedule.deadline(Permission::Periodic), Some(at(450)), "a very late one begins anew");
    }

    #[test]
    fn good_news_leaves_no_sooner_than_a_packet_may_be_overtaken() {
        for bad in [State::Down, State::AdminDown] {
            let mut schedule = Schedule::default();
            send(&mut schedule, at(0), bad);
            schedule.tell(at(20), State::Init);
            schedule.owe_final(at(20));
            assert_eq!(schedule.deadline(Permission::Periodic), Some(at(100)));
            send(&mut schedule, at(100), State::Init);
            schedule.tell(at(110), State::Up);
            assert_eq!(schedule.deadline(Permission::Periodic), Some(at(110)));
        }
    }

    #[test]
    fn bad_news_leaves_at_once() {
        let mut schedule = Schedule::default();
        send(&mut schedule, at(0), State::Up);
        schedule.tell(at(1), State::Down);
        assert_eq!(schedule.deadline(Permission::Changes), Some(at(1)));
    }

    #[test]
    fn a_shorter_interval_counts_from_the_last_packet() {
        let mut schedule = Schedule::default();
        send(&mut schedule, at(0), State::Up);
        schedule.no_later_than(Duration::from_millis(10));
        assert_eq!(schedule.deadline(Permission::Periodic), Some(at(10)));
        schedule.no_later_than(Duration::from_secs(1));
        assert_eq!(schedule.deadline(Permission::Periodic), Some(at(10)));
    }

    #[test]
    fn who_may_not_send_periodically_still_tells_changes_and_answers_polls() {
        let mut schedule = Schedule::default();
        send(&mut schedule, at(0), State::Up);
        assert_eq!(schedule.deadline(Permission::Changes), None);
        schedule.tell(at(5), State::Down);
        assert_eq!(schedule.deadline(Permission::Nothing), None);
        schedule.owe_final(at(6));
        assert_eq!(schedule.deadline(Permission::Nothing), Some(at(6)));
        assert!(schedule.due(at(6), Permission::Changes).unwrap().answers_poll);
    }
}
