//! The command line: run, replay, shrink, scenario.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::check::INVARIANTS;
use crate::faults::What;
use crate::log::Log;
use crate::pcap::Capture;
use crate::play::{self, Outcome};
use crate::script::Script;

/// Deterministic simulation of Martlet: one seed is one run.
#[derive(Debug, Parser)]
#[command(name = "martlet-sim", version)]
pub struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Play many seeds; exit 1 and name the failing ones on the last line.
    Run {
        /// How many; 0: until interrupted.
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// The first one.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many at once.
        #[arg(long, default_value_t = 1)]
        jobs: u64,
        /// Stop at the first failure.
        #[arg(long)]
        first: bool,
    },
    /// Tell the story of one seed, or of a scenario file.
    Replay {
        /// The seed, or the file.
        what: String,
        #[command(flatten)]
        how: How,
    },
    /// Print a seed as a scenario: the begin of a "what if".
    Script {
        /// The seed.
        seed: u64,
    },
    /// Remove faults from a failing seed or scenario while it still fails; prints the scenario that is left.
    Shrink {
        /// The seed, or the file.
        what: String,
    },
    /// Play seeds of the second world: the real driver over turmoil.
    Driven {
        /// How many.
        #[arg(long, default_value_t = 40)]
        seeds: u64,
        /// The first one.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Tell the story of the first one.
        #[arg(long)]
        events: bool,
    },
    /// Plant bugs in a scratch copy, build it, and see whether they are found; writes the table of docs/simulation.md.
    Mutants {
        /// Only those whose name contains this.
        #[arg(default_value = "")]
        only: String,
        /// How many seeds may pass.
        #[arg(long, default_value_t = 10_000)]
        seeds: u64,
    },
    /// Replay every seed of a file, one a line, `#` begins a comment.
    Seeds {
        /// The file.
        #[arg(default_value = "sim/seeds.txt")]
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct How {
    /// Stop there, such as `12.5s`.
    #[arg(long)]
    until: Option<String>,
    /// Every event of the product.
    #[arg(long)]
    events: bool,
    /// One line a second: sessions, announcements, faults.
    #[arg(long)]
    timeline: bool,
    /// Write what went over the wires to a capture that Wireshark opens.
    #[arg(long)]
    pcap: Option<PathBuf>,
}

fn script(what: &str) -> Result<Script> {
    if let Ok(seed) = what.parse() {
        return Ok(Script::draw(seed));
    }
    let text = std::fs::read_to_string(what).with_context(|| format!("{what}: neither a seed nor a readable file"))?;
    serde_saphyr::from_str(&text).with_context(|| format!("{what}: no scenario"))
}

impl Command {
    /// Does it; true: no promise was broken.
    pub fn perform(self) -> Result<bool> {
        match self.verb {
            Verb::Run { seeds, from, jobs, first } => Ok(run(seeds, from, jobs.max(1), first)),
            Verb::Replay { what, how } => replay(&what, &how),
            Verb::Shrink { what } => shrink(&what),
            Verb::Script { seed } => {
                print!("{}", serde_saphyr::to_string(&Script::draw(seed))?);
                Ok(true)
            }
            Verb::Seeds { file } => seeds(&file),
            Verb::Driven { seeds, from, events } => Ok(driven(seeds, from, events)),
            Verb::Mutants { only, seeds } => crate::mutants::run(&only, seeds),
        }
    }
}

#[derive(Debug, Default)]
struct Sum {
    failures: BTreeMap<u64, String>,
    seen: BTreeSet<String>,
    asked: BTreeMap<&'static str, u64>,
    time: u64,
    events: u64,
    done: u64,
}

impl Sum {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seen.extend(outcome.seen);
        for (name, count) in outcome.asked {
            *self.asked.entry(name).or_default() += count;
        }
        self.time += outcome.time;
        self.events += outcome.events;
        self.done += 1;
        if let Some(failure) = outcome.failure {
            let words = play::words(&failure);
            println!("seed {seed}: BROKEN {words}");
            self.failures.insert(seed, words);
        }
    }
}

#[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "figures for a human")]
fn ratio(one: u64, other: f64) -> f64 {
    one as f64 / other.max(0.001)
}

