//! The command line: run, replay, shrink, scenario.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::check::INVARIANTS;
use crate::log::Log;
use crate::pcap::Capture;
use crate::play::{self, Outcome};
use crate::script::Script;
use crate::seen::{ENOUGH, wanted};

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
        /// List everything that was seen.
        #[arg(long)]
        seen: bool,
        /// Seconds of the wall clock that one seed may take: what has not ended by then does not end.
        #[arg(long, default_value_t = 300)]
        patience: u64,
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
    /// How fast both worlds are, in multiples of real time on one core.
    Speed {
        /// Seeds of the event queue; a tenth of it of the driver.
        #[arg(long, default_value_t = 100)]
        seeds: u64,
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
    /// Replay what once failed and what users ask: every seed of `seeds.txt` (one a line, `#` begins a comment) and every
    /// file of `regressions` and `scenarios`.
    Seeds {
        /// Where they are.
        #[arg(default_value = "sim")]
        folder: PathBuf,
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
            Verb::Run { seeds, from, jobs, first, seen, patience } => {
                Ok(run(seeds, from, jobs.max(1), first, seen, Duration::from_secs(patience)))
            }
            Verb::Replay { what, how } => replay(&what, &how),
            Verb::Shrink { what } => shrink(&what),
            Verb::Script { seed } => {
                print!("{}", serde_saphyr::to_string(&Script::draw(seed))?);
                Ok(true)
            }
            Verb::Seeds { folder } => seeds(&folder),
            Verb::Speed { seeds } => Ok(speed(seeds)),
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
    /// Resident octets after the first seeds.
    memory: u64,
}

/// Seeds after which everything has been allocated once.
const WARM: u64 = 200;
/// How much more may be held after any number of seeds.
const GROWTH: u64 = 64 << 20;

/// Resident octets of this process.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() * 4096
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
        if self.done == WARM {
            self.memory = resident();
        }
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

/// Set at the first SIGINT or SIGTERM: what is being played ends, the report follows.
fn interrupted() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut one), Ok(mut other)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return std::future::pending().await;
            };
            tokio::select! {
                biased;
                _ = one.recv() => {}
                _ = other.recv() => {}
            }
        });
        set.store(true, Ordering::Relaxed);
    });
    flag
}

/// What each job plays, since when; nothing: it is through.
type Playing = Mutex<BTreeMap<u64, (u64, Instant)>>;

/// Ends the process when a seed does not end: a core that loops inside one step is heard of no other way.
fn watch(playing: &Playing, patience: Duration) {
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let jobs = playing.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.is_empty() {
            return;
        }
        if let Some((seed, _)) = jobs.values().find(|(_, since)| since.elapsed() > patience) {
            println!("seed {seed}: BROKEN endless: the seed has not ended for {} s", patience.as_secs());
            println!("failing seeds: {seed}");
            std::process::exit(1);
        }
    }
}

