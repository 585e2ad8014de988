//! The demo's stage under change and traffic for as long as one likes: endpoints leave and come back, the gateway's link is cut
//! and mended, and after each round what the two processes hold is compared with what they held at the beginning.
//!
//! A round that is not observed, a process that ended, or memory, descriptors or threads that grow: the soak has failed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::topology::{self, World};
use super::{Demo, Step, announce, fault, traffic};
use crate::lab::End;
use crate::peer::Gateway as _;
use crate::preflight;

/// How long, and on what.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Minutes; 0: until stopped, or until something fails.
    #[arg(long, default_value_t = 0)]
    pub minutes: u64,
    /// The objects and FRR's configuration.
    #[arg(long, default_value_os_t = topology::workspace().join("deploy/demo"))]
    pub folder: PathBuf,
}

/// One round.
const ROUND: [(&str, Step); 4] = [
    ("traffic", traffic::all_answered),
    ("a leave", traffic::one_leaves),
    ("all leave and come back", announce::withdrawn_and_back),
    ("a cut", fault::cut),
];
/// Rounds before the comparison begins: caches are filled, lazily made things are made.
const WARM: usize = 3;
/// Growth of memory that is no leak, kilobytes and hundredths: an allocator keeps some of what it is given back.
const SLACK: (u64, u64) = (8 * 1024, 125);
/// Descriptors and threads that may come and go.
const SOME: u64 = 8;

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    memory_kb: u64,
    descriptors: u64,
    threads: u64,
}

impl Held {
    fn of(pid: u32) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            let number = line.and_then(|line| line.split_whitespace().next()).and_then(|text| text.parse().ok());
            number.with_context(|| format!("no {key} in the status of process {pid}"))
        };
        let descriptors = u64::try_from(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())?;
        Ok(Self { memory_kb: value("VmRSS")?, descriptors, threads: value("Threads")? })
    }

    /// Whether `later` is more than came and went.
    fn grew(self, later: Self) -> bool {
        later.memory_kb > self.memory_kb * SLACK.1 / 100 + SLACK.0
            || later.descriptors > self.descriptors + SOME
            || later.threads > self.threads + SOME
    }
}

/// Runs it.
///
/// # Errors
/// A prerequisite is missing, a round was not observed, or something grew.
pub fn run(options: &Options) -> Result<()> {
    preflight::check()?;
    let martlet = topology::find_martlet()?;
    let world = World::build(&options.folder, &martlet, End::Remove)?;
    println!("soak: {} as the gateway; a round is traffic, a leave, all leave and come back, a cut", world.frr.title());
    let mut demo = Demo { world };
    let result = rounds(&mut demo, Duration::from_secs(options.minutes * 60));
    if result.is_err() {
        demo.world.lab.mark_failed();
        println!("{}", demo.world.lab.tails(15));
    }
    result
}

fn rounds(demo: &mut Demo, long: Duration) -> Result<()> {
    for step in [announce::sessions, announce::silence, announce::ready, fault::default_route] {
        step(demo)?;
    }
    let start = Instant::now();
    let mut first = None;
    println!("  round  minutes  router: MB, descriptors, threads  lb: MB, descriptors, threads");
    for round in 1.. {
        for (what, step) in ROUND {
            step(demo).with_context(|| format!("round {round}: {what}"))?;
        }
        demo.world.check_alive()?;
        let now = held(demo)?;
        let minutes = start.elapsed().as_secs_f64() / 60.0;
        let line = now.map(|held| {
            let megabytes = held.memory_kb / 1024;
            format!("{megabytes:>10}, {:>11}, {:>7}", held.descriptors, held.threads)
        });
        println!("{round:>7}  {minutes:>7.1}  {}  {}", line[0], line[1]);
        if round == WARM {
            first = Some(now);
        }
        for (name, before, now) in first.iter().flat_map(|first| {
            let names = ["router", "lb"].into_iter();
            names.zip(first).zip(&now).map(|((name, before), now)| (name, *before, *now))
        }) {
            ensure!(!before.grew(now), "{name} grows: {before:?} after {WARM} rounds, {now:?} after {round}");
        }
        if !long.is_zero() && start.elapsed() >= long && round > WARM {
            println!("soak: {round} rounds in {minutes:.1} minutes, nothing lost, nothing grew");
            return Ok(());
        }
    }
    Ok(())
}

/// What router and load balancer hold.
fn held(demo: &Demo) -> Result<[Held; 2]> {
    let of = |process: &Option<crate::process::Process>| {
        Held::of(process.as_ref().context("router and lb do not run")?.pid())
    };
    Ok([of(&demo.world.router)?, of(&demo.world.lb)?])
}

#[cfg(test)]
mod tests {
    use super::Held;

    #[test]
    fn what_comes_and_goes_is_no_growth_and_a_leak_is() {
        let first = Held { memory_kb: 20_000, descriptors: 30, threads: 6 };
        assert!(!first.grew(Held { memory_kb: 25_000, descriptors: 33, threads: 6 }));
        assert!(first.grew(Held { memory_kb: 60_000, ..first }));
        assert!(first.grew(Held { descriptors: 60, ..first }));
        assert!(first.grew(Held { threads: 20, ..first }));
    }
}