fn run(seeds: u64, from: u64, jobs: u64, first: bool) -> bool {
    let started = Instant::now();
    let next = AtomicU64::new(from);
    let end = if seeds == 0 { u64::MAX } else { from.saturating_add(seeds) };
    let sum = Mutex::new(Sum::default());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let outcome = play::play(&Script::draw(seed), Log::none(), None);
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    if first && outcome.failure.is_some() {
                        next.store(u64::MAX / 2, Ordering::Relaxed);
                    }
                    sum.add(seed, outcome);
                    if sum.done % 500 == 0 {
                        let seconds = started.elapsed().as_secs_f64();
                        println!(
                            "{} seeds, {:.1} a second, {} failed",
                            sum.done,
                            ratio(sum.done, seconds),
                            sum.failures.len()
                        );
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} seeds in {seconds:.1} s: {:.1} a second, {:.0} times real time, {:.0} events a second",
        sum.done,
        ratio(sum.done, seconds),
        ratio(sum.time / 1_000_000_000, seconds),
        ratio(sum.events, seconds)
    );
    report(&sum);
    if sum.failures.is_empty() {
        println!("no promise was broken");
        return true;
    }
    let list: Vec<String> = sum.failures.keys().map(u64::to_string).collect();
    println!("failing seeds: {}", list.join(" "));
    false
}

fn report(sum: &Sum) {
    for (name, text) in INVARIANTS {
        println!("  {name:<10} asked {:>10} times: {text}", sum.asked.get(name).unwrap_or(&0));
    }
    let wanted = wanted();
    let missing: Vec<&String> = wanted.iter().filter(|one| !sum.seen.contains(*one)).collect();
    println!(
        "sometimes: {} of {} wanted things were seen, {} in all",
        wanted.len() - missing.len(),
        wanted.len(),
        sum.seen.len()
    );
    if !missing.is_empty() {
        let missing: Vec<&str> = missing.into_iter().map(String::as_str).collect();
        println!("  never seen: {}", missing.join(", "));
    }
}

/// What should be seen over a run of many seeds.
fn wanted() -> BTreeSet<String> {
    let mut wanted: BTreeSet<String> = What::ALL.iter().map(|what| format!("fault {}", what.name())).collect();
    let transitions = [
        "Idle -> Connect",
        "Connect -> Active",
        "Connect -> OpenSent",
        "Active -> OpenSent",
        "Active -> Connect",
        "OpenSent -> OpenConfirm",
        "OpenSent -> Idle",
        "OpenConfirm -> Established",
        "OpenConfirm -> Idle",
        "Established -> Idle",
        "Idle -> Active",
        "Connect -> Idle",
        "Active -> Idle",
    ];
    wanted.extend(transitions.map(|one| format!("fsm {one}")));
    let sent = [
        "1/1", "1/2", "1/3", "2/1", "2/2", "2/3", "2/4", "2/6", "3/1", "4/0", "5/3", "6/1", "6/2", "6/3", "6/4", "6/7",
        "6/10", "7/1",
    ];
    wanted.extend(sent.map(|one| format!("notification sent {one}")));
    let received = ["4/0", "6/2", "6/3", "6/7"];
    wanted.extend(received.map(|one| format!("notification received {one}")));
    let bfd = ["Down -> Init", "Init -> Up", "Down -> Up", "Up -> Down"];
    wanted.extend(bfd.map(|one| format!("bfd {one}")));
    let diagnostics = ["None", "DetectionTimeExpired", "NeighborSignaledDown"];
    wanted.extend(diagnostics.map(|one| format!("bfd diagnostic {one}")));
    let words = [
        "Stopping",
        "LoadBalancerSilent",
        "LoadBalancerDraining",
        "UnknownToLoadBalancer",
        "NotReady",
        "NoConnectivity",
        "Damped",
    ];
    wanted.extend(words.map(|one| format!("withheld {one}")));
    let rest = [
        "announced",
        "kernel conflict",
        "kernel refusal",
        "adoption",
        "adoption ended by time",
        "repair",
        "treat-as-withdraw",
        "attribute-discard",
        "prefix-warning",
        "gateway naive",
        "gateway our own",
        "unresolved next hop",
    ];
    wanted.extend(rest.map(str::to_owned));
    wanted
}

