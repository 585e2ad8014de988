//! The log: one line an event, with fields; and how much of it, which can be changed while the process runs.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use martlet_bgp::Event as Bgp;
use tracing::{debug, info, warn};

use crate::core::Event;

/// From the fewest lines to the most.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
/// The most peers that are told in full.
const MAX_PEERS: usize = 1000;

/// Puts a filter in force; the error says what is wrong with it.
type Set = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// How much is logged; cheap to clone, one in a process.
#[derive(Clone)]
pub struct Detail(Arc<Inner>);

struct Inner {
    set: Set,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    filter: String,
    peers: BTreeSet<String>,
}

impl Detail {
    /// `filter` is in force; `set` puts another one in its place.
    pub fn new(filter: &str, set: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static) -> Self {
        let state = State { filter: filter.to_owned(), peers: BTreeSet::new() };
        Self(Arc::new(Inner { set: Box::new(set), state: Mutex::new(state) }))
    }

    /// Puts `filter` in force: a level, or a filter such as `info,martlet_bgp=debug`.
    ///
    /// # Errors
    /// When it makes no sense; what was in force stays.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        self.change(|_| filter.to_lowercase()).map(drop)
    }

    /// One level more, or less; what the filter says of single targets stays. The filter that is in force now.
    ///
    /// # Errors
    /// When the log does not take it.
    pub fn step(&self, more: bool) -> Result<String, String> {
        self.change(|filter| stepped(filter, more))
    }

    fn change(&self, next: impl FnOnce(&str) -> String) -> Result<String, String> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let filter = next(&state.filter);
        (self.0.set)(&filter)?;
        state.filter.clone_from(&filter);
        Ok(filter)
    }

    /// Whether every event of the peer `name` is told, single routes and all, whatever the filter says of it.
    ///
    /// # Errors
    /// When there are too many.
    pub fn tell_all(&self, name: &str, all: bool) -> Result<(), String> {
        let peers = &mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner).peers;
        if !all {
            peers.remove(name);
        } else if peers.len() < MAX_PEERS || peers.contains(name) {
            peers.insert(name.to_owned());
        } else {
            return Err(format!("{MAX_PEERS} peers are told in full already"));
        }
        Ok(())
    }

    fn tells_all(&self, name: &str) -> bool {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        !state.peers.is_empty() && state.peers.contains(name)
    }

    /// In words.
    pub fn words(&self) -> String {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let peers: Vec<_> = state.peers.iter().map(String::as_str).collect();
        if peers.is_empty() {
            format!("log level {}", state.filter)
        } else {
            format!("log level {}; everything of {}", state.filter, peers.join(", "))
        }
    }
}

impl fmt::Debug for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words())
    }
}

/// `filter` with its overall level one step further.
fn stepped(filter: &str, more: bool) -> String {
    let mut parts: Vec<_> = filter.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let place = |part: &str| LEVELS.iter().position(|level| *level == part);
    // A filter that names no overall level shows errors.
    let at = parts.iter().find_map(|part| place(part)).unwrap_or(0);
    let next = if more { at.saturating_add(1) } else { at.saturating_sub(1) };
    parts.retain(|part| place(part).is_none());
    parts.insert(0, LEVELS.get(next).or(LEVELS.last()).copied().unwrap_or_default());
    parts.join(",")
}

/// A process has one log.
static DETAIL: OnceLock<Detail> = OnceLock::new();

/// Makes `detail` the one that signals and the control socket change; the first call counts.
pub fn install(detail: Detail) {
    let _ = DETAIL.set(detail);
}

/// How much this process logs; where nobody installed it, it cannot be changed.
pub fn detail() -> Detail {
    let fixed = || Detail::new("info", |_| Err("the log of this process cannot be changed".into()));
    DETAIL.get().cloned().unwrap_or_else(fixed)
}

/// Writes `event` to the log of this process.
pub fn log(event: &Event) {
    log_with(event, &detail());
}

/// Writes `event` to the log. Single routes are for the curious: a peer can send a million.
pub fn log_with(event: &Event, detail: &Detail) {
    let (kind, subject) = (event.kind(), event.subject());
    if event.is_warning() {
        warn!(kind, subject, "{event}");
    } else if !is_fine(event) || detail.tells_all(&subject) {
        info!(kind, subject, "{event}");
    } else {
        debug!(kind, subject, "{event}");
    }
}

const fn is_fine(event: &Event) -> bool {
    matches!(event, Event::Bgp(Bgp::Learned { .. } | Bgp::Lost { .. } | Bgp::State { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail(filter: &str) -> (Detail, Arc<Mutex<Vec<String>>>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = Arc::clone(&heard);
        let set = move |filter: &str| {
            if filter.contains("loud") {
                return Err("loud is no level".into());
            }
            ear.lock().unwrap().push(filter.to_owned());
            Ok(())
        };
        (Detail::new(filter, set), heard)
    }

    #[test]
    fn a_step_moves_the_overall_level_and_leaves_targets_alone() {
        for (filter, more, less) in [
            ("info", "debug", "warn"),
            ("trace", "trace", "debug"),
            ("error", "warn", "error"),
            ("info,martlet_bgp=debug", "debug,martlet_bgp=debug", "warn,martlet_bgp=debug"),
            ("martlet_bgp=debug", "warn,martlet_bgp=debug", "error,martlet_bgp=debug"),
        ] {
            assert_eq!((stepped(filter, true).as_str(), stepped(filter, false).as_str()), (more, less), "{filter}");
        }
    }

    #[test]
    fn what_makes_no_sense_leaves_the_log_as_it_is() {
        let (detail, heard) = detail("info");
        assert!(detail.set("LOUD").unwrap_err().contains("no level"));
        assert_eq!(detail.words(), "log level info");
        assert_eq!(detail.step(true).unwrap(), "debug");
        detail.set("warn").unwrap();
        assert_eq!(*heard.lock().unwrap(), ["debug", "warn"]);
    }

    #[test]
    fn one_peer_is_told_in_full_until_it_is_not() {
        let (detail, _) = detail("info");
        detail.tell_all("gw", true).unwrap();
        assert!(detail.tells_all("gw") && !detail.tells_all("other"));
        assert_eq!(detail.words(), "log level info; everything of gw");
        detail.tell_all("gw", false).unwrap();
        assert!(!detail.tells_all("gw"));
    }
}
