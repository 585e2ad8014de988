//! Interoperability: `martlet speaker` against FRR, BIRD 2, `GoBGP`, `OpenBGPD` and `ExaBGP`, as those report it themselves.
//!
//! `bed` is where two speakers meet, `case` asks the features one after the other, `stress` opens both sides at once and breaks the
//! path, `report` writes the page. Cases share nothing: a few are played at the same time.

pub(crate) mod bed;
mod case;
mod report;
pub(crate) mod stress;

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::demo::topology;
use crate::peer::Make;
use crate::preflight;
pub use bed::Variant;
pub use case::{Cell, Feature, Outcome, play};
pub use stress::{Collisions, Recovery, collide, recover};

/// What is played.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Only these peers, with commas between them: frr, bird, gobgp, openbgpd, exabgp.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// A quarter of the cases (MD5, port 10179, four-octet AS numbers) and ten collisions in place of a hundred.
    #[arg(long)]
    pub quick: bool,
    /// The page that is written; without it docs/interop.md, and only when all peers and all cases were played.
    #[arg(long)]
    pub output: Option<PathBuf>,
    /// How many cases are played at the same time.
    #[arg(long, default_value_t = 4)]
    pub jobs: usize,
}

/// The peers whose collisions and recovery are played.
const STRESSED: [Make; 2] = [Make::Frr, Make::Bird];

/// The peers that can be told not to announce four-octet AS numbers.
const OLD: [Make; 3] = [Make::Bird, Make::Openbgpd, Make::Exabgp];

/// Plays all, prints and writes the table.
///
/// # Errors
/// A peer is unknown, a stage cannot be built, the page cannot be written, or a cell is `no`.
pub fn run(options: &Options) -> Result<()> {
    let known = Make::ALL.map(Make::name);
    if let Some(unknown) = options.only.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("--only {unknown}: there is {}", known.join(", "));
    }
    preflight::check()?;
    preflight::peers()?;
    let start = Instant::now();
    let wanted = |make: &Make| options.only.is_empty() || options.only.iter().any(|only| only == make.name());
    let makes: Vec<Make> = Make::ALL.into_iter().filter(wanted).collect();
    let variants = variants(&makes, options.quick);
    println!("{} cases, {} at a time", variants.len(), options.jobs);
    let features = Feature::ALL.map(|(feature, _)| feature);
    let outcomes = play_all(&variants, &features, options.jobs)?;
    let stressed: Vec<Make> = STRESSED.into_iter().filter(wanted).collect();
    let rounds = if options.quick { 10 } else { 100 };
    let stressed = at_once(&stressed, stressed.len(), |make| Ok((collide(make, rounds)?, recover(make)?)))?;
    let (collisions, recoveries): (Vec<_>, Vec<_>) = stressed.into_iter().unzip();
    let page = report::page(&outcomes, &collisions, &recoveries);
    print!("{page}");
    let whole = options.only.is_empty() && !options.quick;
    let usual = whole.then(|| topology::workspace().join("docs/interop.md"));
    match options.output.clone().or(usual) {
        Some(path) => {
            std::fs::write(&path, &page)?;
            println!("written to {} after {:.0} s", path.display(), start.elapsed().as_secs_f64());
        }
        None => println!("not written (only a part was played); {:.0} s", start.elapsed().as_secs_f64()),
    }
    let failed = outcomes.iter().map(|outcome| outcome.failures().count()).sum::<usize>();
    if failed > 0 || collisions.iter().any(|one| !one.faults.is_empty() || one.twice > 0) {
        bail!("{failed} cells are `no`; collisions that did not end in one session: see above");
    }
    Ok(())
}

/// The cases of a full or a quick run, in the order of the table.
fn variants(makes: &[Make], quick: bool) -> Vec<Variant> {
    let mut all = BTreeSet::new();
    for make in makes {
        for bits in 0..16_u8 {
            let [ipv6, internal, md5, wide] = [8, 4, 2, 1].map(|bit| bits & bit != 0);
            if !quick || (md5 && wide) {
                all.insert(Variant { make: *make, ipv6, internal, md5, wide, old: false });
            }
        }
        if OLD.contains(make) {
            all.insert(Variant { make: *make, ipv6: false, internal: false, md5: false, wide: false, old: true });
        }
    }
    all.into_iter().collect()
}

/// Plays cases, some at the same time, with a line for each.
///
/// # Errors
/// A stage cannot be built.
pub fn play_all(variants: &[Variant], features: &[Feature], jobs: usize) -> Result<Vec<Outcome>> {
    let mut outcomes = at_once(variants, jobs, |variant| {
        let start = Instant::now();
        let outcome = play(variant, features)?;
        let failures: Vec<_> = outcome.failures().map(|(feature, why)| format!("\n    {feature:?}: {why}")).collect();
        let word = if failures.is_empty() { "ok" } else { "NO" };
        println!("{word}  {:<62} {:>5.1} s{}", report::name(variant), start.elapsed().as_secs_f64(), failures.concat());
        Ok(outcome)
    })?;
    outcomes.sort_by_key(|outcome| outcome.variant);
    Ok(outcomes)
}

/// Does work for every item, `jobs` at the same time; the first error ends it.
fn at_once<T, R>(items: &[T], jobs: usize, work: impl Fn(T) -> Result<R> + Sync) -> Result<Vec<R>>
where
    T: Copy + Send,
    R: Send,
{
    let queue = Mutex::new(items.iter().copied().collect::<VecDeque<T>>());
    let results = Mutex::new(Vec::new());
    let take = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                while let Some(item) = take() {
                    let result = work(item);
                    if result.is_err() {
                        queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    }
                    results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect()
}