fn replay(what: &str, how: &How) -> Result<bool> {
    let script = script(what)?;
    let until = how.until.as_deref().map(seconds).transpose()?;
    println!("{:?}", script.topology);
    for fault in &script.faults {
        println!(
            "  {:>6} ms + {:>5} ms  {} (pod {}, gateway {}, amount {})",
            fault.at_ms,
            fault.for_ms,
            fault.what.name(),
            fault.pod,
            fault.gateway,
            fault.amount
        );
    }
    let log = Log { lines: Some(Vec::new()), capture: how.pcap.as_ref().map(|_| Capture::default()) };
    let outcome = play::play(&script, log, until);
    let lines = outcome.log.lines.unwrap_or_default();
    if how.events || !how.timeline {
        for line in &lines {
            println!("{line}");
        }
    }
    if how.timeline {
        timeline(&lines);
    }
    if let (Some(path), Some(capture)) = (&how.pcap, &outcome.log.capture) {
        std::fs::write(path, &capture.file).with_context(|| path.display().to_string())?;
        println!("wrote {}", path.display());
    }
    match &outcome.failure {
        Some(failure) => println!("BROKEN {}", play::words(failure)),
        None => println!("no promise was broken in {} s", martlet_clock::Instant::from_nanos(outcome.time)),
    }
    Ok(outcome.failure.is_none())
}

/// What counts, one line a second.
fn timeline(lines: &[String]) {
    let mut last = String::new();
    for line in lines {
        let counts = ["FAULT", "BROKEN", "Established", "announced", "starts", "ended", " Up", "connectivity"];
        if counts.iter().any(|word| line.contains(word)) {
            let (time, text) = line.split_once(' ').unwrap_or_default();
            let second = time.split('.').next().unwrap_or_default().to_owned();
            let shown = if second == last { String::new() } else { format!("{second} s") };
            println!("{shown:>6}  {text}");
            last = second;
        }
    }
}

fn seconds(text: &str) -> Result<u64> {
    let number: f64 = text.trim_end_matches('s').parse().with_context(|| format!("{text}: must be such as 12.5s"))?;
    Ok(u64::try_from(std::time::Duration::try_from_secs_f64(number)?.as_nanos())?)
}

fn shrink(what: &str) -> Result<bool> {
    let script = script(what)?;
    let Some(failure) = play::play(&script, Log::none(), None).failure else {
        println!("{what} breaks no promise");
        return Ok(true);
    };
    println!("# BROKEN {}", play::words(&failure));
    let small = play::shrink(&script, failure.invariant, |next| println!("# {} faults", next.faults.len()));
    print!("{}", serde_saphyr::to_string(&small)?);
    Ok(false)
}

fn driven(seeds: u64, from: u64, events: bool) -> bool {
    let started = Instant::now();
    let mut failing = Vec::new();
    for seed in from..from + seeds {
        let (failure, story) = crate::driven::play(seed);
        if events && seed == from {
            println!("{}", story.join("\n"));
        }
        if let Some(failure) = failure {
            println!("driven seed {seed}: BROKEN {}", play::words(&failure));
            failing.push(seed.to_string());
        }
    }
    println!("{seeds} seeds of the driver in {:.1} s", started.elapsed().as_secs_f64());
    if failing.is_empty() {
        println!("no promise was broken");
    } else {
        println!("failing seeds: {}", failing.join(" "));
    }
    failing.is_empty()
}

fn seeds(file: &PathBuf) -> Result<bool> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let mut sum = Sum::default();
    for line in text.lines() {
        let number = line.split('#').next().unwrap_or_default().trim();
        if !number.is_empty() {
            let seed = number.parse().with_context(|| format!("{}: {line}", file.display()))?;
            sum.add(seed, play::play(&Script::draw(seed), Log::none(), None));
        }
    }
    println!("{} seeds that once failed, {} fail", sum.done, sum.failures.len());
    Ok(sum.failures.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_once_failed_and_what_users_ask_breaks_no_promise() {
        let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        assert!(seeds(&here.join("seeds.txt")).unwrap());
        let scenarios: Vec<_> =
            std::fs::read_dir(here.join("scenarios")).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(scenarios.len() >= 3);
        for scenario in scenarios {
            let script = script(&scenario.display().to_string()).unwrap();
            assert_eq!(play::play(&script, Log::none(), None).failure, None, "{}", scenario.display());
        }
    }
}
