//! The story of a run: the product's own event texts with the simulated time, and what went over the wires.

use std::net::{IpAddr, SocketAddr};

use martlet_clock::Instant;

use crate::link::Segment;
use crate::pcap::Capture;

/// What is kept of a run.
#[derive(Debug, Default)]
pub struct Log {
    /// The lines, if they are kept.
    pub lines: Option<Vec<String>>,
    /// The packets, if they are kept.
    pub capture: Option<Capture>,
}

impl Log {
    /// Nothing is kept.
    pub fn none() -> Self {
        Self::default()
    }

    /// Lines are kept.
    #[cfg(test)]
    pub fn lines() -> Self {
        Self { lines: Some(Vec::new()), capture: None }
    }

    /// Something happened.
    pub fn line(&mut self, now: u64, text: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{} {}", Instant::from_nanos(now), text()));
        }
    }

    /// A BFD packet was sent.
    pub fn datagram(&mut self, now: u64, from: IpAddr, to: IpAddr, payload: &[u8]) {
        if let Some(capture) = &mut self.capture {
            capture.datagram(now, from, to, payload);
        }
    }

    /// A segment was sent.
    pub fn segment(&mut self, now: u64, from: SocketAddr, to: SocketAddr, segment: &Segment) {
        if let Some(capture) = &mut self.capture {
            capture.segment(now, from, to, segment);
        }
    }
}
