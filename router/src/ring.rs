//! The last events, for `martlet show events`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use martlet_bgp::Event as Bgp;
use serde::{Deserialize, Serialize};

use crate::core::Event;

/// How many are kept.
pub const LENGTH: usize = 1000;

/// An event as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its number since the start.
    pub number: u64,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// What kind.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// Whether an operator should look.
    pub warning: bool,
    /// In words.
    pub text: String,
}

/// The last events; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Ring(Arc<Mutex<(u64, VecDeque<Line>)>>);

impl Ring {
    /// Keeps `event`. Single routes are not kept: a peer can send a million.
    pub fn push(&self, event: &Event) {
        if matches!(event, Event::Bgp(Bgp::Learned { .. } | Bgp::Lost { .. })) {
            return;
        }
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.0 += 1;
        let line = Line {
            number: ring.0,
            unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
            kind: event.kind().into(),
            subject: event.subject(),
            warning: event.is_warning(),
            text: event.to_string(),
        };
        if ring.1.len() == LENGTH {
            ring.1.pop_front();
        }
        ring.1.push_back(line);
    }

    /// Those after number `after`, the oldest first.
    pub fn after(&self, after: u64) -> Vec<Line> {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.1.iter().filter(|line| line.number > after).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_thousand_are_kept_and_numbered() {
        let ring = Ring::default();
        for count in 0..LENGTH + 5 {
            ring.push(&Event::Repaired(count));
        }
        let lines = ring.after(0);
        assert_eq!((lines.len(), lines[0].number), (LENGTH, 6));
        assert_eq!(ring.after(1004).len(), 1);
    }
}
