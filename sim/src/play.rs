//! One run from its script to its outcome; how a failing one is made smaller.

use std::collections::{BTreeMap, BTreeSet};

use martlet_clock::Instant;

use crate::check::Failure;
use crate::log::Log;
use crate::script::Script;
use crate::world::World;

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// The first broken promise.
    pub failure: Option<Failure>,
    /// What was seen.
    pub seen: BTreeSet<String>,
    /// How often each invariant was asked.
    pub asked: BTreeMap<&'static str, u64>,
    /// Simulated nanoseconds.
    pub time: u64,
    /// Events.
    pub events: u64,
    /// The story.
    pub log: Log,
}

/// Plays a script to its end, or until a point in time.
pub fn play(script: &Script, log: Log, until: Option<u64>) -> Outcome {
    let mut world = World::new(script, log);
    world.note_topology();
    world.play(until.unwrap_or(u64::MAX));
    let World { check, now, events, mut log, .. } = world;
    let asked = check.counters();
    if let Some(failure) = &check.failure {
        log.line(failure.time, || format!("BROKEN {}: {}", failure.invariant, failure.message));
    }
    Outcome { failure: check.failure, seen: check.seen, asked, time: now, events, log }
}

/// Removes faults, then shortens them, then takes parts of the topology away, while it still `fails`.
pub fn shrink(script: &Script, fails: impl Fn(&Script) -> bool, mut tell: impl FnMut(&Script)) -> Script {
    let mut best = script.clone();
    let mut smaller = true;
    while smaller {
        smaller = false;
        for number in (0..best.faults.len()).rev() {
            let mut next = best.clone();
            next.faults.remove(number);
            if fails(&next) {
                (best, smaller) = (next, true);
                tell(&best);
            }
        }
        for number in 0..best.faults.len() {
            let mut next = best.clone();
            next.faults[number].for_ms /= 2;
            if next.faults[number].for_ms > 20 && fails(&next) {
                (best, smaller) = (next, true);
                tell(&best);
            }
        }
        for reduce in REDUCTIONS {
            let mut next = best.clone();
            reduce(&mut next);
            if next != best && fails(&next) {
                (best, smaller) = (next, true);
                tell(&best);
            }
        }
    }
    best
}

/// What a topology can do without.
const REDUCTIONS: &[fn(&mut Script)] = &[
    |script| script.topology.pods = 1,
    |script| script.topology.vips = 1,
    |script| script.topology.endpoints = 1,
    |script| script.topology.ipv6 = false,
    |script| script.topology.bfd = false,
    |script| script.topology.gateways = (script.topology.gateways - 1).max(1),
];

/// A failure in one line.
pub fn words(failure: &Failure) -> String {
    format!("{} at {} s: {}", failure.invariant, Instant::from_nanos(failure.time), failure.message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::Topology;

    #[test]
    fn the_same_seed_tells_the_same_story_to_the_byte() {
        for seed in 0..3 {
            let story = || play(&Script::draw(seed), Log::lines(), None).log.lines.unwrap();
            let first = story();
            assert!(first.len() > 20);
            assert_eq!(first, story(), "seed {seed}");
        }
    }

    #[test]
    fn a_planted_failure_is_shrunk_to_what_it_takes_and_nothing_else() {
        // The failure is planted in the question: that a session ends by SIGTERM while BFD is on.
        let what = |kind: &str, at_ms: u64| format!("- {{at_ms: {at_ms}, for_ms: 2000, what: {kind}}}\n");
        let kinds = ["delay", "router-stop", "bad-object", "endpoint-flap", "loss"];
        let faults: String = kinds.iter().zip(1_u64..).map(|(kind, at)| what(kind, at * 1000)).collect();
        let text = format!("topology: {{gateways: 3, pods: 2, vips: 3, bfd: true}}\nfaults:\n{faults}");
        let script: Script = serde_saphyr::from_str(&text).unwrap();
        let fails = |script: &Script| {
            let seen = play(script, Log::none(), None).seen;
            seen.contains("withheld Stopping") && seen.contains("bfd Down -> Up")
        };
        let small = shrink(&script, fails, |_| ());
        let left: Vec<_> = small.faults.iter().map(|fault| fault.what.name()).collect();
        assert_eq!(left, ["router-stop"]);
        let Topology { gateways, pods, vips, bfd, ipv6, .. } = small.topology;
        assert_eq!((gateways, pods, vips, bfd, ipv6), (1, 1, 1, true, false));
        assert!(small.faults[0].for_ms < 100, "{small:?}");
        assert!(fails(&small));
    }

    #[test]
    fn no_promise_is_broken_in_the_first_seeds_and_most_invariants_are_asked() {
        let mut asked = BTreeMap::<&str, u64>::new();
        for seed in 0..40 {
            let outcome = play(&Script::draw(seed), Log::none(), None);
            assert_eq!(outcome.failure, None, "seed {seed}");
            for (name, count) in outcome.asked {
                *asked.entry(name).or_default() += count;
            }
        }
        // The last one is asked of a whole run.
        let each = crate::check::INVARIANTS.iter().filter(|(name, _)| *name != "sometimes");
        for (name, _) in each {
            assert!(asked.get(name).is_some_and(|count| *count > 0), "{name} was never asked");
        }
    }
}