fn run(seeds: u64, from: u64, jobs: u64, first: bool, list_all: bool, patience: Duration) -> bool {
    let started = Instant::now();
    let next = AtomicU64::new(from);
    let end = if seeds == 0 { u64::MAX } else { from.saturating_add(seeds) };
    let sum = Mutex::new(Sum::default());
    let stop = interrupted();
    let playing: Playing = Mutex::new((0..jobs).map(|job| (job, (from, Instant::now()))).collect());
    std::thread::scope(|scope| {
        scope.spawn(|| watch(&playing, patience));
        for job in 0..jobs {
            let (next, sum, stop, playing) = (&next, &sum, &stop, &playing);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let is_over = seed >= end || stop.load(Ordering::Relaxed);
                    let mut jobs = playing.lock().unwrap_or_else(PoisonError::into_inner);
                    if is_over {
                        jobs.remove(&job);
                        return;
                    }
                    jobs.insert(job, (seed, Instant::now()));
                    drop(jobs);
                    let outcome = play::play(&Script::draw(seed), Log::none(), None);
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    if first && outcome.failure.is_some() {
                        next.store(u64::MAX / 2, Ordering::Relaxed);
                    }
                    sum.add(seed, outcome);
                    if sum.done.is_multiple_of(500) {
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
    let mut sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} seeds in {seconds:.1} s: {:.1} a second, {:.0} times real time, {:.0} events a second",
        sum.done,
        ratio(sum.done, seconds),
        ratio(sum.time / 1_000_000_000, seconds),
        ratio(sum.events, seconds)
    );
    if list_all {
        sum.seen.iter().for_each(|one| println!("  seen: {one}"));
    }
    let whole = report(&mut sum);
    if sum.failures.is_empty() && whole {
        println!("no promise was broken");
        return true;
    }
    let list: Vec<String> = sum.failures.keys().map(u64::to_string).collect();
    println!("failing seeds: {}", if list.is_empty() { "none".into() } else { list.join(" ") });
    false
}

/// What was asked and seen; false: a promise about the run as a whole is broken.
fn report(sum: &mut Sum) -> bool {
    let missing: Vec<String> = wanted().into_iter().filter(|one| !sum.seen.contains(one)).collect();
    sum.asked.insert("sometimes", 1);
    for (name, text) in INVARIANTS {
        println!("  {name:<10} asked {:>10} times: {text}", sum.asked.get(name).unwrap_or(&0));
    }
    let wanted = wanted().len();
    println!("sometimes: {} of {wanted} wanted things were seen, {} in all", wanted - missing.len(), sum.seen.len());
    if !missing.is_empty() {
        println!("  never seen: {}", missing.join(", "));
    }
    let now = resident();
    if sum.memory > 0 {
        println!("memory: {} MiB after {WARM} seeds, {} MiB at the end", sum.memory >> 20, now >> 20);
    }
    let (grown, unseen) = (sum.memory > 0 && now > sum.memory + GROWTH, sum.done >= ENOUGH && !missing.is_empty());
    if grown {
        println!("BROKEN bounded: memory grew by more than {} MiB", GROWTH >> 20);
    }
    if unseen {
        println!("BROKEN sometimes: in {} seeds something was never seen that should be", sum.done);
    }
    !grown && !unseen
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
    let empty = Vec::new();
    let lines = outcome.log.lines.as_ref().unwrap_or(&empty);
    if how.events || !how.timeline {
        for line in lines {
            println!("{line}");
        }
    }
    if how.timeline {
        timeline(lines);
    }
    if let (Some(path), Some(capture)) = (&how.pcap, &outcome.log.capture) {
        std::fs::write(path, &capture.file).with_context(|| path.display().to_string())?;
        println!("wrote {}", path.display());
    }
    match &outcome.failure {
        Some(failure) => println!("BROKEN {}", play::words(failure)),
        None => println!("no promise was broken in {} s", martlet_clock::Instant::from_nanos(outcome.time)),
    }
    let unseen = unseen(&script, &outcome);
    for one in &unseen {
        println!("EXPECTED and not seen: {one}");
    }
    Ok(outcome.failure.is_none() && (unseen.is_empty() || until.is_some()))
}

/// What the script expects and its run did not show.
fn unseen(script: &Script, outcome: &Outcome) -> Vec<String> {
    script.expect.iter().filter(|one| !outcome.seen.contains(*one)).cloned().collect()
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
    let failure_name = failure.invariant;
    let fails = |script: &Script| {
        let failure = play::play(script, Log::none(), None).failure;
        failure.is_some_and(|other| other.invariant == failure_name)
    };
    let small = play::shrink(&script, fails, |next| println!("# {} faults", next.faults.len()));
    println!("# left: {} of {} faults", small.faults.len(), script.faults.len());
    print!("{}", serde_saphyr::to_string(&small)?);
    Ok(false)
}

fn driven(seeds: u64, from: u64, events: bool) -> bool {
    let started = Instant::now();
    let (mut failing, mut time, mut seen) = (Vec::new(), 0, BTreeSet::new());
    for seed in from..from + seeds {
        let run = crate::driven::play(seed);
        if events && seed == from {
            println!("{}", run.story.join("\n"));
        }
        time += run.time_ms;
        seen.extend(run.seen);
        if let Some(failure) = run.failure {
            println!("driven seed {seed}: BROKEN {}", play::words(&failure));
            failing.push(seed.to_string());
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{seeds} seeds of the driver in {seconds:.1} s: {:.0} times real time", ratio(time, seconds) / 1000.0);
    let seen: Vec<&str> = seen.into_iter().collect();
    println!("  seen: {}", seen.join(", "));
    if failing.is_empty() {
        println!("no promise was broken");
    } else {
        println!("failing seeds: {}", failing.join(" "));
    }
    failing.is_empty()
}

/// The world that the goal names: two gateways, four pods, 20 VIPs, all faults, all invariants.
fn speed(seeds: u64) -> bool {
    let mut well = true;
    let (started, mut time) = (Instant::now(), 0);
    for seed in 0..seeds {
        let mut script = Script::draw(seed);
        let topology = &mut script.topology;
        (topology.gateways, topology.naive, topology.pods, topology.vips) = (2, 1, 4, 10);
        (topology.ipv6, topology.bfd, topology.r#static) = (true, true, false);
        let outcome = play::play(&script, Log::none(), None);
        well &= outcome.failure.is_none();
        time += outcome.time;
    }
    println!("events {:.1} times real time", ratio(time / 1_000_000, started.elapsed().as_secs_f64()) / 1000.0);
    let (started, mut time) = (Instant::now(), 0);
    for seed in 0..seeds.div_ceil(10) {
        let run = crate::driven::play(seed);
        well &= run.failure.is_none();
        time += run.time_ms;
    }
    println!("driver {:.1} times real time", ratio(time, started.elapsed().as_secs_f64()) / 1000.0);
    well
}

fn seeds(folder: &Path) -> Result<bool> {
    let mut scripts = Vec::new();
    let file = folder.join("seeds.txt");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    for line in text.lines() {
        let number = line.split('#').next().unwrap_or_default().trim();
        if !number.is_empty() {
            let seed = number.parse().with_context(|| format!("{}: {line}", file.display()))?;
            scripts.push((format!("seed {seed}"), Script::draw(seed)));
        }
    }
    for part in ["regressions", "scenarios"] {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(folder.join(part))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        files.sort();
        for file in files {
            let name = file.display().to_string();
            scripts.push((name.clone(), script(&name)?));
        }
    }
    let mut failed = 0;
    for (name, script) in &scripts {
        let outcome = play::play(script, Log::none(), None);
        let unseen = unseen(script, &outcome);
        if let Some(failure) = &outcome.failure {
            println!("{name}: BROKEN {}", play::words(failure));
        }
        if !unseen.is_empty() {
            println!("{name}: EXPECTED and not seen: {}", unseen.join(", "));
        }
        failed += usize::from(outcome.failure.is_some() || !unseen.is_empty());
    }
    println!("{} seeds, scripts that once failed and scenarios, {failed} fail", scripts.len());
    Ok(failed == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_once_failed_and_what_users_ask_breaks_no_promise_and_shows_what_it_says() {
        assert!(seeds(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap());
    }
}
