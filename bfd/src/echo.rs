//! The Echo function (RFC 5880 sections 6.4, 6.8.5, 6.8.8 and 6.8.9): packets to ourselves by way of the other end.
//!
//! What they hold is our own affair: our discriminator, a number, and a tag that nobody can make who has not seen our
//! secret, so that a forged echo does not hide a broken path. How they travel the driver knows.

use std::num::NonZeroU32;
use std::time::Duration;

use martlet_clock::{Dice, Instant};
use nom::bytes::complete::take;
use nom::combinator::all_consuming;
use nom::number::complete::be_u32;
use nom::{IResult, Parser};
use sha1::{Digest, Sha1};

use crate::auth::same;

/// Octets of the tag.
const TAG: usize = 8;
/// A packet older than this many intervals does not count as an echo.
const OLDEST: u32 = 255;

/// The Echo function of one session.
#[derive(Clone, Debug)]
pub(crate) struct Echo {
    discriminator: NonZeroU32,
    secret: u64,
    sequence: u32,
    running: Option<Running>,
}

#[derive(Clone, Debug)]
struct Running {
    interval: Duration,
    next_at: Instant,
    ends_at: Instant,
    prolonged: bool,
}

impl Echo {
    /// At rest.
    pub const fn new(discriminator: NonZeroU32, secret: u64) -> Self {
        Self { discriminator, secret, sequence: 0, running: None }
    }

    /// The discriminator in an echo packet of ours, if it looks like one.
    pub fn discriminator(octets: &[u8]) -> Option<u32> {
        parse(octets).ok().map(|(_, (discriminator, ..))| discriminator)
    }

    /// Whether echo packets are sent.
    pub const fn is_active(&self) -> bool {
        self.running.is_some()
    }

    /// Runs at `interval`, or not at all.
    pub fn run(&mut self, now: Instant, interval: Option<Duration>, multiplier: u8) {
        match (interval, &mut self.running) {
            (None, running) => *running = None,
            (Some(interval), Some(running)) => running.interval = interval,
            (Some(interval), running @ None) => {
                let ends_at = now + interval * u32::from(multiplier.max(1));
                *running = Some(Running { interval, next_at: now, ends_at, prolonged: false });
            }
        }
    }

    /// What waits.
    pub fn deadline(&self) -> Option<Instant> {
        self.running.as_ref().map(|running| running.next_at.min(running.ends_at))
    }

    /// Whether no echo came back for a Detection Time.
    pub fn is_silent(&self, now: Instant) -> bool {
        self.running.as_ref().is_some_and(|running| running.ends_at <= now)
    }

    /// The driver slept: once a silence, one interval more is given.
    pub fn stalled(&mut self, now: Instant, gap: Duration) {
        if let Some(running) = self.running.as_mut().filter(|running| running.ends_at <= now && !running.prolonged) {
            running.ends_at = now + running.interval.min(gap);
            running.prolonged = true;
        }
    }

    /// The packet that is due, if one is.
    pub fn due(&mut self, now: Instant, dice: &mut Dice) -> Option<Vec<u8>> {
        let running = self.running.as_mut().filter(|running| running.next_at <= now)?;
        running.next_at = now + dice.shortened(running.interval, 0, 25);
        self.sequence = self.sequence.wrapping_add(1);
        let mut octets = self.discriminator.get().to_be_bytes().to_vec();
        octets.extend(self.sequence.to_be_bytes());
        octets.extend(self.tag(self.sequence));
        Some(octets)
    }

    /// A packet came back; whether it was an echo of ours.
    pub fn received(&mut self, now: Instant, octets: &[u8], multiplier: u8) -> bool {
        let Ok((_, (discriminator, sequence, tag))) = parse(octets) else { return false };
        let young = self.sequence.wrapping_sub(sequence) < OLDEST;
        let ours = discriminator == self.discriminator.get() && young && same(tag, &self.tag(sequence));
        if let Some(running) = self.running.as_mut().filter(|_| ours) {
            running.ends_at = now + running.interval * u32::from(multiplier.max(1));
            running.prolonged = false;
        }
        ours && self.running.is_some()
    }

    fn tag(&self, sequence: u32) -> Vec<u8> {
        let digest = Sha1::new()
            .chain_update(self.secret.to_be_bytes())
            .chain_update(self.discriminator.get().to_be_bytes())
            .chain_update(sequence.to_be_bytes())
            .finalize();
        digest.iter().copied().take(TAG).collect()
    }
}

fn parse(octets: &[u8]) -> IResult<&[u8], (u32, u32, &[u8])> {
    all_consuming((be_u32, be_u32, take(TAG))).parse(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn silence_of_a_detection_time_is_noticed_and_an_echo_ends_it() {
        let mut dice = Dice::new(1);
        let mut echo = Echo::new(NonZeroU32::MIN, 7);
        echo.run(at(0), Some(Duration::from_millis(50)), 3);
        let packet = echo.due(at(0), &mut dice).unwrap();
        assert!(!echo.is_silent(at(149)) && echo.is_silent(at(150)));
        assert!(echo.received(at(100), &packet, 3));
        assert!(!echo.is_silent(at(249)) && echo.is_silent(at(250)));
    }

    #[test]
    fn an_echo_of_long_ago_counts_for_nothing() {
        let mut dice = Dice::new(1);
        let mut echo = Echo::new(NonZeroU32::MIN, 7);
        echo.run(at(0), Some(Duration::from_millis(50)), 3);
        let packets: Vec<_> = (0..300).filter_map(|turn| echo.due(at(turn * 50), &mut dice)).collect();
        assert!(!echo.received(at(15_000), &packets[packets.len() - 256], 3));
        assert!(echo.received(at(15_000), &packets[packets.len() - 255], 3));
    }

    #[test]
    fn a_forged_echo_counts_for_nothing() {
        let mut echo = Echo::new(NonZeroU32::MIN, 7);
        echo.run(at(0), Some(Duration::from_millis(50)), 3);
        let mut packet = echo.due(at(0), &mut Dice::new(1)).unwrap();
        let last = packet.len() - 1;
        packet[last] ^= 1;
        assert!(!echo.received(at(1), &packet, 3));
        assert!(!echo.received(at(1), &[], 3));
    }
}
