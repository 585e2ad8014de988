//! The log: one line an event, with fields.

use martlet_bgp::Event as Bgp;
use tracing::{debug, info, warn};

use crate::core::Event;

/// Writes `event` to the log. Single routes are for the curious: a peer can send a million.
pub fn log(event: &Event) {
    let (kind, subject) = (event.kind(), event.subject());
    if matches!(event, Event::Bgp(Bgp::Learned { .. } | Bgp::Lost { .. } | Bgp::State { .. })) {
        debug!(kind, subject, "{event}");
    } else if event.is_warning() {
        warn!(kind, subject, "{event}");
    } else {
        info!(kind, subject, "{event}");
    }
}
